"""Four operations on a storage: put, get, list, remove. Files by the operating system, all else by fsspec.

Owns: that a write counts only when it is durable, that a call waits `TIMEOUT` seconds at most, and that at most
`AT_ONCE` operations are under way. Must not: know what is stored. Called by: archive; heartbeats and health
(`hung_threads`).

Each operation has a thread of its own, since libraries for storages block. One that has not returned within the time
of a call is hung: it is left alone, and another may begin in its place, so that storage which works again is used
again. At most `MOST_HUNG` are replaced so; with more, calls wait until one of them returns. All end with the process: a
storage that hangs delays neither the event loop nor its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, Protocol, TypedDict, TypeVar, Unpack, cast
from urllib.parse import unquote

from streamflow.archive_url import check_archive_url, shown_archive
from streamflow.errors import ArchiveError, UsageError

T = TypeVar("T")

_log = logging.getLogger("streamflow.archive")

TIMEOUT = 30.0
"""Seconds that one operation may take, with the wait for its turn."""
AT_ONCE = 16
MOST_HUNG = 64
"""Threads of one kind of objects that may hang while others take their places."""
FILES = "file://"
EXTRAS = {"s3": "streamflowd[s3]"}
"""What to install for a scheme; for others what fsspec says."""


class Guard(Protocol):
    """Says whether the storage of these calls may be used. Raises `ArchiveError` if not."""

    async def __call__(self, threads: Threads, *, again: bool = False) -> None: ...


class Storage(Protocol):
    """Blocking. Names have slashes, and are below the archive's URL."""

    def put(self, name: str, data: bytes) -> None:
        """Return when it is durable. What has the name is replaced, as a whole."""
        ...

    def get(self, name: str) -> bytes | None: ...

    def names(self, folder: str) -> list[str]:
        """What is in a folder, folders too, each without the folder's name; nothing if there is no such folder."""
        ...

    def remove(self, name: str) -> None: ...


