"""Events that a receiver has refused to the end: lines of a file, from which they can be sent again.

Owns: the file, also when one process adds to it while another one sends from it. Must not: send.
Called by: `webhook.py`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import msgspec

from streamflow.errors import UsageError
from streamflow.sinks.rows import json_bytes
from streamflow.sinks.sink import TargetError


class DeadLetter(msgspec.Struct, frozen=True):
    """`at` is when it was given up, `reason` what the receiver did at last, `body` what is posted."""

    id: str
    run_id: str
    at: str
    attempts: int
    reason: str
    body: Any


class DeadLetters:
    """`path`: one JSON object a line. While they are sent again, they are in the file with `.sending` behind its name:
    a process that is killed meanwhile leaves them there, and the next one begins with them."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._sending = Path(f"{path}.sending")

    def check(self) -> None:
        """Raises `UsageError` if nothing can be added: better now than when there is something to add."""
        try:
            with self._locked():
                pass
        except OSError as error:
            raise UsageError(f"can't write --dead-letters {self._path}: {error.strerror}") from None

    def add(self, letter: DeadLetter) -> None:
        """It is on the disk when this returns."""
        try:
            with self._locked() as file:
                data = json_bytes(msgspec.structs.asdict(letter)) + b"\n"
                end = os.fstat(file).st_size
                if end and os.pread(file, 1, end - 1) != b"\n":  # killed in the middle of a line
                    data = b"\n" + data
                os.write(file, data)
                os.fsync(file)
        except OSError as error:
            raise TargetError(f"can't write the dead letters to {self._path}: {error.strerror}") from error

    def take(self) -> list[DeadLetter]:
        """All that are there; they stay on the disk until `done`. Lines that can't be read are left out."""
        if not self._sending.exists():
            with self._locked() as file:
                if not os.fstat(file).st_size:
                    return []
                self._path.rename(self._sending)
        letters: list[DeadLetter] = []
        for line in self._sending.read_bytes().splitlines():
            with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                letters.append(msgspec.json.decode(line, type=DeadLetter))
        return letters

    def done(self) -> None:
        self._sending.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self) -> Generator[int]:
        while True:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                if self._path.exists() and os.path.samestat(os.fstat(file), self._path.stat()):
                    yield file
                    return
            finally:
                os.close(file)
