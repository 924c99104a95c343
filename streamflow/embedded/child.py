"""Starting children of streamflow: the one way to a new Python that imports the same streamflow.

Owns: the environment of such a process, its log file, and that nothing secret is in its command line.
Must not: wait for it. Called by: the daemons of demo, bench and dev, the demo's count.

`python_command` keeps the directory in which a child is started out of its search path. Its app is found all the same,
by `--app`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import streamflow
from streamflow import binary
from streamflow.interpreter import python_command


def own_environ(settings: Mapping[str, object] | None = None, source: Path | None = None) -> dict[str, str]:
    """The environment for a child process that imports the same streamflow, however this process was started.

    `settings`: fields of `Settings` and options of the log, which override those of this process. `source`: the
    directory of another streamflow that it imports.
    """
    above = str(source or Path(streamflow.__file__).parent.parent)
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]  # '' is where it is started
    if binary.root() is None and above not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        paths.insert(0, above)
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    environ.update({f"STREAMFLOW_{name.upper()}": str(value) for name, value in (settings or {}).items()})
    return environ


def private_file(path: Path) -> BinaryIO:
    """Open for appending a file that only this user can read, also where it exists already."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.fchmod(descriptor, 0o600)
    return os.fdopen(descriptor, "ab")


def start_python(
    words: list[str], log: Path | None, settings: Mapping[str, object], source: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start this Python with these arguments, in a session of its own: Ctrl-C goes to this process only, which ends its
    children itself. Its output is appended to `log`; None: it goes where that of this process does. What may be secret
    belongs into `settings`. `source`: the directory of another streamflow that it imports."""
    with contextlib.nullcontext() if log is None else private_file(log) as output:
        return subprocess.Popen(
            python_command(*words),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=own_environ(settings, source),
            start_new_session=True,
        )
