"""The letter and the colour by which a daemon is recognised in the list of daemons and on the map of shards.

Owns: the order in which daemons get them. Must not: draw. Called by: `daemons.py`, `shards.py`.
"""

from __future__ import annotations

from typing import NamedTuple

from streamflow.screen.style import LETTERS, OWNERS
from streamflow.status.model import DaemonRow, NamespaceStatus


class Owner(NamedTuple):
    daemon: DaemonRow
    letter: str
    """`+` when there are more daemons than letters."""
    colour: str


def owners_of(status: NamespaceStatus) -> list[Owner]:
    """All daemons, by name."""
    daemons = sorted(status.daemons, key=lambda daemon: (daemon.name, daemon.id))
    return [
        Owner(
            daemon,
            LETTERS[position] if position < len(LETTERS) else "+",
            OWNERS[position % len(OWNERS)],
        )
        for position, daemon in enumerate(daemons)
    ]
