"""Drives machines in memory: what the owner does, without a store. Used by the tests of `machine/`."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw

from streamflow import events
from streamflow.errors import Failure
from streamflow.events import AnyEvent, ChildCompleted, RunStarted, Transition, decode_history, encode_transition
from streamflow.machine.factory import new_machine, rehydrate
from streamflow.machine.fork_point import fork_of
from streamflow.machine.retry_point import check_end, retry_point
from streamflow.machine.run import RunMachine
from streamflow.machine.transition import CompletedChild, Effects, FailedChild, Outcome, RetryRequest
from streamflow.model.record import Header, Status
from streamflow.model.sharding import Partition
from streamflow.workflow.app import App
from streamflow.workflow.retry import NO_RETRY


def raw(value: object) -> Raw:
    return Raw(msgspec.msgpack.encode(value))


def plain(payload: Raw | bytes) -> Any:
    return msgspec.msgpack.decode(payload)


def with_steps_of(app: App) -> App:
    """An app for one test's workflows, which use the steps of another."""
    other = App(parks=app.parks)
    other.steps.update(app.steps)
    return other


def make_app() -> App:
    """A step that gives what it got, without retries, and a workflow for children. Each test adds its own flow, whose
    bugs fail it, so that a test sees them in its events."""
    app = App(parks=())

    @app.step(retry=NO_RETRY)
    async def act(what: Any) -> Any:
        return what

    @app.workflow
    async def child(what: str) -> str:
        return what

    return app


class Run:
    """One run: its machine and what a store would keep of it."""

    def __init__(
        self,
        app: App,
        workflow: str,
        *args: object,
        parent: str = "",
        tenant: str = "",
        run_id: str = "r",
        at: int = 1000,
        partition: Partition = Partition.RUN,
        crash: bool = False,
        created: int = 0,
    ) -> None:
        self.app = app
        self.created = created
        self.run_id = run_id
        self.workflow = workflow
        self.partition = partition
        self.parent = parent
        self.tenant = tenant
        self.elements: list[bytes] = []
        self.state = b""
        self.ever: list[str] = []
        """Names of all events, also of those before the run continued as new."""
        self.crash = crash
        """Before every transition the machine is thrown away and made again from the record."""
        self.at = at
        self.machine: RunMachine = new_machine(app, partition, run_id, workflow)
        self.last = self.advance(RunStarted(workflow, tenant, raw(args), parent, created=created))

    def advance(self, *inputs: Any, after: int = 0) -> Effects:
        self.at += after
        if self.crash and self.elements:
            self.machine.close()
            assert not self.reload().reason
        effects = self.machine.advance([self._sent(input_) for input_ in inputs], self.at)
        self.ever += kinds(effects)
        if effects.events:
            if effects.besides.fresh:
                self.elements.clear()
            self.elements.append(encode_transition(self.machine.at, effects.events, effects.besides.unrecorded))
            self.state = self.machine.snapshot()
        self.last = effects
        return effects

    def _sent(self, input_: Any) -> Any:
        """The outcome of a child of this very run, given as the event that is recorded of it, as it is sent."""
        if isinstance(input_, ChildCompleted):
            return CompletedChild(input_.seq, input_.name, input_.result, self.created)
        if isinstance(input_, events.ChildFailed):
            return FailedChild(input_.seq, input_.name, input_.failure, input_.cancelled, self.created)
        return input_

    def done(self, seq: int, result: object = None, attempt: int = 1, after: int = 1) -> Effects:
        return self.advance(Outcome(seq, attempt, 0.5, raw(result)), after=after)

    def failed(
        self,
        seq: int,
        kind: str = "ValueError",
        attempt: int = 1,
        permanent: bool = False,
        bases: tuple[str, ...] = (),
        ms: float = 0.5,
        after: int = 1,
    ) -> Effects:
        outcome = Outcome(seq, attempt, ms, None, Failure(kind, "no"), permanent, kinds=(kind, *bases))
        return self.advance(outcome, after=after)

    def transitions(self, upto: int | None = None) -> list[Transition]:
        return decode_history(self.elements[:upto])

    @property
    def history(self) -> list[AnyEvent]:
        return [event for transition in self.transitions() for event in transition.events]

    @property
    def names(self) -> list[str]:
        return [type(event).__name__ for event in self.history]

    def retry(self, app: App | None = None, *, anyway: bool = False, first: Any = (), after: int = 1) -> Effects:
        """What the owner does with a request to retry the run, which has ended. `first`: inputs that came before it."""
        self.app = app or self.app
        self.at += after
        version = len(self.elements)
        header = Header(self.machine.status, version, "c", self.created, 1, self.workflow, self.tenant, self.parent)
        request = RetryRequest("f" * 32, self.created, version, "kim", "again", anyway)
        check_end(self.run_id, header, request, is_reducer=bool(self.state))
        point = retry_point(self.run_id, self.transitions())
        self.machine = rehydrate(
            self.app, self.partition, self.run_id, header, self.state, self.transitions(), retry=point
        )
        assert self.machine.begun_jobs(self.at) == []
        crash, self.crash = self.crash, False
        try:
            return self.advance(*first, request)
        finally:
            self.crash = crash

    def fork(self, at: int | None, run_id: str, created: int = 5_000) -> Run:
        """A fork of it, which has begun."""
        ended = 0 if self.machine.status in _OPEN else 1
        header = Header(self.machine.status, 1, "c", self.created, ended, self.workflow, self.tenant, "")
        fork = fork_of(self.run_id, header, self.transitions(), at, None, "kim", "")
        fork = msgspec.structs.replace(fork, created=created)
        made = Run.__new__(Run)
        made.app, made.partition, made.workflow, made.tenant, made.parent = (
            self.app, self.partition, self.workflow, self.tenant, ""
        )  # fmt: skip
        made.run_id, made.created, made.at, made.crash, made.state = run_id, created, self.at, False, b""
        made.elements, made.ever = [], []
        pending = Header(Status.PENDING, 0, "-", created, 0, self.workflow, self.tenant, "")
        made.machine = rehydrate(self.app, self.partition, run_id, pending, b"", [], fork=fork)
        assert made.machine.reason == ""
        assert made.machine.begun_jobs(self.at) == made.machine.running_jobs() == []
        made.advance(fork)
        return made

    def reload(self, app: App | None = None) -> RunMachine:
        """What another daemon would make of the record."""
        self.app = app or self.app
        status = self.machine.status
        header = Header(status, 1, "c", 1000, 0 if status in _OPEN else 1, self.workflow, self.tenant, self.parent)
        self.machine = rehydrate(self.app, self.partition, self.run_id, header, self.state, self.transitions())
        return self.machine


_OPEN = (Status.PENDING, Status.RUNNING, Status.STUCK)


def kinds(effects: Effects) -> list[str]:
    return [type(event).__name__ for event in effects.events]


def result_of(effects: Effects) -> Any:
    return plain(effects.events[-1].result)  # type: ignore[union-attr]


def failure_in(effects: Effects) -> Failure:
    return effects.events[-1].failure  # type: ignore[union-attr]
