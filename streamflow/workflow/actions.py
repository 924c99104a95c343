"""What a workflow tells streamflow to do, one thing at a time: steps, children, timers, signals, questions.

Owns: these operations: which decision each records, what it is settled with, and how it is taken back.
Must not: drive coroutines, know redis or asyncio; offer public functions (`api.py` does).
Called by: the definitions and `api.py` make them; the machines begin, settle and cancel them.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

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
from streamflow.model.names import check_name, check_run_id
from streamflow.workflow.awaitable import DONE, NEW, PENDING, Fiber, Operation, active_machine

if TYPE_CHECKING:
    from streamflow.workflow.app import Reducer, Step, Workflow
    from streamflow.workflow.awaitable import Machine

T = TypeVar("T")

ON_PARENT_END = ("cancel", "abandon", "wait")
"""What happens to a child when its parent ends, or gives up awaiting it."""


class StepJob:
    """An attempt of a step, to start after the commit. `step.queue` says where it runs."""

    __slots__ = ("args", "attempt", "created", "details", "seq", "step", "timeout")

    def __init__(self, seq: int, attempt: int, step: Step[..., Any], args: Raw, details: Raw = NOTHING) -> None:
        self.seq = seq
        self.attempt = attempt
        self.step = step
        self.args = args
        self.details = details
        """What the attempt before told last with `sf.heartbeat`."""
        self.timeout = step.timeout
        self.created = 0
        """At a worker: when the run was created, which tells it from an earlier run of its id."""

    def __repr__(self) -> str:
        return f"StepJob({self.seq}, {self.step.name}, attempt={self.attempt})"


class StepCall(Operation):
    """One call of a step, and while it is open also its record: attempt, and when the next one is due."""

    __slots__ = ("args", "attempt", "details", "due", "is_local", "kwargs", "lost", "payload", "step")

    def __init__(self, step: Step[..., Any], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> None:
        self.state = NEW
        self.seq = 0
        self.value = None
        self.error = None
        self.waiter = None
        self.step = step
        self.is_local = step.queue is None and step.known
        """Whether its attempts run at the owner."""
        self.args: tuple[Any, ...] | None = args
        self.kwargs = kwargs
        self.payload = NOTHING
        self.attempt = 1
        """The attempt that runs, or that will run at `due`."""
        self.due: int | None = None
        """Shard-clock ms of the next attempt, while a retry waits."""
        self.lost = 0
        """Attempts that ended because their worker died."""
        self.details = NOTHING
        """What the attempt before told last."""

    def job(self) -> StepJob:
        return StepJob(self.seq, self.attempt, self.step, self.payload, self.details)

    def begin(self, machine: Machine) -> None:
        step = self.step
        if machine.app.steps.get(step.name) is not step.origin:
            raise UsageError(machine.app.unknown_step(step.name))
        payload = Raw(step.parameters.encode(self.args or (), self.kwargs or {}))
        self.args = self.kwargs = None
        self.seq = seq = machine.take_seq()
        self.state = PENDING
        event = machine.decide(StepScheduled(seq, step.name, payload, step.queue or ""))
        self.payload = event.args
        if event.queue != (step.queue or ""):  # replayed by code that names another queue: the attempt is where it was
            self.step = step.options(queue=event.queue or None, tag=step.tag)
            self.is_local = not event.queue
        machine.add_step(self)

    def take_back(self, cause: Cancelled, machine: Machine) -> None:
        machine.cancel_step(self)

    def decode_result(self, payload: Raw) -> Any:
        return self.step.parameters.decode_result(payload)


class ChildCall(Operation):
    """A child run. `target` is a workflow or reducer, with the id, tenant and policy of its `options()`."""

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

    def begin(self, machine: Machine) -> None:
        target = self.target
        name = target.name
        if name not in machine.app.workflows:
            raise UsageError(machine.app.unknown_workflow(name))
        payload = Raw(target.parameters.encode(self.args or (), self.kwargs or {}))
        self.args = self.kwargs = None
        tenant = target.child_tenant or machine.tenant
        partition = machine.partition
        if target.child_id:
            seq = machine.take_seq()
            run_id = check_run_id(sharding.full_run_id(target.child_id, partition, tenant, name))
        else:
            seq = machine.take_seq()
            run_id = check_run_id(sharding.child_run_id(machine.run_id, seq, partition, tenant, name))
        self.seq = seq
        self.state = PENDING
        event = machine.decide(ChildStarted(seq, name, run_id, tenant, payload, target.on_parent_end))
        self.run_id = event.run_id
        self.on_parent_end = event.on_parent_end
        machine.add_child(self, event)

    def take_back(self, cause: Cancelled, machine: Machine) -> None:
        if self.on_parent_end == "cancel" and self.seq in machine.children:
            self.ask_to_cancel(cause.reason, machine)
        if self.on_parent_end != "wait":  # else the run's end still waits for it
            machine.children.pop(self.seq, None)

    def ask_to_cancel(self, reason: str, machine: Machine) -> None:
        machine.decide(ChildCancelled(self.seq, self.target.name))
        machine.send(self.run_id, "cancel", reason)

    def decode_result(self, payload: Raw) -> Any:
        return self.target.parameters.decode_result(payload)


class Sleep(Operation):
    __slots__ = ("ms", "tag")

    def __init__(self, ms: int, tag: str = "") -> None:
        super().__init__()
        self.ms = ms
        self.tag = tag

    def begin(self, machine: Machine) -> None:
        self.seq = machine.take_seq()
        self.state = PENDING
        event = machine.decide(TimerSet(self.seq, machine.at + self.ms))
        machine.add_timer(self, event.due)

    def take_back(self, cause: Cancelled, machine: Machine) -> None:
        machine.timers.pop(self.seq, None)


class Alarm(Sleep):
    """A timer that nobody awaits: it interrupts its fiber. What limits a block."""

    __slots__ = ("fiber", "interruption")

    def __init__(self, ms: int, fiber: Fiber, interruption: Cancelled) -> None:
        super().__init__(ms)
        self.fiber = fiber
        self.interruption = interruption

    def begin(self, machine: Machine) -> None:
        self.seq = machine.take_seq()
        self.state = PENDING
        event = machine.decide(TimerSet(self.seq, machine.at + self.ms, "timeout()"))
        machine.add_timer(self, event.due)

    def settle(self, value: Any, error: BaseException | None, ready: list[Fiber]) -> None:
        super().settle(value, error, ready)
        if error is None:
            self.fiber.interrupt(self.interruption, active_machine("timeout()"))


class SignalWait(Operation):
    """Waits for one signal called `name`. With a timeout it is a timer too, and `seq` is the timer's number."""

    __slots__ = ("ms", "name", "type")

    what = "signal"

    def __init__(self, name: str, type_: Any, ms: int | None) -> None:
        super().__init__()
        self.name = name
        self.type = type_
        self.ms = ms

    @property
    def key(self) -> str:
        """Where its messages are kept until somebody waits for them."""
        return self.name

    def accept(self, event: Any, machine: Machine) -> bool:
        """Settle with a message, unless its value isn't of the type."""
        try:
            value = codec.decode(event.value, self.type, f"value of {self.what} {self.name}")
        except PayloadInvalid as error:
            self.refuse(event, error, machine)
            return False
        self.settle(self.wrap(event, value, machine), None, machine.ready)
        return True

    def wrap(self, event: Any, value: Any, machine: Machine) -> Any:
        return value

    def refuse(self, event: Any, error: PayloadInvalid, machine: Machine) -> None:
        machine.warn(f"run {machine.run_id} skipped a signal: {error}")

    def begin(self, machine: Machine) -> None:
        self.state = PENDING
        if machine.take_message(self):
            return
        if self.ms is not None:
            self.seq = machine.take_seq()
            event = machine.decide(TimerSet(self.seq, machine.at + self.ms, self.name))
            machine.add_timer(self, event.due)

    def take_back(self, cause: Cancelled, machine: Machine) -> None:
        machine.forget_wait(self)
        machine.timers.pop(self.seq, None)


