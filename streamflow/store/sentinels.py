"""The primary of a service, as its Sentinels name it.

Owns: which Sentinel is believed. Must not: connect to the server itself, or decide when it is asked again.
Called by: `connection.py` (before each connection, and now and then).

All Sentinels are asked at once. One that was cut off, or has just been started, names a former primary: the answer with
the highest epoch counts, of all those that come shortly after the first one that isn't older than what is known. Each
failover has a higher epoch.
"""

from __future__ import annotations

import asyncio
from typing import Any

from redis import exceptions as redis_errors
from redis.asyncio.connection import Connection
from redis.asyncio.retry import Retry as RedisRetry
from redis.backoff import NoBackoff

from streamflow.server_url import SentinelUrl

ANSWER_SECONDS = 2.0
"""Within so many seconds one of them must answer..."""
GRACE_SECONDS = 0.1
"""...and so much longer is waited for the others."""


class Sentinels:
    def __init__(self, url: SentinelUrl) -> None:
        self._url = url
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
            self._epoch, host, port = max(answers)  # lower than before if all Sentinels were set up again
            return host, port
        names = ", ".join(f"{host}:{port}" for host, port in self._url.addresses)
        reasons = [str(task.exception()) for task in tasks if not task.cancelled() and task.exception() is not None]
        raise redis_errors.ConnectionError(
            f"no Sentinel of {names} names a primary of {self._url.service!r}: "
            f"{'; '.join(dict.fromkeys(reasons)) or f'no answer within {ANSWER_SECONDS:g} s'}"
        )

    async def _ask_one(self, host: str, port: int) -> tuple[int, str, int]:
        """The epoch of its answer, and the address."""
        connection: Any = Connection(
            host=host,
            port=port,
            username=self._url.username or None,
            password=self._url.password or None,
            socket_connect_timeout=ANSWER_SECONDS,
            retry=RedisRetry(NoBackoff(), 0),
            protocol=2,
            driver_info=None,
        )
        try:
            await connection.connect()
            await connection.send_command("SENTINEL", "MASTER", self._url.service)
            reply = await connection.read_response()
            facts = dict(zip(reply[::2], reply[1::2], strict=False))
            return int(facts[b"config-epoch"]), facts[b"ip"].decode(), int(facts[b"port"])
        finally:
            await connection.disconnect(nowait=True)


async def _first_answers(tasks: list[asyncio.Task[tuple[int, str, int]]], epoch: int) -> list[tuple[int, str, int]]:
    """What has been answered a little after the first answer of that epoch or a later one; empty if there is none."""
    loop = asyncio.get_running_loop()
    left: set[asyncio.Task[tuple[int, str, int]]] = set(tasks)
    answers: list[tuple[int, str, int]] = []
    end = loop.time() + ANSWER_SECONDS
    while left and loop.time() < end:
        done, left = await asyncio.wait(left, timeout=end - loop.time(), return_when=asyncio.FIRST_COMPLETED)
        answers += [task.result() for task in done if task.exception() is None]
        if answers and max(answers)[0] >= epoch:
            end = min(end, loop.time() + GRACE_SECONDS)
    return answers


def _taken(task: asyncio.Task[tuple[str, int]]) -> None:
    """Its error was somebody's answer, even when all who had asked have given up."""
    if not task.cancelled():
        task.exception()
