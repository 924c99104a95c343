"""Starts that a server has acknowledged a short while ago, sent again when it turns out to have lost them.

Owns: what is kept, for how long, and sending it again, and behind it what `recent_once.py` and `recent_posts.py` have.
Must not: decide that a server has another history (the store does). Called by: the pipelines (report what was
acknowledged, and wait), the session.

Replication is asynchronous: a server that is promoted may lack the newest writes, starts among them that clients know
to be safe. A client that still lives has their inputs. It sends them again before anything else that it asks for, with
the time of their first start, so that each is the same run; a run that the server has stays as it is.

A start that has taken the place of an ended run takes it again, if the server has that run again: that very one, which
its client has seen to end. If it is open there, the owner may still know its end, and commit it again: so that is
waited for. A run that was created since, by whomever, stays.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from streamflow.client.recent_once import RecentOnce
from streamflow.client.recent_posts import RecentPosts
from streamflow.errors import StoreError
from streamflow.machine.sealed import hide
from streamflow.model.record import decode_header, incarnation_of
from streamflow.store.connection import Call, Store
from streamflow.store.kernel import Kernel, Start

_log = logging.getLogger("streamflow.client")

KEEP_SECONDS = 60.0
"""More than a failover takes: by default a cluster's servers wait for one that is silent for 15 seconds, and Sentinels
for 30."""
KEEP_BYTES = 16 * 1024 * 1024
"""What is kept at most: the oldest go first. A replica that is further behind is not promoted, or has lost more."""
STARTS_AT_ONCE = 200
TRY_AGAIN = 0.2
NAMED = 20


class _Kept(NamedTuple):
    at: float
    shard: int
    history: int
    created: int
    start: Start
    size: int


class RecentStarts:
    """Those of one client. `restored` returns at once as long as no server has another history."""

    def __init__(self, store: Store, kernel: Kernel) -> None:
        self._store = store
        self._kernel = kernel
        self._kept: dict[str, _Kept] = {}
        """By run id, in the order of their starts."""
        self._bytes = 0
        self._generation = store.server_generation
        self._doubts = self._cleared = 0
        """How often a start was acknowledged when its server had another history already, and how many of these times
        were looked at."""
        self._restoring: asyncio.Task[None] | None = None
        self._late: dict[str, _Kept] = {}
        """Those whose place has a run that is open again."""
        self._replacing: asyncio.Task[None] | None = None
        self.posts = RecentPosts(store, kernel)
        self.once = RecentOnce(store, kernel)
        self.again = 0
        """Starts that were lost, and are there again."""

    def history_of(self, shard: int) -> int:
        return self._store.history_of(self._kernel.keys.shard(shard).owner)

    def acknowledged(self, shard: int, start: Start, header: bytes, history: int) -> None:
        """The server has created this run. `history`: the shard's when the start was sent. If there is another one by
        now, because the pipeline had to wait for other servers, the run may be lost already."""
        now, size = time.monotonic(), len(start.body) + 200
        self.settled(start.run_id)
        self._kept[start.run_id] = _Kept(now, shard, history, incarnation_of(header), start, size)
        self._bytes += size
        while self._kept:
            oldest = next(iter(self._kept.values()))
            if oldest.at >= now - KEEP_SECONDS and self._bytes <= KEEP_BYTES:
                break
            self.settled(oldest.start.run_id)
        self.doubt(shard, history)

    def doubt(self, shard: int, history: int) -> None:
        """Something was acknowledged that was sent when the shard had this history: if it has another one, it may be
        lost already."""
        if history != self.history_of(shard):
            self._doubts += 1
            self.restore_soon()

    def settled(self, run_id: str) -> None:
        """The run has ended, and its caller knows the result, or it was forgotten: it must not begin again."""
        kept = self._kept.pop(run_id, None)
        if kept is not None:
            self._bytes -= kept.size
        self.once.settled(run_id)

    @property
    def is_needed(self) -> bool:
        """Whether a server may have lost what it had acknowledged, and it was not sent again yet."""
        return self._doubts != self._cleared or self._generation != self._store.server_generation

    async def restored(self) -> None:
        """Until all that was lost is there again."""
        while self.is_needed:
            if self._restoring is None or self._restoring.done():
                self._restoring = asyncio.create_task(self._restore())
                hide(self._restoring)
            await asyncio.shield(self._restoring)

    def restore_soon(self) -> None:
        """Also when nobody asks for anything: called when a server has another history."""
        if (self._kept or self.posts or self.once) and (self._restoring is None or self._restoring.done()):
            self._restoring = asyncio.create_task(self._restore())
            hide(self._restoring)

    async def close(self) -> None:
        await self.posts.close()
        tasks = [task for task in (self._restoring, self._replacing) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _restore(self) -> None:
        while True:
            generation = self._store.server_generation
            doubts = self._doubts
            over = time.monotonic() - KEEP_SECONDS
            doubtful: dict[tuple[int, int], list[_Kept]] = {}
            for kept in self._kept.values():
                if kept.history != self.history_of(kept.shard) and kept.at > over:
                    doubtful.setdefault((kept.shard, kept.created), []).append(kept)
            try:
                lost = await self._send(doubtful)
                lost += await self.once.send_again()
                await self.posts.send_again()
            except StoreError as error:
                _log.warning("could not send recent starts and messages again, will retry: %s", error)
                await asyncio.sleep(TRY_AGAIN)
                continue
            if generation == self._store.server_generation and doubts == self._doubts:
                break
        self._generation, self._cleared = generation, doubts
        self._renew(doubtful)
        if lost:
            self.again += len(lost)
            _log.warning(
                "a server had lost %d runs that it had acknowledged, and they were started again: %s%s",
                len(lost),
                ", ".join(lost[:NAMED]),
                ", …" if len(lost) > NAMED else "",
            )

    async def _send(self, doubtful: dict[tuple[int, int], list[_Kept]]) -> list[str]:
        """Returns the ids of the runs that were created by this."""
        calls: list[Call[list[bytes]]] = []
        sent: list[list[_Kept]] = []
        replacing = [kept for all_kept in doubtful.values() for kept in all_kept if kept.start.replaces]
        lost = await self._replace_again(replacing)
        for (shard, created), all_kept in doubtful.items():
            all_kept = [kept for kept in all_kept if not kept.start.replaces]
            for first in range(0, len(all_kept), STARTS_AT_ONCE):
                part = all_kept[first : first + STARTS_AT_ONCE]
                calls.append(
                    self._kernel.start_runs(shard, [kept.start for kept in part], created=created, asleep=True)
                )
                sent.append(part)
        if not calls:
            return lost
        for part, reply in zip(sent, await self._store.send(calls), strict=True):
            if isinstance(reply, StoreError):
                _log.error("starts that a server may have lost could not be sent again: %s", reply)
                continue
            lost += (kept.start.run_id for kept, header in zip(part, reply, strict=True) if header.startswith(b"+"))
        return lost

    async def _replace_again(self, replacing: Sequence[_Kept]) -> list[str]:
        """As `_send`, for those that have taken the places of others."""
        lost: list[str] = []
        for kept in replacing:
            start: Start | None = kept.start
            while start is not None:
                [header] = await self._store.send(
                    [self._kernel.replace_run(kept.shard, start, created=kept.created, asleep=True)]
                )
                if isinstance(header, StoreError):
                    _log.error("a start that a server may have lost could not be sent again: %s", header)
                    break
                if header.startswith(b"+"):
                    lost.append(start.run_id)
                start = self._in_place_of(kept, start, header)
        return lost

    def _in_place_of(self, kept: _Kept, start: Start, header: bytes) -> Start | None:
        """What to send now, if the reply is of the run that had gone already, which has ended otherwise here."""
        if header[:1] in (b"+", b"="):
            return None
        try:
            found = decode_header(header)
        except ValueError:  # not written by streamflow
            return None
        if found.created != decode_header(start.replaces).created:
            return None
        if not found.is_open:
            return msgspec.structs.replace(start, replaces=header)
        self._late[start.run_id] = kept
        if self._replacing is None or self._replacing.done():
            self._replacing = asyncio.create_task(self._replace_late())
            hide(self._replacing)
        return None

    async def _replace_late(self) -> None:
        while self._late:
            await asyncio.sleep(TRY_AGAIN)
            late, self._late = list(self._late.values()), {}
            over = time.monotonic() - KEEP_SECONDS
            wanted = [kept for kept in late if kept.at > over and kept.start.run_id in self._kept]
            try:
                lost = await self._replace_again(wanted)
            except StoreError:
                self._late = {kept.start.run_id: kept for kept in wanted} | self._late
                continue
            self.again += len(lost)
            for run_id in lost:
                _log.warning("a server had lost run %s, which had replaced an ended one: it was started again", run_id)
            for kept in late:
                if kept.at <= over:
                    _log.error(
                        "run %s, which had replaced an ended one, is lost: the server has that one, and it is open",
                        kept.start.run_id,
                    )

    def _renew(self, doubtful: dict[tuple[int, int], list[_Kept]]) -> None:
        """They are of the present history now."""
        for kept in (kept for all_kept in doubtful.values() for kept in all_kept):
            run_id = kept.start.run_id
            if run_id in self._kept:
                self._kept[run_id] = self._kept[run_id]._replace(history=self.history_of(kept.shard))
