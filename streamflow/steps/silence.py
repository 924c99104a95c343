"""Which running steps have sent heartbeats and then none for long.

Owns: after how long a step is silent, and which of many are named. Must not: end one: it may be slow, and only a person
can know. Called by: daemons and workers, for their own heartbeats.

A step that has never called `sf.heartbeat` isn't silent, however long it runs: nothing was promised. One that has is,
after `silent_after` seconds without another call, and not before three times the longest pause that this attempt has
made so far, from its beginning to its first call included: a step that reports once an hour is silent after three.
"""

from __future__ import annotations

from collections.abc import Iterable

from streamflow.model.reports import StepBeat
from streamflow.steps.context import Running

PAUSES = 3
"""As many times its longest pause so far a step may be silent."""
MOST_SILENT = 10
"""Silent steps that a heartbeat names: it is read by many, once a second or more often."""
MOST_BEATS = 32
"""Steps of which the heartbeat of a worker says when they have called last: those for which that is the longest."""


def beats_of(attempts: Iterable[Running], silent_after: float, now: float) -> list[StepBeat]:
    """Of those that have called, the silent ones first, and the longest ago first. `silent_after`: seconds, 0 for
    never; `now`: that of `time.perf_counter`."""
    found: list[StepBeat] = []
    for running in attempts:
        if running.beat and not running.over:
            age = max(0.0, now - running.beat)
            silent = 0 < silent_after < age and age > PAUSES * running.pause
            job = running.job
            found.append(StepBeat(running.run_id, job.seq, job.attempt, job.step.name, round(age, 3), silent))
    return sorted(found, key=lambda beat: (not beat.silent, -beat.age))


def count_silent(beats: Iterable[StepBeat]) -> int:
    return sum(beat.silent for beat in beats)
