"""What a daemon has put down in its namespace: the meta record, the workflows of its app, and queues that it uses.

Owns: saying every half minute which workflows this daemon has; noticing that the namespace's data were deleted
(FLUSHALL, a server without persistence that restarted), and writing these records again; noticing that another daemon
has changed the namespace's durability, and following it.
Must not: know shards: dropping what was kept of the old data is for others.
Called by: the daemon.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

import anyio
import msgspec

from streamflow.daemon.context import Context
from streamflow.errors import NamespaceMismatch, StoreError, StoreMisconfigured, UsageError
from streamflow.loops import retry_forever
from streamflow.model.codec import type_name
from streamflow.model.json_schema import schema_of
from streamflow.store.connection import Call
from streamflow.store.durability import use_durability
from streamflow.store.kernel import Put
from streamflow.store.namespace import Namespace, check_same, register_queues, write_records
from streamflow.workflow.app import App, Reducer, Workflow
from streamflow.workflow.messages import QuestionDefinition

_log = logging.getLogger("streamflow.namespace")


SERVED_SECONDS = 30.0
"""Between two notes of the workflows that this daemon has: `client/served.py` says after how long it has them no more.
"""


class Registration:
    """`on_other_data(identity)` is called when the namespace's data are not those that this daemon has read so far,
    `on_mismatch()` when they are of a namespace that it can't serve. The daemon connects both."""

    def __init__(self, context: Context) -> None:
        self.on_other_data: Callable[[str], None] = lambda _: None
        self.on_mismatch: Callable[[], None] = lambda: None
        self._context = context
        self._identity = context.namespace.identity
        self._durability = context.namespace.durability
        self._differs = anyio.Event()
        self._noted = -SERVED_SECONDS
        """When its workflows were noted last, on the loop's clock."""
        self._queues: set[str] = set()
        """Queues that are to be put into the namespace's list."""

    def add_queue(self, name: str) -> None:
        """This daemon has begun to use a queue: `status` lists it from now on."""
        self._queues.add(name)
        self._differs.set()

    def compare(self, identity: bytes | None, durability: bytes | None) -> None:
        """Called by each heartbeat with what the namespace's record has now."""
        if identity != self._identity.encode() or (durability or b"server") != self._durability.encode():
            self._differs.set()

    async def run(self) -> None:
        await retry_forever(self._run_once, _log, "could not check whether the namespace's data are still there")

    async def _run_once(self) -> None:
        if anyio.current_time() - self._noted >= SERVED_SECONDS:
            await self._note_served()
        with anyio.move_on_after(SERVED_SECONDS):
            await self._differs.wait()
        if not self._differs.is_set():
            return
        self._differs = anyio.Event()
        await self._register_queues()
        await self.check()

    async def _note_served(self) -> None:
        kernel = self._context.kernel
        now = str(self._context.clock.server_ms()).encode()
        notes = [Put(kernel.keys.served, name, now) for name in self._context.app.workflows]
        self._noted = anyio.current_time()
        if notes:
            await self._context.store.one(kernel.store_records(notes))

    async def _register_queues(self) -> None:
        names = sorted(self._queues)
        if not names:
            return
        context = self._context
        try:
            [answer] = await context.store.send([register_queues(context.kernel, names)])
        except StoreError:
            self._differs.set()  # once more
            raise
        self._queues.difference_update(names)
        if isinstance(answer, StoreError):  # nothing waits for a key that only `status` reads
            _log.error("%s can't be registered, so `status` doesn't list them: %s", ", ".join(names), answer)

    async def check(self) -> None:
        context = self._context
        stored: list[bytes | None] = await context.store.one(
            Call.plain("HMGET", context.kernel.keys.meta, "identity", "durability")
        )
        identity, durability = stored
        if identity is not None:
            await self._follow((durability or b"server").decode(errors="replace"))
        if identity == self._identity.encode():
            return
        namespace = context.namespace
        record = await write_records(
            context.store,
            context.kernel,
            namespace.shards,
            namespace.partition,
            described(context.app),
            self._durability,
            namespace.archive,
            namespace.large_payload,
        )
        name = context.settings.namespace
        try:
            check_same(Namespace(record.shards, record.partition), context.settings)
        except NamespaceMismatch as error:
            _log.error("namespace %s was deleted and created again with other settings: %s", name, error)
            self.on_mismatch()
            return
        _log.error(
            "the data of namespace %s were deleted, or the server was replaced by one without them: runs that were "
            "open are lost, and the namespace begins again",
            name,
        )
        self._identity = record.identity
        self.on_other_data(record.identity)

    async def _follow(self, level: str) -> None:
        """Writes wait for this level from now on, whether the server can confirm it or not: that nothing goes on is
        what was asked for, and is said."""
        if level == self._durability:
            return
        context, before, self._durability = self._context, self._durability, level
        name = context.settings.namespace
        try:
            use_durability(context.store, context.kernel, level)
        except UsageError as error:  # of a later release
            _log.error("namespace %s has another durability, which this release can't give: %s", name, error)
            return
        _log.warning("the durability of namespace %s is %s from now on, before it was %s", name, level, before)
        if context.store.confirmation is not None:
            try:
                await context.store.confirmation.check()
            except StoreMisconfigured as error:
                _log.error("decisions of this daemon wait, because the server can't confirm them: %s", error)


def described(app: App) -> list[tuple[str, bytes]]:
    """The workflows of an app as clients see them: name and JSON."""
    return [(name, msgspec.json.encode(describe_workflow(app, workflow))) for name, workflow in app.workflows.items()]


def describe_workflow(app: App, workflow: Workflow[..., Any] | Reducer) -> dict[str, object]:
    """What clients can see of a workflow: its kind, its parameters and their types, what it takes and shows, the first
    line of its docstring."""
    doc = (workflow.function.__doc__ or "").strip().partition("\n")[0]
    return {
        "kind": "reducer" if isinstance(workflow, Reducer) else "workflow",
        "params": workflow.parameters.names,
        "required": sum(default is inspect.Parameter.empty for default in workflow.parameters.defaults),
        "doc": doc,
        "steps": sorted(app.steps),
        "inputs": [schema_of(type_) for type_ in workflow.parameters.types],
        "signals": _described(workflow, "signal"),
        "questions": _described(workflow, "question"),
        "published": _described(workflow, "key"),
    }


def _described(workflow: Workflow[..., Any] | Reducer, what: str) -> dict[str, dict[str, object]] | None:
    """The definitions of a kind that it declares, by name, as `MessageInfo` has them; None if it declares none."""
    known = workflow.declared.of(what)
    if known is None:
        return None
    found: dict[str, dict[str, object]] = {}
    for name, one in known.items():
        found[name] = {"type": type_name(one.type), "schema": schema_of(one.type)}
        if isinstance(one, QuestionDefinition):
            found[name]["answer"] = type_name(one.answer)  # pyright: ignore[reportUnknownMemberType]
    return found
