"""Unreadable messages: quarantined with the reason, for people to see, and the shard goes on."""

from __future__ import annotations

import sys
from typing import Any

import msgspec
import pytest

import streamflow as sf
from streamflow.events import SignalReceived, TimerSet
from streamflow.store.connection import Call
from streamflow.store.keys import ShardKeys
from streamflow.wire import OutboxMessage, encode_outbox
from tests.support.serving import view
from tests.support.waiting import happened, reduced, until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio

app = sf.App()


@app.workflow
async def listens() -> Any:
    return await sf.signal("go")


@app.workflow
async def naps() -> str:
    await sf.sleep(0.2)
    return "slept"


@app.reducer
def remembers(state: list[str], event: sf.Event) -> sf.Decision:
    match event:
        case sf.Signal("go", value):
            return sf.Decision(state, [sf.Complete(value)])
        case _:
            return sf.Decision([*state, type(event).__name__])


DEEP = b"\x91" * 100_000 + b"\xc0"
SIGNAL = msgspec.msgpack.encode(("go", 1))

GARBAGE: dict[str, tuple[dict[str, bytes], str]] = {
    "no fields at all": ({"x": b""}, "run id '' is not allowed"),
    "an unknown kind": ({"kind": b"joke", "run": b"r", "body": b""}, "unknown message kind: 'joke'"),
    "a kind that is not UTF-8": ({"kind": b"\xff\xfe", "run": b"r", "body": b""}, "unknown message kind"),
    "a run id that is not UTF-8": ({"kind": b"signal", "run": b"\xff\xfe", "body": SIGNAL}, "run id '\ufffd\ufffd'"),
    "an invalid run id": ({"kind": b"signal", "run": b"{x}", "body": SIGNAL}, "run id '{x}' is not allowed"),
    "a run id without end": ({"kind": b"signal", "run": b"x" * 100_000, "body": SIGNAL}, "has 100000 characters"),
    "no body": ({"kind": b"signal", "run": b"r"}, "signal: DecodeError: Input data was truncated"),
    "a body that is not MessagePack": ({"kind": b"signal", "run": b"r", "body": b"\xc1"}, "signal: DecodeError"),
    "a name that is not UTF-8": (
        {"kind": b"signal", "run": b"r", "body": b"\x92\xa1\xff\x01"},
        "DecodeError: ",  # UnicodeDecodeError before msgspec 0.23
    ),
    "an invalid name": (
        {"kind": b"signal", "run": b"r", "body": msgspec.msgpack.encode(("a b", 1))},
        "signal 'a b' is not allowed",
    ),
    "a signal nested without end": (
        {"kind": b"signal", "run": b"r", "body": b"\x92\xa2go" + DEEP},
        # Python 3.14 limits C code by the size of the stack, which this fits into.
        "signal: RecursionError" if sys.version_info < (3, 14) else "is nested more than 64 levels deep",
    ),
    "a start nested without end": (
        {"kind": b"start", "run": b"new", "header": b"pending 0 - 1 0 listens - -", "body": DEEP},
        "a start message for a run that has already started or no longer exists",
    ),
    "a start without a header": ({"kind": b"start", "run": b"new", "body": b"\x90"}, "a start message for a run that"),
    "a start with another header": (
        {"kind": b"start", "run": b"new", "header": b"a b c", "body": b"\x90"},
        "a start message for",
    ),
    "a cancel without a reason": ({"kind": b"cancel", "run": b"r", "body": b"\x90"}, "cancel: ValidationError"),
    "an invalid end of a child": ({"kind": b"child", "run": b"r", "body": b"\x93\x01\x02\x03"}, "child: "),
    "an invalid outcome": ({"kind": b"outcome", "run": b"r", "body": b"\x80"}, "outcome: ValidationError"),
}


