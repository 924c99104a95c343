"""The client, without a daemon: `Owner` commits by hand what a daemon would."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, assert_type

import msgspec
import pytest
from msgspec import Raw
from redis.asyncio import Redis

import streamflow.client.client as sf
from streamflow import errors, events
from streamflow.client.client import Client, NewRun, Run
from streamflow.embedded.server import EmbeddedServer
from streamflow.errors import (
    Failure,
    InvalidName,
    NamespaceMismatch,
    NamespaceMissing,
    PayloadInvalid,
    PayloadTooLarge,
    RunConflict,
    RunEnded,
    RunError,
    RunNotFound,
    StoreError,
    StoreUnavailable,
    UsageError,
)
from streamflow.events import RunCompleted, SignalReceived, decode_transition, encode_transition
from streamflow.model.record import Status
from streamflow.model.sharding import Partition
from streamflow.store.connection import Call
from streamflow.store.node import Node
from streamflow.wire import notified_ending
from streamflow.workflow.app import App
from tests.system.owner_by_hand import Owner, waiting

pytestmark = pytest.mark.anyio

app = App()


class Order(msgspec.Struct):
    item: str
    count: int = 1


@app.workflow
async def price(order: Order, discount: float = 0.0) -> float:
    return order.count * (1 - discount)


@app.workflow
async def other() -> None: ...


@app.reducer
def counter(state: int, event: Any) -> Any: ...


@pytest.fixture
async def client(embedded_server: EmbeddedServer, namespace: str) -> AsyncIterator[Client]:
    async with sf.connect(embedded_server.url, namespace=namespace) as client:
        await client.store.one(client.kernel.open_namespace(8, Partition.RUN))
        yield client


@pytest.fixture
def owner(client: Client) -> Owner:
    return Owner(client)


# --- starting -------------------------------------------------------------------------------------------------------


async def test_a_run_is_started_with_the_arguments_of_its_workflow(client: Client) -> None:
    run = await client.start(price, Order("tea", 2), 0.5)
    assert_type(run, Run[float])
    assert run.created
    described = await run.describe()
    assert described.status is Status.PENDING
    assert described.workflow == "price"
    assert described.ended is None
    assert abs(described.created - datetime.now(UTC)) < timedelta(minutes=1)


async def test_arguments_that_do_not_fit_are_refused_before_anything_is_sent(client: Client) -> None:
    with pytest.raises(TypeError):
        await client.start(price, 1, 2, 3, id="r")  # pyright: ignore
    with pytest.raises(PayloadInvalid):
        await client.start("price", object(), id="r")
    with pytest.raises(PayloadTooLarge, match="2,097,152"):
        await client.start("price", "x" * 3_000_000, id="r")
    with pytest.raises(InvalidName):
        await client.start(price, Order("tea"), id="no spaces")
    with pytest.raises(InvalidName):
        await client.start(price, Order("tea"), id="r", tenant="{acme}")
    with pytest.raises(UsageError, match="decorate it"):
        await client.start(test_a_run_is_started_with_the_arguments_of_its_workflow, client)
    with pytest.raises(RunNotFound):
        await client.run("r").describe()


async def test_ids_are_new_and_sort_by_time(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time_ns()
    ids = [(await client.start(other)).id for _ in range(2)]
    monkeypatch.setattr(time, "time_ns", lambda: now + 60_000_000_000)
    later = await client.start(other)
    assert len({*ids, later.id}) == 3
    assert later.id > max(ids)
    assert uuid.UUID(later.id).version == 7
    assert uuid.UUID(later.id).variant == uuid.RFC_4122


async def test_the_same_id_again_is_the_same_run(client: Client) -> None:
    first = await client.start(price, Order("tea"), id="order-1")
    second = await client.start(price, Order("coffee"), id="order-1")
    assert (first.id, first.created) == ("order-1", True)
    assert (second.id, second.created) == ("order-1", False)
    assert len(await client.runs(workflow="price")) == 1


async def test_an_id_of_another_workflow_is_a_conflict(client: Client) -> None:
    await client.start(price, Order("tea"), id="order-1")
    with pytest.raises(RunConflict, match="workflow price, not other"):
        await client.start(other, id="order-1")


async def test_many_runs_are_started_at_once(client: Client) -> None:
    runs = await client.start_many(price, [(Order("tea", n), 0.0) for n in range(500)])
    assert len({run.id for run in runs}) == 500
    named = await client.start_many(other, [(), ()], ids=["a", "b"])
    assert [run.id for run in named] == ["a", "b"]


async def test_loading_encoded_inputs_gives_an_answer_for_each(client: Client) -> None:
    await client.start(other, id="taken")
    inputs = [NewRun("price", sf.encode_input({"item": "tea"}), name) for name in ("x", "taken", "x")]
    x, taken, again = await client.start_payloads(inputs)
    assert isinstance(x, Run)
    assert x.created
    assert isinstance(taken, RunConflict)
    assert isinstance(again, Run)
    assert not again.created


async def test_a_reducer_takes_one_input_or_none(client: Client) -> None:
    run = await client.start(counter, {"from": 5})
    assert (await run.describe()).workflow == "counter"
    await client.start(counter)


@pytest.mark.parametrize(
    ("partition", "full_id"), [(Partition.TENANT, "acme/invoice-17"), (Partition.WORKFLOW, "price/invoice-17")]
)
async def test_a_partitioned_namespace_puts_the_prefix_before_the_id(
    embedded_server: EmbeddedServer, namespace: str, partition: Partition, full_id: str
) -> None:
    async with sf.connect(embedded_server.url, namespace=namespace) as client:
        await client.store.one(client.kernel.open_namespace(8, partition))
        run = await client.start(price, Order("tea"), id="invoice-17", tenant="acme")
        assert run.id == full_id
        assert (await client.run(full_id).describe()).tenant == "acme"
        assert [found.id for found in await client.runs(tenant="acme")] == [full_id]
        assert [found.id for found in await client.runs(workflow="price")] == [full_id]


async def test_a_namespace_that_no_daemon_has_created_is_named(embedded_server: EmbeddedServer) -> None:
    async with sf.connect(embedded_server.url, namespace="nobody") as client:
        with pytest.raises(NamespaceMissing, match="streamflow daemon"):
            await client.start(other)


async def test_a_namespace_of_another_version_is_refused(client: Client) -> None:
    await client.store.one(Call.plain("HSET", client.keys.meta, "schema", 99))
    with pytest.raises(NamespaceMismatch, match="99"):
        await client.start(other)


# --- signals and cancel ---------------------------------------------------------------------------------------------


async def test_signals_and_cancels_of_runs_that_cannot_take_them_are_errors(client: Client, owner: Owner) -> None:
    run = await client.start(other)
    await run.signal("approve", True)
    await run.cancel("changed my mind")
    await owner.complete(run.id)
    with pytest.raises(RunEnded):
        await run.signal("approve", True)
    with pytest.raises(RunEnded):
        await run.cancel()
    with pytest.raises(RunNotFound):
        await client.run("nothing").signal("approve")
    with pytest.raises(InvalidName):
        await run.signal("no spaces")


async def test_messages_reach_the_inbox_once_and_in_order(client: Client) -> None:
    run = await client.start(other)
    await asyncio.gather(*(run.signal("n", number) for number in range(500)))
    await run.cancel("enough")
    keys = client.keys.shard((await client.read_namespace()).shard_of(run.id))
    entries: list[tuple[bytes, dict[bytes, bytes]]] = await client.store.one(Call.plain("XRANGE", keys.inbox, "-", "+"))
    messages = [fields for _, fields in entries if fields[b"kind"] != b"start"]
    assert [msgspec.msgpack.decode(fields[b"body"]) for fields in messages] == [
        *(["n", number] for number in range(500)),
        "enough",
    ]


# --- results --------------------------------------------------------------------------------------------------------


async def test_a_result_has_the_type_that_the_workflow_declares(client: Client, owner: Owner) -> None:
    run = await client.start(price, Order("tea"))
    await owner.complete(run.id, 1)
    result = await run.result()
    assert_type(result, float)
    assert isinstance(result, float)
    order = await client.run((await client.start("price")).id, Order).describe()
    await owner.complete(order.id, {"item": "tea", "count": 3})
    assert await client.run(order.id, Order).result() == Order("tea", 3)
    assert await client.run(order.id).result() == {"item": "tea", "count": 3}


async def test_a_result_that_does_not_fit_is_an_error_that_names_the_run(client: Client, owner: Owner) -> None:
    run = await client.start(other, id="r")
    await owner.complete(run.id, "text")
    with pytest.raises(PayloadInvalid, match="run r"):
        await client.run("r", int).result()


@pytest.mark.parametrize("payloads", [True, False], ids=["with payload", "payload too large"])
async def test_waiting_ends_when_the_run_ends(client: Client, owner: Owner, payloads: bool) -> None:
    run = await client.start(price, Order("tea"))
    waits = [asyncio.create_task(run.result(timeout=10)) for _ in range(3)]
    await waiting(client, 1)
    await owner.complete(run.id, 2.5, payloads=payloads)
    assert await asyncio.gather(*waits) == [2.5] * 3
    assert client._waiter._all_waiting() == []


async def test_failed_and_cancelled_runs_raise(client: Client, owner: Owner) -> None:
    failed, cancelled = await client.start(other), await client.start(other)
    failure = Failure("ValueError", "no tea")
    await owner.commit(failed.id, events.RunFailed("other", "", 5, failure), status=Status.FAILED)
    await owner.commit(cancelled.id, events.RunCancelled("other", "", 5, "enough"), status=Status.CANCELLED)
    with pytest.raises(errors.RunFailed, match="ValueError: no tea") as caught:
        await failed.result()
    assert caught.value.failure == failure
    with pytest.raises(errors.RunCancelled, match="enough"):
        await cancelled.result()
    assert (await failed.describe()).failure == failure
    assert (await cancelled.describe()).reason == "enough"
    with pytest.raises(RunNotFound):
        await client.run("nothing").result()


async def test_waiting_stops_at_the_timeout_and_the_run_goes_on(client: Client) -> None:
    run = await client.start(other)
    for timeout in (0.01, timedelta(milliseconds=10)):
        with pytest.raises(TimeoutError, match=r"0\.01 s"):
            await run.result(timeout=timeout)
    assert (await run.describe()).status is Status.PENDING


async def test_a_lost_message_is_found_by_the_sweep(client: Client, owner: Owner) -> None:
    run = await client.start(price, Order("tea"))
    wait = asyncio.create_task(run.result(timeout=10))
    await waiting(client, 1)
    client._waiter._channels.clear()  # as if the message had never come
    await owner.complete(run.id, 1.0)
    await client._waiter.sweep()
    assert await wait == 1.0


async def forgotten_and_started_again(client: Client, owner: Owner, run: Run[Any], result: float) -> Run[Any]:
    await owner.complete(run.id, result)
    assert await client.forget(run.id)
    again = await client.start(price, Order("tea"), id=run.id)
    assert again.created
    return again


@pytest.mark.parametrize("found", ["created", "found"])
async def test_a_handle_is_of_one_run_and_not_of_a_later_one_of_its_id(
    client: Client, owner: Owner, found: str
) -> None:
    """Whether its start created the run or found it."""
    run: Run[Any] = await client.start(price, Order("tea"), id="r")
    if found == "found":
        run = await client.start(price, Order("tea"), id="r")
    again = await forgotten_and_started_again(client, owner, run, 1.0)
    calls = (
        run.result(1),
        run.signal("go"),
        run.ask("price", timeout=1),
        run.cancel(),
        run.terminate(),
        run.describe(),
        run.history(),
        run.read("progress"),
        anext(run.events(follow=True)),
    )
    for call in calls:
        with pytest.raises(RunNotFound, match="run r"):
            await call
    assert await owner.inbox(again.id) == ["start", "start"], "also the former one's, which no owner has acknowledged"
    await owner.complete(again.id, 2.0)
    assert await again.result(10) == 2.0
    assert await client.run("r").result(10) == 2.0, "this names an id, and not one run"


@pytest.mark.parametrize("by_id", [False, True])
async def test_a_wait_for_a_run_does_not_end_with_a_later_one(client: Client, owner: Owner, by_id: bool) -> None:
    """Although it has missed that its run ended."""
    run: Run[Any] = await client.start(price, Order("tea"), id="r")
    wait = asyncio.create_task((client.run("r") if by_id else run).result(10))
    await waiting(client, 1)
    await client._waiter.sweep()  # behind the wait's own look at the run
    client._waiter._channels.clear()  # as if no message had come
    again = await forgotten_and_started_again(client, owner, run, 1.0)
    await owner.complete(again.id, 2.0)
    await client._waiter.sweep()
    with pytest.raises(RunNotFound, match="run r was forgotten, and another run has its id since"):
        await wait


async def test_a_notification_that_does_not_name_the_run_is_only_a_hint(client: Client, owner: Owner) -> None:
    """As from another database of the server: channels are the same in all of them."""
    run = await client.start(price, Order("tea"))
    wait = asyncio.create_task(run.result(10))
    await waiting(client, 1)
    forged = encode_transition(5, [RunCompleted("price", "", 5, Raw(msgspec.msgpack.encode(666.0)))])
    channel = client.keys.shard((await client.read_namespace()).shard_of(run.id)).done
    created = round((await run.describe()).created.timestamp() * 1000)
    identity = (await client.read_namespace()).identity
    assert identity
    others = [notified_ending(forged, *origin) for origin in ((created, "another"), (created - 1, identity), (0, ""))]
    for ending in (forged, *others, b"\xff", b""):
        message = msgspec.msgpack.encode([(run.id, ending)])
        assert await client.store.one(Call.plain("SPUBLISH", channel, message)) == 1
    await owner.complete(run.id, 2.0)
    assert await wait == 2.0


async def test_waiting_survives_the_loss_of_all_connections(client: Client, owner: Owner, without_sweeps: None) -> None:
    """The reconnection itself finds what was missed."""
    runs = await client.start_many(price, [(Order("tea"), 0.0)] * 20)
    waits = [asyncio.create_task(run.result(timeout=20)) for run in runs]
    await waiting(client, 20)
    async with Redis.from_url(client.store.url) as redis:
        await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    for run in runs:
        await owner.complete(run.id, 1.0)
    assert await asyncio.gather(*waits) == [1.0] * 20


async def test_shards_that_nobody_waits_on_are_unsubscribed(client: Client, owner: Owner) -> None:
    run = await client.start(price, Order("tea"))
    await owner.complete(run.id, 1.0)
    await run.result()
    await client._waiter.sweep()
    assert client._waiter._shards == {}
    again = await client.start(price, Order("tea"))
    wait = asyncio.create_task(again.result(timeout=10))
    await waiting(client, 1)
    await owner.complete(again.id, 3.0)
    assert await wait == 3.0


async def test_sweeps_at_once_lose_no_caller_that_comes_between(
    client: Client, owner: Owner, without_sweeps: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sweep unsubscribes from several shards, one after the other; callers come for some of these meanwhile."""
    runs = [await client.start(price, Order("tea")) for _ in range(20)]
    for run in runs:
        await owner.complete(run.id, 1.0)
        await run.result()
    waiter = client._waiter
    assert waiter._subscription is not None
    remove = waiter._subscription.remove
    gate = asyncio.Event()

    async def remove_slowly(channel: str) -> None:
        await remove(channel)
        await gate.wait()

    monkeypatch.setattr(waiter._subscription, "remove", remove_slowly)
    assert len(waiter._shards) > 2
    sweeps = [asyncio.create_task(waiter.sweep())]
    await asyncio.sleep(0)
    sweeps.append(asyncio.create_task(waiter.sweep()))
    await asyncio.sleep(0.01)
    others = [await client.start(price, Order("tea")) for _ in range(20)]
    waits = [asyncio.create_task(run.result(10)) for run in others]
    await waiting(client, 20)
    gate.set()
    await asyncio.gather(*sweeps)
    assert sum(len(watched.waiting) for watched in waiter._shards.values()) == 20, "all are looked for by a sweep"
    await asyncio.gather(*(waiter._subscribed().add(watched.channel) for watched in waiter._shards.values()))
    for run in others:
        await owner.complete(run.id, 2.0)
    async with asyncio.timeout(20):  # by the notifications
        assert await asyncio.gather(*waits) == [2.0] * 20


