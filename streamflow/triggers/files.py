"""Deliveries of files: each that is in a directory, or comes into it, or changes there.

Owns: when a file counts as whole, and which ones were delivered. Must not: open, move or delete files: the workflow
does. Called by: user code (makes sources), `serving.py`.

A file is known by its path, size and time of change. It is delivered when these were the same for `settle` seconds, so
that a file that is still being written isn't: rename it into the directory, and it is whole at once. Which files were
delivered is a hash of the namespace, with as many fields as there are files: those that are gone are removed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import msgspec

from streamflow.errors import StoreError, UsageError
from streamflow.model.durations import seconds_of
from streamflow.store.connection import Call
from streamflow.store.kernel import Put
from streamflow.triggers.pulled import PulledSource
from streamflow.triggers.quarantine import pairs_of
from streamflow.triggers.receiver import Hung, Receiver, received_now

if TYPE_CHECKING:
    from datetime import timedelta

_log = logging.getLogger("streamflow.triggers")

LATEST = 253_402_300_799.0
"""Seconds since 1970: the end of year 9999. File systems know later times, and people set them."""
LOOK_SECONDS = 30.0
"""Seconds between two looks at the directory when nothing is reported: network file systems report nothing."""
LEAST_SECONDS = 0.2
PAGE = 500


class File(msgspec.Struct, frozen=True, kw_only=True):
    """What the function of a trigger gets of a file. `path`: absolute. `name`: the path within the directory, with
    slashes. `size`: bytes."""

    path: str
    name: str
    size: int
    modified: datetime


class _Seen(msgspec.Struct):
    """A file at the last look. `since`: when it was first seen so (monotonic s)."""

    size: int
    modified_ns: int
    since: float

    @property
    def mark(self) -> bytes:
        return f"{self.size} {self.modified_ns}".encode()


class Files(PulledSource):
    """Made by `files`."""

    kind = "files"

    def __init__(self, directory: Path, pattern: str, settle: float) -> None:
        self.directory = directory
        self.pattern = pattern
        self._settle = settle
        self._skipped: set[str] = set()

    @property
    def about(self) -> str:
        return f"files {self.directory / self.pattern}"

    async def serve(self, receiver: Receiver) -> None:
        try:
            import watchfiles
        except ImportError:
            raise UsageError("files need watchfiles: pip install 'streamflowd[triggers]'") from None
        changed, stop = anyio.Event(), anyio.Event()

        async def watch() -> None:
            async for _ in watchfiles.awatch(self.directory, stop_event=stop):  # pyright: ignore[reportUnknownMemberType]
                changed.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            try:
                seen: dict[str, _Seen] = {}
                done = await self._marked(receiver)
                while True:
                    changed = anyio.Event()
                    seen = await anyio.to_thread.run_sync(self._look, seen)
                    receiver.problem = ""
                    await self._remove_gone(receiver, seen, done)
                    unsettled = await self._deliver(receiver, seen, done)
                    with anyio.move_on_after(max(self._settle, LEAST_SECONDS) if unsettled else LOOK_SECONDS):
                        await changed.wait()
                    await anyio.sleep(min(0.05, self._settle))  # several changes at once are one look
            finally:
                stop.set()  # its thread ends now: a cancel alone reaches it only seconds later

    async def _marked(self, receiver: Receiver) -> dict[str, bytes]:
        """The marks of those that were delivered, by name: of earlier processes, too."""
        prefix = f"{receiver.trigger.name}/"
        found: dict[str, bytes] = {}
        cursor = 0
        while True:
            call = Call.plain("HSCAN", receiver.client.keys.files, cursor, "MATCH", f"{prefix}*", "COUNT", PAGE)
            cursor, fields = await receiver.client.store.one(call)
            found |= {name.decode(errors="replace").removeprefix(prefix): mark for name, mark in pairs_of(fields)}
            cursor = int(cursor)
            if not cursor:
                return found

    def _look(self, before: Mapping[str, _Seen]) -> dict[str, _Seen]:
        if not self.directory.is_dir():  # of one that isn't mounted no file is gone
            raise FileNotFoundError(f"{self.directory} is not a directory")
        now, found = time.monotonic(), dict[str, _Seen]()
        age_now = time.time()
        for path in self.directory.glob(self.pattern):
            try:
                status = path.stat()
            except OSError:  # gone meanwhile
                continue
            if not path.is_file():
                continue
            name = path.relative_to(self.directory).as_posix()
            if not _is_text(name):
                self._skip(name)
                continue
            known = before.get(name)
            if known is not None and (known.size, known.modified_ns) == (status.st_size, status.st_mtime_ns):
                found[name] = known
            else:
                age = max(0.0, min(age_now - status.st_mtime, 1e9))  # one that was there long is whole at once
                found[name] = _Seen(status.st_size, status.st_mtime_ns, now - (age if known is None else 0.0))
        return found

    def _skip(self, name: str) -> None:
        if name not in self._skipped:
            self._skipped.add(name)
            _log.error("a file in %s is not delivered, its name is not valid Unicode: %s", self.directory, ascii(name))

    async def _deliver(self, receiver: Receiver, seen: Mapping[str, _Seen], done: dict[str, bytes]) -> bool:
        """Deliver all that are whole and new. Returns whether some are not whole yet, or have to come again."""
        now = time.monotonic()
        fresh = {name: file for name, file in seen.items() if done.get(name) != file.mark}
        whole = [name for name, file in fresh.items() if now - file.since >= self._settle]
        again = len(whole) < len(fresh)
        keys, store = receiver.client.keys, receiver.client.store
        for first in range(0, len(whole), PAGE):
            page = whole[first : first + PAGE]
            fields = [f"{receiver.trigger.name}/{name}" for name in page]
            marks = await store.one(Call.plain("HMGET", keys.files, *fields))
            for name, field, mark in zip(page, fields, marks, strict=True):
                file = seen[name]
                if mark != file.mark:
                    if not await self._receive(receiver, name, file):
                        again = True
                        continue
                    await store.one(receiver.client.kernel.store_records([Put(keys.files, field, file.mark)]))
                done[name] = file.mark
        return again

    async def _receive(self, receiver: Receiver, name: str, file: _Seen) -> bool:
        path = str((self.directory / name).absolute())
        modified = datetime.fromtimestamp(max(0.0, min(file.modified_ns / 1e9, LATEST)), UTC)
        body = msgspec.json.encode(File(path=path, name=name, size=file.size, modified=modified))
        try:
            await receiver.receive(received_now(f"{path}\n{file.mark.decode()}", body))
        except (StoreError, Hung):
            return False
        return True

    async def _remove_gone(self, receiver: Receiver, seen: Mapping[str, _Seen], done: dict[str, bytes]) -> None:
        gone = [name for name in done if name not in seen]
        for name in gone:
            await receiver.client.store.one(
                Call.plain("HDEL", receiver.client.keys.files, f"{receiver.trigger.name}/{name}")
            )
            del done[name]


def _is_text(name: str) -> bool:
    """A name of other bytes has surrogates, which neither a payload nor the server takes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def files(directory: str | Path, pattern: str = "*", /, *, settle: float | timedelta = 2.0) -> Files:
    """Files in a directory that match `pattern`, as of `Path.glob`: those that are there, that come, and that change.
    The payload is an `sf.triggers.File`.

    `settle`: seconds or a timedelta for which a file must not change before it is delivered. Raises `UsageError`.
    """
    if not pattern or pattern.startswith("/"):
        raise UsageError(f"the pattern of files is one within the directory, as *.csv or **/*.csv, got {pattern!r}")
    seconds = seconds_of(settle)
    if seconds is None or seconds < 0:
        raise UsageError(f"settle must be 0 seconds or more, or a timedelta, got {settle!r}")
    return Files(Path(directory), pattern, seconds)
