"""Users of the server with exactly what they need: of one namespace, or only to look."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from click.testing import CliRunner
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError

import streamflow as sf
from streamflow.cli import cli
from streamflow.embedded.server import EmbeddedServer, find_server
from streamflow.status.collector import StatusCollector
from streamflow.store.keys import NamespaceKeys
from streamflow.store.roles import Role, rights
from tests.support.secure import free_port
from tests.support.serving import FAST, running_daemon
from tests.support.waiting import DEADLINE, until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio

app = sf.App()


@app.step
async def double(n: int) -> int:
    return 2 * n


@app.workflow
async def flow(n: int) -> int:
    return await double(n)


@pytest.fixture
def admin(embedded_server: EmbeddedServer) -> Iterator[Redis]:
    with Redis.from_url(embedded_server.url, decode_responses=True) as redis:
        yield redis
        redis.acl_deluser("tester")


def user(admin: Redis, server: EmbeddedServer, namespace: str, *rules: str) -> str:
    """The URL of a user who may use the keys and channels of the namespace."""
    own = (f"~sf:{{{namespace}}}:*", f"~sf:{{{namespace}/*", f"&sf:{{{namespace}/*")
    admin.execute_command("ACL", "SETUSER", "tester", "reset", "on", ">s3cret", *own, *rules)
    return server.url.replace("://", "://tester:s3cret@")


async def test_a_user_of_one_namespace_can_do_all_there_and_nothing_elsewhere(
    embedded_server: EmbeddedServer, admin: Redis, namespace: str
) -> None:
    url = user(admin, embedded_server, namespace, "+@all")
    server: Any = type("Server", (), {"url": url})
    async with running_daemon(app, server, namespace, crash=False), sf.connect(url, namespace=namespace) as client:
        assert await (await client.start(flow, 21)).result(DEADLINE) == 42
    with Redis.from_url(url) as redis:
        for other in (f"{namespace}2", f"{namespace}.x", f"{namespace}.0", "default"):
            keys = NamespaceKeys(other)
            for key in (keys.meta, keys.shard(0).inbox, keys.queue("gpu", 0).stream):
                with pytest.raises(NoPermissionError):
                    redis.exists(key)


def answers(port: int) -> bool:
    with Redis(port=port) as redis:
        try:
            return redis.ping() is True
        except RedisConnectionError:
            return False


@pytest.fixture(params=["renamed", "denied"])
async def reticent(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """The URL of a server that hides INFO and CONFIG, as some managed services do."""
    if request.param == "renamed":
        port = free_port()  # not by EmbeddedServer, which knows its server by INFO
        renamed = [word for name in ("INFO", "CONFIG") for word in ("--rename-command", name, f"own-{name}")]
        command = [str(find_server()), "--bind", "127.0.0.1", "--port", str(port), "--save", "", *renamed]
        with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
            try:
                await until(lambda: anyio.to_thread.run_sync(answers, port))
                yield f"redis://127.0.0.1:{port}"
            finally:
                process.terminate()
    else:
        async with EmbeddedServer(memory=True) as server:
            with Redis.from_url(server.url) as admin:
                rules = ("reset", "on", ">s3cret", "~*", "&*", "+@all", "-info", "-config")
                admin.execute_command("ACL", "SETUSER", "tester", *rules)
            yield server.url.replace("://", "://tester:s3cret@")


async def test_a_server_that_hides_what_it_is_works_and_that_is_said_once(
    reticent: str, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    def look(*words: str) -> dict[str, Any]:
        environ = {"STREAMFLOW_APP": None, "STREAMFLOW_REDIS": reticent, "STREAMFLOW_NAMESPACE": namespace}
        result = CliRunner().invoke(cli, words, env=environ)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    server: Any = type("Server", (), {"url": reticent})
    async with running_daemon(app, server, namespace, crash=False), sf.connect(reticent, namespace=namespace) as client:
        assert await (await client.start(flow, 21)).result(DEADLINE) == 42
        collector = StatusCollector(client)
        statuses = [await collector.collect() for _ in range(2)]
        status = await anyio.to_thread.run_sync(look, "status", "--json")
        checked = await anyio.to_thread.run_sync(look, "check", "--json", "--shards", str(FAST["shards"]))
    assert [one.server for one in statuses] == [None, None]
    assert [len(one.warnings) for one in statuses] == [1, 1]
    assert "doesn't allow INFO" in status["warnings"][0]
    assert checked["ok"]
    assert [(one["level"], one["about"]) for one in checked["findings"]] == [("warning", "server")]
    assert caplog.text.count("So it is not known whether the server keeps its data") == 1


async def test_a_user_who_may_only_read_can_look_at_everything(
    serve: Serve, embedded_server: EmbeddedServer, admin: Redis, namespace: str
) -> None:
    async with serve(app) as (client, _):
        run = await client.start(flow, 4)
        assert await run.result(DEADLINE) == 8
        url = user(admin, embedded_server, namespace, *rights(Role.VIEWER, namespace).rules)

        def look(*words: str) -> str:
            environ = {"STREAMFLOW_APP": None, "STREAMFLOW_REDIS": url, "STREAMFLOW_NAMESPACE": namespace}
            result = CliRunner().invoke(cli, words, env=environ)
            assert result.exit_code == 0, (words, result.output)
            return result.stdout

        status = json.loads(await anyio.to_thread.run_sync(look, "status", "--json"))
        assert status["namespace"] == namespace
        assert run.id in await anyio.to_thread.run_sync(look, "runs", "--json")
        assert "double" in await anyio.to_thread.run_sync(look, "show", run.id)
        admin.script_flush()  # it may not load them again
        async with sf.connect(url, namespace=namespace) as viewer:
            assert await viewer.run(run.id).result(DEADLINE) == 8
            with pytest.raises(sf.StoreError, match="ACL"):
                await viewer.start(flow, 1)