class AskWait(SignalWait):
    """Waits for one question called `name`, and is settled with a `Question`."""

    __slots__ = ()

    what = "question"

    @property
    def key(self) -> str:
        return message_key(AskReceived("", self.name, NOTHING))

    def wrap(self, event: Any, value: Any, machine: Machine) -> Any:
        return Question(event.id, event.name, value)

    def refuse(self, event: Any, error: PayloadInvalid, machine: Machine) -> None:
        machine.answer(AskAnswered(event.id, event.name, NOTHING, Failure("PayloadInvalid", str(error))))


class Question(Generic[T]):
    """What `sf.question()` gives: somebody waits until the run answers. `value` is what was asked.

    One of `answer` and `refuse` is called once; a question that is left open ends for the asker with the run.
    """

    __slots__ = ("_answered", "id", "name", "value")

    def __init__(self, id: str, name: str, value: T) -> None:
        self.id = id
        self.name = name
        self.value = value
        self._answered = False

    def answer(self, result: object = None) -> None:
        """Give `result` to the asker, as soon as it is recorded. Raises `PayloadInvalid`, `PayloadTooLarge`."""
        payload = Raw(codec.encode(result, f"answer to question {self.name}"))
        self._give(AskAnswered(self.id, self.name, payload))

    def refuse(self, reason: str) -> None:
        """The asker gets `AskRefused` with this reason."""
        self._give(AskAnswered(self.id, self.name, NOTHING, Failure("Refused", reason)))

    def _give(self, answer: AskAnswered) -> None:
        machine = active_machine("question()")
        if self._answered:
            raise UsageError(f"question {self.name} of {self.id} was answered already")
        self._answered = True
        machine.answer(answer)


