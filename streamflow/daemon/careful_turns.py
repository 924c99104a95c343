"""Whose code comes next, of what a former owner had in hand when its process ended: one run at a time, behind a note.

Owns: which run that is, whether its turn has come, and what follows when its code was run. Must not: reduce, commit, or
collect batches (the owner does). Called by: the owner, around each batch; the suspects ask whether such code waits.

In normal operation nothing is noted, so all that a dead process had in hand is suspect (`steps/suspects.py`). Every
other batch is one of these: innocent runs go on between. Of a server that confirms late none begins: its commit would
keep the turn for as long as that takes, though its code was run long before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from streamflow.daemon.shard import OwnedShard
from streamflow.steps.suspects import Suspects
from streamflow.store.connection import Store

if TYPE_CHECKING:
    from streamflow.daemon.batch import ShardBatch

LOOK_AGAIN = 1.0
"""Seconds after which it is looked again whether a server confirms."""


class CarefulTurns:
    """`active`: the owner's shards that may not be at rest; `wake(shard)` lets it look at one, `wake_up()` at all."""

    def __init__(
        self,
        store: Store,
        suspects: Suspects,
        active: Mapping[int, OwnedShard],
        wake: Callable[[OwnedShard], None],
        wake_up: Callable[[], None],
    ) -> None:
        self.is_running = False
        """A careful batch is under way, or begins: no trial of a step does..."""
        self._server = -1
        """...of a shard that is on this server."""
        self._store = store
        self._suspects = suspects
        self._active = active
        self._wake = wake
        self._wake_up = wake_up
        self._is_turn = False
        suspects.code_waits = self.has_code
        suspects.on_tried = self.wake_all

    # --- whose turn it is ---------------------------------------------------------------------------------------------

    @property
    def is_exclusive(self) -> bool:
        """No other batch may begin now."""
        return self.is_running and not self.confirms_late(self._server)

    def is_due(self, ready: Iterable[OwnedShard]) -> bool:
        """Whether the next batch is such a one: every other time, if any waits. Call it once for each batch."""
        self._is_turn = not self._is_turn
        waits = self._is_turn and any(shard.aside and not self.is_late(shard) for shard in ready)
        return waits and not self.is_running and not self._suspects.trying

    def next_run(self, ready: Iterable[OwnedShard]) -> tuple[int, str] | None:
        """Shard and id of the one that has ended the fewest processes."""
        aside = [
            (self._suspects.deaths(shard.number, run_id), shard.number, run_id)
            for shard in ready
            if not (shard.dropped or shard.busy or shard.broken or shard.leaving or self.is_late(shard))
            for run_id in shard.aside
        ]
        if not aside:
            return None
        _, number, run_id = min(aside)
        return number, run_id

    def waits_only(self, shard: OwnedShard) -> bool:
        """Whether nothing of this shard can be done but such code, and that not now: it is woken when it can."""
        if not shard.aside or shard.inbox or shard.inputs or shard.sent or shard.returned:
            return False
        is_late = self.is_late(shard)
        if is_late:
            asyncio.get_running_loop().call_later(LOOK_AGAIN, self.wake_all)
        return is_late or self._suspects.trying

    def is_late(self, shard: OwnedShard) -> bool:
        return self.confirms_late(self._store.server_of(shard.keys.owner))

    def confirms_late(self, server: int) -> bool:
        """Whether commits wait there for replicas or the disk: code of their runs was run before, and is not now."""
        return self._store.confirmation is not None and self._store.confirmation.is_late(server)

    def has_code(self) -> bool:
        """Whether code that a former owner had in hand waits for its turn, or is being run."""
        return self.is_running or any(
            shard.aside and not (shard.dropped or shard.broken or shard.leaving) for shard in self._active.values()
        )

    def wake_all(self) -> None:
        """No step is in the first moment of its trial any more, or a server may confirm again."""
        for shard in list(self._active.values()):
            if shard.aside:
                self._wake(shard)

    # --- its batch ----------------------------------------------------------------------------------------------------

    def began(self, server: int) -> None:
        self._server = server
        asyncio.get_running_loop().call_later(2 * LOOK_AGAIN, self._look_again)

    def _look_again(self) -> None:
        """Whether the batch waits for replicas by now: its code has been run, and others go on."""
        if self.is_running:
            self._wake_up()

    async def mark(self, batch: ShardBatch) -> None:
        """Note whose code is run next, for the successor if that ends the process."""
        shard, run_id = batch.shard, batch.careful
        created = batch.created_of(run_id)
        if self._suspects.is_of_another_run(shard.number, run_id, created):
            shard.parked.pop(run_id, None)
            shard.bugs.pop(run_id, None)
            shard.killers.discard(run_id)
            self._suspects.acquit(shard.number, run_id)
        await self._suspects.mark_code(shard.number, run_id, batch.batch.commit, created)

    def ended(self, batch: ShardBatch) -> None:
        """The code was run, and this process still lives: the run is like any other, unless more of what the former
        owner had in hand waits, or steps of it are open that ran when that ended."""
        self.is_running = False
        shard, run_id = batch.shard, batch.careful
        waits = run_id in shard.aside or run_id in shard.put_off or run_id in shard.returned
        if batch.applied and not waits:
            live = shard.live.get(run_id)
            if live is None or not shard.careful.get(run_id, set()) & live.machine.steps.keys():
                shard.careful.pop(run_id, None)
                self._suspects.acquit(shard.number, run_id)
        self._suspects.code_ended(more=self.has_code())
