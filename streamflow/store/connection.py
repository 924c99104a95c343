"""The way to the server: pipelines of calls, retries, reloading of scripts, and noticing that the server was replaced.

Owns: redis-py clients, the retry policy, and the translation of server errors. Must not: know what a call means.
Called by: kernel (builds calls), owner, inbox reader, client.

redis-py's own retries are switched off: after a lost reply they would run a command twice without our knowledge. Here
the whole pipeline is sent again, and every script is safe to run twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar, cast

import anyio
import msgspec
from hiredis import pack_command  # pyright: ignore[reportUnknownVariableType]
from redis import asyncio as aioredis
from redis import exceptions as redis_errors
from redis.asyncio.retry import Retry as RedisRetry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from streamflow.errors import StoreError, StoreFull, StoreMisconfigured, StoreUnavailable
from streamflow.server_url import check_url, redacted
from streamflow.store.scripts import Script, load_scripts

T = TypeVar("T")

_log = logging.getLogger("streamflow.store")

# Temporary errors: wait and send again. All others are reported.
_TEMPORARY = frozenset(
    {"LOADING", "BUSY", "TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN", "READONLY", "NOREPLICAS", "MISCONF"}
)

# The connection is lost. redis-py's errors of this kind don't inherit from Python's.
LOST = (redis_errors.ConnectionError, redis_errors.TimeoutError, OSError)

TIMEOUT = 5.0
"""Seconds that one pipeline may take; then its outcome is unknown, and it is sent again."""

_LONGEST_BLOCK_MS = 10_000


def _unchanged(reply: Any) -> Any:
    return reply


class Call(msgspec.Struct, Generic[T]):
    """One command for the server: a script's name with its keys and arguments; without `script` a plain command."""

    script: str
    keys: list[str]
    args: list[Any]
    parse: Callable[[Any], T] = _unchanged

    @staticmethod
    def plain(*command: Any, parse: Callable[[Any], Any] = _unchanged) -> Call[Any]:
        """A command that is not a script: `Call.plain("GET", key)`. `parse` converts the reply."""
        return Call("", [], list(command), parse)


class _PackingInC:
    """Mixed into redis-py's connection classes, which pack in Python: that was half of what a `start` cost."""

    def pack_command(self, *command: Any) -> list[bytes]:
        if isinstance(command[0], str) and " " in command[0]:
            command = (*command[0].split(), *command[1:])
        return [pack_command(command)]

    def pack_commands(self, commands: Iterable[Sequence[Any]]) -> list[bytes]:
        return [part for command in commands for part in self.pack_command(*command)]

    async def send_packed_command(self: Any, command: Any, check_health: bool = True) -> None:
        """Without redis-py's `asyncio.wait_for`, which creates a task for each send, and in Python 3.11 loses a
        cancellation that arrives while the send ends: a loop that has lost its cancellation runs forever."""
        if not self.is_connected:
            await self.connect_check_health(check_health=False)
        if check_health:
            await self.check_health()
        try:
            async with asyncio.timeout(self.socket_timeout):
                await self._send_packed_command([command] if isinstance(command, bytes) else command)
        except BaseException as error:
            await self.disconnect(nowait=True)  # half a command may have been sent
            if isinstance(error, TimeoutError):
                raise redis_errors.TimeoutError("time-out while sending") from error
            if isinstance(error, OSError):
                raise redis_errors.ConnectionError(f"error while sending: {error}") from error
            raise


