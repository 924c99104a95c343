"""Events as JSON Lines: into a file, into a directory with rotation, or to stdout.

Owns: the files, what a crash leaves of them, and that no event is in them twice. Must not: acknowledge anything.
Called by: `streamflow.sinks`, `streamflow sink jsonl`.

Each line has the event's id. A process that is killed in the middle leaves whole lines and perhaps the beginning of
one. That one is cut when the file is opened again, and of the whole ones the last 16 MiB are read: what comes again and
is in there is not written again.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import stat
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import anyio
import anyio.to_thread
import msgspec
from msgspec import Meta

from streamflow.errors import UsageError
from streamflow.sinks.rows import json_bytes, row_of
from streamflow.sinks.sink import Gone, Sink, TargetError
from streamflow.text import plural, visible_json

if TYPE_CHECKING:
    from streamflow.client.subscription import EventBatch

TAIL = 16 * 1024 * 1024
"""Bytes before the end of what was written in which an event that comes again is recognised."""
KNOWN = 100_000
"""Ids that are remembered: as many events as come again when a server has lost its last seconds."""
CHUNK = 1024 * 1024
FIRST_BYTES = b'{"id":"'
"""How each line begins."""
NAME = "events-{}.jsonl"
_NAMED = re.compile(r"events-(\d{8}T\d{6}\.\d{6}Z)\.jsonl")
_STAMP = "%Y%m%dT%H%M%S.%fZ"

_log = logging.getLogger("streamflow.sinks.jsonl")


class _Line(msgspec.Struct):
    id: str


class Jsonl(Sink):
    """Append each event as a line of JSON to a file, to files in a directory, or to stdout.

    TARGET is a file, a directory (one that exists, or a name with a slash at its end) in which a new file begins by
    size and by age, or - for stdout. Lines are on the disk before they are acknowledged. After a crash a line that was
    torn is cut, and no event is written twice. One process writes to a file or directory at a time.

    \b
    Example:
      streamflow sink jsonl /var/lib/streamflow/events/
    """

    def __init__(
        self,
        target: Annotated[str, Meta(title="TARGET")],
        *,
        max_size: Annotated[
            int, Meta(ge=1, title="MIB", description="In a directory: MiB after which a new file begins")
        ] = 256,
        max_age: Annotated[
            float, Meta(gt=0, title="SECONDS", description="In a directory: seconds after which a new file begins")
        ] = 3600.0,
    ) -> None:
        self.target = target
        self.max_bytes = max_size * 1024 * 1024
        self.max_age = max_age
        self._files: _Files | None = None

    async def open(self) -> None:
        if self.target == "-":
            self._files = _Stdout()
        elif self.target.endswith("/") or await anyio.Path(self.target).is_dir():
            self._files = _Directory(Path(self.target), self.max_bytes, self.max_age)
        else:
            self._files = _Files(Path(self.target))
        await anyio.to_thread.run_sync(self._files.open)

    async def write(self, batch: EventBatch) -> None:
        assert self._files is not None, "open() comes first"
        await anyio.to_thread.run_sync(self._files.write, batch)

    async def close(self) -> None:
        if self._files is not None:
            await anyio.to_thread.run_sync(self._files.close)
            self._files = None


class _Files:
    """One file, which is locked while it is open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = -1
        self._size = 0
        """Bytes of whole lines."""
        self._known: dict[str, None] = {}

    def open(self) -> None:
        self._open(self.path)

    def write(self, batch: EventBatch) -> None:
        fresh = [event for event in batch.events if event.id not in self._known]
        data = b"".join([json_bytes(row_of(event)) + b"\n" for event in fresh])
        if not data:
            return
        self._before(len(data))
        try:
            _write_all(self._file, data)
            os.fsync(self._file)
        except OSError as error:
            with contextlib.suppress(OSError):  # else the next open() cuts it
                os.ftruncate(self._file, self._size)
            raise TargetError(f"can't write {self.path}: {error.strerror}") from error
        self._size += len(data)
        self._remember(event.id for event in fresh)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _before(self, size: int) -> None:
        """So many bytes are about to be written."""

    def _open(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
            if not stat.S_ISREG(os.fstat(self._file).st_mode):
                raise UsageError(f"{path} is not a regular file: use - for stdout")
            _lock(self._file, path)
            _sync_directory(path.parent)
            self._cut_torn_line(path)
            self._remember(_ids(self._file, self._size))
        except OSError as error:
            raise TargetError(f"can't open {path}: {error.strerror}") from error
        self.path = path

    def _cut_torn_line(self, path: Path) -> None:
        end = os.fstat(self._file).st_size
        start = _last_line(self._file, end)
        torn = os.pread(self._file, len(FIRST_BYTES), start)
        if torn and not FIRST_BYTES.startswith(torn.strip(b"\0")):
            raise UsageError(f"{path} doesn't end as this sink has left it: its last line is not of an event")
        if torn:
            os.ftruncate(self._file, start)
            _log.info("cut %s of a torn line at the end of %s", plural(end - start, "byte"), path)
        self._size = start

    def _remember(self, ids: Iterable[str]) -> None:
        self._known.update(dict.fromkeys(ids))
        while len(self._known) > KNOWN:
            del self._known[next(iter(self._known))]


class _Directory(_Files):
    """Files with the time of their beginning in their names; only the newest one is written."""

    def __init__(self, directory: Path, max_bytes: int, max_age: float) -> None:
        super().__init__(directory)
        self._directory = directory
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._guard = -1
        self._began = 0.0

    def open(self) -> None:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._guard = os.open(self._directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
            _lock(self._guard, self._directory)
            files = sorted(path for path in self._directory.iterdir() if _NAMED.fullmatch(path.name))
            for path in files[-2:-1]:  # the newest one may be short
                with path.open("rb") as file:
                    self._remember(_ids(file.fileno(), path.stat().st_size))
        except OSError as error:
            raise TargetError(f"can't open {self._directory}: {error.strerror}") from error
        if files:
            self._began = _began(files[-1])
            self._open(files[-1])
        else:
            self._begin()

    def close(self) -> None:
        super().close()
        if self._guard >= 0:
            os.close(self._guard)
            self._guard = -1

    def _before(self, size: int) -> None:
        is_full = self._size + size > self._max_bytes
        is_old = not 0 <= time.time() - self._began < self._max_age
        if self._size and (is_full or is_old):
            super().close()
            self._begin()

    def _begin(self) -> None:
        now = max(time.time(), self._began + 0.001)  # names are in the order of their files, whatever the clock does
        path = self._directory / NAME.format(datetime.fromtimestamp(now, UTC).strftime(_STAMP))
        self._began = now
        self._open(path)


class _Stdout(_Files):
    """A pipe or a terminal: nothing can be read back, so an event that comes again is printed again."""

    def __init__(self) -> None:
        super().__init__(Path("stdout"))

    def open(self) -> None:
        sys.stdout.flush()

    def write(self, batch: EventBatch) -> None:
        lines = [visible_json(json_bytes(row_of(event)).decode()) for event in batch.events]
        try:
            sys.stdout.write("".join([f"{line}\n" for line in lines]))
            sys.stdout.flush()
        except BrokenPipeError:
            with contextlib.suppress(OSError):  # what Python flushes at its end
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise Gone("who reads the output has gone") from None
        except OSError as error:
            raise TargetError(f"can't write to stdout: {error.strerror}") from error

    def close(self) -> None:
        pass


def _lock(file: int, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise TargetError(f"another process writes to {path}") from None


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _last_line(file: int, end: int) -> int:
    """Where the line begins that isn't ended; `end` if there is none."""
    at = end
    while at:
        start = max(0, at - CHUNK)
        found = os.pread(file, at - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        at = start
    return 0


def _ids(file: int, end: int) -> Iterable[str]:
    """Of the events in the last `TAIL` bytes before `end`."""
    start = max(0, end - TAIL)
    lines = os.pread(file, end - start, start).split(b"\n")
    for line in lines[1 if start else 0 :]:
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            yield msgspec.json.decode(line, type=_Line).id


def _began(path: Path) -> float:
    match = _NAMED.fullmatch(path.name)
    assert match is not None
    return datetime.strptime(match[1], _STAMP).replace(tzinfo=UTC).timestamp()


def _sync_directory(directory: Path) -> None:
    file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
