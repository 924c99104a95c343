"""Reads on in the listings of stuck and paused runs after a takeover: this daemon's code may continue them, and of
those of a workflow that goes on after a pause.

Owns: how many of a shard's stuck runs wait in memory for their turn. Must not: load or decide anything (the owner
does), or read the first ones (takeover does). Called by: the daemon (runs the loop).

A deploy that breaks a workflow may leave millions of them. The next daemon tries each again, a few hundred of a shard
at a time, beside its other work; what has been tried and is idle is evicted like any other run.
"""

from __future__ import annotations

import logging

import anyio

from streamflow.daemon.context import Context
from streamflow.daemon.owner import Owner
from streamflow.daemon.shard import OwnedShard
from streamflow.daemon.troubles import shard_name
from streamflow.errors import StoreError
from streamflow.loops import retry_forever, wait_until
from streamflow.machine.transition import Due
from streamflow.model.record import Status
from streamflow.store.connection import Call

_log = logging.getLogger("streamflow.takeover")

UNREAD = "can't be asked which runs are stuck"
"""What may be wrong with a single shard (`Troubles`)."""
PAGE = 200
"""Ids that are read at once, about..."""
FEW = 100
"""...when not more runs of the shard than so many have something to decide."""
LOOK_EVERY = 0.02
"""Seconds between two looks whether that is so."""
DUE = Due()


class StuckRuns:
    def __init__(self, context: Context, owner: Owner) -> None:
        self._store = context.store
        self._troubles = context.troubles
        self._owner = owner
        self._wanted = anyio.Event()

    def look(self) -> None:
        """Called with every heartbeat while shards are at work: let the loop have a turn if there are such runs."""
        if not self._wanted.is_set() and any(self._is_wanted(shard) for shard in self._owner.active.values()):
            self._wanted.set()

    async def run(self) -> None:
        await retry_forever(self._run_when_wanted, _log, "could not read which runs are stuck")

    async def _run_when_wanted(self) -> None:
        await self._wanted.wait()
        self._wanted = anyio.Event()
        await self.run_once()

    @staticmethod
    def _is_wanted(shard: OwnedShard) -> bool:
        return bool(shard.stuck) and not (shard.is_going or shard.broken)

    async def run_once(self) -> None:
        """Have all stuck runs tried again of the shards that were acquired since the last time, and those of workflows
        that go on."""
        for shard in list(self._owner.active.values()):
            while self._is_wanted(shard):
                if self._troubles.waits(shard_name(shard.number), UNREAD) or not await self._read_page(shard):
                    break
                await wait_until(lambda shard=shard: _has_room(shard), LOOK_EVERY)

    async def _read_page(self, shard: OwnedShard) -> bool:
        """False if it can't be read."""
        (status, name), cursor = next(iter(shard.stuck.items()))
        [page] = await self._store.send([stuck_page(shard, status, name, cursor, PAGE)])
        if isinstance(page, StoreError):
            self._troubles.failed(shard_name(shard.number), UNREAD, page, stops=False)
            return False
        following, entries = page
        for run_id, _ in entries:
            text = run_id.decode(errors="replace")
            live = shard.live.get(text)
            if live is None or live.kept_stuck or live.machine.pause is not None:
                shard.add_input(text, DUE)
        if int(following):
            shard.stuck[status, name] = int(following)
        else:
            del shard.stuck[status, name]
        self._owner.wake(shard)
        return True


def stuck_page(
    shard: OwnedShard, status: Status, workflow: str, cursor: int, count: int
) -> Call[tuple[bytes, list[tuple[bytes, float]]]]:
    """Every run that stays so is returned at least once, whatever comes and goes meanwhile."""
    return Call.plain("ZSCAN", shard.keys.index(status, workflow), cursor, "COUNT", count)


def _has_room(shard: OwnedShard) -> bool:
    return shard.is_going or bool(shard.broken) or len(shard.inputs) + len(shard.aside) <= FEW
