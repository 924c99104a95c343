"""The periodic rollup: stores each shard's part of the views, and merges all parts into the cross-shard views.

Owns: checkpoints of owned shards, the merged views' keys (one daemon, the leader, writes them), and trimming (inside
`checkpoint_views`). Must not: be needed for any run to progress.
Called by: the daemon (runs the loop), membership (stores a shard's part before releasing it, sets which daemon leads),
the rebuild command.

A part is stored together with the log entry up to which it counts, so storing it twice, or by two owners in turn, is
harmless, and after a crash the next owner folds what is missing from the log.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import anyio
import anyio.lowlevel
import msgspec

from streamflow.daemon.context import Context
from streamflow.daemon.dead_queues import DeadQueues
from streamflow.daemon.fleet import FleetLooks
from streamflow.daemon.owner import Owner
from streamflow.daemon.shard import OwnedShard
from streamflow.daemon.silent_steps import SilentSteps
from streamflow.daemon.sizes import Sizes
from streamflow.daemon.takeover import fold_entry
from streamflow.daemon.timers import Timers
from streamflow.daemon.troubles import Troubles, shard_name
from streamflow.errors import StoreError, StoreUnavailable
from streamflow.loops import TURN, retry_forever
from streamflow.model.codec import DECODE_ERRORS
from streamflow.store.connection import Call, OtherHistory, Store
from streamflow.store.kernel import Checkpointed, Kernel, LogLimits, Put, Reply
from streamflow.views.attention import DeadQueue, Silent, attention
from streamflow.views.shard_views import ShardViews, merge_oldest
from streamflow.wire import Heartbeat

_log = logging.getLogger("streamflow.rollup")

NOT_STORED = "has views that could not be stored"
NOT_READ = "has stored views that can't be read"
NOT_DECODED = "has stored views that can't be decoded and are left out; rebuild them with `streamflow views rebuild`"
"""What may be wrong with a single shard (`Troubles`)."""
CHUNK = 32
"""Shards in one pipeline, and..."""
MERGES = 16
"""...merges in a row: a daemon serves runs in between."""
TRIM_RETRY = 60_000
"""Ms until a log is trimmed again after a refusal."""
LOG_ENTRIES = 200
"""Entries of a log in one answer."""
STILL_SECONDS = 3.0
"""For so long after the last change views are still merged: the last second before a merge isn't in the rates. Later it
is known that nothing happens, and who reads the rates moves them on (`rates_at`)."""
RETRY_ROUNDS = 130
"""Rollups after the last change in which parts that couldn't be read are read again."""


