"""What an app registers, and what calling it means outside a workflow."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from streamflow.errors import InvalidName, UsageError
from streamflow.workflow import api as inside
from streamflow.workflow.app import App
from streamflow.workflow.reducer import Decision, Event
from streamflow.workflow.retry import NO_RETRY, Retry


def _computes(value: int) -> int:
    return value


async def _is_async(value: int) -> int:
    return value


def test_a_step_may_run_in_a_process_of_its_own() -> None:
    assert App().step(process=True)(_computes).process
    assert not App().step(_computes).process


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (_is_async, "is an `async def`"),
        (lambda value: value, "another process can't import"),
        (len, "process=True is for plain functions"),
    ],
)
def test_a_function_that_another_process_cannot_find_is_refused(function: Any, why: str) -> None:
    def nested(value: int) -> int:
        return value

    with pytest.raises(UsageError, match=why):
        App().step(process=True, name="s")(function)
    with pytest.raises(UsageError, match="define it at the top of its module"):
        App().step(process=True)(nested)


def test_names_default_to_the_functions_and_can_be_given() -> None:
    app = App()

    @app.step
    def parse(page: str) -> int:
        return len(page)

    @app.step(name="fetch.v2", timeout=3, queue="net", retry=Retry(attempts=2))
    async def fetch(url: str) -> str:
        return url

    @app.workflow(name="other")
    async def digest() -> None: ...

    assert app.steps == {"parse": parse, "fetch.v2": fetch}
    assert app.workflows == {"other": digest}
    assert (fetch.timeout, fetch.queue, fetch.retry.attempts, fetch.is_async) == (3, "net", 2, True)
    assert (parse.timeout, parse.queue, parse.retry, parse.is_async) == (None, None, Retry(), False)


def test_outside_a_workflow_a_step_is_the_plain_function() -> None:
    app = App()

    @app.step
    def parse(page: str) -> int:
        return len(page)

    @app.step
    async def fetch(url: str) -> str:
        return url * 2

    assert parse("abc") == 3
    assert asyncio.run(fetch("a")) == "aa"  # type: ignore[arg-type]


def test_a_workflow_called_outside_says_what_to_do() -> None:
    app = App()

    @app.workflow
    async def digest() -> None: ...

    with pytest.raises(UsageError, match=r"client\.start\(digest.*digest\.function"):
        digest()  # pyright: ignore[reportUnusedCoroutine]


@pytest.mark.parametrize("name", ["now", "uuid4", "random", "info", "gather"])
def test_durable_calls_outside_a_workflow_are_usage_errors(name: str) -> None:
    with pytest.raises(UsageError, match="was called outside a workflow"):
        getattr(inside, name)()
    with pytest.raises(UsageError, match=r"sf\.sleep\(\) was called outside a workflow"):
        inside.sleep(1)  # pyright: ignore[reportUnusedCoroutine]
    with pytest.raises(UsageError, match=r"sf\.signal\(\) was called outside a workflow"):
        inside.signal("go")  # pyright: ignore[reportUnusedCoroutine]


def test_a_second_step_or_workflow_of_the_same_name_is_refused() -> None:
    app = App()
    app.step(name="a")(lambda: None)
    with pytest.raises(UsageError, match="two steps are named a"):
        app.step(name="a")(lambda: None)

    @app.workflow(name="w")
    async def one() -> None: ...

    def two(state: int, event: Event) -> Decision:
        return Decision(state)

    with pytest.raises(UsageError, match="two workflows or reducers are named w"):
        app.reducer(name="w")(two)


def test_a_name_outside_the_alphabet_is_refused() -> None:
    with pytest.raises(InvalidName, match="step"):
        App().step(lambda: None)


def test_a_workflow_that_is_a_plain_function_is_refused() -> None:
    def plain() -> None: ...

    with pytest.raises(UsageError, match="async def"):
        App().workflow(plain)  # type: ignore[call-overload]


def test_options_give_a_copy_and_leave_the_step_alone() -> None:
    app = App()

    @app.step(timeout=3)
    def parse(page: str) -> int:
        return len(page)

    other = parse.options(timeout=None, queue="gpu", tag="t", retry=Retry(attempts=1))
    assert (other.name, other.timeout, other.queue, other.tag, other.retry.attempts) == ("parse", None, "gpu", "t", 1)
    assert (parse.timeout, parse.queue, parse.tag, parse.retry.attempts) == (3, None, "", 20)
    assert parse.options(tag="x").timeout == 3
    with pytest.raises(UsageError, match=r"seconds > 0 or a timedelta, or None .*, got 0"):
        parse.options(timeout=0)


def test_options_add_up() -> None:
    app = App()

    @app.step(timeout=3)
    def parse(page: str) -> int:
        return len(page)

    @app.workflow
    async def child(n: int) -> int:
        return n

    step = parse.options(timeout=timedelta(seconds=9), tag="t").options(queue="gpu").options(retry=NO_RETRY)
    assert (step.timeout, step.tag, step.queue, step.retry) == (9.0, "t", "gpu", NO_RETRY)
    assert (step.options(tag="").tag, step.options(queue=None).queue) == ("", None)
    run = child.options(id="a", tag="t").options(tenant="acme").options(on_parent_end="abandon").options()
    assert (run.child_id, run.tag, run.child_tenant, run.on_parent_end) == ("a", "t", "acme", "abandon")
    assert (run.options(id="").child_id, run.options(on_parent_end="cancel").on_parent_end) == ("", "cancel")


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), float("inf"), 1e12, "5", True, timedelta(0), [1]])
def test_a_time_limit_that_cannot_work_is_refused_where_it_is_written(wrong: Any) -> None:
    with pytest.raises(UsageError, match="step _is_async: timeout must be seconds > 0 or a timedelta"):
        App().step(timeout=wrong)(_is_async)
    with pytest.raises(UsageError, match="timeout must be"):
        App().step(_is_async).options(timeout=wrong)


def test_a_reducer_needs_an_initial_state_that_can_be_stored() -> None:
    app = App()

    def no_default(state: int | str, event: Event) -> Decision:
        return Decision(state)

    def with_default(state: list[int] = [1], event: Event | None = None) -> Decision:  # noqa: B006
        return Decision(state)

    def called(state: dict[str, int], event: Event) -> Decision:
        return Decision(state)

    with pytest.raises(UsageError, match="has no initial state"):
        app.reducer(no_default)
    reducer = app.reducer(with_default)
    first = reducer.initial()
    first.append(2)
    assert reducer.initial() == [1]
    assert app.reducer(called).initial() == {}
    assert reducer.parameters.names == ["input"]
    assert reducer.parameters.decode(reducer.parameters.encode((), {})) == ((None,), {})


def test_a_retry_that_is_not_a_policy_is_refused_where_it_is_written() -> None:
    wrong: Any = 3
    with pytest.raises(UsageError, match=r"step _is_async: retry must be an sf\.Retry, .*, got 3"):
        App().step(retry=wrong)(_is_async)
    with pytest.raises(UsageError, match="retry must be an"):
        App().step(_is_async).options(retry=wrong)
