"""An archive in a bucket: the S3 API over HTTP, by the server of moto."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import streamflow as sf
from streamflow.archive.archive import Archive
from streamflow.archive.format import ArchivedRun
from streamflow.archive.marker import marker_name, unpack_marker
from streamflow.archive.payloads import Payloads
from streamflow.archive.storage import Threads
from streamflow.daemon import put_off
from streamflow.embedded.server import EmbeddedServer
from streamflow.errors import ArchiveError
from tests.support.serving import running_daemon
from tests.support.waiting import DEADLINE, until
from tests.system.conftest import Serve
from tests.system.test_hibernation import AFTER, moved_out, waits
from tests.system.test_hibernation import app as hibernating
from tests.system.test_hibernation import order as approved

pytestmark = pytest.mark.anyio

SERVER = """
import sys
from moto.server import ThreadedMotoServer
port, server = 0, None
for line in sys.stdin:
    if server is not None:
        server.stop()
        server = None
    if line == "start\\n":
        server = ThreadedMotoServer("127.0.0.1", port=port, verbose=False)
        server.start()
        port = server.get_host_and_port()[1]
    print(port, flush=True)
"""


class Server:
    """It keeps its port and its objects when it is stopped and started."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.endpoint = f"http://127.0.0.1:{self._do('start')}"

    def start(self) -> None:
        self._do("start")

    def stop(self) -> None:
        self._do("stop")

    def _do(self, what: str) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


app = sf.App()


@app.workflow
async def order(name: str) -> str:
    return f"ordered {name}"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    command = [sys.executable, "-W", "ignore", "-c", SERVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        try:
            yield Server(process)
        finally:
            process.stdin.close()
            process.wait(10)


@pytest.fixture(autouse=True)
def credentials(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@pytest.fixture
def bucket(credentials: None) -> str:
    """A new one."""
    import secrets

    import s3fs  # pyright: ignore[reportMissingTypeStubs]

    name = f"runs-{secrets.token_hex(4)}"
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir(name)
    return name


async def test_runs_go_into_a_bucket_and_are_read_there(serve: Serve, bucket: str) -> None:
    async with serve(app, retention=0.001, archive=f"s3://{bucket}/streamflow") as (client, daemon):
        runs = await client.start_many(order, [(f"o{n}",) for n in range(5)], ids=[f"o{n}" for n in range(5)])
        for run in runs:
            await run.result(10)
        history = await runs[3].history()

        async def gone() -> bool:
            for shard in daemon.owner.shards.values():
                shard.forget_at = 0.0
            await daemon.retention.forget_once()
            return not await client.runs()

        await until(gone)
        assert (await runs[3].describe()).archived
        assert await runs[3].history() == history
        assert sorted(run.id for run in await client.archived_runs()) == [f"o{n}" for n in range(5)]
        await client.restore("o2")
        assert not (await client.run("o2").describe()).archived
        assert await client.forget("o4")
        with pytest.raises(sf.RunNotFound):
            await client.run("o4").describe()


@app.workflow
async def repeats(text: str) -> str:
    return text + text


async def test_large_payloads_go_into_a_bucket(serve: Serve, bucket: str) -> None:
    text = "".join(map(str, range(4000)))
    async with serve(app, archive=f"s3://{bucket}/streamflow", large_payload=8192) as (client, _):
        assert await (await client.start(repeats, text, id="r")).result(10) == text + text
        payloads = Payloads(f"s3://{bucket}/streamflow", client.namespace)
        [week] = await payloads.weeks()
        found = await payloads.digests(week)
        assert len(found) == 2
        await payloads.remove(week, found[0])
        assert await payloads.digests(week) == found[1:]


async def test_a_run_in_a_bucket_wakes_though_both_servers_were_restarted(
    server: Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one of the namespace while the run sleeps, the one of the bucket while it should wake."""
    monkeypatch.setattr(put_off, "LONGEST_PAUSE", 0.05)
    options: dict[str, Any] = {"hibernate_after": AFTER, "archive": f"s3://{bucket}/streamflow"}
    async with (
        EmbeddedServer(tmp_path / "data", appendfsync="always") as redis,
        running_daemon(hibernating, redis, "buckets", crash=False, **options) as daemon,
        sf.connect(redis.url, namespace="buckets") as client,
    ):
        run = await client.start(approved, 7, id="o7")
        await waits(client, run)
        history = await run.history()
        await moved_out(daemon)
        assert (await run.describe()).hibernating is not None
        assert await run.history() == history, "read from the bucket"
        pid = redis.pid
        await redis.restart()
        assert redis.pid != pid
        server.stop()
        try:
            await run.signal("approve", "ann")

            async def waits_for_the_bucket() -> bool:
                return any(entry.tries for shard in daemon.owner.shards.values() for entry in shard.put_off.values())

            await until(waits_for_the_bucket)
            assert "storage" in [wait.kind for wait in (await run.describe()).waits_for]
        finally:
            server.start()
        assert await run.result(DEADLINE) == "7 approved by ann"
        assert (await run.history())[: len(history)] == history
        assert daemon.owner.lost_writes.recent_count == 0


async def test_a_bucket_that_is_missing_is_an_error_without_secrets(bucket: str) -> None:
    archive = Archive(f"s3://{bucket}-gone/streamflow", "ns")
    run = ArchivedRun("r1", b"completed 1 c 5 9 flow - -", b"", [b"x"])
    with pytest.raises(ArchiveError, match="can't be used") as caught:
        await archive.store([run])
    assert "s3cret" not in str(caught.value)
    assert await archive.find("r1") is None


async def test_a_bucket_that_was_made_again_is_refused_until_it_is_taken(serve: Serve, bucket: str) -> None:
    url = f"s3://{bucket}/streamflow"
    async with serve(app, archive=url) as (client, daemon):
        marker, watch = marker_name(client.namespace), daemon.archive_watch
        await watch.run_once()
        threads = Threads(url)
        assert await threads.get(marker, unpack_marker) is not None
        await threads.remove(marker)
        daemon.guard._right.clear()
        await watch.run_once()
        assert "Is it mounted" in daemon._troubles.current(stops=False)["archive"]
        await daemon.guard.take(threads)
        await watch.run_once()
        assert not daemon._troubles.current(stops=False)
