"""The single actions of a workflow that can be awaited: steps, children, timers, signals, questions.

Owns: these operations: which decision each records, with what it is settled, and how it is undone when cancelled.
Must not: drive coroutines, know redis or asyncio; offer public functions (`api.py` does).
Called by: the definitions and `api.py` make them; the machines begin, settle and cancel them.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import msgspec
from msgspec import Raw

from streamflow.errors import Cancelled, Failure, PayloadInvalid, UsageError
from streamflow.events import (
    NOTHING,
    AskAnswered,
    AskReceived,
    ChildCancelled,
    ChildStarted,
    SignalReceived,
    SignalSent,
    StepScheduled,
    TimerSet,
)
from streamflow.model import codec, sharding
from streamflow.model.names import check_run_id
from streamflow.text import recordable
from streamflow.workflow.awaitable import DONE, NEW, PENDING, Call, Fiber, Operation, active_machine, warn_if_forgotten
from streamflow.workflow.messages import Declared, SignalDefinition

if TYPE_CHECKING:
    from streamflow.workflow.app import Reducer, Step, Workflow
    from streamflow.workflow.awaitable import Machine

T = TypeVar("T")
S = TypeVar("S")

ON_PARENT_END = ("cancel", "abandon", "wait")
"""What can happen to a child when its parent ends first, or stops awaiting it."""


MARK_BYTES = 8


class StepJob(msgspec.Struct, eq=False):
    """An attempt of a step that starts after the commit: at the owner, or in the queue `step.queue`."""

    seq: int
    attempt: int
    step: Step[..., Any]
    args: Raw
    details: Raw = NOTHING
    """The last value that the previous attempt reported with `sf.heartbeat`."""
    timeout: float | None = None
    """Seconds; None for no limit."""
    lost: int = 0
    """Attempts of this call before it that ended because their daemon or worker died."""
    blamed: bool = False
    """The last one is most probably what ended it."""
    created: int = 0
    """When the run was created, to distinguish it from an earlier run with the same id."""
    workflow: str = ""
    """The run's."""
    trace: str = ""
    """The packed trace context of the run; empty if it isn't traced."""
    mark: bytes = b""
    """Of an attempt in a queue: `StepCall.mark`."""

    def __repr__(self) -> str:
        return f"StepJob({self.seq}, {self.step.name}, attempt={self.attempt})"


