"""The metrics of the whole namespace, read from the server by the thread of the HTTP server, over its own connection.

Owns: what is read, for how long it is used, and how views become metrics. Must not: touch what belongs to the daemon's
event loop, wait long: a server that hangs must not keep a scraper waiting. Called by: `metrics.py`.

Each daemon says the same of the namespace, so a scraper may lose any of them. It is read when somebody asks, and not
again for `KEPT` seconds: a scraper every second, or ten of them, cost as much as one.

    first pipeline     TIME, INFO, members, names of queues, views; of each shard its holder, of each own shard also its
    to each server     inbox and what is due first
    the others         what is in the queues, if there are any; at the daemon that leads, how far groups are behind
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import anyio
import msgspec

from streamflow.daemon.clock import DaemonClock
from streamflow.daemon.group_figures import GroupFigures
from streamflow.errors import StoreError
from streamflow.http import catalog
from streamflow.http.figures import Figures, Names
from streamflow.model.codec import DECODE_ERRORS
from streamflow.store.connection import Call, Store
from streamflow.store.kernel import Kernel
from streamflow.store.keys import NamespaceKeys
from streamflow.store.pauses import paused_queues, paused_workflows, read_pauses
from streamflow.store.queues import QueueFigures, read_queues
from streamflow.store.router import open_store
from streamflow.store.servers import facts_of, fullness, key_of_each, memory_of, send_to_each
from streamflow.text import recordable
from streamflow.views.reading import decode_view
from streamflow.workflow.app import App

T = TypeVar("T")

KEPT = 5.0
"""Seconds for which what was read is used again; after a failure, until the next try."""
GONE = 60.0
"""Seconds after which it is left out: an old value is worse than none."""
PATIENCE = 2.0
"""Seconds for the server to answer."""
LIMIT = 2.5 * PATIENCE
"""Seconds for all, of which one of several servers may need `PATIENCE` twice to say nothing."""
MAX_SHARDS_READ = 1024
"""With more shards than this, what has to be asked of each is left out."""
MAX_QUEUES_READ = 500
"""Clients may make any number of queues: those of the app, and so many of the others, are read."""
MAX_KEY = 300
"""Bytes of a view's key in a label."""
OPEN = ("running", "stuck", "paused")
ENDED = ("completed", "failed", "cancelled")
_GONE_ON = {"failed": "retried", "cancelled": "uncancelled"}
"""Fields of counts: how many of the runs that have ended so go on."""
_VIEWS = ("runs", "run_durations", "step_durations", "quarantine")


class _Counts(msgspec.Struct):
    running: int = 0
    stuck: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    retried: int = 0
    paused: int = 0
    uncancelled: int = 0


class _Runs(msgspec.Struct):
    workflows: dict[str, _Counts] = {}


class _Durations(msgspec.Struct):
    count: int = 0
    failures: int = 0
    retries: int = 0
    sum: float = 0.0
    """Ms."""
    powers: list[int] = []


class _Latest(msgspec.Struct):
    count: int = 0


class _View(msgspec.Struct, Generic[T]):
    """What is used of a merged view, as `views/registry.py` renders it."""

    value: T


_decode_runs = msgspec.json.Decoder(_View[_Runs]).decode
_decode_durations = msgspec.json.Decoder(_View[dict[str, _Durations]]).decode
_decode_latest = msgspec.json.Decoder(_View[_Latest]).decode