class Store:
    """A server, to which calls are sent in pipelines.

    `server_generation` grows when the server was restarted or replaced (failover) and may have another history than
    before: copies of its state must be dropped. `connections`: pipelines at the same time. `patience`: seconds to keep
    trying before `StoreUnavailable`.
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
        self.server_generation = 0
        self._identity = ""
        self._scripts = scripts if scripts is not None else load_scripts()
        self._given_client = client
        self._client = client or self._make_client(timeout=None)
        self._connections = connections
        self._slots = anyio.Semaphore(connections, fast_acquire=True)
        self._free: list[Any] = []
        """Connections that no pipeline uses now, at most as many as slots."""
        self._dedicated: list[aioredis.Redis] = []
        self._blocking: aioredis.Redis | None = None

    def _make_client(self, timeout: float | None) -> aioredis.Redis:
        client = aioredis.Redis.from_url(  # pyright: ignore[reportUnknownMemberType]
            self.url,
            socket_timeout=timeout,
            socket_connect_timeout=5.0,
            retry=RedisRetry(NoBackoff(), 0),
            protocol=2,
            socket_read_size=262_144,
            driver_info=None,
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
            redis_connect_func=self._on_connect,
        )
        pool: Any = client.connection_pool
        pool.connection_class = type("Connection", (_PackingInC, pool.connection_class), {})
        return client

    def dedicated(self, timeout: float) -> aioredis.Redis:
        """A client for blocking reads, closed with the store. `timeout`: seconds for a read, longer than the block."""
        client = self._make_client(timeout)
        self._dedicated.append(client)
        return client

    async def _on_connect(self, connection: Any) -> None:
        await connection.on_connect()
        await connection.send_command("INFO", "server")
        try:
            info: bytes = await connection.read_response()
        except redis_errors.ResponseError:
            return  # an ACL may forbid INFO; then a restart is noticed by refused commits only
        lines = (line.partition(":") for line in info.decode().splitlines())
        identity = next((value for name, _, value in lines if name == "run_id"), "")
        if self._identity and identity != self._identity:
            self.server_generation += 1
            _log.warning("the server restarted or was replaced; its state is read again")
        self._identity = identity

    async def close(self) -> None:
        for connection in self._free:
            await connection.disconnect()
        for client in (self._client, *self._dedicated):
            await client.aclose()

    def abandon(self) -> None:
        """Close all connections after their event loop was closed. The store can't be used any more."""
        pools = [client.connection_pool for client in (self._client, *self._dedicated)]
        for connection in (*self._free, *(one for pool in pools for one in _connections_of(pool))):
            with contextlib.suppress(Exception):  # whatever can't be closed here is closed when it is collected
                _let_go(connection)

    def renewed(self) -> Store:
        """A store of the same server that shares nothing with this one: for another process or event loop."""
        return Store(
            self.url,
            connections=self._connections,
            patience=self.patience,
            client=self._given_client,
            scripts=self._scripts,
        )

    async def one(self, call: Call[T]) -> T:
        """Send one call, and return its parsed reply. Raises `StoreError`."""
        (reply,) = await self.send([call])
        if isinstance(reply, BaseException):
            raise reply
        return cast("T", reply)

    async def send(self, calls: Sequence[Call[Any]], patience: float | None = None) -> list[Any]:
        """Send calls in one pipeline; returns the parsed replies in the same order.

        For a call that the server refuses the reply is a `StoreError`; the other calls are not affected. When the
        connection is lost or an error is temporary, the whole pipeline is sent again, until `patience` seconds
        (default: the store's) have passed.

        Raises `StoreUnavailable`.
        """
        patience = self.patience if patience is None else patience
        commands = [self._command(call) for call in calls]
        started = time.monotonic()
        pause = 0.02
        while True:
            try:
                replies = await self._execute(commands)
            except LOST as error:
                if isinstance(error, redis_errors.AuthenticationError) and patience != math.inf:
                    raise StoreUnavailable(f"{redacted(self.url)} refuses the credentials: {error}") from error
                if time.monotonic() - started + pause > patience:
                    raise StoreUnavailable(
                        f"no answer from {redacted(self.url)} for {time.monotonic() - started:.1f} s: "
                        f"{str(error).rstrip('.')}. Is the server running? `streamflow dev` starts one."
                    ) from error
            else:
                temporary = next((r for r in replies if isinstance(r, Exception) and _code(r) in _TEMPORARY), None)
                if temporary is None:
                    return [self._parsed(call, reply) for call, reply in zip(calls, replies, strict=True)]
                if time.monotonic() - started + pause > patience:
                    raise StoreUnavailable(
                        f"{redacted(self.url)} can't serve now: {_code(temporary)}: {temporary}"
                    ) from temporary
            await anyio.sleep(pause)
            pause = min(pause * 2, 1.0)

    def _command(self, call: Call[Any]) -> list[Any]:
        if not call.script:
            return call.args
        script = self._scripts[call.script]
        return [script.evalsha, script.sha, len(call.keys), *call.keys, *call.args]

    def _with_source(self, command: list[Any]) -> list[Any]:
        _, sha, *rest = command
        return ["EVAL_RO", next(script.source for script in self._scripts.values() if script.sha == sha), *rest]

    def _parsed(self, call: Call[T], reply: Any) -> T | StoreError:
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
            return StoreMisconfigured(f"{command}: the server's ACL doesn't allow this: {text}")
        return StoreError(f"{command}: {text}")

    async def _execute(self, commands: list[list[Any]]) -> list[Any]:
        """One pipeline on one connection. Scripts that the server doesn't know are loaded and called again."""
        async with self._slots:
            replies = await self._pipeline(commands)
            missing = [i for i, reply in enumerate(replies) if isinstance(reply, redis_errors.NoScriptError)]
            if missing:
                loaded = await self._pipeline([["SCRIPT", "LOAD", script.source] for script in self._scripts.values()])
                refusal = next((reply for reply in loaded if isinstance(reply, Exception)), None)
                calls = [commands[i] for i in missing]
                if refusal is not None:  # a user who may only read can't load scripts
                    calls = [self._with_source(command) for command in calls if command[0] == "EVALSHA_RO"]
                again = await self._pipeline(calls) if len(calls) == len(missing) else [refusal] * len(missing)
                for i, reply in zip(missing, again, strict=True):
                    replies[i] = reply
            return replies

    async def _pipeline(self, commands: list[list[Any]]) -> list[Any]:
        """Without redis-py's pipeline object, which costs as much as the round trip itself."""
        pool = self._client.connection_pool
        connection: Any = self._free.pop() if self._free else pool.make_connection()
        try:
            async with asyncio.timeout(TIMEOUT):
                await connection.connect()
                await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
                replies: list[Any] = []
                for _ in commands:
                    try:
                        replies.append(await connection.read_response(timeout=math.inf))
                    except redis_errors.ResponseError as error:
                        replies.append(error)
        except BaseException as error:
            # Replies that were not read would be mistaken for the next pipeline's.
            await connection.disconnect(nowait=True)
            if isinstance(error, TimeoutError):
                raise redis_errors.TimeoutError(f"no answer within {TIMEOUT:g} s") from error
            raise
        finally:
            self._free.append(connection)
        return replies

    async def read_logs(
        self, after: Mapping[str, str], block_ms: int, count: int = 1000, patience: float | None = None
    ) -> dict[str, list[tuple[str, dict[bytes, bytes]]]]:
        """Entries of streams behind the given ids, at most `count` of each; waits up to `block_ms` (at most 10,000).

        `after`: entry id by key. Returns (entry id, fields) by key, without the streams that have no new entries. Each
        call that waits holds a dedicated connection, which later calls use again. Raises `StoreError`.
        """
        if self._blocking is None:
            self._blocking = self.dedicated(timeout=_LONGEST_BLOCK_MS / 1000 + 5)
        patience = self.patience if patience is None else patience
        block_ms = max(1, min(block_ms, _LONGEST_BLOCK_MS))  # 0 would wait forever
        command = ["XREAD", "COUNT", count, "BLOCK", block_ms, "STREAMS", *after.keys(), *after.values()]
        started = time.monotonic()
        while True:
            try:
                reply = cast("Any", await self._blocking.execute_command(*command))  # pyright: ignore[reportUnknownMemberType]
                return {key.decode(): [(id_.decode(), fields) for id_, fields in entries] for key, entries in reply}
            except LOST as error:
                if time.monotonic() - started > patience + block_ms / 1000:
                    raise StoreUnavailable(f"no answer from {redacted(self.url)}: {error}") from error
            except redis_errors.ResponseError as error:
                raise StoreError(f"XREAD: {error}") from error
            await anyio.sleep(0.2)


def _code(error: Exception) -> str:
    """READONLY of `READONLY You can't write …`. redis-py removes this word from the text when it has a class for it."""
    return str(getattr(error, "status_code", None) or str(error).partition(" ")[0])


def _connections_of(pool: Any) -> list[Any]:
    return [*getattr(pool, "_available_connections", ()), *getattr(pool, "_in_use_connections", ())]


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
