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
from streamflow.store.kernel import Kernel
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
async def leading(
    client: sf.Client, embedded_server: EmbeddedServer, namespace: str
) -> AsyncIterator[NamespaceFigures]:
    """Of the daemon that leads."""
    clock = DaemonClock(time.time() * 1000)
    made = NamespaceFigures(embedded_server.url, client.keys, 4, app, clock, lambda: True)
    yield made
    await made.close()


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


async def make_group(client: sf.Client, name: str, offset: int, *, shards: int = 4) -> None:
    """A group that has acknowledged all up to this time (ms)."""
    kernel = Kernel(client.keys)
    note = msgspec.json.encode({"identity": "i1", "created": 1, "start": "oldest"})
    await send(client, "HSET", client.keys.groups, name, note)
    for number in range(shards):
        await client.store.one(kernel.place_position(number, name, "i1", str(offset), over=False))


async def test_the_leader_says_how_far_each_group_is_behind(client: sf.Client, leading: NamespaceFigures) -> None:
    now = int(time.time() * 1000)
    for shard, seconds in ((0, 100), (0, 90), (1, 300), (2, 1000)):
        await send(client, "XADD", client.keys.shard(shard).log, f"{now - seconds * 1000}-0", "r1", "x" * 100)
    await make_group(client, "billing", now - 500_000)  # it has read shard 2
    await make_group(client, "search", now)
    await send(client, "HSET", client.keys.consumers("search"), "c1", b"{}", "c2", b"{}")
    found = await read(leading)
    await send(client, "DEL", client.keys.consumers("search"))
    assert value(found, catalog.GROUP_LAG_ENTRIES, "billing") == 3
    assert value(found, catalog.GROUP_LAG, "billing") == pytest.approx(300, abs=30)
    assert value(found, catalog.GROUP_LAG_BYTES, "billing") > 3 * 100
    assert value(found, catalog.GROUP_CONSUMERS, "billing") == 0
    assert value(found, catalog.GROUP_CONSUMERS, "search") == 2
    for metric in (catalog.GROUP_LAG_ENTRIES, catalog.GROUP_LAG, catalog.GROUP_LAG_BYTES, catalog.GROUP_LOST):
        assert value(found, metric, "search") == 0


async def test_only_the_leader_asks_each_shard_for_groups(client: sf.Client, figures: NamespaceFigures) -> None:
    await make_group(client, "billing", 1)
    assert catalog.GROUP_LAG not in (await read(figures)).values


async def test_what_a_group_has_lost_is_counted(client: sf.Client, leading: NamespaceFigures) -> None:
    await make_group(client, "billing", 1)
    for number in (0, 3):
        await send(client, "HSET", client.keys.shard(number).positions, "billing/lost", "7 1-0 9-0 5")
    assert value(await read(leading), catalog.GROUP_LOST, "billing") == 14


async def test_groups_beyond_the_first_fifty_share_a_label(client: sf.Client, leading: NamespaceFigures) -> None:
    for number in range(53):
        await make_group(client, f"g{number:02}", 1)
        await send(client, "HSET", client.keys.consumers(f"g{number:02}"), "c1", b"{}")
    await send(client, "HSET", client.keys.groups, "damaged", b"[")
    found = (await read(leading)).values[catalog.GROUP_CONSUMERS]
    await send(client, "DEL", *(client.keys.consumers(f"g{number:02}") for number in range(53)))
    assert len(found) == 51
    assert found[(catalog.OTHER,)] == 3
