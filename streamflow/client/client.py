"""The public client: start runs, find them, forget them.

Owns: `Client`: checks of names and types, the namespace's meta record; `run.py` has the handle of one run.
Must not: build pipelines (`pipelines.py`), wait for results (`waiting.py`), or scan listings (`listing.py`).
Called by: user code, the command line, bench.

    run = await client.start(digest, ["https://…"])  →  pipelines  →  lua/start_runs
    await run.result()                               →  waiting    →  a subscription and lua/peek_runs
"""

# `Run` and `Client` are two halves of one interface, in two files because of their length.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, TypeVarTuple, cast, overload

import msgspec
from msgspec import UNSET, Raw

from streamflow.archive.archive import open_archive
from streamflow.archive.format import ArchivedRun
from streamflow.archive_url import check_archive_url
from streamflow.client import forking
from streamflow.client.archived import ArchivedRuns, created_ms, describe_archived, events_of, listing_name
from streamflow.client.hibernating import HibernatingPage
from streamflow.client.large_payloads import ClientPayloads
from streamflow.client.listing import (
    Filters,
    FoundRuns,
    Listings,
    RunDescription,
    RunPage,
    RunSummary,
    WorkflowInfo,
    describe,
    summary_of_hibernating,
)
from streamflow.client.newest import VIEW, Changes, changes_in
from streamflow.client.paging import Position, cursor_of, instant_ms, is_relative
from streamflow.client.pipelines import CREATED, Batcher, Origin, settled
from streamflow.client.run import Decode, NumberedRun, Run
from streamflow.client.session import Session, Sessions
from streamflow.client.starting import OnExisting, asked_for, check_existing, own_arguments, replaced
from streamflow.client.streams import EmittedChunk, StreamFacts, StreamPosition
from streamflow.client.views import read_view, view_names, wanted_labels
from streamflow.client.waiting import ResultWaiter, check_found, check_posted
from streamflow.client.waits import DESCRIBED_BYTES, WaitReader
from streamflow.client.with_start import (
    REMEMBER,
    OnEnded,
    answer_in,
    answer_type,
    ask_body,
    check_on_ended,
    once,
    put,
    signal_body,
)
from streamflow.errors import (
    ArchiveError,
    NamespaceMissing,
    RunConflict,
    RunError,
    RunNotFound,
    StoreError,
    Unconfirmed,
    UsageError,
)
from streamflow.events import AnyEvent, RunForked, Transition, decode_history
from streamflow.model import codec
from streamflow.model.attributes import Attribute, check_attributes
from streamflow.model.names import check_name, check_run_id
from streamflow.model.record import STOPPED, Header, Status, decode_header, incarnation_of
from streamflow.model.references import has_mark
from streamflow.model.sharding import full_run_id
from streamflow.model.sleeping import is_asleep
from streamflow.model.start_word import NOTHING, StartWord
from streamflow.model.waits import Wait
from streamflow.server_url import redacted
from streamflow.settings import Settings, load_settings
from streamflow.store.connection import Call, Store
from streamflow.store.durability import use_durability
from streamflow.store.kernel import Kernel, Message, OnceMessage, PutOnce, Start
from streamflow.store.keys import NamespaceKeys
from streamflow.store.namespace import Namespace, namespace_from, read_namespace
from streamflow.store.pauses import (
    QUEUE,
    WORKFLOW,
    Pause,
    new_note,
    paused_queues,
    paused_workflows,
    read_note,
    read_pauses,
)
from streamflow.store.queues import clock_of
from streamflow.store.router import open_store
from streamflow.views.reading import ViewReading
from streamflow.wire import encode_fork
from streamflow.workflow.app import Reducer, Startable, Workflow
from streamflow.workflow.messages import UNDECLARED, Declared, QuestionDefinition, SignalDefinition
from streamflow.workflow.view import View

if TYPE_CHECKING:
    from streamflow.client.consumer import Resume
    from streamflow.client.groups import From, Group, Groups
    from streamflow.client.subscription import Subscription
    from streamflow.tracing.spans import Tracing

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
A = TypeVar("A")
Ts = TypeVarTuple("Ts")

READ_AGAIN_SECONDS = 5.0
"""Seconds for which a client goes by the namespace's record that it has read: one read more in that time."""


def connect(url: str | None = None, *, namespace: str | None = None) -> Client:
    """A client of one namespace, to be used as an async context manager or closed with `close`.

    Nothing is sent before the first call, so a server that can't be reached shows only then.

    `url`: `redis://`, `rediss://`, `unix://`, `redis+sentinel://` or `rediss+sentinel://`; by default
    `STREAMFLOW_REDIS`, else `redis` in the settings file (`STREAMFLOW_CONFIG`, or `[tool.streamflow]` of the
    `pyproject.toml` in the working directory), else the server of `streamflow dev` there, else
    `redis://127.0.0.1:6379`.
    `namespace`: by default `STREAMFLOW_NAMESPACE`, else `namespace` in that file, else `default`.
    The namespace has the URL of its archive; `STREAMFLOW_ARCHIVE`, or `archive` in that file, counts instead where it
    has another one here, unless `url` and `namespace` are given.

    Raises `UsageError` for a URL, a namespace or a settings file that is not valid.

    >>> async with sf.connect() as client:
    ...     run = await client.start(digest, ["https://example.org"], id="digest-1")
    ...     print(await run.result(timeout=30))
    """
    if url is not None and namespace is not None:  # what else is set here doesn't matter
        settings = Settings(redis=url, namespace=namespace)
    else:
        settings = load_settings({"redis": url, "namespace": namespace})
    return Client(open_store(settings.redis), settings.namespace, archive=settings.archive)


class NewRun(msgspec.Struct, frozen=True):
    """A run to start, with its input encoded already (`encode_input`). Without `id` it gets a generated one. `word`:
    what `asked_for` gives."""

    workflow: str
    payload: bytes
    id: str | None = None
    tenant: str = ""
    word: StartWord = NOTHING


def encode_input(*args: Any) -> bytes:
    """The input of a run from its workflow's arguments. Raises `PayloadInvalid` or `PayloadTooLarge`."""
    return codec.encode(args, "input")


def new_run_id() -> str:
    """A new id, 32 hex digits that sort by time: a UUID of version 7 (RFC 9562) without dashes."""
    random = int.from_bytes(os.urandom(10), "big")
    ms = time.time_ns() // 1_000_000
    return f"{ms:012x}7{random >> 68:03x}{0x8 | (random >> 64) & 0x3:x}{(random >> 4) & 0xFFF_FFFF_FFFF_FFFF:015x}"


