"""What a daemon does, done by hand: commits to runs, for tests of the client alone."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Any

import msgspec
from msgspec import Raw

from streamflow.client.client import Client
from streamflow.events import AnyEvent, AskAnswered, AskReceived, RunCompleted, encode_transition
from streamflow.model.record import Header, Status, decode_header
from streamflow.store.connection import Call
from streamflow.store.kernel import Batch, Put, Reply, RunWrite, listed_under
from streamflow.wire import InboxMessage, answer_name, decode_message, notified_ending
from tests.support.waiting import until


class Owner:
    """Takes shards and commits events to runs."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.tokens: dict[int, str] = {}
        self.commits = 0

    async def commit(self, run_id: str, *events: AnyEvent, status: Status, payloads: bool = True) -> None:
        """As a daemon would, with a notification of answers and endings; `payloads=False`: without what they are."""
        client, kernel = self.client, self.client.kernel
        shard = (await client.read_namespace()).shard_of(run_id)
        now = int(time.time() * 1000)
        if shard not in self.tokens:
            taken = await client.store.one(kernel.acquire_shard(shard, "", secrets.token_hex(4), "test", now))
            assert taken.code is Reply.OK
            self.tokens[shard] = taken.token
        [(line, _)] = await client.store.one(kernel.peek_runs(shard, [run_id]))
        old = decode_header(line)
        self.commits += 1
        at = old.created + 60_000 * self.commits
        ended = 0 if status in (Status.RUNNING, Status.STUCK) else at
        new = Header(status, old.version + 1, f"c{self.commits}", old.created, ended, old.workflow, old.tenant, "")
        transition = encode_transition(at, list(events))
        keys = client.keys.shard(shard)
        batch = Batch(
            commit=new.commit,
            runs=[RunWrite(run_id, line, new.encode(), b"", transition)],
            moves=[(run_id, keys.index(listed_under(old.status), old.workflow), keys.index(status, old.workflow), at)],
        )
        notifications: list[tuple[str, bytes]] = []
        for event in events:
            if isinstance(event, AskAnswered):
                answer = msgspec.msgpack.encode(event)
                batch.puts.append(Put(keys.answer(event.id), "", answer))
                notifications.append((answer_name(event.id), answer))
        if ended:
            identity = (await client.read_namespace()).identity
            notifications.append((run_id, notified_ending(transition, old.created, identity)))
        if notifications:
            batch.notification = msgspec.msgpack.encode(
                [(name, payload if payloads else b"") for name, payload in notifications]
            )
        committed = await client.store.one(kernel.commit(shard, self.tokens[shard], batch, now))
        assert committed.code is Reply.OK

    async def asked(self, run_id: str) -> AskReceived:
        """The newest question in the inbox, when there is one."""
        inbox = self.client.keys.shard((await self.client.read_namespace()).shard_of(run_id)).inbox

        async def newest() -> AskReceived | None:
            entries: list[Any] = await self.client.store.one(Call.plain("XREVRANGE", inbox, "+", "-", "COUNT", 1))
            fields = entries[0][1] if entries else {}
            if fields.get(b"kind") != b"ask":
                return None
            ask = decode_message(InboxMessage("1-0", "ask", fields[b"run"].decode(), fields[b"body"]), None)
            return ask if isinstance(ask, AskReceived) else None

        ask = await until(newest)
        assert ask is not None
        return ask

    async def inbox(self, run_id: str) -> list[str]:
        """The kinds of the messages in the inbox of the run's shard."""
        inbox = self.client.keys.shard((await self.client.read_namespace()).shard_of(run_id)).inbox
        entries: list[Any] = await self.client.store.one(Call.plain("XRANGE", inbox, "-", "+"))
        return [fields[b"kind"].decode() for _, fields in entries]

    async def complete(self, run_id: str, result: object = None, payloads: bool = True) -> None:
        raw = Raw(msgspec.msgpack.encode(result))
        await self.commit(run_id, RunCompleted("price", "", 5, raw), status=Status.COMPLETED, payloads=payloads)


async def waiting(client: Client, runs: int) -> None:
    """Returns when that many runs are waited for and the server has confirmed the subscriptions."""
    outcomes = client._waiter

    def settled() -> bool:
        subscription = outcomes._subscription
        return (
            sum(len(watched.waiting) for watched in outcomes._shards.values()) >= runs
            and not client._batcher.is_sending
            and all(subscription and subscription.is_confirmed(w.channel) for w in outcomes._shards.values())
        )

    while not settled():  # noqa: ASYNC110
        await asyncio.sleep(0)  # the calls' own futures are the callers': there is nothing else to wait for
