"""A server that has lost its newest writes: who lives and has them stores them again, and what is gone is said."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

import streamflow as sf
from bench.faults import Backup
from streamflow.client import recent_posts
from streamflow.daemon import recent_commits
from streamflow.daemon.daemon import Daemon
from streamflow.daemon.rollup import rebuild_views
from streamflow.embedded.server import EmbeddedServer
from streamflow.store.connection import Call
from streamflow.store.kernel import Kernel
from streamflow.store.node import Node
from tests.support.lines import line_to, port_of
from tests.support.serving import FAST, running_daemon, view
from tests.support.waiting import DEADLINE, until
from tests.system.test_failover import replicated, tell

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(90)]

NAMESPACE = "lossy"
SLOW_BEAT: dict[str, Any] = {"beat": 1.0, "dead_after": 6.0}
"""So that nothing waits for a heartbeat: what is in memory must be dropped before the next one."""

app = sf.App()
executed: list[str] = []


@app.step
async def note(name: str) -> str:
    executed.append(name)
    return name


@app.workflow
async def waits(name: str) -> str:
    value = await note(name)
    await sf.signal("go", int)
    return value


@app.workflow
async def chain(number: int) -> int:
    for _ in range(3):
        number += len(await note("x"))
    return number


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EmbeddedServer]:
    async with EmbeddedServer(tmp_path / "data", appendfsync="everysec") as server:
        yield server


async def status_of_all(client: sf.Client, ids: Sequence[str]) -> dict[str, str]:
    """Those that exist."""
    found: dict[str, str] = {}
    for run_id in ids:
        try:
            found[run_id] = str((await client.run(run_id).describe()).status)
        except sf.RunNotFound:
            continue
    return found


def named(text: str, what: str) -> str:
    """All that the log says about runs that are gone, or were set back."""
    return "\n".join(re.findall(rf"runs that are {what}: (.*)", text))


MENDED = "and this daemon has committed them again"


async def check_nothing_is_lost(
    client: sf.Client, started: Sequence[str], caplog: pytest.LogCaptureFixture, times: int = 1
) -> None:
    """All have ended as they should, but for the last starts: no daemon may have read them. `times`: how often
    something was lost so far, which is said when all is there again."""

    async def all_have() -> bool:
        found = await status_of_all(client, started)
        return all(found.get(run_id) == "completed" for run_id in started[:-20])

    await until(all_have)
    await until(lambda: is_in(caplog, MENDED, times))
    assert not named(caplog.text, "set back")


@pytest.fixture
def without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has decided or sent something doesn't know it any more."""
    monkeypatch.setattr(recent_commits, "KEEP_BYTES", 0)
    monkeypatch.setattr(recent_posts, "KEEP_BYTES", 0)


@asynccontextmanager
async def load(url: str, prefix: str) -> AsyncGenerator[list[str]]:
    """Starts of runs, one after the other; gives the ids that were acknowledged so far. Their client ends with it: what
    the server loses later, nobody sends again."""
    acknowledged: list[str] = []

    async def start() -> None:
        while True:
            run = await client.start(chain, 1, id=f"{prefix}-{len(acknowledged)}")
            acknowledged.append(run.id)

    async with sf.connect(url, namespace=NAMESPACE) as client, anyio.create_task_group() as starts:
        starts.start_soon(start)
        try:
            yield acknowledged
        finally:
            starts.cancel_scope.cancel()


async def lose_some(client: sf.Client, acknowledged: Sequence[str]) -> None:
    """Wait until 30 more have started, and the first of these has ended: its owner has decided all of it."""
    before = len(acknowledged) + 1  # one may have been under way

    async def more() -> bool:
        return len(acknowledged) >= before + 30

    await until(more)
    await client.run(acknowledged[before]).result(DEADLINE)


async def check_all_complete(client: sf.Client, ids: Sequence[str]) -> None:
    """Every run that the server has ends, with nobody doing anything about it."""

    async def all_have() -> bool:
        statuses = set((await status_of_all(client, ids)).values())
        return statuses <= {"completed"}

    await until(all_have)


