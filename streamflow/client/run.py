"""The handle of one run: wait for its result, send to it, read its state and history.

Owns: `Run`: checks of names and types, and what endings and answers mean to the caller.
Must not: hold state of the run, build pipelines (`pipelines.py`) or wait for results (`waiting.py`).
Called by: user code, which gets one from the client; the command line.

    await run.signal("approve", True)   →  pipelines  →  lua/post_messages
    await run.ask("reserve", 2)         →  waiting    →  a subscription and lua/post_messages
    await run.read("progress")          →  pipelines  →  the hash of published values
    run.watch("progress")               →  waiting    →  the same, whenever a commit says that it has changed
    run.stream()                        →  streams    →  lua/read_chunks, whenever lua/append_chunks rings
"""

# `Run` and `Client` are two halves of one interface, in two files because of their length.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import msgspec
from msgspec import UNSET, Raw

from streamflow import errors, events, wire
from streamflow.client import forking, retrying, with_start
from streamflow.client.listing import RunDescription, RunPage, ending_of
from streamflow.client.pipelines import Origin
from streamflow.client.retrying import Retried
from streamflow.client.streams import Chunk, StreamFacts, StreamPosition, instant_of, position_of
from streamflow.client.with_start import REMEMBER
from streamflow.errors import AskRefused, UsageError
from streamflow.events import AnyEvent, AskAnswered, Transition, decode_transition
from streamflow.events import RunCompleted as CompletedEvent
from streamflow.machine.retry_point import not_open
from streamflow.machine.transition import PauseRequest, ResumeRequest
from streamflow.model import codec
from streamflow.model.attributes import FORKED_FROM
from streamflow.model.record import Header, Status, parent_link
from streamflow.store.kernel import Message
from streamflow.store.pauses import said
from streamflow.text import recordable
from streamflow.workflow.messages import (
    UNDECLARED,
    Declared,
    PublishedDefinition,
    QuestionDefinition,
    SignalDefinition,
)

if TYPE_CHECKING:
    from streamflow.client.client import Client

R = TypeVar("R")
T = TypeVar("T")
A = TypeVar("A")
D = TypeVar("D")

Decode = Callable[[Raw], Any]

GOES_ON = "; it goes on"
ASK_SECONDS = 1.0
"""Seconds that a late result may be later, for what keeps the run."""


