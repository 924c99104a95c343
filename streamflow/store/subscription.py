"""Sharded pub/sub: messages of some channels, on one connection that reconnects by itself.

Owns: SSUBSCRIBE, subscribing again after a reconnection, and noticing that a channel's slot has moved. Must not: know
what the messages mean. Called by: `cluster_subscription.py` (one a server), which `client/waiting.py` and
`daemon/inbox.py` call.
"""

from __future__ import annotations

import abc
import logging
from collections.abc import Callable, Iterable

import anyio
import anyio.lowlevel
from redis import exceptions as redis_errors

from streamflow.errors import StoreError, StoreMisconfigured, StoreUnavailable
from streamflow.server_url import redacted
from streamflow.store.connection import LOST
from streamflow.store.node import Node
from streamflow.store.topology import slot_of

_log = logging.getLogger("streamflow.store")

SILENCE = 15.0
"""Seconds without a message after which the server is pinged, and after as many more given up."""


class ChannelMoved(StoreUnavailable):
    """Another server has the channel now."""


class _Channel:
    """`settled` is set when the server has replied; `refusal` is its error when it doesn't allow the channel; `moved`:
    another server has it."""

    __slots__ = ("moved", "refusal", "settled")

    def __init__(self) -> None:
        self.settled = anyio.Event()
        self.refusal = ""
        self.moved = False


class Subscription(abc.ABC):
    """Messages of channels, wherever they are. `run()` is a loop for a task group.

    Messages arrive as `on_message(channel, data)`. `on_lost()` is called when all channels are subscribed again after a
    reconnection: messages may have been missed.
    """

    @abc.abstractmethod
    async def add_all(self, channels: Iterable[str]) -> None:
        """Subscribe to channels. Returns when the server has confirmed: what is published from then on arrives.

        Adding a channel again costs nothing. Raises `StoreUnavailable` or `StoreMisconfigured`, or `StoreError` after
        `close`.
        """

    async def add(self, channel: str) -> None:
        """`add_all` of one channel."""
        if not self.is_confirmed(channel):  # nearly always it is: clients ask for each run
            await self.add_all([channel])

    @abc.abstractmethod
    def is_confirmed(self, channel: str) -> bool:
        """Whether what is published from now on arrives, without waiting for anything."""

    @abc.abstractmethod
    async def remove(self, channel: str) -> None:
        """Unsubscribe. Messages that are under way may still arrive."""

    @abc.abstractmethod
    async def run(self) -> None:
        """Never returns. Connects when the first channel is added."""

    @abc.abstractmethod
    def close(self) -> None:
        """Callers that still wait for the server to confirm a channel get `StoreError`. `run` has ended."""