async def check_views(client: sf.Client) -> None:
    """The views come to rest at what a recount of the logs gives."""
    shards = FAST["shards"]
    calls = [Call.plain("XLEN", client.keys.shard(number).log) for number in range(shards)]
    assert sum(await client.store.send(calls)) > 0

    async def listed() -> tuple[int, int]:
        """Runs that are open, and that have completed."""
        pages = [await client.runs(status=status, limit=100_000) for status in ("running", "pending", "completed")]
        return len(pages[0]) + len(pages[1]), len(pages[2])

    async def counted() -> bool:
        runs = await view(client, "runs")
        return runs is not None and (runs["status"]["running"], runs["status"]["completed"]) == await listed()

    while True:
        await until(counted)
        rested = await listed()
        before = [await view(client, "runs"), await view(client, "step_durations")]
        await rebuild_views(client.store, Kernel(client.keys), shards, 0)
        after = [await view(client, "runs"), await view(client, "step_durations")]
        if await listed() == rested:  # else a run has ended meanwhile, which not both counts have
            break
    assert after[0]["status"] == before[0]["status"], "the recount"
    assert steps_in(after[1]) == steps_in(before[1])


def steps_in(durations: Any) -> dict[str, int]:
    return {name: row["count"] for name, row in durations.items()}


async def three_that_wait(client: sf.Client) -> list[sf.Run[str]]:
    """Runs of which a backup has two transitions each: one stays as it is, one will end, one will get on."""
    runs = [await client.start(waits, name, id=name) for name in ("kept", "has-ended", "has-advanced")]
    for run in runs:
        await until(lambda run=run: has_version(run, 2))
    return runs