class NamespaceFigures:
    """Used in one thread and event loop."""

    def __init__(
        self,
        url: str,
        keys: NamespaceKeys,
        shards: int,
        app: App,
        clock: DaemonClock,
        leads: Callable[[], bool] = lambda: False,
    ) -> None:
        """`leads`: whether this daemon says what each shard has to be asked for, however many daemons there are."""
        self._url = url
        self._leads = leads
        self._keys = keys
        self._shards = shards
        self._kernel = Kernel(keys)
        self._clock = clock
        self._app_queues = app.queues
        self._app_views = frozenset(app.views)
        self._workflows = Names(app.workflows)
        self._steps = Names(app.steps)
        self._queues = Names(app.queues)
        self._groups = GroupFigures(self._kernel, shards, PATIENCE)
        self._no_runs = {name: _Counts() for name in app.workflows}
        self._no_steps = {name: _Durations() for name in app.steps}
        self._store: Store | None = None
        self._tried = self._read = -GONE
        """When the server was asked last, and when it answered last (monotonic s)."""
        self._figures = Figures()

    async def add_figures(self, figures: Figures, own: Iterable[int]) -> None:
        """`own`: the shards that this daemon owns."""
        now = time.monotonic()
        if now - self._tried >= KEPT:
            self._tried = now
            try:
                with anyio.fail_after(LIMIT):
                    self._figures = await self._ask(sorted(own))
                self._read = now
            except (StoreError, TimeoutError):
                pass  # the metric below says it
        figures.set(catalog.READ_SUCCESS, self._read == self._tried)
        if now - self._read < GONE:
            figures.values.update(self._figures.values)
            figures.histograms.update(self._figures.histograms)

    async def close(self) -> None:
        if self._store is not None:
            await self._store.close()

    async def _ask(self, own: Sequence[int]) -> Figures:
        if len(own) > MAX_SHARDS_READ:
            own = ()
        if self._store is None:
            self._store = open_store(self._url, connections=1, patience=PATIENCE)
        keys = self._keys
        shards = range(self._shards if self._shards <= MAX_SHARDS_READ else 0)
        owners = [keys.shard(n).owner for n in range(min(self._shards, MAX_SHARDS_READ))]
        asked = await key_of_each(self._store, owners, PATIENCE)
        of_shard = [keys.shard(n) for n in own]
        calls: list[tuple[str, Call[Any]]] = [
            (keys.members, Call.plain("TIME", near=keys.members)),
            (keys.members, Call.plain("HKEYS", keys.members)),
            (keys.queues, Call.plain("HKEYS", keys.queues)),
            (keys.paused, read_pauses(keys)),
            (keys.view(_VIEWS[0]), Call.plain("MGET", *(keys.view(name) for name in _VIEWS))),
            *((key, Call.plain("INFO", near=key)) for key in asked),
            *((owner := keys.shard(n).owner, Call.plain("HGET", owner, "holder")) for n in shards),
            *((shard.inbox, self._kernel.peek_inbox(n)) for n, shard in zip(own, of_shard, strict=True)),
            *(
                (one.agenda, Call.plain("ZRANGEBYSCORE", one.agenda, 0, "+inf", "WITHSCORES", "LIMIT", 0, 1))
                for one in of_shard
            ),
        ]
        if self._app_views:
            calls.append((keys.app_view_heads, Call.plain("HGETALL", keys.app_view_heads)))
        leads = self._leads() and self._shards <= MAX_SHARDS_READ
        if leads:
            calls.append((keys.groups, Call.plain("HGETALL", keys.groups)))
        clock, members, queues, pauses, views, *rest = await send_to_each(self._store, calls, PATIENCE)
        groups: Any = rest.pop() if leads else {}
        heads: Any = rest.pop() if self._app_views else {}
        if isinstance(clock, StoreError):
            raise clock
        infos, rest = rest[: len(asked)], rest[len(asked) :]
        now = int(clock[0]) * 1000 + int(clock[1]) // 1000
        figures = Figures()
        figures.set(catalog.SHARDS, self._shards)
        _put_memory(figures, [facts for info in infos if (facts := facts_of(info))])
        if not isinstance(members, StoreError):
            figures.set(catalog.DAEMONS, len(members))
            if shards:
                holders = rest[: len(shards)]
                unowned = sum(not isinstance(one, StoreError) and one not in members for one in holders)
                figures.set(catalog.SHARDS_UNOWNED, unowned)
        if not isinstance(views, StoreError):
            self._put_views(figures, views)
        if not isinstance(pauses, StoreError):
            _put_paused(figures, catalog.WORKFLOW_PAUSED, self._workflows, self._no_runs, paused_workflows(pauses))
            _put_paused(figures, catalog.QUEUE_PAUSED, self._queues, self._app_queues, paused_queues(pauses))
        if not isinstance(heads, StoreError):
            put_app_views(figures, self._app_views, heads)
        rest = rest[len(shards) :]
        if own:
            self._put_own(figures, now, rest[: len(own)], rest[len(own) :])
        if not isinstance(queues, StoreError):
            await self._put_queues(figures, now, [name.decode(errors="replace") for name in queues])
        if not isinstance(groups, StoreError):
            await self._groups.put(figures, self._store, groups, now)
        return figures

    def _put_own(self, figures: Figures, now: int, inboxes: Sequence[Any], due: Sequence[Any]) -> None:
        """Of the shards of this daemon. Ids of an inbox are on the server's clock, the agenda is on the daemons'."""
        inboxes = [answer for answer in inboxes if not isinstance(answer, StoreError)]
        figures.set(catalog.INBOX_MESSAGES, sum(count for count, _ in inboxes))
        oldest = min((int(first.partition("-")[0]) for _, first in inboxes if first), default=now)
        figures.set(catalog.INBOX_LAG, max(0.0, (now - oldest) / 1000))
        clock = self._clock.now_ms()
        first = min((_first_due(answer, clock) for answer in due if not isinstance(answer, StoreError)), default=clock)
        figures.set(catalog.AGENDA_LAG, max(0.0, (clock - first) / 1000))

    async def _put_queues(self, figures: Figures, now: int, names: Sequence[str]) -> None:
        assert self._store is not None
        figures.set(catalog.QUEUES, len(names))
        wanted = self._app_queues + sorted(set(names) - set(self._app_queues))[:MAX_QUEUES_READ]
        read: dict[str, QueueFigures] = {
            queue.name: queue for queue in await read_queues(self._store, self._keys, wanted, self._shards, PATIENCE)
        }
        for label, group in self._queues.grouped(read).items():
            figures.set(catalog.QUEUE_WAITING, sum(queue.waiting for queue in group), label)
            figures.set(catalog.QUEUE_RUNNING, sum(queue.running for queue in group), label)
            figures.set(catalog.QUEUE_WORKERS, sum(queue.workers for queue in group), label)
            oldest = min((queue.oldest for queue in group if queue.oldest is not None), default=now)
            figures.set(catalog.QUEUE_OLDEST, max(0.0, (now - oldest) / 1000), label)

    # --- views --------------------------------------------------------------------------------------------------------

    def _put_views(self, figures: Figures, stored: Sequence[bytes | None]) -> None:
        """Workflows and steps of the app begin with 0: what first appears with 1 has not grown for Prometheus."""
        runs = self._no_runs | _value(_decode_runs, stored[0], _Runs()).workflows
        for label, group in self._workflows.grouped(runs).items():
            counts = {status: sum(getattr(one, status) for one in group) for status in (*OPEN, *ENDED)}
            for status in OPEN:
                figures.set(catalog.RUNS_OPEN, max(0, counts[status]), label, status)
            for status in ENDED:
                mended = 0  # a counter never goes back
                if status in _GONE_ON:
                    mended = sum(getattr(one, _GONE_ON[status]) for one in group)
                figures.set(catalog.RUNS_ENDED, counts[status] + mended, label, status)
            figures.set(catalog.RUNS_STARTED, sum(counts.values()), label)
        for label, of_runs in self._workflows.grouped(_value(_decode_durations, stored[1], {})).items():
            _put_durations(figures, catalog.RUN_DURATION, label, of_runs)
        for label, of_steps in self._steps.grouped(self._no_steps | _value(_decode_durations, stored[2], {})).items():
            _put_durations(figures, catalog.STEP_DURATION, label, of_steps)
            figures.set(catalog.STEP_ATTEMPTS, sum(one.count for one in of_steps), label, "completed")
            figures.set(catalog.STEP_ATTEMPTS, sum(one.retries for one in of_steps), label, "retried")
            figures.set(catalog.STEP_ATTEMPTS, sum(one.failures for one in of_steps), label, "failed")
        figures.set(catalog.QUARANTINED, _value(_decode_latest, stored[3], _Latest()).count)