async def test_a_thousand_concurrent_calls_share_a_few_connections_and_pipelines(
    without_sweeps: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sf, "READ_AGAIN_SECONDS", 3600.0)
    async with EmbeddedServer(memory=True) as server, sf.connect(server.url) as client, Redis.from_url(server.url) as r:
        await client.store.one(client.kernel.open_namespace(16, Partition.RUN))
        await client.start(other)  # loads the scripts
        client._sessions.here().meta = None
        await r.config_resetstat()
        runs = await asyncio.gather(*(client.start(price, Order("tea")) for _ in range(1000)))
        await asyncio.gather(*(run.signal("go") for run in runs))
        waits = [asyncio.create_task(run.result()) for run in runs]
        await waiting(client, 1000)
        stats: dict[str, dict[str, int]] = await r.info("commandstats")
        # 1000 runs in 16 shards: starts, signals and peeks for each shard, and a subscription for each shard.
        assert stats["cmdstat_evalsha"]["calls"] <= 3 * 16 + 8
        assert stats["cmdstat_ssubscribe"]["calls"] <= 16
        assert stats["cmdstat_hmget"]["calls"] <= 2 + 2 * 16, "the record, and in each script that starts or signals"
        others = [info for info in await r.client_list() if info["id"] != str(await r.client_id())]
        assert len([info for info in others if info["ssub"] == "0"]) <= 4
        assert len([info for info in others if info["ssub"] != "0"]) == 1
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


