"""Doing an action to many runs: all that match filters, at a given rate, and on from where it stopped.

Owns: choosing the runs once, how many are under way, what counts as done, as moot and as failed, when it gives up.
Must not: ask, print, know a single action. Called by: the commands; user code.

    client._every ── those to which it applies ── a file of targets        (`freeze`)
    file ── pace ── as many as `UNDER_WAY` at once ── tally, into the file  (`Bulk.run`)

No run gets a message twice, also if a bulk is killed and resumed: messages have the file's id and the target's number,
and a shard takes only numbers above its last one. So messages to a shard are sent one after the other, in the order of
the file, and none behind one of which it isn't known whether it has arrived. Other actions are refused the second time:
a retry by a run that goes on, a deletion because it names the incarnation.
"""

# It is the other half of the client's interface for this.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Unpack

import msgspec

from streamflow.actions.action import Runs
from streamflow.actions.audit import audit, me, outcome_of
from streamflow.actions.one import ReadOnly
from streamflow.actions.pace import Pace
from streamflow.actions.targets import AnyAction, RunFilters, Tally, Target, TargetFile
from streamflow.client.listing import RunSummary
from streamflow.errors import NamespaceMismatch, RunNotFound, StoreError, StreamflowError, UsageError
from streamflow.model import codec
from streamflow.model.record import OPEN, STOPPED, Status

RATE = 50.0
"""Runs a second, unless said otherwise: what daemons and the services that steps call can take beside their work."""
UNDER_WAY = 200
AHEAD = 2_000
"""Targets that may be done with behind one that isn't."""
SAVE_SECONDS = 0.5
GRACE_SECONDS = 3.0
"""How long what is under way may take when it is to stop."""
LOOK_SECONDS = 0.1
SHOWS_WITHIN = 2.0
READ_AT_ONCE = 200
SAMPLE = 5
DAMAGED: Literal["damaged"] = "damaged"
FILTERS = tuple(RunFilters.__annotations__)

_Done = Literal["done", "already", "failed"]


class BulkOutcome(msgspec.Struct, frozen=True):
    """The result so far. Of `targets` runs, `done`: it was done to them; `already`: there was nothing to do, or it
    doesn't apply to them any more; `failed`: it couldn't be done; `left`: not begun, because it was stopped.

    `reasons`: why not, with how many of them. `now`: how many of the runs have which status, as read back behind the
    last one (`gone`: deleted; `damaged`: unreadable); empty if it was stopped. `file`: has all targets, and each that
    failed, by its id; empty if there is nothing to look up in it, and it is deleted.
    """

    targets: int
    done: int
    already: int
    failed: int
    left: int
    reasons: dict[str, int]
    now: dict[str, int]
    file: str


