"""Whether this is the single binary: streamflow and a Python of its own, unpacked from one file.

Owns: what that file says of itself, and that nothing deletes the unpacked directory while it is in use.
Must not: know how it was built or unpacked (`binary/` in the repository).
Called by: `interpreter.py`, the command line.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

DETAILS = "streamflow-binary.json"
"""At the root of the unpacked directory: what is in it, and the licences of that."""


def root() -> Path | None:
    """The unpacked directory, or None in an ordinary installation."""
    directory = Path(sys.prefix)
    return directory if (directory / DETAILS).exists() else None


def details() -> dict[str, Any]:
    """What the file says of itself; empty in an ordinary installation."""
    directory = root()
    return {} if directory is None else json.loads((directory / DETAILS).read_text())


def hold() -> None:
    """Lock the unpacked directory until this process ends: systemd-tmpfiles passes over what is locked, where it may be
    below /tmp or /var/tmp. A daemon runs for weeks, and imports some modules late."""
    directory = root()
    if directory is None:
        return
    import fcntl

    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # stays open
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # somebody is deleting it, or the file system has no locks: then it starts without one
        os.close(descriptor)
