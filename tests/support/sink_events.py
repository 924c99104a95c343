"""Committed events and a subscription in memory, for tests of sinks without a server: what is delivered, and what was
acknowledged, is what the test says."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import Raw

from streamflow import events as ev
from streamflow.client.committed import CommittedEvent
from streamflow.client.subscription import EventBatch

BEGIN_MS = 1_764_496_000_000


def raw(value: Any) -> Raw:
    return Raw(msgspec.msgpack.encode(value))


def made(event: ev.AnyEvent, position: int, *, run: str = "r1", shard: int = 0, tenant: str = "acme") -> CommittedEvent:
    """The event at a position of its shard's log: a second of time for each."""
    ms = BEGIN_MS + position * 1000
    return CommittedEvent(
        id=f"{run}:c{position}:0",
        run_id=run,
        created=BEGIN_MS,
        workflow="order",
        tenant=tenant,
        at=datetime.fromtimestamp(ms / 1000, UTC),
        shard=shard,
        offset=f"{ms}-0",
        number=0,
        kind=type(event).__name__,
        event=event,
    )


def step_done(position: int, result: Any = None, *, run: str = "r1", shard: int = 0) -> CommittedEvent:
    return made(ev.StepCompleted(1, "charge", 1, 12.5, raw(result)), position, run=run, shard=shard)


class FakeBatch(EventBatch):
    """`acknowledged` gets its offset."""

    def __init__(self, events: Sequence[CommittedEvent], acknowledged: list[str] | None = None) -> None:
        async def acknowledge(batch: EventBatch) -> bool:
            if acknowledged is not None:
                acknowledged.append(batch.offset)
            return True

        super().__init__(events[0].shard, events[-1].offset, list(events), None, acknowledge)


class FakeClient:
    """Delivers these batches, and ends. `acknowledged` has the offsets in the order of acknowledgements; `asked` the
    arguments of `events`."""

    def __init__(self, *batches: Sequence[CommittedEvent]) -> None:
        self.acknowledged: list[str] = []
        self.left = [FakeBatch(events, self.acknowledged) for events in batches]
        self.asked: list[dict[str, Any]] = []
        self.trouble = ""
        """What the subscriber says that holds it up."""

    def events(self, **asked: Any) -> Any:
        self.asked.append(asked)
        return self._subscription()

    @asynccontextmanager
    async def _subscription(self) -> AsyncGenerator[FakeClient]:
        yield self

    async def batches(self, *_: Any) -> AsyncGenerator[FakeBatch]:
        for batch in self.left:
            yield batch
