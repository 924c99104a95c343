"""Deliveries from a list of a Redis or Valkey server, which may be another one than streamflow's.

Owns: what an element is as a delivery, and when it is done. Must not: know how elements are taken (`store` does).
Called by: user code (makes sources), `serving.py`.

An element is taken from the list and noted beside it, under an id, until what it is for is stored. That of a process
that has died is taken again after `idle` seconds, under the same id; if the first is alive after all, both do the same,
which counts once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import anyio

from streamflow.errors import UsageError
from streamflow.model.durations import seconds_of
from streamflow.server_url import redacted
from streamflow.triggers.pulled import (
    MAX_BODY,
    STORE_PAUSE,
    PulledSource,
    checked_max_body,
    is_stored,
    process_at_once,
)
from streamflow.triggers.receiver import Receiver, received_now
from streamflow.triggers.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from streamflow.store.foreign_list import Element, ForeignList

End = Literal["left", "right"]


class RedisList(PulledSource):
    """Made by `redis_list`."""

    kind = "list"

    def __init__(self, key: str, url: str | Secret | None, group: str, end: End, idle: float, max_body: int) -> None:
        self.key = key
        self._url = url
        self._group = group
        self._end: End = end
        self._idle_ms = round(idle * 1000)
        self._max_body = max_body

    @property
    def about(self) -> str:
        url = self._url
        where = "" if url is None else f" of {url!r}" if isinstance(url, Secret) else f" of {redacted(url)}"
        return f"list {self.key}{where}"

    async def serve(self, receiver: Receiver) -> None:
        # Imported here, because a module of flows needs nothing of the server.
        from streamflow.store.foreign_list import open_list

        url = self._url.read() if isinstance(self._url, Secret) else self._url or receiver.client.store.url
        group = self._group or receiver.trigger.name
        async with open_list(
            url, self.key, group, end=self._end, idle_ms=self._idle_ms, longest=self._max_body
        ) as source:
            while True:
                elements = await source.take()
                receiver.problem = ""
                if elements:
                    await self._process_all(source, receiver, elements)
                else:
                    await source.wait()

    async def _process_all(self, source: ForeignList, receiver: Receiver, elements: Sequence[Element]) -> None:
        """Until all are done: those that can't be stored now are tried again."""
        left = list(elements)
        while left:
            trying, left = left, await process_at_once(lambda element: self._process(source, receiver, element), left)
            done = [element for element in trying if element not in left]
            if done:
                await source.done(done)
            if left:
                await anyio.sleep(STORE_PAUSE)

    async def _process(self, source: ForeignList, receiver: Receiver, element: Element) -> bool:
        delivery_id = f"{self.key}/{element.id}"
        if element.size > self._max_body:
            where = f"the list {source.long}"
            return await is_stored(
                receiver.set_aside_long(delivery_id, element.value, element.size, self._max_body, where)
            )
        return await is_stored(receiver.receive(received_now(delivery_id, element.value)))


def redis_list(
    key: str,
    /,
    *,
    url: str | Secret | None = None,
    end: End = "right",
    group: str = "",
    idle: float | timedelta = 60.0,
    max_body: int = MAX_BODY,
) -> RedisList:
    """Elements of a list: each is taken from it, and is one delivery.

    `url`: of its server, by default streamflow's; as `sf.triggers.secret(…)` if it has a password. `end`: the end at
    which elements are taken: `"right"` for producers with LPUSH, `"left"` for those with RPUSH. `group`: by default the
    trigger's name; it names the keys beside the list that have what is taken. `idle`: seconds or a timedelta after
    which what a process has taken and not done goes to another one. `max_body`: bytes, at most 2 MB; a longer element
    is put into a list of its own, and its beginning into the quarantine. Raises `UsageError`.

    >>> @app.trigger(sf.triggers.list("orders"))
    """
    if not key:
        raise UsageError("a list needs a key")
    if isinstance(url, str) and redacted(url) != url:
        raise UsageError("the url of a list has a password: give it as sf.triggers.secret('VARIABLE')")
    if end not in ("left", "right"):
        raise UsageError(f"end is 'left' or 'right', got {end!r}")
    seconds = seconds_of(idle) or 0.0
    if seconds <= 0:
        raise UsageError(f"idle must be more than 0 seconds, or a timedelta, got {idle!r}")
    return RedisList(key, url, group, end, seconds, checked_max_body(max_body))
