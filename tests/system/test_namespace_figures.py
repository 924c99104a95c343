"""What a daemon's metrics say of keys that hold known things."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

import streamflow as sf
from streamflow.daemon.clock import DaemonClock
from streamflow.daemon.namespace_figures import NamespaceFigures
from streamflow.embedded.server import EmbeddedServer
from streamflow.http import catalog
from streamflow.http.figures import Figures
from streamflow.store.connection import Call
from streamflow.wire import Heartbeat

pytestmark = pytest.mark.anyio

app = sf.App()


@app.step(queue="gpu")
async def render() -> None:
    """Never run."""


@app.workflow
async def draw() -> None:
    """Never run."""


@pytest.fixture
async def figures(
    client: sf.Client, embedded_server: EmbeddedServer, namespace: str
) -> AsyncIterator[NamespaceFigures]:
    clock = DaemonClock(time.time() * 1000)
    made = NamespaceFigures(embedded_server.url, client.keys, 4, app, clock)
    yield made
    await made.close()


async def send(client: sf.Client, *words: Any) -> None:
    await client.store.one(Call.plain(*words))


async def read(figures: NamespaceFigures, *own: int) -> Figures:
    found = Figures()
    await figures.add_figures(found, own)
    return found


def value(found: Figures, metric: catalog.Metric, *labels: str) -> float:
    return found.values[metric][labels]


async def test_lags_are_those_of_the_shards_that_it_owns(client: sf.Client, figures: NamespaceFigures) -> None:
    now = int(time.time() * 1000)
    for shard, seconds in ((0, 100), (1, 40), (2, 3000)):
        keys = client.keys.shard(shard)
        await send(client, "XADD", keys.inbox, f"{now - seconds * 1000}-0", "kind", "signal")
        await send(client, "XADD", keys.inbox, f"{now - 1000}-0", "kind", "signal")
        await send(client, "ZADD", keys.agenda, now - seconds * 2000, "late", now + 10**9, "later", -1, "in-flight")
    found = await read(figures, 0, 1)
    assert value(found, catalog.INBOX_MESSAGES) == 4
    assert value(found, catalog.INBOX_LAG) == pytest.approx(100, abs=10)
    assert value(found, catalog.AGENDA_LAG) == pytest.approx(200, abs=10)
    assert value(found, catalog.READ_SUCCESS) == 1


async def test_shards_without_a_member_are_unowned(client: sf.Client, figures: NamespaceFigures) -> None:
    await send(client, "HSET", client.keys.members, "d1", msgspec.json.encode(Heartbeat(name="d1")))
    for shard, holder in ((0, "d1"), (1, "dead"), (2, "d1")):
        await send(client, "HSET", client.keys.shard(shard).owner, "holder", holder)
    found = await read(figures)
    assert value(found, catalog.SHARDS_UNOWNED) == 2
    assert value(found, catalog.DAEMONS) == 1
    assert catalog.INBOX_LAG not in found.values  # it owns none


async def test_queues_of_the_app_are_there_before_anything_waits(client: sf.Client, figures: NamespaceFigures) -> None:
    found = await read(figures)
    assert value(found, catalog.QUEUE_WAITING, "gpu") == 0
    assert value(found, catalog.QUEUE_OLDEST, "gpu") == 0
    assert value(found, catalog.QUEUES) == 0


async def test_what_is_read_is_kept_for_a_while(client: sf.Client, figures: NamespaceFigures) -> None:
    await read(figures)
    await send(client, "HSET", client.keys.members, "d1", msgspec.json.encode(Heartbeat(name="d1")))
    assert value(await read(figures), catalog.DAEMONS) == 0
    figures._tried -= 6.0
    assert value(await read(figures), catalog.DAEMONS) == 1


async def test_old_figures_are_left_out(
    client: sf.Client, figures: NamespaceFigures, monkeypatch: pytest.MonkeyPatch
) -> None:
    await read(figures)

    async def fail(own: Any) -> Figures:
        raise sf.StoreError("away")

    monkeypatch.setattr(figures, "_ask", fail)
    figures._tried -= 6.0
    found = await read(figures)
    assert value(found, catalog.READ_SUCCESS) == 0
    assert value(found, catalog.SHARDS) == 4  # as it was read last
    figures._tried -= 6.0
    figures._read -= 61.0
    assert list((await read(figures)).values) == [catalog.READ_SUCCESS]


@pytest.mark.parametrize("data", [b"", b"garbage", b"[]", b'{"as_of": 1}', b'{"value": 3}', b'{"value": {"a": 1}}'])
async def test_a_view_that_is_damaged_costs_only_itself(
    client: sf.Client, figures: NamespaceFigures, data: bytes
) -> None:
    for name in ("runs", "step_durations"):
        await send(client, "SET", client.keys.view(name), data)
    found = await read(figures)
    assert value(found, catalog.SHARDS) == 4
    assert value(found, catalog.QUEUE_WAITING, "gpu") == 0


async def test_what_is_paused_is_there_and_what_is_not_is_zero(client: sf.Client, figures: NamespaceFigures) -> None:
    for what in ("queue:gpu", "workflow:other"):
        await send(client, "HSET", client.keys.paused, what, b"{}")
    counts = {"order": {"running": 2, "paused": 3}, "draw": {"running": 1}}
    await send(client, "SET", client.keys.view("runs"), msgspec.json.encode({"value": {"workflows": counts}}))
    found = await read(figures)
    assert value(found, catalog.QUEUE_PAUSED, "gpu") == 1
    assert value(found, catalog.WORKFLOW_PAUSED, "draw") == 0
    assert sum(found.values[catalog.WORKFLOW_PAUSED].values()) == 1
    assert value(found, catalog.RUNS_OPEN, "draw", "paused") == 0
    assert sum(n for (_, status), n in found.values[catalog.RUNS_OPEN].items() if status == "paused") == 3
