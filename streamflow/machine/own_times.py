"""When the code of a run begins, and when its time is over.

Owns: these two times of a run, the facts that they become, and the effect of those on what is due.
Must not: know clocks or I/O, run user code. Called by: `run.py`, which builds on it; the replay.

Both are on the schedule beside timers and retries, under numbers that no decision has, so that all that finds out when
a run is due knows of them. They are recorded where they are set (`StartDelayed`, `TimeoutSet`) and when they come
(`StartDue`, `TimeoutReached`): a replay computes nothing, and a deploy changes nothing of a run that has begun.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from streamflow.events import AnyEvent, RunStarted, StartDelayed, StartDue, TimeoutReached, TimeoutSet
from streamflow.machine.open_work import START, TIME_OUT, OpenWork, OwnTime
from streamflow.model.durations import duration_text
from streamflow.model.record import Status
from streamflow.model.start_word import start_word

if TYPE_CHECKING:
    from streamflow.workflow.awaitable import Operation


def over_text(event: TimeoutReached) -> str:
    """Without the run's id, so that failures of one cause have one text."""
    return f"it had not ended within its time-out of {duration_text(event.ms)}"


class OwnTimes(OpenWork):
    """What is open in a run, and its own two times."""

    __slots__ = ()

    def ask_for(self, word: str) -> None:
        """What the start of this new run asks for besides its input, as its header has it."""
        asked = start_word(word)
        self.begins, self.time_limit = asked.begins, asked.timeout

    def _record_start(self, item: RunStarted) -> None:
        """The run has started; its code begins at once, or later."""
        is_delayed = self.begins > self.clock
        definition = self.app.workflows.get(item.workflow)
        if definition is not None and definition.version and not is_delayed:
            item = msgspec.structs.replace(item, version=definition.version)
        self._begin(item)
        self.effects.events.append(item)
        if is_delayed:
            self._note(StartDelayed(self.begins, self.time_limit))
        else:
            self.begins = 0
            self._limit_time()
        self._deliver(item, None, None, None)

    def _take_own_due(self, seq: int) -> None:
        if not (self.begins if seq == START else self.over_at):
            return  # it is on the schedule twice
        if seq == START:
            definition = self.app.workflows.get(self.workflow)
            event = StartDue(0 if definition is None else definition.version)
            self._note(event)
            self._limit_time()
            self._deliver(event, None, None, None)
        elif self._may_time_out():
            reached = TimeoutReached(self.time_limit)
            self._note(reached)
            self._timed_out(reached)
        else:
            self.over_at = 0

    def _limit_time(self) -> None:
        """The code begins now: from now on its time counts."""
        definition = self.app.workflows.get(self.workflow)
        limit = self.time_limit or (0 if definition is None else definition.timeout_ms)
        if limit:
            self._note(TimeoutSet(limit, self.at + limit))

    def _carry_time(self) -> None:
        """The history goes on behind this with what is still true of its time."""
        if self.over_at:
            self._note(TimeoutSet(self.time_limit, self.over_at))

    def _renew_time(self) -> None:
        """From here on the history is another run's, which has all of its time before it."""
        if self.over_at:
            self._note(TimeoutSet(self.time_limit, self.at + self.time_limit))

    def _stretch_time(self, since: int) -> None:
        """The code could not go on since then: that takes nothing from its time. Somebody may have paused it while it
        still was stuck, or paused otherwise: each ms counts once."""
        if self.over_at and since:
            began = self.over_at - self.time_limit  # or later: it may have been due while the run was stuck
            self._note(TimeoutSet(self.time_limit, self.over_at + max(0, self.at - max(since, began, self.went_on))))
        self.went_on = self.at

    def _note(self, event: OwnTime) -> None:
        self.effects.events.append(event)
        self._track(event)

    def _apply_own(self, event: OwnTime) -> None:
        if isinstance(event, StartDelayed):
            self.begins, self.time_limit = event.due, event.timeout
            self.status = Status.PENDING
            self.plan(event.due, START)
        elif isinstance(event, StartDue):
            self.begins = 0
            self.version, self.started = event.version, self.at
            self.status = Status.RUNNING
        elif isinstance(event, TimeoutSet):
            self.time_limit, self.over_at = event.ms, event.due
            self.plan(event.due, TIME_OUT)
        else:
            self.over_at = 0

    def _set_open_status(self) -> None:
        if self.stuck:
            self.status = Status.STUCK if self.paused_by is None else Status.PAUSED
        else:
            self.status = Status.RUNNING if self.started and not self.begins else Status.PENDING

    # --- for the machines -------------------------------------------------------------------------------------------

    def _deliver(self, event: AnyEvent, operation: Operation | None, value: object, error: Exception | None) -> None:
        """Deliver a fact to user code, which makes its decisions; keep it if the code can't run."""
        raise NotImplementedError

    def _may_time_out(self) -> bool:
        """Whether the code has not been interrupted otherwise: what cleans up is left alone."""
        return True

    def _timed_out(self, event: TimeoutReached) -> None:
        """Let the code clean up, and fail the run."""
        raise NotImplementedError
