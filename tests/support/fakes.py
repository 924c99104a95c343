"""Stand-ins for what the runtime's parts call: a store that answers from a table, and a clock that stands still."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from streamflow.daemon.context import Context
from streamflow.daemon.shard import OwnedShard
from streamflow.errors import StoreError
from streamflow.model.sharding import Partition
from streamflow.settings import Settings
from streamflow.store.connection import Call
from streamflow.store.kernel import Committed, DueRuns, Kernel, Reply
from streamflow.store.keys import NamespaceKeys
from streamflow.store.namespace import Namespace
from streamflow.wire import InboxMessage
from streamflow.workflow.app import App

KERNEL = Kernel(NamespaceKeys("ns"))


class FakeStore:
    """Answers each call by its script's or command's name: a value, an error, or a function of the call.

    `calls` has what was sent, a list for each pipeline.
    """

    def __init__(self, **answers: Any) -> None:
        self.answers: dict[str, Any] = {"HKEYS": [], "HGETALL": {}, "TIME": (1, 0), **answers}
        self.calls: list[list[Call[Any]]] = []
        self.server_generation = 0
        self.is_single = True
        self.url = "redis://nowhere.invalid"
        self.confirmation: Any = None
        self.patience = 10.0

    def history_of(self, key: str) -> int:
        return self.server_generation

    def history_lost(self, key: str) -> None:
        self.server_generation += 1

    def server_of(self, key: str) -> int:
        return 0

    def server_name(self, server: int) -> str:
        return ""

    async def send(
        self,
        calls: Sequence[Call[Any]],
        patience: float | None = None,
        *,
        urgent: bool = False,
        same_history: bool = False,
        confirmed: bool = False,
    ) -> list[Any]:
        self.calls.append(list(calls))
        return [self._answer(call) for call in calls]

    async def one(self, call: Call[Any], *, urgent: bool = False) -> Any:
        [answer] = await self.send([call], urgent=urgent)
        if isinstance(answer, StoreError):
            raise answer
        return answer

    def _answer(self, call: Call[Any]) -> Any:
        answer = self.answers[call.script or call.args[0]]
        return answer(call) if callable(answer) else answer

    def sent(self, name: str) -> list[Call[Any]]:
        """All calls of a script or command so far."""
        return [call for calls in self.calls for call in calls if name == (call.script or call.args[0])]


class FakeClock:
    def __init__(self, now_ms: int = 1_000_000) -> None:
        self.ms = now_ms
        self.measured: list[tuple[int, list[int]]] = []

    def now_ms(self) -> int:
        return self.ms

    ahead = 0
    since_jump = math.inf

    def server_ms(self) -> int:
        return self.ms - self.ahead

    def measure(self, server_ms: int, took: float, others: Iterable[int] = ()) -> None:
        self.measured.append((server_ms, list(others)))

    def seconds_until(self, due_ms: float) -> float:
        return max(0.0, (due_ms - self.ms) / 1000)


OK = Committed(Reply.OK, 1_000_000, "5-0", [])
NOTHING_DUE = DueRuns(Reply.OK, None, [])


def owned(number: int = 0) -> OwnedShard:
    return OwnedShard(number, KERNEL.keys.shard(number), "7:nonce")


def pack(value: object) -> bytes:
    return msgspec.msgpack.encode(value)


def start(
    entry_id: str, run_id: str, workflow: str, *args: object, tenant: str = "-", parent: str = "-"
) -> InboxMessage:
    header = f"pending 0 - 900 0 {workflow} {tenant} {parent}".encode()
    return InboxMessage(entry_id, "start", run_id, pack(args), header)


def signal(entry_id: str, run_id: str, name: str, value: object = None) -> InboxMessage:
    return InboxMessage(entry_id, "signal", run_id, pack((name, value)))


def put(shard: OwnedShard, *messages: InboxMessage) -> None:
    """Into the shard's memory, as the inbox reader does it."""
    for message in messages:
        shard.inbox.append(message)


class FakeOwner:
    def __init__(self, *shards: OwnedShard) -> None:
        self.shards = {shard.number: shard for shard in shards}
        self.active = dict(self.shards)
        self.flushed = 0
        self.touched: list[int] = []

    def touch(self, shard: OwnedShard) -> None:
        self.touched.append(shard.number)
        self.active[shard.number] = shard

    def flush(self) -> None:
        self.flushed += 1

    def gone_records(self) -> list[Any]:
        return []


def context(
    store: FakeStore,
    app: App | None = None,
    *,
    clock: FakeClock | None = None,
    shards: int,
    member: str = "m",
    settings: Settings | None = None,
    **fields: Any,
) -> Context:
    """A daemon's context around a store that answers from a table; `fields` are settings."""
    return Context(
        app or App(),
        store,  # type: ignore[arg-type]
        KERNEL,
        clock or FakeClock(),  # type: ignore[arg-type]
        settings or Settings(**fields),
        Namespace(shards, Partition.RUN),
        member,
        "s",
    )


class CommitCounts(NamedTuple):
    """How many items of each kind a call of `commit` has."""

    indexes: int
    acks: int
    plans: int
    moves: int
    sends: int
    sent: int
    poisons: int
    cuts: int
    states: int
    reports: int
    puts: int
    queues: int
    attempts: int


def counts_of(commit: Call[Any]) -> CommitCounts:
    return CommitCounts(*struct.unpack(">13I", commit.args[5]))


def runs_of(commit: Call[Any]) -> dict[str, tuple[bytes, bytes, bytes]]:
    """The new header, the state and the transition of each run."""
    counts, args = counts_of(commit), commit.args
    ids = [key.rpartition(":")[2] for key in commit.keys[7 + counts.indexes + counts.puts :]]
    first = len(args) - 2 * (counts.states + counts.puts)
    states = {args[first + 2 * n]: args[first + 2 * n + 1] for n in range(counts.states)}
    return {run_id: (args[7 + 3 * n], states.get(n + 1, b""), args[8 + 3 * n]) for n, run_id in enumerate(ids)}
