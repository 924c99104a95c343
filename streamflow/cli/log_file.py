"""A log in a file: written by several processes, and bounded.

Owns: appending lines, and turning the file over when it is full. Must not: know the form of a line, read the file.
Called by: `cli.logs`.

A daemon, its worker beside it and the processes of their steps write one file: each line is one `write` at its end,
which no other one gets between. Who finds it full renames it to `<name>.1`, over what had that name before; the others
see at their next line that the name has another file.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

from streamflow.errors import UsageError

MAX_BYTES = 16 * 1024 * 1024
"""Of one file. With the one before it, a log takes at most twice as much."""


class LogFile(logging.Handler):
    """Appends to the file, which only this user can read if it is new. Raises `UsageError` if it can't be opened."""

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        super().__init__()
        self.path = path.expanduser().absolute()
        self._max_bytes = max_bytes
        try:
            self._descriptor = self._open()
        except OSError as error:
            raise UsageError(f"--log-file {path} can't be written: {error.strerror}") from None

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._write(f"{self.format(record)}\n".encode("utf-8", "backslashreplace"))
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._descriptor)
        super().close()

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _write(self, line: bytes) -> None:
        if not self._is_current():
            self._reopen()
        if (size := os.fstat(self._descriptor).st_size) and size + len(line) > self._max_bytes:
            self._turn_over()
        os.write(self._descriptor, line)

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self._descriptor))
        except FileNotFoundError:  # renamed a moment ago, or removed by somebody
            return False

    def _reopen(self) -> None:
        descriptor = self._open()
        os.close(self._descriptor)
        self._descriptor = descriptor

    def _turn_over(self) -> None:
        """Under a lock on the full file: a second process that finds it full sees then that it has been renamed."""
        import fcntl  # not on Windows, where `logs` can read a file all the same

        with contextlib.suppress(OSError):  # a file system without locks; the file grows rather than lose a line
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            if self._is_current():
                self.path.replace(older(self.path))
            self._reopen()  # closing the full one gives the lock back


def older(path: Path) -> Path:
    """What the file was renamed to when it was full."""
    return path.with_name(f"{path.name}.1")
