"""What guide/ and system/ share: a client, daemons and workers in this process, and a check of the keys that remain."""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

import anyio
import msgspec
import pytest
from redis import Redis

import streamflow as sf
from streamflow.daemon.daemon import Daemon
from streamflow.embedded.cluster import EmbeddedCluster
from streamflow.embedded.server import EmbeddedServer
from streamflow.model.record import LISTED
from streamflow.model.sharding import Partition, winner_of
from streamflow.settings import Settings
from streamflow.store.connection import Call
from streamflow.store.keys import BUCKETS, NamespaceKeys
from streamflow.views.registry import VIEWS
from streamflow.worker.worker import Worker
from tests.support.waiting import DEADLINE

FAST: dict[str, Any] = {"shards": 8, "beat": 0.05, "dead_after": 0.4, "grace": 2.0, "rollup": 0.05, "threads": 4}


class Work(Protocol):
    """`async with work(app, *queues, **settings) as worker`: a worker in this process (default queue: gpu).

    Leaving drains it; with `crash=True` its loops are cancelled on the spot, and what it had stays claimed.
    """

    def __call__(
        self, app: sf.App, *queues: str, crash: bool = False, **settings: Any
    ) -> AbstractAsyncContextManager[Worker]: ...


@asynccontextmanager
async def running_daemon(
    app: sf.App, server: EmbeddedServer | EmbeddedCluster, namespace: str, *, crash: bool, **settings: Any
) -> AsyncGenerator[Daemon, None]:
    """A daemon in this process that is ready; leaving drains it, or with `crash=True` cancels its loops on the spot."""
    chosen: dict[str, Any] = FAST | settings | {"partition": Partition(settings.get("partition", "run"))}
    daemon = _daemon_with_shards(app, Settings(redis=server.url, namespace=namespace, **chosen))
    unseen = set[int]()
    async with anyio.create_task_group() as daemons:
        daemons.start_soon(daemon.run)
        with anyio.fail_after(DEADLINE):
            await daemon.ready.wait()
        _note_shards_that_nobody_looks_at(daemon, unseen)
        _running[namespace].append(daemon.member)
        try:
            yield daemon
        finally:
            _running[namespace].remove(daemon.member)
        if crash:
            daemons.cancel_scope.cancel()
        else:
            daemon.stop()
    assert not unseen, f"shards {unseen} were not at rest, and not active either: no loop looks at them"


_running: defaultdict[str, list[str]] = defaultdict(list)
"""Daemons of this process, by namespace."""


def _daemon_with_shards(app: sf.App, settings: Settings) -> Daemon:
    """Tests with two daemons mean two that have shards. By chance, one of two gets none of 8 in one case of 128."""
    assert settings.shards is not None
    others = _running[settings.namespace]
    for _ in range(100):
        daemon = Daemon(app, settings)
        members = {*others, daemon.member}
        if {winner_of(number, members) for number in range(settings.shards)} == members:
            return daemon
    return Daemon(app, settings)


def _note_shards_that_nobody_looks_at(daemon: Daemon, unseen: set[int]) -> None:
    """From now on, each heartbeat adds those that are neither at rest nor active."""
    owner = daemon.owner
    let_rest = owner.let_rest

    def checked() -> None:
        let_rest()
        unseen.update(n for n, shard in owner.shards.items() if n not in owner.active and not shard.is_at_rest)

    owner.let_rest = checked  # type: ignore[method-assign]


async def view(client: sf.Client, name: str) -> Any:
    """A merged view as it is stored now; None before the first."""
    data = await client.store.one(Call.plain("GET", client.keys.view(name)))
    return None if data is None else msgspec.json.decode(data)["value"]


async def views_of_one_merge(client: sf.Client, *names: str) -> dict[str, Any]:
    """Merged views by name, none of which is older than another; empty before the first merge, and while one is being
    stored."""
    stored = await client.store.send([Call.plain("GET", client.keys.view(name)) for name in names])
    views = [msgspec.json.decode(data) for data in stored if data is not None]
    if len(views) < len(names) or len({view["as_of"] for view in views}) > 1:
        return {}
    return {name: view["value"] for name, view in zip(names, views, strict=True)}


