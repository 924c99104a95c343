"""Reading runs: listings over all shards, histories, and following a run's events.

Owns: the cost of a listing (one pipeline for the indexes, one for the headers), and joining a history with the log.
Must not: change anything. Called by: client.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import re
from collections.abc import AsyncGenerator, Collection, Iterator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

import msgspec

from streamflow import events
from streamflow.client.hibernating import HibernatingRun, HibernatingRuns
from streamflow.client.joining import Logged, join_payloads
from streamflow.client.paging import Cursor, Position, cursor_text
from streamflow.client.pipelines import Batcher, settled
from streamflow.client.served import unserved_ms
from streamflow.client.waiting import check_found
from streamflow.client.waits import RunOwner, WaitReader
from streamflow.errors import Failure, StoreError, StoreUnavailable
from streamflow.events import (
    ENDINGS,
    AnyEvent,
    RecordedTransition,
    RunCompleted,
    RunPaused,
    RunStuck,
    Transition,
    decode_history,
    decode_recorded,
    decode_transition,
    is_fork,
    last_stopped,
    unfolded,
)
from streamflow.model import codec
from streamflow.model.attributes import FORKED_FROM, Attribute, same, value_text
from streamflow.model.causes import Cause, FailedAttempt, attempts_before, cause_of, root_of
from streamflow.model.logged import decode_logged
from streamflow.model.record import LISTED, STOPPED, Header, Status, decode_header
from streamflow.model.sharding import Partition
from streamflow.model.sleeping import is_asleep
from streamflow.model.start_word import start_word
from streamflow.model.trace_context import trace_id_of
from streamflow.model.waits import Wait
from streamflow.store.connection import Call, Store
from streamflow.store.kernel import Kernel, listed_under
from streamflow.store.keys import NamespaceKeys
from streamflow.store.namespace import Namespace
from streamflow.store.queues import clock_of

T = TypeVar("T")

_log = logging.getLogger("streamflow.client")

MAX_SCANNED = 20_000
"""Entries of each index that a filtered listing reads before it stops searching for more."""

MAX_REASONS = 1_000
"""Stuck runs, the newest, whose reasons are read to search them: each is in a history."""

MAX_FOUND = 6
"""Ids that a search for the beginning of an id returns."""
MAX_WAITS = 100
"""Open runs of a listing, the newest, of which it is read what they wait for: it is in their records."""

LARGEST_READ = 256 * 1024
"""Bytes of a failed run's last transition up to which a listing decodes it, for its error."""

PAGE = 200
"""Where all runs are wanted: as many of a listing are scanned, and read, together..."""
SHARDS_AT_ONCE = 16
LISTINGS_AT_ONCE = 64
"""...of so many shards and listings."""

FOLLOW_BLOCK_MS = 2_000
STUCK_PAGE = 100
"""Transitions that are read at once, from the newest, until one says why the run is stuck. For the attempts of a step
only so many are read."""


class RunSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One run in a listing. Times are aware, in UTC; `parent` is the id of the run that started it as its child;
    `reason` says why a stuck run can't continue, or who has paused it, and why; `trace_id` (32 hex digits) is empty for
    a run that isn't traced.

    Of a run that has failed, or is stuck for a bug, `cause` is the innermost error, through children and steps, and
    `error` the same in a line, as `ConnectTimeout: api:443`; empty and None otherwise, and in a listing if its last
    transition is larger than 256 KB.

    `begins`: when a run begins, or has begun, whose start was delayed; None for others. `archived`: it is in the
    namespace's archive, and not on the server. `hibernating`: since when an open run has been moved out of the server's
    memory; None if it is there.

    `waits_for`: what an open run waits for, the most telling first; in a listing only if it was asked for.
    `waits_more`: its history is larger than what was read of it, so what it began long ago may be missing.
    """

    id: str
    status: Status
    workflow: str
    tenant: str
    created: datetime
    ended: datetime | None
    parent: str | None
    attributes: dict[str, Attribute] = {}
    reason: str = ""
    trace_id: str = ""
    error: str = ""
    cause: Cause | None = None
    waits_for: list[Wait] = []
    waits_more: bool = False
    begins: datetime | None = None
    archived: bool = False
    hibernating: datetime | None = None

    @property
    def forked_from(self) -> str | None:
        """Id of the run of which this one is a fork."""
        of = self.attributes.get(FORKED_FROM)
        return of if isinstance(of, str) else None


class RunDescription(RunSummary, frozen=True, kw_only=True):
    """All that is known about a run without its history.

    `version`: number of its transitions. `result` is the decoded result of a completed run (plain values, not the
    workflow's declared type); `failure` why it failed, or what the bug is for which it is stuck; `reason` why it was
    cancelled, is stuck, or is paused.

    `traceback`: the frames of the user's code of the `cause`, which are those of the step if one raised it, wherever it
    ran. `attempts`: the failed attempts of that step before its last one, oldest first, as far as they are within the
    last hundred transitions of its run.

    `owner`: of an open run, which daemon has it; None if it wasn't asked for. `untaken`: of an ended run, the signals
    that had come and that its code never took: how many of each name, of at most ten names; without those that came
    while it was stuck and was forced to end.
    """

    version: int
    result: Any = None
    failure: Failure | None = None
    traceback: str = ""
    attempts: list[FailedAttempt] = []
    owner: RunOwner | None = None
    untaken: dict[str, int] = {}


class RunPage(list[RunSummary]):
    """The runs of one page. `after` is for the next page, empty if there are no more runs. `looked_at`: of how many
    runs the filters were asked."""

    def __init__(self, runs: list[RunSummary], after: str = "", looked_at: int = 0) -> None:
        super().__init__(runs)
        self.after = after
        self.looked_at = looked_at


def summary_of_hibernating(run: HibernatingRun, workflow: str) -> RunSummary:
    """With what the server has of it."""
    return RunSummary(
        id=run.id, status=Status.RUNNING, workflow=workflow, tenant="", created=run.created, ended=None, parent=None
    )


_CHILD = re.compile(r"(?:\.[0-9]+)+~[a-z2-7]{13}$")
"""What an id has behind that of the run whose child, or child's child, it is (`sharding.child_run_id`)."""


class FoundRuns(NamedTuple):
    """Runs whose ids begin with a text. `ids`: the newest first, at most 6; a run whose whole id it is stands alone,
    and a run stands for its children, whose ids begin with its own.

    `looked_at` of `total` ids were compared: if that isn't all, there may be others.
    """

    ids: list[str]
    looked_at: int
    total: int

    @property
    def is_certain(self) -> bool:
        """Whether there are no others."""
        return self.looked_at >= self.total


class Filters(msgspec.Struct, frozen=True):
    """Which runs a listing has: those that match all filters that are not None or empty. `error`: a part of the error
    of failed runs, or of the reason of stuck ones, in whichever case. `since`, `until`: created at or after, and
    before, ms. `roots`: only runs that aren't children."""

    status: Status | None = None
    workflow: str | None = None
    tenant: str | None = None
    attributes: dict[str, Attribute] = {}
    error: str = ""
    since: int | None = None
    until: int | None = None
    roots: bool = False

    @property
    def is_by_start(self) -> bool:
        """Whether the listings that are read for it are in the order of the starts."""
        return self.tenant is not None or bool(self.attributes) or self.status in (Status.PENDING, Status.RUNNING)

    @property
    def name(self) -> str:
        """Another one for each listing, but for its times."""
        attributes = sorted((name, value_text(value)) for name, value in self.attributes.items())
        given = (self.since is not None, self.until is not None)
        status = "" if self.status is None else self.status.value
        return repr((status, self.workflow, self.tenant, attributes, self.error, given, self.roots, self.is_by_start))

    def match(self, summary: RunSummary) -> bool:
        """Also those of which only the error doesn't match: see `match_error`."""
        return (
            (self.status is None or summary.status == self.status)
            and (self.workflow is None or summary.workflow == self.workflow)
            and (self.tenant is None or summary.tenant == self.tenant)
            and (self.since is None or summary.created.timestamp() * 1000 >= self.since - 0.5)
            and (self.until is None or summary.created.timestamp() * 1000 < self.until - 0.5)
            and not (self.roots and summary.parent)
            and all(same(summary.attributes.get(name), value) for name, value in self.attributes.items())
        )

    def match_error(self, summary: RunSummary) -> bool:
        """Of a stuck run its reason must be known."""
        return self.error.casefold() in f"{summary.error}\n{summary.reason}".casefold()


class MessageInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """A signal, a question or a published value that a workflow declares: the name of its type and that type's JSON
    Schema (empty if it has none), and the name of the type of a question's answer."""

    type: str = "Any"
    schema: dict[str, Any] = msgspec.field(default_factory=dict[str, Any])
    answer: str = ""


class WorkflowInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """What daemons have registered under a workflow's name. `kind` is workflow or reducer; `doc` its first line.

    `params`: names of the parameters; `required`: how many of them have no default, None when the daemon didn't say;
    `steps`: names of the app's steps; `inputs`: a JSON Schema for each parameter, empty if its type has none.
    `signals`, `questions`, `published`: what it declares, by name; None if it doesn't declare them.
    """

    kind: str = "workflow"
    params: list[str] = msgspec.field(default_factory=list[str])
    doc: str = ""
    steps: list[str] = msgspec.field(default_factory=list[str])
    required: int | None = None
    inputs: list[dict[str, Any]] = msgspec.field(default_factory=list[dict[str, Any]])
    signals: dict[str, MessageInfo] | None = None
    questions: dict[str, MessageInfo] | None = None
    published: dict[str, MessageInfo] | None = None
    unserved_ms: int = 0
    """Milliseconds for which no daemon has had it although others run; 0 if one has."""


def describe(
    run_id: str, header_line: bytes, last: bytes, stopped: RunStuck | RunPaused | None = None
) -> RunDescription:
    """The description from the header and, if the run has ended, its last transition (else empty); without attempts.
    `stopped`: why it is stuck or paused, if it is."""
    header = decode_header(header_line)
    result: Any = None
    untaken: dict[str, int] = {}
    failure, reason = _why_stopped(stopped)
    if last:
        transition = decode_recorded(last)
        untaken = transition.unrecorded.untaken if transition.unrecorded is not None else {}
        match ending_of(transition):
            case RunCompleted(result=raw):
                result = codec.decode(raw, Any, f"result of run {run_id}")
            case events.RunFailed(failure=why):
                failure = why
            case events.RunCancelled(reason=why):
                reason = why
            case _:
                pass
    facts = msgspec.structs.asdict(summarize(run_id, header, reason, failure))
    traceback = "" if failure is None else root_of(failure).traceback
    return RunDescription(
        **facts, version=header.version, result=result, failure=failure, traceback=traceback, untaken=untaken
    )


def ending_of(
    transition: Transition | RecordedTransition,
) -> RunCompleted | events.RunFailed | events.RunCancelled | None:
    """The event that ended the run, if this transition did."""
    return next((event for event in reversed(transition.events) if isinstance(event, ENDINGS)), None)


def instant(ms: int) -> datetime:
    """The aware time in UTC of a time stamp in ms."""
    return datetime.fromtimestamp(ms / 1000, UTC)


def failure_in(last: bytes) -> Failure | None:
    """The failure of a failed run, from its last transition; None if that is large or can't be decoded here: the run is
    listed all the same."""
    if len(last) > LARGEST_READ:
        return None
    try:
        ending = ending_of(decode_transition(last))
    except codec.DECODE_ERRORS:
        return None
    return ending.failure if isinstance(ending, events.RunFailed) else None


def with_reason(run: RunSummary, stopped: RunStuck | RunPaused | None) -> RunSummary:
    """The entry of a stuck or paused run with why it is: of a bug also the error and its cause, as of a failed run."""
    failure, reason = _why_stopped(stopped)
    if failure is None:
        return msgspec.structs.replace(run, reason=reason)
    cause = cause_of(run.id, run.workflow, failure)
    return msgspec.structs.replace(run, reason=reason, error=str(cause), cause=cause)


def _why_stopped(stopped: RunStuck | RunPaused | None) -> tuple[Failure | None, str]:
    if stopped is None:
        return None, ""
    return (None, stopped.says()) if isinstance(stopped, RunPaused) else (stopped.failure, stopped.reason)


def summarize(run_id: str, header: Header, reason: str = "", failure: Failure | None = None) -> RunSummary:
    """The entry of a listing from the run's header, and of one that has failed, or has a bug, its failure."""
    cause = None if failure is None else cause_of(run_id, header.workflow, failure)
    return RunSummary(
        id=run_id,
        status=Status(header.status),
        workflow=header.workflow,
        tenant=header.tenant,
        created=instant(header.created),
        ended=instant(header.ended) if header.ended else None,
        parent=header.parent.rpartition("#")[0] or None,
        attributes=header.attributes,
        reason=reason,
        trace_id=trace_id_of(header.trace),
        error="" if cause is None else str(cause),
        cause=cause,
        begins=instant(begins) if (begins := start_word(header.start).begins) else None,
    )


class Listings:
    """Reads of one namespace."""

    def __init__(self, store: Store, keys: NamespaceKeys, batcher: Batcher, hibernating: HibernatingRuns) -> None:
        self._store = store
        self._keys = keys
        self._batcher = batcher
        self._hibernating = hibernating
        self._kernel = Kernel(keys)
        self.waits = WaitReader(keys, batcher)

    async def served(self) -> dict[str, WorkflowInfo]:
        """As `workflows`, with what no daemon has any more marked so."""
        seen: dict[bytes, bytes] = await self._batcher.call(Call.plain("HGETALL", self._keys.served))
        time = clock_of(await self._batcher.call(Call.plain("TIME", near=self._keys.served)))
        infos = await self.workflows()
        for name, ms in unserved_ms(seen, time).items():
            if name in infos:
                infos[name] = msgspec.structs.replace(infos[name], unserved_ms=ms)
        return infos

    async def workflows(self) -> dict[str, WorkflowInfo]:
        found: dict[bytes, bytes] = await self._batcher.call(Call.plain("HGETALL", self._keys.workflows))
        infos: dict[str, WorkflowInfo] = {}
        for name, info in sorted(found.items()):
            try:
                infos[name.decode()] = msgspec.json.decode(info, type=WorkflowInfo)
            except codec.DECODE_ERRORS:
                infos[name.decode(errors="replace")] = WorkflowInfo()  # written by a newer version: the name is known
        return infos

    async def _names(self) -> list[str]:
        """Of the workflows that are registered: not what is registered under them, which may be large."""
        names: list[bytes] = await self._batcher.call(Call.plain("HKEYS", self._keys.workflows))
        return [name.decode(errors="replace") for name in names]

    async def runs(
        self,
        namespace: Namespace,
        filters: Filters,
        limit: int,
        after: Position | None = None,
        waits: bool = False,
    ) -> RunPage:
        """The newest runs that match, behind `after`. Reads the newest `limit` of each index, more only if a filter
        dropped some. `waits`: also what the open ones wait for, of the first `MAX_WAITS` of them."""
        page = await self._page(namespace, filters, limit, after)
        return RunPage(await self._with_waits(namespace, page), page.after, page.looked_at) if waits else page

    async def _with_waits(self, namespace: Namespace, found: list[RunSummary]) -> list[RunSummary]:
        open_runs = [run.id for run in found if run.ended is None][:MAX_WAITS]
        answers = await self.waits.of_each([(namespace.shard_of(run_id), run_id) for run_id in open_runs])
        known = dict(zip(open_runs, answers, strict=True))
        return [
            msgspec.structs.replace(run, waits_for=known[run.id][0], waits_more=known[run.id][1])
            if run.id in known
            else run
            for run in found
        ]

    async def _page(self, namespace: Namespace, filters: Filters, limit: int, after: Position | None) -> RunPage:
        indexes = await self._indexes(_shards_of(namespace, filters), filters)
        depth = limit + 2  # the one behind the page, and the one that `after` names
        while True:
            candidates, more = await self._newest(indexes, depth, filters, after)
            found = await self._matching(namespace, [run_id for _, run_id in candidates], filters)
            if len(found) >= limit or not more or depth >= MAX_SCANNED:
                break
            depth = min(depth * 8, MAX_SCANNED)
        page = found[:limit]
        if not filters.error:
            page = await self._with_reasons(namespace, page)
        looked_at = len(candidates)
        if len(found) >= limit:
            looked_at = [run_id for _, run_id in candidates].index(page[-1].id) + 1
        end = candidates[looked_at - 1] if looked_at and (more or looked_at < len(candidates)) else None
        cursor = "" if end is None else cursor_text(Cursor(end, filters.since, filters.until), filters.name)
        return RunPage(page, cursor, looked_at)

    async def find(self, namespace: Namespace, text: str) -> FoundRuns:
        """The run whose id is `text`; if there is none, the runs whose ids begin with it, among the newest ids of each
        listing, `MAX_SCANNED` in all: one pipeline for the lengths of the listings, one for the ids."""
        [exact] = await settled([self._batcher.peek(namespace.shard_of(text), text)])
        if isinstance(exact, StoreUnavailable):
            raise exact
        if isinstance(exact, StoreError) or exact[0]:  # a damaged record is one, too
            return FoundRuns([text], 1, 1)
        one_shard = namespace.partition is not Partition.RUN and "/" in text
        shards = [namespace.shard_of(text)] if one_shard else list(range(namespace.shards))
        indexes = await self._indexes(shards, Filters())
        lengths = await self._lengths(indexes)
        depth = _depth(lengths, MAX_SCANNED)
        read = [(index, min(length, depth)) for index, length in zip(indexes, lengths, strict=True) if length]
        answers = await settled([self._batcher.call(_newest_call(index, depth)) for index, depth in read if depth])
        scored = {
            run_id: at
            for answer in answers
            for at, run_id in _unless_damaged(answer, "a listing of runs") or []
            if run_id.startswith(text)
        }
        # Ids of children begin with that of their parent: without this, no parent could be found by a part of its id.
        found = [run_id for run_id in scored if not any(parent in scored for parent in _ancestors(run_id))]
        newest = sorted(found, key=lambda run_id: (scored[run_id], run_id), reverse=True)
        return FoundRuns(newest[:MAX_FOUND], sum(depth for _, depth in read), sum(lengths))

    async def every(
        self, namespace: Namespace, filters: Filters, within: Collection[Status]
    ) -> AsyncGenerator[list[RunSummary]]:
        """All runs that match and have one of these statuses, each once, some at a time and in no order. Whichever
        match from the beginning to the end are among them."""
        shards = _shards_of(namespace, filters)
        for first in range(0, len(shards), SHARDS_AT_ONCE):
            indexes = await self._indexes(shards[first : first + SHARDS_AT_ONCE], filters, within)
            cursors = dict.fromkeys(indexes, 0)
            seen: set[int] = set()  # a scan may give a run twice, and it may move from one listing to another
            while cursors:
                candidates: list[str] = []
                some = list(itertools.islice(cursors.items(), LISTINGS_AT_ONCE))
                scans = [self._batcher.call(_scan_call(index, cursor)) for index, cursor in some]
                for (index, _), answer in zip(some, await settled(scans), strict=True):
                    cursor, members = _unless_damaged(answer, f"listing {index}") or (0, [])
                    candidates += [member.decode(errors="replace") for member, _ in members]
                    if cursor:
                        cursors[index] = cursor
                    else:
                        del cursors[index]
                for page in _pages(candidates):
                    new = [run_id for run_id in page if hash(run_id) not in seen]
                    found = await self._matching(namespace, list(dict.fromkeys(new)), filters)
                    found = [run for run in found if run.status in within]
                    seen.update(hash(run.id) for run in found)
                    if found:
                        yield found

    async def _indexes(self, shards: Sequence[int], filters: Filters, within: Collection[Status] = LISTED) -> list[str]:
        """Listings that have all runs that match, and few others. `within`: only of runs with these statuses."""
        keys = [self._keys.shard(shard) for shard in shards]
        if filters.attributes:
            listings = [
                [shard_keys.attribute(name, value_text(value)) for shard_keys in keys]
                for name, value in filters.attributes.items()
            ]
            return listings[0] if len(listings) == 1 else await self._shortest(listings)
        if filters.tenant is not None:
            return [shard_keys.tenant(filters.tenant) for shard_keys in keys]
        names = [filters.workflow] if filters.workflow is not None else await self._names()
        wanted = within if filters.status is None else (filters.status,)
        statuses = [status for status in LISTED if status in {listed_under(status) for status in wanted}]
        if filters.error:  # no others have one
            statuses = [status for status in statuses if status in (Status.FAILED, Status.STUCK)]
        return [shard_keys.index(listed, name) for shard_keys in keys for listed in statuses for name in names]

    async def _shortest(self, listings: list[list[str]]) -> list[str]:
        """Of several attributes the listing of the one that fewest runs have; those runs are checked for the others."""
        lengths = iter(await self._lengths([index for indexes in listings for index in indexes]))
        totals = [sum(itertools.islice(lengths, len(indexes))) for indexes in listings]
        return listings[totals.index(min(totals))]

    async def _lengths(self, indexes: Sequence[str]) -> list[int]:
        calls = [self._batcher.call(Call.plain("ZCARD", index)) for index in indexes]
        return [_unless_damaged(answer, "a listing of runs") or 0 for answer in await settled(calls)]

    async def _newest(
        self, indexes: Sequence[str], depth: int, filters: Filters, after: Position | None
    ) -> tuple[list[Position], bool]:
        """The `depth` newest runs over all indexes behind `after`, newest first, and whether there are more."""
        highest = None if after is None else after.score
        if filters.until is not None and filters.is_by_start:
            highest = min(filters.until, math.inf if highest is None else highest)
        calls = [
            self._batcher.call(
                _newest_call(index, depth)
                if highest is None and filters.since is None
                else _between_call(index, depth, highest, filters.since)
            )
            for index in indexes
        ]
        lists = [
            _unless_damaged(answer, f"listing {index}") or []
            for index, answer in zip(indexes, await settled(calls), strict=True)
        ]
        # Behind the last entry of a listing that has more, its next ones are missing: nothing there is looked at.
        ends = [found[-1] for found in lists if len(found) >= depth]
        horizon = max(ends, default=(-math.inf, ""))
        newest: dict[str, Position] = {}
        for pair in sorted((pair for pairs in lists for pair in pairs), reverse=True):
            if pair < horizon or len(newest) > depth:
                break
            if after is None or pair < after:
                newest.setdefault(pair[1], Position(*pair))
        return list(newest.values())[:depth], bool(ends) or len(newest) > depth

    async def _matching(self, namespace: Namespace, run_ids: Sequence[str], filters: Filters) -> list[RunSummary]:
        peeks = [self._batcher.peek(namespace.shard_of(run_id), run_id) for run_id in run_ids]
        found: list[RunSummary] = []
        for run_id, answer in zip(run_ids, await settled(peeks), strict=True):
            line, last = _unless_damaged(answer, f"run {run_id}") or (b"", b"")
            if not line:  # it was forgotten in the meantime
                continue
            try:
                header = decode_header(line)
                failure = failure_in(last) if header.status == Status.FAILED else None
                summary = summarize(run_id, header, failure=failure)
            except codec.DECODE_ERRORS as error:
                _log_damaged(f"run {run_id}", error)
                continue
            if filters.match(summary):
                found.append(summary)
        if filters.error:
            unread = {run.id for run in [run for run in found if run.status in STOPPED][MAX_REASONS:]}
            found = await self._with_reasons(namespace, [run for run in found if run.id not in unread])
            found = [run for run in found if filters.match_error(run)]
        return found

    async def _with_reasons(self, namespace: Namespace, found: list[RunSummary]) -> list[RunSummary]:
        """The same, with the reasons of those that are stuck or paused."""
        stopped = [run.id for run in found if run.status in STOPPED]
        reasons = await asyncio.gather(*(self.stopped_event(namespace.shard_of(run_id), run_id) for run_id in stopped))
        known = dict(zip(stopped, reasons, strict=True))
        return [with_reason(run, known.get(run.id)) for run in found]

    async def stopped_event(self, shard: int, run_id: str) -> RunStuck | RunPaused | None:
        """Why a run is stuck or paused: what was recorded last about it. None if it is so no more."""
        last = -1
        while True:
            # Two more, which are dropped: before the first transition these are the header and the state.
            read = Call.plain("LRANGE", self._keys.shard(shard).run(run_id), last - STUCK_PAGE - 1, last)
            elements: list[bytes] = await self._batcher.call(read)
            try:
                found = last_stopped(decode_history(elements[2:]))
            except codec.DECODE_ERRORS as error:
                return RunStuck("", "", f"unknown: the history of this run can't be decoded: {error}")
            if found is not None or len(elements) < STUCK_PAGE + 2:
                return found and found[0]
            last -= STUCK_PAGE

    async def attempts_before(self, shard: int, cause: Cause) -> list[FailedAttempt]:
        """The failed attempts of the cause's step before its last one, from the end of its run's history. Empty if that
        is gone."""
        read = Call.plain("LRANGE", self._keys.shard(shard).run(cause.run_id), -STUCK_PAGE - 2, -1)
        try:
            return attempts_before(decode_history((await self._batcher.call(read))[2:]), cause)
        except StoreUnavailable:
            raise
        except (StoreError, *codec.DECODE_ERRORS) as error:  # the child's record; that of the run itself is readable
            _log_damaged(f"run {cause.run_id}", error)
            return []

    async def history(self, shard: int, run_id: str, created: int) -> list[Transition]:
        while True:
            peek = self._batcher.peek(shard, run_id)
            elements = self._batcher.call(Call.plain("LRANGE", self._keys.shard(shard).run(run_id), 2, -1))
            answers = await settled([peek, elements])
            line = _checked(answers[0])[0]
            check_found(line, run_id, created)
            if _checked(answers[1]) or not is_asleep(line):
                return decode_history(_checked(answers[1]))
            if (parked := await self._hibernating.find(shard, run_id, created)) is not None:
                return decode_history(parked.transitions)

    async def events(
        self, shard: int, run_id: str, created: int, follow: bool
    ) -> AsyncGenerator[tuple[datetime, AnyEvent], None]:
        """The history's events; with `follow` then those of the log, until the run has ended. Large payloads, which the
        log doesn't have, are read from the record.

        The log may be trimmed faster than we read. The header has the number of transitions, so those that the log no
        longer has are read from the run's record (a reducer's record has only its newest ones).
        """
        log = self._keys.shard(shard).log
        field = run_id.encode()
        header, transitions, position = await self._recorded(shard, run_id, created)
        created, known = header.created, header.version
        logged = _as_logged(shard, run_id, transitions)
        while True:
            has_ended = not header.is_open
            async with aclosing(join_payloads(self._store, self._kernel, logged)) as joined:
                async for transition in joined:
                    for one in unfolded([transition]) if is_fork(transition.events) else (transition,):
                        for event in one.events:
                            yield instant(one.at), event
                    has_ended = ending_of(transition) is not None  # of the last one: an end may have been retried
            if not follow or has_ended:
                return
            entries = (await self._store.read_logs({log: position}, FOLLOW_BLOCK_MS)).get(log, [])
            if entries:
                position = entries[-1][0]
                logged = _as_logged(shard, run_id, [fields[field] for _, fields in entries if field in fields])
            else:
                header, transitions, position = await self._recorded(shard, run_id, created)
                missed = header.version - known
                logged = _as_logged(shard, run_id, transitions[-missed:] if missed > 0 else [])
            known += len(logged)

    async def _recorded(self, shard: int, run_id: str, created: int) -> tuple[Header, list[bytes], str]:
        """Header, transitions, and the log entry up to which they reach.

        The reads of one pipeline are consistent if the end of the log was the same before and after.
        """
        keys = self._keys.shard(shard)
        run = keys.run(run_id)
        log_end: Call[str] = Call.plain("XREVRANGE", keys.log, "+", "-", "COUNT", 1, parse=_entry_id)
        reads = [log_end, Call.plain("LINDEX", run, 0), Call.plain("LRANGE", run, 2, -1), log_end]
        while True:
            before, line, transitions, after = [_checked(answer) for answer in await self._store.send(reads)]
            if line is None and (parked := await self._hibernating.find(shard, run_id, created)) is not None:
                return decode_header(parked.header), parked.transitions, before
            if line is None and is_asleep((await self._batcher.peek(shard, run_id))[0]):
                continue  # it is just moving
            found: bytes = line or b""
            check_found(found, run_id, created)
            if before == after:
                return decode_header(found), transitions, before


def _as_logged(shard: int, run_id: str, transitions: Sequence[bytes]) -> list[Logged]:
    return [Logged(shard, run_id, decode_logged(data)) for data in transitions]


def _shards_of(namespace: Namespace, filters: Filters) -> list[int]:
    """The shards that can have matching runs: only one, if the namespace is partitioned by a given filter."""
    if namespace.partition is Partition.TENANT and filters.tenant is not None:
        return [namespace.shard_of(f"{filters.tenant}/")]
    if namespace.partition is Partition.WORKFLOW and filters.workflow is not None:
        return [namespace.shard_of(f"{filters.workflow}/")]
    return list(range(namespace.shards))


def _ancestors(run_id: str) -> list[str]:
    """The ids with which this one begins because they are of its parent, or its parent's parent."""
    match = _CHILD.search(run_id)
    return [] if match is None else [run_id[:at] for at in range(match.start(), match.end()) if run_id[at] == "."]


def _depth(lengths: Sequence[int], limit: int) -> int:
    """How many entries of each listing can be read if it must not be more than `limit` of all of them together."""
    depth, left = 0, limit
    ascending = sorted(lengths)
    for position, length in enumerate(ascending):
        listings = len(ascending) - position
        if (length - depth) * listings > left:
            return depth + left // listings
        left -= (length - depth) * listings
        depth = length
    return depth


def _pages(run_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (run_ids[first : first + PAGE] for first in range(0, len(run_ids), PAGE))


def _scan_call(index: str, cursor: int) -> Call[tuple[int, list[tuple[bytes, float]]]]:
    return Call.plain("ZSCAN", index, cursor, "COUNT", PAGE)


def _newest_call(index: str, depth: int) -> Call[list[tuple[float, str]]]:
    return Call.plain("ZREVRANGE", index, 0, depth - 1, "WITHSCORES", parse=_scored)


def _between_call(index: str, depth: int, highest: float | None, lowest: int | None) -> Call[list[tuple[float, str]]]:
    """No run is created after it has changed: none that is below `lowest` was created later."""
    ends = ("+inf" if highest is None else highest, "-inf" if lowest is None else lowest)
    return Call.plain("ZREVRANGEBYSCORE", index, *ends, "WITHSCORES", "LIMIT", 0, depth, parse=_scored)


def _scored(reply: list[bytes]) -> list[tuple[float, str]]:
    return [
        (float(score), member.decode(errors="replace")) for member, score in zip(reply[::2], reply[1::2], strict=True)
    ]


def _entry_id(reply: list[tuple[bytes, Any]]) -> str:
    return reply[0][0].decode() if reply else "0-0"


def _unless_damaged(answer: T | StoreError, what: str) -> T | None:
    """None if the key is of another type, because somebody has overwritten it: that harms no other run of a listing."""
    if not isinstance(answer, StoreError):
        return answer
    if "WRONGTYPE" not in str(answer):
        raise answer
    _log_damaged(what, answer)
    return None


def _log_damaged(what: str, error: Exception) -> None:
    _log.warning("%s is damaged on the server and left out of the list: %s", what, error)


def _checked(answer: T | StoreError) -> T:
    if isinstance(answer, StoreError):
        raise answer
    return answer
