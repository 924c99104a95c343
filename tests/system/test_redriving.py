"""Quarantined messages: listed, put back where they came from exactly once, or dropped; the status follows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

import streamflow as sf
from bench.faults import Backup
from streamflow.cli.commands import quarantine as command
from streamflow.client.quarantine import Quarantine, QuarantinedMessage, Taken
from streamflow.embedded.server import EmbeddedServer
from streamflow.events import SignalReceived
from streamflow.status.collector import StatusCollector
from streamflow.status.words import health
from streamflow.store.connection import Call
from streamflow.store.keys import ShardKeys
from tests.support.serving import running_daemon, view
from tests.support.shell import Shell
from tests.support.waiting import DEADLINE, events_of, happened, reduced, until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio

app = sf.App()


@app.workflow
async def adds() -> int:
    return await sf.signal("go", int) + await sf.signal("go", int)


@app.workflow
async def measures(text: str) -> int:
    return len(text)


SIGNAL = msgspec.msgpack.encode(("go", 1))


async def put(client: sf.Client, keys: ShardKeys, fields: dict[str, bytes], key: str = "") -> None:
    words = [word for pair in fields.items() for word in pair]
    await client.store.one(Call.plain("XADD", key or keys.inbox, "*", *words))
    await client.store.one(Call.plain("SPUBLISH", keys.inbox, ""))


async def there(client: sf.Client, count: int = 1) -> list[QuarantinedMessage]:
    """What is in the quarantine, as soon as it is so many."""

    async def found() -> list[QuarantinedMessage]:
        messages = await Quarantine(client).messages()
        return messages if len(messages) == count else []

    return await until(found)


def outcomes(taken: Sequence[Taken]) -> list[tuple[str, str]]:
    return sorted((one.outcome, one.reason[:20]) for one in taken)


async def damaged(serve: Serve) -> tuple[sf.Run[Any], bytes]:
    """A run that waits, whose record can't be read any more; what its history's first element was."""
    async with serve(app, shards=1) as (client, _):
        run = await client.start(adds, id="r")
        await reduced(client, "r")
    key = client.keys.shard(0).run("r")
    good = await client.store.one(Call.plain("LINDEX", key, 2))
    await client.store.one(Call.plain("LSET", key, 2, b"\xc1"))
    return run, good


async def repair(client: sf.Client, good: bytes) -> None:
    await client.store.one(Call.plain("LSET", client.keys.shard(0).run("r"), 2, good))


@pytest.mark.parametrize("crash", [False, True], ids=["drained", "killed"])
async def test_messages_of_a_run_that_is_repaired_are_put_back_and_taken_once(
    serve: Serve, client: sf.Client, crash: bool
) -> None:
    run, good = await damaged(serve)
    async with serve(app, shards=1, crash=crash):
        await run.signal("go", 3)
        await run.signal("go", 4)
        messages = await there(client, 2)
        assert [(one.run_id, one.kind, one.shard) for one in messages] == [("r", "signal", 0)] * 2
        assert "the run's record can't be read" in messages[0].reason
        await repair(client, good)
        both = [Quarantine(client), Quarantine(client)]
        taken: list[list[Taken]] = []

        async def redrive(one: Quarantine) -> None:
            taken.append(await one.redrive(messages))

        async with anyio.create_task_group() as group:  # two people at once
            for one in both:
                group.start_soon(redrive, one)
        assert sorted(map(outcomes, taken)) == [[("redriven", "")] * 2, [("stays", "it is not in the qua")] * 2]
        if not crash:
            assert await run.result(10) == 7
    async with serve(app, shards=1):
        assert await run.result(10) == 7
        received = [event for event in await events_of(run) if isinstance(event, SignalReceived)]
        assert [msgspec.msgpack.decode(event.value) for event in received] == [3, 4], "once each, in their order"
        assert await Quarantine(client).messages() == []


async def test_what_still_cannot_be_processed_is_quarantined_again(serve: Serve) -> None:
    async with serve(app, shards=1) as (client, _):
        run = await client.start(adds, id="r")
        await reduced(client, "r")
        await put(client, client.keys.shard(0), {"kind": b"signal", "run": b"r", "body": b"\xc1"})
        [before] = await there(client)
        assert outcomes(await Quarantine(client).redrive([before])) == [("redriven", "")]

        async def again() -> bool:
            [*found] = await Quarantine(client).messages()
            return len(found) == 1 and found[0].id != before.id

        await until(again)
        await run.signal("go", 1)
        await run.signal("go", 2)
        assert await run.result(10) == 3
        [last] = await Quarantine(client).messages()
        assert outcomes(await Quarantine(client).redrive([last])) == [("stays", "the run has ended: d")]
        assert outcomes(await Quarantine(client).drop([last])) == [("dropped", "")]


@pytest.mark.parametrize("size", [10, 10_000], ids=["in the inbox", "waited"])
async def test_a_start_is_put_back_and_its_run_begins(serve: Serve, size: int) -> None:
    """As a daemon puts it aside that can't even park its run."""
    async with serve(app, shards=1) as (client, _):
        keys = client.keys.shard(0)
    run = await client.start(measures.options(id="m"), "x" * size)
    header, waiting = await client.store.one(Call.plain("LRANGE", keys.run("m"), 0, 1))
    [(entry, fields)] = await client.store.one(Call.plain("XRANGE", keys.inbox, "-", "+"))
    await client.store.one(Call.plain("XDEL", keys.inbox, entry))
    await client.store.one(Call.plain("ZREM", keys.waiting, "m"))
    start = {"run": b"m", "reason": b"x", "kind": b"start", "header": header, "body": waiting or fields[b"body"]}
    await put(client, keys, start, keys.poison)
    async with serve(app, shards=1):
        [message] = await there(client)
        assert outcomes(await Quarantine(client).redrive([message])) == [("redriven", "")]
        assert await run.result(10) == size
        assert await client.store.one(Call.plain("LINDEX", keys.run("m"), 1)) == b"", "no state is left"
    async with serve(app, shards=1):
        assert (await run.describe()).result == size


