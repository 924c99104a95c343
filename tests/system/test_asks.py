"""Asks: a question to a run, and its answer. In most tests no daemon runs: `Owner` answers by hand."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any, assert_type

import anyio
import msgspec
import pytest
from msgspec import Raw
from redis.asyncio import Redis

import streamflow as sf
from streamflow.embedded.server import EmbeddedServer
from streamflow.events import AskAnswered, RunCompleted
from streamflow.model.record import Status
from streamflow.model.sharding import Partition
from streamflow.store.connection import Call
from streamflow.store.subscription import NodeSubscription
from tests.support.waiting import names_of
from tests.system.conftest import Serve
from tests.system.owner_by_hand import Owner, waiting

pytestmark = pytest.mark.anyio

app = sf.App()


class Seats(msgspec.Struct):
    left: int


@app.workflow
async def cinema() -> None: ...


@app.workflow
async def box_office(left: int) -> int:
    """Sells seats until somebody closes it."""
    while True:
        request = await sf.question("reserve", int)
        if request.value == 0:
            request.answer("closed")
            return left
        if request.value > left:
            request.refuse(f"only {left} left")
        else:
            left -= request.value
            request.answer({"left": left})


@pytest.fixture
async def client(embedded_server: EmbeddedServer, namespace: str) -> AsyncIterator[sf.Client]:
    async with sf.connect(embedded_server.url, namespace=namespace) as client:
        await client.store.one(client.kernel.open_namespace(8, Partition.RUN))
        yield client


@pytest.fixture
def owner(client: sf.Client) -> Owner:
    return Owner(client)


def raw(value: object) -> Raw:
    return Raw(msgspec.msgpack.encode(value))


async def answer(owner: Owner, run: sf.Run[Any], value: object = None, **how: Any) -> None:
    """Take the newest question and answer it."""
    ask = await owner.asked(run.id)
    failure = how.pop("failure", None)
    answered = AskAnswered(ask.id, ask.name, raw(value), failure)
    await owner.commit(run.id, ask, answered, *how.pop("then", ()), status=how.pop("status", Status.RUNNING), **how)


async def test_a_question_waits_for_the_next_daemon_and_is_answered_once(serve: Serve) -> None:
    async with serve(app, crash=True) as (client, _):
        run = await client.start(box_office, 5, id="office")
        assert await run.ask("reserve", 1, timeout=10, type=Seats) == Seats(4)
    asking = asyncio.create_task(run.ask("reserve", 1, timeout=20, type=Seats))
    await Owner(client).asked(run.id)
    async with serve(app):
        assert await asking == Seats(3)
        assert await run.ask("reserve", 0, timeout=10) == "closed"
    assert (await names_of(run)).count("AskAnswered") == 3


@pytest.mark.parametrize("payloads", [True, False], ids=["with payload", "payload too large"])
async def test_an_ask_gives_what_the_run_answers_typed(client: sf.Client, owner: Owner, payloads: bool) -> None:
    run = await client.start(cinema)
    asking = asyncio.create_task(run.ask("reserve", {"seats": 2}, timeout=10, type=Seats))
    ask = await owner.asked(run.id)
    assert (ask.name, msgspec.msgpack.decode(ask.value)) == ("reserve", {"seats": 2})
    await answer(owner, run, {"left": 3}, payloads=payloads)
    result = await asking
    assert_type(result, Seats)
    assert result == Seats(3)
    assert client._waiter._all_waiting() == [], "nobody waits any more"


async def test_an_answer_that_is_not_of_the_type_is_an_error_that_names_both(client: sf.Client, owner: Owner) -> None:
    run = await client.start(cinema, id="kino")
    asking = asyncio.create_task(run.ask("reserve", type=int))
    await answer(owner, run, "none")
    with pytest.raises(sf.PayloadInvalid, match="answer of run kino to reserve"):
        await asking


async def test_a_refusal_is_raised_with_its_failure(client: sf.Client, owner: Owner) -> None:
    run = await client.start(cinema, id="kino")
    asking = asyncio.create_task(run.ask("reserve", 200))
    failure = sf.Failure("ValueError", "too many")
    await answer(owner, run, failure=failure)
    with pytest.raises(sf.AskRefused, match="kino refused question reserve: ValueError: too many") as caught:
        await asking
    assert caught.value.failure == failure
    assert (await run.describe()).status is sf.Status.RUNNING


async def test_a_run_that_answers_and_ends_at_once_has_answered(client: sf.Client, owner: Owner) -> None:
    run = await client.start(cinema)
    asking = asyncio.create_task(run.ask("close", type=bool))
    ending = RunCompleted("cinema", "", 5, raw(None))
    await answer(owner, run, True, then=[ending], status=Status.COMPLETED)
    assert await asking is True


async def test_a_run_that_ends_without_answering_is_an_error(client: sf.Client, owner: Owner) -> None:
    run = await client.start(cinema)
    asking = asyncio.create_task(run.ask("reserve"))
    await owner.asked(run.id)
    await owner.complete(run.id)
    with pytest.raises(sf.RunEnded, match="without answering"):
        await asking
    with pytest.raises(sf.RunEnded, match="accepts no ask"):
        await run.ask("reserve")
    with pytest.raises(sf.RunNotFound):
        await client.run("nothing").ask("reserve")


async def test_a_timeout_says_that_the_answer_may_still_come(client: sf.Client, owner: Owner) -> None:
    run = await client.start(cinema)
    for timeout in (0.05, 0.5, 5.0):  # in which it has to be sent
        with pytest.raises(TimeoutError, match=rf"not answered reserve within {timeout:g} s; it may still do so"):
            await run.ask("reserve", timeout=timeout)
        if "ask" in await owner.inbox(run.id):
            break
    await answer(owner, run, 1)
    assert client._waiter._all_waiting() == []


async def test_an_answer_whose_notification_is_lost_is_found_by_the_sweep(client: sf.Client, owner: Owner) -> None:
    run = await client.start(cinema)
    asking = asyncio.create_task(run.ask("reserve"))
    await owner.asked(run.id)
    client._waiter._channels.clear()  # as if the message had never come
    await answer(owner, run, 7)
    await client._waiter.sweep()
    assert await asking == 7


async def test_an_answer_is_found_also_when_all_that_is_seen_is_the_end(client: sf.Client, owner: Owner) -> None:
    run = await client.start(cinema)
    asking = asyncio.create_task(run.ask("reserve"))
    await owner.asked(run.id)
    channels = dict(client._waiter._channels)
    client._waiter._channels.clear()
    await answer(owner, run, 7)
    client._waiter._channels.update(channels)
    await owner.complete(run.id)
    assert await asking == 7


async def test_asking_survives_the_loss_of_all_connections(
    client: sf.Client, owner: Owner, without_sweeps: None
) -> None:
    """The reconnection itself finds what was missed."""
    run = await client.start(cinema)
    asking = asyncio.create_task(run.ask("reserve", timeout=20))
    await owner.asked(run.id)
    async with Redis.from_url(client.store.url) as redis:
        await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    await answer(owner, run, 7)
    assert await asking == 7


async def test_each_asker_gets_its_own_answer(client: sf.Client, owner: Owner) -> None:
    run = await client.start(cinema)
    first = asyncio.create_task(run.ask("reserve", 1))
    one = await owner.asked(run.id)
    second = asyncio.create_task(run.ask("reserve", 2))
    await waiting(client, 3)  # the run and two answers
    two = await owner.asked(run.id)
    while two.id == one.id:
        two = await owner.asked(run.id)
    answers = [AskAnswered(ask.id, ask.name, ask.value) for ask in (two, one)]
    await owner.commit(run.id, one, two, *answers, status=Status.RUNNING)
    assert await asyncio.gather(first, second) == [1, 2]


async def test_what_cannot_be_asked_is_refused_before_anything_is_sent(client: sf.Client) -> None:
    run = await client.start(cinema)
    with pytest.raises(sf.InvalidName):
        await run.ask("no spaces")
    with pytest.raises(sf.PayloadInvalid):
        await run.ask("reserve", object())
    shard = (await client.read_namespace()).shard_of(run.id)
    assert await client.store.one(Call.plain("XLEN", client.keys.shard(shard).inbox)) == 1, "its start"


async def test_the_command_prints_the_answer_as_json(client: sf.Client, owner: Owner) -> None:
    run = await client.start(cinema, id="kino")
    words = ["ask", "kino", "reserve", '{"seats": 2}', "--timeout", "20"]
    server = ["--redis", client.store.url, "--namespace", client.namespace]
    command = [sys.executable, "-m", "streamflow", *words, *server]
    asking = asyncio.create_task(anyio.run_process(command))
    ask = await owner.asked(run.id)
    assert msgspec.msgpack.decode(ask.value) == {"seats": 2}
    await answer(owner, run, {"left": 3})
    assert msgspec.json.decode((await asking).stdout) == {"left": 3}


@pytest.mark.parametrize("is_confirmed", [True, False])
async def test_closing_the_client_ends_asking(
    client: sf.Client, owner: Owner, is_confirmed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while the subscription to the answer is not confirmed yet."""

    async def send_nothing(*_: object) -> None:
        pass

    if not is_confirmed:
        monkeypatch.setattr(NodeSubscription, "_send", send_nothing)
    run = await client.start(cinema)
    asking = asyncio.create_task(run.ask("reserve"))
    await owner.asked(run.id)
    if is_confirmed:
        await waiting(client, 2)
    await client.close()
    with pytest.raises(sf.StoreError, match="closed"):
        await asking