async def test_closing_ends_all_waiting(embedded_server: EmbeddedServer, namespace: str) -> None:
    client = sf.connect(embedded_server.url, namespace=namespace)
    await client.store.one(client.kernel.open_namespace(8, Partition.RUN))
    run = await client.start(other)
    wait = asyncio.create_task(run.result())
    await waiting(client, 1)
    await client.close()
    for call in (wait, run.result(), run.signal("late")):
        with pytest.raises(StoreError, match="closed"):
            await call


async def test_an_unreachable_server_is_an_error_after_the_patience() -> None:
    client = Client(Node("redis://127.0.0.1:1", patience=0.05), "default")
    with pytest.raises(StoreUnavailable):
        await client.start(other)
    await client.close()


# --- looking --------------------------------------------------------------------------------------------------------


async def test_runs_are_listed_newest_change_first_over_all_shards(client: Client, owner: Owner) -> None:
    runs = [await client.start(price, Order("tea"), id=f"r{number}") for number in range(5)]
    await owner.complete(runs[1].id)
    await owner.complete(runs[0].id)
    found = await client.runs(workflow="price")
    assert [run.id for run in found][:2] == ["r0", "r1"]
    assert {run.id for run in found} == {run.id for run in runs}
    assert found[0].status is Status.COMPLETED
    assert found[0].ended is not None
    assert [run.id for run in await client.runs(workflow="price", status="completed", limit=1)] == ["r0"]
    assert {run.id for run in await client.runs(workflow="price", status=Status.PENDING)} == {"r2", "r3", "r4"}
    assert await client.runs(workflow="price", status="stuck") == []


