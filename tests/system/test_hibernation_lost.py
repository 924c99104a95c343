"""A server that has lost that a run was moved out, or that it was woken."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

import streamflow as sf
from bench.faults import Backup
from streamflow.daemon.daemon import Daemon
from streamflow.daemon.waking import AT_ONCE
from streamflow.embedded.server import EmbeddedServer
from streamflow.errors import ArchiveError
from tests.support.serving import running_daemon
from tests.support.waiting import DEADLINE, until
from tests.system.test_hibernation import AFTER, app, moved_out, objects, order, sleeping, url, waits
from tests.system.test_lost_writes import NAMESPACE, SLOW_BEAT

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(90)]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EmbeddedServer]:
    async with EmbeddedServer(tmp_path / "data", appendfsync="everysec") as server:
        yield server


async def taken_again(daemon: Daemon, token: str, number: int) -> bool:
    shard = daemon.owner.shards.get(number)
    return shard is not None and shard.token != token


async def test_a_run_of_which_it_was_lost_that_it_was_moved_out_is_there(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with (
        running_daemon(
            app, server, NAMESPACE, crash=False, hibernate_after=AFTER, archive=url(tmp_path), **SLOW_BEAT
        ) as daemon,
        sf.connect(server.url, namespace=NAMESPACE) as client,
    ):
        run = await client.start(order, 1, id="o1")
        await waits(client, run)
        number = (await client.read_namespace()).shard_of("o1")
        backup = Backup(server)
        await moved_out(daemon)
        token = daemon.owner.shards[number].token
        assert await backup.restore() > 0, "something was lost"
        await until(lambda: taken_again(daemon, token, number))
        assert await sleeping(daemon) == 0
        assert (await run.describe()).hibernating is None
        assert len(objects(tmp_path)) == 1, "nothing leads to it any more"
        await run.signal("approve", "ann")
        assert await run.result(DEADLINE) == "1 approved by ann"
        assert daemon.owner.lost_writes.recent_count == 0


async def test_a_storage_that_hangs_is_asked_for_many_lost_runs_at_once(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_daemon(app, server, NAMESPACE, crash=False, hibernate_after=AFTER) as daemon:
        asked: list[str] = []
        all_there = anyio.Event()

        async def hangs(_: object, run_id: str) -> None:
            asked.append(run_id)
            if len(asked) == AT_ONCE:
                all_there.set()
            with anyio.fail_after(DEADLINE):
                await all_there.wait()
            raise ArchiveError("no answer")

        monkeypatch.setattr(daemon.waking, "wake", hangs)
        shard = next(iter(daemon.owner.shards.values()))
        await daemon.waking.wake_all(shard, [f"r{n}" for n in range(2 * AT_ONCE)])
        assert len(asked) == 2 * AT_ONCE


async def test_what_a_run_has_done_since_it_woke_is_there_again(server: EmbeddedServer, tmp_path: Path) -> None:
    async with (
        running_daemon(
            app, server, NAMESPACE, crash=False, hibernate_after=AFTER, archive=url(tmp_path), **SLOW_BEAT
        ) as daemon,
        sf.connect(server.url, namespace=NAMESPACE) as client,
    ):
        run = await client.start(order, 1, id="o1")
        await waits(client, run)
        number = (await client.read_namespace()).shard_of("o1")
        await moved_out(daemon)
        backup = Backup(server)
        await run.signal("approve", "ann")
        assert await run.result(DEADLINE) == "1 approved by ann"
        history = await run.history()
        token = daemon.owner.shards[number].token
        assert await backup.restore() > 0, "something was lost"
        await until(lambda: taken_again(daemon, token, number))
        assert await run.history() == history
        assert await run.result(DEADLINE) == "1 approved by ann"
        assert await sleeping(daemon) == 0
        assert daemon.owner.recent_commits.runs == 1
        assert daemon.owner.lost_writes.recent_count == 0