@pytest.mark.usefixtures("without_memory")
async def test_what_was_set_back_goes_on_and_what_is_gone_is_said(
    server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    executed.clear()
    async with (
        running_daemon(app, server, NAMESPACE, crash=False, **SLOW_BEAT) as daemon,
        sf.connect(server.url, namespace=NAMESPACE) as client,
    ):
        kept, ended, advanced = await three_that_wait(client)
        backup = Backup(server)
        async with sf.connect(server.url, namespace=NAMESPACE) as other:  # one that lives would start it again
            await other.start(waits, "gone", id="is-gone")
        gone = client.run("is-gone")
        await until(lambda: has_version(gone, 2))
        await ended.signal("go", 1)
        assert await ended.result(DEADLINE) == "has-ended"
        await advanced.signal("other", 1)
        await until(lambda: knows_version(daemon, "has-advanced", 3))
        await until(lambda: knows_version(daemon, "is-gone", 2))
        waiting: list[Exception] = []

        async def wait_for_gone() -> None:
            try:
                await gone.result(DEADLINE)
            except sf.RunNotFound as error:
                waiting.append(error)

        async with anyio.create_task_group() as waiters:
            waiters.start_soon(wait_for_gone)
            assert await backup.restore() > 0, "something was lost"

            async def is_said() -> bool:
                return "the server has lost writes that it had acknowledged" in caplog.text

            await until(is_said)
        assert len(waiting) == 1, "who waits for a run that is gone learns it"
        assert named(caplog.text, "gone") == "is-gone"
        set_back = named(caplog.text, "set back")
        assert set(set_back.split(", ")) == {
            "has-ended (from transition 3 to 2)",
            "has-advanced (from transition 3 to 2)",
        }
        assert daemon.owner.lost_writes.recent_count == 3
        with pytest.raises(sf.RunNotFound):
            await gone.describe()
        for run in (kept, ended, advanced):
            await run.signal("go", 1)
            assert await run.result(DEADLINE) == run.id
        assert sorted(executed) == ["gone", "has-advanced", "has-ended", "kept"], "no step ran twice: results are kept"
        await check_views(client)


async def test_what_an_owner_has_committed_is_there_again(
    server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The same losses, but nothing is gone nor set back, nor is any signal taken twice."""
    executed.clear()
    async with (
        running_daemon(app, server, NAMESPACE, crash=False, **SLOW_BEAT) as daemon,
        sf.connect(server.url, namespace=NAMESPACE) as client,
    ):
        kept, ended, advanced = await three_that_wait(client)
        backup = Backup(server)
        async with sf.connect(server.url, namespace=NAMESPACE) as other:
            await other.start(waits, "gone", id="was-gone")
            await other.run("kept").signal("early", 2)
        gone = client.run("was-gone")
        await until(lambda: has_version(gone, 2))
        await ended.signal("go", 1)
        assert await ended.result(DEADLINE) == "has-ended"
        await advanced.signal("other", 1)
        await until(lambda: knows_version(daemon, "has-advanced", 3))
        await until(lambda: knows_version(daemon, "kept", 3))
        await until(lambda: knows_version(daemon, "was-gone", 2))

        async def all_mended() -> bool:
            return daemon.owner.recent_commits.runs == 4

        before = [await run.history() for run in (kept, ended, advanced, gone)]
        assert await backup.restore() > 0, "something was lost"
        await until(all_mended)
        assert MENDED in caplog.text
        assert [await run.history() for run in (kept, ended, advanced, gone)] == before
        assert await ended.result(DEADLINE) == "has-ended"
        assert daemon.owner.lost_writes.recent_count == 0
        for run in (kept, advanced, gone):
            await run.signal("go", 1)
            assert await run.result(DEADLINE) == run.id.replace("was-", "")
        assert sorted(executed) == ["gone", "has-advanced", "has-ended", "kept"], "no step ran twice"
        await check_views(client)


@pytest.mark.parametrize("last", ["resume", "pause"])
async def test_a_request_that_changed_nothing_is_not_taken_later(server: EmbeddedServer, last: str) -> None:
    """A second pause before the resume, or a resume before the pause: its commit had no transition, and is lost."""
    async with (
        running_daemon(app, server, NAMESPACE, crash=False, **SLOW_BEAT) as daemon,
        sf.connect(server.url, namespace=NAMESPACE) as client,
    ):
        run, *_ = await three_that_wait(client)

        async def has(status: sf.Status) -> bool:
            return (await run.describe()).status == status

        async def is_taken() -> bool:
            keys = [client.keys.shard(number).inbox for number in range(FAST["shards"])]
            return not any(await client.store.send([Call.plain("XLEN", key) for key in keys]))

        if last == "resume":
            await run.pause()
            await until(lambda: has(sf.Status.PAUSED))
        backup = Backup(server)
        await (run.pause() if last == "resume" else run.resume())
        await until(is_taken)
        await (run.resume() if last == "resume" else run.pause())
        expected = sf.Status.RUNNING if last == "resume" else sf.Status.PAUSED
        await until(lambda: has(expected))
        before = await run.history()
        await until(lambda: knows_version(daemon, run.id, len(before)))
        assert await backup.restore() > 0, "something was lost"
        await client.start(waits, "later", id="later")  # when it has begun, all is there again
        await until(lambda: has_version(client.run("later"), 2))
        await until(is_taken)
        assert await run.history() == before


@pytest.mark.parametrize("owner_lives", [True, False], ids=["the owner has it", "its client has it"])
async def test_a_lost_fork_is_there_again_with_all_that_it_shares(server: EmbeddedServer, owner_lives: bool) -> None:
    executed.clear()
    async with AsyncExitStack() as stack:
        daemon = running_daemon(app, server, NAMESPACE, crash=True, **SLOW_BEAT)
        lives = await stack.enter_async_context(daemon)
        client = await stack.enter_async_context(sf.connect(server.url, namespace=NAMESPACE))
        kept, _, _ = await three_that_wait(client)
        backup = Backup(server)
        forker = client
        if owner_lives:
            forker = await stack.enter_async_context(sf.connect(server.url, namespace=NAMESPACE))
        fork = await forker.run(kept.id).fork(id="forked")
        await until(lambda: has_version(fork, 1))
        before = await fork.history()
        if owner_lives:
            await until(lambda: knows_version(lives, "forked", 1))
            await forker.close()
        else:
            lives.owner.recent_commits.forget_all()
        assert await backup.restore() > 0, "something was lost"
        found = client.run(fork.id)

        async def is_there() -> bool:
            try:
                return (await found.describe()).version >= 1
            except sf.RunNotFound:
                return False

        await until(is_there)
        after = await found.history()
        assert [one.events[:1] for one in after[: len(before) - 1]] == [one.events[:1] for one in before[:-1]]
        await found.signal("go", 1)
        assert await found.result(DEADLINE) == kept.id


async def is_in(caplog: pytest.LogCaptureFixture, text: str, times: int = 1) -> bool:
    return caplog.text.count(text) >= times


async def has_version(run: sf.Run[Any], version: int) -> bool:
    return (await run.describe()).version >= version


async def knows_version(daemon: Daemon, run_id: str, version: int) -> bool:
    """The server has it a moment earlier: a daemon that hasn't got the answer to its commit can't miss it."""
    shards = daemon.owner.shards.values()
    return any(shard.live[run_id].header.version >= version for shard in shards if run_id in shard.live)


@pytest.mark.parametrize("noticed", ["by a connection", "by a commit"])
async def test_starts_that_were_acknowledged_never_stay_pending(
    server: EmbeddedServer, noticed: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages that an owner has taken from its inbox, and that are there again. A proxy that keeps connections, or a
    user who may not call INFO, hides the change from them."""
    caplog.set_level(logging.INFO)
    if noticed == "by a commit":
        monkeypatch.setattr(Node, "_heard", lambda *_: None)
    async with (
        running_daemon(app, server, NAMESPACE, crash=False, **SLOW_BEAT) as daemon,
        sf.connect(server.url, namespace=NAMESPACE) as client,
    ):
        for times, prefix in enumerate(("first", "second"), 1):
            async with load(server.url, prefix) as acknowledged:
                while len(acknowledged) < 50:  # noqa: ASYNC110
                    await anyio.sleep(0.001)
                backup = Backup(server)
                await lose_some(client, acknowledged)
                ids = list(acknowledged)
            assert await backup.restore() > 0
            for number in range(20):  # any commit finds it, and then all shards are read again
                await client.start(chain, 1, id=f"after-{prefix}-{number}")
            await check_all_complete(client, ids)
            await check_views(client)
            is_found_by_commit = "has lost commits of shard" in caplog.text
            assert is_found_by_commit == (noticed == "by a commit")
            assert len(daemon.owner.shards) == FAST["shards"]
            await check_nothing_is_lost(client, ids, caplog, times)


async def test_a_replica_that_lacks_the_newest_writes_is_promoted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    quick = ("--repl-diskless-sync-delay", "0")
    async with (
        EmbeddedServer(memory=True, extra=quick) as former,
        EmbeddedServer(memory=True, extra=quick) as new,
        line_to(former.url) as line,
        sf.connect(line.url, namespace=NAMESPACE) as client,
        running_daemon(app, line, NAMESPACE, crash=False, **SLOW_BEAT),  # type: ignore[arg-type]
    ):
        await tell(new.url, "REPLICAOF", "127.0.0.1", port_of(former.url))
        await replicated(former.url)
        async with load(line.url, "run") as acknowledged:
            while len(acknowledged) < 50:  # noqa: ASYNC110
                await anyio.sleep(0.001)
            await tell(new.url, "REPLICAOF", "NO", "ONE")
            await lose_some(client, acknowledged)
            ids = list(acknowledged)
        line.target = port_of(new.url)
        await tell(former.url, "REPLICAOF", "127.0.0.1", port_of(new.url))
        assert await (await client.start(chain, 1)).result(DEADLINE) == 4, "the client is at the new one"
        await check_all_complete(client, ids)
        await check_views(client)
        await check_nothing_is_lost(client, ids, caplog)
