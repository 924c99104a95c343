"""What scripts touch, as the server sees it: only keys that the call declares, all of one slot.

A key that isn't in KEYS works until its slot moves in a cluster; then a part of the script is refused midway.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis
from redis.asyncio.client import Monitor
from redis.crc import key_slot

from streamflow.embedded.server import EmbeddedServer
from streamflow.model.record import Header, decode_header
from streamflow.model.sharding import Partition
from streamflow.store.connection import Call
from streamflow.store.kernel import (
    FIRST_FIELD,
    WORKERS,
    Attempt,
    Batch,
    ChunkBatch,
    ClaimRef,
    Delivery,
    Holder,
    LentStep,
    LogLimits,
    Message,
    OnceMessage,
    Poison,
    Put,
    Send,
    Settlement,
    Start,
)
from streamflow.store.keys import QueueKeys
from tests.kernel.queue import OF_QUEUES, QueuePartition
from tests.kernel.support import NOW, Shard

pytestmark = pytest.mark.anyio

END = "the watched call is over"


class Watcher:
    """Sees the commands that run inside scripts, through MONITOR on a connection of its own."""

    def __init__(self, shard: Shard, monitor: Monitor) -> None:
        self._shard = shard
        assert monitor.connection is not None
        self._connection = monitor.connection

    async def commands(self, call: Call[Any]) -> list[list[str]]:
        """Words of each command that the call's script ran, as MONITOR prints them (quotes and bytes escaped). It also
        shows the scripts of others, who share the server; what a script runs comes behind its own call."""
        await self._shard.do(call)
        await self._shard.plain("ECHO", END)  # on its own: a script that has to be loaded first would come behind it
        found: list[list[str]] = []
        is_ours = False
        while True:
            # Not `Monitor.next_command`, which joins the words with spaces.
            line: Any = await self._connection.read_response()
            words = re.findall(r'"((?:[^"\\]|\\.)*)"', line.decode())
            if words == ["ECHO", END]:
                return found
            if b" lua] " not in line:
                is_ours = words[0].startswith("EVAL") and words[3 : 3 + len(call.keys)] == call.keys
            elif is_ours:
                found.append(words)

    async def touched(self, call: Call[Any]) -> set[str]:
        """Every key and channel that those commands name, as `COMMAND GETKEYS` says."""
        commands = await self.commands(call)
        assert commands, "the script ran no command"
        channels = {words[1] for words in commands if words[0] == "SPUBLISH"}
        asked = [Call.plain("COMMAND GETKEYS", *words) for words in commands if words[0] not in ("SPUBLISH", "TIME")]
        keys: set[str] = set()
        for words, names in zip(asked, await self._shard.store.send(asked), strict=True):
            assert isinstance(names, list), (words.args, names)
            keys.update(name.decode() if isinstance(name, bytes) else name for name in names)
        return keys | channels


@pytest.fixture
async def watcher(real_shard: Shard, server: EmbeddedServer) -> AsyncIterator[Watcher]:
    async with Redis.from_url(server.url, protocol=2) as client, client.monitor() as monitor:
        yield Watcher(real_shard, monitor)


async def calls(shard: Shard) -> AsyncIterator[tuple[str, Call[Any]]]:
    """Every verb with arguments that make it go all its ways; each is made when those before it have run."""
    kernel, keys = shard.kernel, shard.keys
    running, completed = keys.index("running", "flow"), keys.index("completed", "flow")
    tagged = keys.attribute("customer", "acme")
    yield "open_namespace", kernel.open_namespace(4, Partition.RUN, workflows=[("flow", b"{}")])
    yield "store_records", kernel.store_records([Put(shard.namespace.queues, "gpu", b"8")])
    yield "heartbeat", kernel.heartbeat("one", b"1", [("two", b"1")])
    yield "acquire_shard", kernel.acquire_shard(0, "", "nonce", "member", NOW)
    yield "acquire_shard", kernel.acquire_shard(0, f"{NOW}:nonce", "nonce-2", "member", NOW)
    shard.token = f"{NOW + 1}:nonce-2"
    yield "start_runs", kernel.start_runs(0, [Start("r1", "flow", "acme", b"x"), Start("r2", "other", "", b"x")], NOW)
    yield (
        "post_messages",
        kernel.post_messages(0, "client", 1, [Message("signal", "r1", b"x"), Message("signal", "r9", b"x")], NOW),
    )
    yield "post_requests", kernel.post_requests(0, "client", 2, [Message("cancel", "r2", b"x")], NOW)
    yield "report_outcome", kernel.report_outcome(0, "r1", 0, b"x")
    child = Delivery("5-1", "start", "child", b"x", "flow", "acme", "p#1")
    taken = Delivery("5-2", "start", "r1", b"x", "flow", "acme", "p#2")
    yield (
        "deliver_messages",
        kernel.deliver_messages(0, 3, [child, taken, Delivery("5-3", "signal", "r1", b"x", "flow")], NOW),
    )
    first, second, *_ = [entry for entry, _ in await shard.stream(keys.inbox)]
    write = await shard.write_of("r1", "completed", b"state")
    write.transition = b"plain-words"
    header = msgspec.structs.replace(decode_header(write.header), attributes={"customer": "acme"})
    write.header = header.encode()
    batch = Batch(
        "c1",
        runs=[write],
        acks=[first],
        plans=[("r1", None), ("r2", NOW)],
        moves=[("r1", running, completed, NOW), ("r1", "", tagged, NOW)],
        puts=[Put(keys.published("r1"), "progress", b"x"), Put(keys.answer("0" * 32), "", b"x")],
        sends=[Send("5-1", b"x")],
        sent=["1-1"],
        poisons=[
            Poison(second, "r9", "reason", b"event", b"x"),
            Poison("1-1", "r2", "reason", b"event", b"x", "signal", b"", b"m:x"),
            Poison("1-2", "r2", "reason", b"event", b"x", "start", b"header"),
        ],
        cuts=[(0, b"logged")],
        attempts=[Attempt("gpu", f"r{n}/{n}", "7 1", b"x", b"told") for n in (1, 2, 3, 4, 5)],
        notification=b"news",
        repeats=["0-0", "m:client.1.1"],
    )
    yield "peek_inbox", kernel.peek_inbox(0)
    yield "read_inbox", kernel.read_inbox(0, shard.token, "0-0", 100, 1_000_000)
    yield "commit", shard.commit(batch)
    yield "next_starts", kernel.next_starts(0, shard.token, 10)
    yield "due_runs", kernel.due_runs(0, shard.token, 10, NOW)
    yield "peek_runs", kernel.peek_runs(0, ["r1", "r2", "r9"])
    yield "read_runs", kernel.read_runs(0, [("r1", 0), ("r9", 0)], 1_000_000)
    yield "read_stream", kernel.read_stream(keys.log, "0-0", 1_000_000)
    yield "read_quarantine", kernel.read_quarantine(0, "", 100)
    aside = [(entry, fields["run"].decode()) for entry, fields in await shard.stream(keys.poison)]
    yield "take_quarantined", kernel.take_quarantined(0, "client:q", 1, "redrive", aside, NOW)
    yield "take_quarantined", kernel.take_quarantined(0, "client:q", 2, "drop", aside, NOW)
    yield "read_transitions", kernel.read_transitions(0, [("r1", NOW, 1), ("r9", NOW, 1)], 1_000_000)
    for offset in ("1-1", "1-2"):
        yield (
            "checkpoint_views",
            kernel.checkpoint_views(0, shard.token, offset, b"partial", NOW, 1, LogLimits(1, 1), ["flow", "other"]),
        )
    yield (
        "store_view",
        kernel.store_view(0, "cost", shard.token, "state/1", b"", b"1", b"", "1-0", [], [("window/1/0", b"cells")]),
    )
    yield (
        "store_view",
        kernel.store_view(0, "cost", shard.token, "state/1", b"1", b"2", b"1-0", "2-0", ["window/1/0"], []),
    )
    yield "forget_runs", kernel.forget_runs(0, [("r1", decode_header(await shard.header("r1")))])
    await shard.do(kernel.start_runs(0, [Start("s1", "flow", "acme", b"x"), Start("s2", "flow", "", b"x")], NOW))
    for run_id in ("s1", "s2"):
        await shard.advance(run_id, plans=[(run_id, NOW + 9)])
    tagged_header = msgspec.structs.replace(decode_header(await shard.header("s1")), attributes={"customer": "acme"})
    await shard.plain("LSET", keys.run("s1"), 0, tagged_header.encode())
    record = await shard.record("s1")
    yield "hibernate_runs", kernel.hibernate_runs(0, shard.token, [("s1", tagged_header, "0000000a")])
    sleeps = "s1"
    yield "peek_runs", kernel.peek_runs(0, [sleeps], asleep=True)
    yield "start_runs", kernel.start_runs(0, [Start(sleeps, "flow", "acme", b"x")], NOW, asleep=True)
    yield "post_messages", kernel.post_messages(0, "z", 1, [Message("signal", sleeps, b"x")], NOW, asleep=True)
    yield "replace_run", kernel.replace_run(0, again_as(sleeps), NOW, asleep=True)
    yield "restore_run", kernel.restore_run(0, sleeps, [ENDED_HEADER, b"", b"transition"], [], NOW)
    signal = OnceMessage(Message("signal", sleeps, b"x"), "0b", 60_000)
    yield "post_once", kernel.post_once(0, signal, NOW, asleep=True)
    another = Delivery("5-4", "start", sleeps, b"x", "flow", "acme", "p#1")
    yield "deliver_messages", kernel.deliver_messages(0, 3, [another], NOW, asleep=True)
    line = await shard.plain("HGET", keys.asleep("s1"), "s1")
    yield "wake_run", kernel.wake_run(0, shard.token, "s1", line, record, [("key", b"value")])
    yield "note_group", kernel.note_group("billing", b"", b"x")
    yield "place_position", kernel.place_position(0, "billing", "id", "oldest")
    yield "claim_position", kernel.claim_position(0, "billing", "id", "1:", "n", "one")
    last = (await shard.stream(keys.log))[-1][0] if await shard.stream(keys.log) else ""
    yield "acknowledge_events", kernel.acknowledge_events(0, "billing", "2:n", last, 1)
    yield "peek_positions", kernel.peek_positions(0)
    gone = ENDED_HEADER
    again = again_as("r7")
    await shard.plain("RPUSH", keys.run("r7"), gone, "", b"transition")
    await shard.plain("HSET", keys.published("r7"), "key", "value")
    yield "replace_run", kernel.replace_run(0, again, NOW)
    yield "restore_run", kernel.restore_run(0, "r8", [gone, b"", b"transition"], [("key", b"value")], NOW)
    await shard.plain("RPUSH", keys.run("r9"), gone, "", b"transition")
    once = OnceMessage(Message("signal", "r9", b"x"), "0a", 60_000, Start("r9", "flow", "acme", b"x", "", "i0a", gone))
    yield "post_once", kernel.post_once(0, once, NOW)
    yield "store_details", kernel.store_details(0, shard.token, [("r2/1", b"half")])
    created = (await shard.header("r2")).split(b" ")[3]
    for number in (1, 2):
        batch = ChunkBatch("r2", int(created), number, 2, "x", "step", 1, 1, b"\x90", over=True)
        holder = Holder(keys.owner, "token", shard.token)
        yield "append_chunks", kernel.append_chunks(0, batch, holder, 10, 60)
    yield "read_chunks", kernel.read_chunks(0, "r2", "", 1, 1000)
    yield "read_hash", kernel.read_hash(keys.details, [*FIRST_FIELD, b"r2/1"], 1_000_000)
    lent = LentStep("r2/1", "one", NOW, 1, b"more")
    yield "release_shard", kernel.release_shard(0, shard.token, [lent])
    yield "extend_steps", kernel.extend_steps(0, [lent])
    yield "report_step", kernel.report_step(0, "r2", "outcome", lent, b"x")
    yield "pause", kernel.pause("queue:gpu", b"x")
    yield "mark_suspects", kernel.mark_suspects("one", 60, b"x")
    stream = keys_of_queue(shard).stream
    yield "create_group", kernel.create_group("gpu", 0)
    for consumer, count in (("one", 2), ("two", 1), ("quiet", 1)):
        await shard.plain("XREADGROUP", "GROUP", WORKERS, consumer, "COUNT", count, "STREAMS", stream, ">")
    yield "peek_queues", kernel.peek_queues(0, ["gpu"])
    first, second, third, fourth, _ = [entry for entry, _ in await shard.stream(stream)]
    await shard.plain("XACK", stream, WORKERS, fourth)
    await shard.acquire("nonce-3")
    decided = [("r3/3", "7 2", b"x"), ("r2/2", "7 1", b""), ("r5/5", "7 1", b""), ("r4/4", "7 1", b"y")]
    batch = Batch(
        "c2",
        runs=[await shard.write_of("r2")],
        plans=[("r2", NOW)],
        sends=[Send(f"{NOW + 3}-1", b"x")],
        poisons=[Poison("1-1", "r9", "reason", b"event", b"x")],
        attempts=[Attempt("gpu", step, attempt, body) for step, attempt, body in decided],
    )
    yield "commit", shard.commit(batch)
    yield (
        "extend_claims",
        kernel.extend_claims("gpu", 0, "one", [ClaimRef(first, "r1/1", b"told"), ClaimRef(third, "r3/3")]),
    )
    yield "restart_claims", kernel.restart_claims("gpu", 0, 10)
    yield "expired_claims", kernel.expired_claims("gpu", 0, 0, -1, 10, "")
    yield (
        "requeue_attempts",
        kernel.requeue_attempts("gpu", 0, "one", [ClaimRef(first, "r1/1"), ClaimRef(second, "r2/2")]),
    )
    [claim, *_] = [entry for entry, _ in await shard.stream(stream)]
    settled = [Settlement(claim, "r3/3", b"outcome"), Settlement(fourth, "r4/4", b"")]
    yield "settle_attempts", kernel.settle_attempts("gpu", 0, settled)


ENDED_HEADER = Header("failed", 7, "c", 5, 9, "flow", "acme", "", {"customer": "acme"}).encode()


def again_as(run_id: str) -> Start:
    """A start that takes the place of an ended run."""
    return Start(run_id, "flow", "acme", b"x", "", "i0a", ENDED_HEADER)


def keys_of_queue(shard: Shard) -> QueueKeys:
    return shard.namespace.queue("gpu", 0)


async def test_scripts_touch_only_the_keys_that_they_declare(real_shard: Shard, watcher: Watcher) -> None:
    seen: set[str] = set()
    async for verb, call in calls(real_shard):
        touched = await watcher.touched(call)
        undeclared = touched - set(call.keys) - {real_shard.keys.done}
        assert not undeclared, f"{verb} touches {undeclared}"
        seen.add(verb)
    assert seen == {name for name in vars(type(real_shard.kernel)) if not name.startswith("_")}


async def test_scripts_use_every_key_that_they_declare(real_shard: Shard, watcher: Watcher) -> None:
    async for verb, call in calls(real_shard):
        unused = set(call.keys) - await watcher.touched(call)
        assert not unused, f"{verb} declares {unused} for nothing"


async def test_a_commit_that_puts_nothing_runs_not_one_command_for_it(real_shard: Shard, watcher: Watcher) -> None:
    shard = real_shard
    await shard.acquire()
    await shard.start("r1")
    commit = shard.commit(Batch("c1", runs=[await shard.write_of("r1")]))
    await watcher.commands(shard.kernel.peek_runs(0, ["r1"]))  # what ran before is passed over
    ran = [words[0] for words in await watcher.commands(commit)]
    assert ran == ["HMGET", "TYPE", "LINDEX", "LSET", "RPUSH", "XADD", "HSET"]


async def test_who_adds_attempts_to_a_queue_rings_once(real_shard: Shard, watcher: Watcher) -> None:
    """Workers listen to the channel of the stream's name."""
    queue = QueuePartition(real_shard)
    await real_shard.acquire()

    async def rings(call: Call[Any]) -> list[str]:
        return [words[1] for words in await watcher.commands(call) if words[0] == "SPUBLISH"]

    def commit(*attempts: Attempt) -> Call[Any]:
        return real_shard.commit(Batch(real_shard.commit_id(), attempts=list(attempts)))

    await rings(real_shard.kernel.peek_runs(0, ["r1"]))  # what ran before is passed over
    assert await rings(commit(queue.step(), queue.step(seq=2))) == [queue.keys.stream]
    assert await rings(commit(queue.step(), queue.revoke(seq=2))) == [], "there is nothing new"
    [entry] = await queue.read()
    requeue = real_shard.kernel.requeue_attempts("gpu", 0, "one", [ClaimRef(entry, "r1/1")])
    assert await rings(requeue) == [queue.keys.stream]
    assert await rings(requeue) == []


