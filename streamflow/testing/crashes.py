"""Crash and resume at every transition: finds workflow code that doesn't survive the death of its owner.

Owns: where to crash, and what must be equal afterwards. Must not: know how a crash is simulated (`world.py` does).
Called by: user tests.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Generic, TypeVar

import msgspec

from streamflow.errors import Failure
from streamflow.events import DECISIONS, ENDINGS, AnyEvent, RunContinued
from streamflow.model.record import Status
from streamflow.model.sharding import Partition
from streamflow.testing.sandbox import PATIENCE, Sandbox
from streamflow.workflow.app import App

T = TypeVar("T")

_encode = msgspec.msgpack.Encoder().encode


class Survived(msgspec.Struct, Generic[T], frozen=True):
    """The result of `survives_crashes`."""

    result: T
    """What the scenario returned, each time."""
    points: int
    """Number of transitions after which it was crashed."""


class _Played(msgspec.Struct):
    """One play of the scenario. `point` describes the last event before the first crash."""

    sandbox: Sandbox
    result: Any = None
    point: str = ""
    failure: str = ""


async def survives_crashes(
    app: App,
    scenario: Callable[[Sandbox], Awaitable[T]],
    *,
    partition: Partition | str = Partition.RUN,
    patience: float | timedelta = PATIENCE,
    archive: bool = False,
) -> Survived[T]:
    """Play a scenario without crashes, then with one crash after each transition in turn, then with a crash after every
    transition.

    A crash discards what the owner of the runs has in memory: histories are replayed, and steps that were running start
    again. Each play has its own sandbox (with this `partition`, `patience` and `archive`), so `scenario` sets its stubs
    itself; state that steps keep outside of it (such as a global counter) is kept from play to play. A scenario with n
    transitions is played n + 2 times.

    Raises `AssertionError`, which names the event after which it crashed, if the code diverges from its history, if the
    scenario fails or returns another result, or if a run makes any other decision, with other arguments or times.

    >>> async def approve(sandbox: sft.Sandbox) -> int:
    ...     run = await sandbox.start(digest, ["https://example.org"])
    ...     await run.signal("approve", True)
    ...     return await run.result()
    >>> await sft.survives_crashes(app, approve)
    """

    def sandbox() -> Sandbox:
        return Sandbox(app, partition=partition, patience=patience, archive=archive)

    calm = await _play(sandbox(), scenario, lambda _: False)
    points = calm.sandbox.world.transitions
    if not points:
        raise AssertionError("the scenario made no transition to crash after: it must start a run")
    for point in range(1, points + 1):
        await _compare(sandbox(), scenario, calm, lambda number, point=point: number == point, "a crash")
    await _compare(sandbox(), scenario, calm, lambda _: True, "crashes after every event, the first")
    return Survived(calm.result, points)


async def _play(
    sandbox: Sandbox,
    scenario: Callable[[Sandbox], Awaitable[Any]],
    crashes_after: Callable[[int], bool],
    calm: _Played | None = None,
) -> _Played:
    world = sandbox.world
    played = _Played(sandbox)

    def committed(run_id: str, number: int) -> None:
        if played.failure or not crashes_after(number):
            return
        if not played.point:
            events = world.events(run_id)
            played.point = f"event {len(events)} of run {run_id}, {events[-1].describe()}"
        stuck = {run_id for run_id, record in world.records.items() if record.head.status == Status.STUCK}
        for machine in world.crash():
            if machine.diverged is not None and machine.run_id not in stuck:  # else a deploy of the scenario broke it
                played.failure = str(machine.diverged)
                # Ends the play here. If the scenario catches it, the failure is recorded all the same.
                raise machine.diverged

    world.on_commit = committed
    try:
        played.result = await scenario(sandbox)
    except Exception as error:
        if calm is None:
            raise
        played.failure = played.failure or f"the scenario raised {type(error).__name__}: {error}"
    finally:
        await sandbox.aclose()
    return played


async def _compare(
    sandbox: Sandbox,
    scenario: Callable[[Sandbox], Awaitable[Any]],
    calm: _Played,
    crashes_after: Callable[[int], bool],
    what: str,
) -> None:
    played = await _play(sandbox, scenario, crashes_after, calm)
    failure = played.failure or _difference(calm, played)
    if failure:
        after = f"after {played.point}" if played.point else "before any event"
        raise AssertionError(f"with {what} {after}: {failure}")


def _difference(calm: _Played, played: _Played) -> str:
    """The first decision that differs from the play without a crash, in the order of the runs' starts."""
    before, after = calm.sandbox.world, played.sandbox.world
    for run_id in before.records:
        if run_id not in after.records:
            return f"run {run_id} was not started"
        expected, found = _decisions(before.events(run_id)), _decisions(after.events(run_id))
        for number, event in enumerate(expected):
            if number == len(found):
                return f"run {run_id} did not reach {event.describe()}"
            if _encode(event) != _encode(found[number]):
                return f"run {run_id} decided {_comparison(event, found[number])}"
        if len(found) > len(expected):
            return f"run {run_id} also decided {found[len(expected)].describe()}"
    if additional := [run_id for run_id in after.records if run_id not in before.records]:
        return f"run {additional[0]} was started, and without a crash it isn't"
    if calm.result != played.result:
        return f"the scenario returned {played.result!r}, and without a crash {calm.result!r}"
    return ""


def _comparison(expected: AnyEvent, found: AnyEvent) -> str:
    if expected.describe() != found.describe():
        return f"{found.describe()}, and without a crash {expected.describe()}"
    for name in expected.__struct_fields__:
        values = [getattr(event, name) for event in (found, expected)]
        if _encode(values[0]) != _encode(values[1]):
            plain = [msgspec.msgpack.decode(value) if isinstance(value, msgspec.Raw) else value for value in values]
            return (
                f"{found.describe()} with {name} {plain[0]!r}, and without a crash {plain[1]!r}. Does the workflow use "
                "a value that differs each time? If a step does, stub it."
            )
    raise ValueError(f"{expected!r} and {found!r} are equal")


def without_tracebacks(failure: Failure) -> Failure:
    cause, context = failure.cause, failure.context
    return msgspec.structs.replace(
        failure,
        traceback="",
        cause=None if cause is None else without_tracebacks(cause),
        context=None if context is None else without_tracebacks(context),
        members=tuple(without_tracebacks(member) for member in failure.members),
    )


def _decisions(events: list[AnyEvent]) -> list[AnyEvent]:
    """The decisions, without the tracebacks of failures: a replayed coroutine has other frames below it."""
    decisions: list[AnyEvent] = []
    for event in events:
        if not isinstance(event, (*DECISIONS, *ENDINGS, RunContinued)):
            continue
        failure = getattr(event, "failure", None)
        if failure is not None:
            event = msgspec.structs.replace(event, failure=without_tracebacks(failure))
        decisions.append(event)
    return decisions
