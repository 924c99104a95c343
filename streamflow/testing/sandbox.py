"""The client's API over a world in memory: what a test of workflows uses instead of a server and daemons.

Owns: handles, waiting, and when the virtual clock moves. Must not: decide what happens (`world.py` does).
Called by: user tests.

A test reads like production code: `start`, `signal`, `result`. Each call returns when everything has happened that
can happen at the current virtual time. Only waiting (`result`, `ask`, `sleep`, following `events`) moves the virtual
clock, which takes no real time.
"""

# A sandbox replaces the client of a `Run`, with those methods that `Run` calls.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import contextvars
import inspect
import itertools
import math
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Mapping
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, ParamSpec, TypeVar, TypeVarTuple, cast, overload

import msgspec
from msgspec import UNSET, Raw, UnsetType

from streamflow.archive.format import ArchivedRun
from streamflow.client import forking
from streamflow.client.archived import created_ms, describe_archived, events_of, listing_name
from streamflow.client.client import (
    Client,
    Decode,
    Run,
    _declared,
    _decoder,
    _filters,
    _input,
    _options,
    _page_of,
    _returns,
    _start,
    _target,
    _with_start,
)
from streamflow.client.groups import From
from streamflow.client.histories import History
from streamflow.client.listing import (
    RunDescription,
    RunPage,
    RunSummary,
    describe,
    failure_in,
    instant,
    summarize,
    with_reason,
)
from streamflow.client.paging import Cursor, Position, cursor_of, cursor_text
from streamflow.client.pipelines import Origin
from streamflow.client.run import NumberedRun
from streamflow.client.starting import OnExisting, asked_for, check_existing, may_replace, own_arguments
from streamflow.client.streams import EmittedChunk, StreamPosition
from streamflow.client.views import unknown_view, view_name, wanted_labels
from streamflow.client.waiting import not_found
from streamflow.client.waits import RunOwner, pause_of_workflow
from streamflow.client.with_start import (
    REMEMBER,
    OnEnded,
    answer_type,
    ask_body,
    check_on_ended,
    once,
    settled,
    signal_body,
)
from streamflow.errors import RunConflict, RunEnded, RunError, RunNotFound, UnknownView, UsageError
from streamflow.events import AnyEvent, RunForked, RunStuck, Transition, decode_history, is_fork, unfolded
from streamflow.model.attributes import Attribute
from streamflow.model.causes import attempts_before
from streamflow.model.names import check_name, check_run_id
from streamflow.model.record import Header, Status, incarnation_of
from streamflow.model.retention import parse_rules
from streamflow.model.sharding import Partition, full_run_id
from streamflow.model.waits import StepHolder, Wait
from streamflow.store.kernel import Message, OnceMessage, PutOnce
from streamflow.store.namespace import Namespace
from streamflow.store.pauses import Pause, said
from streamflow.testing.archive import MemoryArchive, page
from streamflow.testing.attempts import running
from streamflow.testing.events_out import SandboxSubscription
from streamflow.testing.stubs import Stub, StubCall
from streamflow.testing.views import counted
from streamflow.testing.world import Record, Stalled, World
from streamflow.triggers.actions import checked, do
from streamflow.views.reading import ViewReading, reading
from streamflow.wire import encode_fork
from streamflow.workflow.app import App, Reducer, Startable, Step, Workflow
from streamflow.workflow.messages import Declared, QuestionDefinition, SignalDefinition
from streamflow.workflow.trigger import Received, Trigger
from streamflow.workflow.view import View

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
A = TypeVar("A")
Ts = TypeVarTuple("Ts")

OWNER = "sandbox"
"""The name of what has all runs and runs all steps."""
LIMIT = 100_000
"""Transitions in one wait, after which the run is considered to never end."""
YIELDS = 5
"""How often the event loop runs before the virtual clock moves, so that a test's other tasks can act first."""

PATIENCE = 5.0
"""Real seconds after which the virtual clock waits no longer for the function of a step."""


class _Deadline(msgspec.Struct, frozen=True):
    """The end of a wait: the virtual ms at which it is over, and the message of the `TimeoutError`."""

    at: int | None = None
    late: str = ""


NO_DEADLINE = _Deadline()

_deadline: contextvars.ContextVar[_Deadline] = contextvars.ContextVar("streamflow_sandbox_deadline")


