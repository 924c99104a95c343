"""One connection to the server: what is sent and read on it, and closing it when no byte moves on it any more.

Owns: packing and reading in C, the limit on silence, closing at once what somebody waits on. Must not: send anything
again, or know what a command means. Called by: `connection.py` (makes links, and replaces them), `blocking_reads.py`,
`subscription.py`.

The limit counts silence, not the whole: an answer of some megabytes takes half a minute on a thin line, and if it is
given up and asked for again, its bytes are sent again and again and never arrive. A byte has moved when some were
received, or when fewer are left to send, also of those that the operating system still keeps: until the last of them is
delivered, nothing is received.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import hiredis
from hiredis import pack_command  # pyright: ignore[reportUnknownVariableType]
from redis import exceptions as redis_errors

try:
    from fcntl import ioctl
    from termios import TIOCOUTQ
except ImportError:  # not on this system: what it keeps isn't seen there
    ioctl = None

TICK = 1.0
"""Seconds between two looks whether bytes have moved. Silence is counted in looks, because an event loop that was
blocked for long looks only once after it."""
SILENT_TICKS = 5
"""So many silent looks end a connection, if nothing moves on the other connections to that server, either..."""
CROWDED_TICKS = 15
"""...and so many if they do: then it may be that they fill the line."""

_READ_SIZE = 262_144

Progress = tuple[int, int, int]
"""How often a link was connected, how many bytes it has received, how many are still to be delivered."""


class Link:
    """Mixed into redis-py's connection classes, which pack in Python, read with a time-out for each reply, and give up
    by the clock: packing alone was half of what a `start` cost.

    redis-py connects and authenticates. Then a link is used by one task at a time, with `exchange`, or with `post` and
    `next_reply` for a subscription; errors among the replies are values. The link connects whenever it isn't connected.
    """

    _reader: Any
    _writer: Any
    _parser: Any
    received = 0
    """Bytes so far."""
    reached = ""
    """The run id of the server at the other end; empty if it isn't known."""
    introduce: tuple[Any, ...] = ()
    """A command to send before the first ones of each connection, without a round trip of its own..."""
    on_introduced: Callable[[Any], None]
    """...and what takes the reply to it."""
    locate: Callable[[], Awaitable[tuple[str, int]]] | None = None
    """What finds host and port before each connection, where they aren't those of the URL..."""
    on_late: Callable[[], None] | None = None
    """...and what is called every second in which no byte moves although a reply is due: it may find others by now."""
    opened = 0
    """How often it was connected."""
    neighbours: Callable[[], Sequence[Progress]]
    """The progress of all connections to the same server."""
    on_silence: Callable[[], None]
    """Called when nothing has moved on any of them."""

    @property
    def is_open(self) -> bool:
        return self._writer is not None and not self._writer.transport.is_closing()

    async def open(self) -> None:
        """Connect, unless it is connected. Raises redis-py's `ConnectionError` or `TimeoutError`, or `OSError`."""
        if self.is_open:
            return
        me: Any = self
        try:
            if self._writer is not None:  # dropped
                await me.disconnect(nowait=True)
            async with asyncio.timeout(SILENT_TICKS * TICK):
                if self.locate is not None:
                    me.host, me.port = await self.locate()
                await me.connect()
        except BaseException as error:
            await self._give_up()
            if isinstance(error, TimeoutError):
                raise redis_errors.TimeoutError("could not connect in time") from error
            if isinstance(error, redis_errors.RedisError) and not isinstance(error, redis_errors.ConnectionError):
                raise redis_errors.ConnectionError(f"could not connect: {error}") from error
            raise
        self.opened += 1
        self._replies = hiredis.Reader(protocolError=redis_errors.ConnectionError, replyError=me._parser.parse_error)

    async def exchange(self, commands: Sequence[Sequence[Any]], wait: float = 0.0) -> list[Any]:
        """Send commands and read a reply to each. `wait`: seconds for which they tell the server to block.

        When it raises, the connection is closed and the outcome of the commands unknown: replies that were not read
        would be mistaken for those of the next commands. Raises what `open` does.
        """
        watch: _SilenceWatch | None = None
        try:
            is_new = not self.is_open
            if is_new:
                await self.open()
                if self.introduce:
                    commands = [self.introduce, *commands]
            watch = _SilenceWatch(self, wait)
            self._writer.writelines(self.pack_commands(commands))
            await self._writer.drain()
            replies = await self._read(len(commands))
            if is_new and self.introduce:
                self.on_introduced(replies.pop(0))
            return replies
        except BaseException as error:
            await self._give_up()
            if watch is not None and watch.expired:
                raise redis_errors.TimeoutError(f"no byte came or went for {watch.limit:g} s") from error
            raise
        finally:
            if watch is not None:
                watch.stop()

    async def _read(self, count: int) -> list[Any]:
        replies: list[Any] = []
        read, gets = self._reader.read, self._replies.gets
        while len(replies) < count:
            reply = gets()
            if reply is False:
                self._feed(await read(_READ_SIZE))
            elif isinstance(reply, redis_errors.ConnectionError):
                raise reply  # LOADING, NOAUTH and the like: all other replies are the same
            else:
                replies.append(reply)
        return replies

    def _feed(self, data: bytes) -> None:
        if not data:
            raise redis_errors.ConnectionError("the connection was closed")
        self.received += len(data)
        self._replies.feed(data)

    def post(self, commands: Iterable[Sequence[Any]]) -> None:
        """Send commands whose replies `next_reply` reads. Without a connection nothing happens: its reader notices."""
        if self.is_open:
            self._writer.writelines(self.pack_commands(commands))

    async def next_reply(self, silence: float) -> Any:
        """The next reply or message. Raises `TimeoutError` when no byte has come for so many seconds; then it may be
        called again. Raises redis-py's `ConnectionError` or `OSError` when the connection is lost."""
        while (reply := self._replies.gets()) is False:
            async with asyncio.timeout(silence):
                data = await self._reader.read(_READ_SIZE)
            self._feed(data)
        if isinstance(reply, redis_errors.ConnectionError):
            raise reply
        return reply

    def drop(self) -> None:
        """Close the connection at once, so that a task that waits for a reply gets an error."""
        if self._writer is not None:
            self._writer.transport.abort()

    async def _give_up(self) -> None:
        me: Any = self
        if self._writer is not None and self._writer.transport.get_extra_info("sslcontext") is not None:
            self.drop()  # else it stays open until the server has taken its leave: the event loop may end before that
        await me.disconnect(nowait=True)

    def progress(self) -> Progress:
        unsent = 0
        if self._writer is not None:
            transport = self._writer.transport
            unsent = transport.get_write_buffer_size() + _kept(transport.get_extra_info("socket"))
        return self.opened, self.received, unsent

    def pack_command(self, *command: Any) -> list[bytes]:
        if isinstance(command[0], str) and " " in command[0]:
            command = (*command[0].split(), *command[1:])
        return [pack_command(command)]

    def pack_commands(self, commands: Iterable[Sequence[Any]]) -> list[bytes]:
        return [part for command in commands for part in self.pack_command(*command)]

    async def send_packed_command(self: Any, command: Any, check_health: bool = True) -> None:
        """For redis-py, while it connects: without `asyncio.wait_for`, which creates a task for each send, and in
        Python 3.11 loses a cancellation that arrives while the send ends: a loop that has lost its cancellation runs
        forever."""
        await self._send_packed_command([command] if isinstance(command, bytes) else command)


