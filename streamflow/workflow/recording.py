"""PUBLIC: `sf.record`: numbers of a run's code and of its steps, for views.

Owns: what may be recorded, and what one attempt of a step has recorded so far.
Must not: commit anything: the machine makes events of it, with the transition or with the attempt's outcome.
Called by: user code in workflows, reducers and steps; the executor, processes and the sandbox (which take what attempts
have recorded), wire (which checks it).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any, cast

import msgspec

from streamflow.errors import UsageError
from streamflow.model.names import check_name
from streamflow.text import recordable, type_name
from streamflow.workflow.awaitable import active
from streamflow.workflow.log_fields import attempt

MAX_RECORDS = 200
"""Of one attempt, together with..."""
MAX_BYTES = 16 * 1024
"""...these: names, labels and values. Each is an event of the run's history."""
MAX_LABELS = 8
MAX_LABEL = 128
"""Characters of a label's value."""
LARGEST = 2**53
"""A number is exact up to here in every reader, also in JSON."""

_LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


class Record(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One call of `sf.record`."""

    name: str
    value: int | float
    labels: dict[str, str] = {}

    @property
    def size(self) -> int:
        return 16 + len(self.name) + sum(len(name) + len(value) + 2 for name, value in self.labels.items())


class Recording:
    """What one attempt of a step has recorded. Any thread of the step may add to it."""

    __slots__ = ("_bytes", "_records")

    def __init__(self) -> None:
        self._records: list[Record] = []
        self._bytes = 0

    def add(self, record: Record, step: str) -> None:
        """Raises `UsageError` if that is too much for one attempt."""
        size = self._bytes + record.size
        if len(self._records) >= MAX_RECORDS or size > MAX_BYTES:
            raise UsageError(
                f"an attempt of step {step} has recorded {len(self._records)} values in {self._bytes:,} bytes, and the "
                f"limits are {MAX_RECORDS} and {MAX_BYTES:,}: add numbers up, and record the sum"
            )
        self._bytes = size
        self._records.append(record)

    def taken(self) -> tuple[Record, ...]:
        return tuple(self._records)


def checked_record(name: str, value: float, labels: dict[str, Any]) -> Record:
    """Raises `InvalidName` and `UsageError` for what views can't count."""
    check_name("record", name)
    if isinstance(value, bool) or not isinstance(value, int | float):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"record {name}: the value must be an int or float, got {type_name(value)}")
    if not _is_number(value):
        raise UsageError(f"record {name}: the value must be a finite number up to 2**53, got {_shown(value)}")
    if len(labels) > MAX_LABELS:
        raise UsageError(f"record {name} has {len(labels)} labels; the limit is {MAX_LABELS}")
    return Record(name, value, {label: _checked_label(name, label, text) for label, text in labels.items()})


def fits(records: Iterable[Record]) -> bool:
    """Whether what another process says that an attempt has recorded is within the limits."""
    records = tuple(records)
    return (
        len(records) <= MAX_RECORDS
        and sum(record.size for record in records) <= 2 * MAX_BYTES
        and all(_is_number(record.value) and len(record.labels) <= MAX_LABELS for record in records)
    )


def _is_number(value: float) -> bool:
    return -LARGEST <= value <= LARGEST and math.isfinite(value)  # of a large int `isfinite` raises


def _shown(value: float) -> str:
    """Python doesn't print an int of more than 4,300 digits."""
    return f"an int of {value.bit_length():,} bits" if isinstance(value, int) else repr(value)


def _checked_label(record: str, name: str, value: object) -> str:
    if not _LABEL.fullmatch(name):
        raise UsageError(f"record {record}: label {name[:70]!a} must have letters, digits and _, at most 64")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UsageError(f"record {record}: label {name} must be a str or int, got {type_name(value)}")
    if isinstance(value, int) and not _is_number(value):
        raise UsageError(f"record {record}: label {name} must be a str, or an int up to 2**53, got {_shown(value)}")
    text = str(value)
    if len(text) > MAX_LABEL:
        raise UsageError(f"record {record}: label {name} has {len(text):,} characters; the limit is {MAX_LABEL}")
    return recordable(text, 8 * MAX_LABEL)


def record(name: str, value: float, /, **labels: str | int) -> None:
    """Record a number for views, as `sf.record("tokens", 1234, model="large")`: see `app.view`.

    In a workflow or reducer it is an event of the current transition, and no decision: a replay doesn't record it
    again, and the call may come, go or change at any deploy. What code records again because the run was retried from
    before that counts once. In a step it is committed with the attempt's outcome, whether that succeeded or failed,
    once for each outcome that is recorded; an attempt that ends with its process has recorded nothing. A step may call
    it from any task or thread that has its context, and with `process=True`.

    `name` and `labels` say what is counted. A label's value is a str of at most 128 characters, or an int; at most 8
    labels. An attempt may record 200 values in 16 KB, a transition as much as fits into it.

    Where a step's function is called as a plain one, in a test or script, the arguments are only checked. Raises
    `InvalidName`, and `UsageError` for a value that isn't a finite number up to 2**53, for other labels, and for too
    many values.

    >>> @app.step
    ... async def ask_model(prompt: str) -> str:
    ...     answer = await models.ask("large", prompt)
    ...     sf.record("tokens", answer.tokens, model="large")
    ...     return answer.text
    """
    checked = checked_record(name, value, labels)
    running = cast("Any", attempt.get(None))
    if running is not None:
        if running.recording is None:
            running.recording = Recording()
        running.recording.add(checked, running.job.step.name)
    elif (machine := active.get()) is not None:
        machine.record(checked)
