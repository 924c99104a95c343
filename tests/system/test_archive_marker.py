"""The marker of an archive: a storage that isn't the namespace's is neither read nor written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import streamflow as sf
from streamflow.archive.storage import Files
from streamflow.daemon import archive_guard, put_off
from streamflow.daemon.daemon import Daemon
from streamflow.store.connection import Call
from tests.support.waiting import until
from tests.system.conftest import Serve
from tests.system.test_hibernation import AFTER, app, moved_out, objects, order, url, waits

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(put_off, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(put_off, "LONGEST_PAUSE", 0.02)
    monkeypatch.setattr(archive_guard, "LOOK_EVERY", 0.05)


def markers(tmp_path: Path) -> list[Path]:
    return sorted(tmp_path.rglob("marker.json"))


async def trouble(daemon: Daemon) -> str:
    return daemon._troubles.current(stops=False).get("archive", "")


async def is_marked(tmp_path: Path) -> bool:
    return bool(markers(tmp_path))


async def test_a_directory_that_is_not_mounted_loses_no_run(serve: Serve, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    async with serve(app, hibernate_after=AFTER, archive=url(tmp_path)) as (client, daemon):
        run, ended = await client.start(order, 1, id="o1"), await client.start(order, 2, id="o2")
        await waits(client, run)
        await waits(client, ended)
        await moved_out(daemon, 2)
        assert len(markers(tmp_path)) == 1
    archive.rename(tmp_path / "mounted")
    archive.mkdir()
    async with serve(app, hibernate_after=AFTER) as (client, daemon):
        await until(lambda: _has(daemon, "Is it mounted"))
        await run.signal("approve", "ann")
        await ended.terminate()

        async def both_wait() -> bool:
            count, found = daemon.owner.put_off.waits()
            return count == 2 and all("Is it mounted" in one.error for one in found)

        await until(both_wait)
        assert sum(shard.asleep for shard in daemon.owner.shards.values()) == 2, "none was written off"
        assert list(archive.iterdir()) == [], "and nothing was written beside the mount"
        archive.rmdir()
        (tmp_path / "mounted").rename(archive)
        assert await run.result(20) == "1 approved by ann"
        with pytest.raises(sf.RunCancelled):
            await ended.result(20)
        names = [type(event).__name__ async for _, event in ended.events()]
        assert "StepCompleted" in names, "with its history"
        await until(lambda: _is_well(daemon))


async def _has(daemon: Daemon, text: str) -> bool:
    """Whether it is found when the daemon looks again, which it does now."""
    daemon.guard._right.clear()
    await daemon.archive_watch.run_once()
    return text in await trouble(daemon)


async def _is_well(daemon: Daemon) -> bool:
    return not await trouble(daemon)


async def test_a_bucket_that_was_emptied_while_its_daemon_runs_is_refused(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, hibernate_after=AFTER, archive=url(tmp_path)) as (client, daemon):
        run = await client.start(order, 1, id="o1")
        await waits(client, run)
        await moved_out(daemon)
        [marker], [path] = markers(tmp_path), objects(tmp_path)
        kept = marker.read_bytes(), path.read_bytes()
        marker.unlink()
        path.unlink()
        await run.terminate()

        async def is_refused() -> bool:
            count, found = daemon.owner.put_off.waits()
            return count == 1 and "Is it mounted" in found[0].error

        await until(is_refused)
        marker.write_bytes(kept[0])
        path.write_bytes(kept[1])
        with pytest.raises(sf.RunCancelled):
            await run.result(20)
        assert "StepCompleted" in [type(event).__name__ async for _, event in run.events()]


async def test_the_archive_of_other_data_is_refused_until_it_is_taken(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, archive=url(tmp_path)) as (client, daemon):
        await until(lambda: is_marked(tmp_path))
        [marker] = markers(tmp_path)
        marker.write_text('{"namespace": "x", "key": "of another server"}')
        await until(lambda: _has(daemon, "another server has it"))
        await daemon.guard.take(archive_guard.Threads(url(tmp_path)))
        await until(lambda: _is_well(daemon))
        [key] = await client.store.one(Call.plain("HMGET", client.keys.meta, "archive_key"))
        assert key.decode() in marker.read_text()
        marker.write_bytes(b"damaged")
        await until(lambda: _has(daemon, "another server has it"))


async def test_an_archive_without_marker_gets_one_and_runs_cost_no_look(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    get = Files.get

    def noted(self: Files, name: str) -> bytes | None:
        asked.append(name)
        return get(self, name)

    monkeypatch.setattr(Files, "get", noted)
    async with serve(app, hibernate_after=AFTER, archive=url(tmp_path)) as (client, daemon):
        runs: list[sf.Run[Any]] = [await client.start(order, n, id=f"o{n}") for n in range(5)]
        for run in runs:
            await waits(client, run)
        await moved_out(daemon, 5)
        for run in runs:
            await run.signal("approve", "ann")
            assert await run.result(20)
        looks = [name for name in asked if name.endswith("marker.json")]
        assert len(looks) == 1
        assert len(asked) >= 6
        await client.store.one(Call.plain("HDEL", client.keys.meta, "archive_marked"))
        markers(tmp_path)[0].unlink()
        daemon.guard._right.clear()  # as with a release that had none
        await until(lambda: is_marked(tmp_path))
        assert await trouble(daemon) == ""


async def test_another_storage_is_marked_too(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, archive=url(tmp_path)):
        await until(lambda: is_marked(tmp_path))
    async with serve(app, archive=f"file://{tmp_path}/new") as (_, daemon):
        await until(lambda: is_marked(tmp_path / "new"))
        assert await trouble(daemon) == ""


async def test_nothing_is_asked_without_an_archive(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve(app) as (client, daemon):
        monkeypatch.setattr(daemon.guard, "_look", None)
        await daemon.archive_watch.run_once()
        assert await trouble(daemon) == ""
        assert await client.store.one(Call.plain("HMGET", client.keys.meta, "archive_marked", "archive_key")) == [
            None,
            None,
        ]
