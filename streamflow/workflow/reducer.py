"""What a reducer gets and gives: the public events and commands of `(state, event) -> Decision`.

Owns: these types. Must not: reduce (`machine/reducer.py` does). Called by: user code, the reducer's machine.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any

import msgspec

from streamflow.errors import Failure

# --- what a reducer gets --------------------------------------------------------------------------------------------


class Started(msgspec.Struct, frozen=True):
    """The first event. `input`: what the run was started with, as plain data."""

    input: Any


class Signal(msgspec.Struct, frozen=True):
    name: str
    value: Any


class Asked(msgspec.Struct, frozen=True):
    """Somebody waits for an answer: give `Answer(event.id, …)` or `Refuse(event.id, …)` as a command, now or later."""

    id: str
    name: str
    value: Any


class StepDone(msgspec.Struct, frozen=True):
    """`tag` is what `step.options(tag=…)` said; `result` has the type that the step's annotation says."""

    step: str
    seq: int
    tag: str
    result: Any


class StepFailure(msgspec.Struct, frozen=True):
    """A step failed for good, after its retries."""

    step: str
    seq: int
    tag: str
    failure: Failure


class TimerDone(msgspec.Struct, frozen=True):
    seq: int
    tag: str


class ChildDone(msgspec.Struct, frozen=True):
    workflow: str
    run_id: str
    seq: int
    tag: str
    result: Any


class ChildFailure(msgspec.Struct, frozen=True):
    """A child run failed, or was cancelled."""

    workflow: str
    run_id: str
    seq: int
    tag: str
    failure: Failure
    cancelled: bool = False


class CancelRequest(msgspec.Struct, frozen=True):
    """Somebody asked for the end. Unless the decision completes or fails the run, it ends as cancelled."""

    reason: str


Event = Started | Signal | Asked | StepDone | StepFailure | TimerDone | ChildDone | ChildFailure | CancelRequest

# --- what a reducer gives -------------------------------------------------------------------------------------------


class Complete(msgspec.Struct, frozen=True):
    """The run is completed, with this result."""

    result: Any = None


class Fail(msgspec.Struct, frozen=True):
    """The run has failed."""

    message: str


class Answer(msgspec.Struct, frozen=True):
    """The answer to the question with this id."""

    id: str
    result: Any = None


class Refuse(msgspec.Struct, frozen=True):
    """The question with this id gets no answer: its asker sees `AskRefused` with the reason."""

    id: str
    reason: str = ""


Command = Awaitable[Any] | Answer | Refuse | Complete | Fail
"""A call of a step or workflow, `sf.sleep(…)`, `sf.send_signal(…)` (none of them awaited), `Answer`, `Refuse`,
`Complete` or `Fail`."""


class Decision(msgspec.Struct, frozen=True):
    """The new state, and what to do.

    >>> sf.Decision(state, [fetch.options(tag="page")(url), sf.sleep(60, tag="late")])
    """

    state: Any
    commands: Sequence[Command] = ()
