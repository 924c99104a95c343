"""The workflows that are paused, as the last heartbeat has read it, and what follows from a change.

Owns: these notes. Must not: decide whether a run is paused (`paused.py`), load or commit anything (the owner does).
Called by: membership, with each heartbeat; the owner; takeover.

A pause costs nothing but its note: a run is paused when something comes for it, and those at once whose steps wait for
a free slot. When a workflow goes on, its runs are read from the listings of each shard (`stuck_runs.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from streamflow.daemon.paused import WORKFLOW
from streamflow.daemon.shard import LiveRun, OwnedShard
from streamflow.events import RunPaused
from streamflow.machine.transition import Due
from streamflow.steps.executor import StepExecutor
from streamflow.steps.suspects import Suspects
from streamflow.store.pauses import Pause

_log = logging.getLogger("streamflow.owner")

DUE = Due()


class PausedWorkflows:
    def __init__(
        self,
        shards: Mapping[int, OwnedShard],
        executor: StepExecutor,
        suspects: Suspects,
        wake: Callable[[OwnedShard], None],
        touch: Callable[[OwnedShard], None],
    ) -> None:
        self.notes: dict[str, Pause] = {}
        """By workflow; replaced, not changed."""
        self._shards = shards
        self._executor = executor
        self._suspects = suspects
        self._wake = wake
        self._touch = touch

    def update(self, notes: dict[str, Pause]) -> None:
        """These workflows are paused from now on, and no others."""
        before, self.notes = self.notes, notes
        for name in before.keys() - notes.keys():
            _log.info("workflow %s goes on", name)
            for shard in self._shards.values():
                shard.resume_workflow(name)
                self._touch(shard)
        begun = notes.keys() - before.keys()
        if not begun:
            return
        for name in begun:
            _log.warning("workflow %s is paused%s, so its runs begin nothing new", name, notes[name].in_brackets())
        for number, run_id in self._executor.waiting_runs():
            shard = self._shards.get(number)
            live = shard.live.get(run_id) if shard is not None else None
            if shard is not None and live is not None and live.header.workflow in begun:
                shard.add_input(run_id, DUE)
                self._wake(shard)

    def added(self, shard: OwnedShard) -> None:
        """The shard was taken over; workflows may have been resumed since its listings were read."""
        for name in shard.unread_while_paused - self.notes.keys():
            shard.resume_workflow(name)

    def is_recorded(self, shard: OwnedShard, run_id: str, live: LiveRun, pause: RunPaused) -> None:
        """It is in the run's history that it is paused: those of its steps don't begin that wait for a free slot."""
        for seq in live.machine.steps:
            if not self._executor.has_begun(run_id, seq):
                self._suspects.cancel(run_id, seq)
        if pause.scope == WORKFLOW and live.header.workflow not in self.notes:  # it goes on since that was decided
            shard.add_input(run_id, DUE)
