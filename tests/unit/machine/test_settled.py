"""Awaitables that are settled already, or open, and awaited, combined or started once more: as in asyncio, each gives
the same value or error again, nothing is started twice, and nothing hangs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from streamflow.errors import StepFailed
from streamflow.machine.transition import Due
from streamflow.workflow import api
from streamflow.workflow.api import gather, race, shield, sleep, start, task_group, timeout
from streamflow.workflow.app import App
from tests.support.machine_driver import Run, make_app, result_of, with_steps_of

base = make_app()
act: Any = base.steps["act"]
child: Any = base.workflows["child"]


async def plain(aw: Awaitable[Any]) -> Any:
    return await aw


async def in_group(aw: Awaitable[Any]) -> Any:
    try:
        async with task_group() as group:
            member = group.start_soon(lambda: aw)
            again = group.start_soon(plain, aw)
        assert await member == await again
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return await member


async def in_block(aw: Awaitable[Any]) -> Any:
    with timeout(100), shield():
        return await aw


async def first_of(aw: Awaitable[Any]) -> Any:
    return await race(aw, sleep(50))


async def second_of(aw: Awaitable[Any]) -> Any:
    return await race(sleep(50), aw)


async def among_settled(aw: Awaitable[Any]) -> Any:
    return (await gather(aw, aw, gather(aw)))[2][0]


async def in_map(aw: Awaitable[Any]) -> Any:
    results = await api.map(lambda _: aw, [1, 2, 3], concurrency=2)
    assert results == [results[0]] * 3
    return results[0]


async def caught(aw: Awaitable[Any]) -> Any:
    (found,) = await gather(aw, return_exceptions=True)
    if isinstance(found, BaseException):
        raise found
    return found


WAYS: list[Callable[[Awaitable[Any]], Any]] = [
    plain, in_group, in_block, first_of, second_of, among_settled, in_map, caught,
]  # fmt: skip
KINDS: dict[str, Callable[[], Any]] = {
    "step": lambda: act("x"),
    "helper": lambda: gather(plain(act("x"))),
    "gather": lambda: gather(act("x"), act("x")),
}


def _flow(kind: str, first: Callable[..., Any], second: Callable[..., Any]) -> App:
    app = with_steps_of(base)

    @app.workflow
    async def flow() -> list[str]:
        aw = KINDS[kind]()
        seen: list[str] = []
        for way in (first, second, second):
            try:
                seen.append(repr(await way(aw)))
            except StepFailed as error:
                seen.append(f"failed: {error.failure}")
        return seen

    return app


@pytest.mark.parametrize("fails", [False, True], ids=["value", "error"])
@pytest.mark.parametrize("second", WAYS)
@pytest.mark.parametrize("first", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_settled_ones_give_the_same_again(
    crash: bool, kind: str, first: Callable[..., Any], second: Callable[..., Any], fails: bool
) -> None:
    run = Run(_flow(kind, first, second), "flow", crash=crash)
    steps = list(run.machine.steps)
    for seq in steps:
        if not run.machine.ended:
            run.failed(seq) if fails else run.done(seq, "x")
    assert run.machine.ended, run.names
    assert len(run.machine.steps) == 0
    assert run.names.count("StepScheduled") == len(steps) == (2 if kind == "gather" else 1)
    seen = result_of(run.last)
    assert seen[0] == seen[1] == seen[2]
    assert ("failed" in seen[0]) == fails


def test_several_fibers_get_the_outcome_of_one_call(crash: bool) -> None:
    app = with_steps_of(base)

    @app.workflow
    async def flow() -> Any:
        shared = act(1)
        return await gather(*(way(shared) for way in WAYS))

    run = Run(app, "flow", crash=crash)
    (seq,) = run.machine.steps
    run.done(seq, "x")
    assert run.machine.ended, run.names
    assert result_of(run.last) == ["x"] * len(WAYS)
    assert run.names.count("StepScheduled") == 1


def test_the_loser_of_a_race_is_cancelled_for_whoever_awaits_it_later(crash: bool) -> None:
    app = with_steps_of(base)

    @app.workflow
    async def flow() -> Any:
        fast, slow = act("fast"), act("slow")
        won = await race(slow, fast)
        again = await race(fast, slow)
        try:
            await slow
        except BaseException as error:
            return [won, again, type(error).__name__]

    run = Run(app, "flow", crash=crash)
    _, fast = run.machine.steps
    run.done(fast, "fast")
    assert run.machine.ended
    assert result_of(run.last) == ["fast", "fast", "Cancelled"]


def test_a_child_that_has_ended_can_be_awaited_and_raced_again(crash: bool) -> None:
    app = with_steps_of(base)
    app.workflows["child"] = child

    @app.workflow
    async def flow() -> Any:
        handle = start(child, "x")
        both = await gather(handle, handle)
        timer = sleep(1)
        await timer
        return [both[0] is both[1], await race(timer, sleep(9)), (await handle).id]

    run = Run(app, "flow", crash=crash)
    run.advance(Due(), after=1000)
    assert run.machine.ended
    assert result_of(run.last) == [True, None, "r.1"]
    assert run.names.count("ChildStarted") == 1
