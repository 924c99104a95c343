"""What subscribers get: committed events, in batches of one shard, and how a log entry becomes them.

Owns: `CommittedEvent`, its id, filters by workflow and kind, and finding the workflow of what doesn't say it.
Must not: read logs or acknowledge anything. Called by: `subscription.py`, the sandbox.

An event's id says which commit decided it, and which of that commit's events of the run it is. A commit that a server
has lost is made again with the same id, so such an event has it in both deliveries, wherever it is in the log. What was
logged before the namespace had a group doesn't say its commit: its id is that of its place in the log.
"""

from __future__ import annotations

import logging
import typing
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime

import msgspec

from streamflow.client.joining import Logged, join_payloads
from streamflow.client.listing import instant
from streamflow.errors import UsageError
from streamflow.events import AnyEvent, MessageQuarantined
from streamflow.model.codec import DECODE_ERRORS
from streamflow.model.logged import LoggedTransition, Origin, SubscribedTransition, decode_subscribed
from streamflow.model.names import check_name
from streamflow.model.record import decode_header
from streamflow.store.connection import Store
from streamflow.store.kernel import Kernel
from streamflow.suggestions import did_you_mean
from streamflow.workflow.app import Startable

_log = logging.getLogger("streamflow.groups")

KINDS: dict[str, type] = {kind.__name__: kind for kind in typing.get_args(AnyEvent)}
"""The events of `streamflow.events`, by name."""
KNOWN_RUNS = 10_000
"""Runs whose headers are remembered, of events that don't say what they are of."""
NOWHERE = Origin("", 0, 0, "")


class CommittedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event of a run, as it was committed. Of one run they come in the order in which they happened.

    `id` is the same at each delivery, and unique in the namespace. `created` tells the run from others of its id: when
    it was created, ms. `at`: when it happened, by the clock of the run's shard. `offset` is the entry of the shard's
    log, which grows; `number` counts the events in that entry, from 0. `kind` is the name of the class of `event`.
    Workflow, tenant and `created` are empty or 0 where nobody knows them any more: the event is older than the
    namespace's first group, and its run was forgotten.
    """

    id: str
    run_id: str
    created: int
    workflow: str
    tenant: str
    at: datetime
    shard: int
    offset: str
    number: int
    kind: str
    event: AnyEvent


class Part(typing.NamedTuple):
    """One run's part of a log entry. Of a quarantined message the run is empty."""

    field: str
    transition: SubscribedTransition
    first: int
    """How many events the entry has before."""


