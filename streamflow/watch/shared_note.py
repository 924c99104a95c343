"""A piece of memory in which the process beside a daemon sees whose code the daemon executes.

Owns: that memory, and a file for the stacks of all threads. Must not: decide anything (`store/heartbeat_child.py`
does). Called by: the daemon (creates it), the owner's note and the watch (write).

Nothing else can be seen of a process whose interpreter is held by code in C: no thread of it runs any more.
"""

from __future__ import annotations

import mmap
import os
import struct

from streamflow.model.names import MAX_ID

FORMAT = f"<ddq{MAX_ID}s"
"""When the watch looked last, since when the code of a run has been executed (monotonic s; 0: none is), and that run's
shard and id."""
_CODE = struct.Struct(FORMAT.replace("d", "", 1))
_TIME = struct.Struct("<d")


class SharedNote:
    """Raises `OSError` where the system can't."""

    def __init__(self) -> None:
        self.file = os.memfd_create("streamflow-note", os.MFD_CLOEXEC)
        os.ftruncate(self.file, struct.calcsize(FORMAT))
        self._memory = mmap.mmap(self.file, struct.calcsize(FORMAT))
        self.stack = os.memfd_create("streamflow-stack", os.MFD_CLOEXEC)

    def code_of(self, run_id: str, shard: int, since: float) -> None:
        if run_id:
            _CODE.pack_into(self._memory, _TIME.size, since, shard, run_id.encode())
        else:
            _TIME.pack_into(self._memory, _TIME.size, 0.0)

    def looked(self, now: float) -> None:
        _TIME.pack_into(self._memory, 0, now)
