"""Large payloads of this daemon's runs: in storage before a commit refers to them, in memory before code needs them.

Owns: what of a run's record and inputs has to be fetched or stored first, and what a commit has in the place of large
payloads. Must not: wait (`put_off.py` does), talk to a storage (`archive/payloads.py` does).
Called by: the owner (as a supplier), its batches (`cut`), the daemon (`follow`).

The machine of a run never sees a reference: what is decoded is joined before, and what it decides is cut behind it. So
a run that waits for storage waits in one of two places: before its inputs are reduced, or, for what its own code has
made, with a transition that is decided again when its payloads are stored, from the same inputs at the same time.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from streamflow.archive.payloads import Payloads, open_payloads
from streamflow.archive_url import shown_archive
from streamflow.daemon.context import Context
from streamflow.daemon.put_off import Need
from streamflow.daemon.shard import OwnedShard, RunWork
from streamflow.errors import ArchiveError, UsageError
from streamflow.machine.transition import Outcome
from streamflow.model.references import Reference, cut, has_mark, join, references_in, week_of
from streamflow.wire import is_fork

_log = logging.getLogger("streamflow.storage")

TRIES = 3
"""Times that a transition is decided for its payloads: then they stay in the record. Code that makes other ones each
time would never get on."""
BODY = 1
"""Levels of a message that stay as they are (`cut`), and..."""
EVENT = 3
"""...of a transition."""


class StoreFirst(Exception):
    """A transition has large payloads that are not in storage yet."""

    def __init__(self, need: Need) -> None:
        super().__init__(need.what)
        self.need = need


class LargePayloads:
    """A `Supplier`, also without a threshold in the namespace's record: clients and other daemons may know of one
    before this daemon's next heartbeat, and send references at once."""

    def __init__(self, context: Context) -> None:
        self.limit = 0
        """Bytes from which on a payload goes to storage; 0: nothing does."""
        self._clock = context.clock
        self._namespace = context.settings.namespace
        self._guard = context.guard
        self._payloads: Payloads | None = None
        self._url = ""
        self._error = ""

    def follow(self, archive: str, large: int) -> None:
        """What the namespace's record says, with each heartbeat."""
        if archive != self._url:
            self._url, self._error, self._payloads = archive, "", None
            try:
                self._payloads = open_payloads(archive, self._namespace, guard=self._guard)
            except UsageError as error:
                self._error = f"{shown_archive(archive)}: {error}"
                _log.error("large payloads can't be stored or read: %s", self._error)
        self.limit = large if self._payloads is not None else 0

    def _current(self) -> Payloads:
        """Asked for with each try: somebody may have said meanwhile where the storage is. Raises `ArchiveError`."""
        if self._payloads is None:
            raise ArchiveError(self._error or f"namespace {self._namespace} has no storage any more: --archive URL")
        return self._payloads

    # --- before a run is loaded or reduced ----------------------------------------------------------------------------

    def record(self, shard: OwnedShard, run_id: str, work: RunWork, record: list[bytes]) -> list[bytes] | Need:
        wanted = _references([*record[1:], *(message.body for message in work.messages)])
        if not wanted or run_id in shard.parked:
            return record
        found = self._found(work, wanted)
        if len(found) < len(wanted):
            return self._to_fetch(wanted)
        _join_messages(work, found)
        return [record[0], *(join(element, found) for element in record[1:])]

    async def joined(self, record: list[bytes]) -> list[bytes]:
        """A record that is read only to be looked at. Raises `ArchiveError`."""
        wanted = _references(record[1:])
        if not wanted or self._payloads is None:
            return record
        found = await self._payloads.fetch(wanted)
        return [record[0], *(join(element, found) for element in record[1:])]

    @property
    def least(self) -> float:
        return self.limit or math.inf

    def inputs(self, shard: OwnedShard, run_id: str, work: RunWork) -> Need | None:
        if run_id in shard.parked:
            return None
        if work.messages and (wanted := _references([message.body for message in work.messages])):
            found = self._found(work, wanted)
            if len(found) < len(wanted):
                return self._to_fetch(wanted)
            _join_messages(work, found)
        if not self.limit:
            return None
        parts: dict[Reference, bytes] = {}
        for message in work.messages:
            if len(message.body) >= self.limit and not is_fork(message.body):  # of that only the parts are large
                parts |= self._cut(message.body, 0 if message.kind == "start" else BODY)[1]
        for input_ in work.inputs:
            if type(input_) is Outcome and input_.result is not None and len(input_.result) >= self.limit:
                parts |= self._cut(bytes(input_.result), 0)[1]
        return self._to_store(parts)

    def _found(self, work: RunWork, wanted: list[Reference]) -> dict[Reference, bytes]:
        """What the run has waited for, and what is in memory anyway."""
        found = {one: work.found[one] for one in wanted if one in work.found}
        missing = [one for one in wanted if one not in found]
        return found | self._payloads.recent(missing) if missing and self._payloads is not None else found

    def _to_fetch(self, wanted: list[Reference]) -> Need:
        async def fetch() -> dict[Any, Any]:
            return dict(await self._current().fetch(wanted))

        return Need(_named(wanted), fetch)

    def _to_store(self, parts: Mapping[Reference, bytes]) -> Need | None:
        if not parts or self._payloads is None or not (unknown := self._payloads.unknown(parts)):
            return None

        async def store() -> dict[Any, Any]:
            await self._current().store({one: parts[one] for one in unknown})
            return {}

        return Need(f"{_named(unknown)} to be stored", store)

    # --- in a commit --------------------------------------------------------------------------------------------------

    def _cut(self, data: bytes, depth: int) -> tuple[bytes, dict[Reference, bytes]]:
        return cut(data, self.limit, week_of(self._clock.now_ms()), depth)

    def cut(self, pieces: Iterable[tuple[bytes, int]], work: RunWork) -> list[bytes]:
        """Encoded values as they are committed, each with the levels of it that stay. Raises `StoreFirst` if something
        has to be stored before."""
        parts: dict[Reference, bytes] = {}
        whole, result = list(pieces), list[bytes]()
        for data, depth in whole:
            small, cut_out = self._cut(data, depth)
            result.append(small)
            parts |= cut_out
        need = self._to_store(parts)
        if need is None:
            return result
        work.decided += 1
        if work.decided > TRIES:
            _log.warning("the code makes other payloads each time it decides: %s stays in the record", need.what)
            return [data for data, _ in whole]
        raise StoreFirst(need)


def _references(values: Iterable[bytes]) -> list[Reference]:
    found: dict[Reference, None] = {}
    for value in values:
        if has_mark(value):
            found.update(dict.fromkeys(references_in(value)))
    return list(found)


def _join_messages(work: RunWork, found: Mapping[Reference, bytes]) -> None:
    for position, message in enumerate(work.messages):
        if has_mark(message.body):
            work.messages[position] = msgspec.structs.replace(message, body=join(message.body, found))


def _named(references: list[Reference]) -> str:
    more = len(references) - 1
    return f"{references[0]}{f' and {more} more' if more else ''}"
