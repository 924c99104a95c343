"""A client in a second event loop, in another thread, and in the children of a fork."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

import streamflow as sf
from streamflow.embedded.server import EmbeddedServer
from streamflow.model.sharding import Partition
from streamflow.store.connection import Call
from tests.conftest import clean_keys

T = TypeVar("T")

FORKING = """
import asyncio, os, sys
import streamflow as sf

url, namespace, used = sys.argv[1:]
client = sf.connect(url, namespace=namespace)

async def begin():
    await client.start("flow", id="r")
    await client.run("r").signal("go", "parent")
    if used != "open":
        return await client.close() if used == "closed" else None
    await fork_all()

async def fork_all():
    for child in range(4):
        if not (pid := os.fork()):
            asyncio._set_running_loop(None)
            try:
                asyncio.run(send(child))
            except sf.StoreError as error:
                print(error, flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
    if used == "open":
        await client.run("r").signal("go", "parent again")

async def send(child):
    for number in range(5):
        await client.run("r").signal("go", f"{child} {number}")

if used == "no":
    asyncio.run(fork_all())
else:
    asyncio.run(begin())
    if used != "open":
        asyncio.run(fork_all())
"""


def in_thread(work: Callable[[], T]) -> T:
    """Where no event loop runs, not even that of a test."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(20)


@pytest.fixture
def created(embedded_server: EmbeddedServer, namespace: str) -> Any:
    async def create() -> None:
        async with sf.connect(embedded_server.url, namespace=namespace) as client:
            await client.store.one(client.kernel.open_namespace(4, Partition.RUN))
            await client.start("flow", id="r")

    in_thread(lambda: asyncio.run(create()))
    yield namespace
    in_thread(lambda: asyncio.run(clean_keys(embedded_server.url, namespace)))


async def messages(url: str, namespace: str) -> int:
    """How many messages have arrived, the start of the run not counted."""
    async with sf.connect(url, namespace=namespace) as client:
        inbox = client.keys.shard((await client.read_namespace()).shard_of("r")).inbox
        return await client.store.one(Call.plain("XLEN", inbox)) - 1


@pytest.mark.parametrize(("used", "expected"), [("no", 20), ("yes", 21), ("open", 22)])
def test_every_child_of_a_fork_has_an_identity_of_its_own(
    embedded_server: EmbeddedServer, created: str, used: str, expected: int
) -> None:
    command = [sys.executable, "-c", FORKING, embedded_server.url, created, used]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True)
    assert done.stdout + done.stderr == ""
    assert in_thread(lambda: asyncio.run(messages(embedded_server.url, created))) == expected


def test_a_client_that_was_closed_before_a_fork_stays_closed(embedded_server: EmbeddedServer, created: str) -> None:
    command = [sys.executable, "-c", FORKING, embedded_server.url, created, "closed"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True)
    assert done.stdout == "the client is closed\n" * 4


def test_a_client_goes_on_in_the_next_event_loop(embedded_server: EmbeddedServer, created: str) -> None:
    client = sf.connect(embedded_server.url, namespace=created)

    async def use(number: int) -> None:
        run = client.run("r")
        await run.signal("go", number)
        with pytest.raises(TimeoutError):
            await run.result(0.01)
        assert [one.id for one in await client.runs(workflow="flow")] == ["r"]

    async def leave() -> None:
        task = asyncio.ensure_future(use(0))
        await asyncio.sleep(0)
        task.cancel()

    def work() -> None:
        for number in range(3):
            asyncio.run(use(number))
        asyncio.run(leave())
        asyncio.run(use(3))
        asyncio.run(client.close())
        with pytest.raises(sf.StoreError, match="closed"):
            asyncio.run(use(4))

    in_thread(work)
    assert in_thread(lambda: asyncio.run(messages(embedded_server.url, created))) == 4


def test_a_second_event_loop_is_refused_at_the_first_call(embedded_server: EmbeddedServer, created: str) -> None:
    client = sf.connect(embedded_server.url, namespace=created)
    calls: list[Callable[[], Coroutine[Any, Any, Any]]] = [
        lambda: client.start("flow"),
        lambda: client.run("r").result(5),
        lambda: client.run("r").signal("go", 1),
        lambda: client.workflows(),
        lambda: client.close(),
    ]
    first = asyncio.new_event_loop()
    thread = threading.Thread(target=first.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(client.workflows(), first).result(10)
        for call in calls:
            with pytest.raises(sf.UsageError, match="another event loop"):
                in_thread(lambda call=call: asyncio.run(call()))
        asyncio.run_coroutine_threadsafe(client.run("r").signal("go", 1), first).result(10)
        asyncio.run_coroutine_threadsafe(client.close(), first).result(10)
    finally:
        first.call_soon_threadsafe(first.stop)
        thread.join()
        first.close()
