"""The archive of a sandbox, in memory, and which ended runs go there or are deleted, by the virtual clock.

Owns: the archived states of runs, their listing, and when retention is over. Must not: know the world's agenda, wait.
Called by: the world (runs that end, moves of the clock), the sandbox (reads).

What is archived is what a server would have written there: header, state, transitions and published values, as bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush

import msgspec

from streamflow.archive.format import ArchivedRun, Entry, entry_of
from streamflow.client.archived import listing_name
from streamflow.client.listing import Filters, RunPage, RunSummary, failure_in, summarize
from streamflow.client.paging import Cursor, Position, cursor_text
from streamflow.model.record import Header, Status, decode_header, incarnation_of
from streamflow.model.retention import RetentionRules


class Retention:
    """Which ended runs have been kept for long enough."""

    def __init__(self, rules: RetentionRules) -> None:
        self._rules = rules
        self._due: list[tuple[int, str, int]] = []
        """By time (ms): runs with their `created`."""
        self._until: dict[tuple[str, int], int] = {}
        """The time that counts: what was retried or restored has earlier ones, too."""

    def begins(self, run_id: str, header: Header, now: int) -> None:
        """A run has ended, or was restored."""
        seconds = self._rules.seconds(header.workflow, Status(header.status))
        if seconds:
            until = self._until[run_id, header.created] = now + round(seconds * 1000)
            heappush(self._due, (until, run_id, header.created))

    def over(self, now: int) -> list[tuple[str, int]]:
        """Runs by id and `created`, each once. Some may be open again, or deleted."""
        found: list[tuple[str, int]] = []
        while self._due and self._due[0][0] <= now:
            until, run_id, created = heappop(self._due)
            if self._until.get((run_id, created)) == until:
                del self._until[run_id, created]
                found.append((run_id, created))
        return found


class MemoryArchive:
    """As `archive.Archive`, of one sandbox."""

    def __init__(self) -> None:
        self._runs: dict[tuple[str, int], ArchivedRun] = {}
        """By id and `created`, those that were archived last at the end."""

    def add(self, run: ArchivedRun) -> None:
        key = run.run_id, incarnation_of(run.header)
        self._runs.pop(key, None)
        self._runs[key] = run

    def find(self, run_id: str, created: int = 0) -> ArchivedRun | None:
        """Without `created` the last one that had the id."""
        found = [key for key in self._runs if key[0] == run_id and created in (0, key[1])]
        return self._runs[max(found)] if found else None

    def remove(self, run_id: str, created: int = 0) -> int:
        found = [key for key in self._runs if key[0] == run_id and created in (0, key[1])]
        for key in found:
            del self._runs[key]
        return len(found)

    def listed(self, here: Sequence[tuple[str, int]]) -> list[RunSummary]:
        """Those that were archived last first. `here`: runs of the server, which are left out."""
        left_out = set(here)
        return [_summary(entry_of(run)) for key, run in reversed(self._runs.items()) if key not in left_out]


def page(runs: Sequence[RunSummary], filters: Filters, limit: int, after: Position | None) -> RunPage:
    """Of a listing, behind a place in it."""
    begin = 0 if after is None else round(after.score)
    found: list[RunSummary] = []
    for number, run in enumerate(runs[begin:], begin + 1):
        if filters.match(run) and filters.match_error(run):
            found.append(run)
        if len(found) == limit and number < len(runs):
            cursor = Cursor(Position(number, ""), filters.since, filters.until)
            return RunPage(found, cursor_text(cursor, listing_name(filters)), number - begin)
    return RunPage(found, "", max(0, len(runs) - begin))


def _summary(entry: Entry) -> RunSummary:
    failure = failure_in(entry.last) if entry.last else None
    return msgspec.structs.replace(summarize(entry.run_id, decode_header(entry.header), failure=failure), archived=True)
