"""A line to the server that stops at a chosen call of a daemon: before it arrives, or before its answer comes back."""

from __future__ import annotations

import asyncio
import contextlib
from enum import StrEnum

from streamflow.store.scripts import load_scripts

_SHA = {name: script.sha.encode() for name, script in load_scripts().items()}


class Phase(StrEnum):
    BEFORE = "before it arrives"
    AFTER = "before its answer"


class Gate:
    """`url`: for one daemon, with all that it starts. `hit` is set when the call that it was armed for is held; the
    other connections go on meanwhile."""

    def __init__(self, target: int) -> None:
        self.hit = asyncio.Event()
        self.url = ""
        self._target = target
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._marks: tuple[bytes, bytes] | None = None
        self._phase = Phase.BEFORE
        self._let_go = asyncio.Event()
        self._drops = False
        self._refuses = False
        self.serves = asyncio.Event()
        """Until then new connections wait."""
        self.serves.set()

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        self.let_go()
        if self._server is not None:
            self._server.close()
        await asyncio.sleep(0.05)  # what was accepted a moment ago is being served then
        await self._cut()

    def arm(self, verb: str, phase: Phase, with_text: str = "") -> None:
        """Hold the next call of `verb` that has this text among its arguments."""
        self.hit.clear()
        self._let_go.clear()
        self._drops = False
        self._marks, self._phase = (_SHA[verb], with_text.encode()), phase

    def let_go(self, *, drop: bool = False) -> None:
        """What is held goes on, or its connection is closed."""
        self._marks, self._drops = None, drop
        self._let_go.set()

    async def cut(self, seconds: float = 0.0) -> None:
        """Close all connections, and for some time each new one."""
        self._refuses = seconds > 0
        await self._cut()
        if seconds:
            await asyncio.sleep(seconds)
            self._refuses = False

    async def _cut(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _is_awaited(self, data: bytes) -> bool:
        return self._marks is not None and all(mark in data for mark in self._marks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        ends = [writer]
        try:
            if self._refuses:
                return
            await self.serves.wait()
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
            ends.append(far_writer)
            asked = asyncio.Event()  # an answer is to be held
            ways = [
                asyncio.create_task(self._to_server(reader, far_writer, asked)),
                asyncio.create_task(self._from_server(far_reader, writer, asked)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except OSError:
            pass  # the server is away
        except asyncio.CancelledError:
            pass  # `cut`
        finally:
            for end in ends:
                end.close()
            await _closed(ends)
            self._tasks.discard(task)

    async def _to_server(
        self, reader: asyncio.StreamReader, server: asyncio.StreamWriter, asked: asyncio.Event
    ) -> None:
        while data := await reader.read(1 << 20):
            if self._is_awaited(data):
                self._marks = None
                if self._phase is Phase.AFTER:
                    asked.set()
                elif await self._held():
                    return
            server.write(data)
            await server.drain()

    async def _from_server(
        self, server: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: asyncio.Event
    ) -> None:
        while data := await server.read(1 << 20):
            if asked.is_set():
                asked.clear()
                if await self._held():
                    return
            with contextlib.suppress(ConnectionError):  # the daemon is gone: what it has sent arrives nevertheless
                writer.write(data)
                await writer.drain()

    async def _held(self) -> bool:
        """Whether the connection is to be closed."""
        self.hit.set()
        await self._let_go.wait()
        return self._drops


async def _closed(ends: list[asyncio.StreamWriter]) -> None:
    """What is closed has sent what it had to; at once if its peer is paused and takes nothing."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1.0):
            await asyncio.gather(*(end.wait_closed() for end in ends), return_exceptions=True)
    for end in ends:
        end.transport.abort()
    await asyncio.sleep(0)