class Client:
    """Starts runs of one namespace and finds them. Created by `connect`.

    Any number of calls may wait at the same time: they share a few connections and pipelines. A client belongs to the
    asyncio event loop of its first call: in another one its methods raise `UsageError` while that one is open, and work
    with new connections once it is closed (as when each task calls `asyncio.run`). After a fork, a client of the parent
    works in each child, with connections and an identity of the child's own.

    Every method that sends something raises `StoreUnavailable` when the server could not be reached for 10 seconds,
    `StoreFull` when it is out of memory for new work, another `StoreError` when it refuses a call,
    `NamespaceMissing` when no daemon has created the namespace, and `NamespaceMismatch` when the namespace belongs to
    another version of streamflow.
    """

    def __init__(self, store: Store, namespace: str, *, archive: str = "") -> None:
        self.namespace = check_name("namespace", namespace)
        self._archive_url = check_archive_url(archive)
        """Where the archive is for this client; empty: where the namespace has it."""
        self.keys = NamespaceKeys(namespace)
        self.kernel = Kernel(self.keys)
        self._sessions = Sessions(store, self.kernel, self.keys, self._archive_url)

    @property
    def store(self) -> Store:
        """The way to the server, for this process and event loop."""
        return self._sessions.here().store

    @property
    def _batcher(self) -> Batcher:
        return self._sessions.here().batcher

    @property
    def _waiter(self) -> ResultWaiter:
        return self._sessions.here().waiter

    @property
    def _tracing(self) -> Tracing | None:
        return self._sessions.here().tracing

    @property
    def wait_reader(self) -> WaitReader:
        """What open runs wait for, for the status."""
        return self._listings.waits

    @property
    def _listings(self) -> Listings:
        return self._sessions.here().listings

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections. Calls that still wait raise `StoreError`; runs are not affected."""
        await self._sessions.close()

    # --- starting -----------------------------------------------------------------------------------------------------

    @overload
    async def start(
        self,
        workflow: Callable[[*Ts], Awaitable[R]],
        /,
        *args: *Ts,
        id: str | None = None,
        tenant: str = "",
        delay: float | timedelta | None = None,
        at: datetime | None = None,
        timeout: float | timedelta | None = None,
        on_existing: OnExisting = "existing",
    ) -> Run[R]: ...
    @overload
    async def start(self, workflow: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> Run[R]: ...
    @overload
    async def start(
        self,
        workflow: str,
        /,
        *args: Any,
        id: str | None = None,
        tenant: str = "",
        delay: float | timedelta | None = None,
        at: datetime | None = None,
        timeout: float | timedelta | None = None,
        on_existing: OnExisting = "existing",
    ) -> Run[Any]: ...
    async def start(
        self,
        workflow: Callable[..., Awaitable[Any]] | str,
        /,
        *args: Any,
        id: str | None = None,
        tenant: str = "",
        delay: float | timedelta | None = None,
        at: datetime | None = None,
        timeout: float | timedelta | None = None,
        on_existing: OnExisting = "existing",
        **kwargs: Any,
    ) -> Run[Any]:
        """Start a run, and return its handle as soon as the server has stored it. No daemon has to be running.

        `workflow`: a workflow or reducer, or the name of one whose code is not here. `args`: its arguments, in order;
        those of a workflow whose code is here may be given by keyword, and `id` and `tenant` then with
        `workflow.options(id=…, tenant=…)`, which counts wherever they are not given here.
        `id`: chosen by the caller, or a generated one. Starting the same id again returns the run that exists,
        whatever the arguments; `run.created` tells which it was. In a namespace that is partitioned by tenant or
        workflow, that prefix is put before the id (`acme/invoice-17`): `run.id` has the full id.
        `tenant`: to whom the run belongs, for `Client.runs` and for partitioning by tenant.
        `delay`: seconds or a timedelta after which its code begins, by the server's clock; `at`: when (aware). The run
        exists at once: it waits for its start (`describe().begins`), keeps the signals that it gets, and can be
        cancelled. `timeout`: seconds or a timedelta that its code has, from when it begins, instead of the workflow's
        own. A parameter of the workflow that has one of these three names is the workflow's.
        `on_existing`: what to do if there is a run of this id. `"existing"` returns it; `"reject"` raises `RunExists`;
        `"new"` begins another run in its place if it has ended, of which nothing is left then, and returns it if it is
        open. Decided by the server in one step with the start, and once, also if its reply is lost.

        Raises `RunConflict` when the id belongs to a run of another workflow, `RunExists`, `InvalidName`, `UsageError`
        for something that is not a workflow, `TypeError` for arguments with which the workflow can't be called,
        `PayloadInvalid` and `PayloadTooLarge` for arguments that can't be encoded or are too large.

        >>> run = await client.start(invoice, 17, id="invoice-17", tenant="acme")
        >>> await client.start(remind, 17, delay=timedelta(days=3), timeout=600)
        """
        namespace = await self.read_namespace()
        name, parameters = _target(workflow)
        word = NOTHING
        if delay is not None or at is not None or timeout is not None or on_existing != "existing":
            options: dict[str, Any] = {"delay": delay, "at": at, "timeout": timeout}
            kwargs |= own_arguments(parameters, options)
            word = asked_for(workflow, **options, on_existing=on_existing)
        payload = _input(name, parameters, args, kwargs)
        if namespace.large_payload:
            payload = await self._smaller(payload, 0)
        start = _start(namespace, name, payload, *_options(workflow, id, tenant), word)
        shard = namespace.shard_of(start.run_id)
        tracing = self._tracing
        if tracing is None:
            header = await self._batcher.start(shard, start)
        else:
            with tracing.calling(f"start {name}", workflow=name, run_id=start.run_id) as start.trace:
                header = await self._batcher.start(shard, start)
        if on_existing == "new":
            header = await replaced(self._batcher, shard, start, header)
        return self._started(start, header, _decoder(name, parameters), _declared(workflow), on_existing)

    async def start_many(
        self,
        workflow: Callable[[*Ts], Awaitable[R]],
        inputs: Iterable[tuple[*Ts]],
        *,
        ids: Sequence[str] | None = None,
        tenant: str = "",
    ) -> list[Run[R]]:
        """Start a run for each tuple of arguments, with as few requests as possible; returns the handles in order.

        `inputs`: a tuple of arguments for each run. `ids`: an id for each, in the same order; else they are generated.

        Raises what `start` raises: errors of names and arguments before anything is sent; of the others only the first,
        when all other runs have been started. `UsageError` when there are not as many ids as inputs.

        >>> runs = await client.start_many(digest, [(["https://a.example"],), (["https://b.example"],)])
        """
        name, parameters = _target(workflow)
        assert parameters is not None
        payloads = [parameters.encode(args, {}) for args in inputs]
        if ids is not None and len(ids) != len(payloads):
            raise UsageError(
                f"start_many got {len(payloads)} inputs and {len(ids)} ids: pass one id for each input, or none"
            )
        only_id, tenant = _options(workflow, None, tenant)
        if only_id is not None and len(payloads) > 1 and ids is None:
            raise UsageError(
                f"start_many got {len(payloads)} inputs and options(id={only_id!r}): pass ids=, one for each input"
            )
        new = [NewRun(name, payload, only_id if ids is None else ids[i], tenant) for i, payload in enumerate(payloads)]
        runs: list[Run[Any]] = []
        for run in await self._start_all(new, _decoder(name, parameters), _declared(workflow)):
            if isinstance(run, Exception):
                raise run
            runs.append(run)
        return runs

    async def start_payloads(self, starts: Sequence[NewRun]) -> list[Run[Any] | StoreError | RunConflict]:
        """Start runs whose inputs are encoded already; returns a handle or an error for each, in the same order.

        For bulk loading: pass a few thousand at a time. Raises `InvalidName`, `PayloadTooLarge` or `PayloadInvalid`
        for the first that is not valid, before anything is sent.
        """
        return await self._start_all(starts, None, UNDECLARED)

    async def _start_all(
        self, new: Iterable[NewRun], decode: Decode | None, declared: Declared
    ) -> list[Run[Any] | StoreError | RunConflict]:
        namespace = await self.read_namespace()
        starts: list[Start] = []
        for run in new:
            codec.check_payload(run.payload, f"input of {run.workflow}")
            name = check_name("workflow", run.workflow)
            payload = await self._smaller(run.payload, 0) if namespace.large_payload else run.payload
            starts.append(_start(namespace, name, payload, run.id, run.tenant, run.word))
        tracing = self._tracing
        if tracing is None or not starts:
            headers = await self._send_starts(namespace, starts)
        else:
            names = dict.fromkeys(start.workflow for start in starts)
            name = next(iter(names)) if len(names) == 1 else "runs"
            with tracing.calling(f"start {name}", workflow=" ".join(names)[:1000], count=len(starts)) as trace:
                for start in starts:
                    start.trace = trace
                headers = await self._send_starts(namespace, starts)
        runs: list[Run[Any] | StoreError | RunConflict] = []
        for start, header in zip(starts, headers, strict=True):
            try:
                runs.append(
                    header if isinstance(header, StoreError) else self._started(start, header, decode, declared)
                )
            except RunConflict as conflict:
                runs.append(conflict)
        return runs

    async def _send_starts(self, namespace: Namespace, starts: list[Start]) -> list[bytes | StoreError]:
        return await settled([self._batcher.start(namespace.shard_of(start.run_id), start) for start in starts])

    def _started(
        self,
        start: Start,
        header: bytes,
        decode: Decode | None,
        declared: Declared,
        on_existing: OnExisting = "existing",
    ) -> Run[Any]:
        created = header[:1] in CREATED
        if not created:
            check_existing(start, decode_header(header), on_existing)
        return Run(self, start.run_id, decode, created, incarnation_of(header), declared)

    @overload
    async def signal_with_start(
        self,
        workflow: Callable[[*Ts], Awaitable[R]],
        /,
        *args: *Ts,
        id: str,
        signal: SignalDefinition[T],
        value: T,
        tenant: str = "",
        on_ended: OnEnded = "new",
        idempotency_id: str | None = None,
        remember: float | timedelta = REMEMBER,
    ) -> Run[R]: ...
    @overload
    async def signal_with_start(
        self,
        workflow: Callable[[*Ts], Awaitable[R]],
        /,
        *args: *Ts,
        id: str,
        signal: str | SignalDefinition[None],
        value: Any = None,
        tenant: str = "",
        on_ended: OnEnded = "new",
        idempotency_id: str | None = None,
        remember: float | timedelta = REMEMBER,
    ) -> Run[R]: ...
    @overload
    async def signal_with_start(
        self,
        workflow: str,
        /,
        *args: Any,
        id: str,
        signal: str | SignalDefinition[Any],
        value: Any = None,
        tenant: str = "",
        on_ended: OnEnded = "new",
        idempotency_id: str | None = None,
        remember: float | timedelta = REMEMBER,
    ) -> Run[Any]: ...
    async def signal_with_start(
        self,
        workflow: Callable[..., Awaitable[Any]] | str,
        /,
        *args: Any,
        id: str,
        signal: str | SignalDefinition[Any],
        value: Any = None,
        tenant: str = "",
        on_ended: OnEnded = "new",
        idempotency_id: str | None = None,
        remember: float | timedelta = REMEMBER,
    ) -> Run[Any]:
        """Send a signal to the run of this id, and start the run if none is open: in one step, so that it never gets
        lost between the two. Returns the run's handle when the server has stored both; `run.created` tells whether the
        run was started.

        `workflow` and `args`: of the run, if it is started. `id`: its id; `tenant`: to whom it belongs. `signal` and
        `value`: as in `run.signal`; a started run gets the signal as its first message.
        `on_ended`: if the run of this id has ended. `"new"` begins another one in its place, of which nothing is left
        then; `"reject"` raises `RunEnded`.
        `idempotency_id`: a call for this id with the same one does nothing more, whatever its other arguments, for as
        long as the server remembers it: `remember`, seconds or a timedelta, by default a day. Without one, each call
        is a signal of its own, which is sent once also if its reply is lost.

        Raises `RunConflict` when the id belongs to a run of another workflow, which gets nothing; `RunEnded`; and what
        `start` and `run.signal` raise for arguments and values.

        >>> await client.signal_with_start(cart, "kim", id="cart-kim", signal=add, value=item, idempotency_id=click)
        """
        check_on_ended(on_ended)
        declared = _declared(workflow)
        name, payload = declared.payload("signal", signal, value)
        start, decode = _with_start(await self.read_namespace(), workflow, args, id, tenant)
        with self._calling(f"signal {name}", signal=name, run_id=start.run_id) as start.trace:
            message = Message("signal", start.run_id, signal_body(name, payload, start.trace))
            answer = await self._put_once(once(message, idempotency_id, remember, start), on_ended)
        return Run(self, start.run_id, decode, answer.letter == "+", answer.created, declared)

    @overload
    async def ask_with_start(
        self,
        workflow: Callable[[*Ts], Awaitable[Any]],
        /,
        *args: *Ts,
        id: str,
        question: QuestionDefinition[T, A],
        value: T,
        timeout: float | timedelta | None = None,
        tenant: str = "",
        on_ended: OnEnded = "new",
        idempotency_id: str | None = None,
        remember: float | timedelta = REMEMBER,
    ) -> A: ...
    @overload
    async def ask_with_start(
        self,
        workflow: Callable[[*Ts], Awaitable[Any]],
        /,
        *args: *Ts,
        id: str,
        question: str | QuestionDefinition[None, Any],
        value: Any = None,
        timeout: float | timedelta | None = None,
        type: Any = ...,
        tenant: str = "",
        on_ended: OnEnded = "new",
        idempotency_id: str | None = None,
        remember: float | timedelta = REMEMBER,
    ) -> Any: ...
    @overload
    async def ask_with_start(
        self,
        workflow: str,
        /,
        *args: Any,
        id: str,
        question: str | QuestionDefinition[Any, Any],
        value: Any = None,
        timeout: float | timedelta | None = None,
        type: Any = ...,
        tenant: str = "",
        on_ended: OnEnded = "new",
        idempotency_id: str | None = None,
        remember: float | timedelta = REMEMBER,
    ) -> Any: ...
    async def ask_with_start(
        self,
        workflow: Callable[..., Awaitable[Any]] | str,
        /,
        *args: Any,
        id: str,
        question: str | QuestionDefinition[Any, Any],
        value: Any = None,
        timeout: float | timedelta | None = None,
        type: Any = UNSET,
        tenant: str = "",
        on_ended: OnEnded = "new",
        idempotency_id: str | None = None,
        remember: float | timedelta = REMEMBER,
    ) -> Any:
        """Ask the run of this id a question, and start the run if none is open, in one step; returns its answer.

        As `signal_with_start`; `question`, `value`, `timeout` and `type` are those of `run.ask`. With the
        `idempotency_id` of an earlier call the question isn't asked again: the run's answer to that call is returned.

        Raises what `signal_with_start` and `run.ask` raise.

        >>> left = await client.ask_with_start(stock, "shoe", id="stock-shoe", question=reserve, value=2, timeout=5)
        """
        check_on_ended(on_ended)
        declared = _declared(workflow)
        name, payload = declared.payload("question", question, value)
        wanted = answer_type(declared, question, type)
        start, decode = _with_start(await self.read_namespace(), workflow, args, id, tenant)
        with self._calling(f"ask {name}", ask=name, run_id=start.run_id) as start.trace:
            message = once(Message("ask", start.run_id, b""), idempotency_id, remember, start)
            message.message.body = ask_body(name, payload, message.digest, start.trace)
            answer = await self._put_once(message, on_ended)
            run: Run[Any] = Run(self, start.run_id, decode, answer.letter == "+", answer.created, declared)
            answered = self._answer_of(run.id, answer.created, message.digest, answer.letter == "d")
            return await run._answer(name, wanted, timeout, answered)

    # --- finding ------------------------------------------------------------------------------------------------------

    @overload
    def run(self, run_id: str) -> Run[Any]: ...
    @overload
    def run(self, run_id: str, returns: Workflow[..., R]) -> Run[R]: ...
    @overload
    def run(self, run_id: str, returns: type[R]) -> Run[R]: ...
    def run(self, run_id: str, returns: Any = Any) -> Run[Any]:
        """The handle of an existing run. Nothing is sent: that there is no such run shows in the handle's first call.

        `run_id`: the full id, with its prefix if the namespace is partitioned by tenant or workflow. Each call of the
        handle is for the run that has the id then: after `forget`, that may be another one.
        `returns`: the type as which `result` decodes the result; by default it returns plain data. Or the run's
        workflow, by whose code the handle then knows the result's type, and the signals, questions and published values
        that it declares.

        Raises `InvalidName`, and `PayloadInvalid` for a type that can't be decoded.

        >>> total = await client.run("acme/invoice-17", int).result(timeout=30)
        """
        check_run_id(run_id)
        return Run(self, run_id, _returns(run_id, returns), False, declared=_declared(returns))

    async def runs(
        self,
        *,
        status: Status | str | None = None,
        workflow: str | None = None,
        tenant: str | None = None,
        attributes: Mapping[str, Attribute] | None = None,
        error: str | None = None,
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        roots: bool = False,
        sort: str | None = None,
        after: str = "",
        limit: int = 20,
        waits: bool = False,
    ) -> RunPage:
        """The newest `limit` runs that match all filters, over all shards.

        `status`: pending, running, stuck, completed, failed or cancelled. `workflow`: its name. `tenant`: its name.
        `attributes`: runs that have all of these, as set by `sf.set_attributes` (`1` is not `"1"`). `error`: a part of
        the error of a failed run (`ConnectTimeout: api:443`) or of the reason of a stuck one, in whichever case; of
        stuck runs the newest 1,000 are searched. `since`, `until`: created at or after, and before that time: an aware
        datetime, or a text like `2h` (ago), `2026-11-28` or `2026-11-28T14:02+01:00` (UTC, if it says no zone).
        `roots`: no children.
        Ordered by the last change of status, newest first; with `tenant` or `attributes` by start, newest first. Only
        runs of workflows that daemons have registered are found, unless `workflow` names another one. With filters that
        few runs match, only the newest 20,000 runs of each listing are searched. A run or listing whose key somebody
        has damaged is left out, with a warning in the log.

        `sort`: "created" or "changed", to be sure of the order: runs are sorted by start where `tenant` or `attributes`
        are given, or the status is pending or running, and by change elsewhere. The other order is refused.
        The page's `after` is for the next one, with the same filters: what has started or changed since isn't in it.
        `looked_at` says of how many runs the filters were asked.
        `waits`: also what open runs wait for (`waits_for`), of the newest 100 among those that are found. That reads
        the newest part of their records, about 32 KB of each.

        Raises `UsageError` for an unknown status, a limit below 1, an attribute that no run can have, a time or a
        cursor that is none, or an order that the listing hasn't; `InvalidName`.

        >>> page = await client.runs(status="running", attributes={"customer": "acme"}, since="2h")
        >>> page = await client.runs(status="running", attributes={"customer": "acme"}, since="2h", after=page.after)
        """
        filters = _filters(status, workflow, tenant, attributes, limit, error)
        now_ms = await self._now_for(since, until)
        filters, position = _page_of(filters, since, until, roots, sort, after, now_ms)
        return await self._listings.runs(await self.read_namespace(), filters, limit, position, waits)

    async def find(self, text: str) -> FoundRuns:
        """The run whose id is `text`, or if there is none the runs whose ids begin with it.

        At most 20,000 ids are compared, the newest of each listing: `is_certain` says whether that were all. As in
        listings, only runs of workflows that daemons have registered are found by the beginning of their ids. A run in
        the archive is found by its whole id.
        Raises `InvalidName` if no id can begin so.

        >>> (await client.find("invoice-17f3")).ids
        ['invoice-17f30c9a']
        """
        found = await self._listings.find(await self.read_namespace(), check_run_id(text))
        if found.ids == [text] or (archived := await self._archived_runs()) is None:
            return found
        try:
            is_archived = await archived.archive.incarnations(text)
        except ArchiveError:
            if not found.ids:
                raise
            return found
        return FoundRuns([text], 1, 1) if is_archived else found

    async def _every(
        self,
        within: Collection[Status],
        *,
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        roots: bool = False,
        **filters: Any,
    ) -> AsyncGenerator[list[RunSummary]]:
        """All runs that match the filters of `runs` and have one of these statuses, some at a time and in no order."""
        now_ms = await self._now_for(since, until)
        wanted, _ = _page_of(_filters(**filters), since, until, roots, None, "", now_ms)
        async for found in self._listings.every(await self.read_namespace(), wanted, within):
            yield found

    async def _now_for(self, since: datetime | str | None, until: datetime | str | None) -> int:
        """The server's clock, ms, if one of the times is counted from now."""
        if not is_relative(since) and not is_relative(until):
            return 0
        return clock_of(await self.store.one(Call.plain("TIME", near=self.keys.members)))

    async def newest(self) -> Changes:
        """The runs whose status has changed last, at most 200, as the views have them: about a second old. One GET,
        however many runs there are; `runs` reads the runs themselves, and has filters."""
        return changes_in(await self._batcher.call(Call.plain("GET", self.keys.view(VIEW))))

    async def workflows(self) -> dict[str, WorkflowInfo]:
        """The workflows and reducers that daemons have registered, by name; `unserved_ms` tells those that only earlier
        daemons had."""
        return await self._listings.served()

    async def forget(self, run_id: str) -> bool:
        """Delete an ended run with its history and what it published. Returns False when there is no such run.

        `run_id`: the full id. Raises `RunError` when the run is open: cancel it first. `InvalidName`.
        """
        return await self._forget(check_run_id(run_id), 0)

    async def _forget(self, run_id: str, created: int) -> bool:
        shard = (await self.read_namespace()).shard_of(run_id)
        archived = await self._archived_runs()
        while True:
            header = await self._ended_header(shard, run_id, created, "forgotten")
            # First there: who can't use the archive deletes nothing, and finds that out.
            removed = 0 if archived is None else await archived.archive.remove(run_id, created)
            if header is None:
                return removed > 0
            if await self._delete(shard, run_id, header):
                return True

    async def _ended_header(self, shard: int, run_id: str, created: int, what: str) -> Header | None:
        """None if there is no such run on the server. Raises `RunError` if it is open."""
        line, _ = await self._batcher.peek(shard, run_id)
        if not line or created not in (0, incarnation_of(line)):
            return None
        header = decode_header(line)
        if header.is_open:
            raise RunError(f"run {run_id} is {header.status}; only ended runs can be {what}: cancel it first", run_id)
        return header

    async def _delete(self, shard: int, run_id: str, header: Header) -> bool:
        """False if the run isn't as it was any more."""
        if not await self._batcher.call(self.kernel.forget_runs(shard, [(run_id, header)])):
            return False
        self._sessions.here().recent.settled(run_id)
        return True

    # --- the archive --------------------------------------------------------------------------------------------------

    async def purge(self, run_id: str) -> bool:
        """Move an ended run into the namespace's archive now, as daemons do when its retention is over. Returns False
        when there is no such run on the server.

        It is deleted here when the storage has confirmed it. Then its id is free again, and `run(id)` reads it there.
        `run_id`: the full id. Raises `RunError` when the run is open: cancel it first; `UsageError` when the namespace
        has no archive, `ArchiveError`, `InvalidName`.
        """
        return await self._purge(check_run_id(run_id), 0)

    async def _purge(self, run_id: str, created: int) -> bool:
        shard = (await self.read_namespace()).shard_of(run_id)
        archived = await self._needed_archive()
        keys = self.keys.shard(shard)
        while True:
            header = await self._ended_header(shard, run_id, created, "archived")
            if header is None:
                return False
            calls = [Call.plain("LRANGE", keys.run(run_id), 0, -1), Call.plain("HGETALL", keys.published(run_id))]
            record, published = await settled([self._batcher.call(call) for call in calls])
            for answer in (record, published):
                if isinstance(answer, StoreError):
                    raise answer
            line, state, *transitions = cast("list[bytes]", record) or [b"", b""]
            if line != header.encode():
                continue
            named = {name.decode(): value for name, value in cast("dict[bytes, bytes]", published).items()}
            await archived.add(ArchivedRun(run_id, line, state, transitions, named))
            if await self._delete(shard, run_id, header):
                return True

    async def restore(self, run_id: str, *, created: datetime | None = None) -> Run[Any]:
        """Put a run back from the archive onto the server: then it can be retried, and is listed as any ended run. Its
        retention begins again, and it stays in the archive, too. Returns its handle.

        `run_id`: the full id. `created`: of several runs that had the id the one that was created then, as in
        `RunSummary.created`; by default the last one. A run that is on the server already stays as it is.

        Raises `RunNotFound` when it isn't in the archive, `RunConflict` when another run has the id: forget that one
        first; `UsageError` when the namespace has no archive, `ArchiveError`, `ArchiveDamaged`, `StoreFull`.
        """
        return await self._restore(check_run_id(run_id), 0 if created is None else created_ms(created))

    async def _restore(self, run_id: str, created: int) -> Run[Any]:
        shard = (await self.read_namespace()).shard_of(run_id)
        archived = await self._needed_archive()
        run = await archived.archive.find(run_id, created)
        if run is None:
            raise RunNotFound(f"there is no run {run_id} in the archive {archived.archive.shown}", run_id)
        values = list(run.published.items())
        line = await self._batcher.call(self.kernel.restore_run(shard, run_id, run.record, values))
        if incarnation_of(line) != incarnation_of(run.header):
            raise RunConflict(f"the id {run_id} belongs to another run by now: forget that one first", run_id)
        return Run(self, run_id, None, False, incarnation_of(line))

    def archived_run(self, run_id: str, *, created: datetime | None = None) -> Run[Any]:
        """The handle of the run that was created then, as in `RunSummary.created`: of an earlier one of its id, too.

        >>> for summary in await client.archived_runs(workflow="invoice"):
        ...     events = await client.archived_run(summary.id, created=summary.created).history()
        """
        return Run(self, check_run_id(run_id), None, False, 0 if created is None else created_ms(created))

    async def archived_runs(
        self,
        *,
        status: Status | str | None = None,
        workflow: str | None = None,
        tenant: str | None = None,
        attributes: Mapping[str, Attribute] | None = None,
        error: str | None = None,
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        roots: bool = False,
        after: str = "",
        limit: int = 20,
    ) -> RunPage:
        """Runs in the namespace's archive that match all filters, which are those of `runs`; those that were archived
        last come first. Runs that are on the server, too, are left out.

        It reads the archive's index objects, one for up to 500 runs, until `limit` runs match, or until 20,000 were
        looked at: then `after` of the page goes on. A damaged one is left out, with a warning in the log. A run whose
        daemon was killed while it archived it is archived again, and may be in two pages.

        Raises what `runs` raises; `UsageError` when the namespace has no archive, and `ArchiveError`.

        >>> page = await client.archived_runs(status="failed", workflow="invoice", since="90d")
        """
        archived = await self._needed_archive()
        filters = _filters(status, workflow, tenant, attributes, limit, error)
        filters, _ = _page_of(filters, since, until, roots, None, "", await self._now_for(since, until))
        position: Position | None = None
        if after:
            cursor = cursor_of(after, listing_name(filters))
            position = cursor.position
            filters = msgspec.structs.replace(filters, since=cursor.since, until=cursor.until)
        return await archived.page(await self.read_namespace(), filters, limit, position)

    async def hibernating(self) -> int:
        """How many runs were moved out of the server's memory, because they have waited for long."""
        namespace = await self.read_namespace()
        return sum((await self._sessions.here().hibernating.counts(range(namespace.shards))).values())

    async def hibernating_runs(
        self, *, workflow: str | None = None, limit: int = 100, after: str = ""
    ) -> HibernatingPage:
        """Runs that were moved out of the server's memory, because they have waited for long: `runs` doesn't list them.
        `client.run(id)` reads one, with its history, and whatever is sent to it wakes it.

        At most `limit`, in no order that means something; `after` of a page is where the next one begins. `workflow`:
        only its runs, and those whose workflow has a name that is too long for what the server keeps (21 characters, 14
        of a child). A page is read from the server alone, not from the archive.

        >>> for run in await client.hibernating_runs(workflow="reminder"):
        ...     print(run.id, run.due)
        """
        namespace = await self.read_namespace()
        return await self._sessions.here().hibernating.page(range(namespace.shards), workflow, limit, after)

    async def _every_hibernating(self, *, workflow: str | None = None) -> AsyncGenerator[list[RunSummary]]:
        """All runs that were moved out of the server's memory, a bucket at a time. One whose workflow has a name that
        the server doesn't keep is read from storage, if it matters. Raises `ArchiveError`."""
        namespace = await self.read_namespace()
        async with aclosing(self._sessions.here().hibernating.every(range(namespace.shards))) as every:
            async for _, runs in every:
                found: list[RunSummary] = []
                for run in runs:
                    name = run.workflow
                    if workflow and not name:
                        with contextlib.suppress(RunNotFound):  # it was forgotten meanwhile
                            name = (await self.run(run.id).describe(waits=False)).workflow
                    if not workflow or name == workflow:
                        found.append(summary_of_hibernating(run, name))
                yield found

    async def _every_archived(
        self,
        *,
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        roots: bool = False,
        **filters: Any,
    ) -> AsyncGenerator[list[RunSummary]]:
        """All runs in the archive that match, some at a time."""
        archived = await self._needed_archive()
        now_ms = await self._now_for(since, until)
        wanted, _ = _page_of(_filters(**filters), since, until, roots, None, "", now_ms)
        async with aclosing(archived.every(await self.read_namespace(), wanted)) as every:
            async for found in every:
                yield found

    async def _archived_runs(self) -> ArchivedRuns | None:
        """None if the namespace has no archive."""
        session = self._sessions.here()
        url = self._archive_url or (await self.read_namespace()).archive
        if session.archived is None or session.archived.archive.url != url:
            archive = open_archive(url, self.namespace)
            session.archived = None if archive is None else ArchivedRuns(archive, session.batcher)
        return session.archived

    async def _needed_archive(self) -> ArchivedRuns:
        archived = await self._archived_runs()
        if archived is None:
            raise UsageError(
                f"namespace {self.namespace} has no archive: a daemon with --archive URL gives it one "
                "(docs/guide/retention.md)"
            )
        return archived

    async def _in_archive(self, run_id: str, created: int, missing: RunNotFound) -> ArchivedRun:
        """A run that isn't on the server. Raises `missing` if it isn't in the archive either."""
        archived = await self._archived_runs()
        run = None if archived is None else await archived.archive.find(run_id, created)
        if run is None:
            raise missing
        return run

    async def _elsewhere(self, run_id: str, created: int, missing: RunNotFound) -> ArchivedRun:
        """A run that isn't in the server's memory: it hibernates, or is in the archive. Raises `missing` if neither."""
        shard = (await self.read_namespace()).shard_of(run_id)
        parked = await self._sessions.here().hibernating.find(shard, run_id, created)
        return await self._in_archive(run_id, created, missing) if parked is None else parked.as_archived

    async def _only_archived(self, run_id: str, created: int, missing: RunNotFound, but: str = "") -> RunNotFound:
        """The error for a run that can't do what is asked, because it isn't on the server. `but`: what else to say."""
        try:
            await self._in_archive(run_id, created, missing)
        except (RunNotFound, StoreError, UsageError):
            return missing
        text = f"run {run_id} is in the archive, and not on the server: `streamflow restore {run_id}` puts it back"
        return RunNotFound(f"{text}{but}", run_id)

    async def _storage_wait(self, run_id: str) -> tuple[Wait | None, bool]:
        """What an open run waits for in storage, as its daemon has said last, and whether it hibernates. Nothing is
        read there."""
        shard = (await self.read_namespace()).shard_of(run_id)
        line, _ = await self._batcher.peek(shard, run_id)
        if not line or not (header := decode_header(line)).is_open:
            return None, False
        _, located = await self._listings.waits.locate(shard, run_id, header, [])
        return next((wait for wait in located if wait.kind == "storage"), None), is_asleep(line)

    async def pause_queue(self, queue: str, *, reason: str = "", by: str = "") -> Pause | None:
        """Have workers take nothing more from a queue, within a heartbeat. Attempts that they have go on, and end.

        Steps that are scheduled meanwhile wait in the queue, for as long as it takes: `timeout` counts from the moment
        when a worker begins one. `reason` and `by` (who wants it) are shown. Returns what had paused it before, which
        stays, or None. Raises `InvalidName`.

        >>> await client.pause_queue("gpu", reason="the driver is updated", by="kim")
        """
        return await self._note_pause(QUEUE, check_name("queue", queue), new_note(reason, by))

    async def resume_queue(self, queue: str) -> Pause | None:
        """Have workers take attempts from a paused queue again. Returns what had paused it, None if nothing had."""
        return await self._note_pause(QUEUE, check_name("queue", queue), b"")

    async def paused_queues(self) -> dict[str, Pause]:
        """The queues that are paused, by name."""
        return paused_queues(await self._batcher.call(read_pauses(self.keys)))

    async def pause_workflow(self, workflow: str, *, reason: str = "", by: str = "") -> Pause | None:
        """Have the runs of a workflow begin nothing new, within a heartbeat of the daemons: no step, no other attempt
        of one, no child. Steps that run end, and their results are recorded, as are signals and questions; new runs are
        accepted, and wait.

        A run that is asked to cancel cleans up all the same. `reason` and `by` (who wants it) are shown. Returns what
        had paused it before, which stays, or None. Raises `InvalidName`.

        >>> await client.pause_workflow("order", reason="the bank is down", by="kim")
        """
        return await self._note_pause(WORKFLOW, check_name("workflow", workflow), new_note(reason, by))

    async def resume_workflow(self, workflow: str) -> Pause | None:
        """Have the runs of a paused workflow go on, but for those that are paused themselves: each gets what came
        meanwhile, in order. Returns what had paused it, None if nothing had."""
        return await self._note_pause(WORKFLOW, check_name("workflow", workflow), b"")

    async def paused_workflows(self) -> dict[str, Pause]:
        """The workflows that are paused, by name."""
        return paused_workflows(await self._batcher.call(read_pauses(self.keys)))

    async def _note_pause(self, kind: str, name: str, note: bytes) -> Pause | None:
        await self.read_namespace()
        before = await self._batcher.call(self.kernel.pause(kind + name, note))
        return read_note(before) if before and before != note else None

    def events(
        self,
        group: str,
        *,
        workflows: Iterable[Startable | str] | None = None,
        kinds: Iterable[type | str] | None = None,
        from_: From = "now",
        resume: Resume | None = None,
        dead_after: float = 10.0,
    ) -> Subscription:
        """Subscribe: every committed event of all shards, at least once, in order of each run, with its payloads.

        `group`: the name under which the namespace remembers what was acknowledged. The consumers of a group, in any
        number of processes, share the shards: each event goes to one of them, and when one leaves or dies, the others
        go on with its shards. Groups know nothing of each other.
        `workflows`, `kinds`: only events of these workflows, and of these classes of `streamflow.events` or their
        names.
        `from_`: where the group begins when it is new: `"now"`, `"oldest"` (whatever the logs still have), or an aware
        time. A group that exists goes on behind what it has acknowledged.
        `resume`: offsets by shard, or an async function that gives the offset of a shard or None, behind which to
        begin if the group has acknowledged less: of who stores offsets with what the events have changed.
        `dead_after`: seconds without a heartbeat, after which the others take over the shards of this consumer. Code
        that blocks the event loop for so long gets events again that others have got meanwhile.

        An event is acknowledged when the next one is asked for, and at the end of the block if that ends without an
        exception. A log entry (a commit) is acknowledged as a whole: who stops in the middle of one gets it again.
        While a namespace has groups, what a group has not acknowledged is not trimmed, up to `group_bytes` and
        `group_age`; what was lost beyond that is logged, and in `subscription.lost`.

        Raises `InvalidName`, `UsageError` for a workflow or kind that is none.

        >>> async with client.events("billing", workflows=[order], kinds=[RunCompleted]) as subscription:
        ...     async for event in subscription:
        ...         await book(event.run_id, event.id)
        """
        from streamflow.client.subscription import Subscription

        return Subscription(
            lambda: self.store,
            self.kernel,
            self.read_namespace,
            group,
            workflows=workflows,
            kinds=kinds,
            from_=from_,
            resume=resume,
            dead_after=dead_after,
            join=lambda event: self.payloads.joined_event(event),
        )

    async def groups(self) -> list[Group]:
        """The groups of subscribers, with how far each is behind, by name."""
        return await (await self._groups()).all()

    async def group(self, name: str) -> Group:
        """One group of subscribers, and how far it is in each shard. Raises `UsageError` if there is none."""
        return await (await self._groups()).one(name)

    async def reset_group(self, name: str, to: From) -> None:
        """Have a group of subscribers go on from elsewhere: `"now"`, `"oldest"`, or an aware time. What its consumers
        have in hand counts no more: they begin again from there. Raises `UsageError` if there is no such group.

        >>> await client.reset_group("billing", datetime(2026, 7, 1, tzinfo=UTC))
        """
        await (await self._groups()).reset(name, to)

    async def remove_group(self, name: str) -> bool:
        """Remove a group of subscribers: what only it waited for may be trimmed. Consumers that still run end with
        `GroupRemoved`. Returns False if there is no such group."""
        return await (await self._groups()).remove(name)

    async def _groups(self) -> Groups:
        from streamflow.client.groups import Groups

        return Groups(self.store, self.kernel, (await self.read_namespace()).shards)

    async def queues(self) -> list[str]:
        """The queues that workers or steps have used, sorted."""
        return sorted(name.decode() for name in await self._batcher.call(Call.plain("HKEYS", self.keys.queues)))

    async def read_namespace(self) -> Namespace:
        """Shards and partition of the namespace: read once, and again after the server was restarted or replaced. Every
        few seconds it is also read beside the calls, because somebody may have deleted the data.

        Raises `NamespaceMissing`, or `NamespaceMismatch` for a namespace of another version of streamflow.
        """
        session = self._sessions.here()
        if (namespace := session.namespace) is not None:
            return namespace
        namespace = session.meta
        if namespace is not None and session.server_generation == session.store.server_generation:
            session.read_again_at = time.monotonic() + READ_AGAIN_SECONDS
            self._begin_to_read(session)
            return namespace
        self._begin_to_read(session)
        # Of a thousand first calls one reads, and all continue at the same moment: a lock would release them one after
        # the other, each with its own pipeline.
        assert session.reading is not None
        return await asyncio.shield(session.reading)

    def _begin_to_read(self, session: Session) -> None:
        if session.reading is None or session.reading.done():
            session.reading = asyncio.create_task(self._read_namespace(session))
            session.reading.add_done_callback(_retrieve)

    async def _read_namespace(self, session: Session) -> Namespace:
        server_generation = session.store.server_generation
        record = await session.batcher.call(read_namespace(self.keys))
        session.meta = None  # until it is known to be right: the next call raises what is raised here
        namespace = namespace_from(self.namespace, record)
        if namespace is None:
            raise NamespaceMissing(
                f"there is no namespace {self.namespace!r} at {redacted(session.store.url)}. The first daemon creates "
                f"it: streamflow daemon --app MODULE:app --namespace {self.namespace}"
            )
        use_durability(session.store, self.kernel, namespace.durability)
        session.meta = namespace
        session.read_again_at = time.monotonic() + READ_AGAIN_SECONDS
        session.waiter.identity = namespace.identity
        session.server_generation = server_generation
        return namespace

    # --- for Run ------------------------------------------------------------------------------------------------------

    # `created` tells the run of a handle from others of its id; 0: whichever has the id.

    def _numbered(self, run_id: str, created: int, origin: Origin) -> Run[Any]:
        return NumberedRun(self, run_id, None, False, created, origin)

    async def _ended(self, run_id: str, created: int) -> bytes:
        session = self._sessions.here()
        namespace = session.namespace or await self.read_namespace()
        shard = namespace.shard_of(run_id)
        while True:
            history = session.recent.history_of(shard)
            try:
                ended = await session.waiter.ended(shard, run_id, created)
            except RunNotFound as missing:
                return await self._joined((await self._in_archive(run_id, created, missing)).last)
            if await self._is_safe(session, shard, history):
                session.recent.settled(run_id)
                return await self._joined(ended)

    async def _answered(self, run_id: str, created: int, ask_id: str, body: bytes) -> bytes:
        namespace = await self.read_namespace()
        shard = namespace.shard_of(run_id)
        session = self._sessions.here()
        if namespace.large_payload:
            body = await self._smaller(body, 1)
        message = Message("ask", run_id, body, created)
        history = session.recent.history_of(shard)
        try:
            answer = await self._waiter.answered(
                shard, run_id, created, ask_id, lambda: self._batcher.post(shard, message)
            )
        except RunNotFound as missing:
            raise await self._only_archived(run_id, created, missing) from None
        if not await self._is_safe(session, shard, history):
            raise Unconfirmed("the server that had the answer was replaced before it was confirmed: ask again")
        return await self._joined(answer)

    async def _put_once(self, once: OnceMessage, on_ended: OnEnded) -> PutOnce:
        shard = (await self.read_namespace()).shard_of(once.message.run_id)
        return await put(self._batcher, shard, once, on_ended)

    async def _answer_of(self, run_id: str, created: int, ask_id: str, was_asked: bool) -> bytes:
        """The answer to a question that the run has. `was_asked`: by an earlier call, perhaps long ago."""
        shard = (await self.read_namespace()).shard_of(run_id)
        session = self._sessions.here()
        history = session.recent.history_of(shard)
        answer: bytes | None = None
        if was_asked and not await self._batcher.call(Call.plain("GET", self.keys.shard(shard).answer(ask_id))):
            answer = answer_in(await self._history(run_id, created), ask_id)
        if answer is None:
            answer = await self._waiter.answered(shard, run_id, created, ask_id, None)
        if not await self._is_safe(session, shard, history):
            raise Unconfirmed("the server that had the answer was replaced before it was confirmed: ask again")
        return await self._joined(answer)

    def _calling(self, what: str, **attributes: str) -> contextlib.AbstractContextManager[str]:
        tracing = self._tracing
        return contextlib.nullcontext("") if tracing is None else tracing.calling(what, **attributes)

    async def _requested(self, kind: str, run_id: str, created: int, request_id: str, body: bytes) -> bytes:
        shard = (await self.read_namespace()).shard_of(run_id)
        session = self._sessions.here()
        message = Message(kind, run_id, body, created)
        history = session.recent.history_of(shard)
        post = lambda: self._batcher.post(shard, message)  # noqa: E731
        answer = await self._waiter.requested(shard, run_id, created, kind, request_id, post)
        if not await self._is_safe(session, shard, history):
            raise Unconfirmed("the server that had the answer was replaced before it was confirmed: look at the run")
        return answer

    async def _header(self, run_id: str, created: int) -> tuple[Header, bytes]:
        """And the last transition, if the run has ended."""
        shard = (await self.read_namespace()).shard_of(run_id)
        line, last = await self._batcher.peek(shard, run_id)
        check_found(line, run_id, created)
        return decode_header(line), last

    async def _record_of(self, run_id: str, created: int) -> list[bytes]:
        """Header, state and transitions."""
        shard = (await self.read_namespace()).shard_of(run_id)
        key = self.keys.shard(shard).run(run_id)
        record: list[bytes] = await self._batcher.call(Call.plain("LRANGE", key, 0, -1))
        try:
            check_found(record[0] if record else b"", run_id, created)
        except RunNotFound as missing:
            return (await self._elsewhere(run_id, created, missing)).record
        return record

    async def _start_fork(
        self, fork: RunForked, run_id: str, decode: Decode | None, declared: Declared, *, anywhere: bool
    ) -> Run[Any]:
        namespace = await self.read_namespace()
        start = _start(namespace, fork.workflow, encode_fork(fork), run_id, fork.tenant)
        shard = namespace.shard_of(start.run_id)
        tracing = self._tracing
        if tracing is None:
            header = await self._batcher.start(shard, start)
        else:
            with tracing.calling(f"fork {fork.workflow}", workflow=fork.workflow, run_id=start.run_id) as start.trace:
                header = await self._batcher.start(shard, start)
        run = self._started(start, header, decode, declared)
        if not run.created:
            record = await self._record_of(run.id, incarnation_of(header))
            forking.check_same(run.id, record, fork, anywhere=anywhere)
        return run

    async def view(
        self,
        view: str | View,
        /,
        *,
        since: datetime | None = None,
        labels: Mapping[str, str | int] | None = None,
        **more: str | int,
    ) -> ViewReading:
        """Read a view of an app, as it was merged last: about a second ago.

        `labels`, and all other arguments by their names: only keys that have these labels. `since`: only windows that
        begin at or after that aware datetime. Raises `UnknownView` if no daemon has counted it yet, and `UsageError`
        for a `since` that isn't a time: a label of that name is one of `labels`.

        >>> cost = await client.view("cost", tenant="acme")
        >>> cost.rows[0].key["model"], cost.rows[0].value
        """
        return await read_view(self.store, self.keys, view, wanted_labels(labels, more, since), since)

    async def views(self) -> list[str]:
        """The names of the views of apps that daemons have counted."""
        return await view_names(self.store, self.keys)

    async def _is_safe(self, session: Session, shard: int, history: int) -> bool:
        """A result that was read counts when what it came from is as safe as the namespace's `durability` asks for.
        `history`: the shard's before it was read. False if it has another one since: what was read may be lost."""
        store = session.store
        if store.confirmation is None:
            return True
        await store.confirmation.wait(store.patience, self.keys.shard(shard).owner)
        return history == session.recent.history_of(shard)

    async def _published(self, run_id: str, created: int, *keys: str) -> dict[str, Raw]:
        """What the run has published under these keys, or without keys under all. Raises `RunNotFound`."""
        shard = (await self.read_namespace()).shard_of(run_id)
        key = self.keys.shard(shard).published(run_id)
        command = ("HMGET", key, *keys) if keys else ("HGETALL", key)
        read = self._batcher.call(Call.plain(*command))
        replies = await settled([self._batcher.peek(shard, run_id), read])
        for reply in replies:
            if isinstance(reply, StoreError):
                raise reply
        (line, _), values = cast("tuple[tuple[bytes, bytes], Any]", tuple(replies))
        try:
            check_found(line if not is_asleep(line) else b"", run_id, created)
        except RunNotFound as missing:
            archived = (await self._elsewhere(run_id, created, missing)).published
            wanted = {key: value for key, value in sorted(archived.items()) if not keys or key in keys}
            whole = await self._all_joined(list(wanted.values()))
            return {key: Raw(value) for key, value in zip(wanted, whole, strict=True)}
        if keys:
            found = {key: value for key, value in zip(keys, values, strict=True) if value is not None}
        else:
            found = {name.decode(): value for name, value in sorted(values.items())}
        whole = await self._all_joined(list(found.values()))
        return {key: Raw(value) for key, value in zip(found, whole, strict=True)}

    async def _post(self, kind: str, run_id: str, created: int, body: bytes, origin: Origin | None = None) -> None:
        namespace = await self.read_namespace()
        shard = namespace.shard_of(run_id)
        if namespace.large_payload:
            body = await self._smaller(body, 1)
        answer = await self._batcher.post(shard, Message(kind, run_id, body, created), origin)
        try:
            check_posted(answer, kind, run_id)
        except RunNotFound as missing:
            raise await self._only_archived(run_id, created, missing) from None

    async def _describe(self, run_id: str, created: int, waits: bool) -> RunDescription:
        shard = (await self.read_namespace()).shard_of(run_id)
        line, last = await self._batcher.peek(shard, run_id)
        try:
            check_found(line, run_id, created)
        except RunNotFound as missing:
            return describe_archived(await self._in_archive(run_id, created, missing))
        if is_asleep(line):
            return await self._describe_hibernating(shard, run_id, line)
        header = decode_header(line)
        with contextlib.suppress(ArchiveError):  # then the reference is shown
            last = await self._joined(last)
        is_stopped = header.status in STOPPED
        found = describe(run_id, line, last, await self._listings.stopped_event(shard, run_id) if is_stopped else None)
        if header.is_open and waits:
            reader = self._listings.waits
            known, more = await reader.waits(shard, run_id, header.created, DESCRIBED_BYTES)
            owner, located = await reader.locate(shard, run_id, header, known)
            return msgspec.structs.replace(found, waits_for=located, waits_more=more, owner=owner)
        cause = found.cause
        if cause is None or not cause.step:
            return found
        shard = (await self.read_namespace()).shard_of(cause.run_id)
        return msgspec.structs.replace(found, attempts=await self._listings.attempts_before(shard, cause))

    async def _describe_hibernating(self, shard: int, run_id: str, line: bytes) -> RunDescription:
        """From its object; what the server knows of it if that can't be read, with the reason."""
        created = incarnation_of(line)
        try:
            parked = await self._sessions.here().hibernating.find(shard, run_id, created)
        except ArchiveError as error:
            since = datetime.fromtimestamp(created / 1000, UTC)
            by_daemon, _ = await self._storage_wait(run_id)  # which also knows whether this is the right storage
            wait = by_daemon or Wait(kind="storage", name="its history, which was moved out of memory", why=str(error))
            return msgspec.structs.replace(describe(run_id, line, b""), hibernating=since, waits_for=[wait])
        if parked is None:  # it was woken meanwhile
            return await self._describe(run_id, created, waits=True)
        reader = self._listings.waits
        owner, located = await reader.locate(
            shard, run_id, decode_header(parked.header), reader.recorded(parked.record)
        )
        since = datetime.fromtimestamp(parked.at / 1000, UTC)
        found = describe(run_id, parked.header, b"")
        return msgspec.structs.replace(found, hibernating=since, waits_for=located, owner=owner)

    async def _watch(self, run_id: str, created: int, key: str) -> AsyncGenerator[Raw]:
        """The value under this key now, and each newer one, until the run has ended."""
        shard = (await self.read_namespace()).shard_of(run_id)
        last: bytes | None = None
        while True:
            async with self._waiter.published(shard, run_id, created) as changed:
                try:
                    header, _ = await self._header(
                        run_id, created
                    )  # first: of one that has ended the value is the last
                except RunNotFound as missing:
                    header = decode_header((await self._in_archive(run_id, created, missing)).header)
                created = header.created
                found = (await self._published(run_id, created, key)).get(key)
                if found is not None and bytes(found) != last:
                    last = bytes(found)
                    yield found
                if not header.is_open:
                    return
                await changed()

    async def _chunks(
        self, run_id: str, created: int, position: StreamPosition, follow: bool
    ) -> AsyncGenerator[EmittedChunk]:
        shard = (await self.read_namespace()).shard_of(run_id)
        ended = (lambda: self._ended(run_id, created)) if follow else None
        async with aclosing(self._sessions.here().streams.chunks(shard, run_id, created, position, ended)) as chunks:
            try:
                async for chunk in chunks:
                    yield chunk
            except RunNotFound as missing:
                if position.has_begun:
                    raise
                if await self._sessions.here().hibernating.line(shard, run_id) is not None:
                    text = (
                        f"run {run_id} hibernates, and what its steps have emitted is gone: follow it when it is awake"
                    )
                    raise RunNotFound(text, run_id) from None
                raise await self._only_archived(run_id, created, missing, ", without its stream") from None

    async def _stream_facts(self, run_id: str, created: int) -> StreamFacts | None:
        shard = (await self.read_namespace()).shard_of(run_id)
        try:
            return await self._sessions.here().streams.facts(shard, run_id, created)
        except RunNotFound as missing:
            await self._elsewhere(run_id, created, missing)
            return None  # none is kept there

    async def _history(self, run_id: str, created: int) -> list[Transition]:
        namespace = await self.read_namespace()
        try:
            found = await self._listings.history(namespace.shard_of(run_id), run_id, created)
        except RunNotFound as missing:
            found = decode_history((await self._in_archive(run_id, created, missing)).transitions)
        if namespace.large_payload:
            with contextlib.suppress(ArchiveError):  # then it has the references
                return await self.payloads.joined_transitions(found)
        return found

    @property
    def payloads(self) -> ClientPayloads:
        """Where large payloads are of the namespace, whose record has been read."""
        session = self._sessions.here()
        url = self._archive_url or (session.meta.archive if session.meta is not None else "")
        if session.payloads is None or session.payloads.url != url:
            session.payloads = ClientPayloads(url, self.namespace)
        return session.payloads

    async def _joined(self, data: bytes) -> bytes:
        return (await self._all_joined([data]))[0] if has_mark(data) else data

    async def _all_joined(self, values: list[bytes]) -> list[bytes]:
        """Encoded values with what their references to storage stand for. Raises `ArchiveError`."""
        if not any(has_mark(value) for value in values):
            return values
        await self.read_namespace()
        return await self.payloads.joined(values)

    async def _smaller(self, body: bytes, depth: int) -> bytes:
        """A message's body with references to storage in the place of its large payloads."""
        namespace = await self.read_namespace()
        limit = namespace.large_payload
        return body if len(body) < limit else await self.payloads.smaller(body, limit, depth)

    async def _events(self, run_id: str, created: int, follow: bool) -> AsyncGenerator[tuple[datetime, AnyEvent], None]:
        namespace = await self.read_namespace()
        shard, has_large = namespace.shard_of(run_id), namespace.large_payload > 0
        begun = False
        try:
            async for at, event in self._listings.events(shard, run_id, created, follow):
                begun = True
                yield at, await self.payloads.joined_event(event) if has_large else event
        except RunNotFound as missing:
            if begun:  # it was deleted meanwhile
                raise
            archived = await self._in_archive(run_id, created, missing)
        else:
            return
        for at, event in events_of(archived):
            yield at, await self.payloads.joined_event(event) if has_large else event


