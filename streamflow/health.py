"""The health of one daemon, worker or sink, in a file that `streamflow health` reads on the same machine.

Owns: where the file is, who may write and read it, and when a report is too old. Must not: judge (each process
says what is wrong), ask a server. Called by: daemon and worker (write it, from the watch's thread), sinks, the command.

A check that asks the process itself gets no answer when it hangs, and one that asks the server says little about this
process. So the thread that watches over the event loop writes down every two seconds what it knows; a report that stays
old is a problem by itself. The process holds a lock on its file: a file without one is that of a dead process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
import time
from pathlib import Path
from typing import Literal

import msgspec

from streamflow.errors import StreamflowError

EVERY = 2.0
"""Seconds between two reports."""
STALE = 10.0
"""Seconds without a report after which a process counts as hung."""
MAX_BYTES = 64 * 1024


class Health(msgspec.Struct, kw_only=True):
    """One report. `problems` are those of this process, against which a restart helps, and `outside` those of its
    server and its shards, against which it doesn't. Both make it unhealthy, `warnings` don't."""

    kind: Literal["daemon", "worker", "sink"]
    name: str
    namespace: str
    pid: int
    at: float
    """Monotonic s, which all processes of a machine share."""
    problems: list[str] = []
    outside: list[str] = []
    warnings: list[str] = []

    @property
    def healthy(self) -> bool:
        return not self.problems and not self.outside

    def judged(self, *, live: bool) -> Judged:
        """`live`: whether a restart would help is all that counts, and what is outside is a warning."""
        return Judged(
            healthy=not self.problems if live else self.healthy,
            kind=self.kind,
            name=self.name,
            namespace=self.namespace,
            pid=self.pid,
            at=self.at,
            problems=self.problems if live else [*self.problems, *self.outside],
            warnings=[*self.outside, *self.warnings] if live else self.warnings,
        )


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """A report as it is shown: each thing that is wrong is a problem or a warning."""

    healthy: bool
    kind: Literal["daemon", "worker", "sink"]
    name: str
    namespace: str
    pid: int
    at: float
    problems: list[str]
    warnings: list[str]


class HealthFile:
    """The report of this process; the file goes with it. One that can't be written is said once, by `OSError`."""

    def __init__(self, name: str) -> None:
        self._path = reports() / f"{name}.json"
        self._file = -1
        self._written = -EVERY

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self._written >= EVERY

    def write(self, health: Health) -> None:
        self._written = time.monotonic()
        if self._file < 0:
            _make_directory(self._path.parent)
            while self._file < 0:
                file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                fcntl.flock(file, fcntl.LOCK_EX)
                if os.fstat(file).st_nlink:
                    self._file = file
                else:  # a reader found it without a lock, and has deleted it
                    os.close(file)
        data = msgspec.json.encode(health)[:MAX_BYTES]
        os.ftruncate(self._file, os.pwrite(self._file, data, 0))

    def close(self) -> None:
        if self._file >= 0:
            with contextlib.suppress(OSError):
                self._path.unlink()
            os.close(self._file)
            self._file = -1


def read_all(pid: int | None = None) -> list[Health]:
    """The reports of all daemons and workers of this user on this machine, or of one process. Files that dead processes
    have left are deleted."""
    found: list[Health] = []
    directory = reports()
    if not directory.is_dir():
        return found
    _check_owner(directory)
    for path in sorted(directory.glob("*.json")):
        health = _read(path)
        if health is not None and pid in (None, health.pid):
            found.append(health)
    return found


def _read(path: Path) -> Health | None:
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None  # it has just ended
    try:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
            return None
        health = _decode(file)
    finally:
        os.close(file)
    age = time.monotonic() - health.at
    if age > STALE:
        health.problems.insert(
            0, f"no report for {age:.0f} s: the process is stopped, or code holds on to its interpreter"
        )
    return health


def _decode(file: int) -> Health:
    """It may be in the middle of being written."""
    for _ in range(20):
        with contextlib.suppress(msgspec.DecodeError):
            return msgspec.json.decode(os.pread(file, MAX_BYTES, 0), type=Health)
        time.sleep(0.01)
    raise StreamflowError("the report of a process can't be decoded: it may be another version's")


def reports() -> Path:
    """The directory of the reports of this user's processes, which may not be there yet."""
    return Path(tempfile.gettempdir()) / f"streamflow-{os.getuid()}"


def _make_directory(directory: Path) -> None:
    directory.mkdir(mode=0o700, exist_ok=True)
    _check_owner(directory)


def _check_owner(directory: Path) -> None:
    """Everybody may write to the directory for temporary files: don't use what somebody else has put there."""
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise OSError(f"{directory} is not a directory that only this user can write to")
