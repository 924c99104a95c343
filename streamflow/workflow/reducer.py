"""What a reducer receives and returns: the public events and commands of `(state, event) -> Decision`.

Owns: these types. Must not: reduce (`machine/reducer.py` does). Called by: user code, the reducer's machine.

A reducer is called once for each event, in order, and returns the new state together with commands:

>>> @app.reducer
... def counter(state: Count, event: sf.Event) -> sf.Decision:
...     match event:
...         case sf.Signal(name="add", value=number):
...             return sf.Decision(Count(state.total + number))
...         case sf.Signal(name="end"):
...             return sf.Decision(state, [sf.Complete(state.total)])
...     return sf.Decision(state)

Fields that many events have: `seq` is the number of the decision that the event is the outcome of, from 1, unique in
the run; `tag` is the text that was given with `options(tag=…)` or `sf.sleep(…, tag=…)`, else empty; `failure` is a
`Failure` with kind, message, traceback, notes, fields, cause and members.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any

import msgspec

from streamflow.errors import Failure

# --- events: what a reducer receives ----------------------------------------------------------------------------------


class Started(msgspec.Struct, frozen=True):
    """The first event of a run. `input` is the argument that it was started with, as plain data, or None."""

    input: Any


class Signal(msgspec.Struct, frozen=True):
    """A signal to this run. `value` is plain data."""

    name: str
    value: Any


class Asked(msgspec.Struct, frozen=True):
    """A question from `run.ask(name, value)`. `value` is plain data, `id` 32 hex digits.

    Return `Answer(event.id, …)` or `Refuse(event.id, …)` as a command, for this event or a later one.
    """

    id: str
    name: str
    value: Any


class StepDone(msgspec.Struct, frozen=True):
    """A step completed. `step` is its name, `result` has the type of the step's return annotation."""

    step: str
    seq: int
    tag: str
    result: Any


class StepFailure(msgspec.Struct, frozen=True):
    """A step failed after its retries. `step` is its name."""

    step: str
    seq: int
    tag: str
    failure: Failure


class TimerDone(msgspec.Struct, frozen=True):
    """A timer of `sf.sleep(…, tag=…)` fired."""

    seq: int
    tag: str


class ChildDone(msgspec.Struct, frozen=True):
    """A child run completed. `result` has the type of the workflow's return annotation."""

    workflow: str
    run_id: str
    seq: int
    tag: str
    result: Any


class ChildFailure(msgspec.Struct, frozen=True):
    """A child run failed, or was cancelled if `cancelled` is true."""

    workflow: str
    run_id: str
    seq: int
    tag: str
    failure: Failure
    cancelled: bool = False


class CancelRequest(msgspec.Struct, frozen=True):
    """Somebody asked the run to cancel. Unless the decision completes or fails the run, it ends as cancelled.

    `reason` is the text that the canceller gave.
    """

    reason: str


Event = Started | Signal | Asked | StepDone | StepFailure | TimerDone | ChildDone | ChildFailure | CancelRequest
"""Any event that a reducer receives."""

# --- commands: what a reducer returns ---------------------------------------------------------------------------------


class Complete(msgspec.Struct, frozen=True):
    """Complete the run with this result. Commands after it are ignored."""

    result: Any = None


class Fail(msgspec.Struct, frozen=True):
    """Fail the run; the failure's kind is `Fail`. Commands after it are ignored."""

    message: str


class Answer(msgspec.Struct, frozen=True):
    """Answer the question with this id (`Asked.id`)."""

    id: str
    result: Any = None


class Refuse(msgspec.Struct, frozen=True):
    """Refuse the question with this id: `run.ask` raises `AskRefused` with the reason."""

    id: str
    reason: str = ""


Command = Awaitable[Any] | Answer | Refuse | Complete | Fail
"""A call of a step or workflow, `sf.sleep(…)`, `sf.send_signal(…)` (none of them awaited), `Answer`, `Refuse`,
`Complete` or `Fail`."""


class Decision(msgspec.Struct, frozen=True):
    """What a reducer returns: the new state, and the commands to run, in order.

    >>> sf.Decision(state, [fetch.options(tag="page")(url), sf.sleep(60, tag="late")])
    """

    state: Any
    commands: Sequence[Command] = ()
