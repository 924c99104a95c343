"""Signals, questions and requests that a server has acknowledged a short while ago, posted again when it has lost them.

Owns: what is kept, for how long, and posting it again. Must not: decide that a server has another history (the store
does). Called by: the recent starts, whose runs these are for; the pipelines report what was acknowledged.

A client numbers its posts to a shard, and the shard keeps the last number: those above it are missing. Each message has
an identity, its number and place, with which it goes into the inbox. So nobody gets it twice: a message is not accepted
if its post is there, or if its run has taken it and the shard's owner has committed that again (decision 40).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from streamflow.errors import StoreError
from streamflow.machine.sealed import hide
from streamflow.store.connection import Call, OtherHistory, Store
from streamflow.store.kernel import Kernel, Message, post_identity

_log = logging.getLogger("streamflow.client")

KEEP_SECONDS = 60.0
KEEP_BYTES = 16 * 1024 * 1024
"""As of `recent_starts.py`."""
OVERHEAD = 300
"""Bytes that a message takes besides its body, about."""
AT_ONCE = 200
BYTES_AT_ONCE = 1_000_000
MISSING_SECONDS = 10.0
MISSING_PAUSE = 0.25
LONGEST_PAUSE = 2.0
"""A run may be missing, too, until the shard's owner has committed it again, or its own client has started it. Seconds
for which it is tried, and between the first and between the last tries."""
NAMED = 20
REQUESTS = ("cancel", "terminate", "pause", "resume")
"""Kinds of messages that are accepted also when memory is short."""


class _Kept:
    """A post that was acknowledged, with those messages that runs got, by their places. `history`: the shard's when it
    was sent."""

    __slots__ = ("at", "history", "messages", "number", "shard", "size", "source")

    def __init__(
        self,
        at: float,
        shard: int,
        source: str,
        number: int,
        history: int,
        messages: list[tuple[int, Message]],
        size: int,
    ) -> None:
        self.at = at
        self.shard = shard
        self.source = source
        self.number = number
        self.history = history
        self.messages = messages
        self.size = size

    def message_at(self, position: int) -> Message:
        """As it is posted again."""
        place, message = self.messages[position]
        identity = message.identity or post_identity(self.source, self.number, place)
        return msgspec.structs.replace(message, identity=identity, number=self.number)


class _Missing(NamedTuple):
    """A message whose run wasn't there. `over`: when it is given up (monotonic s)."""

    over: float
    shard: int
    message: Message


