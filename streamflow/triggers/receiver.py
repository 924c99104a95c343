"""One delivery from its arrival to what it is for: decoded, mapped, done; or quarantined with its reason.

Owns: the order of these, the limits of the functions of triggers, what an error means for the delivery. Must not:
receive or acknowledge (the sources do, after `receive` has returned). Called by: the sources, the HTTP application, the
command `trigger quarantine redrive`.

The function of a trigger is code of users. It runs in a thread, so that one that blocks or loops holds up its own
trigger only: it has ten seconds, and while four of them hang, the trigger takes no more.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any, NamedTuple

import anyio
import anyio.to_thread
import msgspec

from streamflow.client.client import Client
from streamflow.errors import PayloadInvalid, StoreError, StreamflowError
from streamflow.text import recordable
from streamflow.triggers.actions import Action, checked, do
from streamflow.triggers.quarantine import BEGINNING_BYTES, DeliveryQuarantine
from streamflow.workflow.trigger import Delivery, Received, Trigger

_log = logging.getLogger("streamflow.triggers")

MAP_SECONDS = 10.0
"""Seconds that the function of a trigger has for a delivery."""
MOST_HUNG = 4
AT_ONCE = 8
"""Deliveries of a trigger that are mapped at the same time."""
REASON_BYTES = 1000


class Hung(StreamflowError):
    """So many calls of a trigger's function hang that it takes no deliveries."""


class Outcome(NamedTuple):
    """`runs`: those that were started or signalled; none if the delivery is for nothing. `quarantined`: its id there,
    and `reason` why, if it couldn't be processed."""

    runs: list[str]
    quarantined: str = ""
    reason: str = ""


class Mapper:
    """Calls the function of one trigger."""

    def __init__(self, trigger: Trigger[Any]) -> None:
        self._trigger = trigger
        self._limiter: anyio.CapacityLimiter | None = None
        self._hung = 0
        self._lock = threading.Lock()

    async def map(self, delivery: Delivery[Any]) -> list[Action]:
        """What the delivery is for. Raises what the function raises, `TimeoutError` if it takes too long, `Hung`."""
        name = self._trigger.name
        if self._hung >= MOST_HUNG:
            raise Hung(f"{self._hung} calls of the function of trigger {name} hang: it takes no more deliveries")
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(AT_ONCE)
        call = _Call(self, self._trigger, delivery)
        with anyio.move_on_after(MAP_SECONDS):
            return checked(
                name, await anyio.to_thread.run_sync(call.run, abandon_on_cancel=True, limiter=self._limiter)
            )
        if not call.abandon():
            raise Hung(f"trigger {name} has too many deliveries at once")
        raise TimeoutError(f"the function of trigger {name} has not returned within {MAP_SECONDS:g} s")

    def count_hung(self, change: int) -> None:
        with self._lock:
            self._hung += change


class _Call:
    """One call, in a thread that may outlive it."""

    def __init__(self, mapper: Mapper, trigger: Trigger[Any], delivery: Delivery[Any]) -> None:
        self._mapper = mapper
        self._trigger = trigger
        self._delivery = delivery
        self._lock = threading.Lock()
        self._began = self._over = self._abandoned = False

    def run(self) -> Any:
        with self._lock:
            if self._abandoned:
                return None
            self._began = True
        try:
            return self._trigger(self._delivery)
        except Exception:
            raise
        except BaseException as error:  # SystemExit and the like must not end the process that receives
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
        finally:
            with self._lock:
                self._over = True
                if self._abandoned:
                    self._mapper.count_hung(-1)

    def abandon(self) -> bool:
        """It is not waited for any more. False if it hadn't begun."""
        with self._lock:
            self._abandoned = True
            if self._began and not self._over:
                self._mapper.count_hung(1)
            return self._began


class Receiver:
    """Receives the deliveries of one trigger. `receive` may be called for several at the same time."""

    def __init__(self, client: Client, trigger: Trigger[Any]) -> None:
        self.client = client
        self.trigger = trigger
        self.received = 0
        """Deliveries that were stored or quarantined."""
        self.quarantined = 0
        self.last = 0
        """When the last one was (ms since the epoch)."""
        self.problem = ""
        """Why nothing is received now, or can be stored."""
        self._mapper = Mapper(trigger)
        self._quarantine = DeliveryQuarantine(client)

    async def receive(self, received: Received, *, keep: bool = True) -> Outcome:
        """Have a delivery done, once. When this returns it may be acknowledged: what it is for is stored, or it is in
        the quarantine (`keep`; else it is only refused).

        Raises `StoreError` and `Hung` when it has to come again.
        """
        try:
            outcome = Outcome(await self.process(received))
        except (StoreError, Hung) as error:
            self.problem = str(error)
            raise
        except Exception as error:  # of any kind: the delivery is to blame, or the function, and the next one may do
            return await self.set_aside(received, f"{type(error).__name__}: {error}", keep=keep)
        self._count()
        return outcome

    async def set_aside(self, received: Received, reason: str, *, keep: bool = True) -> Outcome:
        """Quarantine a delivery that can't be processed (`keep`; else only refuse it). Raises `StoreError`."""
        reason = recordable(reason, REASON_BYTES)
        # Not the reason, which may have a part of the body.
        try:
            quarantined = await self._quarantine.put(self.trigger.name, received, reason) if keep else ""
        except StoreError as error:
            self.problem = str(error)
            raise
        _log.error(
            "a delivery to trigger %s could not be processed and %s",
            self.trigger.name,
            f"is in the quarantine: streamflow trigger quarantine show {quarantined}" if keep else "was refused",
        )
        self.quarantined += keep
        self._count()
        return Outcome([], quarantined, reason)

    def _count(self) -> None:
        self.received += 1
        self.last = time.time_ns() // 1_000_000
        self.problem = ""

    async def set_aside_long(self, delivery_id: str, beginning: bytes, size: int, most: int, where: str) -> Outcome:
        """Quarantine the beginning of a delivery that is longer than it may be. `where`: where the whole is. Raises
        `StoreError`."""
        received = msgspec.structs.replace(received_now(delivery_id, beginning[:BEGINNING_BYTES]), whole_size=size)
        return await self.set_aside(
            received, f"it has {size:,} bytes, more than max_body={most:,}: it stays in {where}"
        )

    async def process(self, received: Received) -> list[str]:
        """Decode, map and do it. Raises whatever goes wrong."""
        if received.whole_size:
            raise PayloadInvalid(f"only the beginning of the delivery was kept, of {received.whole_size:,} bytes")
        delivery = self.trigger.delivery(received)
        actions = await self._mapper.map(delivery)
        return await do(self.client, self.trigger.name, received.id, actions)


def received_now(delivery_id: str, body: bytes, headers: dict[str, str] | None = None) -> Received:
    """What has just come. Raises `PayloadInvalid` for an id that can't be recorded."""
    if recordable(delivery_id, 8000) != delivery_id:
        raise PayloadInvalid("the id of a delivery is not valid Unicode, or too long")
    return Received(id=delivery_id, body=body, headers=headers or {}, at=time.time_ns() // 1_000_000)
