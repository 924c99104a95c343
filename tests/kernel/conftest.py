"""The servers that every kernel test runs on, and the check that it leaves only keys that we know.

`shard` is one shard on fakeredis, on the Valkey from the wheel, and on each other server that is found (`SERVERS`);
`real_shard` leaves out fakeredis, for what only a server can show.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from fakeredis import FakeAsyncRedis

from streamflow.embedded.server import EmbeddedServer
from streamflow.store.node import Node
from streamflow.store.scripts import load_scripts
from tests.conftest import SERVERS
from tests.kernel.support import Shard

REAL = [pytest.param(name, marks=pytest.mark.server) for name in ["valkey", *SERVERS]]


@pytest.fixture(params=["fakeredis", *REAL])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=REAL)
def server(request: pytest.FixtureRequest) -> EmbeddedServer:
    """A real server, which other tests use too."""
    return _server(request, request.param)


@pytest.fixture
def url(request: pytest.FixtureRequest, backend: str) -> str:
    """Empty for fakeredis."""
    if backend == "fakeredis":
        return ""
    return _server(request, backend).url


def _server(request: pytest.FixtureRequest, name: str) -> EmbeddedServer:
    """`valkey` is the one from the wheel."""
    if name == "valkey":
        return request.getfixturevalue("embedded_server")
    return request.getfixturevalue("other_server")(name)


def fake_store() -> Node:
    """A store on a server of its own in this process."""
    scripts = {name: script.for_fake() for name, script in load_scripts().items()}
    return Node("redis://fake", client=FakeAsyncRedis(version=(7,)), scripts=scripts)


@pytest.fixture
async def store(url: str) -> AsyncIterator[Node]:
    store = Node(url) if url else fake_store()
    yield store
    await store.close()


@pytest.fixture
async def shard(store: Node, namespace: str) -> AsyncIterator[Shard]:
    shard = Shard(store, namespace)
    yield shard
    await leave_clean(shard)


@pytest.fixture
async def real_shard(server: EmbeddedServer, namespace: str) -> AsyncIterator[Shard]:
    store = Node(server.url)
    shard = Shard(store, namespace)
    yield shard
    await leave_clean(shard)
    await store.close()


async def leave_clean(shard: Shard) -> None:
    try:
        await shard.assert_only_known_keys()
    finally:
        names = await shard.key_names()
        if names:
            await shard.plain("DEL", *names)
