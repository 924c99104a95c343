"""The sandbox is held against a server: the same scenarios give the same results, errors, runs, histories and times.

Each scenario is played on a server with a daemon and a worker, in the sandbox, and in the sandbox with a crash after
every transition. What is compared of each run:

- its description, and the decisions in their order, with arguments, delays and failures (tracebacks included);
- the facts, as a set: which of two steps is quicker, and what one transition has, is not the same each time;
- the times: nothing happens earlier on the server than in the sandbox, nor later than a slow machine explains, and what
  is at least `APART` apart in the sandbox has the same order on the server.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import msgspec
import pytest

import streamflow as sf
import streamflow.testing as sft
from streamflow.embedded.server import EmbeddedServer
from streamflow.events import DECISIONS, ENDINGS, AnyEvent, RunContinued
from tests.conftest import clean_keys
from tests.support.scenarios import SCENARIOS, Play, app
from tests.support.serving import running_daemon, running_worker
from tests.support.waiting import until

pytestmark = pytest.mark.anyio

PATIENCE = 0.05
APART = 0.2
"""Seconds: well below `T`, so that timers that are due one after the other are compared, and outcomes of steps not."""
EARLY, LATE = 0.1, 5.0
"""Seconds. Early is what a client does at its time in a run that was begun late: times count from the run's first
transition. `tests/guide/test_time.py` holds that no timer is early."""
PLAYS = 3
"""How often a scenario is played on a server, at most, if the machine pauses meanwhile: then other timers are due first
than those that were set first, and what follows is another story."""


class InSandbox:
    def __init__(self, sandbox: sft.Sandbox) -> None:
        self.client = sandbox

    async def pause(self, seconds: float) -> None:
        await self.client.sleep(seconds)

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        assert await condition()

    async def deploy(self, app: sf.App) -> None:
        self.client.deploy(app)

    async def knows(self, *paused: str) -> None:
        assert set(await self.client.paused_workflows()) == set(paused)


class OnServer:
    """`daemon` has the daemon that runs now."""

    def __init__(self, server: EmbeddedServer, daemon: AsyncExitStack, client: sf.Client, archive: str) -> None:
        self._server = server
        self._archive = archive
        self._daemon = daemon
        self.client = client

    async def pause(self, seconds: float) -> None:
        await anyio.sleep(seconds)

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        await until(condition)

    async def deploy(self, app: sf.App) -> None:
        await self._daemon.aclose()
        await self.begin(app)

    async def begin(self, app: sf.App) -> None:
        daemon = running_daemon(app, self._server, self.client.namespace, crash=False, archive=self._archive)
        self._owner = (await self._daemon.enter_async_context(daemon)).owner

    async def knows(self, *paused: str) -> None:
        async def heard() -> bool:
            return self._owner.paused.notes.keys() == set(paused)

        await until(heard)


@asynccontextmanager
async def on_server(server: EmbeddedServer, namespace: str, *, worker: bool) -> AsyncGenerator[OnServer]:
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(sf.connect(server.url, namespace=namespace))
        if worker:
            async with running_daemon(app, server, namespace, crash=False):  # creates the namespace
                pass
            await stack.enter_async_context(running_worker(app, server, namespace, "gpu"))
        folder = stack.enter_context(TemporaryDirectory())
        stage = OnServer(server, await stack.enter_async_context(AsyncExitStack()), client, f"file://{folder}")
        await stage.deploy(app)
        yield stage


@asynccontextmanager
async def watched() -> AsyncGenerator[list[float]]:
    """Gives the seconds of each pause in which this process had no turn, of those that make a difference."""
    pauses: list[float] = []

    async def watch() -> None:
        while True:
            due = time.monotonic() + 0.01
            await asyncio.sleep(0.01)
            if (late := time.monotonic() - due) > APART:
                pauses.append(late)

    watching = asyncio.create_task(watch())
    try:
        yield pauses
        await asyncio.sleep(0.02)  # also of one in the last moment
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


async def played(play: Play, server: EmbeddedServer, namespace: str) -> tuple[Any, dict[str, Seen]]:
    async with on_server(server, namespace, worker=play is SCENARIOS["steps_of_queues"]) as stage:
        async with asyncio.timeout(60):  # not a scope of anyio, in which no daemon could be replaced
            result = alike(await play(stage))
        return result, await seen(stage.client)


async def played_without_a_pause(play: Play, server: EmbeddedServer, namespace: str) -> tuple[Any, dict[str, Seen]]:
    """The last time also with one."""
    for number in range(1, PLAYS):
        name = namespace if number == 1 else f"{namespace}-{number}"
        async with watched() as pauses:
            [outcome] = await asyncio.gather(played(play, server, name), return_exceptions=True)
        if not pauses:
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome
    return await played(play, server, f"{namespace}-{PLAYS}")


class Seen(msgspec.Struct):
    """What is seen of a run. Times in seconds since its start."""

    description: dict[str, Any]
    decisions: list[str]
    facts: list[str]
    times: dict[str, float]


async def seen(client: Any) -> dict[str, Seen]:
    """All runs of a scenario, when it has been played."""
    return {alike(found.id): await _seen(client.run(found.id)) for found in await client.runs(limit=1000)}


def alike(value: Any) -> Any:
    """Without what in a child's id stands for its parent, and so for the time at which that was created."""
    match value:
        case str():
            return re.sub("~[a-z2-7]{13}", "", value)
        case list() | tuple():
            return [alike(item) for item in value]
        case dict():
            return {alike(key): alike(item) for key, item in value.items()}
        case _:
            return value