class RecentPosts:
    """Those of one client."""

    def __init__(self, store: Store, kernel: Kernel) -> None:
        self._store = store
        self._kernel = kernel
        self._kept: deque[_Kept] = deque()
        self._bytes = 0
        self.post: Callable[[int, Message], asyncio.Future[str]] | None = None
        """Posts a message among the client's others. Set by who sends them."""
        self._missing: list[_Missing] = []
        self._posting_missing: asyncio.Task[None] | None = None
        self.again = 0
        """Messages that were lost, and are there again."""

    def __bool__(self) -> bool:
        return bool(self._kept)

    def history_of(self, shard: int) -> int:
        return self._store.history_of(self._kernel.keys.shard(shard).owner)

    def acknowledged(
        self, shard: int, source: str, number: int, messages: Sequence[Message], letters: str, history: int
    ) -> None:
        """The server has accepted those messages of this post that have the letter a."""
        kept = [item for item, letter in zip(enumerate(messages, 1), letters, strict=True) if letter == "a"]
        if not kept:
            return
        size = sum([len(message.body) for _, message in kept]) + OVERHEAD * len(kept)
        now = time.monotonic()
        self._kept.append(_Kept(now, shard, source, number, history, kept, size))
        self._bytes += size
        while self._kept and (self._kept[0].at < now - KEEP_SECONDS or self._bytes > KEEP_BYTES):
            self._bytes -= self._kept.popleft().size

    async def send_again(self) -> None:
        """Post again what servers may have lost; when this returns, the shards have the same history as before, or it
        is to be called again. Raises `StoreError`."""
        over = time.monotonic() - KEEP_SECONDS
        present: dict[int, int] = {}
        left: dict[int, deque[_Kept]] = {}
        for kept in self._kept:
            if kept.at > over and kept.history != present.setdefault(kept.shard, self.history_of(kept.shard)):
                left.setdefault(kept.shard, deque()).append(kept)
        posted: list[str] = []
        missing: list[tuple[int, Message]] = []
        try:
            await self._send_all(left, present, posted, missing)
        finally:
            self._post_later(missing)
        if posted:
            self.again += len(posted)
            _log.warning(
                "a server had lost %d messages that it had acknowledged, and they were posted again, to %s",
                len(posted),
                _named(posted),
            )

    async def _send_all(
        self,
        left: dict[int, deque[_Kept]],
        present: Mapping[int, int],
        posted: list[str],
        missing: list[tuple[int, Message]],
    ) -> None:
        """Post again what is left, by shard. Adds to `posted` the runs that got something by this, and to `missing`
        what is for runs that aren't there."""
        while left:  # one call of each shard at a time: their order counts
            parts = [_first_part(line) for line in left.values()]
            calls = [self._call(part) for part in parts]
            replies = await self._store.send(calls, same_history=True, confirmed=True)
            for part, letters in zip(parts, replies, strict=True):
                shard = part[0].shard
                if isinstance(letters, OtherHistory):
                    del left[shard]
                    continue
                if isinstance(letters, StoreError):
                    runs = [message.run_id for kept in left.pop(shard) for _, message in kept.messages]
                    _log.error(
                        "messages that a server may have lost could not be posted again, to %s: %s",
                        _named(runs),
                        letters,
                    )
                    continue
                self._posted(part, letters, present[shard], posted, missing)
                for _ in part:
                    left[shard].popleft()
                if not left[shard]:
                    del left[shard]

    def _call(self, part: Sequence[_Kept]) -> Call[str]:
        messages = [kept.message_at(position) for kept in part for position in range(len(kept.messages))]
        last = part[-1]
        if _is_request(last):
            return self._kernel.post_requests(last.shard, last.source, last.number, messages, again=True, asleep=True)
        return self._kernel.post_messages(last.shard, last.source, last.number, messages, again=True, asleep=True)

    def _posted(
        self,
        part: Sequence[_Kept],
        letters: str,
        history: int,
        posted: list[str],
        missing: list[tuple[int, Message]],
    ) -> None:
        """Note what became of each message: the letters of the server's answer, in the order of the part."""
        answers = iter(letters)
        for kept in part:
            kept.history = history
            left: list[tuple[int, Message]] = []
            for position, item in enumerate(kept.messages):
                letter = next(answers)
                if letter == "m":
                    missing.append((kept.shard, msgspec.structs.replace(kept.message_at(position), number=0)))
                    continue
                left.append(item)
                if letter == "a":
                    posted.append(item[1].run_id)
            kept.messages = left

    def _post_later(self, missing: Sequence[tuple[int, Message]]) -> None:
        """They are given up at the same time."""
        over = time.monotonic() + MISSING_SECONDS
        self._missing += [_Missing(over, shard, message) for shard, message in missing]
        if self._missing and (self._posting_missing is None or self._posting_missing.done()):
            self._posting_missing = asyncio.create_task(self._post_missing())
            hide(self._posting_missing)

    async def _post_missing(self) -> None:
        """All together, less and less often, until their runs are there again: there may be as many as were kept."""
        pause = MISSING_PAUSE
        while self._missing and self.post is not None:
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            waiting, self._missing = self._missing, []
            posts = [self.post(one.shard, one.message) for one in waiting]
            replies = await asyncio.gather(*posts, return_exceptions=True)
            now = time.monotonic()
            lost: list[str] = []
            reason = ""
            for one, reply in zip(waiting, replies, strict=True):
                if isinstance(reply, BaseException) and not isinstance(reply, StoreError):
                    raise reply
                if not isinstance(reply, StoreError) and reply != "m":
                    self.again += reply == "a"
                elif now < one.over:
                    self._missing.append(one)
                else:
                    lost.append(one.message.run_id)
                    reason = "there is no such run" if reply == "m" else str(reply)
            if lost:
                _log.error(
                    "a server has lost %d messages that it had acknowledged, and they can't be posted again, to %s: %s",
                    len(lost),
                    _named(lost),
                    reason,
                )

    async def close(self) -> None:
        if self._posting_missing is not None:
            self._posting_missing.cancel()
            await asyncio.gather(self._posting_missing, return_exceptions=True)


def _first_part(line: Sequence[_Kept]) -> list[_Kept]:
    """What one call posts: whole posts, of one verb and one source, whose numbers they have."""
    part: list[_Kept] = []
    count = size = 0
    for kept in line:
        count += len(kept.messages)
        size += kept.size
        is_full = count > AT_ONCE or size > BYTES_AT_ONCE
        if part and (is_full or kept.source != part[0].source or _is_request(kept) != _is_request(part[0])):
            break
        part.append(kept)
    return part


def _is_request(kept: _Kept) -> bool:
    return bool(kept.messages) and kept.messages[0][1].kind in REQUESTS


def _named(runs: Sequence[str]) -> str:
    return ", ".join(runs[:NAMED]) + (", …" if len(runs) > NAMED else "")