@pytest.fixture
async def client(embedded_server: EmbeddedServer, namespace: str) -> AsyncIterator[sf.Client]:
    async with sf.connect(embedded_server.url, namespace=namespace) as client:
        yield client


@asynccontextmanager
async def running_worker(
    app: sf.App, server: EmbeddedServer, namespace: str, *queues: str, crash: bool = False, **settings: Any
) -> AsyncGenerator[Worker, None]:
    """A worker in this process that is ready. Queues, and what leaving does, as in `Work`."""
    chosen: dict[str, Any] = FAST | {"concurrency": 4, "worker_timeout": 0.6} | settings
    worker = Worker(app, Settings(redis=server.url, namespace=namespace, **chosen), queues or ("gpu",))
    async with anyio.create_task_group() as workers:
        workers.start_soon(worker.run)
        with anyio.fail_after(DEADLINE):
            await worker.ready.wait()
        yield worker
        if crash:
            workers.cancel_scope.cancel()
        else:
            worker.stop()


@pytest.fixture
def work(embedded_server: EmbeddedServer, namespace: str) -> Work:
    def work(app: sf.App, *queues: str, crash: bool = False, **settings: Any) -> AbstractAsyncContextManager[Worker]:
        return running_worker(app, embedded_server, namespace, *queues, crash=crash, **settings)

    return work


@pytest.fixture(autouse=True)
def no_unknown_keys_are_left(embedded_server: EmbeddedServer, namespace: str) -> Iterator[None]:
    """After each test every key is one that `store/keys.py` names and that is meant to stay; then all are deleted."""
    yield
    with Redis.from_url(embedded_server.url, decode_responses=True) as redis:
        names = {
            key
            for pattern in (f"sf:{{{namespace}}}:*", f"sf:{{{namespace}/*}}:*")
            for key in redis.scan_iter(match=pattern, count=1000)
        }
        if names:
            redis.delete(*names)
    permanent = _permanent()
    unknown = sorted(name for name in names if not permanent.fullmatch(name.replace(f"{{{namespace}", "{ns", 1)))
    assert not unknown


@functools.cache
def _permanent() -> re.Pattern[str]:
    """Matches all permanent keys of a namespace `ns`. To compile it for each test took a tenth of its time."""
    namespace = "ns"
    keys = NamespaceKeys(namespace)
    shard = keys.shard(0)
    a_name, an_id, a_value = "NAME", "ID", "VALUE"
    queue = keys.queue(a_name, 0)
    names = [
        keys.meta,
        keys.members,
        keys.workers,
        keys.ended,
        keys.fence,
        keys.workflows,
        keys.served,
        keys.paused,
        keys.groups,
        keys.queues,
        keys.undelivered,
        keys.files,
        keys.triggers,
        keys.app_views,
        keys.app_view_heads,
        keys.suspects(a_name),
        keys.view("oldest"),
        keys.view("attention"),
        keys.view("sizes"),
        *(keys.view(view.name) for view in VIEWS),
    ]
    names += [
        shard.inbox,
        shard.kept,
        shard.log,
        shard.agenda,
        shard.outbox,
        shard.owner,
        shard.seen,
        shard.poison,
        shard.positions,
        shard.views,
    ]
    names += [shard.steps, shard.details, shard.waiting, shard.turns]
    names += [shard.published(an_id), shard.chunks(an_id), shard.answer(an_id), shard.known(an_id)]
    names += [shard.attribute(a_name, a_value), shard.app_view(a_name)]
    names += [shard.bucket(f"{number:02x}") for number in range(BUCKETS)]
    names += [shard.run(an_id), shard.tenant(a_name), *(shard.index(status, a_name) for status in LISTED)]
    names += [queue.stream, queue.steps, queue.details]
    # Shard 0 stands for all of them.
    return re.compile(
        "|".join(
            re.escape(name)
            .replace(re.escape(f"{{{namespace}/0}}"), re.escape(f"{{{namespace}/") + r"\d+" + re.escape("}"))
            .replace(a_name, r"[\w.:@=+~-]+")
            .replace(an_id, r"[\w.:@=+~/-]+")
            .replace(a_value, r"[\w.~%-]*")
            for name in names
        )
    )
