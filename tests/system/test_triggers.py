"""Triggers: what comes from outside starts runs and signals them, each delivery once."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import msgspec
import pytest
from redis.asyncio import Redis

import streamflow as sf
import streamflow.testing as sft
from streamflow import triggers
from streamflow.embedded.server import EmbeddedServer
from streamflow.store.connection import Call
from streamflow.triggers import receiver
from streamflow.triggers.quarantine import DeliveryQuarantine
from tests.support.pulling import receiving
from tests.support.waiting import until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio

SECRET = "s3cret-of-the-tests"


class Push(msgspec.Struct):
    after: str
    branch: str = "main"


app = sf.App()


@app.workflow
async def build(commit: str) -> str:
    return f"built {commit}"


@app.workflow
async def cart(customer: str) -> list[str]:
    items: list[str] = []
    while "check out" not in items:
        items.append(await sf.signal("add", str))
    return items


@app.trigger(triggers.webhook("/push", signature=triggers.github(triggers.secret("HOOK_SECRET"))))
def pushed(delivery: triggers.Delivery[Push]) -> triggers.Action | None:
    push = delivery.payload
    if push.branch != "main":
        return None
    return triggers.start(build, push.after, id=f"build-{push.after}")


@app.trigger(triggers.webhook("/paid", signature=triggers.stripe(triggers.secret("HOOK_SECRET"))))
def paid(delivery: triggers.Delivery[dict[str, Any]]) -> triggers.Action:
    return triggers.signal(delivery.payload["run"], "add", "check out")


@app.trigger(triggers.webhook("/slack", signature=triggers.slack(triggers.secret("HOOK_SECRET"))))
def said(delivery: triggers.Delivery[dict[str, Any]]) -> triggers.Action:
    return triggers.start(build, str(delivery.payload["event"]))


@app.trigger(triggers.webhook("/click", max_body=100))
def clicked(delivery: triggers.Delivery[str]) -> list[triggers.Action]:
    customer, *items = delivery.payload.split()
    return [
        triggers.signal_with_start(cart, customer, id=f"cart-{customer}", signal="add", value=item) for item in items
    ]


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_SECRET", SECRET)


def signed(body: bytes, secret: str = SECRET) -> str:
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def of_github(body: bytes, delivery: str = "d1") -> dict[str, str]:
    return {"X-Hub-Signature-256": f"sha256={signed(body)}", "X-GitHub-Delivery": delivery}


def of_stripe(body: bytes, at: float = 0.0) -> dict[str, str]:
    seconds = int(at or time.time())
    return {"Stripe-Signature": f"t={seconds},v1={signed(f'{seconds}.'.encode() + body)},v1=00"}


def of_slack(body: bytes) -> dict[str, str]:
    at = int(time.time())
    return {"X-Slack-Request-Timestamp": str(at), "X-Slack-Signature": f"v0={signed(f'v0:{at}:'.encode() + body)}"}


Post = Callable[..., Awaitable[httpx.Response]]


@asynccontextmanager
async def posting(client: sf.Client, app: sf.App = app) -> AsyncGenerator[Post, None]:
    """`await post(path, body, headers)`: to the webhooks of the app."""
    transport = httpx.ASGITransport(triggers.Webhooks(app, client))
    async with httpx.AsyncClient(transport=transport, base_url="http://hooks") as http:

        async def post(path: str, body: Any, headers: dict[str, str] | None = None) -> httpx.Response:
            return await http.post(path, content=body, headers=headers)

        yield post


# --- webhooks ---------------------------------------------------------------------------------------------------------


async def test_a_signed_delivery_starts_a_run_and_the_answer_says_which(serve: Serve) -> None:
    async with serve(app) as (client, _), posting(client) as post:
        body = json.dumps({"after": "3f2a"}).encode()
        answer = await post("/push", body, of_github(body))
        assert (answer.status_code, answer.json()) == (202, {"runs": ["build-3f2a"]})
        assert await client.run("build-3f2a").result(10) == "built 3f2a"


async def test_a_delivery_for_nothing_is_accepted_and_starts_nothing(client: sf.Client, serve: Serve) -> None:
    async with serve(app), posting(client) as post:
        body = json.dumps({"after": "3f2a", "branch": "side"}).encode()
        assert (await post("/push", body, of_github(body))).status_code == 204
        assert await client.runs() == []


async def test_without_its_signature_nothing_is_taken(serve: Serve) -> None:
    async with serve(app) as (client, _), posting(client) as post:
        body = json.dumps({"after": "3f2a"}).encode()
        for headers in ({}, {"X-Hub-Signature-256": "sha256=" + signed(body, "other")}, of_github(body + b" ")):
            answer = await post("/push", body, headers)
            assert answer.status_code == 401
            assert SECRET not in answer.text
            assert signed(body) not in answer.text
        old = of_stripe(body, time.time() - 301)
        assert (await post("/paid", body, old)).status_code == 401, "recorded, and sent again later"
        assert await client.runs() == []
        assert await DeliveryQuarantine(client).list() == []


async def test_the_same_delivery_again_does_nothing_more(serve: Serve) -> None:
    async with serve(app) as (client, _), posting(client) as post:
        for _ in range(3):
            assert (await post("/click", "kim shoes socks", {"Idempotency-Key": "c1"})).json() == {
                "runs": ["cart-kim", "cart-kim"]
            }
        await post("/click", "kim shoes", {"Idempotency-Key": "c2"})
        body = json.dumps({"id": "evt_1", "run": "cart-kim"}).encode()
        for _ in range(2):
            assert (await post("/paid", body, of_stripe(body))).status_code == 202
        assert await client.run("cart-kim").result(10) == ["shoes", "socks", "shoes", "check out"]
        assert (await post("/click", "kim shoes", {"Idempotency-Key": "c2"})).status_code == 202
        assert (await client.run("cart-kim").describe()).status == "completed", "and begins no run after the end"


async def test_slack_gets_its_challenge_back_and_events_are_known_by_their_ids(serve: Serve) -> None:
    async with serve(app) as (client, _), posting(client) as post:
        body = json.dumps({"type": "url_verification", "challenge": "3eZbrw1aB"}).encode()
        assert (await post("/slack", body, of_slack(body))).text == "3eZbrw1aB"
        assert (await post("/slack", body)).status_code == 401
        body = json.dumps({"event_id": "Ev1", "event": "hello"}).encode()
        runs = [(await post("/slack", body, of_slack(body))).json()["runs"] for _ in range(2)]
        assert runs[0] == runs[1]
        assert len(await client.runs()) == 1


async def test_what_is_no_delivery_is_refused_before_its_body_is_read(serve: Serve) -> None:
    async with serve(app) as (client, _), posting(client) as post:
        assert (await post("/other", b"x")).status_code == 404
        assert (await post("/click", b"x" * 101)).status_code == 413
        webhooks = triggers.Webhooks(app, client)
        sent: list[Any] = []
        scope: Any = {"type": "http", "method": "POST", "path": "/click", "headers": [(b"content-length", b"101")]}

        async def receive() -> Any:
            raise AssertionError("the body is read")

        async def send(message: Any) -> None:
            sent.append(message)

        await webhooks(scope, receive, send)
        assert sent[0]["status"] == 413
        await webhooks({**scope, "method": "GET"}, receive, send)
        assert sent[2]["status"] == 405
        parts = iter([b"x" * 60, b"x" * 60])

        async def receive_parts() -> Any:
            return {"type": "http.request", "body": next(parts), "more_body": True}

        await webhooks({**scope, "headers": []}, receive_parts, send)
        assert sent[4]["status"] == 413, "also when the length isn't said"


async def test_a_sender_that_stops_in_the_middle_is_not_waited_for(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamflow.triggers.http.BODY_SECONDS", 0.05)
    async with serve(app) as (client, _):
        sent: list[Any] = []
        scope: Any = {"type": "http", "method": "POST", "path": "/click", "headers": []}
        parts = iter([{"type": "http.request", "body": b"x", "more_body": True}])

        async def receive() -> Any:
            return next(parts, None) or await anyio.sleep_forever()

        async def send(message: Any) -> None:
            sent.append(message)

        await triggers.Webhooks(app, client)(scope, receive, send)
        assert sent[0]["status"] == 408


async def test_while_the_server_is_away_the_sender_keeps_the_delivery() -> None:
    async with sf.connect("redis://127.0.0.1:1", namespace="nobody") as client, posting(client) as post:
        client.store.patience = 0.2
        answer = await post("/click", "kim shoes")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


async def test_without_a_namespace_nothing_is_taken(embedded_server: EmbeddedServer) -> None:
    async with sf.connect(embedded_server.url, namespace="missing") as client, posting(client) as post:
        assert (await post("/click", "kim shoes")).status_code == 503
        assert await DeliveryQuarantine(client).count() == 0


# --- what can't be processed ------------------------------------------------------------------------------------------


async def test_what_can_not_be_processed_is_quarantined_once_and_others_go_on(serve: Serve) -> None:
    async with serve(app) as (client, _), posting(client) as post:
        broken = b'{"after": 17}'
        for _ in range(2):
            answer = await post("/push", broken, of_github(broken, "bad") | {"Authorization": "Bearer x"})
            assert answer.status_code == 422
        lost = json.dumps({"id": "evt_2", "run": "cart-nobody"}).encode()
        assert (await post("/paid", lost, of_stripe(lost))).status_code == 422
        [of_run, of_push] = sorted(await DeliveryQuarantine(client).list(), key=lambda one: one.trigger)
        assert "RunNotFound" in of_run.reason
        assert (of_push.delivery_id, of_push.body) == ("bad", broken)
        assert "Expected `str`, got `int` - at `$.after`" in of_push.reason
        assert not {"authorization", "x-hub-signature-256"} & of_push.received.headers.keys()
        fine = json.dumps({"after": "3f2a"}).encode()
        assert (await post("/push", fine, of_github(fine))).status_code == 202


async def test_an_unsigned_delivery_is_refused_and_not_kept(serve: Serve) -> None:
    async with serve(app) as (client, _), posting(client) as post:
        assert (await post("/click", b"\xff")).status_code == 422
        assert await DeliveryQuarantine(client).list() == []


hostile = sf.App()
let_go = threading.Event()


@hostile.trigger(triggers.webhook("/exit", signature=triggers.hmac(triggers.secret("HOOK_SECRET"))))
def exits(delivery: triggers.Delivery[str]) -> None:
    raise SystemExit(3)


@hostile.trigger(triggers.webhook("/hang", signature=triggers.hmac(triggers.secret("HOOK_SECRET"))))
def hangs(delivery: triggers.Delivery[str]) -> None:
    let_go.wait()


@hostile.trigger(triggers.webhook("/wrong", signature=triggers.hmac(triggers.secret("HOOK_SECRET"))))
def wrong(delivery: triggers.Delivery[str]) -> Any:
    return "build it"


@hostile.trigger(triggers.webhook("/fine"))
def fine(delivery: triggers.Delivery[str]) -> None: ...


async def test_a_function_that_exits_or_hangs_stays_with_its_trigger(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiver, "MAP_SECONDS", 0.1)
    async with serve(hostile) as (client, _), posting(client, hostile) as post:

        async def signed_post(path: str, body: str) -> int:
            return (await post(path, body, {"X-Signature": signed(body.encode())})).status_code

        try:
            assert await signed_post("/exit", "x") == 422
            assert await signed_post("/wrong", "x") == 422
            for i in range(receiver.MOST_HUNG):
                assert await signed_post("/hang", f"{i}") == 422
            assert await signed_post("/hang", "one more") == 503, "its sender keeps it"
            assert (await post("/fine", "x")).status_code == 204
        finally:
            let_go.set()
        reasons = [one.reason for one in await DeliveryQuarantine(client).list()]
        assert sum("has not returned within 0.1 s" in reason for reason in reasons) == receiver.MOST_HUNG
        assert any("SystemExit" in reason for reason in reasons)
        assert any("returned a str" in reason for reason in reasons)


async def test_when_the_quarantine_is_full_nothing_is_acknowledged(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamflow.triggers.quarantine.MOST", 1)
    async with serve(app) as (client, _), posting(client) as post:
        codes = [(await post("/push", b"{", of_github(b"{", delivery))).status_code for delivery in ("a", "b", "a")]
        assert codes == [422, 503, 422]


# --- registering ------------------------------------------------------------------------------------------------------


async def test_mistakes_are_named_when_a_trigger_is_registered(
    client: sf.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = sf.App()
    with pytest.raises(sf.UsageError, match="is given a source"):
        other.trigger(lambda delivery: None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(sf.UsageError, match="plain function with one parameter"):

        @other.trigger(triggers.webhook("/a"))
        async def acts(delivery: triggers.Delivery[str]) -> None: ...

    with pytest.raises(sf.UsageError, match="begins with a slash"):
        triggers.webhook("push")
    with pytest.raises(sf.UsageError, match=r"github takes sf.triggers.secret"):
        triggers.github("s3cret")  # pyright: ignore[reportArgumentType]
    with pytest.raises(sf.UsageError, match="has a password"):
        triggers.stream("orders", url="redis://:pw@127.0.0.1")
    monkeypatch.delenv("HOOK_SECRET")
    with pytest.raises(sf.UsageError, match="HOOK_SECRET is empty or not set"):
        triggers.Webhooks(app, client)


def test_a_secret_shows_only_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    of_file = triggers.secret(file=str(tmp_path / "secret"))
    assert of_file.read() == SECRET
    shown = repr([of_file, triggers.secret("HOOK_SECRET"), triggers.github(of_file), pushed, pushed.source])
    assert "HOOK_SECRET" in shown
    assert SECRET not in shown


# --- streams ----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def redis(embedded_server: EmbeddedServer, namespace: str) -> AsyncGenerator[Redis, None]:
    async with Redis.from_url(embedded_server.url) as redis:
        yield redis
        await redis.delete(f"orders-{namespace}")


def of_stream(namespace: str, url: str, **options: Any) -> triggers.Trigger[Any]:
    @sf.App().trigger(triggers.stream(f"orders-{namespace}", url=url, **options), name="ordered")
    def ordered(delivery: triggers.Delivery[Push]) -> triggers.Action:
        return triggers.start(build, delivery.payload.after)

    return ordered


async def test_entries_of_a_stream_start_runs_and_are_acknowledged(
    serve: Serve, redis: Redis, namespace: str, embedded_server: EmbeddedServer
) -> None:
    key = f"orders-{namespace}"
    await redis.xadd(key, {"payload": '{"after": "before"}'})
    async with serve(app) as (client, _), receiving(client, of_stream(namespace, embedded_server.url)):
        await redis.xadd(key, {"payload": '{"after": "one"}'})
        await redis.xadd(key, {"after": "two"})
        await redis.xadd(key, {"payload": "no JSON"})

        async def all_done() -> bool:
            [group] = await redis.xinfo_groups(key) or [{}]
            return group.get("lag") == 0 and group.get("pending") == 0

        await until(all_done)
        results = [await client.run(run.id).result(10) for run in await client.runs()]
        assert sorted(results) == ["built before", "built one", "built two"]
        [kept] = await DeliveryQuarantine(client).list()
        assert kept.body == b"no JSON"


async def test_what_a_dead_process_had_taken_is_claimed_and_started_once(
    serve: Serve, redis: Redis, namespace: str, embedded_server: EmbeddedServer
) -> None:
    """The dead one is played: it has read both entries, and has started the run of the first, when it ends."""
    key = f"orders-{namespace}"
    trigger = of_stream(namespace, embedded_server.url, idle=0.05)
    await redis.xgroup_create(key, "ordered", "0", mkstream=True)
    for name in ("one", "two"):
        await redis.xadd(key, {"payload": json.dumps({"after": name})})
    found: Any = await redis.xreadgroup("ordered", "dead", {key: ">"})
    [(_, [(first, fields), _])] = found.items() if isinstance(found, dict) else found
    async with serve(app) as (client, _):
        received = receiver.received_now(f"{key}/{first.decode()}", fields[b"payload"])
        await receiver.Receiver(client, trigger).receive(received)
        assert (await redis.xpending(key, "ordered"))["pending"] == 2
        async with receiving(client, trigger), receiving(client, trigger):

            async def none_pending() -> bool:
                return (await redis.xpending(key, "ordered"))["pending"] == 0

            await until(none_pending)
        assert len(await client.runs()) == 2


# --- files ------------------------------------------------------------------------------------------------------------


def of_files(directory: Path, settle: float = 0.0) -> triggers.Trigger[Any]:
    @sf.App().trigger(triggers.files(directory, "**/*.csv", settle=settle), name="dropped")
    def dropped(delivery: triggers.Delivery[triggers.File]) -> triggers.Action:
        return triggers.start(build, delivery.payload.name)

    return dropped


async def test_files_that_are_there_that_come_and_that_change_start_runs(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "old.csv").write_text("1")
    os.utime(tmp_path / "old.csv", (1e9, 1e9))
    async with serve(app) as (client, _):

        async def built(count: int) -> list[str]:
            async def are_there() -> bool:
                return len(await client.runs(status="completed")) >= count

            await until(are_there)
            return sorted([await client.run(run.id).result(10) for run in await client.runs()])

        trigger = of_files(tmp_path)
        async with receiving(client, trigger), receiving(client, trigger):
            assert await built(1) == ["built old.csv"]
            (tmp_path / "in").mkdir()
            (tmp_path / "in" / "new.tmp").write_text("half")
            (tmp_path / "in" / "new.tmp").rename(tmp_path / "in" / "new.csv")
            assert await built(2) == ["built in/new.csv", "built old.csv"]
            (tmp_path / "old.csv").write_text("12")
            assert await built(3) == ["built in/new.csv", "built old.csv", "built old.csv"]
        (tmp_path / "in" / "new.csv").unlink()
        (tmp_path / "last.csv").write_text("x")
        async with receiving(client, trigger):  # another process, later
            assert len(await built(4)) == 4
            marks = await client.store.one(Call.plain("HKEYS", client.keys.files))
            assert sorted(marks) == [b"dropped/last.csv", b"dropped/old.csv"]


async def test_what_a_source_fails_of_is_named(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object) -> None:
        async with anyio.create_task_group():
            raise ConnectionError("the connection is gone")

    trigger = of_files(tmp_path)
    monkeypatch.setattr(trigger.source, "serve", fail)

    async def is_said() -> bool:
        return "trigger dropped receives nothing, will retry: ConnectionError: the connection is gone" in caplog.text

    async with serve(app) as (client, _), receiving(client, trigger):
        await until(is_said)


async def test_files_with_odd_names_and_times_hold_nothing_up(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    odd = os.fsencode(tmp_path) + b"/caf\xe9.csv"
    Path(os.fsdecode(odd)).write_text("1")
    for name, seconds in (("future.csv", 10**13), ("past.csv", -(10**9)), ("plain.csv", 10**9)):
        (tmp_path / name).write_text("1")
        os.utime(tmp_path / name, (seconds, seconds))
    async with serve(app) as (client, _), receiving(client, of_files(tmp_path)):

        async def are_there() -> bool:
            return len(await client.runs(status="completed")) == 3

        await until(are_there)
        found = sorted([await client.run(run.id).result(10) for run in await client.runs()])
        assert found == ["built future.csv", "built past.csv", "built plain.csv"]
    assert caplog.text.count("its name is not valid Unicode: 'caf\\udce9.csv'") == 1


async def test_a_file_that_still_grows_is_not_delivered(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "growing.csv").write_text("1")
    (tmp_path / "whole.csv").write_text("1")
    os.utime(tmp_path / "whole.csv", (1e9, 1e9))
    async with serve(app) as (client, _), receiving(client, of_files(tmp_path, settle=3600)):

        async def are_there() -> bool:
            return len(await client.runs()) > 0

        await until(are_there)
        [run] = await client.runs()
        assert await client.run(run.id).result(10) == "built whole.csv"


# --- completed runs ---------------------------------------------------------------------------------------------------


async def test_a_run_starts_where_one_of_another_workflow_has_completed(serve: Serve) -> None:
    flows = sf.App()

    @flows.workflow
    async def order(number: int) -> dict[str, int]:
        if number < 0:
            raise ValueError("no such order")
        return {"number": number}

    @flows.workflow
    async def ship(number: int) -> str:
        return f"shipped {number}"

    @flows.trigger(triggers.completed(order, from_="oldest"))
    def ordered(delivery: triggers.Delivery[triggers.Completed[dict[str, int]]]) -> triggers.Action:
        number = delivery.payload.result["number"]
        return triggers.start(ship, number, id=f"ship-{delivery.payload.run_id}")

    async with serve(flows) as (client, _):
        for number in (1, -2, 3):
            await client.start(order, number, id=f"order-{number}")
        async with receiving(client, ordered):

            async def both_are_there() -> bool:
                return len(await client.runs(workflow="ship")) == 2

            await until(both_are_there)
        await client.start(order, 4, id="order-4")
        await client.run("order-4").result(10)
        async with receiving(client, ordered), receiving(client, ordered):  # goes on where it was

            async def three_are_there() -> bool:
                return len(await client.runs(workflow="ship", status="completed")) == 3

            await until(three_are_there)
        assert await client.run("ship-order-4").result(10) == "shipped 4"


async def test_a_result_that_is_no_json_is_quarantined_and_others_go_on(serve: Serve) -> None:
    flows = sf.App()

    @flows.workflow
    async def order(number: int) -> dict[int | None, int]:
        return {None: number} if number < 0 else {1: number}

    @flows.workflow
    async def ship(run_id: str) -> str:
        return run_id

    @flows.trigger(triggers.completed(order, from_="oldest"))
    def ordered(delivery: triggers.Delivery[triggers.Completed[dict[str, int]]]) -> triggers.Action:
        return triggers.start(ship, delivery.payload.run_id, id=f"ship-{delivery.payload.run_id}")

    async with serve(flows, shards=1) as (client, _):
        for number in (-1, 1):
            await (await client.start(order, number, id=f"order-{number}")).result()
        async with receiving(client, ordered):

            async def is_there() -> bool:
                return [run.id for run in await client.runs(workflow="ship")] == ["ship-order-1"]

            await until(is_there)
            [kept] = await DeliveryQuarantine(client).list()
            assert kept.trigger == "ordered"
            assert "the result of run order--1 can't be a JSON payload" in kept.reason
            assert msgspec.msgpack.decode(kept.body) == {None: -1}


# --- in tests ---------------------------------------------------------------------------------------------------------


async def test_a_test_delivers_to_the_sandbox() -> None:
    async with sft.Sandbox(app) as sandbox:
        [run] = await sandbox.deliver(pushed, Push(after="3f2a"))
        assert await run.result() == "built 3f2a"
        assert await sandbox.deliver(pushed, Push(after="4d1b", branch="side")) == []
        for _ in range(2):
            await sandbox.deliver(clicked, "kim shoes check-out", id="c1")
        [run, _] = await sandbox.deliver(clicked, "kim socks hat")
        await run.signal("add", "check out")
        assert await run.result() == ["shoes", "check-out", "socks", "hat", "check out"]
        with pytest.raises(sf.PayloadInvalid, match="can't be decoded"):
            await sandbox.deliver(pushed, b"no JSON")