async def put(client: sf.Client, keys: ShardKeys, fields: dict[str, bytes]) -> None:
    words = [word for pair in fields.items() for word in pair]
    await client.store.one(Call.plain("XADD", keys.inbox, "*", *words))
    await client.store.one(Call.plain("SPUBLISH", keys.inbox, ""))


async def quarantined(client: sf.Client, keys: ShardKeys, count: int = 1) -> list[dict[bytes, bytes]]:
    """The shard's quarantine, when that many messages are in it and the view counts them."""

    async def there() -> bool:
        shown = await view(client, "quarantine")
        return bool(shown) and shown["count"] >= count

    await until(there)
    entries = await client.store.one(Call.plain("XRANGE", keys.poison, "-", "+"))
    return [fields for _, fields in entries]


@pytest.mark.parametrize("what", GARBAGE)
async def test_garbage_in_an_inbox_is_quarantined_and_the_shard_goes_on(serve: Serve, what: str) -> None:
    fields, reason = GARBAGE[what]
    async with serve(app, shards=1) as (client, _):
        keys = client.keys.shard(0)
        run = await client.start(listens, id="r")
        await reduced(client, "r")
        await put(client, keys, fields)
        await run.signal("go", "on")
        assert await run.result(10) == "on"
        [poison] = await quarantined(client, keys)
        assert reason in poison[b"reason"].decode()
        assert poison[b"body"] == fields.get("body", b"")
        [shown] = (await view(client, "quarantine"))["latest"]
        assert (shown["reason"], shown["shard"]) == (poison[b"reason"].decode(), "0")
        assert await client.store.one(Call.plain("XLEN", keys.inbox)) == 0, "it is not read again"


async def test_garbage_for_a_run_that_is_not_in_memory_does_it_no_harm(serve: Serve) -> None:
    async with serve(app, shards=1) as (client, _):
        run = await client.start(naps, id="r")
        await happened(run, TimerSet)
    async with serve(app, shards=1):
        await put(client, client.keys.shard(0), {"kind": b"joke", "run": b"r", "body": b""})
        await quarantined(client, client.keys.shard(0))
        assert await run.result(10) == "slept"


@pytest.mark.parametrize("header", [b"rubbish", b"pending 0 - 1 0 naps - -"], ids=["rubbish", "well formed"])
async def test_a_forged_start_of_a_run_that_exists_does_it_no_harm(serve: Serve, header: bytes) -> None:
    async with serve(app, shards=1) as (client, _):
        run = await client.start(naps, id="r")
        await happened(run, TimerSet)
    async with serve(app, shards=1):
        await put(client, client.keys.shard(0), {"kind": b"start", "run": b"r", "header": header, "body": b"\x90"})
        assert await run.result(10) == "slept"
        await quarantined(client, client.keys.shard(0))


async def test_a_run_whose_input_was_corrupted_on_the_way_fails(serve: Serve) -> None:
    """So nobody waits for it in vain."""
    async with serve(app, shards=1) as (client, _):
        keys = client.keys.shard(0)
    run = await client.start(listens)
    [(entry_id, fields)] = await client.store.one(Call.plain("XRANGE", keys.inbox, "-", "+"))
    await client.store.one(Call.plain("XDEL", keys.inbox, entry_id))
    await put(client, keys, {name.decode(): value for name, value in fields.items()} | {"body": DEEP})
    async with serve(app, shards=1):
        with pytest.raises(sf.RunFailed, match="the input of workflow listens"):
            await run.result(10)
        assert len(await quarantined(client, keys)) == 1


async def test_a_forged_start_does_not_swallow_the_signals_beside_it(serve: Serve) -> None:
    async with serve(app, shards=1) as (client, _):
        run = await client.start(listens, id="r")
        await reduced(client, "r")
    await put(client, client.keys.shard(0), {"kind": b"start", "run": b"r", "header": b"rubbish", "body": b"\x90"})
    await run.signal("go", "on")
    async with serve(app, shards=1):
        assert await run.result(10) == "on"


