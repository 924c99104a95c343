"""Makes the namespace of `demo --incidents`, and keeps what happens in it going.

Owns: its daemons and workers, starting the runs, waiting until each incident is there, the deploy of release 1.8.3.
Must not: print, or know how an incident is mended (`twelve.py` does). Called by: `run.py`.

    release 1.7 alone, with runs of invoice_v1 -> release 1.8.2 in its place, with workers -> all other runs, while
    api.example is away -> it is back -> the server is nearly full
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import anyio

from streamflow.client.client import Client, NewRun, encode_input
from streamflow.client.quarantine import Quarantine
from streamflow.demo.fleet import Fleet
from streamflow.demo.incidents import retired, shop
from streamflow.demo.incidents.twelve import (
    FIX,
    FULL,
    HUNG,
    ILL,
    INVALID,
    ONBOARDED,
    POISONED,
    REPORT_BYTES,
    REPORTS_BYTES,
    STUCK_PARTS,
    WRONG_TYPE,
    Counts,
    ids,
)
from streamflow.errors import StoreError, StreamflowError
from streamflow.model.record import Header, Status, decode_header
from streamflow.store.connection import Call

POLL_SECONDS = 0.05
SAY_EVERY_SECONDS = 5.0
AT_ONCE = 2_000
"""Runs that are started by one call."""
WORKERS = ("models", "crawl")
"""Queues that have one; `gpu` has none."""

Progress = Callable[[str], None]


class Stage:
    def __init__(self, client: Client, fleet: Fleet, folder: Path, daemons: int, count: Counts) -> None:
        self._client = client
        self._fleet = fleet
        self._folder = folder
        self._daemons = daemons
        self._count = count

    @property
    def app(self) -> Path:
        """The app that the daemons have."""
        return self._folder / "shop.py"

    # --- making it ----------------------------------------------------------------------------------------------------

    async def prepare(self, progress: Progress) -> None:
        """Make everything that is wrong. Raises `StreamflowError` if a daemon ends."""
        await self._retire_invoices()
        self._write_app(_source(shop))
        self._fleet.start(f"{self.app}:app", self._daemons)
        for queue in WORKERS:
            self._fleet.start_worker(f"{self.app}:app", queue)
        shards = await self._fleet.balanced(self._client)
        progress(f"{self._daemons} daemons of release {shop.RELEASE} share {shards} shards")
        await self._start_single_runs()
        await self._start_many("order", ids("order", self._count.stuck), self._items)
        await self._start_many("enrich", ids("enrich", self._count.failed), lambda n: (n,))
        await self._start_many("agent_loop", ids("agent_loop", self._count.queued), lambda n: ("embed", f"text {n}"))
        await self._start_many("crawl", ids("crawl", self._count.crawls), lambda n: (n,))
        await self._start_background(progress)
        await self._send_messages()
        await self._settled(progress)
        (self._folder / shop.API.name).touch()
        await self._start_many("statement", [ILL], lambda _: (0,))
        await self._fill()

    async def _retire_invoices(self) -> None:
        app = self._folder / "retired.py"
        app.write_text(_source(retired))
        self._fleet.start(f"{app}:app", 1)
        await self._fleet.balanced(self._client)
        invoices = ids("invoice_v1", self._count.retired)
        await self._start_many("invoice_v1", invoices, lambda n: (n,))
        await self._all(invoices, lambda run: run.status == Status.RUNNING and run.version > 0)
        await self._fleet.retire(list(self._fleet.daemons))

    async def _start_single_runs(self) -> None:
        await self._start_many("batch", STUCK_PARTS[:1], lambda _: (["kid-1"],))
        for order in (WRONG_TYPE, POISONED):
            await self._start_many("order", [order], lambda _: ([{"a": 900, "b": 900}],))
        await self._start_many("agent_loop", [HUNG], lambda _: ("model", "what is wrong?"))
        addresses = ["#@#" if run_id == INVALID else f"{run_id}@example.org" for run_id in ONBOARDED]
        await self._start_many("onboard", ONBOARDED, lambda n: (f"customer {n}", addresses[n]))

    def _items(self, number: int) -> tuple[Any, ...]:
        """Of an order: one item has no 'b', which each has in what 1.8.2 was tested with."""
        items = [{"a": number, "b": 1}, {"a": 2, "b": 3}, {"a": 4, "b": 5}]
        del items[number % len(items)]["b"]
        return (items,)

    async def _start_background(self, progress: Progress) -> None:
        least, most = REPORT_BYTES
        size = min(most, max(least, REPORTS_BYTES // max(1, self._count.nightly)))
        for workflow, count, argument in (("nightly", self._count.nightly, size), ("invoice", self._count.invoices, 1)):
            names = ids(workflow, count)
            for first in range(0, count, AT_ONCE):
                await self._start_many(workflow, names[first : first + AT_ONCE], lambda _, value=argument: (value,))
            progress(f"{count:,} runs of {workflow} are started")

    async def _send_messages(self) -> None:
        """What others have sent, and shouldn't have."""
        await self._begun([WRONG_TYPE, POISONED])
        await self._client.run(WRONG_TYPE).signal("approve", "yes")
        namespace = await self._client.read_namespace()
        inbox = self._client.keys.shard(namespace.shard_of(POISONED)).inbox
        fields = ("kind", "signal", "run", POISONED, "body", b"\xc1approve{'ok': True}")
        await self._client.store.one(Call.plain("XADD", inbox, "*", *fields))
        await self._client.store.one(Call.plain("SPUBLISH", inbox, ""))

    async def _settled(self, progress: Progress) -> None:
        """Wait until each incident is there."""
        stuck = (*ids("order", self._count.stuck), *ids("invoice_v1", self._count.retired))
        await self._all(stuck, lambda run: run.status == Status.STUCK)
        await self._all(ids("enrich", self._count.failed), lambda run: run.status == Status.FAILED)
        await self._all([INVALID], lambda run: run.status == Status.FAILED)
        waiting = (*ids("agent_loop", self._count.queued), *ids("crawl", self._count.crawls), HUNG, WRONG_TYPE)
        await self._begun((*waiting, *STUCK_PARTS))
        while not await Quarantine(self._client).messages(run_id=POISONED):
            await self._wait()
        said = time.monotonic()
        while (ended := await self._ended("nightly")) < self._count.nightly:
            if time.monotonic() - said >= SAY_EVERY_SECONDS:
                said = time.monotonic()
                progress(f"{ended:,} of {self._count.nightly:,} runs of nightly have ended")
            await self._wait(0.25)

    async def _fill(self) -> None:
        """Give the server no more memory than what makes it nearly full."""
        await self._client.store.one(Call.plain("CONFIG", "SET", "maxmemory", int(await self.memory() / FULL)))

    async def memory(self) -> int:
        """The bytes that the server uses."""
        info: dict[str, Any] = await self._client.store.one(Call.plain("INFO", "memory"))
        return int(info["used_memory"])

    # --- keeping it going ---------------------------------------------------------------------------------------------

    async def deploy(self, progress: Progress) -> None:
        """Replace the daemons by those of release 1.8.3. Doing it again starts other ones of the same."""
        self._write_app(fixed())
        former = list(self._fleet.daemons)
        self._fleet.start(f"{self.app}:app", self._daemons)
        await self._fleet.balanced(self._client)
        progress("daemons of release 1.8.3 are there; the others hand over")
        await self._fleet.retire(former)
        await self._fleet.balanced(self._client)
        progress("release 1.8.3 is deployed")

    async def forgive(self) -> None:
        """The site that is crawled forgives as soon as nobody asks it: once the queue is paused."""
        while "crawl" not in await self._client.paused_queues():
            await self._wait(0.5)
        (self._folder / shop.CALM.name).touch()

    # --- helpers ------------------------------------------------------------------------------------------------------

    def _write_app(self, source: str) -> None:
        """At once: a daemon that starts meanwhile reads the one or the other."""
        new = self.app.with_suffix(".new")
        new.write_text(source)
        new.replace(self.app)

    async def _start_many(
        self, workflow: str, names: Sequence[str], arguments: Callable[[int], tuple[Any, ...]]
    ) -> None:
        new = [NewRun(workflow, encode_input(*arguments(number)), run_id) for number, run_id in enumerate(names)]
        for answer in await self._client.start_payloads(new):
            if isinstance(answer, Exception):
                raise answer

    async def _wait(self, seconds: float = POLL_SECONDS) -> None:
        self._fleet.check()
        await anyio.sleep(seconds)

    async def _begun(self, names: Iterable[str]) -> None:
        await self._all(names, lambda run: run.version > 0)

    async def _all(self, names: Iterable[str], condition: Callable[[Header], bool]) -> None:
        """Wait until it is true of all these runs."""
        left = list(names)
        namespace = await self._client.read_namespace()
        while left:
            calls = [self._client.kernel.peek_runs(namespace.shard_of(run_id), [run_id]) for run_id in left]
            answers: list[list[tuple[bytes, bytes]] | StoreError] = await self._client.store.send(calls)
            left = [
                run_id
                for run_id, answer in zip(left, answers, strict=True)
                if isinstance(answer, StoreError) or not answer[0][0] or not condition(decode_header(answer[0][0]))
            ]
            if left:
                await self._wait()

    async def _ended(self, workflow: str) -> int:
        shards = (await self._client.read_namespace()).shards
        indexes = [self._client.keys.shard(number).index(Status.COMPLETED, workflow) for number in range(shards)]
        answers = await self._client.store.send([Call.plain("ZCARD", index) for index in indexes])
        return sum(answer for answer in answers if isinstance(answer, int))


def _source(module: Any) -> str:
    return Path(module.__file__).read_text(encoding="utf-8")


def fixed() -> str:
    """The app of release 1.8.3."""
    wrong, right = FIX
    source = _source(shop).replace(wrong, right).replace(f'"{shop.RELEASE}"', '"1.8.3"')
    if right not in source:
        raise StreamflowError(f"{shop.__file__} has no {wrong!r} that could be fixed")
    return source