async def test_listings_know_the_workflows_that_daemons_registered(client: Client) -> None:
    await client.start(price, Order("tea"), id="p")
    await client.start(other, id="o")
    info = b'{"kind":"workflow","params":["order"],"doc":"The price.","steps":[]}'
    await client.store.one(Call.plain("HSET", client.keys.workflows, "price", info))
    assert [run.id for run in await client.runs()] == ["p"]
    assert [run.id for run in await client.runs(workflow="other")] == ["o"]
    assert (await client.workflows())["price"].params == ["order"]


async def test_filters_look_further_until_the_limit_is_reached(client: Client, owner: Owner) -> None:
    names = [f"t{number}" for number in range(100)]
    await asyncio.gather(*(client.start(price, Order("tea"), id=name, tenant="acme") for name in names))
    await client.start(price, Order("tea"), id="foreign", tenant="else")
    oldest = (await client.runs(tenant="acme", limit=100))[-1].id
    await owner.complete(oldest)
    found = await client.runs(tenant="acme", status="completed", limit=2)
    assert [run.id for run in found] == [oldest]
    assert len(await client.runs(tenant="acme", limit=200)) == 100


async def test_wrong_filters_are_named(client: Client) -> None:
    with pytest.raises(UsageError, match="pending, running"):
        await client.runs(status="finished")
    with pytest.raises(UsageError):
        await client.runs(limit=0)
    with pytest.raises(InvalidName):
        await client.runs(workflow="*")


