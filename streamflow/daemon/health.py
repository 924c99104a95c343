"""What a daemon adds to the report on its health: its ownership and its server.

Owns: what counts as a problem of those. Must not: look at other daemons (the status does). Called by: the report, in
the watch's thread.
"""

from __future__ import annotations

import time

from streamflow.daemon.membership import Membership
from streamflow.daemon.owner import Owner
from streamflow.daemon.troubles import Troubles
from streamflow.settings import Settings
from streamflow.store.connection import Store
from streamflow.text import plural

OVERDUE = 5.0
"""Seconds for which decisions have waited until they are as safe as the namespace's durability asks for."""
OWNS_WITHIN = 10.0
"""Seconds to acquire a shard, beyond `grace` and `dead_after`, for which its last owner may still have it."""


class Ownership:
    def __init__(
        self,
        settings: Settings,
        owner: Owner,
        membership: Membership,
        troubles: Troubles,
        store: Store,
    ) -> None:
        self._settings = settings
        self._owner = owner
        self._membership = membership
        self._troubles = troubles
        self._store = store
        self._fine = time.monotonic()
        """When it owned a shard last, or need not own one, or couldn't without the server (monotonic s)."""

    def problems(self) -> list[str]:
        settings, membership = self._settings, self._membership
        found: list[str] = []
        if membership.unconfirmed > settings.dead_after:
            found.append(f"the server has confirmed no heartbeat for {membership.unconfirmed:.1f} s")
        now = time.monotonic()
        if self._owner.shards or not membership.desired or membership.draining or found:
            self._fine = now
        elif now - self._fine > settings.grace + settings.dead_after + OWNS_WITHIN:
            found.append(f"it owns no shard, although it should own {membership.desired}")
        return found

    def warnings(self) -> list[str]:
        lost = self._owner.lost_writes.recent_count
        said: list[str] = []
        if lost:
            said.append(
                f"the server has lost or set back {plural(lost, 'run')} within the last hour: the log names them"
            )
        confirmation = self._store.confirmation
        for one in () if confirmation is None else confirmation.lacking(OVERDUE):
            at, of = (f" by {one.server}", " of its shards") if one.server else ("", "")
            said.append(
                f"nothing was confirmed{at} for {one.seconds:.0f} s (durability {one.level}): {one.text}, so "
                f"decisions{of} wait"
            )
        troubles = {**self._troubles.current(stops=True), **self._troubles.current(stops=False)}
        return said + [f"{subject} {text}" for subject, text in troubles.items()]