class Run(Generic[R]):
    """The handle of one run, from `client.start` or `client.run`. It holds no state: every call reads the server.

    `id`: the run's full id. `created`: whether this `start` created the run; False when it existed already, and also
    when the reply to `start` was lost and the call was sent again.

    Every method raises `RunNotFound` when there is no such run (or it was forgotten), and the errors of `Client`. A
    handle from `start` is of the run that the start found or created, and of no other that gets its id later.
    """

    __slots__ = ("_client", "_declared", "_decode", "_incarnation", "created", "id")

    def __init__(
        self,
        client: Client,
        run_id: str,
        decode: Decode | None,
        created: bool,
        incarnation: int = 0,
        declared: Declared = UNDECLARED,
    ) -> None:
        self.id = run_id
        self._declared = declared
        """What its workflow declares, if that is known here."""
        self.created = created
        self._incarnation = incarnation
        """When the run was created (ms), as in its header: what tells it from others of its id. 0: whichever has it."""
        self._client = client
        self._decode = decode

    def __repr__(self) -> str:
        return f"<run {self.id}>"

    async def result(self, timeout: float | timedelta | None = None) -> R:
        """Wait for the end of the run, and return the workflow's result.

        `timeout`: seconds, or None to wait as long as it takes. Waiting doesn't poll; any number of runs can be waited
        for at the same time. The result is decoded as the workflow's declared return type; if the run was started by
        name or found with `client.run(id)`, it is plain data.

        Raises `RunFailed` with the failure, `RunCancelled` with the reason, `TimeoutError` when the time is over (the
        run continues; of one that is stuck or paused it says why), `PayloadInvalid` when the result doesn't fit the
        declared type, `StoreUnavailable` when the server could not be reached for 10 seconds.

        >>> total = await run.result(timeout=30)
        """
        ended = self._client._ended(self.id, self._incarnation)
        late = f"run {self.id} has not ended within {{:g}} s"
        try:
            last = await self._within(timeout, ended, late + GOES_ON)
        except TimeoutError as error:
            reason = await self._why_stopped()
            if reason:
                error.args = (f"{str(error).partition(GOES_ON)[0]}: {reason}",)
            raise
        match ending_of(decode_transition(last)):
            case CompletedEvent(result=raw):
                return self._decode(raw) if self._decode else codec.decode(raw, Any, f"result of run {self.id}")
            case events.RunFailed(failure=failure):
                timed_out = failure.kind == errors.RunTimedOut.__name__
                raise (errors.RunTimedOut if timed_out else errors.RunFailed)(self.id, failure)
            case event:
                reason = f": {event.reason}" if event is not None and event.reason else ""
                raise errors.RunCancelled(f"run {self.id} was cancelled{reason}", self.id)

    async def _why_stopped(self) -> str:
        """Why the run is stuck or paused; empty if it isn't, or if that can't be found out at once."""
        try:
            async with asyncio.timeout(ASK_SECONDS):
                found = await self.describe(waits=False)
                if found.status == Status.STUCK:
                    return f"it is stuck until its code is mended: {found.reason}"
                return found.reason if found.status == Status.PAUSED else ""  # that of a cancel is another one
        except (errors.StreamflowError, TimeoutError):
            return ""

    @overload
    async def signal(
        self, name: SignalDefinition[None], *, idempotency_id: str | None = None, remember: float | timedelta = REMEMBER
    ) -> None: ...
    @overload
    async def signal(
        self,
        name: SignalDefinition[T],
        value: T,
        *,
        idempotency_id: str | None = None,
        remember: float | timedelta = REMEMBER,
    ) -> None: ...
    @overload
    async def signal(
        self,
        name: str,
        value: Any = None,
        *,
        idempotency_id: str | None = None,
        remember: float | timedelta = REMEMBER,
    ) -> None: ...
    async def signal(
        self,
        name: str | SignalDefinition[Any],
        value: Any = None,
        *,
        idempotency_id: str | None = None,
        remember: float | timedelta = REMEMBER,
    ) -> None:
        """Send a signal with a value. Returns when the server has stored it; the run keeps it until it waits for it.

        Delivered exactly once, in the order of this client's calls. `name` is a name, or a definition, which types the
        value. If the handle knows its workflow, from `client.start(workflow, …)` or `client.run(id, workflow)`, what
        that declares counts for names as well.

        `idempotency_id`: a signal to this run with the same one does nothing more, for as long as the server remembers
        it: `remember`, seconds or a timedelta, by default a day. Such a signal has no place among this client's others
        that are sent at the same time.

        Raises `RunEnded`, `InvalidName`, `PayloadInvalid` (also for a value of another type), `PayloadTooLarge`, and
        `UsageError` for a signal that the workflow doesn't declare although it declares its signals.

        >>> await run.signal("approve", True)
        """
        name, payload = self._declared.payload("signal", name, value)
        tracing = self._client._tracing
        if tracing is None:
            await self._signal(msgspec.msgpack.encode((name, Raw(payload))), idempotency_id, remember)
            return
        with tracing.calling(f"signal {name}", signal=name, run_id=self.id) as trace:
            body = msgspec.msgpack.encode(wire.Signal(name, Raw(payload), trace))
            await self._signal(body, idempotency_id, remember)

    def _signal(self, body: bytes, idempotency_id: str | None, remember: float | timedelta) -> Awaitable[object]:
        if idempotency_id is None:
            return self._post("signal", body)
        message = Message("signal", self.id, body, self._incarnation)
        return self._client._put_once(with_start.once(message, idempotency_id, remember), "reject")

    @overload
    async def ask(self, name: QuestionDefinition[T, A], value: T, timeout: float | timedelta | None = None) -> A: ...
    @overload
    async def ask(self, name: QuestionDefinition[None, A], *, timeout: float | timedelta | None = None) -> A: ...
    @overload
    async def ask(
        self, name: str, value: Any = None, timeout: float | timedelta | None = None, *, type: type[T]
    ) -> T: ...
    @overload
    async def ask(
        self, name: str, value: Any = None, timeout: float | timedelta | None = None, *, type: Any = ...
    ) -> Any: ...
    async def ask(
        self,
        name: str | QuestionDefinition[Any, Any],
        value: Any = None,
        timeout: float | timedelta | None = None,
        *,
        type: Any = UNSET,
    ) -> Any:
        """Send a question, and wait for the run's answer, decoded as `type` (by default plain data).

        `name` is a name, or a definition, which types value and answer. If the handle knows its workflow, what that
        declares counts for names as well.

        `timeout`: seconds, or None to wait as long as it takes. The run receives the question once, and its answer is
        recorded in its history.

        Raises `AskRefused` when the run answers with a failure, `RunEnded` when it has ended or ends without answering,
        `TimeoutError` when the time is over (the run may still answer, and what it does because of the question is not
        undone), `InvalidName`, `PayloadInvalid` (also for a value of another type), `PayloadTooLarge`, and `UsageError`
        for a question that the workflow doesn't declare although it declares its questions.

        >>> left = await run.ask("reserve", {"seats": 2}, timeout=5, type=int)
        """
        name, definition = self._declared.find("question", name)
        wanted = Any if definition is None else definition.answer
        if type is not UNSET:
            codec.decoder_for(wanted := type)  # refused before anything is sent
        name, payload = self._declared.payload("question", definition or name, value)
        ask_id = os.urandom(16).hex()
        tracing = self._client._tracing
        if tracing is None:
            body = msgspec.msgpack.encode((name, Raw(payload), ask_id))
            answered = self._client._answered(self.id, self._incarnation, ask_id, body)
            return await self._answer(name, wanted, timeout, answered)
        with tracing.asking(f"ask {name}", ask=name, run_id=self.id) as trace:
            body = msgspec.msgpack.encode(wire.Ask(name, Raw(payload), ask_id, trace))
            answered = self._client._answered(self.id, self._incarnation, ask_id, body)
            return await self._answer(name, wanted, timeout, answered)

    async def _answer(
        self, name: str, wanted: Any, timeout: float | timedelta | None, answered: Awaitable[bytes]
    ) -> Any:
        """The answer to a question, decoded. `answered` gives the encoded event."""
        late = f"run {self.id} has not answered {name} within {{:g}} s; it may still do so"
        answer = msgspec.msgpack.decode(await self._within(timeout, answered, late), type=AskAnswered)
        if answer.failure is not None:
            raise AskRefused(self.id, name, answer.failure)
        return codec.decode(answer.result, wanted, f"answer of run {self.id} to {name}")

    @overload
    async def read(self, key: PublishedDefinition[T], *, default: D) -> T | D: ...
    @overload
    async def read(self, key: PublishedDefinition[T]) -> T | None: ...
    @overload
    async def read(self, key: str, type: type[T], default: D) -> T | D: ...
    @overload
    async def read(self, key: str, type: type[T]) -> T | None: ...
    @overload
    async def read(self, key: str, type: Any = ..., default: Any = ...) -> Any: ...
    async def read(self, key: str | PublishedDefinition[Any], type: Any = UNSET, default: Any = None) -> Any:
        """The newest value that the run has published under `key`, decoded as `type`; `default` if there is none.

        Reads the server only: the run does not notice. Works after its end, too, until it is forgotten. `key` is a key,
        or a definition, which has the type.

        Raises `InvalidName`, `PayloadInvalid` when the value doesn't fit `type`, and `UsageError` for a key that the
        workflow of the handle doesn't declare although it declares what it publishes.

        >>> done = await run.read("done", int, default=0)
        """
        key, definition = self._declared.find("key", key)
        wanted = Any if definition is None else definition.type
        if type is not UNSET:
            codec.decoder_for(wanted := type)
        values = await self._client._published(self.id, self._incarnation, key)
        return (
            codec.decode(values[key], wanted, f"published value {key} of run {self.id}") if key in values else default
        )

    async def published(self) -> dict[str, Any]:
        """All values that the run has published, by key, as plain data."""
        values = await self._client._published(self.id, self._incarnation)
        return {key: codec.decode(raw, Any, f"published value {key} of run {self.id}") for key, raw in values.items()}

    @overload
    def watch(self, key: PublishedDefinition[T], *, after: Any = ...) -> AsyncGenerator[T]: ...
    @overload
    def watch(self, key: str, type: type[T], *, after: Any = ...) -> AsyncGenerator[T]: ...
    @overload
    def watch(self, key: str, type: Any = ..., *, after: Any = ...) -> AsyncGenerator[Any]: ...
    async def watch(
        self, key: str | PublishedDefinition[Any], type: Any = UNSET, *, after: Any = UNSET
    ) -> AsyncGenerator[Any]:
        """The newest value that the run has published under `key`, and then each newer one, until the run has ended.

        Doesn't poll, and the run doesn't notice. Of values that come faster than they are taken only the newest is
        given. `after`: a value that is known already, and given only when another one has come. `key` and `type` are as
        of `read`, and so are the errors, which come with the first value that is asked for.

        >>> async for done in run.watch("done", int):
        ...     print(f"{done} pages")
        """
        key, definition = self._declared.find("key", key)
        wanted = Any if definition is None else definition.type
        if type is not UNSET:
            codec.decoder_for(wanted := type)
        async with aclosing(self._client._watch(self.id, self._incarnation, key)) as values:
            async for raw in values:
                value = codec.decode(raw, wanted, f"published value {key} of run {self.id}")
                if after is UNSET or value != after:
                    yield value
                after = UNSET

    @overload
    def stream(self, *, after: str = "", follow: bool = True) -> AsyncGenerator[Chunk[Any]]: ...
    @overload
    def stream(self, type: type[T], *, after: str = "", follow: bool = True) -> AsyncGenerator[Chunk[T]]: ...
    def stream(self, type: Any = Any, *, after: str = "", follow: bool = True) -> AsyncGenerator[Chunk[Any]]:
        """What the steps of the run emit with `sf.emit`, in order, while they run: tokens of a language model.

        Begins with what is still there, and ends when the run has ended and all was given; with `follow=False` it ends
        with what is there now. Values are decoded as `type` (by default plain data).

        `after`: the `offset` of a chunk, to go on behind it, also in another process: what a browser sends as
        `Last-Event-ID`. `chunk.restarted` says that what was emitted before by the same call is void, `chunk.missed`
        how many chunks before this one are gone: the server keeps the newest megabyte of a run, for an hour after its
        last chunk. A server that fails over may have lost the newest chunks.

        Raises `UsageError` at once for an `after` that is not an offset; `PayloadInvalid` for a chunk that doesn't fit
        `type`.

        >>> async for chunk in run.stream(str):
        ...     if chunk.restarted:
        ...         page.clear()
        ...     page.write(chunk.value)
        """
        codec.decoder_for(type)
        return self._stream(type, position_of(after), follow)

    async def _stream(self, type: Any, position: StreamPosition, follow: bool) -> AsyncGenerator[Chunk[Any]]:
        async with aclosing(self._client._chunks(self.id, self._incarnation, position, follow)) as chunks:
            async for one in chunks:
                value = codec.decode(one.data, type, f"chunk of step {one.step} of run {self.id}")
                yield Chunk(
                    value=value,
                    offset=one.offset,
                    step=one.step,
                    seq=one.seq,
                    attempt=one.attempt,
                    at=instant_of(one.at),
                    restarted=one.restarted,
                    missed=one.missed,
                )

    async def stream_facts(self) -> StreamFacts | None:
        """How much the steps of the run have emitted, how much of it is still there, and when the last of it came; None
        if there is nothing."""
        return await self._client._stream_facts(self.id, self._incarnation)

    async def cancel(self, reason: str = "") -> None:
        """Request that the run ends as cancelled. Returns when the server has the request, before it takes effect.

        The workflow gets `sf.Cancelled` at its current await, and may clean up with steps; sagas are undone. Usually
        `result` then raises `RunCancelled` with the `reason`, but a workflow that handles the cancel can still complete
        or fail.

        Raises `RunEnded`, `PayloadTooLarge`.
        """
        body = codec.encode(recordable(reason, codec.MAX_BYTES), "reason of a cancel")
        await self._post("cancel", body)

    async def terminate(self, reason: str = "") -> None:
        """Force the run to end as cancelled, without running its clean-up code. Sagas are not compensated.

        For a run that doesn't end when it is cancelled. Returns when the server has the request, before it takes
        effect. Raises `RunEnded`, `PayloadTooLarge`.
        """
        body = codec.encode(recordable(reason, codec.MAX_BYTES), "reason of a terminate")
        await self._post("terminate", body)

    async def pause(self, *, reason: str = "", by: str = "") -> None:
        """Request that the run begins nothing new until `resume`. Returns when the server has the request, before it
        takes effect.

        Steps that run, or wait in a queue, end, and their results are recorded. Signals and questions are accepted, and
        kept; timers that are due have fired when the run goes on. A cancel ends the pause, since the run cleans up;
        `terminate` ends the run. Children go on: pause their workflow, too. Who has paused it first stays recorded.

        `reason` and `by` (who wants it) are shown. Raises `RunEnded`.

        >>> await run.pause(reason="the customer calls back", by="kim")
        """
        await self._post("pause", msgspec.msgpack.encode(PauseRequest(*said(by, reason))))

    async def resume(self, *, by: str = "") -> None:
        """Request that the run goes on, if it was paused by `pause`. It gets what came meanwhile, in order. Returns
        when the server has the request, before it takes effect.

        A run of a paused workflow goes on with that: `client.resume_workflow`. Raises `RunEnded`.
        """
        await self._post("resume", msgspec.msgpack.encode(ResumeRequest(said(by, "")[0])))

    async def retry(
        self,
        *,
        step: str | int | None = None,
        reason: str = "",
        by: str = "",
        anyway: bool = False,
        alone: bool = False,
        timeout: float | timedelta | None = 30.0,
    ) -> Retried:
        """Have a run go on that has failed, from where it failed, or is stuck, by today's code. Returns when it does.

        Its step that failed is tried again, as often as at first; all results that are recorded are kept. If no step
        and no child has failed, the code gets once more what it had got last. Who calls `result` from now on waits for
        the new end. `reason` and `by` (who wants it) are recorded. Children that it waits for go on with it, if they
        failed or were cancelled together with it.

        A run that is stuck goes on where it was, if its code can by now: for a bug whose cause was something else than
        code. What was mended in code goes on by itself.

        `anyway`: also if the run has done something because of its failure, as a saga does: it would not know of that.
        It holds for its children, too.
        `alone`: also if the run is the child of one that failed because of it.
        `timeout`: seconds to wait for the run's owner, or None.

        With `step`, a name or a number, the run is one that is open: the current attempt of that step is given up,
        whatever it does, and the next one begins. For one that hangs. A thread that runs it goes on, and what it gives
        is dropped.

        Raises `NotRetried`, which says why nothing has changed, and `TimeoutError` when no daemon has taken the request
        (it is kept, and may take effect later).

        >>> await run.retry(reason="the bank is back")
        """
        try:
            header, _ = await self._client._header(self.id, self._incarnation)
        except errors.RunNotFound as missing:
            raise await self._client._only_archived(self.id, self._incarnation, missing) from None
        request_id = os.urandom(16).hex()
        if step is not None:
            return await self._retry_step(step, header, request_id, by, reason, timeout)
        body = retrying.request(self.id, header, request_id, by, reason, anyway)
        is_stuck = header.status == Status.STUCK
        link = None if is_stuck else parent_link(header.parent)
        if link is not None and not alone:
            with contextlib.suppress(errors.RunNotFound):
                retrying.check_parent(self.id, link, *await self._client._header(link.run_id, link.created))
        late = f"no daemon has taken the retry of run {self.id} within {{:g}} s; it is kept, and may take effect later"
        requested = self._client._requested("retry", self.id, header.created, request_id, body)
        try:
            answer = await self._within(timeout, requested, late)
        except errors.RunEnded:
            text = f"run {self.id} has not failed any more: it has ended otherwise"
            raise errors.NotRetried(self.id, errors.Failure("NotFailed", text)) from None
        found = retrying.retried(self.id, answer, None if link is None else link.run_id)
        if is_stuck:
            history = await self._client._history(self.id, header.created)
            found = msgspec.structs.replace(found, kept=retrying.results_of(history))
        return found

    async def fork(
        self,
        at: int | None = None,
        *,
        input: Sequence[Any] | None = None,
        id: str | None = None,
        reason: str = "",
        by: str = "",
    ) -> Run[R]:
        """Start a new run that shares the beginning of this one's history, and goes on from there by today's code.

        `at`: the number of an event, from 1, as `streamflow show` has it: what is before it is shared, and it happens
        again. Without, a run that has failed is forked from where it failed, one that was cancelled from before that,
        and an open one where it is; with an `input`, from the beginning. If the event is a decision, the code gets once
        more what it had made it for. Results, signals and questions before the event count; what was open there begins
        again: steps with their first attempts, children as new runs, and timers are due when they were due.

        `input`: other arguments of the workflow, in order. What is shared must fit them, since the code goes through it
        again. `id`: of the new run, or a generated one; forking again with the same id returns the run that exists.
        `reason` and `by` (who wants it) are recorded. This run isn't changed, whatever its status is. The fork is
        nobody's child, has the same tenant, and an attribute `forked_from` with this run's id.

        A fork whose code doesn't fit what is shared fails at once, with the reason.

        Raises `NotForked`, which says why there is no fork, `RunConflict` if the id belongs to another run,
        `PayloadInvalid` and `PayloadTooLarge` for an input.

        >>> again = await run.fork(input=("kim@example.com",), reason="the address was mistyped")
        """
        payload = None if input is None else forking.input_of(input)
        return await self._fork(at, payload, id, reason, by)

    async def _fork(self, at: int | None, payload: bytes | None, id: str | None, reason: str, by: str) -> Run[R]:
        record = await self._client._record_of(self.id, self._incarnation)
        fork = forking.beginning(self.id, record, at, payload, by, reason)
        forking.check_not_paused(fork, (await self._client.paused_workflows()).get(fork.workflow))
        new_id = forking.fork_id(self.id, self._fork_name) if id is None else id
        return await self._client._start_fork(fork, new_id, self._decode, self._declared, anywhere=at is None)

    @property
    def _fork_name(self) -> str:
        """What tells a fork of this handle from others of the same run; empty: each is another one."""
        return ""

    async def forks(self, limit: int = 20) -> RunPage:
        """The newest `limit` forks of this run, also of an earlier run of its id, as `Client.runs` gives them."""
        return await self._client.runs(attributes={FORKED_FROM: self.id}, limit=limit)

    async def _retry_step(
        self,
        step: str | int,
        header: Header,
        request_id: str,
        by: str,
        reason: str,
        timeout: float | timedelta | None,
    ) -> Retried:
        history = await self._client._history(self.id, header.created)
        body = retrying.step_request(self.id, header, history, step, request_id, by, reason)
        late = f"no daemon has taken the retry of run {self.id} within {{:g}} s; it is kept, and may take effect later"
        requested = self._client._requested("retry", self.id, header.created, request_id, body)
        try:
            answer = await self._within(timeout, requested, late)
        except errors.RunEnded:
            raise errors.NotRetried(self.id, errors.Failure("NotOpen", not_open(self.id))) from None
        found = retrying.retried(self.id, answer, None)
        queue = retrying.queue_of(history, found.steps)
        held = retrying.held_in(queue, (await self._client.paused_queues()).get(queue)) if queue else ""
        return msgspec.structs.replace(found, kept=retrying.results_of(history), held=held)

    async def describe(self, *, waits: bool = True) -> RunDescription:
        """Status, workflow, tenant, times, attributes, and how the run ended (its result, failure or reason), or why it
        is stuck; of an open run what it waits for, until when, and who has it and its steps.

        `waits`: without it these last ones are left out, which are read from the run's record (at most about 256 KB)
        and a few other keys.

        >>> for wait in (await run.describe()).waits_for:
        ...     print(wait.kind, wait.name, wait.until)
        """
        return await self._client._describe(self.id, self._incarnation, waits)

    async def history(self) -> list[Transition]:
        """All transitions in order, each with its events and its time `at`: the shard's clock, in ms since 1970 (UTC).

        Of a reducer only the newest are kept, of a run that continued as new those of its current generation.
        """
        return await self._client._history(self.id, self._incarnation)

    async def events(self, follow: bool = False, *, after: int = 0) -> AsyncGenerator[tuple[datetime, AnyEvent], None]:
        """The events of the history in order, with their times (aware, UTC).

        With `follow` it continues with the events that happen from then on, until the run has ended; while it waits it
        holds a connection. `after`: the number of events to leave out, for who has seen these before. The count is of
        one history: that of a run which has continued as new, and the part that is kept of a reducer's, begin again.

        Raises `UsageError` for a negative `after`.

        >>> async for at, event in run.events(follow=True):
        ...     print(at, event.describe())
        """
        if after < 0:
            raise UsageError(f"events(after=…) must be a number of events, 0 or more, got {after}")
        async with aclosing(self._client._events(self.id, self._incarnation, follow)) as events:
            async for item in events:
                if after:
                    after -= 1
                else:
                    yield item

    def _post(self, kind: str, body: bytes) -> Awaitable[None]:
        return self._client._post(kind, self.id, self._incarnation, body)

    async def _within(self, timeout: float | timedelta | None, answer: Awaitable[T], late: str) -> T:
        """Wait at most `timeout` seconds (a sandbox counts its own time). `late`: the message of the `TimeoutError`,
        a format for the seconds."""
        if timeout is None:
            return await answer
        seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        deadline = asyncio.timeout(seconds)
        try:
            async with deadline:
                return await answer
        except TimeoutError:
            if not deadline.expired():
                raise
            raise TimeoutError(late.format(seconds)) from None


class NumberedRun(Run[R]):
    """A handle that posts one message, under a number that outlives the process: sent again, by another process, it
    adds nothing."""

    __slots__ = ("_origin",)

    def __init__(
        self, client: Client, run_id: str, decode: Decode | None, created: bool, incarnation: int, origin: Origin
    ) -> None:
        super().__init__(client, run_id, decode, created, incarnation)
        self._origin = origin

    def _post(self, kind: str, body: bytes) -> Awaitable[None]:
        return self._client._post(kind, self.id, self._incarnation, body, self._origin)

    @property
    def _fork_name(self) -> str:
        source, number = self._origin
        return f"{source} {number}"