def _put_paused(
    figures: Figures, metric: catalog.Metric, names: Names, of_app: Iterable[str], paused: Collection[str]
) -> None:
    """Those of the app are there all the time: an alert sees when a pause ends."""
    for label, group in names.grouped({name: name in paused for name in (*of_app, *paused)}).items():
        figures.set(metric, sum(group), label)


def _put_durations(figures: Figures, metric: catalog.Metric, label: str, group: Sequence[_Durations]) -> None:
    """One that an older version has merged has no `powers`, nor has one without data."""
    counts = [0] * max((len(one.powers) for one in group), default=0)
    for one in group:
        for digits, count in enumerate(one.powers):
            counts[digits] += count
    if counts:
        figures.set_histogram(metric, counts, sum(one.sum for one in group) / 1000, label)


def _value(decode: Callable[[bytes], _View[T]], data: bytes | None, otherwise: T) -> T:
    """Of a merged view; `otherwise` if it was never merged, or somebody has written something else."""
    if data is None:
        return otherwise
    try:
        return decode(data).value
    except DECODE_ERRORS:
        return otherwise


def _put_memory(figures: Figures, servers: Sequence[Mapping[str, Any]]) -> None:
    """Of the one that is nearest to its limit: a sum would hide it."""
    if not servers:
        return
    used, limit = max(map(memory_of, servers), key=fullness)
    figures.set(catalog.SERVER_MEMORY, used)
    if limit:
        figures.set(catalog.SERVER_MEMORY_LIMIT, limit)


def _first_due(answer: Any, otherwise: int) -> int:
    """The score of the first entry of an agenda, in any form in which redis-py gives it."""
    if not answer:
        return otherwise
    score = answer[0][1] if isinstance(answer[0], (list, tuple)) else answer[1]
    return int(float(score))


def put_app_views(figures: Figures, known: Collection[str], heads: Mapping[bytes, bytes]) -> None:
    """`known`: the views of this app; `heads`: of each view that somebody has counted the largest keys, as stored."""
    for name, data in heads.items():
        view = name.decode(errors="replace")
        if view not in known:
            continue
        try:
            stored = decode_view(data)
        except DECODE_ERRORS:
            continue
        figures.set(catalog.VIEW_EVENTS, stored.events, view)
        for window in stored.windows[:1]:
            for row in window.rows:
                key = ",".join(f"{label}={value}" for label, value in row.key.items())
                figures.set(catalog.VIEW_VALUE, row.value, view, recordable(key, MAX_KEY))
            if window.rest is not None:
                figures.set(catalog.VIEW_VALUE, window.rest.value, view, "")
