"""Sharded pub/sub of a cluster: one subscription a server, and channels that follow their slots.

Owns: on which server a channel is subscribed, and moving it when its slot has another one. Must not: know what the
messages mean. Called by: `client/waiting.py`, `daemon/inbox.py`, through `open_subscription`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import cast

import anyio
from anyio.abc import TaskGroup

from streamflow.errors import StoreError, StoreUnavailable
from streamflow.store.connection import Store
from streamflow.store.node import Node
from streamflow.store.router import Cluster
from streamflow.store.subscription import ChannelMoved, NodeSubscription, Subscription

LOOK_EVERY = 5.0
"""Seconds between two looks whether channels have moved: who only listens sends nothing that could be redirected."""
FOLLOW = 1.0
"""Seconds for which a server is waited for to which channels have moved."""
TRY_AGAIN = 0.1


def open_subscription(
    store: Store,
    on_message: Callable[[bytes, bytes], None],
    on_lost: Callable[[], None],
    silence: float | None = None,
) -> Subscription:
    """For channels of that store. `silence`: seconds without a message after which it is asked whether a connection is
    still there."""
    if isinstance(store, Cluster):
        return ClusterSubscription(store, on_message, on_lost, silence)
    return NodeSubscription(cast("Node", store), on_message, on_lost, silence)


class ClusterSubscription(Subscription):
    """`on_lost` is also called after a channel was moved."""

    def __init__(
        self,
        cluster: Cluster,
        on_message: Callable[[bytes, bytes], None],
        on_lost: Callable[[], None],
        silence: float | None = None,
    ) -> None:
        self._cluster = cluster
        self._on_message = on_message
        self._on_lost = on_lost
        self._silence = silence
        self._parts: dict[Node, NodeSubscription] = {}
        self._placed: dict[str, NodeSubscription] = {}
        """Each channel, and where it is or is to be subscribed."""
        self._missing: set[str] = set()
        """Channels that were moved, and are not confirmed where they are now."""
        self._group: TaskGroup | None = None
        self._scopes: dict[NodeSubscription, anyio.CancelScope] = {}
        self._changed = anyio.Event()
        self._closed = False
        cluster.on_moved.append(self._wake)

    def _wake(self) -> None:
        self._changed.set()

    def is_confirmed(self, channel: str) -> bool:
        part = self._placed.get(channel)
        return part is not None and part.is_confirmed(channel)

    async def add_all(self, channels: Iterable[str]) -> None:
        wanted = list(channels)
        try:
            async with asyncio.timeout(self._cluster.patience):
                while not self._closed:
                    try:
                        await self._add(wanted)
                        return
                    except ChannelMoved:
                        self._cluster.suspect()
                        await anyio.sleep(TRY_AGAIN)
        except TimeoutError:
            raise StoreUnavailable("the server of a channel could not be found in time") from None
        raise StoreError("the client was closed")

    async def _add(self, channels: list[str]) -> None:
        by_part: dict[NodeSubscription, list[str]] = {}
        for channel in channels:
            part = self._placed.get(channel)
            if part is None or channel not in part:
                part = self._part(await self._cluster.node_of(channel))
                self._placed[channel] = part
            by_part.setdefault(part, []).append(channel)
        await asyncio.gather(*(part.add_all(some) for part, some in by_part.items()))

    async def remove(self, channel: str) -> None:
        part = self._placed.pop(channel, None)
        if part is not None:
            await part.remove(channel)

    def close(self) -> None:
        self._closed = True
        for part in self._parts.values():
            part.close()
        self._cluster.on_moved.remove(self._wake)

    async def run(self) -> None:
        async with anyio.create_task_group() as self._group:
            try:
                for part in self._parts.values():
                    self._start(part)
                while True:
                    with anyio.move_on_after(LOOK_EVERY):
                        await self._changed.wait()
                    self._changed = anyio.Event()
                    await self._follow()
            finally:
                self._group = None

    def _part(self, node: Node) -> NodeSubscription:
        part = self._parts.get(node)
        if part is None:
            part = NodeSubscription(node, self._on_message, self._on_lost, self._silence)
            part.on_moved = self._moved
            part.on_broken = self._cluster.suspect
            self._parts[node] = part
            if self._group is not None:
                self._start(part)
        return part

    def _moved(self) -> None:
        self._cluster.suspect()
        self._changed.set()

    def _start(self, part: NodeSubscription) -> None:
        assert self._group is not None
        self._scopes[part] = scope = anyio.CancelScope()
        self._group.start_soon(partial(self._run_part, part, scope))

    @staticmethod
    async def _run_part(part: NodeSubscription, scope: anyio.CancelScope) -> None:
        with scope:
            await part.run()

    async def _follow(self) -> None:
        """Subscribe the channels of slots that have moved where they are now, and end what has none any more."""
        self._cluster.look_if_due()
        stale = [channel for channel, part in self._placed.items() if not self._is_at_home(channel, part)]
        for channel in stale:  # it stays among the placed ones, whatever happens now: else nobody would look for it
            self._placed[channel].forget([channel])
        self._missing.update(stale)
        if stale:
            # A server that is silent is not waited for: what it has may get another one meanwhile, and so may others.
            with anyio.move_on_after(FOLLOW), contextlib.suppress(StoreError):
                await self.add_all(stale)
        if self._missing:
            back = {name for name in self._missing if name not in self._placed or self.is_confirmed(name)}
            self._missing -= back
            if back:
                self._on_lost()
            if self._missing:
                self._changed.set()
                await anyio.sleep(TRY_AGAIN)
        present = set(self._cluster.nodes())
        for node in [node for node, part in self._parts.items() if node not in present and not part.channels]:
            part = self._parts.pop(node)
            if (scope := self._scopes.pop(part, None)) is not None:
                scope.cancel()

    def _is_at_home(self, channel: str, part: NodeSubscription) -> bool:
        home = self._cluster.known_node_of(channel)
        return home is None or (self._parts.get(home) is part and channel in part)
