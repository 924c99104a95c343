"""Deliveries of completed runs: one workflow goes on where another one has ended, without either knowing the other.

Owns: what of a run's end is delivered. Must not: wait for a run, or read one. Called by: user code (makes sources),
`serving.py`.

It is a group of subscribers (`client/subscription.py`), named after its trigger: the processes that serve the trigger
share the shards, and what one has not acknowledged another one gets.
"""

from __future__ import annotations

from contextlib import aclosing
from datetime import datetime
from typing import Any, Generic, TypeVar

import anyio
import msgspec

from streamflow.client.committed import CommittedEvent
from streamflow.client.groups import From
from streamflow.errors import StoreError, UsageError
from streamflow.events import RunCompleted
from streamflow.model.names import check_name
from streamflow.triggers.pulled import PulledSource
from streamflow.triggers.receiver import Hung, Receiver, received_now
from streamflow.workflow.app import Startable

T = TypeVar("T")

BATCH = 64
MAX_WAIT = 0.05
PAUSE = 1.0
"""Seconds before completions that could not be stored are tried again."""


class Completed(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """What the function of a trigger gets of a run. `at`: when it completed."""

    run_id: str
    workflow: str
    tenant: str
    at: datetime
    result: T


class Completion(PulledSource):
    """Made by `completed`."""

    kind = "completion"

    def __init__(self, workflow: str, from_: From) -> None:
        self.workflow = workflow
        self._from: From = from_

    @property
    def about(self) -> str:
        return f"completed runs of {self.workflow}"

    async def serve(self, receiver: Receiver) -> None:
        group = f"trigger:{receiver.trigger.name}"
        subscription = receiver.client.events(group, workflows=[self.workflow], kinds=[RunCompleted], from_=self._from)
        await subscription.__aenter__()
        receiver.problem = ""
        try:
            async with aclosing(subscription.batches(max_events=BATCH, max_wait=MAX_WAIT)) as batches:
                async for batch in batches:
                    await self._process_all(receiver, list(batch.events))
        finally:
            with anyio.CancelScope(shield=True):  # else the others wait for its shards; it has a limit of its own
                await subscription.close()

    async def _process_all(self, receiver: Receiver, events: list[CommittedEvent]) -> None:
        """Until all are stored: then the batch is acknowledged."""
        while events:
            left: list[CommittedEvent] = []

            async def process(event: CommittedEvent, left: list[CommittedEvent] = left) -> None:
                if not await self._process(receiver, event):
                    left.append(event)

            async with anyio.create_task_group() as tasks:
                for event in events:
                    tasks.start_soon(process, event)
            events = left
            if events:
                await anyio.sleep(PAUSE)

    async def _process(self, receiver: Receiver, event: CommittedEvent) -> bool:
        if not isinstance(event.event, RunCompleted):
            return True
        result, received_id = event.event.result, f"{event.run_id}@{event.created}"
        try:
            try:
                completed: Completed[Any] = Completed(
                    run_id=event.run_id,
                    workflow=event.workflow,
                    tenant=event.tenant,
                    at=event.at,
                    result=msgspec.msgpack.decode(result),
                )
                body = msgspec.json.encode(completed)
            except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:  # as of {None: 1}
                reason = f"the result of run {event.run_id} can't be a JSON payload: {error}"
                await receiver.set_aside(received_now(received_id, bytes(result)), reason)
            else:
                await receiver.receive(received_now(received_id, body))
        except (StoreError, Hung):
            return False
        return True


def completed(workflow: Startable | str, /, *, from_: From = "now") -> Completion:
    """Runs of another workflow that complete. The payload is an `sf.triggers.Completed`, with its result.

    `from_`: where the trigger begins when it is served for the first time: `"now"`, `"oldest"` (whatever the logs still
    have), or an aware time. Later it goes on where it was, also when nothing has served it for a while. Raises
    `UsageError`, `InvalidName`.

    >>> @app.trigger(sf.triggers.completed(order))
    ... def ordered(delivery: sf.triggers.Delivery[sf.triggers.Completed[Receipt]]) -> sf.triggers.Action:
    ...     return sf.triggers.start(ship, delivery.payload.result, id=f"ship-{delivery.payload.run_id}")
    """
    if isinstance(workflow, Startable):
        return Completion(workflow.name, from_)
    if not isinstance(workflow, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"completed takes a workflow, or the name of one, got {workflow!r}")
    return Completion(check_name("workflow", workflow), from_)