async def test_all_keys_of_a_call_and_what_it_publishes_to_share_one_slot(real_shard: Shard, watcher: Watcher) -> None:
    namespace = key_slot(real_shard.namespace.meta.encode())
    shard = key_slot(real_shard.keys.owner.encode())
    queue = key_slot(keys_of_queue(real_shard).stream.encode())
    homes = {
        "open_namespace": namespace,
        "store_records": namespace,
        "heartbeat": namespace,
        "mark_suspects": namespace,
        "pause": namespace,
        "note_group": namespace,
        **dict.fromkeys(OF_QUEUES, queue),
    }
    async for verb, call in calls(real_shard):
        slots = {key_slot(key.encode()) for key in {*call.keys, *await watcher.touched(call)}}
        assert slots == {homes.get(verb, shard)}, verb


async def test_shards_have_slots_of_their_own(real_shard: Shard) -> None:
    slots = {key_slot(real_shard.namespace.shard(number).inbox.encode()) for number in range(64)}
    assert len(slots) > 32


async def test_the_watcher_notices_an_undeclared_key(real_shard: Shard, watcher: Watcher) -> None:
    shard = real_shard
    source = b"redis.call('GET', KEYS[1]) redis.call('XLEN', KEYS[1] .. '-hidden') return redis.call('TIME')[1]"
    sha = (await shard.plain("SCRIPT", "LOAD", source)).decode()
    assert sha == hashlib.sha1(source, usedforsecurity=False).hexdigest()
    call = Call.plain("EVALSHA", sha, 1, shard.keys.inbox)
    assert await watcher.touched(call) == {shard.keys.inbox, f"{shard.keys.inbox}-hidden"}