async def test_the_status_follows_what_is_redriven_and_dropped(serve: Serve) -> None:
    async with serve(app, shards=2) as (client, _):
        for shard in (0, 1, 1):
            await put(client, client.keys.shard(shard), {"kind": b"joke", "run": b"r", "body": b"\xc1"})
        messages = await there(client, 3)
        collector = StatusCollector(client, dead_after=30)
        status = await collector.collect()
        assert status.quarantine is not None
        assert status.quarantine.count == 3
        assert [row.id for row in status.quarantine.latest] == [one.id for one in messages]
        assert "3 messages quarantined" in [sentence.text for sentence in health(status)]
        refused = await Quarantine(client).redrive(messages)
        assert outcomes(refused) == [("stays", "no run takes a messa")] * 3
        await Quarantine(client).drop(messages[:2])
        status = await collector.collect()
        assert "1 message quarantined" in [sentence.text for sentence in health(status)]
        await Quarantine(client).drop(messages)
        status = await collector.collect()
        assert status.quarantine is not None
        assert (status.quarantine.count, status.quarantine.latest) == (0, [])
        assert "quarantined" not in [sentence.code for sentence in health(status)]

        async def counted() -> bool:
            return (await view(client, "quarantine") or {}).get("count") == 3

        await until(counted)  # the view counts all that have ever been there