async def _seen(run: sf.Run[Any]) -> Seen:
    description = alike(msgspec.to_builtins(await run.describe(), str_keys=True))
    for name in ("created", "ended", "version"):
        del description[name]
    del description["owner"]  # the sandbox has no daemons
    for wait in description["waits_for"]:
        for name in ("since", "until", "holder", "place", "details", "reported"):
            del wait[name]
    for attempt in description["attempts"]:
        del attempt["at"], attempt["ms"]
    decisions: list[str] = []
    facts: list[str] = []
    times: dict[str, float] = {}
    history = await run.history()
    recorded = [event for transition in history for event in transition.events]
    assert [event async for _, event in run.events()] == recorded
    for transition in history:
        for event in transition.events:
            text = _text(event, transition.at)
            if isinstance(event, (*DECISIONS, *ENDINGS, RunContinued)):
                decisions.append(text)
            else:
                facts.append(text)
            number = 1
            while (key := f"{text} #{number}") in times:
                number += 1
            times[key] = (transition.at - history[0].at) / 1000
    return Seen(description, decisions, sorted(facts), times)


def _text(event: AnyEvent, at: int) -> str:
    """An event without what is another one in each play: durations, ids of questions, the time of day."""
    fields: dict[str, Any] = {}
    for name in event.__struct_fields__:
        value = getattr(event, name)
        if name in ("ms", "id", "started", "created", "of_created", "since", "code"):
            continue
        if name == "parent":
            value = value.partition("@")[0]
        if name == "due":
            value = round(value - at, -1)  # the owner's clock may be a few ms behind the time of the transition
        elif name == "carried":
            value = [_text(message, at) for message in value]
        elif isinstance(value, msgspec.Raw):
            value = msgspec.msgpack.decode(value)
        fields[name] = value
    return f"{type(event).__name__} {alike(fields)}"


def compare_times(sandbox: Seen, server: Seen) -> None:
    for event, at in sandbox.times.items():
        assert -EARLY <= server.times[event] - at <= LATE, (event, server.times[event], at)
    in_order = sorted(sandbox.times.items(), key=lambda item: item[1])
    for number, (event, at) in enumerate(in_order):
        for later, later_at in in_order[number:]:
            if later_at - at >= APART:
                assert server.times[later] > server.times[event], f"{later} comes after {event}"


@pytest.mark.parametrize("play", SCENARIOS.values(), ids=SCENARIOS)
async def test_a_server_does_what_the_sandbox_does(play: Play, embedded_server: EmbeddedServer, namespace: str) -> None:
    async with sft.Sandbox(app, patience=PATIENCE, archive=True) as sandbox:
        expected = alike(await play(InSandbox(sandbox)))
        runs = await seen(sandbox)
    try:
        result, found = await played_without_a_pause(play, embedded_server, namespace)
    finally:
        for number in range(2, PLAYS + 1):
            await clean_keys(embedded_server.url, f"{namespace}-{number}")
    assert result == expected
    assert found.keys() == runs.keys()
    for run_id, run in runs.items():
        assert found[run_id].description == run.description
        assert found[run_id].decisions == run.decisions
        assert found[run_id].facts == run.facts
        compare_times(run, found[run_id])


@pytest.mark.parametrize("play", SCENARIOS.values(), ids=SCENARIOS)
async def test_crashes_change_nothing_in_the_sandbox(play: Play) -> None:
    survived = await sft.survives_crashes(
        app, lambda sandbox: play(InSandbox(sandbox)), patience=PATIENCE, archive=True
    )
    assert survived.points > 1
