"""The primary of a service, as its Sentinels name it.

Owns: which Sentinel is believed, and what to do when none names a primary. Must not: connect to the server itself, or
decide when it is asked again. Called by: `connection.py` (before each connection, and now and then).

All Sentinels are asked at once. One that was cut off, or has just been started, names a former primary: the answer with
the highest epoch counts, of all those that come shortly after the first one that isn't older than what is known. Each
failover has a higher epoch.
"""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from redis import exceptions as redis_errors
from redis.asyncio.connection import Connection, SSLConnection
from redis.asyncio.retry import Retry as RedisRetry
from redis.backoff import NoBackoff

from streamflow.server_url import SentinelUrl
from streamflow.store.tls import TlsContext, advice

ANSWER_SECONDS = 2.0
"""Within so many seconds one of them must answer..."""
GRACE_SECONDS = 0.1
"""...and so much longer is waited for the others."""


_SILENT = f"no answer within {ANSWER_SECONDS:g} s"
_ADVICE = {
    "No such master": "`SENTINEL MASTERS` at one of them lists the services that they watch",
    "unknown command": (
        "These are servers, not Sentinels, whose usual port is 26379: for a server without Sentinels use redis://"
    ),
    "Authentication required": "Add sentinel_password=PASSWORD to the URL",
    "invalid username-password": "Check sentinel_password, and sentinel_username, in the URL",
    "no permissions": "Their user needs the right +sentinel|master",
}
"""What to do, by a part of what a Sentinel answers."""


class NoPrimary(redis_errors.ConnectionError):
    """No Sentinel names one."""


class _Answer(NamedTuple):
    """Ordered by age."""

    epoch: int
    host: str
    port: int
    replicas: int


class Sentinels:
    """`url`: which they are, and `text`: its URL. `tls`: None for connections without TLS."""

    def __init__(self, url: SentinelUrl, text: str, tls: TlsContext | None = None) -> None:
        self._url = url
        self._text = text
        self._tls = tls
        self._named = ""
        self._pending: asyncio.Task[tuple[str, int]] | None = None
        self._epoch = 0
        """That of the last answer."""

    async def primary(self) -> tuple[str, int]:
        """Host and port of the service's primary. Raises redis-py's `ConnectionError`.

        Connections that are opened at the same time share one question.
        """
        pending = self._pending
        if pending is None or pending.done() or pending.get_loop() is not asyncio.get_running_loop():
            pending = self._pending = asyncio.create_task(self._ask())
            pending.add_done_callback(_taken)
        return await asyncio.shield(pending)

    async def _ask(self) -> tuple[str, int]:
        tasks = [asyncio.create_task(self._ask_one(host, port)) for host, port in self._url.addresses]
        try:
            answers = await _first_answers(tasks, self._epoch)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if answers:
            newest = max(answers)
            self._epoch = newest.epoch  # lower than before if all Sentinels were set up again
            self._named = f"{newest.host}:{newest.port}"
            return newest.host, newest.port
        names = ", ".join(f"{host}:{port}" for host, port in self._url.addresses)
        errors = [error for task in tasks if not task.cancelled() and (error := task.exception()) is not None]
        reasons = dict.fromkeys(str(error).rstrip(".") for error in errors)
        raise NoPrimary(
            f"no Sentinel of {names} names a primary of {self._url.service!r}: {'; '.join(reasons) or _SILENT}"
        ) from next(iter(errors), None)

    async def doubts(self) -> list[str]:
        """What a user should know of Sentinels that don't answer, or disagree."""
        addresses = self._url.addresses
        tasks = [asyncio.create_task(self._ask_one(host, port)) for host, port in addresses]
        await asyncio.wait(tasks, timeout=ANSWER_SECONDS)
        for task in tasks:
            task.cancel()
        replies = await asyncio.gather(*tasks, return_exceptions=True)
        newest = max((reply for reply in replies if isinstance(reply, _Answer)), default=None)
        found: list[str] = []
        for (host, port), reply in zip(addresses, replies, strict=True):
            if isinstance(reply, asyncio.CancelledError):
                found.append(f"the Sentinel {host}:{port} gives {_SILENT}: a failover may go unnoticed without it")
            elif isinstance(reply, BaseException):
                found.append(f"the Sentinel {host}:{port} can't be asked: {str(reply).rstrip('.')}")
            elif newest is not None and reply[1:3] != newest[1:3]:
                found.append(
                    f"the Sentinel {host}:{port} names {reply.host}:{reply.port}, and another one, with a higher "
                    f"epoch, {newest.host}:{newest.port}: it may be cut off from the others"
                )
        if newest is not None and not newest.replicas:
            found.append("the Sentinels know no replica: there is none to go on with when the primary is lost")
        return found

    def advice(self, error: BaseException | None) -> str:
        """What to do about a connection that failed; `error` None: nothing was answered in time. Begins with a
        capital."""
        text = str(error)
        if isinstance(error, NoPrimary):
            for part, found in _ADVICE.items():
                if part in text:
                    return found
            cause = None if _SILENT in text else error
            return advice(self._text, cause, otherwise="Check that they are running, and can be reached from here")
        if not self._named:
            return "Check that the Sentinels are running, and can be reached from here"
        return advice(
            self._text,
            error,
            otherwise=f"Check that {self._named}, which the Sentinels name as the primary, is running, and can be "
            "reached from here. Behind NAT, as with containers, each server must announce an address that is valid "
            "here (replica-announce-ip)",
        )

    async def _ask_one(self, host: str, port: int) -> _Answer:
        connection: Any = (Connection if self._tls is None else SSLConnection)(
            host=host,
            port=port,
            username=self._url.username or None,
            password=self._url.password or None,
            socket_connect_timeout=ANSWER_SECONDS,
            retry=RedisRetry(NoBackoff(), 0),
            protocol=2,
            driver_info=None,
        )
        if self._tls is not None:
            connection.ssl_context = self._tls
        try:
            await connection.connect()
            await connection.send_command("SENTINEL", "MASTER", self._url.service)
            reply = await connection.read_response()
            facts = dict(zip(reply[::2], reply[1::2], strict=False))
            epoch, port, replicas = (int(facts[name]) for name in (b"config-epoch", b"port", b"num-slaves"))
            return _Answer(epoch, facts[b"ip"].decode(), port, replicas)
        finally:
            await connection.disconnect(nowait=True)


async def _first_answers(tasks: list[asyncio.Task[_Answer]], epoch: int) -> list[_Answer]:
    """What has been answered a little after the first answer of that epoch or a later one; empty if there is none."""
    loop = asyncio.get_running_loop()
    left: set[asyncio.Task[_Answer]] = set(tasks)
    answers: list[_Answer] = []
    end = loop.time() + ANSWER_SECONDS
    while left and loop.time() < end:
        done, left = await asyncio.wait(left, timeout=end - loop.time(), return_when=asyncio.FIRST_COMPLETED)
        answers += [task.result() for task in done if task.exception() is None]
        if answers and max(answers).epoch >= epoch:
            end = min(end, loop.time() + GRACE_SECONDS)
    return answers


def _taken(task: asyncio.Task[tuple[str, int]]) -> None:
    """Its error was somebody's answer, even when all who had asked have given up."""
    if not task.cancelled():
        task.exception()