def message_key(event: SignalReceived | AskReceived) -> str:
    """Signals and questions wait under different keys: no name begins with a question mark."""
    return f"?{event.name}" if isinstance(event, AskReceived) else event.name


class SignalSend(Operation):
    """Sends a signal to another run. It is done at once: the outbox delivers it."""

    __slots__ = ("name", "payload", "target")

    def __init__(self, target: str, name: str, value: object) -> None:
        super().__init__()
        self.target = check_run_id(target)
        self.name = check_name("signal", name)
        self.payload = Raw(codec.encode(value, f"value of signal {name}"))

    def begin(self, machine: Machine) -> None:
        self.seq = machine.take_seq()
        self.state = PENDING
        event = machine.decide(SignalSent(self.seq, self.name, self.target, self.payload))
        machine.send_signal(self, event)


class ChildStart(Operation):
    """Starts a child and waits for nothing: settled at once with its handle."""

    __slots__ = ("call",)

    def __init__(self, call: ChildCall) -> None:
        super().__init__()
        self.call = call

    def begin(self, machine: Machine) -> None:
        self.call.begin(machine)
        self.settle(Child(self.call), None, machine.ready)


class Join(Operation):
    """Waits for an operation that it doesn't own: when the watch is cancelled, the operation goes on."""

    __slots__ = ("watched",)

    def __init__(self, watched: Operation) -> None:
        super().__init__()
        self.watched = watched

    def begin(self, machine: Machine) -> None:
        self.state = PENDING
        if self.watched.state == DONE:
            self.wake(self.watched, machine.ready)
        else:
            self.watched.join(self)

    def wake(self, settled: Operation, ready: list[Fiber]) -> None:
        if self.state == PENDING:
            self.settle(settled.value, settled.error, ready)

    def take_back(self, cause: Cancelled, machine: Machine) -> None:
        self.watched.leave(self)


class ChildCancel(Operation):
    """Asks a child to cancel. It is done at once: the outbox delivers it."""

    __slots__ = ("call", "reason")

    def __init__(self, call: ChildCall, reason: str) -> None:
        super().__init__()
        self.call = call
        self.reason = reason

    def begin(self, machine: Machine) -> None:
        if self.call.state != DONE:
            self.call.ask_to_cancel(self.reason, machine)
        self.settle(None, None, machine.ready)


class Child(Generic[T]):
    """What `sf.start()` gives: a child run that goes on beside its parent."""

    __slots__ = ("_call", "id")

    def __init__(self, call: ChildCall) -> None:
        self.id = call.run_id
        self._call = call

    def result(self) -> Awaitable[T]:
        """Wait for its end and give its result. Raises `ChildFailed`. Giving up this wait leaves the child alone."""
        return Join(self._call)

    def signal(self, name: str, value: object = None) -> Awaitable[None]:
        """Send it a signal, as `sf.send_signal`."""
        return SignalSend(self.id, name, value)

    def cancel(self, reason: str = "") -> Awaitable[None]:
        """Ask it to cancel; its end is still awaited with `result()`. Nothing happens if it has ended."""
        return ChildCancel(self._call, reason)

    def __repr__(self) -> str:
        return f"<child run {self.id}>"
