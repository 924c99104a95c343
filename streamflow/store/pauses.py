"""What is paused in a namespace: nothing new of it begins, and what is under way ends.

Owns: the notes on the server, and who wrote them. Must not: stop anything (workers and daemons look at the notes with
their heartbeats). Called by: the client, workers, daemons, the status.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec

from streamflow.store.connection import Call
from streamflow.store.keys import NamespaceKeys
from streamflow.text import recordable

MAX_WORDS = 1000
"""Characters of who has paused something, and of why."""

QUEUE = "queue:"
"""What the names of notes about queues begin with..."""
WORKFLOW = "workflow:"
"""...and those about workflows."""


class Pause(msgspec.Struct, frozen=True):
    """That something is paused. `at`: since when, ms since 1970; `by`: who wanted it, as `kim@host`; `reason`: why."""

    at: int
    by: str = ""
    reason: str = ""

    def says(self) -> str:
        """`by kim@host: the bank is down`; empty if neither is known."""
        return ": ".join(filter(None, [f"by {self.by}" if self.by else "", self.reason]))

    def in_brackets(self) -> str:
        """` (by kim@host: the bank is down)`, to go behind something else; empty if neither is known."""
        return f" ({words})" if (words := self.says()) else ""


def new_note(reason: str, by: str) -> bytes:
    """A note that somebody pauses something now."""
    return msgspec.json.encode(Pause(time.time_ns() // 1_000_000, *said(by, reason)))


def said(by: str, reason: str) -> tuple[str, str]:
    """Who pauses something, and why, as they are kept."""
    return recordable(by, MAX_WORDS), recordable(reason, MAX_WORDS)


def read_note(note: bytes) -> Pause:
    """A note that nobody can read still pauses."""
    try:
        return msgspec.json.decode(note, type=Pause)
    except msgspec.MsgspecError:
        return Pause(0)


def read_pauses(keys: NamespaceKeys) -> Call[Any]:
    """The call whose answer `paused_queues` and `paused_workflows` understand."""
    return Call.plain("HGETALL", keys.paused)


def paused_queues(answer: Mapping[bytes, bytes]) -> dict[str, Pause]:
    """By queue, sorted."""
    return _noted(answer, QUEUE)


def paused_workflows(answer: Mapping[bytes, bytes]) -> dict[str, Pause]:
    """By workflow, sorted."""
    return _noted(answer, WORKFLOW)


def _noted(answer: Mapping[bytes, bytes], kind: str) -> dict[str, Pause]:
    names = {what.decode(errors="replace"): note for what, note in sorted(answer.items())}
    return {name.removeprefix(kind): read_note(note) for name, note in names.items() if name.startswith(kind)}
