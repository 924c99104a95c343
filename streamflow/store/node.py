"""One server: pipelines of calls, retries, reloading of scripts, and noticing that the server was replaced.

Owns: which connections there are and when all of them are replaced, the retry policy, and the translation of server
errors. Must not: know what a call means. Called by: everybody as a `Store`; `router.py`, where it is one of several.

redis-py's own retries are switched off: after a lost reply they would run a command twice without our knowledge. Here
the whole pipeline is sent again, and every script is safe to run twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import anyio
from redis import asyncio as aioredis
from redis import exceptions as redis_errors
from redis.asyncio.retry import Retry as RedisRetry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from streamflow.errors import StoreError, StoreFull, StoreMisconfigured, StoreUnavailable
from streamflow.machine.sealed import hide
from streamflow.server_url import check_url, is_secure, redacted, sentinels_of
from streamflow.store.connection import LOST, Call, OtherHistory, Store, stream_entries
from streamflow.store.link import Link
from streamflow.store.scripts import Script, load_scripts
from streamflow.store.sentinels import Sentinels
from streamflow.store.tls import IS_SENTINEL, TlsContext, advice

if TYPE_CHECKING:
    from streamflow.store.durability import Confirmation

T = TypeVar("T")

_log = logging.getLogger("streamflow.store")

# Temporary errors: wait and send again. All others are reported, and concern one call only.
TEMPORARY = frozenset({"BUSY", "TRYAGAIN"})
# Temporary, and what this server says of itself: another one may serve in its place, after a failover. (A BUSY one
# serves a script that takes long; were its connection closed, the script would be sent again, and take as long.)
ELSEWHERE = frozenset({"LOADING", "CLUSTERDOWN", "MASTERDOWN", "READONLY", "NOREPLICAS", "MISCONF"})
_DEMOTED = "instance state changed"
"""In the reply to those that were blocked when a server became a replica."""

LOOK_EVERY = 3.0
"""Seconds after which the next pipeline also asks whether the server is still the one that it was."""
AWAY = 30.0
"""Seconds after an attempt that got no answer for which the server counts as away: longer than one may last."""
REPLACE_EVERY = 0.5
"""Seconds between two replacements of all connections, at least."""

URGENT = 4
"""Urgent pipelines at the same time, whose callers may have given up."""

_INFO = ("INFO", "server", "replication")
_WAITS = frozenset({"WAIT", "WAITAOF"})
_LONGEST_BLOCK_MS = 10_000


class _Lane:
    """Links for pipelines, at most `width` at the same time. `free`: those that no pipeline uses now."""

    def __init__(self, width: int, *, urgent: bool = False) -> None:
        self.urgent = urgent
        self.slots = anyio.Semaphore(width, fast_acquire=True)
        self.free: list[Any] = []


class Node(Store):
    """One server. `connections`: pipelines at the same time.

    All its connections are to one server. When one of them learns that this server can't serve any more (it was
    demoted, it loads its data, it is silent) or that the name now leads to another one, all are closed, also those that
    wait for entries: after a failover that keeps connections open, a blocked read would wait on the former server
    forever. The next use of each resolves the name again. With Sentinels in the URL, they are asked instead.
    """

    def __init__(
        self,
        url: str,
        *,
        connections: int = 4,
        patience: float = 10.0,
        client: aioredis.Redis | None = None,
        scripts: Mapping[str, Script] | None = None,
    ) -> None:
        check_url(url)
        self.url = url
        self.patience = patience
        self.on_other_history: Callable[[], None] = lambda: None
        self.confirmation: Confirmation | None = None
        self._generation = 0
        self._run_id = ""
        self._promoted_from: str = ""
        self._is_replica = False
        self.on_late: Callable[[], None] | None = None
        """Called every second in which no byte moves although a reply is due. To be set before it is used."""
        self.is_member = False
        """It is one of a cluster's servers: what is replicated to it counts from the time when slots are its own."""
        self._scripts = scripts if scripts is not None else load_scripts()
        self._given_client = client
        addressed = sentinels_of(url) if client is None else None
        self._server_url = url if addressed is None else addressed.server
        self._tls = TlsContext(url) if client is None and is_secure(url) else None
        self._sentinels = Sentinels(addressed, url, self._tls) if addressed is not None else None
        self._client = client or self._make_client()
        self._connections = connections
        self._links: list[Any] = []
        self._bulk = _Lane(connections)
        self._urgent = _Lane(URGENT, urgent=True)
        self._under_way: set[asyncio.Task[list[Any]]] = set()
        self._asking: asyncio.Task[None] | None = None
        """Asks the Sentinels whether another server is the primary now."""
        self._log_readers: list[Link] = []
        self._replaced = -math.inf
        self._lost = -math.inf
        """When something was sent last and not answered, or not served (monotonic s)."""
        self._look_at = time.monotonic() + LOOK_EVERY if client is None else math.inf
        """When the server is asked again whether it is still the one that it was (monotonic s)."""

    def _make_client(self) -> aioredis.Redis:
        client = aioredis.Redis.from_url(  # pyright: ignore[reportUnknownMemberType]
            self._server_url,
            socket_timeout=None,
            socket_connect_timeout=5.0,
            retry=RedisRetry(NoBackoff(), 0),
            protocol=2,
            driver_info=None,
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
            redis_connect_func=self._on_connect,
        )
        pool: Any = client.connection_pool
        pool.connection_class = type("Connection", (Link, pool.connection_class), {})
        return client

    def link(self) -> Link:
        """A connection for one reader, which is closed with the store, or when the server can't serve any more."""
        made: Any = self._client.connection_pool.make_connection()
        self._links.append(made)
        if isinstance(made, Link):
            made.neighbours = lambda: [link.progress() for link in self._links]
            made.on_silence = lambda: self.replace_connections("the server is silent")
            if self._tls is not None:
                cast("Any", made).ssl_context = self._tls
            if self._sentinels is not None:
                made.locate = self._sentinels.primary
                made.on_late = partial(self._ask, self._sentinels)
            elif self.on_late is not None:
                made.on_late = self.on_late
        return cast("Link", made)

    async def _on_connect(self, connection: Any) -> None:
        connection.reached = ""
        await connection.on_connect()
        if not connection.introduce:
            await connection.send_command(*_INFO)
            try:
                reply = await connection.read_response()
            except redis_errors.ResponseError as error:
                reply = error
            else:
                if self._sentinels is not None:
                    await self._check_primary(self._sentinels, connection, _facts(reply))
            self._introduced(connection, reply)

    async def _check_primary(self, sentinels: Sentinels, connection: Any, info: Mapping[str, str]) -> None:
        """Raises `ConnectionError` if this isn't the primary. To believe a former one costs what is written there."""
        if info.get("role") == "slave":
            # Its Sentinels are late, or it has just been demoted: its data are old, and it takes no writes.
            raise redis_errors.ConnectionError("the Sentinels named a server that is a replica")
        is_other = self._run_id not in ("", info.get("run_id"))
        if is_other and await sentinels.primary() != (connection.host, connection.port):
            # It was frozen or cut off while it was connected to, and there was a failover meanwhile.
            raise redis_errors.ConnectionError("the Sentinels have named another primary meanwhile")

    def _introduced(self, connection: Any, reply: Any) -> None:
        if not isinstance(reply, Exception):  # an ACL may forbid INFO; then only refused commits tell of a restart
            info = _facts(reply)
            connection.reached = info.get("run_id", "")
            if "sentinel" in (info.get("redis_mode"), info.get("server_mode")):
                raise redis_errors.ConnectionError(IS_SENTINEL)
            self._heard(info)

    def _heard(self, info: Mapping[str, str]) -> None:
        """Compare with what was known. A server that was promoted, perhaps after it had been demoted, has another
        history, and another second replication id. (The first one also changes when a replica is attached.)"""
        run_id = info.get("run_id", "")
        promoted_from = info.get("master_replid2", "").strip("0")
        is_other = run_id != self._run_id
        was_replica, self._is_replica = self._is_replica, info.get("role") == "slave"
        if was_replica and not is_other and self.is_member:
            self._promoted_from = promoted_from  # the map of the cluster tells what that means
        if self._run_id and (is_other or promoted_from not in ("", self._promoted_from)):
            self._generation += 1
            _log.warning("the server restarted or was replaced; its state is read again")
            self._run_id, self._promoted_from = run_id, promoted_from
            try:
                self.on_other_history()
            except Exception:  # a defect there must not cost the connection
                _log.exception("what was in memory could not be dropped")
        self._run_id, self._promoted_from = run_id, promoted_from
        if is_other:
            for link in self._links:
                if link.reached not in ("", run_id):
                    link.drop()

    def replace_connections(self, reason: str) -> None:
        """Close all connections, also those that wait: what uses one next resolves the server's name again. Not more
        often than every half a second: a server that stays as it is isn't flooded."""
        now = time.monotonic()
        if now - self._replaced < REPLACE_EVERY:
            return
        if now - self._replaced > 60:
            _log.warning("%s: all connections to %s are opened again", reason, redacted(self.url))
        self._replaced = now
        for link in self._links:
            if isinstance(link, Link):
                link.drop()

    def note_refusal(self, error: BaseException) -> bool:
        """Replace all connections if the server says of itself that it can't serve. Returns whether the same is to be
        sent again."""
        code = code_of(error)
        if code in ELSEWHERE or _DEMOTED in str(error):
            self.replace_connections(f"the server can't serve now ({code or error})")
            return True
        return code in TEMPORARY

    def _ask(self, sentinels: Sentinels) -> None:
        """In a task of its own, and not while the last one is under way."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._look_elsewhere(sentinels))
            hide(self._asking)

    async def _look_elsewhere(self, sentinels: Sentinels) -> None:
        """A former primary that is cut off from its Sentinels goes on serving as one, until they reach it. One that
        was switched off, or is frozen, is only silent."""
        with contextlib.suppress(*LOST):
            primary = await sentinels.primary()
            if any(link.is_open and (link.host, link.port) != primary for link in self._links):
                self.replace_connections("the Sentinels have another primary")

    async def close(self) -> None:
        if self.confirmation is not None:
            await self.confirmation.close()
        tasks: list[asyncio.Task[Any]] = [*self._under_way]
        if self._asking is not None:
            tasks.append(self._asking)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for link in self._links:
            if isinstance(link, Link):
                link.drop()  # else a silent server is waited for, which doesn't take part in ending TLS
        for link in self._links:
            await link.disconnect()
        await self._client.aclose()

    def abandon(self) -> None:
        for link in self._links:
            with contextlib.suppress(Exception):  # whatever can't be closed here is closed when it is collected
                _let_go(link)

    def renewed(self) -> Node:
        return Node(
            self.url,
            connections=self._connections,
            patience=self.patience,
            client=self._given_client,
            scripts=self._scripts,
        )

    def advice(self, error: BaseException | None) -> str:
        return advice(self.url, error) if self._sentinels is None else self._sentinels.advice(error)

    async def doubts(self) -> list[str]:
        return [] if self._sentinels is None else await self._sentinels.doubts()

    @property
    def server_generation(self) -> int:
        return self._generation

    def history_of(self, key: str) -> int:
        return self._generation

    def history_lost(self, key: str) -> None:
        self._generation += 1
        self.on_other_history()

    def server_of(self, key: str) -> int:
        return 0

    def server_for(self, call: Call[Any]) -> int:
        return 0

    def server_name(self, server: int) -> str:
        return ""

    @property
    def is_single(self) -> bool:
        return True

    @property
    def is_away(self) -> bool:
        return time.monotonic() - self._lost < AWAY

    async def send(
        self,
        calls: Sequence[Call[Any]],
        patience: float | None = None,
        *,
        urgent: bool = False,
        same_history: bool = False,
        confirmed: bool = False,
    ) -> list[Any]:
        patience = self.patience if patience is None else patience
        if confirmed and self.confirmation is not None:
            return await self.confirmation.send(calls, patience, same_history=same_history)
        commands = [self._command(call) for call in calls]
        started = time.monotonic()
        generation = self._generation if same_history else None
        is_looking = started >= self._look_at
        if is_looking:
            self._look_at = started + LOOK_EVERY
            commands.append([*_INFO])
        pause = 0.02
        while True:
            try:
                replies = await self._replies(commands, generation, urgent=urgent)
            except OtherHistory as error:
                return [error] * len(calls)
            except LOST as error:
                self._lost = time.monotonic()
                if isinstance(error, redis_errors.AuthenticationError) and patience != math.inf:
                    raise StoreUnavailable(f"{redacted(self.url)} refuses the credentials: {error}") from error
                self.note_refusal(error)  # LOADING, for example
                if time.monotonic() - started + pause > patience:
                    raise StoreUnavailable(
                        f"no answer from {redacted(self.url)} for {time.monotonic() - started:.1f} s: "
                        f"{str(error).rstrip('.')}. {self.advice(error)}."
                    ) from error
            else:
                temporary = next((r for r in replies if isinstance(r, Exception) and self.note_refusal(r)), None)
                if temporary is None:
                    if is_looking:
                        self._looked(replies.pop())
                    return [self.parsed(call, reply) for call, reply in zip(calls, replies, strict=True)]
                self._lost = time.monotonic()
                if self._lost - started + pause > patience:
                    raise StoreUnavailable(
                        f"{redacted(self.url)} can't serve now: {code_of(temporary)}: {temporary}"
                    ) from temporary
            await anyio.sleep(pause)
            pause = min(pause * 2, 1.0)

    async def send_to_one(self, server: int, calls: Sequence[Call[Any]]) -> list[Any]:
        return await self.send(calls, 0.0, same_history=True)

    def _looked(self, reply: Any) -> None:
        """A client that only reads gets answers from a demoted server, too, and never an error."""
        if isinstance(reply, Exception):
            self._look_at = math.inf  # an ACL may forbid it
            return
        info = _facts(reply)
        if info.get("run_id") == self._run_id:
            self._heard(info)
        if info.get("role") == "slave":
            self.replace_connections("the server is a replica now")
        elif self._sentinels is not None:
            self._ask(self._sentinels)

    async def attempt(
        self,
        calls: Sequence[Call[Any]],
        *,
        urgent: bool = False,
        asking: bool = False,
        generation: int | None = None,
    ) -> list[Any]:
        """Send calls once. Returns what was replied, unparsed, and redis-py's errors among that. `asking`: a slot that
        is being moved here is asked for. `generation`: that of the history to which they may be sent, if not to any.
        Raises `LOST`, `OtherHistory`."""
        commands = [self._command(call) for call in calls]
        if asking:
            commands = [part for command in commands for part in (["ASKING"], command)]
        try:
            replies = await self._replies(commands, generation, urgent=urgent)
        except LOST:
            self._lost = time.monotonic()
            raise
        return replies[1::2] if asking else replies

    def _command(self, call: Call[Any]) -> list[Any]:
        if not call.script:
            return call.args
        script = self._scripts[call.script]
        return [script.evalsha, script.sha, len(call.keys), *call.keys, *call.args]

    def _with_source(self, command: list[Any]) -> list[Any]:
        _, sha, *rest = command
        return ["EVAL_RO", next(script.source for script in self._scripts.values() if script.sha == sha), *rest]

    def parsed(self, call: Call[T], reply: Any) -> T | StoreError:
        """What a call returns, from the reply to it."""
        if not isinstance(reply, Exception):
            if not call.script and (callback := self._client.response_callbacks.get(call.args[0])) is not None:
                reply = callback(reply)
            try:
                return call.parse(reply)
            except Exception as error:  # not written by streamflow: whatever that raises is about this call only
                return StoreError(f"{call.script or call.args[0]}: could not parse the reply: {error}")
        text = str(reply)
        command = call.script or call.args[0]
        if isinstance(reply, redis_errors.OutOfMemoryError) or "OOM" in text[:40]:
            return StoreFull(
                f"{command}: the server is out of memory. Runs that are open continue; free memory or raise maxmemory."
            )
        if isinstance(reply, redis_errors.NoPermissionError) or text.startswith("NOPERM"):
            return StoreMisconfigured(
                f"{command}: the server's ACL doesn't allow this: {text}. `streamflow check --role ROLE` names all "
                "that the user lacks for a role, `streamflow acl` prints its rules"
            )
        if isinstance(reply, redis_errors.AskError):  # MOVED, too
            return StoreMisconfigured(
                f"{command}: {redacted(self.url)} is part of a cluster: use redis+cluster://HOST:PORT (or rediss+cluster://)"
            )
        if text.startswith("WRONGTYPE") and not call.script and len(call.args) > 1:
            return StoreError(f"{command} {call.args[1]}: {text}")  # scripts name the key by themselves
        return StoreError(f"{command}: {text}")

    async def _replies(self, commands: list[list[Any]], generation: int | None, *, urgent: bool) -> list[Any]:
        if urgent:
            return await self._detached(commands)
        async with self._bulk.slots:
            return await self._execute(commands, self._bulk, generation)

    async def _detached(self, commands: list[list[Any]]) -> list[Any]:
        """Once a connection is free, `_execute` in a task that goes on when the caller gives up."""
        await self._urgent.slots.acquire()
        task = asyncio.create_task(self._execute(commands, self._urgent))
        hide(task)
        self._under_way.add(task)
        task.add_done_callback(self._has_ended)
        return await asyncio.shield(task)

    def _has_ended(self, task: asyncio.Task[list[Any]]) -> None:
        self._under_way.discard(task)
        self._urgent.slots.release()
        if not task.cancelled():
            task.exception()  # its caller may have given up: asyncio would report it as forgotten

    async def _execute(self, commands: list[list[Any]], lane: _Lane, generation: int | None = None) -> list[Any]:
        """One pipeline on one connection. Scripts that the server doesn't know are loaded and called again."""
        replies = await self._pipeline(commands, lane, generation)
        missing = [i for i, reply in enumerate(replies) if isinstance(reply, redis_errors.NoScriptError)]
        if missing and all(commands[i][0] == "EVALSHA_RO" for i in missing):
            # Not loaded: a user who may only read can't do that, and each try would be an entry in the server's log.
            again = await self._pipeline([self._with_source(commands[i]) for i in missing], lane, generation)
            for i, reply in zip(missing, again, strict=True):
                replies[i] = reply
        elif missing:
            load = [["SCRIPT", "LOAD", script.source] for script in self._scripts.values()]
            loaded = await self._pipeline(load, lane)
            refusal = next((reply for reply in loaded if isinstance(reply, Exception)), None)
            # A wait behind one of them was answered before that had written anything.
            missing += [i for i in range(missing[0], len(commands)) if commands[i][0] in _WAITS]
            missing.sort()
            calls = [commands[i] for i in missing]
            if refusal is not None:  # a user who may only read can't load scripts
                calls = [self._with_source(command) for command in calls if command[0] == "EVALSHA_RO"]
            is_complete = len(calls) == len(missing)
            again = await self._pipeline(calls, lane, generation) if is_complete else [refusal] * len(missing)
            for i, reply in zip(missing, again, strict=True):
                replies[i] = reply
        return replies

    async def _pipeline(self, commands: list[list[Any]], lane: _Lane, generation: int | None = None) -> list[Any]:
        """Without redis-py's pipeline object, which costs as much as the round trip itself. `generation`: that of the
        server's history in which the commands may be sent."""
        link: Any = lane.free.pop() if lane.free else self._pipeline_link(lane)
        try:
            if generation is not None:
                if isinstance(link, Link) and not link.is_open:
                    await link.open()  # learns which server it is
                if generation != self._generation:
                    raise OtherHistory
            return await (link.exchange(commands) if isinstance(link, Link) else _exchange(link, commands))
        finally:
            lane.free.append(link)

    def _pipeline_link(self, lane: _Lane) -> Link:
        link = self.link()
        if lane.urgent and self._sentinels is None:
            link.introduce = _INFO
            link.on_introduced = partial(self._introduced, link)
        return link

    async def read_logs(
        self, after: Mapping[str, str], block_ms: int, count: int = 1000, patience: float | None = None
    ) -> dict[str, list[tuple[str, dict[bytes, bytes]]]]:
        patience = self.patience if patience is None else patience
        block_ms = max(1, min(block_ms, _LONGEST_BLOCK_MS))  # 0 would wait forever
        command = ["XREAD", "COUNT", count, "BLOCK", block_ms, "STREAMS", *after.keys(), *after.values()]
        started = time.monotonic()
        link = self._log_readers.pop() if self._log_readers else self.link()
        try:
            while True:
                if started >= self._look_at:  # an XREAD succeeds on a demoted server, too
                    await self.send([], patience)
                try:
                    (reply,) = await link.exchange([command], block_ms / 1000)
                except LOST as error:
                    reply = error
                if not isinstance(reply, Exception):
                    return {
                        key.decode(): [(id_.decode(), fields or {}) for id_, fields in entries]
                        for key, entries in stream_entries(reply)
                    }
                if not self.note_refusal(reply) and not isinstance(reply, LOST):
                    raise StoreError(f"XREAD: {reply}") from reply
                if time.monotonic() - started > patience + block_ms / 1000:
                    raise StoreUnavailable(f"no answer from {redacted(self.url)}: {reply}") from reply
                await anyio.sleep(0.2)
        finally:
            self._log_readers.append(link)