class _SilenceWatch:
    """Closes a link on which no byte moves while a reply is waited for. Costs a timer; looks only after a second, and
    after the time for which the server was told to block."""

    __slots__ = ("_link", "_loop", "_neighbours", "_seen", "_silent", "_timer", "_wait", "expired", "limit")

    def __init__(self, link: Link, wait: float) -> None:
        self.expired = False
        self.limit = 0.0
        """Seconds of silence, when it has expired."""
        self._link = link
        self._wait = wait
        self._seen: Progress | None = None
        self._silent = 0
        self._neighbours: Sequence[Progress] = ()
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(wait + TICK, self._look)

    def stop(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        progress = self._link.progress()
        if progress != self._seen:
            self._seen, self._silent, self._neighbours = progress, 0, self._link.neighbours()
        self._silent += 1
        if self._silent > 1 and self._link.on_late is not None:
            self._link.on_late()
        if self._silent >= SILENT_TICKS:
            pairs = zip(self._neighbours, self._link.neighbours(), strict=False)
            alone = not any(_has_moved(before, after) for before, after in pairs)
            if alone or self._silent >= CROWDED_TICKS:
                self.expired = True
                self.limit = self._wait + self._silent * TICK
                self._link.drop()
                if alone:
                    self._link.on_silence()
                return
        self._timer = self._loop.call_later(TICK, self._look)


def _has_moved(before: Progress, after: Progress) -> bool:
    """A connection that was opened meanwhile proves nothing: what fills a line was there before."""
    return before[0] == after[0] and (before[1] != after[1] or before[2] > after[2])


def _kept(connected: Any) -> int:
    """Bytes that the operating system has taken and the other end hasn't."""
    if ioctl is None or connected is None:
        return 0
    try:
        return struct.unpack("i", ioctl(connected.fileno(), TIOCOUTQ, b"\0\0\0\0"))[0]  # pyright: ignore[reportPossiblyUnboundVariable]
    except (OSError, ValueError):  # closed meanwhile, or not on this system
        return 0
