"""The record of code that took a daemon or worker down: who goes on with its run is warned.

Owns: how such a record is made. Must not: send it. Called by: daemon and worker, in the watch's thread, before the
process exits.
"""

from __future__ import annotations

from typing import Any

import msgspec

from streamflow.store.connection import Call
from streamflow.store.keys import NamespaceKeys
from streamflow.watch.watch import Culprit
from streamflow.wire import Suspect

REMEMBERED_S = 86_400
"""Seconds for which a record stays on the server."""
PROVEN = 2
"""Deaths that code of a run begins with which was seen blocking: the death that follows is its third, and it is parked.
A step begins without any: it gets its usual tries."""


def suspect_record(keys: NamespaceKeys, member: str, shard: int, culprit: Culprit) -> Call[Any]:
    suspect = Suspect(shard, culprit.run_id, culprit.seq, 0 if culprit.seq else PROVEN, culprit.reason)
    return Call.plain("SET", keys.suspect(member), msgspec.json.encode([suspect]), "EX", REMEMBERED_S)