class Sandbox:
    """Runs the workflows of `app` in memory, with a virtual clock that starts at 2026-01-01 00:00 UTC.

    Everything happens one after the other, in the same order each time. Payloads and histories are encoded and decoded
    as in production. Steps run their real functions unless they are stubbed. Use it from one event loop (asyncio).

    `partition` is that of the namespace: `run`, `tenant` or `workflow`.

    A step's real function takes no virtual time if it ends at once. One that takes longer runs beside everything else,
    and the virtual clock moves no faster than the real one meanwhile: what is due later than the step's end still comes
    later. `patience`: real seconds after which the clock doesn't wait for it any more, so that a step that never ends
    doesn't hold up what is due in a month.

    Ended runs are kept, unless `retention` (seconds, or a timedelta) or `retention_rules` say for how long, as those
    settings of a daemon. With `archive=True` they go into an archive in memory then, or by `purge`, and are read there;
    without it they are deleted.

    >>> async def test_digest() -> None:
    ...     async with sft.Sandbox(app) as sandbox:
    ...         sandbox.stub(fetch, returns="<p>")
    ...         run = await sandbox.start(digest, ["https://example.org"])
    ...         await run.signal("approve", True)
    ...         assert await run.result() == 3
    """

    _tracing = None
    """A sandbox makes no spans."""

    def __init__(
        self,
        app: App,
        *,
        partition: Partition | str = Partition.RUN,
        patience: float | timedelta = PATIENCE,
        retention: float | timedelta = 0.0,
        retention_rules: str = "",
        archive: bool = False,
    ) -> None:
        self.app = app
        rules = parse_rules(retention_rules, _ms(retention) / 1000)
        self.world = World(app, Partition(partition), _ms(patience) / 1000, rules or None, archives=archive)
        self._meta = Namespace(1, self.world.partition)
        self._started: dict[str, int] = {}
        self._asked = 0
        self._forked = 0
        self._posted: dict[str, int] = {}
        self._delivered = 0
        self._known: dict[str, tuple[int, int]] = {}
        """Of messages that come once: the run that has each, and until when that is known (ms)."""
        self._deadlines: list[int] = []
        """When the waits are over that are under way: the clock stops at each."""
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> Sandbox:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def close(self) -> None:
        """Close the coroutines of open runs, and stop the steps that still run. `async with` does it."""
        self.world.close()

    async def aclose(self) -> None:
        """As `close`, and let the functions of those steps end."""
        await self.world.aclose()

    # --- as the client ------------------------------------------------------------------------------------------------

    @overload
    async def start(
        self,
        workflow: Callable[[*Ts], Awaitable[R]],
        /,
        *args: *Ts,
        id: str | None = None,
        tenant: str = "",
        delay: float | timedelta | None = None,
        at: datetime | None = None,
        timeout: float | timedelta | None = None,
        on_existing: OnExisting = "existing",
    ) -> SandboxRun[R]: ...
    @overload
    async def start(
        self, workflow: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> SandboxRun[R]: ...
    @overload
    async def start(
        self,
        workflow: str,
        /,
        *args: Any,
        id: str | None = None,
        tenant: str = "",
        delay: float | timedelta | None = None,
        at: datetime | None = None,
        timeout: float | timedelta | None = None,
        on_existing: OnExisting = "existing",
    ) -> SandboxRun[Any]: ...
    async def start(
        self,
        workflow: Callable[..., Awaitable[Any]] | str,
        /,
        *args: Any,
        id: str | None = None,
        tenant: str = "",
        delay: float | timedelta | None = None,
        at: datetime | None = None,
        timeout: float | timedelta | None = None,
        on_existing: OnExisting = "existing",
        **kwargs: Any,
    ) -> SandboxRun[Any]:
        """Start a run, as `client.start`; `delay`, `at` and `timeout` are of the virtual clock. Without an `id` it gets
        `<workflow>-1`, `-2`, … in the order of starts.

        Raises `RunConflict` if the id belongs to a run of another workflow, `RunExists`, `UsageError` for what is not a
        workflow or reducer, `InvalidName`, `PayloadInvalid`, `PayloadTooLarge`.
        """
        name, parameters = _target(workflow)
        options: dict[str, Any] = {"delay": delay, "at": at, "timeout": timeout}
        kwargs |= own_arguments(parameters, options)
        word = asked_for(workflow, **options, on_existing=on_existing)
        payload = _input(name, parameters, args, kwargs)
        run_id, tenant = _options(workflow, id, tenant)
        start = _start(self._meta, name, payload, self._new_id(name, tenant) if run_id is None else run_id, tenant)
        found = self.world.records.get(start.run_id)
        if found is not None and not (on_existing == "new" and may_replace(start, found.head)):
            check_existing(start, found.head, on_existing)
            created = False
        else:
            self.world.forget(start.run_id)
            self.world.start(start.run_id, name, tenant, payload, word=word)
            created = True
        await self._settle()
        incarnation = self.world.records[start.run_id].head.created
        return SandboxRun(self, start.run_id, _decoder(name, parameters), created, _declared(workflow), incarnation)

    def _new_id(self, workflow: str, tenant: str) -> str:
        """Counted rather than drawn, because a run's `sf.random()` and its retries depend on its id."""
        while True:
            number = self._started[workflow] = self._started.get(workflow, 0) + 1
            run_id = f"{workflow}-{number}"
            if full_run_id(run_id, self.world.partition, tenant, workflow) not in self.world.records:
                return run_id

    async def view(
        self,
        view: str | View,
        /,
        *,
        since: datetime | None = None,
        labels: Mapping[str, str | int] | None = None,
        **more: str | int,
    ) -> ViewReading:
        """Read a view of the app, as `client.view`: when nothing happens any more at this time of the virtual clock.
        What the code of the view raises is raised here.

        Each run is counted apart, stored, and merged, so that a `merge` and a type of a state that don't fit are seen.
        """
        self._refuse_in_step("read a view")
        await self._settle()
        name = view_name(view)
        definition = self.world.app.views.get(name)
        if definition is None:
            raise UnknownView(unknown_view(name, sorted(self.world.app.views)))
        found = counted(definition, self.world.log.by_run(), self.world.now)
        wanted = wanted_labels(labels, more, since)
        return reading(name, found, wanted, 0 if since is None else round(since.timestamp() * 1000))

    async def views(self) -> list[str]:
        """The names of the views of the app."""
        return sorted(self.world.app.views)

    @overload
    async def signal_with_start(
        self,
        workflow: Callable[[*Ts], Awaitable[R]],
        /,
        *args: *Ts,
        id: str,
        signal: SignalDefinition[T],
        value: T,
        tenant: str = "",
        on_ended: OnEnded = "new",
        idempotency_id: str | None = None,
        remember: float | timedelta = REMEMBER,
    ) -> SandboxRun[R]: ...
    @overload
    async def signal_with_start(
        self,
        workflow: Callable[[*Ts], Awaitable[R]],
        /,
        *args: *Ts,
        id: str,
        signal: str | SignalDefinition[None],
        value: Any = None,
        tenant: str = "",
        on_ended: OnEnded = "new",
        idempotency_id: str | None = None,
        remember: float | timedelta = REMEMBER,
    ) -> SandboxRun[R]: ...
    @overload
    async def signal_with_start(
        self,
        workflow: str,
        /,
        *args: Any,
        id: str,
        signal: str | SignalDefinition[Any],
        value: Any = None,
        tenant: str = "",
        on_ended: OnEnded = "new",
        idempotency_id: str | None = None,
        remember: float | timedelta = REMEMBER,
    ) -> SandboxRun[Any]: ...
    async def signal_with_start(
        self,
        workflow: Callable[..., Awaitable[Any]] | str,
        /,
        *args: Any,
        id: str,
        signal: str | SignalDefinition[Any],
        value: Any = None,
        tenant: str = "",
        on_ended: OnEnded = "new",
        idempotency_id: str | None = None,
        remember: float | timedelta = REMEMBER,
    ) -> SandboxRun[Any]:
        """As `client.signal_with_start`; idempotency ids are remembered by the virtual clock."""
        check_on_ended(on_ended)
        declared = _declared(workflow)
        name, payload = declared.payload("signal", signal, value)
        start, decode = _with_start(self._meta, workflow, args, id, tenant)
        message = Message("signal", start.run_id, signal_body(name, payload, ""))
        answer = await self._put_once(once(message, idempotency_id, remember, start), on_ended)
        return SandboxRun(self, start.run_id, decode, answer.letter == "+", declared, answer.created)

    @overload
    async def ask_with_start(
        self,
        workflow: Callable[[*Ts], Awaitable[Any]],
        /,
        *args: *Ts,
        id: str,
        question: QuestionDefinition[T, A],
        value: T,
        timeout: float | timedelta | None = None,
        tenant: str = "",
        on_ended: OnEnded = "new",
        idempotency_id: str | None = None,
        remember: float | timedelta = REMEMBER,
    ) -> A: ...
    @overload
    async def ask_with_start(
        self,
        workflow: Callable[[*Ts], Awaitable[Any]],
        /,
        *args: *Ts,
        id: str,
        question: str | QuestionDefinition[None, Any],
        value: Any = None,
        timeout: float | timedelta | None = None,
        type: Any = ...,
        tenant: str = "",
        on_ended: OnEnded = "new",
        idempotency_id: str | None = None,
        remember: float | timedelta = REMEMBER,
    ) -> Any: ...
    @overload
    async def ask_with_start(
        self,
        workflow: str,
        /,
        *args: Any,
        id: str,
        question: str | QuestionDefinition[Any, Any],
        value: Any = None,
        timeout: float | timedelta | None = None,
        type: Any = ...,
        tenant: str = "",
        on_ended: OnEnded = "new",
        idempotency_id: str | None = None,
        remember: float | timedelta = REMEMBER,
    ) -> Any: ...
    async def ask_with_start(
        self,
        workflow: Callable[..., Awaitable[Any]] | str,
        /,
        *args: Any,
        id: str,
        question: str | QuestionDefinition[Any, Any],
        value: Any = None,
        timeout: float | timedelta | None = None,
        type: Any = UNSET,
        tenant: str = "",
        on_ended: OnEnded = "new",
        idempotency_id: str | None = None,
        remember: float | timedelta = REMEMBER,
    ) -> Any:
        """As `client.ask_with_start`; the time-out is in virtual time."""
        check_on_ended(on_ended)
        declared = _declared(workflow)
        name, payload = declared.payload("question", question, value)
        wanted = answer_type(declared, question, type)
        start, decode = _with_start(self._meta, workflow, args, id, tenant)
        message = once(Message("ask", start.run_id, b""), idempotency_id, remember, start)
        if idempotency_id is None:  # the random id of a client would differ in each play of a scenario
            self._asked += 1
            message.digest = f"{self._asked:032x}"
        message.message.body = ask_body(name, payload, message.digest, "")
        answer = await self._put_once(message, on_ended)
        run: SandboxRun[Any] = SandboxRun(self, start.run_id, decode, answer.letter == "+", declared, answer.created)
        return await run._answer(name, wanted, timeout, self._answer_of(run.id, answer.created, message.digest, False))

    @overload
    def run(self, run_id: str) -> SandboxRun[Any]: ...
    @overload
    def run(self, run_id: str, returns: Workflow[..., R]) -> SandboxRun[R]: ...
    @overload
    def run(self, run_id: str, returns: type[R]) -> SandboxRun[R]: ...
    def run(self, run_id: str, returns: Any = Any) -> SandboxRun[Any]:
        """The handle of a run by its full id, as `client.run`, for example of a child. `returns`: the result's type, or
        the run's workflow."""
        check_run_id(run_id)
        return SandboxRun(self, run_id, _returns(run_id, returns), False, _declared(returns))

    async def runs(
        self,
        *,
        status: Status | str | None = None,
        workflow: str | None = None,
        tenant: str | None = None,
        attributes: Mapping[str, Attribute] | None = None,
        error: str | None = None,
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        roots: bool = False,
        sort: str | None = None,
        after: str = "",
        limit: int = 20,
        waits: bool = False,
    ) -> RunPage:
        """The newest `limit` runs that match all filters, as `client.runs`: latest change of status first."""
        filters = _filters(status, workflow, tenant, attributes, limit, error)
        now_ms = round(self.now.timestamp() * 1000)
        filters, start = _page_of(filters, since, until, roots, sort, after, now_ms)
        positions = sorted(
            (
                Position(record.created if filters.is_by_start else record.changed, run_id)
                for run_id, record in self.world.records.items()
            ),
            reverse=True,
        )
        positions = [position for position in positions if start is None or position < start]
        found: list[RunSummary] = []
        looked_at = 0
        for position in positions:
            if len(found) == limit:
                break
            looked_at += 1
            record = self.world.records[position.run_id]
            failure = failure_in(record.ending) if record.ending else None
            run = with_reason(summarize(position.run_id, record.head, failure=failure), record.stopped)
            if filters.match(run) and filters.match_error(run):
                if waits:
                    run = msgspec.structs.replace(run, waits_for=record.waits())
                found.append(run)
        end = positions[looked_at - 1] if looked_at < len(positions) else None
        cursor = "" if end is None else cursor_text(Cursor(end, filters.since, filters.until), filters.name)
        return RunPage(found, cursor, looked_at)

    # --- the archive --------------------------------------------------------------------------------------------------

    async def purge(self, run_id: str) -> bool:
        """Move an ended run into the archive now, as `client.purge`."""
        return await self._purge(check_run_id(run_id), 0)

    async def restore(self, run_id: str, *, created: datetime | None = None) -> SandboxRun[Any]:
        """Put a run back from the archive, as `client.restore`: then it can be retried."""
        return await self._restore(check_run_id(run_id), 0 if created is None else created_ms(created))

    async def forget(self, run_id: str) -> bool:
        """Delete an ended run, in the archive, too, as `client.forget`."""
        return await self._forget(check_run_id(run_id), 0)

    def archived_run(self, run_id: str, *, created: datetime | None = None) -> SandboxRun[Any]:
        """The handle of the run that was created then, as `client.archived_run`."""
        incarnation = 0 if created is None else created_ms(created)
        return SandboxRun(self, check_run_id(run_id), None, False, Declared(), incarnation)

    async def archived_runs(
        self,
        *,
        status: Status | str | None = None,
        workflow: str | None = None,
        tenant: str | None = None,
        attributes: Mapping[str, Attribute] | None = None,
        error: str | None = None,
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        roots: bool = False,
        after: str = "",
        limit: int = 20,
    ) -> RunPage:
        """Runs in the archive that match all filters, as `client.archived_runs`: those that were archived last come
        first."""
        archive = self._needed_archive()
        filters = _filters(status, workflow, tenant, attributes, limit, error)
        filters, _ = _page_of(filters, since, until, roots, None, "", round(self.now.timestamp() * 1000))
        place: Position | None = None
        if after:
            cursor = cursor_of(after, listing_name(filters))
            place = cursor.position
            filters = msgspec.structs.replace(filters, since=cursor.since, until=cursor.until)
        return page(archive.listed(self._here()), filters, limit, place)

    def _here(self) -> list[tuple[str, int]]:
        return [(run_id, record.head.created) for run_id, record in self.world.records.items()]

    def _needed_archive(self) -> MemoryArchive:
        if self.world.archive is None:
            raise UsageError("this sandbox has no archive: Sandbox(app, archive=True) has one")
        return self.world.archive

    def _in_archive(self, run_id: str, created: int, missing: RunNotFound) -> ArchivedRun:
        """A run that isn't on the server. Raises `missing` if it isn't in the archive either."""
        run = None if self.world.archive is None else self.world.archive.find(run_id, created)
        if run is None:
            raise missing
        return run

    async def _every(self, within: Collection[Status], **filters: Any) -> AsyncGenerator[list[RunSummary]]:
        yield [run for run in await self.runs(**filters, limit=sys.maxsize) if run.status in within]

    async def deliver(
        self,
        trigger: Trigger[T],
        payload: T | bytes,
        *,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> list[SandboxRun[Any]]:
        """Deliver something to a trigger of the app, and do what its function says; returns the runs that were started
        or signalled.

        `payload`: as the function gets it, or `bytes` as a sender would send them. `id`: what tells the delivery from
        others; the same one again does nothing more. Each without one is another delivery.

        Raises what the trigger's function raises, and what puts a delivery into the quarantine otherwise.

        >>> [run] = await sandbox.deliver(pushed, Push(after="3f2a"))
        """
        self._delivered += 1
        delivery_id = f"delivery-{self._delivered}" if id is None else id
        body = payload if isinstance(payload, bytes) else msgspec.json.encode(payload)
        if isinstance(payload, str) and trigger.type is str:
            body = payload.encode()
        names = {name.lower(): value for name, value in (headers or {}).items()}
        received = Received(id=delivery_id, body=body, headers=names, at=self.world.now)
        actions = checked(trigger.name, trigger(trigger.delivery(received)))
        return [self.run(run) for run in await do(self, trigger.name, delivery_id, actions)]

    # --- steps --------------------------------------------------------------------------------------------------------

    def stub(
        self,
        step: Step[..., R] | Workflow[..., R] | Reducer | str,
        replacement: Callable[..., Awaitable[R]] | Callable[..., R] | None = None,
        *,
        returns: R | UnsetType = UNSET,
        raises: BaseException | type[BaseException] | None = None,
        takes: float | timedelta = 0.0,
        times: int | None = None,
    ) -> None:
        """Replace a step, or a workflow where it is a child, from now on. The newest stub that isn't used up applies.

        Give one of:

        - `replacement`: a function, plain or async, with the step's parameters;
        - `returns`: the value that the step returns;
        - `raises`: the exception that it raises.

        `takes` is how long an attempt lasts, in seconds of virtual time or a timedelta, so that time-outs and races can
        be tested; alone it delays the real function's outcome. `times` limits the stub to that many attempts.

        A stubbed child is a run like any other, but for its code, of which nothing runs. It ends with what the stub
        gives, and can be cancelled before. A run that the test starts itself isn't stubbed, and `times` counts
        children.

        Raises `UsageError`, and `PayloadInvalid` for a value that the step's annotation doesn't allow.

        >>> sandbox.stub(fetch, raises=ConnectionError("down"), times=2)   # and then the real one
        >>> sandbox.stub(invoice, returns="paid", takes=timedelta(days=3))   # a child
        """
        seconds = takes.total_seconds() if isinstance(takes, timedelta) else takes
        self.world.stubs.add(step, Stub(replacement, returns, raises, seconds, times))

    def calls(self, step: Step[..., Any] | Workflow[..., Any] | Reducer | str) -> list[StubCall]:
        """All attempts of a step that have started, in order, stubbed or not; of a workflow its stubbed children."""
        return self.world.stubs.calls(step)

    # --- time and crashes ---------------------------------------------------------------------------------------------

    @property
    def now(self) -> datetime:
        """The virtual time (aware, UTC)."""
        return instant(self.world.now)

    async def sleep(self, delay: float | timedelta) -> None:
        """Move the virtual clock by `delay`, in seconds or a timedelta. What is due in between happens at its time.

        Raises `UsageError` for a negative delay, and inside a step.
        """
        self._refuse_in_step("sleep")
        until = self.world.now + _ms(delay)
        await self._drive(lambda: self.world.now >= until, "", _Deadline(until))
        await self._settle()

    def crash(self) -> None:
        """Discard everything that the owner of the runs has in memory, as if its daemon was killed.

        Another owner takes over at once: it replays the histories, and starts the steps that were running again.
        """
        self.world.crash()

    async def pause_workflow(self, workflow: str, *, reason: str = "", by: str = "") -> Pause | None:
        """Have the runs of a workflow begin nothing new, as `client.pause_workflow`."""
        check_name("workflow", workflow)
        before = self.world.paused.get(workflow)
        if before is None:
            self.world.pause_workflow(workflow, Pause(self.world.now, *said(by, reason)))
            await self._settle()
        return before

    async def resume_workflow(self, workflow: str) -> Pause | None:
        """Have the runs of a paused workflow go on, as `client.resume_workflow`."""
        before = self.world.paused.get(check_name("workflow", workflow))
        self.world.pause_workflow(workflow, None)
        await self._settle()
        return before

    async def paused_workflows(self) -> dict[str, Pause]:
        """The workflows that are paused, by name."""
        return dict(sorted(self.world.paused.items()))

    def events(
        self,
        group: str,
        *,
        workflows: Iterable[Startable | str] | None = None,
        kinds: Iterable[type | str] | None = None,
        from_: From = "now",
    ) -> SandboxSubscription:
        """Subscribe, as `client.events`. What is iterated ends when all that has happened is delivered: move the clock,
        and iterate again. Ids and offsets are the same each time.

        >>> async with sandbox.events("billing", kinds=["RunCompleted"]) as subscription:
        ...     await sandbox.sleep(timedelta(days=1))
        ...     completed = [event.run_id async for event in subscription]
        """
        return SandboxSubscription(self.world.log, self._settle, group, workflows=workflows, kinds=kinds, from_=from_)

    def deploy(self, app: App) -> None:
        """Replace the app, as a deploy does: another owner takes over, with this code.

        Runs that the new code doesn't fit are stuck from then on (`describe().reason` says why), and go on after a
        deploy that fits. Stubs stay, for steps of the same name.

        >>> sandbox.deploy(next_release)
        >>> assert not await sandbox.runs(status="stuck")
        """
        self.app = self.world.app = app
        self.world.code += 1
        self.world.stubs.deploy(app)
        self.world.crash()

    # --- for Run: the methods of `Client` that it calls ---------------------------------------------------------------
    # `created` tells the run of a handle from a later one of its id; 0: whichever has the id.

    async def _ended(self, run_id: str, created: int) -> bytes:
        try:
            record = self._record(run_id, created)
        except RunNotFound as missing:
            return self._in_archive(run_id, created, missing).last
        await self._drive(lambda: bool(record.ending), run_id, _deadline.get(NO_DEADLINE))
        return record.ending

    async def _answered(self, run_id: str, created: int, ask_id: str, body: bytes) -> bytes:
        """A run's answer to a question, encoded. Raises `RunEnded` if it ends without answering.

        The question's id is a count: the random one of the handle would differ in each play of a scenario.
        """
        self._asked += 1
        body = body.replace(ask_id.encode(), f"{self._asked:032x}".encode())
        ask_id = f"{self._asked:032x}"
        created = self._open_record(run_id, created).head.created
        await self._post("ask", run_id, created, body)
        return await self._answer_of(run_id, created, ask_id, False)

    async def _put_once(self, once: OnceMessage, on_ended: OnEnded) -> PutOnce:
        message, start, world = once.message, once.start, self.world
        run_id = message.run_id
        record = world.records.get(run_id)
        header = b"" if record is None else record.header
        created = 0 if record is None else record.head.created
        of, over = self._known.get(once.digest, (0, -1))
        if over > world.now:
            return settled(once, PutOnce("d", of, header))
        letter = "a"
        if record is not None and start is not None and record.head.workflow != start.workflow:
            letter = "c"
        elif record is not None and not record.head.is_open and (start is None or on_ended != "new"):
            letter = "e"
        elif start is None and (record is None or message.created not in (0, created)):
            letter = "m"
        if letter == "a" and start is not None and (record is None or not record.head.is_open):
            letter = "+"
            world.forget(run_id)
            world.start(run_id, start.workflow, start.tenant, start.body)
            created, header = world.records[run_id].head.created, world.records[run_id].header
        settled(once, PutOnce(letter, created, header))
        self._known[once.digest] = (created, world.now + once.remember)
        world.post(message.kind, run_id, message.body)
        await self._settle()
        return PutOnce(letter, created, header)

    async def _answer_of(self, run_id: str, created: int, ask_id: str, was_asked: bool) -> bytes:
        answers, record = self.world.answers, self._record(run_id, created)
        await self._drive(
            lambda: ask_id in answers or bool(record.ending), run_id, _deadline.get(NO_DEADLINE), "answered"
        )
        if ask_id not in answers:
            raise RunEnded(f"run {run_id} has ended without answering", run_id)
        return answers[ask_id]

    async def _published(self, run_id: str, created: int, *keys: str) -> dict[str, Raw]:
        try:
            values = self._record(run_id, created).published
        except RunNotFound as missing:
            values = self._in_archive(run_id, created, missing).published
        return {key: Raw(values[key]) for key in keys or sorted(values) if key in values}

    async def _watch(self, run_id: str, created: int, key: str) -> AsyncGenerator[Raw]:
        last: bytes | None = None
        while True:
            try:
                record = self._record(run_id, created)
            except RunNotFound as missing:
                found = self._in_archive(run_id, created, missing).published.get(key)
                if found is not None and found != last:
                    yield Raw(found)
                return
            found = record.published.get(key)
            if found is not None and found != last:
                last = found
                yield Raw(found)
            if record.ending and record.published.get(key) == last:
                return
            await self._drive(
                lambda record=record, last=last: record.published.get(key) != last or bool(record.ending),
                run_id,
                NO_DEADLINE,
            )

    async def _chunks(
        self, run_id: str, created: int, position: StreamPosition, follow: bool
    ) -> AsyncGenerator[EmittedChunk]:
        record = self._open_record(run_id, created)
        chunks = self.world.chunks
        for number in itertools.count(position.number):
            if number >= len(chunks.of(run_id)):
                if not follow or record.ending:
                    return
                await self._drive(
                    lambda number=number: len(chunks.of(run_id)) > number or bool(record.ending), run_id, NO_DEADLINE
                )
                if number >= len(chunks.of(run_id)):
                    return
            yield chunks.of(run_id)[number]

    async def _post(self, kind: str, run_id: str, created: int, body: bytes, origin: Origin | None = None) -> None:
        if origin is not None:
            source, number = origin
            if self._posted.get(source, 0) >= number:
                return
            self._posted[source] = number
        if self._open_record(run_id, created).ending:
            raise RunEnded(f"run {run_id} has ended: it accepts no {kind} any more", run_id)
        self.world.post(kind, run_id, body)
        await self._settle()

    async def _requested(self, kind: str, run_id: str, created: int, request_id: str, body: bytes) -> bytes:
        """The answer of the run's owner. As of a question, its id is a count."""
        self._asked += 1
        body = body.replace(request_id.encode(), f"{self._asked:032x}".encode())
        request_id = f"{self._asked:032x}"
        self._refuse_in_step(f"{kind} run {run_id}")
        self._open_record(run_id, created)
        self.world.post(kind, run_id, body)
        await self._settle()
        return self.world.answers[request_id]

    async def read_namespace(self) -> Namespace:
        """As of a client: one shard."""
        return self._meta

    def _numbered(self, run_id: str, created: int, origin: Origin) -> Run[Any]:
        return NumberedRun(cast("Client", self), run_id, None, False, 0, origin)

    def _ended_record(self, run_id: str, created: int, what: str) -> Record | None:
        """None if there is no such run on the server. Raises `RunError` if it is open."""
        try:
            record = self._record(run_id, created)
        except RunNotFound:
            return None
        if record.head.is_open:
            text = f"run {run_id} is {record.head.status}; only ended runs can be {what}: cancel it first"
            raise RunError(text, run_id)
        return record

    async def _forget(self, run_id: str, created: int) -> bool:
        record = self._ended_record(run_id, created, "forgotten")
        removed = 0 if self.world.archive is None else self.world.archive.remove(run_id, created)
        if record is not None:
            self.world.forget(run_id)
        return record is not None or removed > 0

    async def _storage_wait(self, run_id: str) -> tuple[Wait | None, bool]:
        return None, False

    async def _purge(self, run_id: str, created: int) -> bool:
        self._needed_archive()
        if self._ended_record(run_id, created, "archived") is None:
            return False
        self.world.move_to_archive(run_id)
        return True

    async def _restore(self, run_id: str, created: int) -> SandboxRun[Any]:
        run = self._needed_archive().find(run_id, created)
        if run is None:
            raise RunNotFound(f"there is no run {run_id} in the archive of this sandbox", run_id)
        found = self.world.restore(run)
        if found.created != incarnation_of(run.header):
            raise RunConflict(f"the id {run_id} belongs to another run by now: forget that one first", run_id)
        return SandboxRun(self, run_id, None, False, Declared(), found.created)

    async def _every_hibernating(self, *, workflow: str | None = None) -> AsyncGenerator[list[RunSummary]]:
        """None: in a sandbox no run hibernates."""
        yield []

    async def _every_archived(
        self,
        *,
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        roots: bool = False,
        **filters: Any,
    ) -> AsyncGenerator[list[RunSummary]]:
        archive = self._needed_archive()
        now_ms = round(self.now.timestamp() * 1000)
        wanted, _ = _page_of(_filters(**filters), since, until, roots, None, "", now_ms)
        yield [run for run in archive.listed(self._here()) if wanted.match(run) and wanted.match_error(run)]

    async def _header(self, run_id: str, created: int) -> tuple[Header, bytes]:
        record = self._record(run_id, created)
        return record.head, record.ending

    async def _only_archived(self, run_id: str, created: int, missing: RunNotFound) -> RunNotFound:
        return self._not_here(run_id, created, missing)

    def _not_here(self, run_id: str, created: int, missing: RunNotFound) -> RunNotFound:
        """The error for a run that can't do what is asked, because it isn't on the server."""
        if self.world.archive is None or self.world.archive.find(run_id, created) is None:
            return missing
        text = f"run {run_id} is in the archive, and not on the server: `streamflow restore {run_id}` puts it back"
        return RunNotFound(text, run_id)

    async def _record_of(self, run_id: str, created: int) -> list[bytes]:
        try:
            record = self._record(run_id, created)
        except RunNotFound as missing:
            return self._in_archive(run_id, created, missing).record
        return [record.header, record.state, *record.transitions]

    async def _start_fork(
        self, fork: RunForked, run_id: str, decode: Decode | None, declared: Declared, *, anywhere: bool
    ) -> SandboxRun[Any]:
        self._refuse_in_step(f"fork run {fork.of}")
        body = encode_fork(fork)
        start = _start(self._meta, fork.workflow, body, run_id, fork.tenant)
        header = self.world.start(start.run_id, fork.workflow, fork.tenant, body)
        await self._settle()
        if header:
            forking.check_same(start.run_id, await self._record_of(start.run_id, 0), fork, anywhere=anywhere)
        return SandboxRun(self, start.run_id, decode, not header, declared)

    async def _describe(self, run_id: str, created: int, waits: bool) -> RunDescription:
        try:
            record = self._record(run_id, created)
        except RunNotFound as missing:
            return describe_archived(self._in_archive(run_id, created, missing))
        found = describe(run_id, record.header, record.ending, record.stopped)
        if record.head.is_open and waits:
            located = [self._located(run_id, wait) for wait in record.waits()]
            note = self.world.paused.get(record.head.workflow)
            if note is not None and not any(wait.kind == "pause" for wait in located):
                located.insert(0, pause_of_workflow(note))
            return msgspec.structs.replace(found, waits_for=located, owner=RunOwner(shard=0, daemon=OWNER))
        if found.cause is None or not found.cause.step or found.cause.run_id not in self.world.records:
            return found
        history = self.world.records[found.cause.run_id].log
        return msgspec.structs.replace(found, attempts=attempts_before(history, found.cause))

    def _located(self, run_id: str, wait: Wait) -> Wait:
        """With who has the step, which is the sandbox itself, and what it has reported."""
        if wait.kind != "step" or (wait.until is not None and wait.until > self.now):
            return wait
        holder = StepHolder(kind="worker" if wait.queue else "daemon", name=OWNER, beat_age=0.0)
        details = self.world.details_of(run_id, wait.seq)
        return msgspec.structs.replace(wait, holder=holder, details=msgspec.msgpack.decode(details))

    async def _history(self, run_id: str, created: int) -> list[Transition]:
        try:
            return decode_history(self._record(run_id, created).transitions)
        except RunNotFound as missing:
            return decode_history(self._in_archive(run_id, created, missing).transitions)

    async def _events(self, run_id: str, created: int, follow: bool) -> AsyncGenerator[tuple[datetime, AnyEvent], None]:
        try:
            record = self._record(run_id, created)
        except RunNotFound as missing:
            for event in events_of(self._in_archive(run_id, created, missing)):
                yield event
            return
        # As on a server: those of the current generation, and then whatever comes.
        for number in itertools.count(len(record.log) - len(record.transitions)):
            if number == len(record.log):
                if not follow or record.ending:
                    return
                await self._drive(lambda number=number: len(record.log) > number, run_id, NO_DEADLINE)
            transition = record.log[number]
            for one in unfolded([transition]) if is_fork(transition.events) else [transition]:
                for event in one.events:
                    yield instant(one.at), event

    def _open_record(self, run_id: str, created: int) -> Record:
        """Of a run to which something is sent."""
        try:
            return self._record(run_id, created)
        except RunNotFound as missing:
            raise self._not_here(run_id, created, missing) from None

    def _record(self, run_id: str, created: int = 0) -> Record:
        record = self.world.records.get(run_id)
        if record is not None and created not in (0, record.head.created):
            record = None
        if record is None:
            raise not_found(run_id)
        return record

    # --- waiting ------------------------------------------------------------------------------------------------------

    def _bug_of(self, run_id: str) -> str | None:
        """What the run's code has raised, if it is stuck for that."""
        stopped = self.world.records[run_id].stopped if run_id in self.world.records else None
        failure = stopped.failure if isinstance(stopped, RunStuck) else None
        if failure is None:
            return None
        return f"Its code has a bug:\n{failure.traceback.rstrip()}\n{failure}\nIt goes on after sandbox.deploy(app)."

    async def _settle(self) -> None:
        """Let everything happen that can happen now. Inside a step it happens when the step has ended."""
        if running.get():
            return
        async with self._lock:
            remaining = LIMIT
            while await self.world.step():
                remaining -= 1
                if not remaining:
                    raise Stalled(
                        f"more than {LIMIT:,} messages, timers and attempts at {self.now:%Y-%m-%d %H:%M:%S}: does a "
                        "workflow loop without waiting?",
                        "",
                    )

    async def _drive(self, done: Callable[[], bool], run_id: str, deadline: _Deadline, what: str = "ended") -> None:
        """Let things happen until `done`; when nothing can happen now, move the clock to what is next: something that
        is due, or the deadline of this or another wait.

        Raises `Stalled`, and `TimeoutError` if it isn't done at the deadline.
        """
        self._refuse_in_step(f"wait for run {run_id}")
        if deadline.at is None:
            await self._drive_on(done, run_id, deadline, what)
            return
        self._deadlines.append(deadline.at)
        try:
            await self._drive_on(done, run_id, deadline, what)
        finally:
            self._deadlines.remove(deadline.at)

    async def _drive_on(self, done: Callable[[], bool], run_id: str, deadline: _Deadline, what: str) -> None:
        world = self.world
        first = world.transitions
        while True:
            await self._settle()
            if done():
                return
            if await self._other_tasks_act():
                continue  # what they did may be what is waited for
            if deadline.at is not None and world.now >= deadline.at:
                late = TimeoutError(f"{deadline.late}, and waits for {world.waits_for(run_id)}")
                if (stuck := self._bug_of(run_id)) is not None:
                    late.add_note(stuck)
                raise late
            at = min((at for at in (world.next_at, *self._deadlines) if at is not None), default=None)
            if at is None and not world.has_slow_steps:
                if (stuck := self._bug_of(run_id)) is not None:
                    waits = world.waits_for(run_id)
                    stalled = Stalled(f"run {run_id} has not {what}, and never will: it waits for {waits}", run_id)
                    stalled.add_note(stuck)
                    raise stalled
                raise Stalled(
                    f"run {run_id} has not {what}, and never will: nothing runs, nothing is due, and it waits for "
                    f"{world.waits_for(run_id)}. Send what it waits for first, or give the wait a timeout.",
                    run_id,
                )
            if world.transitions - first > LIMIT:
                raise Stalled(
                    f"run {run_id} has not {what} after {LIMIT:,} transitions, at virtual time {self.now:%Y-%m-%d}; "
                    f"it waits for {world.waits_for(run_id)}. Give the wait a timeout, or use sleep().",
                    run_id,
                )
            wait = math.inf if at is None else world.real_wait(at)
            if wait > 0:
                await world.news(wait)
            elif at is not None:
                world.move_to(at)

    async def _other_tasks_act(self) -> bool:
        """Let other tasks of the test run. True if one of them has called the sandbox, or something has happened."""
        changes = self.world.changes
        for _ in range(YIELDS):
            await asyncio.sleep(0)
            if self._lock.locked() or self.world.changes != changes:
                return True
        return False

    def _refuse_in_step(self, what: str) -> None:
        if running.get():
            raise UsageError(f"a step can't {what} in a sandbox, which does one thing at a time: stub the step")


class SandboxRun(Run[R]):
    """The handle of a run in a sandbox. As `sf.Run`, but time-outs are in virtual time.

    Waiting also raises `Stalled`, at once, when the run waits for something that can never happen.
    """

    __slots__ = ("_sandbox",)

    def __init__(
        self,
        sandbox: Sandbox,
        run_id: str,
        decode: Decode | None,
        created: bool,
        declared: Declared,
        incarnation: int = 0,
    ) -> None:
        super().__init__(cast("Client", sandbox), run_id, decode, created, incarnation, declared)
        self._sandbox = sandbox

    @property
    def _fork_name(self) -> str:
        """Counted rather than drawn, as ids of starts."""
        self._sandbox._forked += 1
        return str(self._sandbox._forked)

    async def _within(self, timeout: float | timedelta | None, answer: Awaitable[T], late: str) -> T:
        """Move the virtual clock until the answer is there, by at most `timeout` seconds. Also raises `Stalled`."""
        if timeout is None:
            deadline = NO_DEADLINE
        else:
            ms = _ms(timeout)
            deadline = _Deadline(self._sandbox.world.now + ms, late.format(ms / 1000))
        token = _deadline.set(deadline)
        try:
            return await answer
        finally:
            _deadline.reset(token)

    async def export(self) -> History:
        """The recorded history, as `streamflow export` writes it: for `save_history` and `replay`."""
        record = self._sandbox._record(self.id)
        return History(
            run_id=self.id,
            partition=self._sandbox.world.partition,
            header=record.header,
            state=record.state,
            transitions=record.transitions[:],
        )


def _ms(delay: float | timedelta) -> int:
    seconds = delay.total_seconds() if isinstance(delay, timedelta) else delay
    if seconds < 0:
        raise UsageError(f"a duration must be >= 0 seconds, got {seconds:g}")
    return round(seconds * 1000)


def run(
    workflow: Callable[[*Ts], Awaitable[R]],
    *args: *Ts,
    app: App,
    stubs: Mapping[Step[..., Any] | Workflow[..., Any] | Reducer, Any] | None = None,
    signals: Mapping[str, Any] | None = None,
) -> R:
    """Run a workflow to its end in a new sandbox and return its result: one line for a plain test.

    `stubs` has for each step, or workflow that is a child, a function to call instead, an exception to raise, or the
    value to return. `signals` has values by name; they are sent at the start, in order. Raises what `result()` raises:
    `RunFailed`, `RunCancelled`, `Stalled`. Not for code that runs in an event loop: use a `Sandbox` there.

    >>> assert sft.run(digest, ["https://example.org"], app=app, stubs={fetch: "<p>"}) == 3
    """

    async def main() -> R:
        async with Sandbox(app) as sandbox:
            for step, value in (stubs or {}).items():
                _stub(sandbox, step, value)
            started = await sandbox.start(workflow, *args)
            for name, value in (signals or {}).items():
                await started.signal(name, value)
            return await started.result()

    return asyncio.run(main())


def _stub(sandbox: Sandbox, step: Step[..., Any] | Workflow[..., Any] | Reducer, value: Any) -> None:
    is_class = inspect.isclass(value)
    if isinstance(value, BaseException) or (is_class and issubclass(value, BaseException)):
        sandbox.stub(step, raises=value)
    elif callable(value) and not is_class:
        sandbox.stub(step, value)
    else:
        sandbox.stub(step, returns=value)
