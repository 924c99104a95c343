"""What is read of queues: how much waits and runs, who works, and since when the oldest waits."""

from __future__ import annotations

from typing import Any

import pytest

import streamflow as sf
from streamflow.store.connection import Call
from streamflow.store.kernel import WORKERS
from streamflow.store.queues import QueueFigures, read_queues

pytestmark = pytest.mark.anyio


async def read(client: sf.Client, *names: str) -> list[QueueFigures]:
    return await read_queues(client.store, client.keys, names, 8, 5.0)


async def send(client: sf.Client, *words: Any) -> None:
    await client.store.one(Call.plain(*words))


async def test_the_oldest_that_waits_is_the_first_that_no_worker_has(client: sf.Client) -> None:
    one, other = client.keys.queue("gpu", 0).stream, client.keys.queue("gpu", 5).stream
    for stream, at in ((one, 1000), (one, 3000), (other, 4000)):
        await send(client, "XADD", stream, f"{at}-0", "run", "r")
    [gpu, cpu] = await read(client, "gpu", "cpu")  # no worker was ever there
    assert gpu == QueueFigures(name="gpu", waiting=3, running=0, oldest=1000)
    assert cpu == QueueFigures(name="cpu")
    await send(client, "XGROUP", "CREATE", one, WORKERS, "0")
    await send(client, "XREADGROUP", "GROUP", WORKERS, "w1", "COUNT", 1, "STREAMS", one, ">")
    [gpu] = await read(client, "gpu")
    assert gpu == QueueFigures(name="gpu", waiting=2, running=1, oldest=3000)
    await send(client, "XREADGROUP", "GROUP", WORKERS, "w2", "COUNT", 9, "STREAMS", one, ">")
    [gpu] = await read(client, "gpu")
    assert gpu == QueueFigures(name="gpu", waiting=1, running=2, oldest=4000)


async def test_a_queue_that_cannot_be_read_counts_as_empty(client: sf.Client) -> None:
    await send(client, "SET", client.keys.queue("gpu", 0).stream, "not a stream")
    await send(client, "XADD", client.keys.queue("gpu", 1).stream, "2000-0", "run", "r")
    [gpu] = await read(client, "gpu")
    assert gpu == QueueFigures(name="gpu", waiting=1, oldest=2000)
