"""The HTTP server of a daemon, worker or sink: a thread with an event loop of its own, which user code can't block.

Owns: its sockets and thread, and the limits of what a client may cost. Must not: know what a page says, touch what
belongs to the event loop of the process. Called by: daemon, worker and the command `sink` (start and stop it).

Everybody who reaches the port may send anything. So there is one request per connection, with a small head and no body.
A connection that doesn't bring its request soon is closed, and so is the oldest of them when there are too many: a
probe sends its request at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Generator
from http import HTTPStatus
from typing import Protocol

import msgspec

from streamflow.errors import UsageError
from streamflow.settings import split_address

_log = logging.getLogger("streamflow.http")

CONNECTIONS = 64
"""Open at the same time, whatever they do."""
HEAD_BYTES = 8192
"""Of a request: its line and its headers."""
HEAD_SECONDS = 5.0
"""For a client to send them."""
ANSWER_SECONDS = 10.0
"""To make an answer, and for the client to take it."""
CLOSE_SECONDS = 2.0
STOP_SECONDS = 5.0
TURNS = 5
"""Of the event loop, in which a connection is made or ended."""

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"


class Answer(msgspec.Struct):
    status: HTTPStatus
    body: bytes
    content_type: str = TEXT


class Site(Protocol):
    """What the server serves. All of it is called in the server's thread."""

    async def answer(self, path: str, accept: str) -> Answer: ...

    async def close(self) -> None: ...


class HttpServer:
    """The constructor takes the port. Raises `UsageError` if that can't be had: then nothing else was taken yet."""

    def __init__(self, address: str, site: Site) -> None:
        self._site = site
        self._sockets = _listen(address)
        host, self.port = self._sockets[0].getsockname()[:2]
        self.url = f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="streamflow-http", daemon=True)
        self._reading: dict[asyncio.StreamWriter, None] = {}
        """Connections whose request has not arrived yet, the oldest first."""
        self._open: set[asyncio.StreamWriter] = set()

    def start(self) -> None:
        _log.info("answers at %s/health, /ready and /metrics", self.url)
        self._thread.start()

    def stop(self) -> None:
        """Returns when the thread has ended, or after some seconds."""
        loop, stopping = self._loop, self._stopping
        if loop is not None and stopping is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(stopping.set)
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)
        for listening in self._sockets:
            listening.close()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
                runner.run(self._serve())
        except Exception:
            _log.exception("the HTTP server has failed: nothing answers at %s any more", self.url)

    async def _serve(self) -> None:
        self._stopping = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        servers = [
            await asyncio.start_server(self._connected, sock=listening, limit=HEAD_BYTES) for listening in self._sockets
        ]
        try:
            await self._stopping.wait()
        finally:
            await self._end_connections()
            for server in servers:
                server.close()
            await self._site.close()

    async def _end_connections(self) -> None:
        """Accept no more, and close what is open, also what was accepted a moment ago: asyncio makes the transports and
        tasks of these in the next turns, and would leave their sockets open if its server were closed before."""
        for listening in self._sockets:
            asyncio.get_running_loop().remove_reader(listening)
        for _ in range(TURNS):
            await asyncio.sleep(0)
        for writer in list(self._open):
            self._close(writer)
        for _ in range(TURNS):
            await asyncio.sleep(0)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        self._reading[writer] = None
        try:
            while len(self._open) > CONNECTIONS:
                self._close(next(iter(self._reading)))  # `writer` itself, if all others are being answered
            with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                await self._exchange(reader, writer)
        except Exception:  # a defect: what it concerns is this request
            _log.exception("could not answer a request")
        finally:
            self._close(writer)

    def _close(self, writer: asyncio.StreamWriter) -> None:
        self._open.discard(writer)
        self._reading.pop(writer, None)
        writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(HEAD_SECONDS):
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.LimitOverrunError:
                head = b""
        self._reading.pop(writer, None)
        async with asyncio.timeout(ANSWER_SECONDS):
            writer.write(await self._answered(head))
            await writer.drain()
        writer.close()
        async with asyncio.timeout(CLOSE_SECONDS):
            await writer.wait_closed()

    async def _answered(self, head: bytes) -> bytes:
        from streamflow.http.request import Request  # a large part of the standard library, for those who serve

        request = Request(head)
        if not request.is_valid:
            return request.refusal()
        try:
            answer = await self._site.answer(request.page, request.headers.get("Accept", ""))
        except Exception:
            _log.exception("could not answer a request for %s", request.page)
            answer = Answer(HTTPStatus.INTERNAL_SERVER_ERROR, b"could not be answered, the log says why\n")
        return request.formatted(answer.status, answer.body, answer.content_type)


@contextlib.contextmanager
def serving_http(address: str, site: Site | None) -> Generator[HttpServer | None]:
    """Serves while the block runs; not at all without an address."""
    if not address or site is None:
        yield None
        return
    server = HttpServer(address, site)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def _listen(address: str) -> list[socket.socket]:
    """A socket for each address of the host. Raises `UsageError`."""
    split = split_address(address)
    assert split is not None
    host, port = split
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE):
            if family not in (socket.AF_INET, socket.AF_INET6):
                continue
            where = (place[0], sockets[0].getsockname()[1] if sockets else port)
            both = place[0] == "::" and socket.has_dualstack_ipv6()
            sockets.append(socket.create_server(where, family=family, backlog=CONNECTIONS, dualstack_ipv6=both))
            sockets[-1].setblocking(False)
    except OSError as error:
        for listening in sockets:
            listening.close()
        raise UsageError(
            f"can't listen at {address} (--http): {error.strerror or error}. Each daemon, worker and sink of a "
            "machine needs a port of its own; nothing was started"
        ) from None
    return sockets
