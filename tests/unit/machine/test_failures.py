"""What user code can do wrong, and how its run ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import streamflow as sf
from streamflow import events
from streamflow.errors import Failure, ForeignAwait
from streamflow.machine.transition import Outcome
from streamflow.workflow.app import App
from tests.support.machine_driver import Run, failure_in, kinds, result_of


def _flow(body: Any) -> Run:
    local = App(parks=())
    local.workflow(name="flow")(body)
    return Run(local, "flow")


def test_an_exception_fails_the_run_with_its_class_message_and_lines() -> None:
    async def flow() -> None:
        raise KeyError("missing")

    failure = failure_in(_flow(flow).last)
    assert (failure.kind, failure.message) == ("KeyError", "'missing'")
    assert __file__ in failure.traceback
    assert "coroutines.py" not in failure.traceback


@pytest.mark.parametrize("error", [SystemExit(1), GeneratorExit(), asyncio.CancelledError()])
def test_exits_raised_by_user_code_fail_the_run(error: BaseException) -> None:
    async def flow() -> None:
        raise error

    assert failure_in(_flow(flow).last).kind == type(error).__name__


class Abort(BaseException):
    """What some libraries do: an error that is no `Exception`."""


async def _in_group() -> None:
    async def member() -> None:
        raise Abort

    async with sf.task_group() as group:
        group.start_soon(member)
        await sf.signal("never")


async def _in_gather() -> None:
    async def helper() -> None:
        raise Abort

    await sf.gather(helper(), return_exceptions=True)


async def _in_map() -> None:
    def plain(item: int) -> Any:
        raise Abort

    await sf.map(plain, [1], concurrency=1, return_exceptions=True)


async def _alone() -> None:
    raise Abort


@pytest.mark.parametrize("body", [_alone, _in_group, _in_gather, _in_map])
def test_an_error_of_any_base_fails_its_run_and_nothing_else(body: Any) -> None:
    run = _flow(body)
    assert failure_in(run.last).kind == "Abort"
    run.machine.close()


def test_an_error_of_any_base_in_a_reducer_fails_its_run() -> None:
    local = App(parks=())

    @local.reducer
    def flow(state: list[int], event: sf.Event) -> sf.Decision:
        raise Abort

    assert failure_in(Run(local, "flow", None).last).kind == "Abort"


@pytest.mark.parametrize("error", [SystemExit(1), Abort()])
def test_a_saga_is_undone_whatever_the_base_of_the_error(error: BaseException) -> None:
    local = App(parks=())

    @local.step
    async def undo() -> None: ...

    @local.workflow
    async def flow() -> None:
        async with sf.saga() as saga:
            saga.compensate(undo)
            raise error

    run = Run(local, "flow")
    assert kinds(run.last) == ["RunStarted", "StepScheduled"]
    run.done(1)
    assert failure_in(run.last).kind == type(error).__name__


def test_an_interrupt_is_not_swallowed() -> None:
    async def flow() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _flow(flow)


def test_a_result_that_cannot_be_encoded_fails_the_run() -> None:
    async def flow() -> Any:
        return object()

    assert failure_in(_flow(flow).last).kind == "PayloadInvalid"


def test_a_result_that_is_too_large_fails_the_run() -> None:
    async def flow() -> Any:
        return b"x" * (2 * 1024 * 1024 + 1)

    assert failure_in(_flow(flow).last).kind == "PayloadTooLarge"


def test_an_input_of_the_wrong_type_fails_the_run() -> None:
    local = App(parks=())

    @local.workflow
    async def flow(x: int) -> None: ...

    assert failure_in(Run(local, "flow", "one").last).kind == "PayloadInvalid"


def test_asyncio_sleep_in_a_workflow_names_the_line_and_what_to_use() -> None:
    async def helper() -> None:
        await asyncio.sleep(0)

    async def flow() -> None:
        await helper()

    failure = failure_in(_flow(flow).last)
    assert failure.kind == "ForeignAwait"
    assert f"{__file__}:{helper.__code__.co_firstlineno + 1}" in failure.message
    assert "sf.sleep" in failure.message


def test_an_asyncio_future_in_a_workflow_is_to_be_moved_into_a_step() -> None:
    async def flow() -> str:
        loop = asyncio.new_event_loop()
        try:
            await loop.create_future()
        except ForeignAwait as error:
            return str(error)
        finally:
            loop.close()
        return "?"

    message = result_of(_flow(flow).last)
    assert f"{__file__}:{flow.__code__.co_firstlineno + 3}" in message
    assert "move it into a step" in message


def test_asyncio_sleep_says_the_same_with_a_loop_and_without() -> None:
    async def flow() -> None:
        await asyncio.sleep(1)

    async def inside() -> Run:
        return _flow(flow)

    line = f"{__file__}:{flow.__code__.co_firstlineno + 1}"
    for run in (_flow(flow), asyncio.run(inside())):
        failure = failure_in(run.last)
        assert failure.kind == "ForeignAwait"
        assert line in failure.message
        assert "sf.sleep" in failure.message


def test_a_message_that_cannot_be_made_does_not_escape() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    async def flow() -> None:
        raise Broken

    assert failure_in(_flow(flow).last).message == "<RuntimeError in __str__>"


def test_a_failed_run_starts_nothing_more() -> None:
    async def flow() -> None:
        raise ValueError

    run = _flow(flow)
    assert kinds(run.last) == ["RunStarted", "RunFailed"]
    assert run.done(1).ended
    assert not run.last.events


class Unshowable(Exception):
    """Every way in which an exception can resist being looked at."""

    __notes__: Any = 3

    def __str__(self) -> str:
        raise SystemExit

    def __repr__(self) -> str:
        raise RuntimeError


class NumberAsText(Exception):
    def __str__(self) -> str:
        return 503  # type: ignore[return-value]


@pytest.mark.parametrize("make", [Unshowable, NumberAsText, lambda: ValueError("half \ud83d")])
def test_a_task_group_whose_task_can_not_be_shown_ends_its_run(make: Any) -> None:
    error = make()

    async def member() -> None:
        raise error

    async def flow() -> None:
        async with sf.task_group() as group:
            group.start_soon(member)
            await sf.signal("never")

    failure = failure_in(_flow(flow).last)
    assert failure.kind == "ExceptionGroup"
    assert [one.kind for one in failure.members] == [type(error).__name__]


@pytest.mark.parametrize("make", [Unshowable, NumberAsText, lambda: ValueError("half \ud83d")])
def test_a_saga_says_which_compensation_failed_whatever_it_can_show(make: Any) -> None:
    error = make()

    async def undo() -> None:
        raise error

    async def flow() -> None:
        async with sf.saga() as saga:
            saga.compensate(undo)
            raise KeyError("why")

    failure = failure_in(_flow(flow).last)
    assert failure.kind == "CompensationFailed"
    assert type(error).__name__ in failure.message
    assert failure.cause is not None
    assert failure.cause.kind == "KeyError"


BAD = "no: \ud83d\0"


@pytest.mark.parametrize("text", [BAD, "x" * 3_000_000, 7, None, object()])
def test_a_reducer_may_fail_with_any_text(text: Any) -> None:
    local = App(parks=())

    @local.reducer
    def flow(state: int, event: sf.Event) -> sf.Decision:
        return sf.Decision(state, [sf.Fail(text)])

    failure = failure_in(Run(local, "flow", None).last)
    assert failure.kind == "Fail"
    events.encode_transition(1, [events.RunFailed("flow", "", 1, failure)])


@pytest.mark.parametrize("make", [lambda: sf.sleep(1, tag=BAD), lambda: sf.sleep(1, tag=7)])  # type: ignore[arg-type]
def test_a_tag_that_can_not_be_recorded_is_refused_at_the_call(make: Any) -> None:
    local = App(parks=())

    @local.reducer
    def flow(state: int, event: sf.Event) -> sf.Decision:
        return sf.Decision(state, [make()])

    failure = failure_in(Run(local, "flow", None).last)
    assert failure.kind == "UsageError"
    assert "a tag " in failure.message


@pytest.mark.parametrize("command", [sf.Answer("7"), sf.Answer(7), sf.Refuse(BAD, "no")])  # type: ignore[arg-type]
def test_an_answer_to_another_id_is_refused(command: Any) -> None:
    local = App(parks=())

    @local.reducer
    def flow(state: int, event: sf.Event) -> sf.Decision:
        return sf.Decision(state, [command])

    failure = failure_in(Run(local, "flow", None).last)
    assert "the id of a question has 32 hex digits" in failure.message


def test_the_failure_of_a_step_is_the_cause_of_the_run_s() -> None:
    local = App(parks=())

    @local.step(retry=sf.NO_RETRY)
    async def pay() -> None: ...

    @local.workflow
    async def flow() -> None:
        await pay()

    run = Run(local, "flow")
    run.advance(Outcome(1, 1, 1.0, None, Failure("Declined", "no", "  line\n", fields={"code": 7}), True))
    failure = failure_in(run.last)
    assert failure.kind == "StepFailed"
    assert failure.cause is not None
    assert (failure.cause.kind, failure.cause.fields) == ("Declined", {"code": 7})
    assert "Declined: no" in failure.traceback
