"""After a deploy: finds the runs that this daemon's code can't continue, before anything comes for them.

Owns: which shards are checked, and how slowly. Must not: decide or commit anything (the owner parks the runs that are
handed to it), delay other work. Called by: the daemon (runs the loop).

A run that only waits isn't loaded when its shard changes hands, so nothing would show that a deploy broke it until its
signal or timer came. So the daemon replays such runs in the background, throws the result away, and hands those that
diverge, or whose workflow isn't registered, to the owner, which loads and parks them as it does all others.

Which shards: those whose runs were last checked by a daemon with other code. The field `code` of the shard's `owner`
hash has the fingerprint (`code_fingerprint.py`) of the last daemon that has checked all; it is removed when one with
other code begins to. So a takeover after a crash, or a new daemon of the same release, costs one read a shard.

How slowly: replays take at most a tenth of the time (`DUTY`), in portions of a few runs. 10,000 short histories that
fit took 15 s on two busy cores; the slowest hundredth of runs of three steps took 31 ms meanwhile, 30 ms afterwards.
A run that is live, or gets an input meanwhile, is the owner's anyway. So are all runs of a shard whose former owner
ended without a release: a replay may have been the reason.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Generator

import anyio

from streamflow.daemon.batch import reason_of
from streamflow.daemon.code_fingerprint import fingerprint
from streamflow.daemon.context import Context
from streamflow.daemon.owner import Owner
from streamflow.daemon.shard import OwnedShard
from streamflow.daemon.whole_records import whole_records
from streamflow.errors import ArchiveError, StoreError, StoreUnavailable
from streamflow.events import decode_history
from streamflow.loops import retry_forever
from streamflow.machine.factory import rehydrating
from streamflow.machine.run import RunMachine
from streamflow.machine.transition import Due
from streamflow.model.codec import DECODE_ERRORS
from streamflow.model.record import Status, decode_header
from streamflow.store.connection import Call
from streamflow.store.kernel import Put
from streamflow.tracing.setup import silence
from streamflow.workflow.awaitable import ends_process

_log = logging.getLogger("streamflow.deploy")

DUTY = 0.1
"""The part of the time that replays may take."""
PORTION = 16
"""Runs that are read and replayed between two pauses..."""
BYTES = 1024 * 1024
"""...of which about so many bytes are read at once, and are in memory unless a single record is larger."""
LONGEST_TURN = 0.005
"""Seconds of a replay after which it pauses."""
PAUSE = 0.002
"""The least pause between two portions, in seconds."""
CAREFUL_PAUSE = 0.2
"""Seconds between two portions that the owner replays with care."""
PAGE = 200
"""Run ids that are read from a listing at once, about."""
FIELD = "code"


class DeployCheck:
    def __init__(self, context: Context, owner: Owner) -> None:
        self._app = context.app
        self._context = context
        self._store = context.store
        self._kernel = context.kernel
        self._partition = context.namespace.partition
        self._owner = owner
        self._wanted = anyio.Event()
        self.fingerprint = fingerprint(context.app)
        self._busy = 0.0
        """Seconds of replays since the last pause."""

    def look(self) -> None:
        """Called with every heartbeat while shards are at work: let the loop have a turn if some are to be checked."""
        if not self._wanted.is_set() and any(self._is_new(shard) for shard in self._owner.active.values()):
            self._wanted.set()

    async def run(self) -> None:
        await retry_forever(self._run_when_wanted, _log, "could not check whether the code fits all runs")

    async def _run_when_wanted(self) -> None:
        await self._wanted.wait()
        self._wanted = anyio.Event()
        await self.run_once()

    @staticmethod
    def _is_new(shard: OwnedShard) -> bool:
        return not (shard.is_checked or shard.draining)

    async def run_once(self) -> None:
        """Check the shards that were acquired since the last time, one after the other."""
        new = [shard for shard in self._owner.active.values() if self._is_new(shard)]
        if not new:
            return
        codes = await self._store.send([Call.plain("HGET", shard.keys.owner, FIELD) for shard in new])
        others: list[OwnedShard] = []
        for shard, code in zip(new, codes, strict=True):
            if code == self.fingerprint.encode():
                shard.is_checked = True
            elif not isinstance(code, StoreError):
                others.append(shard)
        if others:
            await self._store.send([Call.plain("HDEL", shard.keys.owner, FIELD) for shard in others])
        misfits = 0
        for shard in others:
            try:
                misfits += await self._check(shard)
            except StoreUnavailable:
                raise
            except StoreError as error:
                shard.is_checked = True
                _log.error("runs of shard %d are not checked before something comes for them: %s", shard.number, error)
        if misfits:
            _log.error(
                "%d runs don't fit the code of this daemon: they are stuck until code is deployed that fits, see "
                "`streamflow runs --status stuck`",
                misfits,
            )

    async def _check(self, shard: OwnedShard) -> int:
        """Check all runs of a shard that are running. Returns how many don't fit."""
        misfits = 0
        cursors = dict.fromkeys(shard.workflows, 0)
        while cursors:
            # Every element that stays in a listing is returned at least once, whatever comes and goes meanwhile.
            calls = [
                Call.plain("ZSCAN", shard.keys.index(Status.RUNNING, name), cursor, "COUNT", PAGE)
                for name, cursor in cursors.items()
            ]
            for name, page in zip(list(cursors), await self._store.send(calls), strict=True):
                if isinstance(page, StoreError):
                    raise page
                cursor, entries = page
                run_ids = [run_id.decode(errors="replace") for run_id, _ in entries]
                for first in range(0, len(run_ids), PORTION):
                    if self._is_over(shard):
                        return misfits
                    misfits += await self._check_portion(shard, run_ids[first : first + PORTION])
                cursors[name] = int(cursor)
            cursors = {name: cursor for name, cursor in cursors.items() if cursor}
        if not self._is_over(shard):
            await self._store.one(self._kernel.store_records([Put(shard.keys.owner, FIELD, self.fingerprint.encode())]))
            shard.is_checked = True
        return misfits

    @staticmethod
    def _is_over(shard: OwnedShard) -> bool:
        return shard.dropped or shard.draining

    async def _check_portion(self, shard: OwnedShard, run_ids: list[str]) -> int:
        unseen = [run_id for run_id in run_ids if run_id not in shard.live]
        if shard.has_suspects:  # a replay may have ended the former owner: let the owner do them, one at a time
            for run_id in unseen:
                shard.careful.setdefault(run_id, set())
                shard.add_input(run_id, Due())
            self._owner.wake(shard)
            await anyio.sleep(CAREFUL_PAUSE)
            return 0
        misfits = 0
        self._busy = 0.0
        async for some in whole_records(self._context, shard.number, unseen, BYTES):
            for run_id, record in some:
                if isinstance(record, StoreError) or run_id in shard.live:
                    continue  # one that can't be read is the owner's, when something comes for it
                if record and not await self._fits_or_is_live(shard, run_id, record):
                    misfits += 1
            if self._is_over(shard):
                break
        await anyio.sleep(max(PAUSE, self._busy / DUTY))
        return misfits

    async def _fits_or_is_live(self, shard: OwnedShard, run_id: str, record: list[bytes]) -> bool:
        """A run that doesn't fit is handed to the owner."""
        fits = await self._fits(shard, run_id, record)
        await asyncio.sleep(0)
        if fits or run_id in shard.live or self._is_over(shard):
            return True
        shard.add_input(run_id, Due())
        self._owner.wake(shard)
        return False

    async def _fits(self, shard: OwnedShard, run_id: str, record: list[bytes]) -> bool:
        try:
            record = await self._owner.payloads.joined(record)
            header = decode_header(record[0])
            if not header.is_open or header.version == 0 or header.status in (Status.STUCK, Status.PAUSED):
                return True
            history = decode_history(record[2:])
            pieces = rehydrating(self._app, self._partition, run_id, header, record[1], history, trace=silence())
            while (machine := self._next_piece(run_id, shard.number, pieces)) is None:
                if self._busy > LONGEST_TURN:
                    await anyio.sleep(self._busy / DUTY)
                    self._busy = 0.0
            machine.close()
        except (*DECODE_ERRORS, IndexError, ArchiveError):  # what storage doesn't give is asked for when it is needed
            return True
        except BaseException as error:
            if ends_process(error):
                raise
            shard.parked[run_id] = reason_of(error)  # the owner must not run this code again
            return False
        return not machine.reason

    def _next_piece(self, run_id: str, shard: int, pieces: Generator[None, None, RunMachine]) -> RunMachine | None:
        """Replay on. The machine when that was all."""
        watch = self._owner.watch
        began = time.monotonic()
        watch.code_of(run_id, shard)
        try:
            next(pieces)
        except StopIteration as done:
            return done.value
        finally:
            watch.code_of("", 0)
            self._busy += time.monotonic() - began
        return None
