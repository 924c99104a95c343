"""Messages that shards have quarantined: listing them, and taking them out again.

Owns: their ids, what is read at once, and what the server's answers mean. Must not: decide whether a message can be
processed (its run's daemon does). Called by: the command `quarantine`, the status.

The id of a quarantined message is `<shard>:<entry>`, such as `17:1764361200000-0`: the entry in its shard's quarantine,
which begins with the time (ms, the server's) at which it was put there.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from streamflow.client.client import Client
from streamflow.errors import StoreError, UsageError
from streamflow.store.connection import Call
from streamflow.store.kernel import QuarantineEntry
from streamflow.wire import stream_order

PAGE = 100
"""Entries of a shard that are read at once, and messages that are taken at once, of at most..."""
BYTES_AT_ONCE = 1_000_000
"""...so many bytes together: a script blocks the whole server while it runs."""
SHARDS_AT_ONCE = 64

_ID = re.compile(r"([0-9]{1,9}):([0-9]{1,19}-[0-9]{1,19})")

STAYS = {
    "g": "it is not in the quarantine: it was redriven, dropped or trimmed",
    "k": "no run takes a message of its kind, or a release that didn't keep the kind has put it there: drop it",
    "m": "there is no such run any more: drop it",
    "e": "the run has ended: drop it",
    "start": "the run has begun already: drop it",
    "b": "the run has not begun: redrive its start before, or together with it",
}
"""Why a message was not taken out, by the server's letter; `start`: of a start that has an e."""


class QuarantinedMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message in a shard's quarantine. `at`: when it was put there; `kind`: start, signal, ask, cancel, terminate,
    child, outcome or returned, empty if that isn't known; `size`: bytes of its body."""

    id: str
    shard: int
    at: datetime
    run_id: str
    kind: str
    reason: str
    size: int

    @property
    def entry(self) -> str:
        return self.id.partition(":")[2]


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a message. `outcome`: redriven, removed (its run had taken it), dropped, or stays; `reason` says
    why it stays."""

    id: str
    run_id: str
    kind: str
    outcome: str
    reason: str = ""


def parse_id(text: str) -> tuple[int, str]:
    """Shard and entry. Raises `UsageError`."""
    found = _ID.fullmatch(text)
    if found is None:
        raise UsageError(
            f"the id of a quarantined message is SHARD:ENTRY, as in 17:1764361200000-0, got {text[:100]!r}; "
            "`streamflow quarantine list` prints them"
        )
    return int(found[1]), found[2]


def message_of(shard: int, entry: QuarantineEntry) -> QuarantinedMessage:
    def text(name: bytes) -> str:
        return entry.fields.get(name, b"").decode(errors="replace")

    at = min(stream_order(entry.entry)[0], 253_402_300_799_000)  # the year 9999: somebody else may have written it
    return QuarantinedMessage(
        id=f"{shard}:{entry.entry}",
        shard=shard,
        at=datetime.fromtimestamp(at / 1000, UTC),
        run_id=text(b"run"),
        kind=text(b"kind"),
        reason=text(b"reason"),
        size=entry.size,
    )


class Quarantine:
    """The quarantines of all shards of a client's namespace. All methods raise `StoreError`."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._kernel = client.kernel

    async def messages(
        self, *, shards: Iterable[int] | None = None, run_id: str = "", limit: int | None = None
    ) -> list[QuarantinedMessage]:
        """The newest first; at most `limit`. `shards`: only of these; `run_id`: only of this run."""
        total = (await self._client.read_namespace()).shards
        wanted = list(range(total)) if shards is None else sorted(set(shards))
        for shard in wanted:
            if not 0 <= shard < total:
                raise UsageError(f"namespace {self._client.namespace} has no shard {shard}: it has {total}")
        found: list[QuarantinedMessage] = []
        before = dict.fromkeys(wanted, "")
        while before:
            some = list(before)[:SHARDS_AT_ONCE]
            calls = [self._kernel.read_quarantine(shard, before[shard], PAGE) for shard in some]
            pages: Sequence[list[QuarantineEntry]] = await self._send(calls)
            for shard, page in zip(some, pages, strict=True):
                messages = [message_of(shard, entry) for entry in page]
                found += [message for message in messages if run_id in ("", message.run_id)]
                before[shard] = messages[-1].entry if messages else ""
                enough = limit is not None and sum(message.shard == shard for message in found) >= limit
                if len(page) < PAGE or enough:
                    del before[shard]
        found.sort(key=lambda message: stream_order(message.entry), reverse=True)
        return found[:limit]

    async def find(self, ids: Iterable[str]) -> list[QuarantinedMessage]:
        """Those that are in the quarantine, in the order of the ids. Raises `UsageError` for what isn't an id."""
        places = list(dict.fromkeys(map(parse_id, ids)))
        total = (await self._client.read_namespace()).shards
        places = [(shard, entry) for shard, entry in places if shard < total]
        pages = await self._send([self._kernel.read_quarantine(shard, _behind(entry), 1) for shard, entry in places])
        return [
            message_of(shard, page[0])
            for (shard, entry), page in zip(places, pages, strict=True)
            if page and page[0].entry == entry
        ]

    async def read(self, id: str) -> dict[str, bytes] | None:
        """All fields of a message, as they are stored, with its body; None if it isn't there."""
        shard, entry = parse_id(id)
        if shard >= (await self._client.read_namespace()).shards:
            return None
        key = self._client.keys.shard(shard).poison
        [found] = await self._send([Call.plain("XRANGE", key, entry, entry)])
        if not found:
            return None
        return {name.decode(errors="replace"): value for name, value in found[0][1].items()}

    async def redrive(self, messages: Sequence[QuarantinedMessage]) -> list[Taken]:
        """Put messages back into the inboxes that they came from, those of a shard in their order. Each is put there
        once: what isn't in the quarantine any more stays as it is, and is reported."""
        return await self._take("redrive", messages)

    async def drop(self, messages: Sequence[QuarantinedMessage]) -> list[Taken]:
        """Delete messages: their runs never get them."""
        return await self._take("drop", messages)

    async def _take(self, action: str, messages: Sequence[QuarantinedMessage]) -> list[Taken]:
        taken: list[Taken] = []
        source = f"client:{secrets.token_hex(16)}"  # its own, so that it needs no order with the client's posts
        numbers: dict[int, int] = {}
        for some in _portions(sorted(messages, key=lambda message: (message.shard, stream_order(message.entry)))):
            shard = some[0].shard
            number = numbers[shard] = numbers.get(shard, 0) + 1
            places = [(message.entry, message.run_id) for message in some]
            call = self._kernel.take_quarantined(shard, source, number, action, places)
            [letters] = await self._send([call], confirmed=True)
            taken += [_taken(action, message, letter) for message, letter in zip(some, letters, strict=True)]
        return taken

    async def _send(self, calls: Sequence[Call[Any]], *, confirmed: bool = False) -> list[Any]:
        replies = await self._client.store.send(calls, confirmed=confirmed) if calls else []
        for reply in replies:
            if isinstance(reply, StoreError):
                raise reply
        return replies


def _taken(action: str, message: QuarantinedMessage, letter: str) -> Taken:
    done = {"a": "redriven" if action == "redrive" else "dropped", "d": "removed"}
    outcome = done.get(letter, "stays")
    why = "start" if letter == "e" and message.kind == "start" else letter
    reason = "" if outcome != "stays" else STAYS.get(why, f"the server has answered {letter!r}")
    return Taken(id=message.id, run_id=message.run_id, kind=message.kind, outcome=outcome, reason=reason)


def _portions(messages: Iterable[QuarantinedMessage]) -> Iterable[list[QuarantinedMessage]]:
    """Of one shard each, and not too large for one script."""
    portion: list[QuarantinedMessage] = []
    size = 0
    for message in messages:
        is_full = len(portion) == PAGE or size + message.size > BYTES_AT_ONCE
        if portion and (is_full or portion[0].shard != message.shard):
            yield portion
            portion, size = [], 0
        portion.append(message)
        size += message.size
    if portion:
        yield portion


def _behind(entry: str) -> str:
    """The id behind this one: a stream is read before it."""
    ms, number = stream_order(entry)
    return f"{ms}-{number + 1}"
