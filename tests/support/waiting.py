"""How tests of guide/ and system/ wait: for an event of a run, or until something is so. Never for a length of time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import anyio

import streamflow as sf
from streamflow.events import AnyEvent, ChildStarted

DEADLINE = 15.0
"""Seconds until a test that waits for something gives up."""
POLL = 0.002
"""Seconds between two questions: to ask without a pause took a fifth of the processor time of whole tests."""

T = TypeVar("T")
E = TypeVar("E")


async def happened(run: sf.Run[Any], kind: type[E], count: int = 1) -> E:
    """Wait until the run's history has its `count`-th event of this kind."""
    with anyio.fail_after(DEADLINE):
        async with aclosing(run.events(follow=True)) as events:
            async for _, event in events:
                if isinstance(event, kind):
                    count -= 1
                    if not count:
                        return event
    raise AssertionError(f"run {run.id} ended without {kind.__name__}")


async def child_of(client: sf.Client, run_id: str, *numbers: int) -> str:
    """The id of the child that is this decision of a run, which is waited for. More numbers: of that child's child."""
    for number in numbers:
        with anyio.fail_after(DEADLINE):
            await reduced(client, run_id)
            async with aclosing(client.run(run_id).events(follow=True)) as events:
                async for _, event in events:
                    if isinstance(event, ChildStarted) and event.seq == number:
                        run_id = event.run_id
                        break
                else:
                    raise AssertionError(f"run {run_id} ended without a child {number}")
    return run_id


async def until(condition: Callable[[], Awaitable[T]]) -> T:
    """Ask again until the answer is true; gives it."""
    with anyio.fail_after(DEADLINE):
        while not (answer := await condition()):  # noqa: ASYNC110 (what is asked is mostly on a server)
            await anyio.sleep(POLL)
    return answer


async def status_of(run: sf.Run[Any], status: sf.Status) -> None:
    async def reached() -> bool:
        return (await run.describe()).status is status

    await until(reached)


async def reduced(client: sf.Client, run_id: str) -> None:
    """Wait until the run is there and a daemon has let it decide for the first time."""

    async def begun() -> bool:
        try:
            return (await client.run(run_id).describe()).version > 0
        except sf.RunNotFound:
            return False

    await until(begun)


async def events_of(run: sf.Run[Any]) -> list[AnyEvent]:
    return [event for transition in await run.history() for event in transition.events]


async def names_of(run: sf.Run[Any]) -> list[str]:
    return [type(event).__name__ for event in await events_of(run)]