class Rollup:
    def __init__(self, context: Context, owner: Owner) -> None:
        self.leading = False
        """Whether this daemon merges the views; set by membership."""
        self.others_folds = 0
        """Checkpoints that the other members have stored, from their heartbeats: a change means more to merge."""
        self.heartbeats: Callable[[], Iterable[Heartbeat]] = lambda: ()
        """The newest heartbeat of each daemon; set by membership."""
        self.folds = 0
        """Checkpoints stored so far: part of the heartbeat, so that the leader knows when there is more to merge."""
        self._store = context.store
        self._kernel = context.kernel
        self._clock = context.clock
        self._settings = context.settings
        self._shards = context.namespace.shards
        settings = context.settings
        self._limits = LogLimits(
            max(1, settings.log_bytes // self._shards),
            int(settings.log_age * 1000),
            settings.group_bytes // self._shards,
            int(settings.group_age * 1000),
        )
        self._owner = owner
        self._troubles = context.troubles
        self._trims = Timers[int]()
        """When the logs of shards at rest are to be trimmed."""
        self._fleet = FleetLooks(context)
        self._dead_queues = DeadQueues(context)
        self._silent_steps = SilentSteps(context.settings)
        self._sizes = Sizes(context)
        self._merged_folds = -1
        self._idle_rounds = 0
        self._complete = True
        """No part was left out of the last merge."""
        self._still_rounds = math.ceil(STILL_SECONDS / context.settings.rollup)

    @property
    def unfolded(self) -> int:
        """Log entries of this daemon's shards that the stored views don't count yet."""
        return sum(shard.unfolded for shard in self._owner.active.values())

    def merge_again(self) -> None:
        """The merged views may be older than the parts, or gone: the server has another history."""
        self._merged_folds = -1
        self._idle_rounds = 0

    async def run(self) -> None:
        await retry_forever(self.run_once, _log, "views not updated", every=self._settings.rollup, within=TURN)

    async def run_once(self) -> None:
        self._owner.flush()
        for _, number in self._trims.take(self._clock.now_ms()):
            if (shard := self._owner.shards.get(number)) is not None:
                shard.trim_again = 0
                self._owner.touch(shard)
        await self.store_partials(self._owner.active.values())
        if not self.leading:
            self._fleet.forget()
            self._dead_queues.forget()
            self._silent_steps.forget()
            self._sizes.forget()
            return
        if (fleet := await self._fleet.look()) is not None:
            steps_changed = self._silent_steps.look(fleet, self.heartbeats())
            if await self._dead_queues.look(fleet) or steps_changed:
                self.merge_again()
        if await self._sizes.look():
            await self._store_view("sizes", self._sizes.found())
        await self._merge_if_changed()

    async def store_partials(self, shards: Iterable[OwnedShard]) -> None:
        """Store the parts of these shards, each with the log entry up to which it counts, and trim their logs."""
        now = self._clock.now_ms()
        wanted = [shard for shard in shards if shard.offset != shard.folded or shard.trim_again <= now]
        if self._troubles:
            wanted = [shard for shard in wanted if not self._troubles.waits(shard_name(shard.number), NOT_STORED)]
        while wanted := [shard for shard in wanted if not shard.dropped]:
            unfinished: list[OwnedShard] = []
            for first in range(0, len(wanted), CHUNK):
                unfinished += await self._store_chunk(wanted[first : first + CHUNK])
            wanted = unfinished

    async def _store_chunk(self, shards: list[OwnedShard]) -> list[OwnedShard]:
        """Returns the shards whose logs are to be trimmed further: one call removes only so many entries."""
        now = self._clock.now_ms()
        calls: list[Call[Checkpointed]] = []
        counted: list[tuple[OwnedShard, str, int, int]] = []
        for shard in shards:
            self._trim_at(shard, now + TRIM_RETRY)  # unless the answer says otherwise
            try:
                shard.views.prune(now, self._shards)
                encoded = shard.views.encode()
            except Exception as error:  # what somebody else has written may be decoded, and still be invalid
                self._troubles.failed(shard_name(shard.number), NOT_STORED, error, stops=False)
                continue
            counted.append((shard, shard.offset, shard.unfolded, shard.logged))
            calls.append(
                self._kernel.checkpoint_views(
                    shard.number,
                    shard.token,
                    shard.offset,
                    encoded,
                    now,
                    shard.logged,
                    self._limits,
                    sorted(shard.workflows),
                )
            )
        answers: list[Checkpointed | StoreError] = await self._store.send(calls, same_history=True) if calls else []
        for (shard, offset, unfolded, logged), answer in zip(counted, answers, strict=True):
            if isinstance(answer, OtherHistory):
                continue  # the shard was dropped within that change
            if isinstance(answer, StoreError):
                self._troubles.failed(shard_name(shard.number), NOT_STORED, answer, stops=False)
            elif answer.code is Reply.STALE:
                # A failover lost log entries that the stored part counts: the log is authoritative.
                _log.warning(
                    "the stored views of shard %d are ahead of its log, because a failover lost log entries; rebuild "
                    "them with `streamflow views rebuild`",
                    shard.number,
                )
                shard.folded = offset
            elif answer.code is Reply.BEHIND and not shard.dropped:
                self._owner.other_history(shard)
            elif answer.code is Reply.OK:
                if shard.folded != offset:
                    self.folds += 1  # else it was only trimmed
                shard.folded = offset
                shard.unfolded -= unfolded
                shard.logged -= logged
                self._trim_at(shard, answer.again)
                if self._troubles:
                    self._troubles.works(shard_name(shard.number), NOT_STORED)
        return [shard for shard in shards if shard.trim_again == 0]

    def _trim_at(self, shard: OwnedShard, at: int | None) -> None:
        shard.trim_again = math.inf if at is None else at
        if at:
            self._trims.set(shard.number, at)
        else:
            self._trims.discard(shard.number)

    async def _merge_if_changed(self) -> None:
        folds = self.folds + self.others_folds
        if folds == self._merged_folds:
            self._idle_rounds += 1
            if self._idle_rounds > (self._still_rounds if self._complete else RETRY_ROUNDS):
                return
        else:
            self._idle_rounds = 0
        self._complete = await merge_views(
            self._store,
            self._kernel,
            self._shards,
            self._clock.now_ms(),
            self._own_partials(),
            self._troubles,
            self._dead_queues.found,
            self._silent_steps.found,
        )
        self._merged_folds = folds

    async def _store_view(self, name: str, value: Any) -> None:
        """One that isn't merged of partials."""
        await self._store.send([_put_view(self._kernel, name, self._clock.now_ms(), value)])

    def _own_partials(self) -> dict[int, ShardViews]:
        """Parts of shards that this daemon owns and has just stored: they don't have to be read back."""
        return {n: shard.views for n, shard in self._owner.shards.items() if shard.folded == shard.offset != "0-0"}


async def merge_views(
    store: Store,
    kernel: Kernel,
    shards: int,
    now_ms: int,
    known: dict[int, ShardViews] | None = None,
    troubles: Troubles | None = None,
    queues: Sequence[DeadQueue] | None = None,
    silent: Sequence[Silent] = (),
) -> bool:
    """Merge the parts of all shards into the cross-shard views and store those. `known`: parts by shard that don't have
    to be read; `queues`: those without workers, if they are known; `silent`: steps that may hang. Returns whether all
    could be read."""
    known = known or {}
    troubles = Troubles() if troubles is None else troubles
    complete = True
    keys = kernel.keys
    fields = [("oldest",) if n in known else ("oldest", "partial") for n in range(shards)]
    answers: list[Any] = []
    for first in range(0, shards, CHUNK):
        chunk = range(first, min(first + CHUNK, shards))
        answers += await store.send([Call.plain("HMGET", keys.shard(n).views, *fields[n]) for n in chunk])
    merged = ShardViews()
    oldest: list[list[tuple[str, str, int]]] = []
    for number, answer in enumerate(answers):
        if number % MERGES == 0:
            await anyio.lowlevel.checkpoint()  # runs must not wait for a thousand merges
        if isinstance(answer, StoreError):
            troubles.failed(shard_name(number), NOT_READ, answer, stops=False)
            complete = False
            continue
        oldest.append(_decode_oldest(number, answer[0]))
        try:
            if number in known:
                merged.merge(known[number])
            elif answer[1] is not None:
                merged.merge(ShardViews.decode(answer[1]))
        except Exception as error:  # what somebody else has written may be decoded, and still be invalid
            troubles.failed(shard_name(number), NOT_DECODED, error, stops=False)
    rendered: dict[str, Any] = merged.render(now_ms)
    rendered["oldest"] = merge_oldest(oldest)
    rendered["attention"] = attention(rendered["runs"], rendered["causes"], queues, silent)
    await store.send([_put_view(kernel, name, now_ms, value) for name, value in rendered.items()])
    return complete


def _put_view(kernel: Kernel, name: str, now_ms: int, value: Any) -> Call[Any]:
    data = msgspec.json.encode({"as_of": now_ms, "value": value})
    return kernel.store_records([Put(kernel.keys.view(name), "", data)])


async def rebuild_views(store: Store, kernel: Kernel, shards: int, now_ms: int) -> int:
    """Rebuild all views from the logs, and from what was counted before the logs were trimmed.

    Returns the number of log entries folded. Owners keep their own parts in memory, so stop the daemons first, or their
    next checkpoint overwrites this one with the same numbers.
    """
    folded = 0
    for number in range(shards):
        try:
            folded += await _rebuild_part(store, kernel, number)
        except StoreUnavailable:
            raise
        except (StoreError, *DECODE_ERRORS) as error:
            _log.error("the views of shard %d can't be rebuilt and stay as they are: %s", number, error)
    await merge_views(store, kernel, shards, now_ms)
    return folded


async def _rebuild_part(store: Store, kernel: Kernel, number: int) -> int:
    keys = kernel.keys.shard(number)
    base, base_offset, offset = await store.one(Call.plain("HMGET", keys.views, "base", "base_offset", "offset"))
    views, after = ShardViews(), "0-0"
    if base is not None and base_offset is not None:
        views, after = ShardViews.decode(base), base_offset.decode()
    position = after
    folded = 0
    while True:
        start = f"({position}" if position != "0-0" else "-"
        entries = await store.one(Call.plain("XRANGE", keys.log, start, "+", "COUNT", LOG_ENTRIES))
        for entry_id, fields in entries:
            fold_entry(views, fields)
            position = entry_id.decode()
            folded += 1
        if len(entries) < LOG_ENTRIES:
            break
    if offset is not None or position != "0-0":
        records = [Put(keys.views, "partial", views.encode()), Put(keys.views, "offset", position.encode())]
        await store.one(kernel.store_records(records))
    return folded


def _decode_oldest(shard: int, data: bytes | None) -> list[tuple[str, str, int]]:
    rows: list[tuple[str, str, int]] = []
    try:
        for line in (data or b"").decode().splitlines():
            run_id, score, workflow = line.split(" ", 2)
            rows.append((run_id, workflow, int(float(score))))
    except (ValueError, OverflowError) as error:
        _log.error("the list of oldest runs of shard %d can't be decoded and is incomplete: %s", shard, error)
    return rows