async def _exchange(connection: Any, commands: list[list[Any]]) -> list[Any]:
    """`Link.exchange` for a connection of a given client, such as fakeredis's."""
    try:
        await connection.connect()
        await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        replies: list[Any] = []
        for _ in commands:
            try:
                replies.append(await connection.read_response(timeout=math.inf))
            except redis_errors.ResponseError as error:
                replies.append(error)
        return replies
    except BaseException:
        await connection.disconnect(nowait=True)
        raise


def code_of(error: BaseException) -> str:
    """READONLY of `READONLY You can't write …`. redis-py removes this word from the text when it has a class for it."""
    return str(getattr(error, "status_code", None) or str(error).partition(" ")[0])


def _facts(info: bytes) -> dict[str, str]:
    """What INFO says, by name."""
    lines = (line.partition(":") for line in info.decode(errors="replace").splitlines())
    return {name: value for name, _, value in lines}


def _let_go(connection: Any) -> None:
    """Close a connection's socket without its event loop, which is closed: each way that asyncio has asks the loop."""
    writer, transport = connection._writer, getattr(connection._writer, "transport", None)
    connection._reader = connection._writer = None
    if transport is None:
        return
    with contextlib.suppress(RuntimeError):
        transport.abort()  # marks it as closed, then finds that the loop is closed
    opened, transport._sock = getattr(transport, "_sock", None), None
    if opened is not None:
        opened.close()
    del writer  # not before: what is collected while it is open warns of that
