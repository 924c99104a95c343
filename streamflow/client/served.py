"""Which workflows no daemon has any more, although others run.

Owns: after how long a workflow counts as one of earlier daemons only. Must not: read anything.
Called by: listings, the status.
"""

from __future__ import annotations

from collections.abc import Mapping

UNSERVED_MS = 120_000
"""A workflow was last had so much longer ago than any other: no daemon has it any more. Daemons note theirs four times
as often (`daemon/registration.py`). If no daemon runs at all, none is behind."""


def unserved_ms(seen: Mapping[bytes, bytes], now: int) -> dict[str, int]:
    """By workflow that no daemon has any more, for how many ms. `seen`: the namespace's `served`; `now`: the server's
    clock. Notes from before that was set back say nothing about others until their time has come."""
    times = {name.decode(errors="replace"): int(ms) for name, ms in seen.items() if ms.isdigit()}
    newest = max((at for at in times.values() if at <= now + UNSERVED_MS // 2), default=0)
    return {name: newest - at for name, at in times.items() if newest - at > UNSERVED_MS}
