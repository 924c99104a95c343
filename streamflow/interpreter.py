"""Which command starts another Python: the first words of every child process of ours.

Owns: that no module of the directory in which it is started shadows one of ours. Must not: start it.
Called by: `embedded/child.py` (daemons and workers of demo, bench and dev), the demo's count, the processes of steps,
the process for heartbeats.
"""

from __future__ import annotations

import sys

from streamflow import binary


def python_command(*words: str) -> list[str]:
    """The command that runs this Python with these arguments, as `-m streamflow …` or a script.

    A child is started in the directory of the user, where a file may have the name of any module: `-P` keeps that
    directory, and that of a script of ours, out of its search path. The Python of the single binary also ignores
    `PYTHONHOME`, `PYTHONPATH` and the user's own packages, as its parent does: they belong to other Pythons.
    """
    return [sys.executable, "-P" if binary.root() is None else "-I", *words]