class NodeSubscription(Subscription):
    """On one connection to one server, that reconnects by itself. `silence`: seconds, as `SILENCE`."""

    def __init__(
        self,
        store: Node,
        on_message: Callable[[bytes, bytes], None],
        on_lost: Callable[[], None],
        silence: float | None = None,
    ) -> None:
        self._store = store
        # Not redis-py's PubSub: `add` promises that the server has confirmed, and that class does not wait for it.
        self._link = store.link()
        self._on_message = on_message
        self._on_lost = on_lost
        self._silence = silence
        self.on_moved: Callable[[], None] | None = None
        """Called when channels turn out to be another server's: they are none of this subscription's any more."""
        self.on_broken: Callable[[], None] = lambda: None
        """Called when the connection was lost."""
        self._channels: dict[str, _Channel] = {}
        self._unsent: list[tuple[str, str]] = []
        self._has_channels = anyio.Event()
        self._lost = False
        self._subscribed = False
        self._closed = False

    async def add_all(self, channels: Iterable[str]) -> None:
        known: dict[str, _Channel] = {}
        for channel in channels:
            if channel not in self._channels:
                self._channels[channel] = _Channel()
                self._unsent.append(("SSUBSCRIBE", channel))
            known[channel] = self._channels[channel]
        if self._unsent:
            await self._send()
        with anyio.move_on_after(self._store.patience):
            for one in known.values():
                await one.settled.wait()
        if not all(one.settled.is_set() for one in known.values()):
            raise StoreUnavailable(f"no answer from {redacted(self._store.url)} to SSUBSCRIBE. Is the server running?")
        if self._closed:
            raise StoreError("the client was closed")
        if any(one.moved for one in known.values()):
            raise ChannelMoved("another server has the channel now")
        refused = {channel: one for channel, one in known.items() if one.refusal}
        for channel, one in refused.items():
            if self._channels.get(channel) is one:
                del self._channels[channel]
        for channel, one in refused.items():
            raise StoreMisconfigured(f"SSUBSCRIBE {channel}: {one.refusal}")

    def close(self) -> None:
        self._closed = True
        for channel in self._channels.values():
            channel.settled.set()

    def is_confirmed(self, channel: str) -> bool:
        known = self._channels.get(channel)
        return not self._closed and known is not None and known.settled.is_set() and not known.refusal

    async def remove(self, channel: str) -> None:
        if self._channels.pop(channel, None) is not None:
            self._unsent.append(("SUNSUBSCRIBE", channel))
            await self._send()

    async def _send(self) -> None:
        """Send together with the other commands of this turn of the event loop. Without a connection `run` sends it."""
        self._has_channels.set()
        await anyio.lowlevel.checkpoint()
        if self._subscribed:
            commands, self._unsent = self._unsent, []
            self._link.post(commands)

    async def run(self) -> None:
        await self._has_channels.wait()
        pause = 0.05
        is_said = False  # once for an outage, however often it is tried
        while True:
            try:
                await self._connect()
                pause, is_said = 0.05, False
                await self._read()
            except (*LOST, redis_errors.RedisError) as error:
                if not is_said:
                    _log.warning("lost the subscription to %s, will reconnect: %s", redacted(self._store.url), error)
                is_said = True
                self.on_broken()
            finally:
                self._subscribed = False
                self._lost = True
                self._link.drop()
            await anyio.sleep(pause)
            pause = min(pause * 2, 1.0)

    async def _connect(self) -> None:
        await self._link.open()
        self._unsent = []
        for channel in self._channels:
            self._channels[channel] = _unsettled(self._channels[channel])
        self._subscribed = True
        self._link.post([("SSUBSCRIBE", channel) for channel in self._channels])

    async def _read(self) -> None:
        is_silent = False
        while True:
            if self._lost and all(channel.settled.is_set() for channel in self._channels.values()):
                self._lost = False
                self._on_lost()
            try:
                reply = await self._link.next_reply(SILENCE if self._silence is None else self._silence)
            except TimeoutError:
                # A connection whose other end has vanished looks the same as one without messages: ping it.
                if is_silent:
                    raise redis_errors.ConnectionError("no answer to PING") from None
                is_silent = True
                self._link.post([("PING",)])
                continue
            is_silent = False
            if isinstance(reply, redis_errors.MovedError) and self.on_moved is not None:
                self._gone([channel for channel in self._channels if slot_of(channel) == reply.slot_id])
            elif isinstance(reply, redis_errors.ResponseError):
                if self._store.note_refusal(reply):
                    raise reply
                for channel in self._channels.values():
                    if not channel.settled.is_set():
                        channel.refusal = str(reply)
                        channel.settled.set()
            elif reply[0] == b"smessage":
                self._on_message(reply[1], reply[2])
            elif reply[0] == b"ssubscribe":
                channel = self._channels.get(reply[1].decode())
                if channel is not None:
                    channel.settled.set()
            elif reply[0] == b"sunsubscribe" and self.on_moved is not None:
                name = reply[1].decode()  # the slot was moved; what was removed here isn't known any more, or not yet
                if name in self._channels and self._channels[name].settled.is_set():
                    self._gone([name])

    @property
    def channels(self) -> list[str]:
        return list(self._channels)

    def __contains__(self, channel: str) -> bool:
        return channel in self._channels

    def forget(self, channels: Iterable[str]) -> None:
        """Another server has these channels. Who waits for one gets `ChannelMoved`."""
        for name in channels:
            channel = self._channels.pop(name, None)
            if channel is not None:
                channel.moved = True
                channel.settled.set()

    def _gone(self, channels: list[str]) -> None:
        self.forget(channels)
        if self.on_moved is not None:
            self.on_moved()


def _unsettled(channel: _Channel) -> _Channel:
    """The channel, to be confirmed on a new connection. Callers that still wait get the new connection's reply."""
    return _Channel() if channel.settled.is_set() else channel
