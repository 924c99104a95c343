"""Exceptions whose own code raises when anything is asked of them: they are recorded by their type, and end one run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from streamflow.errors import UsageError
from streamflow.model.failures import failure_of, kinds_of, outside_loop, without_outermost_frame
from streamflow.text import is_a
from streamflow.workflow.awaitable import ends_process
from tests.support.hostile_errors import HOSTILE
from tests.support.machine_driver import Run, failure_in, make_app, with_steps_of

app = make_app()


def raised(make: Callable[[], BaseException]) -> BaseException:
    try:
        raise make()
    except BaseException as error:
        return error


@pytest.mark.parametrize("kind", HOSTILE)
def test_nothing_that_is_asked_of_an_exception_runs_its_code(kind: str) -> None:
    error = raised(HOSTILE[kind])
    assert not ends_process(error)
    assert not is_a(error, UsageError)
    assert outside_loop(error) is error
    assert kinds_of(error)[0] == failure_of(error).kind
    assert "test_hostile_errors.py" in failure_of(error).traceback
    assert without_outermost_frame(error) is error


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_workflow_that_raises_it_fails_with_its_line(kind: str, crash: bool) -> None:
    other = with_steps_of(app)

    @other.workflow
    async def raises() -> None:
        await app.steps["act"](1)
        error = HOSTILE[kind]()
        raise error

    run = Run(other, "raises", crash=crash)
    run.done(1, 1)
    assert failure_in(run.last).kind == "Hostile"
    assert "test_hostile_errors.py" in failure_in(run.last).traceback
