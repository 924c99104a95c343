"""Running a sink: batches of a group are written one after the other, and acknowledged when they are.

Owns: when a write is tried again, what is logged about it, the end. Must not: know a target, acknowledge what wasn't
written, read on while a batch can't be written (so a target that is down holds up this sink, whose lag is shown).
Called by: `streamflow.sinks.run`, `streamflow sink`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import AsyncGenerator, Collection
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import anyio
import msgspec

from streamflow.client.client import Client
from streamflow.errors import StoreError, UsageError
from streamflow.sinks.sink import Gone, Sink, Subscribable, TargetError
from streamflow.sinks.trouble import Trouble
from streamflow.text import duration, plural, recordable, type_name

if TYPE_CHECKING:
    from streamflow.client.subscription import EventBatch

FIRST_PAUSE = 0.2
LONGEST_PAUSE = 30.0
"""Seconds between two tries of a batch; the pause doubles."""
REPORT_SECONDS = 60.0
"""How often it is logged what was taken, and what takes long."""
LOOK_SECONDS = 1.0
"""How often it is looked whether something is wrong, for who looks at the group."""
SLOW_SECONDS = 60.0
"""For which one call of `write` may take until that counts as something wrong."""
CLOSE_SECONDS = 5.0
LAG_SECONDS = 0.2
"""How often `once` looks whether the group has caught up."""
ONCE_WAIT = 0.2
"""How long a batch waits for more events with `once`, at most."""
CLOCKS_SECONDS = 5.0
"""By how much the clock of the server may differ from this one."""

_log = logging.getLogger("streamflow.sinks")


class Figures(msgspec.Struct):
    """What a sink has done since its start."""

    sink: str
    group: str
    events: int = 0
    batches: int = 0
    failures: int = 0
    """Tries that failed and were repeated."""
    seconds: float = 0.0
    """From the first batch to the end of the last one."""
    problem: str = ""
    """What is wrong with the target now; empty if nothing is."""
    own: dict[str, int] = {}
    """What the sink counts itself."""


class SinkRunner:
    """One sink on one group. `run()` returns when `stop()` was called, and with `once` when the group has acknowledged
    all events, or at least those of the time before `run()` was called."""

    def __init__(
        self,
        client: Subscribable,
        sink: Sink,
        *,
        group: str,
        workflows: Collection[str] | None = None,
        kinds: Collection[str] | None = None,
        from_: str | datetime = "oldest",
        once: bool = False,
        patience: float = math.inf,
        dead_after: float | None = None,
    ) -> None:
        self._client = client
        self._sink = sink
        self._filters: dict[str, Any] = {"group": group, "from_": from_}
        if dead_after is not None:
            self._filters["dead_after"] = dead_after
        if workflows:
            self._filters["workflows"] = list(workflows)
        if kinds:
            self._filters["kinds"] = list(kinds)
        self._once = once
        self._patience = patience
        self._stopping = anyio.Event()
        self._waiting = anyio.CancelScope()
        self._is_open = False
        self._began = 0.0
        self._writing_since = self._called_at = 0.0
        """When the batch under way was taken, and `write` called for it (monotonic s); 0 while none is."""
        self.written_at = 0.0
        """When a batch was written last (monotonic s); 0 before the first one."""
        self.is_serving = False
        """Whether it takes events: the server has answered, and there is a group."""
        self._subscription: Any = None
        self._trouble = Trouble(_log, f"sink {type_name(sink).lower()}")
        self.figures = Figures(type_name(sink).lower(), group)

    @property
    def failures(self) -> int:
        """Tries that failed and were repeated."""
        return self._trouble.count

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    @property
    def writing_seconds(self) -> float:
        """For how long the batch under way has not been written; 0 if none is."""
        since = self._writing_since
        return time.monotonic() - since if since else 0.0

    def stop(self) -> None:
        """Ends `run()`: at once if it waits for events or for a target that is down, else when the batch is written."""
        self._stopping.set()
        self._waiting.cancel()

    @property
    def problem(self) -> str:
        """What is wrong with the target, or with reading events, now; empty if nothing is."""
        return self._trouble.says or self._sink.problem or self.hangs

    @property
    def hangs(self) -> str:
        """What there is to say of a call of `write` that takes long; empty if none does. Also while it blocks the event
        loop: runs no code of the sink."""
        called = self._called_at
        ms = (time.monotonic() - called) * 1000 if called else 0.0
        if ms <= SLOW_SECONDS * 1000:
            return ""
        return f"write() has not returned for {duration(ms)}: until it does, or this process ends, its shard waits"

    async def run(self) -> Figures:
        """Raises `Gone` when the target wants no more, `UsageError` for a sink that can't be used as it is set up, and
        with a finite `patience` `TargetError` when a batch could not be written for so many seconds."""
        self._sink.group = self.figures.group
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._report)
                tasks.start_soon(self._tell)
                try:
                    await self._serve()
                finally:
                    tasks.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise _only(group) from None
        finally:
            with anyio.CancelScope(shield=True):
                await self._close()
            self._note_figures()
        return self.figures

    async def _serve(self) -> None:
        """Also while the target is down there has to be a group: without one its events would be trimmed."""
        try:
            await self._open()
        except (Gone, UsageError):
            raise
        except Exception as error:
            await self._failed(error)
        pause = FIRST_PAUSE
        while not self._stopping.is_set():
            try:
                await self._take_batches()
                return
            except* StoreError as group:
                if self._once:
                    raise
                self._trouble.note(f"can't read events: {group.exceptions[0]}")
                with self._interruptible():
                    await anyio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
            finally:
                self.is_serving = False

    async def _take_batches(self) -> None:
        sink = self._sink
        max_wait = min(sink.max_wait, ONCE_WAIT) if self._once else sink.max_wait
        async with self._client.events(**self._filters) as subscription, anyio.create_task_group() as tasks:
            if self._once and isinstance(self._client, Client):  # batches of a sandbox end by themselves
                tasks.start_soon(self._stop_when_caught_up, self._client)
            self._subscription, self.is_serving = subscription, True
            async with contextlib.aclosing(subscription.batches(sink.max_events, max_wait)) as batches:
                while (batch := await self._next(batches)) is not None:
                    if not await self._write(batch):
                        break
                    await batch.ack()
                    if self._stopping.is_set():
                        break
            tasks.cancel_scope.cancel()

    async def _stop_when_caught_up(self, client: Client) -> None:
        """However much is committed while it runs."""
        until = datetime.now(UTC) + timedelta(seconds=CLOCKS_SECONDS)
        while True:
            group = await client.group(self.figures.group)
            if not group.waiting or (group.oldest is not None and group.oldest > until):
                self.stop()
                return
            await anyio.sleep(LAG_SECONDS)

    async def _next(self, batches: AsyncGenerator[EventBatch]) -> EventBatch | None:
        """None when the sink is to end."""
        with self._interruptible():
            return await anext(batches, None)
        return None

    async def _write(self, batch: EventBatch) -> bool:
        """Whether it is written; False only when the sink is to end before."""
        self._writing_since = time.monotonic()
        self._began = self._began or self._writing_since
        pause = FIRST_PAUSE
        while True:
            try:
                if not self._is_open:
                    await self._open()
                self._called_at = time.monotonic()
                await self._sink.write(batch)
                break
            except (Gone, UsageError):
                raise
            except Exception as error:
                await self._failed(error)
                if time.monotonic() - self._writing_since > self._patience:
                    raise TargetError(self._trouble.says) from error
            finally:
                self._called_at = 0.0
            with self._interruptible():
                await anyio.sleep(pause)
            if self._stopping.is_set():
                return False
            pause = min(pause * 2, LONGEST_PAUSE)
        self._trouble.over()
        self._writing_since, self.written_at = 0.0, time.monotonic()
        self.figures.batches += 1
        self.figures.events += len(batch.events)
        self.figures.seconds = time.monotonic() - self._began
        return True

    @contextlib.contextmanager
    def _interruptible(self) -> Any:
        """A wait that `stop()` ends."""
        with anyio.CancelScope() as self._waiting:
            if self._stopping.is_set():
                self._waiting.cancel()
            yield

    async def _open(self) -> None:
        self._is_open = True  # also what is half open is closed
        await self._sink.open()

    async def _failed(self, error: Exception) -> None:
        await self._close()
        text = recordable(str(error), 1000)
        if isinstance(error, TargetError):
            self._trouble.note(text)
            return
        text = f"{type_name(error)}: {text}"
        if text != self._trouble.says:
            _log.error("sink %s raised an error of its own", self.figures.sink, exc_info=error)
        self._trouble.note(text)

    async def _close(self) -> None:
        """A sink that can't be closed is opened again all the same."""
        if not self._is_open:
            return
        self._is_open = False
        try:
            with anyio.move_on_after(CLOSE_SECONDS):
                await self._sink.close()
        except Exception as error:
            _log.warning("sink %s could not be closed: %s", self.figures.sink, error)

    async def _report(self) -> None:
        events = 0
        while True:
            await anyio.sleep(REPORT_SECONDS)
            self._note_figures()
            if self.figures.events != events:
                _log.info("took %s, %d in all", plural(self.figures.events - events, "event"), self.figures.events)
                events = self.figures.events
            elif self._writing_since:
                ms = (time.monotonic() - self._writing_since) * 1000
                problem = self.problem
                reason = f": {problem}" if problem else ""
                _log.warning("a batch has not been written for %s%s", duration(ms), reason)

    async def _tell(self) -> None:
        """Who looks at the group sees what is wrong, wherever that is."""
        while True:
            await anyio.sleep(LOOK_SECONDS)
            self._note_figures()
            if self._subscription is not None:
                self._subscription.trouble = self.figures.problem

    def _note_figures(self) -> None:
        self.figures.failures = self._trouble.count
        self.figures.problem = self.problem
        self.figures.own = dict(self._sink.figures)


def _only(group: BaseExceptionGroup[Any]) -> BaseException:
    """The one error that a group has which is not itself one."""
    error, *others = cast("tuple[BaseException, ...]", group.exceptions)
    if others:
        return group
    return _only(cast("BaseExceptionGroup[Any]", error)) if isinstance(error, BaseExceptionGroup) else error