async def test_an_ended_run_can_be_forgotten_and_an_open_one_not(client: Client, owner: Owner) -> None:
    run = await client.start(price, Order("tea"), id="r")
    with pytest.raises(RunError, match="cancel it"):
        await client.forget("r")
    await owner.complete("r")
    assert await client.forget("r")
    assert not await client.forget("r")
    with pytest.raises(RunNotFound):
        await run.describe()
    assert await client.runs(workflow="price") == []


def _signalled(number: int) -> SignalReceived:
    return SignalReceived("n", Raw(msgspec.msgpack.encode(number)))


async def test_events_are_the_history(client: Client, owner: Owner) -> None:
    run = await client.start(price, Order("tea"))
    assert await run.history() == []
    await owner.commit(run.id, _signalled(1), _signalled(2), status=Status.RUNNING)
    await owner.complete(run.id, 1.0)
    assert [len(transition.events) for transition in await run.history()] == [2, 1]
    events = [(at, type(event)) async for at, event in run.events()]
    assert [kind for _, kind in events] == [SignalReceived, SignalReceived, RunCompleted]
    assert events[0][0].tzinfo is UTC
    with pytest.raises(RunNotFound):
        await client.run("nothing").history()
    with pytest.raises(RunNotFound):
        await anext(client.run("nothing").events(follow=True))