async def test_a_redriven_message_is_taken_once_although_the_server_forgets_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is in the quarantine again, and its run has taken it: its owner, who has committed that again, knows it."""
    async with (
        EmbeddedServer(tmp_path / "data", appendfsync="everysec") as server,
        running_daemon(app, server, "lossy", crash=False, beat=1.0, dead_after=6.0),
        sf.connect(server.url, namespace="lossy") as client,
    ):
        run = await client.start(adds, id="adds")
        await reduced(client, run.id)
        poison = client.keys.shard((await client.read_namespace()).shard_of("adds")).poison
        body = msgspec.msgpack.encode(("go", 1))
        words = ("run", "adds", "reason", "x", "kind", "signal", "body", body, "from", "")
        await client.store.one(Call.plain("XADD", poison, "*", *words))
        quarantine = Quarantine(client)
        messages = await quarantine.messages()
        backup = Backup(server)
        assert [one.outcome for one in await quarantine.redrive(messages)] == ["redriven"]
        await happened(run, SignalReceived)
        await backup.restore()

        async def is_mended() -> bool:
            return "this daemon has committed them again" in caplog.text

        await until(is_mended)
        assert await quarantine.messages() == messages
        assert [one.outcome for one in await quarantine.redrive(messages)] == ["removed"]
        assert await quarantine.messages() == []
        await run.signal("go", 2)
        assert await run.result(DEADLINE) == 3


async def test_the_commands_say_what_they_have_done(
    serve: Serve, embedded_server: EmbeddedServer, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = Shell(embedded_server.url, namespace, "quarantine")
    run, good = await damaged(serve)
    async with serve(app, shards=1) as (client, _):
        assert await shell("list") == "no messages are quarantined\n"
        await run.signal("go", 3)
        await there(client)
        await put(client, client.keys.shard(0), {"kind": b"joke", "run": b"odd", "body": b"\xc1" * 300})
        await there(client, 2)
        listed = await shell.data("list")
        odd, signal = (one["id"] for one in listed)
        assert [(one["run_id"], one["kind"], one["size"]) for one in listed] == [
            ("odd", "joke", 300),
            ("r", "signal", 5),
        ]
        assert await shell.data("list", "--run", "r") == listed[1:]
        assert await shell.data("list", "--run", "od") == listed[:1]
        assert await shell.data("list", "--run", "oddly") == []
        assert await shell.data("list", "--shard", "0", "--limit", "1") == listed[:1]
        assert "namespace" in await shell("list", "--shard", "9", code=2)
        assert signal in await shell("list")

        shown = await shell.data("show", signal)
        assert (shown["id"], shown["value"], shown["body"]) == (signal, ["go", 3], "kqJnbwM=")
        assert '["go",3]' in await shell("show", signal)
        assert "not MessagePack: c1 c1" in await shell("show", odd)
        assert "is not in the quarantine" in await shell("show", "0:1-1", code=1)
        assert "SHARD:ENTRY" in await shell("show", "17", code=2)

        assert "say which messages" in await shell("redrive", code=2)
        assert "say which messages" in await shell("redrive", odd, "--all", code=2)
        await repair(client, good)
        taken = await shell.data("redrive", "--all", code=1)
        assert [(one["id"], one["outcome"]) for one in taken] == [(signal, "redriven"), (odd, "stays")]
        await there(client)
        again = await shell("redrive", signal, "99:1-1", code=1)
        assert again.count("is left alone: it is not in the quarantine") == 2

        assert "add --yes" in await shell("drop", odd, code=2)
        monkeypatch.setattr(command, "_can_ask", lambda: True)
        asked = await shell("drop", "--run", "od", given="n\n", code=1)
        assert "od is run odd\n" in asked
        assert "joke of run odd: unknown message kind" in asked
        assert "Drop 1 message? [y/N]: n" in asked
        await there(client)
        assert f"dropped {odd} (joke of run odd)" in await shell("drop", "--run", "odd", given="y\n")
        assert await shell("drop", "--all") == "no messages are quarantined there\n"
        assert await shell.data("drop", "--all", "--yes") == []
        assert await shell.data("list") == []
        await run.signal("go", 4)
        assert await run.result(10) == 7


async def test_more_than_a_page_is_listed_and_put_back(serve: Serve) -> None:
    async with serve(app, shards=1) as (client, _):
        keys = client.keys.shard(0)
        run = await client.start(adds, id="r")
        await reduced(client, "r")
        for number in range(250):
            fields = {"run": b"r", "reason": b"x", "kind": b"cancel", "body": msgspec.msgpack.encode(f"why {number}")}
            await put(client, keys, fields, keys.poison)
        quarantine = Quarantine(client)
        assert len(await quarantine.messages(limit=120)) == 120
        messages = await quarantine.messages()
        assert len(messages) == 250
        assert outcomes(await quarantine.redrive(messages))[0] in [("redriven", ""), ("stays", "the run has ended: d")]
        with pytest.raises(sf.RunCancelled, match="why 0"):
            await run.result(10)