class Bulk:
    """Frozen targets. `sample`: the first of them, and `workflows`: of which they all are, unless they were frozen
    before; `by`: who does it."""

    def __init__(
        self,
        client: Runs,
        file: TargetFile,
        sample: list[RunSummary],
        by: str,
        *,
        workflows: Iterable[str] = (),
        read_only: bool = False,
    ) -> None:
        self.file = file
        self.by = by
        self.action = file.head.action
        self.sample = sample
        self.workflows = sorted(workflows)
        self._client = client
        self._read_only = read_only
        self._stopping = False
        self._error: Exception | None = None
        self._feeder: asyncio.Task[None] | None = None
        self._finished: dict[int, tuple[str, _Done, str]] = {}
        self._advanced = asyncio.Event()
        self._locks: dict[int, asyncio.Lock] = {}
        self._saved = time.monotonic()

    @property
    def tally(self) -> Tally:
        return self.file.tally

    def stop(self) -> None:
        """Begin no other: `run` returns when those under way are done."""
        self._stopping = True
        if self._feeder is not None:
            self._feeder.cancel()

    async def run(
        self,
        *,
        rate: float = RATE,
        on_progress: Callable[[Tally], None] | None = None,
        pace: Pace | None = None,
    ) -> BulkOutcome:
        """Do it to all that are left, `rate` a second (0: as fast as it goes).

        Raises `ReadOnly`, and `StoreError` when the server can't be reached or refuses: then the file has how far it
        came, as when it is stopped, cancelled or killed.
        """
        if self._read_only:
            raise ReadOnly(f"{self.action.name} is not allowed: this is read-only")
        tasks: set[asyncio.Task[None]] = set()
        self._feeder = feeder = asyncio.create_task(self._feed(tasks, pace or Pace(rate), on_progress))
        try:
            if self._stopping:  # before it began
                feeder.cancel()
            await asyncio.wait([feeder])
            await self._finish(tasks)
        finally:
            left = [feeder, *tasks]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            self.file.save()
        if not feeder.cancelled():
            feeder.result()
        if self._error is not None:
            raise self._error
        now: dict[str, int] = {}
        if self.tally.next == self.file.count:
            with suppress(StoreError):  # all is done, also if it can't be read back
                now = await self._read_back()
        return self.outcome(now)

    async def _feed(
        self, tasks: set[asyncio.Task[None]], pace: Pace, on_progress: Callable[[Tally], None] | None
    ) -> None:
        room = asyncio.Semaphore(UNDER_WAY)

        def ended(task: asyncio.Task[None]) -> None:
            tasks.discard(task)
            room.release()

        with closing(self.file.targets(self.tally.next)) as targets:
            for number, target in targets:
                await pace.turn()
                while number - self.tally.next > AHEAD:
                    self._advanced.clear()
                    await self._advanced.wait()
                await room.acquire()
                # Here, because tasks that wait for it may go on in another order than they have begun.
                shard = (await self._client.read_namespace()).shard_of(target.run_id) if self.action.posts else None
                if self._error is not None:
                    return
                task = asyncio.create_task(self._one(number, target, shard, on_progress))
                tasks.add(task)
                task.add_done_callback(ended)

    async def _finish(self, tasks: set[asyncio.Task[None]]) -> None:
        """Wait for those under way: once it is to stop, not for long."""
        deadline = math.inf
        while tasks and time.monotonic() < deadline:
            await asyncio.wait(tasks, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if deadline == math.inf and (self._stopping or self._error is not None):
                deadline = time.monotonic() + GRACE_SECONDS

    def outcome(self, now: Mapping[str, int] | None = None) -> BulkOutcome:
        tally = self.tally
        return BulkOutcome(
            targets=self.file.count,
            done=tally.done,
            already=tally.already,
            failed=tally.failed,
            left=self.file.count - tally.next,
            reasons=dict(tally.reasons),
            now=dict(now or {}),
            file="" if self._is_over else str(self.file.path),
        )

    async def _one(
        self, number: int, target: Target, shard: int | None, on_progress: Callable[[Tally], None] | None
    ) -> None:
        """`shard`: where it posts a message to; None if it doesn't post."""
        try:
            if shard is None:
                await self._do(number, target)
            else:
                async with self._locks.setdefault(shard, asyncio.Lock()):
                    if self._error is None:
                        await self._do(number, target)
            if on_progress is not None:
                on_progress(self.tally)
        except Exception as error:  # also of a log handler, or of `on_progress`
            self._give_up(error)

    async def _do(self, number: int, target: Target) -> None:
        run_id, reason, audited = target.run_id, "", "unknown"
        run = self._client._numbered(run_id, target.created, (f"client:{self.file.head.id}", number))
        outcome: _Done = "done"
        try:
            await self.action.do(self._client, run, self.by)
            audited = "done"
        except (StreamflowError, TimeoutError) as error:
            reason, audited = str(error), outcome_of(self.action, error)
            if isinstance(error, StoreError) and not _is_damaged(error):  # it would be so for all
                self._give_up(error)  # before the shard's next one begins
                return
            outcome = "already" if self.action.is_moot(error) else "failed"
        except codec.DECODE_ERRORS as error:
            outcome = audited = "failed"
            reason = f"its record can't be decoded: {error}"
        finally:
            audit(self.action, self.file.head.namespace, run_id, self.by, audited, reason)
        self._finished[number] = (run_id, outcome, reason)
        self._advance()

    def _give_up(self, error: Exception) -> None:
        self._error = self._error or error
        if self._feeder is not None:
            self._feeder.cancel()

    def _advance(self) -> None:
        """Count those that are done with, up to the first that isn't."""
        tally = self.tally
        while (finished := self._finished.pop(tally.next + 1, None)) is not None:
            tally.add(*finished)
            if finished[1] == "failed":
                self.file.note(*finished)
        self._advanced.set()
        if time.monotonic() - self._saved >= SAVE_SECONDS:
            self.file.save()
            self._saved = time.monotonic()

    async def _read_back(self) -> dict[str, int]:
        """How many of the runs have which status now. The last ones get a moment to show what was done to them."""
        counts = Counter[str]()
        targets: list[Target] = []
        deadline = time.monotonic() + SHOWS_WITHIN
        for number, target in self.file.targets():
            targets.append(target)
            if len(targets) < READ_AT_ONCE and number < self.file.count:
                continue
            found = await self._statuses(targets)
            while number == self.file.count and time.monotonic() < deadline:
                if all(status == DAMAGED or self.action.took_effect(status) for status in found):
                    break
                await asyncio.sleep(LOOK_SECONDS)
                found = await self._statuses(targets)
            counts.update("gone" if status is None else str(status) for status in found)
            targets.clear()
        return dict(counts.most_common())

    async def _statuses(self, targets: list[Target]) -> list[Status | Literal["damaged"] | None]:
        return await asyncio.gather(*(self._status(target) for target in targets))

    async def _status(self, target: Target) -> Status | Literal["damaged"] | None:
        try:
            header, _ = await self._client._header(target.run_id, target.created)
            return Status(header.status)
        except RunNotFound:
            return None
        except StoreError as error:
            if not _is_damaged(error):
                raise
            return DAMAGED
        except codec.DECODE_ERRORS:
            return DAMAGED

    def close(self) -> None:
        """Close the file. It is deleted if nothing is left to be seen in it: all was done, and none failed."""
        if self._is_over:
            self.file.delete()
        else:
            self.file.close()

    @property
    def _is_over(self) -> bool:
        return self.tally.next == self.file.count and not self.tally.failed


def _is_damaged(error: StoreError) -> bool:
    """Whether somebody has overwritten the run's key, which harms no other run."""
    return "WRONGTYPE" in str(error)


async def freeze(
    client: Runs,
    action: AnyAction,
    path: Path | None = None,
    *,
    by: str = "",
    read_only: bool = False,
    on_found: Callable[[int], None] | None = None,
    **filters: Unpack[RunFilters],
) -> Bulk:
    """Write all runs that match the filters, and to which the action applies, into a new file (by default a named one
    in the working directory). Nothing is done to them.

    Runs that come to match meanwhile may be among them or not. Raises `UsageError` without a filter, for filters that
    can't be, or if the file can't be written.
    """
    within = check_filters(action, filters)
    namespace = await client.read_namespace()
    name = getattr(client, "namespace", "")
    by = by or me()
    file = TargetFile.create(path or default_path(action), action, filters, name, namespace.identity, by)
    sample: list[RunSummary] = []
    workflows: set[str] = set()
    try:
        if filters.get("hibernating"):
            every = client._every_hibernating(workflow=filters.get("workflow"))
        elif action.archived:
            every = client._every_archived(**_listed(filters))
        else:
            every = client._every(within, **_listed(filters))
        async for runs in every:
            chosen = [run for run in runs if not action.check(run)]
            file.add([Target(run.id, round(run.created.timestamp() * 1000)) for run in chosen])
            sample += chosen[: SAMPLE - len(sample)]
            workflows.update(run.workflow for run in chosen if run.workflow)
            if on_found is not None:
                on_found(file.count)
        sample = [await _with_reason(client, run) for run in sample]
        file.complete()
    except BaseException:
        file.delete()
        raise
    return Bulk(client, file, sample, by, workflows=workflows, read_only=read_only)


async def _with_reason(client: Runs, run: RunSummary) -> RunSummary:
    """With why it is stuck or paused, which isn't read of all runs."""
    if run.status not in STOPPED or run.error or run.reason:
        return run
    with suppress(StreamflowError):
        found = await client.run(run.id).describe(waits=False)
        if found.status in STOPPED:
            return msgspec.structs.replace(run, reason=found.reason, error=found.error)
    return run


async def open_file(client: Runs, path: Path, *, by: str = "", read_only: bool = False) -> Bulk:
    """Targets that were frozen before, to go on with those that are left. Raises `UsageError`, and `NamespaceMismatch`
    if they are of another namespace, or its data were deleted since."""
    namespace = await client.read_namespace()
    file = TargetFile.open(path)
    name = getattr(client, "namespace", "")
    if (file.head.namespace, file.head.identity) != (name, namespace.identity):
        which = f"namespace {file.head.namespace!r}"
        file.close()
        raise NamespaceMismatch(f"{path} is of {which}, or of data that were deleted since, and not of {name!r} here")
    return Bulk(client, file, [], by or me(), read_only=read_only)


async def bulk(
    client: Runs,
    action: AnyAction,
    *,
    file: str | Path | None = None,
    rate: float = RATE,
    by: str = "",
    read_only: bool = False,
    on_progress: Callable[[Tally], None] | None = None,
    **filters: Unpack[RunFilters],
) -> BulkOutcome:
    """Do an action to all runs that match the filters, which are those of `client.runs`: `rate` a second.

    The targets are written to `file` first, by default one in the working directory. Where it was interrupted,
    `open_file(client, file)` and `run()` go on. It is deleted if none failed.

    Raises `UsageError` without a filter, or for filters that can't be; `StoreError` when the server can't be reached.

    >>> await actions.bulk(client, actions.Cancel(reason="paid twice"), workflow="invoice", tenant="acme")
    """
    if read_only:
        raise ReadOnly(f"{action.name} is not allowed: this is read-only")
    path = None if file is None else Path(file)
    frozen = await freeze(client, action, path, by=by, **filters)
    try:
        return await frozen.run(rate=rate, on_progress=on_progress)
    finally:
        frozen.close()


def _listed(filters: Mapping[str, Any]) -> dict[str, Any]:
    """Those that listings have."""
    return {name: value for name, value in filters.items() if name != "hibernating"}


def default_path(action: AnyAction) -> Path:
    return Path(f"streamflow-{action.name}-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"[:-3] + "Z.jsonl")


def check_filters(action: AnyAction, filters: Mapping[str, Any]) -> frozenset[Status]:
    """The statuses of the runs to look at. Raises `UsageError` if there is no filter, or the status rules all out."""
    if unknown := set(filters) - set(FILTERS):
        raise UsageError(f"{action.name} by {', '.join(sorted(unknown))}: the filters are {', '.join(FILTERS)}")
    if not any(filters.values()):
        raise UsageError(f"{action.name} needs a filter: all runs of a namespace are more than anybody means")
    if filters.get("hibernating"):
        others = [name for name, value in filters.items() if value and name not in ("hibernating", "workflow")]
        if others:
            raise UsageError(f"hibernating goes with workflow only, and not with {', '.join(others)}")
        if action.archived or Status.RUNNING not in action.statuses:
            raise UsageError(f"{action.name} is not for runs that hibernate: they are running")
    statuses = OPEN if getattr(action, "step", None) is not None else action.statuses
    status = filters.get("status")
    if status is not None and status not in statuses:
        takes = ", ".join(sorted(statuses))
        raise UsageError(f"{action.name} is for runs that are {takes}; with status {status} there are none")
    return statuses if status is None else frozenset({Status(status)})
