"""Storages: files, what fsspec knows, and threads that keep a slow one from the event loop."""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path

import pytest

from streamflow.archive import storage as module
from streamflow.archive.archive import Archive, open_archive
from streamflow.archive.format import ArchivedRun
from streamflow.archive.storage import Files, Storage, Threads, open_storage
from streamflow.errors import ArchiveError, UsageError
from tests.support.waiting import until

pytestmark = pytest.mark.anyio


def run(run_id: str, version: int = 2, created: int = 5) -> ArchivedRun:
    return ArchivedRun(run_id, f"completed {version} c {created} 9 flow - -".encode(), b"", [b"x"])


@pytest.fixture(params=["file", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return open_storage(f"file://{tmp_path}/a b" if request.param == "file" else f"memory://{tmp_path}")


def test_what_is_put_is_there_and_listed_until_it_is_removed(storage: Storage) -> None:
    assert storage.get("ns/runs/a") is None
    assert storage.names("ns/runs") == []
    storage.put("ns/runs/a", b"1")
    storage.put("ns/runs/b/c", b"2")
    storage.put("ns/runs/a", b"3")
    assert storage.get("ns/runs/a") == b"3"
    assert sorted(storage.names("ns/runs")) == ["a", "b"]
    assert storage.names("ns/runs/b") == ["c"]
    storage.remove("ns/runs/a")
    storage.remove("ns/runs/a")
    assert storage.names("ns/runs") == ["b"]


@pytest.mark.parametrize("left", ["nothing", "an empty directory", "a file"])
def test_a_directory_that_is_gone_is_an_error_and_not_made_anew(tmp_path: Path, left: str) -> None:
    root = tmp_path / "archive"
    files = Files(f"file://{root}")
    files.put("ns/runs/a", b"1")
    away = root.rename(tmp_path / "away")
    if left == "an empty directory":
        root.mkdir()
    elif left == "a file":
        root.touch()
    for use in (lambda: files.get("ns/runs/a"), lambda: files.names("ns/runs"), lambda: files.put("ns/runs/b", b"2")):
        with pytest.raises(FileNotFoundError, match="is not there any more: was it moved, or is it not mounted"):
            use()
    assert not (root / "ns").exists()
    if left == "a file":
        root.unlink()
    away.replace(root)
    files.put("ns/runs/b", b"2")
    assert sorted(files.names("ns/runs")) == ["a", "b"]


def test_a_file_in_the_place_of_the_directory_is_not_an_empty_archive(tmp_path: Path) -> None:
    (tmp_path / "archive").touch()
    files = Files(f"file://{tmp_path}/archive")
    for use in (lambda: files.get("ns/runs/a"), lambda: files.names("ns/runs")):
        with pytest.raises(NotADirectoryError, match="archive is not a directory"):
            use()


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    files = Files(f"file://{tmp_path}")
    files.put("ns/a", b"before")
    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.put("ns/a", b"x" * 1000)
    assert [path.name for path in (tmp_path / "ns").iterdir()] == ["a"]
    assert files.get("ns/a") == b"before"


class Hanging:
    def __init__(self) -> None:
        self.goes_on = threading.Event()
        self.at_once = self.most = 0
        self.lock = threading.Lock()

    def put(self, name: str, data: bytes) -> None:
        with self.lock:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        self.goes_on.wait(30)
        with self.lock:
            self.at_once -= 1

    def get(self, name: str) -> bytes | None:
        raise NotImplementedError

    def names(self, folder: str) -> list[str]:
        return []

    def remove(self, name: str) -> None:
        raise NotImplementedError


async def test_threads_that_hang_are_replaced_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_HUNG", 2 * module.AT_ONCE)
    hanging, before = Hanging(), module.hung_threads()
    threads = Threads("memory://x", timeout=0.05, storage=hanging)
    most = 3 * module.AT_ONCE
    try:
        errors: set[str] = set()
        while threads.hung < most:
            calls = (threads.put(f"a{n}", lambda: b"x") for n in range(module.AT_ONCE))
            errors |= {str(error) for error in await asyncio.gather(*calls, return_exceptions=True)}
            if threads.hung < 2 * module.AT_ONCE:
                threads._timeout = 10.0
                assert await threads.names("a") == [], "what answers is used meanwhile"
                threads._timeout = 0.05
        assert hanging.most == most
        assert module.hung_threads() - before == most
        assert "in the archive memory://x nothing can be written: no answer within 0.05 s" in errors
        with pytest.raises(ArchiveError, match="48 calls before have not returned: only a restart helps"):
            await threads.names("a")
        assert hanging.most == most, "no more than these"
    finally:
        hanging.goes_on.set()
    threads._timeout = 10.0
    assert await threads.names("a") == [], "it is used again when they have returned"
    await until_none_hangs(before)
    assert threads.hung == 0


async def until_none_hangs(before: int) -> None:
    await until(lambda: asyncio.sleep(0, module.hung_threads() == before))


async def test_a_thread_hangs_though_its_caller_was_cancelled() -> None:
    hanging, before = Hanging(), module.hung_threads()
    threads = Threads("memory://x", timeout=0.2, storage=hanging)
    try:
        calls = [asyncio.ensure_future(threads.put(f"a{n}", lambda: b"x")) for n in range(module.AT_ONCE)]
        await until(lambda: asyncio.sleep(0, hanging.at_once == module.AT_ONCE))
        for call in calls:
            call.cancel()
        await until(lambda: asyncio.sleep(0, threads.hung == module.AT_ONCE))
        threads._timeout = 10.0
        assert await threads.names("a") == []
    finally:
        hanging.goes_on.set()
    await until_none_hangs(before)


async def test_what_a_library_raises_is_an_archive_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    archive = Archive(f"file://{tmp_path}/file", "ns")
    with pytest.raises(ArchiveError, match=r"can't be used: \w+Error"):
        await archive.store([run("r1")])


async def test_without_the_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(ArchiveError, match=r"pip install 'streamflowd\[s3\]'"):
        await Archive("s3://bucket/x", "ns").find("r1")
    with pytest.raises(ArchiveError, match=r"pip install 'streamflowd\[archive\]'"):
        await Archive("memory://x", "ns").find("r1")


async def test_runs_are_found_by_id_and_listed_newest_first(tmp_path: Path) -> None:
    archive = open_archive(f"memory://{tmp_path}", "ns")
    assert archive is not None
    await archive.store([run("r1"), run("r2")], 1_796_000_000_000)
    await archive.store([run("r1", version=4)], 1_796_090_000_000)
    await archive.store([run("r1", created=9)], 1_796_090_000_001)
    found = await archive.find("r1")
    assert found is not None
    assert found.header == run("r1", created=9).header
    earlier = await archive.find("r1", 5)
    assert earlier is not None
    assert earlier.header == run("r1", version=4).header, "its last state"
    assert await archive.find("r1", 6) is None
    assert await archive.incarnations("r1") == [9, 5]
    listed = [(name, [entry.run_id for entry in page]) async for name, page in archive.entries()]
    assert [ids for _, ids in listed] == [["r1"], ["r1"], ["r1", "r2"]]
    rest = [ids async for ids in archive.entries(listed[0][0])]
    assert [name for name, _ in rest] == [name for name, _ in listed[1:]]
    assert await archive.remove("r1", 5) == 2
    assert [len(page) async for _, page in archive.entries()] == [1, 1]
    assert await archive.remove("r1") == 1
    assert await archive.find("r1") is None


async def test_the_archives_of_two_namespaces_are_apart(tmp_path: Path) -> None:
    await Archive(f"memory://{tmp_path}", "one").store([run("r1")])
    assert await Archive(f"memory://{tmp_path}", "two").find("r1") is None


@pytest.mark.parametrize("url", ["", "none"])
def test_there_may_be_none(url: str) -> None:
    assert open_archive(url, "ns") is None


async def test_an_unknown_storage_is_named() -> None:
    with pytest.raises(ArchiveError, match="Protocol not known"):
        await Archive("nosuch://bucket/x", "ns").find("r1")
    with pytest.raises(UsageError):
        Archive("bucket", "ns")
