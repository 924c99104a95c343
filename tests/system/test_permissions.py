"""Users of the server with exactly what they need: of one namespace, or only to look."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anyio.to_thread
import pytest
from click.testing import CliRunner
from redis import Redis
from redis.exceptions import NoPermissionError

import streamflow as sf
from streamflow.cli import cli
from streamflow.embedded.server import EmbeddedServer
from streamflow.store.keys import NamespaceKeys
from tests.support.serving import running_daemon
from tests.support.waiting import DEADLINE
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio

app = sf.App()


@app.step
async def double(n: int) -> int:
    return 2 * n


@app.workflow
async def flow(n: int) -> int:
    return await double(n)


READS = (
    "+@read",
    "+@connection",
    "+evalsha_ro",
    "+eval_ro",
    "+info",
    "+time",
    "+config|get",
    "+ssubscribe",
    "+sunsubscribe",
)


@pytest.fixture
def admin(embedded_server: EmbeddedServer) -> Iterator[Redis]:
    with Redis.from_url(embedded_server.url, decode_responses=True) as redis:
        yield redis
        redis.acl_deluser("tester")


def user(admin: Redis, server: EmbeddedServer, namespace: str, *rules: str) -> str:
    """The URL of a user who may use the keys and channels of the namespace, by the patterns of the documentation."""
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


async def test_a_user_who_may_only_read_can_look_at_everything(
    serve: Serve, embedded_server: EmbeddedServer, admin: Redis, namespace: str
) -> None:
    async with serve(app) as (client, _):
        run = await client.start(flow, 4)
        assert await run.result(DEADLINE) == 8
        url = user(admin, embedded_server, namespace, *READS)

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
