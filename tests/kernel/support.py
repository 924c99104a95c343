"""What kernel tests share: one shard to speak to, the dump that proves "nothing changed", and shapes of runs.

Owns: no test. `Shard` sends calls to shard 0 of the test's namespace; all it reads, it reads with plain commands.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
import msgspec

from streamflow.events import NOTHING, SignalReceived, encode_transition
from streamflow.model.record import LISTED, decode_header
from streamflow.store.connection import Call
from streamflow.store.kernel import Acquired, Batch, Committed, Kernel, Reply, RunWrite, Start
from streamflow.store.keys import NamespaceKeys
from streamflow.store.node import Node

T = TypeVar("T")

NOW = 1_700_000_000_000
"""A clock long before the server's, so that only an override can have brought it."""

FUTURE = 4_000_000_000_000
"""A clock long after the server's: the server's time must not turn it back."""

EXPIRING = {":answer:": 900, ":suspects:": 86_400, ":chunks:": 3600, ":known:": 86_400}
"""Keys that expire, by a part of their names, and seconds at most."""

NOTE = encode_transition(NOW, [SignalReceived("note", NOTHING)])
"""A transition, for tests that don't look inside."""


class Shard:
    """Shard 0 of a namespace of the test's own."""

    def __init__(self, store: Node, namespace: str) -> None:
        self.store = store
        self.namespace = NamespaceKeys(namespace)
        self.kernel = Kernel(self.namespace)
        self.keys = self.namespace.shard(0)
        self.planted: set[str] = set()
        self.token = ""
        self._commits = 0

    # --- to the server ------------------------------------------------------------------------------------------------

    async def do(self, call: Call[T]) -> T:
        return await self.store.one(call)

    async def plain(self, *words: Any) -> Any:
        return await self.store.one(Call.plain(*words))

    async def try_(self, call: Call[Any]) -> Any:
        """The answer, or the error in its place."""
        return (await self.store.send([call]))[0]

    async def start(self, *run_ids: str, now: int = NOW, tenant: str = "", workflow: str = "flow") -> list[bytes]:
        starts = [Start(run_id, workflow, tenant, b"input of " + run_id.encode()) for run_id in run_ids]
        return await self.do(self.kernel.start_runs(0, starts, now))

    async def acquire(self, nonce: str = "one", now: int = NOW) -> Acquired:
        """Take the shard from whoever has it; later commits use the token."""
        expected = (await self.plain("HGET", self.keys.owner, "token") or b"").decode()
        taken = await self.do(self.kernel.acquire_shard(0, expected, nonce, f"member-{nonce}", now))
        assert taken.code is Reply.OK
        self.token = taken.token
        return taken

    def commit(self, batch: Batch, now: int = NOW) -> Call[Committed]:
        return self.kernel.commit(0, self.token, batch, now)

    def commit_id(self) -> str:
        self._commits += 1
        return f"c{self._commits}"

    async def advance(self, run_id: str, status: str = "running", now: int = NOW, **batch: Any) -> Committed:
        """Commit one more transition of a run."""
        write = await self.write_of(run_id, status)
        committed = await self.do(self.commit(Batch(self.commit_id(), runs=[write], **batch), now))
        assert committed.code is Reply.OK
        return committed

    async def write_of(self, run_id: str, status: str = "running", state: bytes = b"") -> RunWrite:
        expected = await self.header(run_id)
        return RunWrite(run_id, expected, next_header(expected, status, self.commit_id()), state, NOTE)

    # --- what is there ------------------------------------------------------------------------------------------------

    async def header(self, run_id: str) -> bytes:
        return await self.plain("LINDEX", self.keys.run(run_id), 0)

    async def record(self, run_id: str) -> list[bytes]:
        return await self.plain("LRANGE", self.keys.run(run_id), 0, -1)

    async def listed(self, key: str) -> dict[str, int]:
        reply = await self.plain("ZRANGE", key, 0, -1, "WITHSCORES")
        if reply and isinstance(reply[0], bytes):
            reply = list(zip(reply[::2], reply[1::2], strict=True))
        return {member.decode(): int(float(score)) for member, score in reply}

    async def stream(self, key: str) -> list[tuple[str, dict[str, bytes]]]:
        entries: list[Any] = await self.plain("XRANGE", key, "-", "+")
        return [
            (entry_id.decode(), {name.decode(): value for name, value in fields.items()})
            for entry_id, fields in entries
        ]

    async def groups(self, key: str) -> list[str]:
        """Names of the stream's consumer groups."""
        groups: list[Any] = await self.plain("XINFO", "GROUPS", key)
        named = [
            group if isinstance(group, dict) else dict(zip(group[::2], group[1::2], strict=True)) for group in groups
        ]
        return [group[b"name"].decode() for group in named]

    async def read(self, after: str = "0-0", count: int = 100, limit: int = 1_000_000) -> list[str]:
        """What the owner reads behind a message: ids."""
        page = await self.do(self.kernel.read_inbox(0, self.token, after, count, limit))
        assert page.code is Reply.OK
        return [entry.decode() for entry, _ in page.entries]

    async def kept(self) -> str:
        """How many messages the owner has read that are in the inbox, and the last that it has read."""
        return (await self.plain("GET", self.keys.kept) or b"").decode()

    async def inbox(self) -> list[dict[str, bytes]]:
        return [fields for _, fields in await self.stream(self.keys.inbox)]

    async def owner(self) -> dict[str, str]:
        fields: dict[bytes, bytes] = await self.plain("HGETALL", self.keys.owner)
        return {name.decode(): value.decode() for name, value in fields.items()}

    async def key_names(self) -> list[str]:
        names: set[bytes] = set()
        for pattern in (f"sf:{{{self.namespace.namespace}}}:*", f"sf:{{{self.namespace.namespace}/*}}:*"):
            cursor: Any = 0
            while True:
                cursor, some = await self.plain("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
                names.update(some)
                if int(cursor) == 0:
                    break
        return sorted(name.decode() for name in names)

    async def type_of(self, key: str) -> str:
        return (await self.plain("TYPE", key)).decode()

    async def dump(self) -> dict[str, Any]:
        """Every key of the namespace with all that is in it, consumer groups included."""
        return {key: await self._value(key) for key in await self.key_names()}

    async def _value(self, key: str) -> Any:
        match await self.type_of(key):
            case "stream":
                return (
                    await self.plain("XRANGE", key, "-", "+"),
                    await self.plain("XINFO", "GROUPS", key),
                )
            case "hash":
                return await self.plain("HGETALL", key)
            case "zset":
                return await self.plain("ZRANGE", key, 0, -1, "WITHSCORES")
            case "list":
                return await self.plain("LRANGE", key, 0, -1)
            case _:
                return await self.plain("GET", key)

    # --- behaviours that every verb has -------------------------------------------------------------------------------

    async def assert_changes_nothing(self, call: Call[T]) -> T:
        before = await self.dump()
        answer = await self.try_(call)
        assert await self.dump() == before
        return answer

    async def assert_wrong_types_leave_nothing_half_written(self, call: Call[Any]) -> None:
        """Send the call once for each of its keys, with a string in that key's place, or a list in that of a string."""
        for key in dict.fromkeys(call.keys):
            existed = await self.plain("EXISTS", key)
            if existed:
                await self.plain("RENAME", key, f"{key}~aside")
            self.planted.add(key)
            is_string = key == self.keys.kept or ":known:" in key
            await self.plain(*(("RPUSH", key, "a list") if is_string else ("SET", key, "a string")))
            answer = await self.assert_changes_nothing(call)
            if not (isinstance(answer, Committed) and answer.code is Reply.CONFLICT):
                assert isinstance(answer, Exception), f"{key} of another type: {answer}"
                assert "WRONGTYPE" in str(answer)
            await self.plain("DEL", key)
            if existed:
                await self.plain("RENAME", f"{key}~aside", key)

    async def assert_only_known_keys(self) -> None:
        """Each key is one that `keys.py` names, of the type it has there; only answers and the like wait for their
        end."""
        known = known_keys()
        names = await self.key_names()
        answers = await self.store.send([Call.plain(word, key) for key in names for word in ("TYPE", "TTL")])
        for key, found, ttl in zip(names, answers[::2], answers[1::2], strict=True):
            general = key.replace(f"{{{self.namespace.namespace}", "{ns", 1)
            kind = next((kind for pattern, kind in known if pattern.fullmatch(general)), None)
            assert kind, f"{key} is not a known key"
            assert key in self.planted or found.decode() == kind, f"{key} is a {found}"
            limit = next((limit for part, limit in EXPIRING.items() if part in key), 0)
            assert (0 < ttl <= limit) if limit else ttl == -1, f"{key} has the TTL {ttl}"


@functools.cache
def known_keys() -> list[tuple[re.Pattern[str], str]]:
    """Patterns of all permanent keys of a namespace `ns`, with their types. To compile them took a third of a test."""
    keys = NamespaceKeys("ns")
    shard = rf"sf:\{{{keys.namespace}/\d+\}}:"
    name = r"[A-Za-z0-9_][A-Za-z0-9_.:@=+~-]*"
    patterns = {
        rf"{shard}(inbox|log|outbox|poison)": "stream",
        rf"{shard}(owner|seen|views|steps|details|positions)": "hash",
        rf"{shard}(agenda|waiting|turns)": "zset",
        rf"{shard}kept": "string",
        rf"{shard}run:[A-Za-z0-9][A-Za-z0-9_.:@=+~/-]*": "list",
        rf"{shard}index:({'|'.join(LISTED)}):{name}": "zset",
        rf"{shard}index:tenant:{name}": "zset",
        rf"{shard}index:attribute:{name}:[A-Za-z0-9_.~%-]*": "zset",
        rf"{shard}published:[A-Za-z0-9][A-Za-z0-9_.:@=+~/-]*": "hash",
        rf"{shard}chunks:[A-Za-z0-9][A-Za-z0-9_.:@=+~/-]*": "hash",
        rf"{shard}asleep:[0-9a-f]{{2}}": "hash",
        rf"{shard}view:{name}": "hash",
        rf"{shard}answer:[0-9a-f]{{32}}": "string",
        rf"{shard}known:[0-9a-f]{{2,32}}": "string",
        rf"{shard}queue:{name}:stream": "stream",
        rf"{shard}queue:{name}:(steps|details)": "hash",
        rf"{re.escape(keys.prefix)}(meta|members|workers|ended|workflows|served|paused|queues|groups)": "hash",
        rf"{re.escape(keys.prefix)}(undelivered|files|app-views|app-view-heads)": "hash",
        rf"{re.escape(keys.prefix)}view:{name}": "string",
        rf"{re.escape(keys.prefix)}suspects:{name}": "string",
    }
    return [(re.compile(pattern), kind) for pattern, kind in patterns.items()]


def next_header(header: bytes, status: str, commit: str) -> bytes:
    """The header after one more transition."""
    old = decode_header(header)
    ended = 0 if status in ("pending", "running", "stuck") else NOW
    return msgspec.structs.replace(old, status=status, version=old.version + 1, commit=commit, ended=ended).encode()


async def until(condition: Callable[[], Awaitable[bool]], what: str, seconds: float = 15.0) -> None:
    """For what only the server knows, such as a client that is blocked: ask again until it is so."""
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        await anyio.lowlevel.checkpoint()
