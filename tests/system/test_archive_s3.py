"""An archive in a bucket: the S3 API over HTTP, by the server of moto."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

import streamflow as sf
from streamflow.archive.archive import Archive
from streamflow.archive.format import ArchivedRun
from streamflow.archive.payloads import Payloads
from streamflow.errors import ArchiveError
from tests.support.waiting import until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio

SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
"""

app = sf.App()


@app.workflow
async def order(name: str) -> str:
    return f"ordered {name}"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    command = [sys.executable, "-W", "ignore", "-c", SERVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.stdin.close()
            server.wait(10)


@pytest.fixture(autouse=True)
def credentials(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@pytest.fixture
def bucket(endpoint: str) -> str:
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


async def test_a_bucket_that_is_missing_is_an_error_without_secrets(bucket: str) -> None:
    archive = Archive(f"s3://{bucket}-gone/streamflow", "ns")
    run = ArchivedRun("r1", b"completed 1 c 5 9 flow - -", b"", [b"x"])
    with pytest.raises(ArchiveError, match="can't be used") as caught:
        await archive.store([run])
    assert "s3cret" not in str(caught.value)
    assert await archive.find("r1") is None
