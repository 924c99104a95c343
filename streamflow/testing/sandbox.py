"""The client's API over a world in memory: what a test of workflows uses instead of a server and daemons.

Owns: handles, waiting, and when the virtual clock moves. Must not: decide what happens (`world.py` does).
Called by: user tests.

A test reads like production code: `start`, `signal`, `result`. Each call returns when everything has happened that
can happen at that instant; only `result` and `sleep` let time pass, and that costs none.
"""

# A sandbox is to `Run` what a client is, in the parts that `Run` calls.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import contextvars
import inspect
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, TypeVar, TypeVarTuple, cast, overload

from msgspec import UNSET, Raw, UnsetType

from streamflow.client.client import (
    Client,
    Decode,
    Run,
    _decoder,
    _start,
    _status,
    _target,
)
from streamflow.client.histories import History
from streamflow.client.listing import (
    RunDescription,
    RunSummary,
    describe,
    instant,
)
from streamflow.client.waiting import not_found
from streamflow.errors import RunConflict, RunEnded, UsageError
from streamflow.events import AnyEvent, Transition, decode_history
from streamflow.model import codec
from streamflow.model.attributes import Attribute, same
from streamflow.model.names import check_run_id
from streamflow.model.record import Status, decode_header
from streamflow.model.sharding import Partition, full_run_id
from streamflow.store.namespace import Namespace
from streamflow.testing.attempts import running
from streamflow.testing.stubs import Stub, StubCall
from streamflow.testing.world import Record, Stalled, World
from streamflow.workflow.app import App, Step

R = TypeVar("R")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

LIMIT = 100_000
"""Things that may happen in one wait: a run that goes on for longer than that isn't going to end."""
YIELDS = 5
"""How often the event loop gets a turn before time passes, so that a test's other tasks can say something first."""

_deadline: contextvars.ContextVar[int | None] = contextvars.ContextVar("streamflow_sandbox_deadline", default=None)