class Files:
    """A directory. An object is written beside its place, flushed to the disk, and then gets its name.

    A directory that was there and is gone, because it was moved or is not mounted, is an error, and no empty one is
    made in its place: what was written there would be hidden when the right one is back.
    """

    def __init__(self, url: str) -> None:
        self._root = Path(unquote(url.removeprefix(FILES)))
        self._seen: set[str] = set()
        """Folders of the root that this process has seen: each namespace has one."""

    def _check_there(self, name: str) -> None:
        first = name.partition("/")[0]
        if (self._root / first).is_dir():
            self._seen.add(first)
        elif first in self._seen:
            raise FileNotFoundError(f"{self._root / first} is not there any more: was it moved, or is it not mounted?")
        elif self._root.exists() and not self._root.is_dir():
            raise NotADirectoryError(f"{self._root} is not a directory")

    def put(self, name: str, data: bytes) -> None:
        self._check_there(name)
        path = self._root / name
        self._make(path.parent)
        beside = path.with_name(f".{path.name[:200]}.{os.urandom(6).hex()}")
        try:
            with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        _sync(path.parent)
        self._seen.add(name.partition("/")[0])

    def _make(self, folder: Path) -> None:
        if folder.is_dir():
            return
        self._make(folder.parent)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        _sync(folder.parent)

    def get(self, name: str) -> bytes | None:
        self._check_there(name)
        try:
            return (self._root / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def names(self, folder: str) -> list[str]:
        self._check_there(folder)
        try:
            return [name for name in os.listdir(self._root / folder) if not name.startswith(".")]  # noqa: PTH208
        except (FileNotFoundError, NotADirectoryError):
            return []

    def remove(self, name: str) -> None:
        (self._root / name).unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """A new name in a directory is durable when that is."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Remote:
    """Whatever fsspec knows. Listings are not kept: others write there, too."""

    def __init__(self, url: str) -> None:
        try:
            from fsspec.core import url_to_fs  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]
        except ImportError:
            raise UsageError(_missing(url, "fsspec")) from None
        try:
            found: tuple[Any, str] = cast(
                "tuple[Any, str]", url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
            )
        except ImportError as error:
            raise UsageError(_missing(url, str(error))) from None
        except ValueError as error:
            raise UsageError(f"archive {shown_archive(url)}: {error}") from None
        self._files, root = found
        self._root = root.rstrip("/")

    def put(self, name: str, data: bytes) -> None:
        if self._has_folders:
            self._files.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
        self._files.pipe_file(self._path(name), data)

    @property
    def _has_folders(self) -> bool:
        """Object stores have none, and asking for one may mean to create a bucket."""
        return not {"s3", "s3a", "gs", "gcs", "abfs", "az"} & set(
            [self._files.protocol] if isinstance(self._files.protocol, str) else self._files.protocol
        )

    def get(self, name: str) -> bytes | None:
        try:
            return self._files.cat_file(self._path(name))
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> list[str]:
        try:
            found: list[str] = self._files.ls(self._path(folder), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [path.rstrip("/").rpartition("/")[2] for path in found]

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


def _missing(url: str, what: str) -> str:
    extra = EXTRAS.get(url.partition("://")[0], "streamflowd[archive]")
    return f"archive {shown_archive(url)} needs packages that are not installed ({what}): pip install '{extra}'"


def open_storage(url: str) -> Storage:
    """Nothing is sent. Raises `UsageError` if its packages are missing."""
    return Files(url) if url.startswith(FILES) else Remote(url)


_hung = 0
_counting = threading.Lock()


def hung_threads() -> int:
    """How many threads of this process have not returned from a storage in time."""
    return _hung


class _Call:
    """One operation in its thread. `is_replaced`: it is hung, and another one may begin in its place."""

    def __init__(self) -> None:
        self.is_over = self.is_hung = self.is_replaced = False


class Threads:
    """Calls of a storage, out of the event loop."""

    def __init__(
        self, url: str, *, timeout: float = TIMEOUT, storage: Storage | None = None, guard: Guard | None = None
    ) -> None:
        self.url = url
        self.shown = shown_archive(url)
        self._guard = guard
        self._timeout = timeout
        self._storage = storage
        self._opening = threading.Lock()
        self._room = asyncio.Semaphore(AT_ONCE)
        self.hung = 0
        """Threads of these that have not returned in time."""

    async def put(self, name: str, make: Callable[[], bytes]) -> None:
        """`make` is called in the thread, since packing takes time, too."""
        await self._call("written", lambda storage: storage.put(name, make()))

    async def get(self, name: str, parse: Callable[[bytes], T]) -> T | None:
        """What `parse`, which is called in the thread, makes of it; None if there is no such object."""

        def read(storage: Storage) -> T | None:
            data = storage.get(name)
            return None if data is None else parse(data)

        found = await self._call("read", read)
        if found is None and self._guard is not None:  # it is missing only if this is the right storage
            await self.check(again=True)
        return found

    async def names(self, folder: str) -> list[str]:
        return await self._call("listed", lambda storage: storage.names(folder))

    async def remove(self, name: str) -> None:
        await self._call("deleted", lambda storage: storage.remove(name))

    def _opened(self) -> Storage:
        with self._opening:  # it imports what may take a second
            if self._storage is None:
                self._storage = open_storage(self.url)
            return self._storage

    async def _call(self, what: str, operation: Callable[[Storage], T]) -> T:
        """Raises `ArchiveError`: nothing could be `what`, and why."""
        async with self._in_time(what):
            if self._guard is not None:
                await self._guard(self)
            return await self.unguarded(operation)

    async def check(self, *, again: bool = False) -> None:
        """Raises `ArchiveError` if the storage isn't the right one, or doesn't answer."""
        if self._guard is not None:
            async with self._in_time("read"):
                await self._guard(self, again=again)

    async def unguarded(self, operation: Callable[[Storage], T]) -> T:
        """For the guard itself."""
        await self._room.acquire()
        return await self._in_thread(operation)

    @contextlib.asynccontextmanager
    async def _in_time(self, what: str) -> AsyncGenerator[None]:
        try:
            async with asyncio.timeout(self._timeout):
                yield
        except TimeoutError:
            reason = f"no answer within {self._timeout:g} s"
            if self.hung >= MOST_HUNG + AT_ONCE:
                reason += f", and {self.hung} calls before have not returned: only a restart helps"
            raise ArchiveError(f"in the archive {self.shown} nothing can be {what}: {reason}") from None

    async def _in_thread(self, operation: Callable[[Storage], T]) -> T:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        call = _Call()
        over = loop.call_later(self._timeout, self._note_hung, call)

        def run() -> None:
            result: T | None = None
            error: BaseException | None = None
            try:
                result = operation(self._opened())
            except BaseException as raised:
                error = raised
            self._note_over(call)
            _tell(loop, self._settle, call, over, answer, result, error)

        try:
            threading.Thread(target=run, name="archive", daemon=True).start()
        except RuntimeError as error:  # the process has no room for another
            over.cancel()
            self._room.release()
            raise self._refused(error) from None
        return await answer

    def _note_hung(self, call: _Call) -> None:
        """It has not returned in time, whether somebody waits for it or not."""
        global _hung
        with _counting:
            if call.is_over:
                return
            call.is_hung, call.is_replaced = True, self.hung < MOST_HUNG
            self.hung += 1
            _hung += 1
        if call.is_replaced:
            self._room.release()
        _log.warning(
            "a call of the archive %s has not returned within %g s, with %d others: %s",
            self.shown,
            self._timeout,
            self.hung - 1,
            "another one takes its place" if call.is_replaced else "no more take their places, only a restart helps",
        )

    def _note_over(self, call: _Call) -> None:
        global _hung
        with _counting:
            call.is_over = True
            if call.is_hung:
                self.hung -= 1
                _hung -= 1

    def _settle(
        self, call: _Call, over: asyncio.Handle, answer: asyncio.Future[Any], result: Any, error: BaseException | None
    ) -> None:
        over.cancel()
        if not call.is_replaced:
            self._room.release()
        if answer.done():  # the caller has given up
            return
        if error is None:
            answer.set_result(result)
        else:
            answer.set_exception(error if isinstance(error, ArchiveError) else self._refused(error))

    def _refused(self, error: BaseException) -> ArchiveError:
        text = " ".join(str(error).split())[:500]
        reason = text if isinstance(error, UsageError) else f"{type(error).__name__}: {text}"
        return ArchiveError(f"the archive {self.shown} can't be used: {reason}")


def _tell(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
        loop.call_soon_threadsafe(function, *args)


class Options(TypedDict, total=False):
    """How objects are read and written; `storage`: in the place of that of the URL."""

    timeout: float
    storage: Storage | None
    guard: Guard | None


class Objects:
    """The objects of one kind of a namespace. Belongs to the event loop of its first call. Its methods raise
    `ArchiveError` if the storage can't be used or doesn't answer within `timeout` seconds."""

    def __init__(self, url: str, namespace: str, **options: Unpack[Options]) -> None:
        """Nothing is sent. Raises `UsageError` for a URL that can't be."""
        self.url = check_archive_url(url)
        self.shown = shown_archive(self.url)
        self._namespace = namespace
        self._storage = Threads(self.url, **options)
