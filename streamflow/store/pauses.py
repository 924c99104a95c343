"""What is paused in a namespace: nothing new of it begins, and what is under way ends.

Owns: the notes on the server, and who wrote them. Must not: stop anything (workers look at the notes with their
heartbeats). Called by: the client, workers, the status.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from streamflow.store.connection import Call
from streamflow.store.keys import NamespaceKeys

QUEUE = "queue:"
"""What the names of notes about queues begin with."""


class Pause(msgspec.Struct, frozen=True):
    """That something is paused. `at`: since when, ms since 1970; `by`: who wanted it, as `kim@host`; `reason`: why."""

    at: int
    by: str = ""
    reason: str = ""

    def says(self) -> str:
        """`by kim@host: the bank is down`; empty if neither is known."""
        return ": ".join(filter(None, [f"by {self.by}" if self.by else "", self.reason]))


def read_pauses(keys: NamespaceKeys) -> Call[Any]:
    """The call whose answer `paused_queues` understands."""
    return Call.plain("HGETALL", keys.paused)


def paused_queues(answer: Mapping[bytes, bytes]) -> dict[str, Pause]:
    """By queue, sorted. A note that nobody can read still pauses."""
    found: dict[str, Pause] = {}
    for what, note in sorted(answer.items()):
        name = what.decode(errors="replace")
        if name.startswith(QUEUE):
            try:
                found[name.removeprefix(QUEUE)] = msgspec.json.decode(note, type=Pause)
            except msgspec.MsgspecError:
                found[name.removeprefix(QUEUE)] = Pause(0)
    return found