async def test_messages_for_a_run_whose_record_has_a_wrong_type_are_quarantined(serve: Serve) -> None:
    async with serve(app, shards=1) as (client, _):
        keys = client.keys.shard(0)
        await client.store.one(Call.plain("SET", keys.run("r"), "what is this"))
        await put(client, keys, {"kind": b"signal", "run": b"r", "body": SIGNAL})
        [poison] = await quarantined(client, keys)
        assert b"the run's record can't be read" in poison[b"reason"]
        await put(client, keys, {"kind": b"start", "run": b"r", "header": b"pending 0 - 1 0 naps - -", "body": b"\x90"})
        assert len(await quarantined(client, keys, 2)) == 2
        assert await (await client.start(naps)).result(10) == "slept"


@pytest.mark.parametrize("element", [0, 2], ids=["header", "history"])
async def test_messages_for_a_run_whose_record_is_garbage_are_quarantined(serve: Serve, element: int) -> None:
    async with serve(app, shards=1) as (client, _):
        run = await client.start(listens, id="r")
        await reduced(client, "r")
    keys = client.keys.shard(0)
    good = await client.store.one(Call.plain("LINDEX", keys.run("r"), element))
    await client.store.one(Call.plain("LSET", keys.run("r"), element, DEEP if element else b"\xff"))
    async with serve(app, shards=1):
        await put(client, keys, {"kind": b"signal", "run": b"r", "body": SIGNAL})
        [poison] = await quarantined(client, keys)
        assert b"the run's record can't be read" in poison[b"reason"]
    await client.store.one(Call.plain("LSET", keys.run("r"), element, good))
    async with serve(app, shards=1):
        await run.signal("go", "repaired")
        assert await run.result(10) == "repaired"


async def test_a_value_that_is_not_utf_8_is_skipped_by_a_reducer(serve: Serve) -> None:
    async with serve(app, shards=1) as (client, _):
        run = await client.start(remembers, id="r")
        await reduced(client, "r")
        body = b"\x92\xa2go\xa1\xff"  # the value is a text that isn't UTF-8
        await put(client, client.keys.shard(0), {"kind": b"signal", "run": b"r", "body": body})
        await happened(run, SignalReceived)
        await run.signal("go", "on")
        assert await run.result(10) == "on"


async def test_an_outbox_entry_that_is_garbage_is_dropped_and_the_others_go(serve: Serve) -> None:
    async with serve(app, shards=1) as (client, _):
        run = await client.start(listens, id="r")
        await reduced(client, "r")
    keys = client.keys.shard(0)
    contents = ("start", b"\xc1"), ("start", b"\x94\xa1\xff\xa0\xa0\xc0"), ("signal", SIGNAL)
    good = encode_outbox([OutboxMessage(0, kind, "r", body) for kind, body in contents])
    nowhere = encode_outbox([OutboxMessage(-1, "signal", "r", SIGNAL)])
    for number, field, data in (
        ("1-1", "messages", b"\xc1"),
        ("2-1", "messages", b"\x90"),
        ("3-1", "messages", good),  # it has more messages than its number allows
        ("4-9", "messages", nowhere),
        ("5-9", "messages", good),
        ("6-1", "body", b"x"),
    ):
        await client.store.one(Call.plain("XADD", keys.outbox, number, field, data))
    async with serve(app, shards=1):
        assert await run.result(10) == 1

        async def empty() -> bool:
            return await client.store.one(Call.plain("XLEN", keys.outbox)) == 0

        await until(empty)


async def test_an_inbox_full_of_garbage_is_emptied(serve: Serve) -> None:
    async with serve(app, shards=1) as (client, _):
        keys = client.keys.shard(0)
        for _ in range(20):
            for fields, _ in GARBAGE.values():
                await put(client, keys, fields)
        assert await (await client.start(naps)).result(10) == "slept"
        assert len(await quarantined(client, keys, 20 * len(GARBAGE))) == 20 * len(GARBAGE)