class StepCall(Operation):
    """One call of a step. While it is open it also keeps the current attempt, and when the next one is due."""

    __slots__ = (
        "_recorded",
        "args",
        "attempt",
        "blamed",
        "declined",
        "details",
        "due",
        "is_local",
        "kwargs",
        "lost",
        "payload",
        "since",
        "step",
    )

    def __init__(self, step: Step[..., Any], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> None:
        self.state = NEW
        self.home = None
        self.seq = 0
        self.value = None
        self.error = None
        self.waiter = None
        self.step = step
        self.is_local = step.queue is None and step.known
        """Whether its attempts run at the owner, not in a queue."""
        self.args: tuple[Any, ...] | None = args
        self.kwargs = kwargs
        self.payload = NOTHING
        self.attempt = 1
        """Number of the attempt that runs, or that starts at `due`."""
        self.due: int | None = None
        """Shard-clock ms at which the next attempt starts; None while an attempt runs."""
        self.lost = 0
        """Attempts that ended because their daemon, worker or process died."""
        self.blamed = False
        """The last of these is most probably what ended it. Not known after a rehydration."""
        self.declined = 0
        """Attempts that no process has begun, because its code didn't fit."""
        self.since = 0
        """Shard-clock ms at which the first attempt that failed had started; 0 if none has failed."""
        self.details = NOTHING
        """The last value that the previous attempt reported."""
        self._recorded: Raw | None = None
        """The arguments in the history, if today's code encodes them in another way."""

    @property
    def mark(self) -> bytes:
        """Of what was decided: step and arguments, as they were recorded. A failover may have lost the decision, and
        the run may have called something else under the same number: the outcome of a queued attempt names it."""
        digest = hashlib.blake2b(f"{self.step.name} ".encode(), digest_size=MARK_BYTES)
        digest.update(bytes(self.payload if self._recorded is None else self._recorded))
        return digest.digest()

    def job(self) -> StepJob:
        step = self.step
        job = StepJob(self.seq, self.attempt, step, self.payload, self.details, step.timeout, self.lost, self.blamed)
        if step.queue is not None:
            job.mark = self.mark
        return job

    __del__ = warn_if_forgotten

    def label(self) -> tuple[str, tuple[str, ...]]:
        return f"a call of step {self.step.name}", (getattr(self.step.function, "__name__", ""), self.step.name)

    def begin(self, machine: Machine) -> None:
        step = self.step
        if machine.app.steps.get(step.name) is not step.origin and not machine.app.has_copy_of(step):
            raise UsageError(machine.app.unknown_step(step.name))
        payload = Raw(step.parameters.encode(self.args or (), self.kwargs))
        self.args = self.kwargs = None
        self.seq = seq = machine.take_seq()
        self.state = PENDING
        event = machine.decide(StepScheduled(seq, step.name, payload, step.queue or ""))
        self.payload = payload  # in a replay, too: it is what was recorded, in today's order and with today's defaults
        if event.args is not payload and not self.is_local and bytes(event.args) != bytes(payload):
            self._recorded = event.args
        if event.queue != (step.queue or ""):  # replayed by code that names another queue: the attempt isn't moved
            self.step = step.options(queue=event.queue or None)
            self.is_local = not event.queue
        machine.add_step(self)

    def take_back(self, cause: Cancelled, machine: Machine) -> None:
        machine.cancel_step(self)

    def decode_result(self, payload: Raw) -> Any:
        return self.step.parameters.decode_result(payload)


class ChildCall(Operation):
    """One call of a child run. `target` is a workflow or reducer, with the id, tenant and policy of its `options()`."""

    __slots__ = ("args", "kwargs", "on_parent_end", "run_id", "target")

    def __init__(
        self,
        target: Workflow[..., Any] | Reducer | Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.target = target
        self.args: tuple[Any, ...] | None = args
        self.kwargs = kwargs
        self.run_id = ""
        self.on_parent_end = "cancel"

    __del__ = warn_if_forgotten

    def label(self) -> tuple[str, tuple[str, ...]]:
        return f"a call of {self.target.kind} {self.target.name}", (
            getattr(self.target.function, "__name__", ""),
            self.target.name,
        )

    def begin(self, machine: Machine) -> None:
        target = self.target
        name = target.name
        if name not in machine.app.workflows:
            raise UsageError(machine.app.unknown_workflow(name))
        payload = Raw(target.parameters.encode(self.args or (), self.kwargs or {}))
        self.args = self.kwargs = None
        tenant = target.child_tenant or machine.tenant
        partition = machine.partition
        seq = machine.take_seq()
        if target.child_id:
            run_id = sharding.full_run_id(target.child_id, partition, tenant, name)
        else:
            run_id = sharding.child_run_id(
                machine.run_id, machine.created, seq, partition, tenant, name, bytes(payload)
            )
        check_run_id(run_id)
        self.seq = seq
        self.state = PENDING
        event = machine.decide(ChildStarted(seq, name, run_id, tenant, payload, target.on_parent_end))
        self.run_id = event.run_id
        self.on_parent_end = event.on_parent_end
        machine.add_child(self, event)

    def take_back(self, cause: Cancelled, machine: Machine) -> None:
        if self.on_parent_end == "cancel" and self.seq in machine.children:
            self.ask_to_cancel(cause.reason, machine)
        if self.on_parent_end != "wait":  # with "wait" the run still doesn't end before it
            machine.drop_child(self.seq)

    def ask_to_cancel(self, reason: str, machine: Machine) -> None:
        machine.decide(ChildCancelled(self.seq, self.target.name))
        machine.cancel_child(self, recordable(reason))

    def decode_result(self, payload: Raw) -> Any:
        return self.target.parameters.decode_result(payload)


class Sleep(Operation):
    """A timer of `ms` milliseconds."""

    __slots__ = ("ms", "tag")

    def __init__(self, ms: int, tag: str = "") -> None:
        super().__init__()
        self.ms = ms
        self.tag = tag

    __del__ = warn_if_forgotten

    def begin(self, machine: Machine) -> None:
        self.seq = machine.take_seq()
        self.state = PENDING
        event = machine.decide(TimerSet(self.seq, machine.clock + self.ms))
        machine.add_timer(self, event.due)

    def take_back(self, cause: Cancelled, machine: Machine) -> None:
        machine.drop_timer(self.seq)


class Alarm(Sleep):
    """A timer that is not awaited: when it fires, it interrupts its fiber. Limits a block (`sf.timeout`)."""

    __slots__ = ("fiber", "interruption")

    def __init__(self, ms: int, fiber: Fiber, interruption: Cancelled) -> None:
        super().__init__(ms)
        self.fiber = fiber
        self.interruption = interruption

    def begin(self, machine: Machine) -> None:
        self.state = PENDING
        self.seq = machine.take_seq()
        event = machine.decide(TimerSet(self.seq, machine.clock + self.ms, "timeout()"))
        machine.add_timer(self, event.due)

    def settle(self, value: Any, error: BaseException | None, ready: list[Fiber]) -> None:
        super().settle(value, error, ready)
        if error is None:
            self.fiber.interrupt(self.interruption, active_machine("timeout()"))


class SignalWait(Operation):
    """Waits for one signal called `name`. With a timeout it is also a timer, and `seq` is the timer's number."""

    __slots__ = ("due", "ms", "name", "type")

    what = "signal"

    def __init__(self, name: str, type_: Any, ms: int | None) -> None:
        super().__init__()
        self.name = name
        self.type = type_
        self.ms = ms
        self.due = 0
        """When it times out, shard-clock ms; 0 if it doesn't."""

    @property
    def key(self) -> str:
        """The key under which early messages for it are kept (`message_key`)."""
        return self.name

    def accept(self, event: Any, machine: Machine) -> bool:
        """Settle with a message. False if its value is not of the type: then it is refused."""
        try:
            value = codec.decode(event.value, self.type, f"value of {self.what} {self.name}")
        except PayloadInvalid as error:
            self.refuse(event, error, machine)
            return False
        if machine.was_refused(event):
            return False
        self.settle(self.wrap(event, value, machine), None, machine.ready)
        return True

    def wrap(self, event: Any, value: Any, machine: Machine) -> Any:
        return value

    def refuse(self, event: Any, error: PayloadInvalid, machine: Machine) -> None:
        machine.skip_signal(event, error)

    __del__ = warn_if_forgotten

    def label(self) -> tuple[str, tuple[str, ...]]:
        return f"sf.{self.what}({self.name!r})", (self.what,)

    def begin(self, machine: Machine) -> None:
        self.state = PENDING
        if machine.take_message(self):
            return
        if self.ms is not None:
            self.seq = machine.take_seq()
            event = machine.decide(TimerSet(self.seq, machine.clock + self.ms, self.name))
            self.due = event.due
            machine.add_timer(self, event.due)

    def take_back(self, cause: Cancelled, machine: Machine) -> None:
        machine.forget_wait(self)
        machine.timers.pop(self.seq, None)


class AskWait(SignalWait):
    """Waits for one question called `name`; settled with a `Question`, whose answer is to be of a type."""

    __slots__ = ("answer",)

    what = "question"

    def __init__(self, name: str, type_: Any, ms: int | None, answer: Any = Any) -> None:
        super().__init__(name, type_, ms)
        self.answer = answer

    @property
    def key(self) -> str:
        return message_key(AskReceived("", self.name, NOTHING))

    def wrap(self, event: Any, value: Any, machine: Machine) -> Any:
        return Question(event.id, event.name, value, self.answer)

    def refuse(self, event: Any, error: PayloadInvalid, machine: Machine) -> None:
        machine.answer(AskAnswered(event.id, event.name, NOTHING, Failure("PayloadInvalid", str(error))))


class Question(Generic[T]):
    """A question to this run, from `run.ask(name, value)`: the result of `await sf.question(name)`.

    `name` is the question's name, `value` what the asker sent, `id` the question's own id (32 hex digits). The asker
    waits until `answer` or `refuse` is called, once. If neither is called before the run ends, `run.ask` raises
    `RunEnded`.
    """

    __slots__ = ("_answer", "_answered", "id", "name", "value")

    def __init__(self, id: str, name: str, value: T, answer: Any = Any) -> None:
        self.id = id
        self.name = name
        self.value = value
        self._answer = answer
        self._answered = False

    def answer(self, result: object = None) -> None:
        """Answer with `result`; the asker gets it as soon as it is recorded.

        Raises `PayloadInvalid` (also for an answer that isn't of the type that the question's definition has),
        `PayloadTooLarge`, and `UsageError` if the question is answered already.
        """
        payload = Raw(codec.encode_as(result, self._answer, f"answer to question {self.name}"))
        self._record(AskAnswered(self.id, self.name, payload), result)

    def refuse(self, reason: str) -> None:
        """Refuse to answer: `run.ask` raises `AskRefused`, with `reason` as the failure's message.

        Raises `UsageError` if the question is answered already.
        """
        self._record(AskAnswered(self.id, self.name, NOTHING, Failure("Refused", reason)), None)

    def _record(self, answer: AskAnswered, result: object) -> None:
        machine = active_machine("question()")
        if self._answered:
            raise UsageError(f"question {self.name} ({self.id}) is answered already: answer or refuse it once")
        self._answered = True
        machine.answer(answer, result)


def message_key(event: SignalReceived | AskReceived) -> str:
    """The key under which a message is kept: a signal's name, or a question's after a `?` (no name begins so)."""
    return f"?{event.name}" if isinstance(event, AskReceived) else event.name


class SignalSend(Operation):
    """Sends a signal to another run. Settled at once: the outbox delivers it. With a `child` it is for that child only,
    not for another run that has its id."""

    __slots__ = ("child", "content", "name", "payload", "target")

    def __init__(
        self,
        target: str,
        declared: Declared,
        name: str | SignalDefinition[Any],
        value: object,
        child: ChildCall | None = None,
    ) -> None:
        """`declared`: by the target's workflow, as far as it is known."""
        self.target = check_run_id(target)
        self.child = child
        self.name, payload = declared.payload("signal", name, value)
        self.payload = Raw(payload)
        self.content: object = value
        super().__init__()

    __del__ = warn_if_forgotten

    def label(self) -> tuple[str, tuple[str, ...]]:
        return f"a signal {self.name} to run {self.target}", ("send_signal", "signal")

    def begin(self, machine: Machine) -> None:
        if self.child is not None:
            self.child.check_home(machine)
        self.seq = machine.take_seq()
        self.state = PENDING
        event = machine.decide(SignalSent(self.seq, self.name, self.target, self.payload), self.content)
        self.content = None
        machine.send_signal(self, event)


class ChildStart(Operation):
    """Starts a child without waiting for it: settled at once with its handle."""

    __slots__ = ("call",)

    def __init__(self, call: ChildCall) -> None:
        super().__init__()
        self.call = call

    __del__ = warn_if_forgotten

    def label(self) -> tuple[str, tuple[str, ...]]:
        return f"sf.start({self.call.target.name}, …)", ("start",)

    def begin(self, machine: Machine) -> None:
        self.call.home = machine.ready
        try:
            self.call.begin(machine)
        except BaseException:
            self.call.state = DONE  # it was refused, not forgotten
            raise
        self.settle(Child(self.call), None, machine.ready)


class Join(Operation):
    """Waits for an operation without owning it: cancelling the wait doesn't cancel the operation."""

    __slots__ = ("operation",)

    def __init__(self, operation: Operation) -> None:
        super().__init__()
        self.operation = operation

    __del__ = warn_if_forgotten

    def label(self) -> tuple[str, tuple[str, ...]]:
        return "a wait for the result of a child", ("result",)

    def begin(self, machine: Machine) -> None:
        self.operation.check_home(machine)
        self.state = PENDING
        if self.operation.state == DONE:
            self.wake(self.operation, machine.ready)
        else:
            self.operation.join(self)

    def wake(self, settled: Operation, ready: list[Fiber]) -> None:
        if self.state == PENDING:
            self.settle(settled.value, settled.error, ready)

    def take_back(self, cause: Cancelled, machine: Machine) -> None:
        self.operation.leave(self)


class ChildCancel(Operation):
    """Asks a child to cancel. Settled at once: the outbox delivers it."""

    __slots__ = ("call", "reason")

    def __init__(self, call: ChildCall, reason: str) -> None:
        super().__init__()
        self.call = call
        self.reason = reason

    __del__ = warn_if_forgotten

    def label(self) -> tuple[str, tuple[str, ...]]:
        return f"cancel() of child {self.call.run_id}", ("cancel",)

    def begin(self, machine: Machine) -> None:
        self.call.check_home(machine)
        if self.call.state != DONE:
            self.call.ask_to_cancel(self.reason, machine)
        self.settle(None, None, machine.ready)


class Child(Generic[T]):
    """The handle of a child run that was started with `sf.start()`. `id` is its run id.

    >>> audit = await sf.start(audit_trail, order)
    >>> await audit.signal("paid", receipt)
    >>> report = await audit.result()
    """

    __slots__ = ("_call", "id")

    def __init__(self, call: ChildCall) -> None:
        self.id = call.run_id
        self._call = call

    def result(self) -> Call[T]:
        """Wait for its end and return its result. Cancelling this wait doesn't cancel the child.

        Raises `ChildFailed` if it failed or was cancelled.
        """
        return Join(self._call)

    @overload
    def signal(self, name: SignalDefinition[None]) -> Call[None]: ...
    @overload
    def signal(self, name: SignalDefinition[S], value: S) -> Call[None]: ...
    @overload
    def signal(self, name: str, value: object = None) -> Call[None]: ...
    def signal(self, name: str | SignalDefinition[Any], value: object = None) -> Call[None]:
        """Send it a signal, as `sf.send_signal`. Raises `InvalidName`, `PayloadInvalid`, `PayloadTooLarge`, and
        `UsageError` for one that its workflow doesn't declare although it declares its signals."""
        return SignalSend(self.id, self._call.target.declared, name, value, self._call)

    def cancel(self, reason: str = "") -> Call[None]:
        """Ask it to cancel, without waiting for that: `result()` waits for its end. No effect if it has ended."""
        return ChildCancel(self._call, reason)

    def __repr__(self) -> str:
        return f"<child run {self.id}>"