def _target(workflow: Callable[..., Any] | str) -> tuple[str, codec.Parameters | None]:
    if isinstance(workflow, Workflow | Reducer):
        definition = cast("Workflow[..., Any] | Reducer", workflow)
        return definition.name, definition.parameters
    if isinstance(workflow, str):
        return check_name("workflow", workflow), None
    raise UsageError(
        f"{workflow!r} is not a workflow: decorate it with @app.workflow or @app.reducer, or pass its name"
    )


def _declared(workflow: object) -> Declared:
    return workflow.declared if isinstance(workflow, Startable) else UNDECLARED


def _returns(run_id: str, returns: Any) -> Decode:
    """The decoder of a result for `returns` of `run()`: a type, or the workflow itself."""
    if isinstance(returns, Startable):
        return returns.parameters.decode_result
    codec.decoder_for(returns)  # a type that can't be decoded is refused here, not at the end of a long wait
    return lambda raw: codec.decode(raw, returns, f"result of run {run_id}")


def _decoder(name: str, parameters: codec.Parameters | None) -> Decode | None:
    return None if parameters is None else parameters.decode_result


def _input(name: str, parameters: codec.Parameters | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """The payload of a start's arguments."""
    if parameters is not None:
        return parameters.encode(args, kwargs)
    if kwargs:
        raise UsageError(
            f"the code of workflow {name} is not here, so the order of its parameters isn't known: pass "
            f"{', '.join(kwargs)} by position"
        )
    return codec.encode(args, f"input of {name}")


def _with_start(
    namespace: Namespace,
    workflow: Callable[..., Awaitable[Any]] | str,
    args: tuple[Any, ...],
    run_id: str,
    tenant: str,
) -> tuple[Start, Decode | None]:
    """The start of a run that something is sent to, and the decoder of its result."""
    name, parameters = _target(workflow)
    start = _start(namespace, name, _input(name, parameters, args, {}), *_options(workflow, run_id, tenant))
    return start, _decoder(name, parameters)


def _options(workflow: object, run_id: str | None, tenant: str) -> tuple[str | None, str]:
    """Id and tenant of a start: those of the workflow's `options()` where none are given."""
    if isinstance(workflow, Startable):
        return (workflow.child_id or None) if run_id is None else run_id, tenant or workflow.child_tenant
    return run_id, tenant


def _retrieve(reading: asyncio.Task[Namespace]) -> None:
    """Of a read beside the calls nobody needs the error: the next one says the same."""
    if not reading.cancelled():
        reading.exception()


def _start(
    namespace: Namespace, workflow: str, payload: bytes, run_id: str | None, tenant: str, word: StartWord = NOTHING
) -> Start:
    """Raises `InvalidName`."""
    if tenant:
        check_name("tenant", tenant)
    if run_id is None:
        full_id = full_run_id(new_run_id(), namespace.partition, tenant, workflow)
    else:
        full_id = check_run_id(full_run_id(check_run_id(run_id), namespace.partition, tenant, workflow))
    return Start(full_id, workflow, tenant, payload, "", "" if word is NOTHING else str(word))


def _status(status: Status | str | None) -> Status | None:
    try:
        return None if status is None else Status(status)
    except ValueError:
        raise UsageError(f"unknown status {status!r}: use one of {', '.join(Status)}") from None


def _filters(
    status: Status | str | None = None,
    workflow: str | None = None,
    tenant: str | None = None,
    attributes: Mapping[str, Attribute] | None = None,
    limit: int = 1,
    error: str | None = None,
) -> Filters:
    """The filters of a listing, checked. Raises `UsageError`, `InvalidName`."""
    if limit < 1:
        raise UsageError(f"limit must be an integer >= 1, got {limit}")
    if workflow is not None:
        check_name("workflow", workflow)
    if tenant is not None:
        check_name("tenant", tenant)
    wanted: dict[str, Attribute] = {}
    for name, value in check_attributes(attributes or {}).items():
        if value is None:
            raise UsageError(f"attributes: {name} is None, and no run has an attribute that is None; omit it")
        wanted[name] = value
    return Filters(_status(status), workflow, tenant, wanted, error or "")


def _page_of(
    filters: Filters,
    since: datetime | str | None,
    until: datetime | str | None,
    roots: bool,
    sort: str | None,
    after: str,
    now_ms: int,
) -> tuple[Filters, Position | None]:
    """These filters with times and order, and where the page begins. Raises `UsageError`."""
    filters = msgspec.structs.replace(
        filters,
        since=None if since is None else instant_ms("since", since, now_ms),
        until=None if until is None else instant_ms("until", until, now_ms),
        roots=roots,
    )
    if sort not in (None, "created", "changed"):
        raise UsageError(f"sort is created or changed, got {sort!r}")
    if sort == "created" and not filters.is_by_start:
        raise UsageError(
            "runs can be sorted by created where a tenant or attributes are given, or the status is running or "
            "pending: all other listings are in the order of the last change of status"
        )
    if sort == "changed" and filters.is_by_start:
        raise UsageError(
            "runs can't be sorted by changed where a tenant or attributes are given, or the status is running or "
            "pending: these listings are in the order of the starts"
        )
    if not after:
        return filters, None
    cursor = cursor_of(after, filters.name)
    return msgspec.structs.replace(filters, since=cursor.since, until=cursor.until), cursor.position