class Sandbox:
    """Runs the workflows of `app` in memory, with a virtual clock that begins at 2026-01-01 00:00 UTC.

    Everything happens one after the other, in the same order each time. Payloads and histories are encoded and decoded
    as in production. Steps run for real unless they are stubbed. Use it from one event loop (asyncio).

    >>> async def test_digest() -> None:
    ...     async with sft.Sandbox(app) as sandbox:
    ...         sandbox.stub(fetch, returns="<p>")
    ...         run = await sandbox.start(digest, ["https://example.org"])
    ...         await run.signal("approve", True)
    ...         assert await run.result() == 3
    """

    def __init__(self, app: App, *, partition: Partition | str = Partition.RUN) -> None:
        self.app = app
        self.world = World(app, Partition(partition))
        self._meta = Namespace(1, self.world.partition)
        self._started: dict[str, int] = {}
        self._asked = 0
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> Sandbox:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the coroutines of runs that are open."""
        self.world.close()

    # --- as the client ------------------------------------------------------------------------------------------------

    @overload
    async def start(
        self, workflow: Callable[[*Ts], Awaitable[R]], *args: *Ts, id: str | None = None, tenant: str = ""
    ) -> SandboxRun[R]: ...
    @overload
    async def start(self, workflow: str, *args: Any, id: str | None = None, tenant: str = "") -> SandboxRun[Any]: ...
    async def start(
        self, workflow: Callable[..., Awaitable[Any]] | str, *args: Any, id: str | None = None, tenant: str = ""
    ) -> SandboxRun[Any]:
        """Start a run, as `client.start`. Without `id` it is called `<workflow>-1`, `-2`, … in the order of starts."""
        name, parameters = _target(workflow)
        payload = codec.encode(args, f"input of {name}") if parameters is None else parameters.encode(args, {})
        start = _start(self._meta, name, payload, self._new_id(name, tenant) if id is None else id, tenant)
        header = self.world.start(start.run_id, name, tenant, payload)
        if header and (other := decode_header(header).workflow) != name:
            raise RunConflict(
                f"the id {start.run_id} belongs to a run of workflow {other}, not {name}: use another id", start.run_id
            )
        await self._settle()
        return SandboxRun(self, start.run_id, _decoder(name, parameters), not header)

    def _new_id(self, workflow: str, tenant: str) -> str:
        """Counted rather than drawn, because a run's `sf.random()` and its retries depend on its id."""
        while True:
            number = self._started[workflow] = self._started.get(workflow, 0) + 1
            run_id = f"{workflow}-{number}"
            if full_run_id(run_id, self.world.partition, tenant, workflow) not in self.world.records:
                return run_id

    @overload
    def run(self, run_id: str) -> SandboxRun[Any]: ...
    @overload
    def run(self, run_id: str, returns: type[R]) -> SandboxRun[R]: ...
    def run(self, run_id: str, returns: Any = Any) -> SandboxRun[Any]:
        """The handle of a run by its whole id, as `client.run`: a child's, for one."""
        what = f"result of run {check_run_id(run_id)}"
        codec.decoder_for(returns)
        return SandboxRun(self, run_id, lambda raw: codec.decode(raw, returns, what), False)

    async def runs(
        self,
        *,
        status: Status | str | None = None,
        workflow: str | None = None,
        tenant: str | None = None,
        attributes: Mapping[str, Attribute] | None = None,
        limit: int = 20,
    ) -> list[RunSummary]:
        """The newest `limit` runs that fit all filters, as `client.runs`: latest change of status first."""
        wanted = _status(status)
        newest = sorted(self.world.records.items(), key=lambda item: item[1].changed, reverse=True)
        found: list[RunSummary] = [describe(run_id, record.header, record.ending) for run_id, record in newest]
        return [
            run
            for run in found
            if (wanted is None or run.status == wanted)
            and (workflow is None or run.workflow == workflow)
            and (tenant is None or run.tenant == tenant)
            and all(same(run.attributes.get(name), value) for name, value in (attributes or {}).items())
        ][:limit]

    # --- steps --------------------------------------------------------------------------------------------------------

    def stub(
        self,
        step: Step[..., R] | str,
        replacement: Callable[..., Awaitable[R]] | Callable[..., R] | None = None,
        *,
        returns: R | UnsetType = UNSET,
        raises: BaseException | type[BaseException] | None = None,
        takes: float | timedelta = 0.0,
        times: int | None = None,
    ) -> None:
        """What a step does from now on instead of running. The newest stub that isn't used up counts.

        One of: `replacement`, a function (plain or async) with the step's parameters; the value that it `returns`; the
        exception that it `raises`. `takes` is how many seconds of virtual time an attempt lasts, so that time-outs and
        races can be tested; alone it leaves the step what it is. `times`: for so many attempts only.
        Raises `UsageError`, and `PayloadInvalid` for a value that the step's annotation doesn't allow.

        >>> sandbox.stub(fetch, raises=ConnectionError("down"), times=2)   # and then the real one
        """
        seconds = takes.total_seconds() if isinstance(takes, timedelta) else takes
        self.world.stubs.add(step, Stub(replacement, returns, raises, seconds, times))

    def calls(self, step: Step[..., Any] | str) -> list[StubCall]:
        """All attempts of a step that have begun, in order, stubbed or not."""
        return self.world.stubs.calls(step)

    # --- time and crashes ---------------------------------------------------------------------------------------------

    @property
    def now(self) -> datetime:
        """The virtual time (aware, UTC)."""
        return instant(self.world.now)

    async def sleep(self, delay: float | timedelta) -> None:
        """Let so many seconds pass. What is due on the way happens at its own time."""
        self._refuse_in_step("sleep")
        until = self.world.now + _ms(delay)
        await self._drive(lambda: self.world.now >= until, "", until)
        await self._settle()

    def crash(self) -> None:
        """Throw away all that the owner of the runs has in memory, as a killed daemon does.

        Another takes over at once: it replays the histories, and begins again the steps that were running.
        """
        self.world.crash()

    # --- for Run: the methods of `Client` that it calls ---------------------------------------------------------------

    async def _ended(self, run_id: str) -> bytes:
        record = self._record(run_id)
        await self._drive(lambda: bool(record.ending), run_id, _deadline.get())
        return record.ending

    async def _answered(self, run_id: str, ask_id: str, body: bytes) -> bytes:
        """What a run answers to an ask, encoded. Raises `RunEnded` when it ends without.

        Asks are counted: the id that the handle drew would be another one in each play of a scenario.
        """
        self._asked += 1
        body = body.replace(ask_id.encode(), f"{self._asked:032x}".encode())
        ask_id = f"{self._asked:032x}"
        answers = self.world.answers
        record = self._record(run_id)
        await self._post("ask", run_id, body)
        await self._drive(lambda: ask_id in answers or bool(record.ending), run_id, _deadline.get(), "answered")
        if ask_id not in answers:
            raise RunEnded(f"run {run_id} has ended without answering", run_id)
        return answers[ask_id]

    async def _published(self, run_id: str, *keys: str) -> dict[str, Raw]:
        values = self._record(run_id).published
        return {key: Raw(values[key]) for key in keys or sorted(values) if key in values}

    async def _post(self, kind: str, run_id: str, body: bytes) -> None:
        if self._record(run_id).ending:
            raise RunEnded(f"run {run_id} has ended and takes no {kind} any more", run_id)
        self.world.post(kind, run_id, body)
        await self._settle()

    async def _describe(self, run_id: str) -> RunDescription:
        record = self._record(run_id)
        return describe(run_id, record.header, record.ending)

    async def _history(self, run_id: str) -> list[Transition]:
        return decode_history(self._record(run_id).transitions)

    async def _events(self, run_id: str, follow: bool) -> AsyncGenerator[tuple[datetime, AnyEvent], None]:
        record = self._record(run_id)
        for number in itertools.count():
            if number == len(record.log):
                if not follow or record.ending:
                    return
                await self._drive(lambda number=number: len(record.log) > number, run_id, None)
            for event in record.log[number].events:
                yield instant(record.log[number].at), event

    def _record(self, run_id: str) -> Record:
        record = self.world.records.get(run_id)
        if record is None:
            raise not_found(run_id)
        return record

    # --- waiting ------------------------------------------------------------------------------------------------------

    async def _settle(self) -> None:
        """Everything that can happen now happens. Inside a step it happens when the step has ended."""
        if running.get():
            return
        async with self._lock:
            left = LIMIT
            while await self.world.step():
                left -= 1
                if not left:
                    raise Stalled(
                        f"{LIMIT:,} things have happened at {self.now:%Y-%m-%d %H:%M:%S} and more follow: does a "
                        "workflow loop without waiting?",
                        "",
                    )

    async def _drive(self, done: Callable[[], bool], run_id: str, until: int | None, what: str = "ended") -> None:
        """Let things happen, and time pass when nothing can, until `done`. Past `until` no time passes.

        Raises `Stalled`, and `TimeoutError` when it isn't done at `until`.
        """
        self._refuse_in_step(f"wait for run {run_id}")
        world = self.world
        begun, began_at = world.transitions, world.now
        while True:
            await self._settle()
            if done():
                return
            if await self._others_go_on():
                continue
            at = world.next_at
            if until is not None and (at is None or at > until):
                world.now = until
                if done():
                    return
                raise TimeoutError(
                    f"run {run_id} has not {what} within {(until - began_at) / 1000:g} s; it goes on, and waits for "
                    f"{world.waits_for(run_id)}"
                )
            if at is None:
                raise Stalled(
                    f"run {run_id} will never have {what}: nothing is due and nothing runs, and it waits for "
                    f"{world.waits_for(run_id)}. Send what it waits for first, or give the wait a timeout.",
                    run_id,
                )
            if world.transitions - begun > LIMIT:
                raise Stalled(
                    f"run {run_id} has not {what} after {LIMIT:,} transitions, and it is {self.now:%Y-%m-%d} already; "
                    f"it waits for {world.waits_for(run_id)}. Give the wait a timeout, or use sleep().",
                    run_id,
                )
            world.now = at

    async def _others_go_on(self) -> bool:
        """Give other tasks of the test a turn; whether one of them has asked for something."""
        planned = self.world.planned
        for _ in range(YIELDS):
            await asyncio.sleep(0)
            if self._lock.locked() or self.world.planned != planned:
                return True
        return False

    def _refuse_in_step(self, what: str) -> None:
        if running.get():
            raise UsageError(
                f"a step can't {what} in a sandbox, where one thing happens after the other: stub the step"
            )


