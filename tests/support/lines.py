"""A line to a server that tests control: where it leads, how fast it is, whether anything comes through.

Owns: TCP only. What was opened before stays where it led, as with most failovers behind a name or a load balancer.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable

import hiredis


class Line:
    """`target`: the port that new connections lead to. `rate`: bytes per second in each direction, 0 for no limit.
    `frozen`: no byte moves, on old and new connections. `moved`: bytes so far, to the server and from it."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.rate = 0.0
        self.frozen = False
        self.moved = [0, 0]
        self.url = ""
        self._free_at = [0.0, 0.0]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target, limit=16_384)
        try:
            await asyncio.gather(self._carry(0, reader, far_writer), self._carry(1, far_reader, writer))
        finally:
            far_writer.close()
            writer.close()

    async def _carry(self, way: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(8192):
                while self.frozen:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                if self.rate:
                    self._free_at[way] = max(self._free_at[way], loop.time()) + len(data) / self.rate
                    await asyncio.sleep(self._free_at[way] - loop.time())
                self.moved[way] += len(data)
                writer.write(data)
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def line_to(url: str) -> AsyncGenerator[Line]:
    line = Line(port_of(url))
    async with listening(line.serve) as line.url:
        yield line


def port_of(url: str) -> int:
    return int(url.rsplit(":", 1)[1])


@contextlib.asynccontextmanager
async def refusing(reply: str) -> AsyncGenerator[str]:
    """A server that answers each command but INFO with the same error, and never closes a connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        commands = hiredis.Reader()
        info = "run_id:refusing\r\nrole:master\r\n"
        while data := await reader.read(65_536):
            commands.feed(data)
            while command := commands.gets():
                is_info = command[0] == b"INFO"
                writer.write(f"${len(info)}\r\n{info}\r\n".encode() if is_info else f"-{reply}\r\n".encode())
        writer.close()

    async with listening(serve) as url:
        yield url


@contextlib.asynccontextmanager
async def listening(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncGenerator[str]:
    """`serve` for each connection, on a free port of this machine; gives the URL. All end with the block."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Small, so that what is slow or frozen here is felt by the sender at once.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await serve(reader, writer)
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(serve_one, "127.0.0.1", 0, limit=16_384)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
