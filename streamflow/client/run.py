"""The handle of one run: wait for its result, talk to it, look at it.

Owns: `Run`: names and types at the door, and what endings and answers mean to the caller.
Must not: hold state of the run, make pipelines (`batching`) or wait (`outcomes`).
Called by: user code, which gets one from the client; the command line.

    await run.signal("approve", True)   →  batching  →  lua/post_messages
    await run.ask("reserve", 2)         →  outcomes  →  a subscription and lua/post_messages
    await run.read("progress")          →  batching  →  the hash of published values
"""

# `Run` and `Client` are two halves of one thing, in two files for their length.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import msgspec
from msgspec import Raw

from streamflow import errors, events
from streamflow.client.listing import RunDescription, ending_of
from streamflow.errors import (
    AskRefused,
)
from streamflow.events import AnyEvent, AskAnswered, Transition, decode_transition
from streamflow.events import RunCompleted as CompletedEvent
from streamflow.model import codec
from streamflow.model.names import check_name

if TYPE_CHECKING:
    from streamflow.client.client import Client

R = TypeVar("R")
T = TypeVar("T")
D = TypeVar("D")

Decode = Callable[[Raw], Any]


class Run(Generic[R]):
    """The handle of one run, from `client.start` or `client.run`. It holds no state: the server has the truth.

    `created`: whether this `start` created the run (False also if its answer was lost and it was sent again).
    Its methods raise `RunNotFound` when there is no such run.
    """

    __slots__ = ("_client", "_decode", "created", "id")

    def __init__(self, client: Client, run_id: str, decode: Decode | None, created: bool) -> None:
        self.id = run_id
        self.created = created
        self._client = client
        self._decode = decode

    def __repr__(self) -> str:
        return f"<run {self.id}>"

    async def result(self, timeout: float | timedelta | None = None) -> R:
        """Wait for the end of the run, at most `timeout` (seconds), and return the workflow's result.

        Raises `RunFailed`, `RunCancelled`, `TimeoutError` (the run goes on), `PayloadInvalid` if the result doesn't fit
        the declared type, and `StoreUnavailable` when the server is gone for longer than the client's patience.
        """
        ended = self._client._ended(self.id)
        last = await self._within(timeout, ended, f"run {self.id} has not ended within {{:g}} s; it goes on")
        match ending_of(decode_transition(last)):
            case CompletedEvent(result=raw):
                return self._decode(raw) if self._decode else codec.decode(raw, Any, f"result of run {self.id}")
            case events.RunFailed(failure=failure):
                raise errors.RunFailed(self.id, failure)
            case event:
                reason = f": {event.reason}" if event is not None and event.reason else ""
                raise errors.RunCancelled(f"run {self.id} was cancelled{reason}", self.id)

    async def signal(self, name: str, value: Any = None) -> None:
        """Send a signal; it is kept if the run doesn't wait for it yet. Returns when the server has it.

        Delivered exactly once, in the order of this client's calls. Raises `RunEnded`, `InvalidName`, `PayloadInvalid`,
        `PayloadTooLarge`.
        """
        payload = codec.encode(value, f"value of signal {check_name('signal', name)}")
        body = msgspec.msgpack.encode((name, Raw(payload)))
        await self._client._post("signal", self.id, body)

    @overload
    async def ask(
        self, name: str, value: Any = None, timeout: float | timedelta | None = None, *, type: type[T]
    ) -> T: ...
    @overload
    async def ask(
        self, name: str, value: Any = None, timeout: float | timedelta | None = None, *, type: Any = ...
    ) -> Any: ...
    async def ask(
        self, name: str, value: Any = None, timeout: float | timedelta | None = None, *, type: Any = Any
    ) -> Any:
        """Send a question, and wait at most `timeout` (seconds) for what the run answers, decoded as `type`.

        The run takes it once, and the answer is recorded in its history. Raises `AskRefused` when it answers with a
        failure, `RunEnded` when it has ended or ends without answering, `TimeoutError` (it may still answer, and what
        it does because of the question stays done), `InvalidName`, `PayloadInvalid`, `PayloadTooLarge`.

        >>> left = await run.ask("reserve", {"seats": 2}, timeout=5, type=int)
        """
        codec.decoder_for(type)  # refused before anything is sent
        payload = codec.encode(value, f"value of ask {check_name('ask', name)}")
        ask_id = os.urandom(16).hex()
        answered = self._client._answered(self.id, ask_id, msgspec.msgpack.encode((name, Raw(payload), ask_id)))
        late = f"run {self.id} has not answered {name} within {{:g}} s; it may still do so"
        answer = msgspec.msgpack.decode(await self._within(timeout, answered, late), type=AskAnswered)
        if answer.failure is not None:
            raise AskRefused(self.id, name, answer.failure)
        return codec.decode(answer.result, type, f"answer of run {self.id} to {name}")

    @overload
    async def read(self, key: str, type: type[T], default: D) -> T | D: ...
    @overload
    async def read(self, key: str, type: type[T]) -> T | None: ...
    @overload
    async def read(self, key: str, type: Any = ..., default: Any = ...) -> Any: ...
    async def read(self, key: str, type: Any = Any, default: Any = None) -> Any:
        """The newest value that the run published under `key`; `default` if there is none. The run isn't disturbed.

        Raises `InvalidName`, and `PayloadInvalid` if the value isn't of the `type`.

        >>> done = await run.read("done", int, default=0)
        """
        codec.decoder_for(type)
        values = await self._client._published(self.id, check_name("key", key))
        return codec.decode(values[key], type, f"published value {key} of run {self.id}") if key in values else default

    async def published(self) -> dict[str, Any]:
        """All that the run has published, by key, as plain data."""
        values = await self._client._published(self.id)
        return {key: codec.decode(raw, Any, f"published value {key} of run {self.id}") for key, raw in values.items()}

    async def cancel(self, reason: str = "") -> None:
        """Ask the run to end as cancelled. Returns when the server has the request, which is before it took effect.

        Raises `RunEnded`, `PayloadTooLarge`.
        """
        await self._client._post("cancel", self.id, codec.encode(reason, "reason of a cancel"))

    async def terminate(self, reason: str = "") -> None:
        """End the run as cancelled without asking its code: for one that doesn't end when it is cancelled.

        Returns when the server has the request, which is before it took effect. Raises `RunEnded`, `PayloadTooLarge`.
        """
        await self._client._post("terminate", self.id, codec.encode(reason, "reason of a terminate"))

    async def describe(self) -> RunDescription:
        """Status, workflow, tenant, times, and how it ended."""
        return await self._client._describe(self.id)

    async def history(self) -> list[Transition]:
        """All transitions in order (of a reducer: its newest). `at` is ms since the epoch, on the shard's clock."""
        return await self._client._history(self.id)

    def events(self, follow: bool = False) -> AsyncGenerator[tuple[datetime, AnyEvent], None]:
        """The events of the history with their times (aware, UTC); with `follow` also what happens from now on.

        Following ends with the run. It holds a connection while it waits.

        >>> async for at, event in run.events(follow=True):
        ...     print(at, event.describe())
        """
        return self._client._events(self.id, follow)

    async def _within(self, timeout: float | timedelta | None, answer: Awaitable[T], late: str) -> T:
        """At most `timeout` seconds; a sandbox counts others. `late` is the message of the `TimeoutError`, with a place
        for the seconds."""
        seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        deadline = asyncio.timeout(seconds)
        try:
            async with deadline:
                return await answer
        except TimeoutError:
            if not deadline.expired():
                raise
            raise TimeoutError(late.format(seconds)) from None
