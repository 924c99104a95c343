"""Awaitables that were made and never awaited: the owner logs a warning with their line."""

# pyright: reportUnusedCoroutine=false

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

import streamflow.testing as sft
from streamflow.errors import UsageError
from streamflow.machine.transition import Due, Forgotten
from streamflow.workflow import api
from streamflow.workflow.api import gather, question, race, send_signal, shield, signal, sleep, start, task_group
from streamflow.workflow.app import App
from streamflow.workflow.reducer import Complete, Decision, Event, Started
from tests.support.machine_driver import Run, make_app

app = make_app()
act: Any = app.steps["act"]
child: Any = app.workflows["child"]


async def fails() -> None:
    raise ValueError


async def helper() -> None:
    lost = act(1)  # here: kept in a variable
    await sleep(0)
    del lost


async def helper_that_returns() -> None:
    _lost = act(1)  # here


FORGOTTEN: dict[str, Callable[[], Any]] = {}


def forgotten(function: Callable[[], Any]) -> Callable[[], Any]:
    FORGOTTEN[function.__name__] = function
    return function


@forgotten
async def a_step() -> None:
    act(1)  # here


@forgotten
async def a_step_with_options() -> None:
    act.options(timeout=5)(1)  # here


@forgotten
async def a_step_in_a_variable() -> None:
    _lost = act(1)  # here


@forgotten
async def a_step_in_a_helper() -> None:
    await helper()


@forgotten
async def a_step_in_a_helper_that_returns() -> None:
    await helper_that_returns()


@forgotten
async def a_child() -> None:
    child("x")  # here


@forgotten
async def a_started_child() -> None:
    start(child, "x")  # here


@forgotten
async def a_sleep() -> None:
    sleep(5)  # here


@forgotten
async def a_signal() -> None:
    signal("go")  # here


@forgotten
async def a_question() -> None:
    question("why")  # here


@forgotten
async def a_sent_signal() -> None:
    send_signal("other", "go")  # here


@forgotten
async def a_gather() -> None:
    gather(act(1), act(2), sleep(5))  # here


@forgotten
async def a_race() -> None:
    race(act(1), sleep(5))  # here


@forgotten
async def a_map() -> None:
    api.map(act, [1, 2], concurrency=1)  # here


for function in FORGOTTEN.values():
    app.workflow(function)


def _line(function: Callable[[], Any]) -> str:
    for candidate in (function, helper if "returns" not in function.__name__ else helper_that_returns):
        source, first = inspect.getsourcelines(candidate)
        for number, text in enumerate(source):
            if "# here" in text:
                return f"{inspect.getsourcefile(candidate)}:{first + number} "
    raise AssertionError(function)


def _warnings(run: Run) -> list[str]:
    found = [warning for warning in run.last.besides.warnings if isinstance(warning, Forgotten)]
    return [*found, *(w for w in run.advance(Due()).besides.warnings if isinstance(w, Forgotten))]


@pytest.mark.parametrize("name", FORGOTTEN)
def test_what_is_never_awaited_is_said_once_with_its_line(name: str) -> None:
    run = Run(app, name)
    (warning,) = _warnings(run)
    assert _line(FORGOTTEN[name]) in warning
    assert "never awaited" in warning


@app.workflow
async def careful() -> int:
    later = act(1)
    both = gather(later, act(2))
    unused_but_started = race(sleep(1), sleep(2))
    async with task_group() as group:
        group.start_soon(act, 3)
        group.start_soon(act, 4)
        await unused_but_started
    with shield():
        await both
    return len(await both)


def test_what_is_awaited_later_gathered_or_started_is_not(crash: bool) -> None:
    run = Run(app, "careful", crash=crash)
    said: list[str] = [*run.last.besides.warnings]
    said += run.advance(Due(), after=2000).besides.warnings
    for seq in list(run.machine.steps):
        said += run.done(seq, 1).besides.warnings
    for seq in list(run.machine.steps):
        said += run.done(seq, 1).besides.warnings
    assert run.machine.ended
    assert said == []


@app.workflow
async def waits_first() -> None:
    later = act(1)
    await sleep(1)
    await later


def test_a_run_that_leaves_memory_or_is_cancelled_has_forgotten_nothing() -> None:
    run = Run(app, "waits_first")
    run.machine.close()
    assert not run.last.besides.warnings
    run.reload()
    assert not run.advance(Due(), after=1000).besides.warnings
    assert list(run.machine.steps) == [2]


@app.workflow
async def refused() -> None:
    with pytest.raises(UsageError):
        await start(App().workflow(fails))
    with pytest.raises(UsageError):
        send_signal("{", "go")


def test_what_was_refused_was_not_forgotten() -> None:
    assert not Run(app, "refused").last.besides.warnings


def test_a_replay_says_nothing_again() -> None:
    app = make_app()

    @app.workflow
    async def flow() -> None:
        act.options()(1)
        await sleep(1)

    app.steps["act"] = act
    run = Run(app, "flow")
    assert len(run.last.besides.warnings) == 1
    run.reload()
    assert not run.advance(Due(), after=1000).besides.warnings


def test_a_reducer_forgets_a_command_that_it_does_not_return() -> None:
    app = make_app()
    app.steps["act"] = act

    @app.reducer
    def machine(state: int = 0, event: Event | None = None) -> Decision:
        if isinstance(event, Started):
            sleep(1)
            return Decision(state, [act(1)])
        return Decision(state, [Complete(1), act(2)])

    run = Run(app, "machine")
    (warning,) = _warnings(run)
    assert "sf.sleep() at " in warning
    assert not run.done(1).besides.warnings
    assert run.machine.ended


@pytest.mark.anyio
async def test_the_sandbox_gives_a_runtime_warning() -> None:
    async with sft.Sandbox(app) as sandbox:
        with pytest.warns(RuntimeWarning, match=r"run a_step-1: a call of step act at .*\.py:\d+ was never"):
            await sandbox.start("a_step")
