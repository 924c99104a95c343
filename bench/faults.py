"""Faults of the surroundings: a line that is thin or leads elsewhere, a clock that is set, a server that loses writes.

Owns: how each is done to a server of our own on this machine. Must not: know streamflow's daemons, or measure. Called
by: `surroundings.py`, tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path

from streamflow.embedded.server import EmbeddedServer

# --- lines ------------------------------------------------------------------------------------------------------------


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

TURNS = 5
"""Turns of the loop in which asyncio makes the transport and the task of what it has accepted."""


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
        # Small, so that what is slow or frozen here is felt by the sender at once.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target, limit=16_384)
        try:
            await asyncio.gather(self._carry(0, reader, far_writer), self._carry(1, far_reader, writer))
        except BaseException:
            far_writer.transport.abort()
            raise
        far_writer.close()

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


class Listening:
    """`serve(reader, writer)` is called for each connection, which is closed when it returns, or raises `OSError`."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        """Returns the port."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, limit=16_384)
        return self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Also what was accepted a moment ago: asyncio would leave that open if its server were closed before."""
        if self._server is None:
            return
        for listening in self._server.sockets:
            asyncio.get_running_loop().remove_reader(listening.fileno())
        await _turns()
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await _turns()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(OSError):
                await self._serve(reader, writer)
                writer.close()
                await writer.wait_closed()
        except asyncio.CancelledError:  # by `stop`
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()


async def _turns() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def listening(serve: Serve) -> AsyncGenerator[str]:
    """`serve` for each connection, on a free port of this machine; gives the URL. All end with the block."""
    server = Listening(serve)
    try:
        yield f"redis://127.0.0.1:{await server.start()}"
    finally:
        await server.stop()


# --- clocks -----------------------------------------------------------------------------------------------------------

SHIM = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static int64_t shift(void) {
  static volatile int64_t *seconds;
  if (!seconds) {
    const char *path = getenv("SHIFTED_CLOCK");
    int file = path ? open(path, O_RDONLY) : -1;
    void *mapped = file < 0 ? MAP_FAILED : mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED) return 0;
    seconds = mapped;
  }
  return *seconds;
}
int clock_gettime(clockid_t clock, struct timespec *now) {
  int failed = syscall(SYS_clock_gettime, clock, now);
  if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += shift();
  return failed;
}
int gettimeofday(struct timeval *now, void *zone) {
  struct timespec precise;
  clock_gettime(CLOCK_REALTIME, &precise);
  now->tv_sec = precise.tv_sec;
  now->tv_usec = precise.tv_nsec / 1000;
  return 0;
}
time_t time(time_t *now) {
  struct timespec precise;
  clock_gettime(CLOCK_REALTIME, &precise);
  if (now) *now = precise.tv_sec;
  return precise.tv_sec;
}
"""
"""Adds the seconds that a file has to what the server takes for the time of day. Needs gcc."""


class ShiftedClock:
    """The wall clock of a server that is started with it; `shift` sets it so many seconds ahead. `folder`: for its
    files."""

    def __init__(self, folder: Path) -> None:
        source, self._library, self._seconds = folder / "shim.c", folder / "shim.so", folder / "clock"
        source.write_text(SHIM)
        self._seconds.write_bytes(struct.pack("q", 0))
        subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", self._library, source], check=True)

    @staticmethod
    def is_possible() -> bool:
        return shutil.which("gcc") is not None

    def shift(self, seconds: int) -> None:
        with self._seconds.open("r+b") as file:
            file.write(struct.pack("q", seconds))

    async def start(self, server: EmbeddedServer) -> None:
        chosen = {"LD_PRELOAD": str(self._library), "SHIFTED_CLOCK": str(self._seconds)}
        before = {name: os.environ.get(name) for name in chosen}
        os.environ.update(chosen)
        try:
            await server.start()
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


# --- lost writes ------------------------------------------------------------------------------------------------------


class Backup:
    """What a server with an append-only file has stored up to now; what it acknowledges from here on is what it loses
    with `restore`."""

    def __init__(self, server: EmbeddedServer) -> None:
        self._server = server
        self._files = server.directory / "appendonly"
        self._copy = Path(f"{server.directory}-backup")
        shutil.copytree(self._files, self._copy, dirs_exist_ok=True)

    async def restore(self) -> int:
        """Kill the server, and start it with what it had stored then, as after a power failure with `appendfsync
        everysec`. Returns the bytes that it has lost."""
        await self._server.kill()
        lost = _size(self._files) - _size(self._copy)
        shutil.rmtree(self._files)
        shutil.copytree(self._copy, self._files)
        await self._server.start()
        return lost


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())