async def test_following_goes_from_the_history_to_the_log_and_ends_with_the_run(client: Client, owner: Owner) -> None:
    run = await client.start(price, Order("tea"))
    await owner.commit(run.id, _signalled(1), status=Status.RUNNING)
    async with contextlib.aclosing(run.events(follow=True)) as events:
        seen = [(await anext(events))[1]]
        for number in (2, 3):
            await owner.commit(run.id, _signalled(number), status=Status.RUNNING)
            seen.append((await anext(events))[1])
        await owner.complete(run.id, 1.0)
        seen += [event async for _, event in events]
    assert seen[:3] == [_signalled(1), _signalled(2), _signalled(3)]
    assert isinstance(seen[3], RunCompleted)
    assert len(seen) == 4


async def test_following_repeats_nothing_that_is_committed_while_it_begins(
    client: Client, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await client.start(price, Order("tea"))
    send = client.store.send
    torn = False

    async def send_torn(
        calls: Sequence[Call[Any]], patience: float | None = None, *, urgent: bool = False
    ) -> list[Any]:
        nonlocal torn
        if torn or len(calls) != 4:
            return await send(calls, patience)
        torn = True
        first = await send(calls[:1])
        await owner.commit(run.id, _signalled(1), status=Status.RUNNING)
        await owner.commit(run.id, _signalled(2), status=Status.RUNNING)
        return [*first, *await send(calls[1:])]

    monkeypatch.setattr(client.store, "send", send_torn)
    async with contextlib.aclosing(run.events(follow=True)) as events:
        assert [(await anext(events))[1] for _ in range(2)] == [_signalled(1), _signalled(2)]
        await owner.complete(run.id, 1.0)
        assert [type(event) async for _, event in events] == [RunCompleted]
    assert torn


async def test_following_reads_from_the_record_what_the_log_no_longer_has(
    client: Client, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await client.start(price, Order("tea"))
    await owner.commit(run.id, _signalled(1), status=Status.RUNNING)
    log = client.keys.shard((await client.read_namespace()).shard_of(run.id)).log

    async def trimmed(*_: object) -> dict[str, list[Any]]:
        return {}

    monkeypatch.setattr(client.store, "read_logs", trimmed)
    async with contextlib.aclosing(run.events(follow=True)) as events:
        assert (await anext(events))[1] == _signalled(1)
        await owner.commit(run.id, _signalled(2), status=Status.RUNNING)
        await owner.complete(run.id, 1.0)
        await client.store.one(Call.plain("XTRIM", log, "MAXLEN", 0))
        assert [type(event) async for _, event in events] == [SignalReceived, RunCompleted]


async def test_a_restarted_server_that_kept_its_data_is_used_on(tmp_path: Path) -> None:
    async with EmbeddedServer(tmp_path, appendfsync="always") as server, sf.connect(server.url) as client:
        await client.store.one(client.kernel.open_namespace(8, Partition.RUN))
        run = await client.start(price, Order("tea"))
        wait = asyncio.create_task(run.result(timeout=30))
        await waiting(client, 1)
        await server.kill()
        await server.start()
        await Owner(client).complete(run.id, 4.0)
        assert await wait == 4.0
        assert decode_transition(
            (
                await client.store.one(
                    client.kernel.peek_runs((await client.read_namespace()).shard_of(run.id), [run.id])
                )
            )[0][1]
        ).events
