"""Forking a run: a new one that shares the beginning of its history.

Owns: the ids of forks, reading what a fork shares, and whether a run that has its id already is that fork.
Must not: send anything (`client.py` does), decide where the history is cut (`machine/fork_point.py`).
Called by: `client.py`, `run.py`; the sandbox.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence

from msgspec import Raw

from streamflow.errors import Failure, NotForked, RunConflict
from streamflow.events import RunForked, decode_history, decode_transition
from streamflow.machine.fork_point import CannotFork, fork_of
from streamflow.model import codec
from streamflow.model.attributes import FORKED_FROM
from streamflow.model.record import Header, decode_header
from streamflow.store.pauses import Pause
from streamflow.text import recordable
from streamflow.wire import decode_fork, is_fork

MAX_BY = 64
"""Bytes of who wants the fork..."""
MAX_REASON = 4096
"""...and of why."""
MAX_NAMED = 200
"""Characters of an id up to which its forks have it in theirs."""
_OF_FORK = re.compile(r"\.fork-[0-9a-f]{12}$")


def fork_id(run_id: str, name: str = "") -> str:
    """The id of a fork of this run that isn't given one: the run's, and behind it 12 characters. With a `name`, another
    one for each fork that is wanted, always the same."""
    own = hashlib.blake2b(f"{run_id} {name}".encode(), digest_size=6).hexdigest() if name else os.urandom(6).hex()
    base = _OF_FORK.sub("", run_id)  # a fork of a fork: ids must not grow
    return f"{base if len(base) <= MAX_NAMED else base[:MAX_NAMED]}.fork-{own}"


def beginning(
    run_id: str, record: Sequence[bytes], at: int | None, payload: bytes | None, by: str, reason: str
) -> RunForked:
    """How a fork begins of the run with this record (header, state, transitions). Raises `NotForked`."""
    line, state, *elements = record
    header = decode_header(line)
    try:
        if state and elements:
            raise CannotFork(
                "Reducer", f"run {run_id} is a reducer: its state isn't a history, so it has no fork. Start a new run"
            )
        return fork_of(
            run_id,
            header,
            decode_history(elements),
            at,
            None if payload is None else Raw(payload),
            recordable(by, MAX_BY),
            recordable(reason, MAX_REASON),
        )
    except CannotFork as error:
        raise NotForked(run_id, error.failure) from None


def check_not_paused(fork: RunForked, pause: Pause | None) -> None:
    """Raises `NotForked` if the workflow is paused: what is open in a fork begins with it."""
    if pause is not None:
        text = f"workflow {fork.workflow} of run {fork.of} is paused {pause.says()}".rstrip() + ": resume it first"
        raise NotForked(fork.of, Failure("Paused", text))


def check_same(run_id: str, record: Sequence[bytes], wanted: RunForked, *, anywhere: bool) -> None:
    """`run_id` exists, with this record: the fork that is wanted may have been started before. `anywhere`: it was not
    said from where it goes on. Raises `RunConflict` if it is another run."""
    if not record:  # it was forgotten meanwhile
        return
    header = decode_header(record[0])
    found = _fork_in(header, record)
    if found is None:
        is_same = not header.version or header.attributes.get(FORKED_FROM) == wanted.of
    else:
        is_same = (found.of, found.of_created) == (wanted.of, wanted.of_created) and (
            anywhere or (found.shared, found.kept) == (wanted.shared, wanted.kept)
        )
    if not is_same:
        raise RunConflict(
            f"the id {run_id} belongs to a run that isn't this fork of {wanted.of}: use another id", run_id
        )


def _fork_in(header: Header, record: Sequence[bytes]) -> RunForked | None:
    """How a run began that is a fork; None if it isn't, or its record doesn't say it (any more)."""
    try:
        if not header.version:
            return decode_fork(record[1], header) if is_fork(record[1]) else None
        events = decode_transition(record[2]).events
    except (*codec.DECODE_ERRORS, IndexError):
        return None
    return events[0] if events and isinstance(events[0], RunForked) else None


def input_of(args: Sequence[object]) -> bytes:
    """Raises `PayloadInvalid`, `PayloadTooLarge`."""
    return codec.encode(tuple(args), "input of a fork")