class Filter:
    """Which events are wanted. `workflows`: by name or themselves; `kinds`: classes of events, or their names."""

    def __init__(self, workflows: Iterable[object] | None = None, kinds: Iterable[object] | None = None) -> None:
        for name, value in (("workflows", workflows), ("kinds", kinds)):
            if isinstance(value, str):
                raise UsageError(f"{name} is a list: write {name}=[{value!r}]")
            if value is not None and not isinstance(value, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise UsageError(f"{name} is a list, got {value!r}")
        self.workflows = None if workflows is None else frozenset(_workflow(one) for one in workflows)
        self.kinds = None if kinds is None else frozenset(_kind(one) for one in kinds)
        if (self.workflows is not None and not self.workflows) or (self.kinds is not None and not self.kinds):
            raise UsageError("workflows=[] or kinds=[] wants no event, and the group would pass all: None is for all")
        self._classes = None if self.kinds is None else frozenset(KINDS[name] for name in self.kinds)

    def wants(self, event: AnyEvent) -> bool:
        """By its kind."""
        return self._classes is None or event.__class__ in self._classes

    def wants_any(self, events: Sequence[AnyEvent]) -> bool:
        return self._classes is None or any(event.__class__ in self._classes for event in events)

    def wants_workflow(self, workflow: str) -> bool:
        return self.workflows is None or workflow in self.workflows


def _workflow(one: object) -> str:
    name = one.name if isinstance(one, Startable) else one
    if not isinstance(name, str):
        raise UsageError(f"workflows: {one!r} is neither a workflow nor the name of one")
    return check_name("workflow", name)


def _kind(one: object) -> str:
    name = one.__name__ if isinstance(one, type) else one
    if not isinstance(name, str) or name not in KINDS:
        raise UsageError(f"kinds: there is no event {name!r}{did_you_mean(str(name), KINDS)}; see streamflow.events")
    return name


def parts_of(entry: str, fields: Mapping[bytes, bytes], shard: int) -> list[Part]:
    """The parts of a log entry, in order. What can't be read, as of a newer version, is an event with the reason."""
    parts: list[Part] = []
    first = 0
    for field, data in fields.items():
        name = field.decode(errors="replace")
        try:
            transition = decode_subscribed(data)
        except DECODE_ERRORS as error:
            _log.error("an event of run %s in log entry %s of shard %d can't be read: %s", name, entry, shard, error)
            event = MessageQuarantined(f"log entry {entry}", f"can't be read: {error}", name, shard)
            transition = SubscribedTransition(int(entry.partition("-")[0]), [event])
        parts.append(Part(name, transition, first))
        first += len(transition.events)
    return parts


Join = Callable[[AnyEvent], Awaitable[AnyEvent]]


class Decoding:
    """Log entries become events. Asks the server only for what older entries don't have. `join`: puts large payloads
    into an event that are in storage."""

    def __init__(self, store: Store, kernel: Kernel, filter_: Filter, join: Join | None = None) -> None:
        self._join = join
        self._store = store
        self._kernel = kernel
        self._filter = filter_
        self._origins: OrderedDict[str, Origin] = OrderedDict()

    async def events(self, shard: int, entry: str, fields: Mapping[bytes, bytes]) -> list[CommittedEvent]:
        """Those of an entry that are wanted, in order, with their payloads. Raises `StoreError`."""
        wanted = self._filter
        parts = [part for part in parts_of(entry, fields, shard) if wanted.wants_any(part.transition.events)]
        if wanted.workflows is not None:
            parts = [part for part in parts if not part.field.startswith("-")]
        if unknown := {part.field for part in parts if part.transition.origin is None and part.field[0] != "-"}:
            await self._learn(shard, unknown - self._origins.keys())
            parts = [part for part in parts if wanted.wants_workflow(self._origin(part).workflow)]
        elif wanted.workflows is not None:
            parts = [part for part in parts if wanted.wants_workflow(self._origin(part).workflow)]
        found: list[CommittedEvent] = []
        for part, events in zip(parts, await self._whole(shard, parts), strict=True):
            if self._join is not None:
                events = [await self._join(event) if wanted.wants(event) else event for event in events]
            found += committed(shard, entry, part, events, self._origin(part), wanted)
        return found

    def _origin(self, part: Part) -> Origin:
        """Without a commit if that isn't known."""
        if part.transition.origin is not None:
            return part.transition.origin
        origin = self._origins.get(part.field, NOWHERE)
        return msgspec.structs.replace(origin, created=part.transition.created or origin.created)

    async def _learn(self, shard: int, run_ids: Collection[str]) -> None:
        """Of runs that still exist, and of those that began in what was read."""
        names = sorted(run_ids)
        if not names:
            return
        for run_id, (line, _) in zip(names, await self._store.one(self._kernel.peek_runs(shard, names)), strict=True):
            origin = NOWHERE
            if line:
                try:
                    header = decode_header(line)
                    origin = Origin("", 0, header.created, header.workflow, header.tenant)
                except DECODE_ERRORS:
                    pass  # somebody has damaged it
            self._origins[run_id] = origin
        while len(self._origins) > max(KNOWN_RUNS, len(names)):
            self._origins.popitem(last=False)

    async def _whole(self, shard: int, parts: Sequence[Part]) -> list[list[AnyEvent]]:
        """The events of each part, with the payloads that the log doesn't have, as far as the records have them."""
        cut = [part for part in parts if part.transition.number]
        if not cut:
            return [part.transition.events for part in parts]
        logged = [Logged(shard, part.field, _logged(part.transition)) for part in cut]
        joined = [transition async for transition in join_payloads(self._store, self._kernel, logged)]
        whole = {part.field: transition.events for part, transition in zip(cut, joined, strict=True)}
        return [whole.get(part.field, part.transition.events) for part in parts]


def _logged(transition: SubscribedTransition) -> LoggedTransition:
    return LoggedTransition(transition.at, transition.events, transition.number, transition.created)


def committed(
    shard: int, entry: str, part: Part, events: Sequence[AnyEvent], origin: Origin, wanted: Filter
) -> Iterable[CommittedEvent]:
    """The events of one part that are wanted."""
    at = instant(part.transition.at)
    run_id = part.field
    place = f"{run_id}:{origin.commit or entry}"
    if run_id.startswith("-"):
        place, run_id = f"quarantine:{shard}{run_id}", ""
    for position, event in enumerate(events):
        if wanted.wants(event):
            yield CommittedEvent(
                id=f"{place}:{position}",
                run_id=run_id or getattr(event, "run_id", ""),
                created=origin.created,
                workflow=origin.workflow,
                tenant=origin.tenant,
                at=at,
                shard=shard,
                offset=entry,
                number=part.first + position,
                kind=event.__class__.__name__,
                event=event,
            )