class SandboxRun(Run[R]):
    """The handle of a run in a sandbox: `sf.Run` itself, but that its time-outs are virtual."""

    __slots__ = ("_sandbox",)

    def __init__(self, sandbox: Sandbox, run_id: str, decode: Decode | None, created: bool) -> None:
        super().__init__(cast("Client", sandbox), run_id, decode, created)
        self._sandbox = sandbox

    async def _within(self, timeout: float | timedelta | None, answer: Awaitable[T], late: str) -> T:
        """Time passes until the answer is there, at most `timeout` seconds. `_drive` has better words than `late`.

        Also raises `Stalled`, at once, when the run waits for something that can never come.
        """
        token = _deadline.set(None if timeout is None else self._sandbox.world.now + _ms(timeout))
        try:
            return await answer
        finally:
            _deadline.reset(token)

    async def export(self) -> History:
        """The recorded history, as `streamflow export` gives it: see `save_history` and `replay`."""
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
        raise UsageError(f"time goes forward only: {seconds:g} s can't be waited for")
    return round(seconds * 1000)


def run(
    workflow: Callable[[*Ts], Awaitable[R]],
    *args: *Ts,
    app: App,
    stubs: Mapping[Step[..., Any], Any] | None = None,
    signals: Mapping[str, Any] | None = None,
) -> R:
    """Run a workflow to its end in a sandbox of its own and return its result: one line for a plain test.

    `stubs`: for each step a function to call instead, an exception to raise, or what it returns. `signals` are sent at
    the start, in order. Raises what `result()` raises. Not for code that runs in an event loop: use a `Sandbox` there.

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


def _stub(sandbox: Sandbox, step: Step[..., Any], value: Any) -> None:
    is_class = inspect.isclass(value)
    if isinstance(value, BaseException) or (is_class and issubclass(value, BaseException)):
        sandbox.stub(step, raises=value)
    elif callable(value) and not is_class:
        sandbox.stub(step, value)
    else:
        sandbox.stub(step, returns=value)
