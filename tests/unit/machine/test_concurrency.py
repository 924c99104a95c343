"""Several things at once in machines: race, map, task groups. Each test runs twice: with one machine, and with a
machine that is made again from the record before every transition."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import streamflow as sf
from streamflow.events import CancelRequested, SignalReceived
from streamflow.machine.transition import Due
from tests.support.machine_driver import Run, failure_in, kinds, make_app, plain, raw, result_of


def waiting(run: Run) -> dict[Any, int]:
    """Argument -> number of the open steps."""
    return {plain(call.payload)[0]: call.seq for call in run.machine.steps.values()}


# --- race -------------------------------------------------------------------------------------------------------------


def test_a_race_gives_the_first_result_and_cancels_the_losers(crash: bool) -> None:
    app = make_app()
    act = app.steps["act"]

    @app.workflow
    async def flow() -> Any:
        return await sf.race(act("a"), act("b"), sf.sleep(60), sf.signal("s"))

    run = Run(app, "flow", crash=crash)
    run.done(waiting(run)["b"], "B")
    assert kinds(run.last) == ["StepCompleted", "StepCancelled", "RunCompleted"]
    assert result_of(run.last) == "B"


def test_the_first_error_wins_a_race_too(crash: bool) -> None:
    app = make_app()
    act = app.steps["act"]

    @app.workflow
    async def flow() -> Any:
        try:
            await sf.race(act("a"), act("b"))
        except sf.StepFailed as error:
            return error.failure.kind

    run = Run(app, "flow", crash=crash)
    run.failed(1)
    assert result_of(run.last) == "ValueError"


def test_a_result_that_is_there_already_wins_and_nothing_after_it_starts(crash: bool) -> None:
    app = make_app()
    act = app.steps["act"]

    @app.workflow
    async def flow() -> Any:
        await act("go")

        async def never() -> None:
            raise AssertionError("it must not begin")

        return await sf.race(sf.signal("early", str), act("b"), never())

    run = Run(app, "flow", crash=crash)
    run.advance(SignalReceived("early", raw("bird")))
    run.done(1)
    assert kinds(run.last) == ["StepCompleted", "RunCompleted"]
    assert result_of(run.last) == "bird"


def test_a_race_is_over_when_its_losers_have_cleaned_up(crash: bool) -> None:
    app = make_app()
    act = app.steps["act"]

    @app.workflow
    async def flow() -> Any:
        async def loser() -> None:
            try:
                await act("slow")
            finally:
                await act("clean")

        return await sf.race(loser(), act("fast"))

    run = Run(app, "flow", crash=crash)
    run.done(waiting(run)["fast"], "won")
    assert kinds(run.last) == ["StepCompleted", "StepCancelled", "StepScheduled"]
    run.done(waiting(run)["clean"])
    assert result_of(run.last) == "won"


def test_an_error_in_a_losers_clean_up_is_not_lost(crash: bool) -> None:
    app = make_app()
    act = app.steps["act"]

    @app.workflow
    async def flow() -> Any:
        async def loser() -> None:
            try:
                await act("slow")
            finally:
                raise ValueError("can't clean up")

        return await sf.race(loser(), act("fast"))

    run = Run(app, "flow", crash=crash)
    run.done(waiting(run)["fast"])
    assert failure_in(run.last).message == "can't clean up"


def test_a_race_that_is_cancelled_cancels_all(crash: bool) -> None:
    app = make_app()
    act = app.steps["act"]

    @app.workflow
    async def flow() -> Any:
        return await sf.race(act("a"), act("b"))

    run = Run(app, "flow", crash=crash)
    run.advance(CancelRequested("x"))
    assert kinds(run.last) == ["CancelRequested", "StepCancelled", "StepCancelled", "RunCancelled"]


def test_a_race_of_nothing_is_a_mistake() -> None:
    app = make_app()

    @app.workflow
    async def flow() -> Any:
        return await sf.race()

    assert "at least one" in failure_in(Run(app, "flow").last).message


# --- map --------------------------------------------------------------------------------------------------------------


def map_app(count: int = 7, concurrency: int = 3, return_exceptions: bool = False) -> sf.App:
    app = make_app()
    act = app.steps["act"]

    @app.workflow
    async def flow() -> Any:
        results = await sf.map(act, range(count), concurrency=concurrency, return_exceptions=return_exceptions)
        return [repr(one) if isinstance(one, BaseException) else one for one in results]

    return app


def test_a_map_keeps_its_window_full_and_its_results_in_order(crash: bool) -> None:
    run = Run(map_app(), "flow", crash=crash)
    started = set(waiting(run))
    assert started == {0, 1, 2}
    for item in (2, 0, 3, 1, 4, 6, 5):
        run.done(waiting(run)[item], item * 10)
        started |= set(waiting(run))
        assert len(waiting(run)) <= 3
    assert started == set(range(7))
    assert result_of(run.last) == [0, 10, 20, 30, 40, 50, 60]


def test_the_first_error_of_a_map_cancels_the_rest(crash: bool) -> None:
    run = Run(map_app(), "flow", crash=crash)
    run.failed(waiting(run)[1])
    assert kinds(run.last) == ["StepFailed", "StepCancelled", "StepCancelled", "RunFailed"]


def test_a_map_can_keep_errors_as_results(crash: bool) -> None:
    run = Run(map_app(3, 1, True), "flow", crash=crash)
    run.done(1, "a")
    run.failed(2)
    run.done(3, "c")
    first, second, third = result_of(run.last)
    assert (first, third) == ("a", "c")
    assert second.startswith("StepFailed")


def test_a_map_over_nothing_is_an_empty_list(crash: bool) -> None:
    assert result_of(Run(map_app(0), "flow", crash=crash).last) == []


def test_a_map_takes_items_as_slots_become_free_and_helpers_too(crash: bool) -> None:
    app = make_app()
    act = app.steps["act"]
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(4):
            taken.append(number)
            yield number

    async def twice(n: int) -> Any:
        await act(n)
        return await act(n + 100)

    @app.workflow
    async def flow() -> Any:
        taken.clear()
        return await sf.map(twice, items(), concurrency=2)

    run = Run(app, "flow", crash=crash)
    assert taken == [0, 1]
    for item in (0, 100, 1, 101, 2, 102, 3, 103):
        run.done(waiting(run)[item], item)
    assert result_of(run.last) == [100, 101, 102, 103]


def test_a_cancelled_map_cancels_what_runs_and_starts_nothing_more(crash: bool) -> None:
    run = Run(map_app(), "flow", crash=crash)
    run.advance(CancelRequested("x"))
    assert kinds(run.last) == ["CancelRequested", *["StepCancelled"] * 3, "RunCancelled"]


def test_a_function_or_iterable_that_raises_ends_the_map() -> None:
    app = make_app()
    act = app.steps["act"]

    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("no more")

    @app.workflow
    async def bad_items() -> Any:
        return await sf.map(act, broken(), concurrency=5)

    @app.workflow
    async def bad_window() -> Any:
        return await sf.map(act, [1], concurrency=0)

    run = Run(app, "bad_items")
    assert kinds(run.last)[-2:] == ["StepCancelled", "RunFailed"]
    assert failure_in(run.last).message == "no more"
    assert "concurrency must be an integer >= 1, got 0" in failure_in(Run(app, "bad_window").last).message


# --- task groups ------------------------------------------------------------------------------------------------------


def test_a_task_group_ends_when_all_that_was_started_in_it_has(crash: bool) -> None:
    app = make_app()
    act = app.steps["act"]

    @app.workflow
    async def flow() -> Any:
        async def helper(name: str) -> str:
            await act(f"{name} 1")
            return await act(f"{name} 2")

        async with sf.task_group() as group:
            first = group.start_soon(act, "a")
            second = group.start_soon(helper, "h")
        return [await first, await second]

    run = Run(app, "flow", crash=crash)
    run.done(waiting(run)["h 1"])
    run.done(waiting(run)["h 2"], "H")
    assert not run.last.ended
    run.done(waiting(run)["a"], "A")
    assert result_of(run.last) == ["A", "H"]


def test_the_first_failure_cancels_the_others_and_the_block(crash: bool) -> None:
    app = make_app()
    act = app.steps["act"]

    @app.workflow
    async def flow() -> Any:
        kinds_of_errors: list[str] = []
        try:
            async with sf.task_group() as group:
                group.start_soon(act, "a")
                group.start_soon(act, "bad")
                await act("in the block")
        except* sf.StepFailed as errors:
            kinds_of_errors += [error.failure.kind for error in errors.exceptions]  # type: ignore[union-attr]
        return kinds_of_errors

    run = Run(app, "flow", crash=crash)
    run.failed(waiting(run)["bad"])
    assert kinds(run.last) == ["StepFailed", "StepCancelled", "StepCancelled", "RunCompleted"]
    assert result_of(run.last) == ["ValueError"]


def test_an_error_in_the_block_cancels_the_members_and_waits_for_them(crash: bool) -> None:
    app = make_app()
    act = app.steps["act"]

    @app.workflow
    async def flow() -> Any:
        async def helper() -> None:
            try:
                await sf.sleep(100)
            finally:
                await act("clean")

        async with sf.task_group() as group:
            group.start_soon(helper)
            await act("go")
            raise ValueError("block")

    run = Run(app, "flow", crash=crash)
    run.done(waiting(run)["go"])
    assert not run.last.ended
    run.done(waiting(run)["clean"])
    failure = failure_in(run.last)
    assert failure.kind == "ExceptionGroup"
    assert "ValueError: block" in failure.message


def test_cancel_ends_a_group_quietly(crash: bool) -> None:
    app = make_app()
    act = app.steps["act"]

    @app.workflow
    async def flow() -> Any:
        async with sf.task_group() as group:
            group.start_soon(act, "a")
            await act("go")
            group.cancel()
            await act("never")
        return "after"

    run = Run(app, "flow", crash=crash)
    run.done(waiting(run)["go"])
    assert kinds(run.last) == ["StepCompleted", "StepCancelled", "RunCompleted"]
    assert result_of(run.last) == "after"


def test_cancel_at_the_end_of_the_block_ends_it_quietly_too(crash: bool) -> None:
    app = make_app()
    act = app.steps["act"]

    @app.workflow
    async def flow() -> Any:
        async with sf.task_group() as group:
            group.start_soon(act, "a")
            await act("go")
            group.cancel()
        return "after"

    run = Run(app, "flow", crash=crash)
    run.done(waiting(run)["go"])
    assert kinds(run.last) == ["StepCompleted", "StepCancelled", "RunCompleted"]


def test_a_cancelled_run_cancels_its_groups_from_the_inside_out(crash: bool) -> None:
    app = make_app()
    act = app.steps["act"]

    @app.workflow
    async def flow() -> Any:
        async with sf.task_group() as outer:
            outer.start_soon(act, "a")
            async with sf.task_group() as inner:
                inner.start_soon(act, "b")

    run = Run(app, "flow", crash=crash)
    run.advance(CancelRequested("x"))
    assert kinds(run.last) == ["CancelRequested", "StepCancelled", "StepCancelled", "RunCancelled"]


def test_a_member_may_start_members_and_a_timeout_ends_a_group(crash: bool) -> None:
    app = make_app()
    act = app.steps["act"]

    @app.workflow
    async def flow() -> Any:
        try:
            async with sf.timeout(10), sf.task_group() as group:

                async def spawner() -> None:
                    await act("first")
                    group.start_soon(act, "second")

                group.start_soon(spawner)
        except TimeoutError:
            return "timed out"
        return "done"

    run = Run(app, "flow", crash=crash)
    run.done(waiting(run)["first"])
    assert "second" in waiting(run)
    run.advance(Due(), after=10_000)
    assert kinds(run.last) == ["TimerFired", "StepCancelled", "RunCompleted"]
    assert result_of(run.last) == "timed out"


def test_starting_in_a_group_that_has_ended_is_a_mistake(crash: bool) -> None:
    app = make_app()
    act = app.steps["act"]

    @app.workflow
    async def flow() -> Any:
        async with sf.task_group() as group:
            pass
        group.start_soon(act, "late")

    assert "after the block" in failure_in(Run(app, "flow", crash=crash).last).message


def test_a_gather_that_is_raced_and_lost_is_cancelled_whole(crash: bool) -> None:
    app = make_app()
    act = app.steps["act"]

    @app.workflow
    async def flow() -> Any:
        return await sf.race(sf.gather(act("a"), sf.gather(act("b"))), sf.map(act, ["c"], concurrency=1), act("d"))

    run = Run(app, "flow", crash=crash)
    run.done(waiting(run)["d"], "D")
    assert kinds(run.last) == ["StepCompleted", *["StepCancelled"] * 3, "RunCompleted"]


# --- mistakes ---------------------------------------------------------------------------------------------------------


async def _call_in_group(act: Any) -> None:
    async with sf.task_group() as group:
        group.start_soon(act(1))


async def _coroutine_in_saga(act: Any) -> None:
    async def undo() -> None: ...

    async with sf.saga() as saga:
        saga.compensate(undo())  # type: ignore[arg-type]


async def _group_not_entered(act: Any) -> None:
    sf.task_group().start_soon(act, 1)


async def _half_a_worker(act: Any) -> None:
    await sf.map(act, [1], concurrency=1.5)  # type: ignore[call-overload]


async def _no_duration(act: Any) -> None:
    await sf.sleep(None)  # type: ignore[arg-type]


async def _too_many_arguments(act: Any) -> None:
    await act(1, 2)


async def _a_list_of_calls(act: Any) -> None:
    await sf.gather([act(1), act(2)])  # type: ignore[arg-type]


async def _a_plain_compensation(act: Any) -> None:
    async with sf.saga() as saga:
        saga.compensate(len, "abc")  # type: ignore[arg-type]
        raise ValueError("undo it")


async def _a_returned_continuation(act: Any) -> Any:
    return sf.ContinueAs()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (_call_in_group, "must get a function and its arguments"),
        (_coroutine_in_saga, "must get a function and its arguments"),
        (_group_not_entered, "async with sf.task_group"),
        (_half_a_worker, "concurrency must be an integer >= 1, got 1.5"),
        (_no_duration, "duration must be seconds or a timedelta, at most 1e11 seconds, got None"),
        (_a_list_of_calls, "sf.gather() must get awaitables, got list: unpack it with *"),
        (
            _a_plain_compensation,
            "must get a step, a workflow or an `async def`, but len returned a value of type int",
        ),
        (_a_returned_continuation, "workflow flow returned sf.ContinueAs(…): raise it"),
        (_too_many_arguments, "step act can't be called with these arguments: too many positional arguments"),
    ],
)
def test_a_mistake_is_reported_with_what_to_do(body: Any, message: str) -> None:
    app = make_app()
    act = app.steps["act"]

    @app.workflow
    async def flow() -> Any:
        return await body(act)

    assert message in failure_in(Run(app, "flow").last).message
