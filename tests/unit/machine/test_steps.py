"""Steps inside a workflow: scheduled, completed, retried, failed, gathered."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from streamflow import errors
from streamflow.errors import Failure
from streamflow.events import CancelRequested, StepFailed, StepRetrying
from streamflow.machine.transition import Due, Outcome
from streamflow.workflow.api import gather, sleep
from streamflow.workflow.app import App
from streamflow.workflow.retry import Retry
from tests.support.machine_driver import Run, failure_in, kinds, plain, raw, result_of, with_steps_of

app = App()


@app.step(retry=Retry(attempts=3, jitter=0, initial=1), timeout=7)
async def double(x: int, plus: int = 0) -> int:
    return x * 2 + plus


@app.step(retry=Retry(never=(KeyError, "Fatal")))
def picky() -> int:
    return 1


@app.step(queue="gpu")
def queued() -> int:
    return 1


@app.workflow
async def two(x: int) -> list[int]:
    first = await double(x)
    return [first, await double(first, plus=1)]


def test_a_step_is_scheduled_and_its_result_goes_to_the_await() -> None:
    run = Run(app, "two", 5)
    assert kinds(run.last) == ["RunStarted", "StepScheduled"]
    (job,) = run.last.jobs
    assert (job.seq, job.attempt, job.step, job.timeout, plain(job.args)) == (1, 1, double, 7, [5, 0])
    assert run.machine.in_flight
    run.done(1, 10)
    assert kinds(run.last) == ["StepCompleted", "StepScheduled"]
    assert plain(run.last.jobs[0].args) == {"x": 10, "plus": 1}, "by name, because the call used a keyword"
    run.done(2, 21)
    assert kinds(run.last) == ["StepCompleted", "RunCompleted"]
    assert result_of(run.last) == [10, 21]
    assert run.last.ended
    assert run.last.status == "completed"
    assert not run.machine.in_flight
    assert run.machine.events_count == 6


def test_an_outcome_of_another_attempt_or_step_is_dropped_silently() -> None:
    run = Run(app, "two", 5)
    assert not run.done(9).events
    assert not run.done(1, attempt=2).events
    run.done(1, 10)
    assert not run.done(1, 10).events


def test_a_failed_attempt_is_retried_when_it_is_due() -> None:
    run = Run(app, "two", 5)
    run.failed(1)
    event = run.last.events[0]
    assert isinstance(event, StepRetrying)
    assert event.due == run.at + 1000
    assert run.machine.next_due == event.due
    assert not run.machine.in_flight
    assert not run.last.jobs
    assert not run.advance(Due(), after=999).jobs
    effects = run.advance(Due(), after=1)
    assert [(job.seq, job.attempt) for job in effects.jobs] == [(1, 2)]
    assert not effects.events
    assert run.machine.in_flight
    assert run.machine.next_due is None
    assert not run.done(1, 10, attempt=1).events, "the first attempt is no longer the current one"
    run.done(1, 10, attempt=2)
    assert kinds(run.last) == ["StepCompleted", "StepScheduled"]


def test_a_step_without_attempts_left_raises_at_the_await() -> None:
    run = Run(app, "two", 5)
    for attempt in (1, 2):
        run.failed(1, attempt=attempt)
        run.advance(Due(), after=10_000)
    run.failed(1, attempt=3)
    assert kinds(run.last) == ["StepFailed", "RunFailed"]
    failure = failure_in(run.last)
    assert failure.kind == "StepFailed"
    assert failure.message == "step double failed after 3 attempts: ValueError: no"
    assert "in two" in failure.traceback
    assert "streamflow/machine" not in failure.traceback


@pytest.mark.parametrize("kind", ["KeyError", "Fatal"])
def test_what_the_policy_never_retries_fails_at_once(kind: str) -> None:
    local = App()
    local.steps["picky"] = picky

    @local.workflow
    async def flow() -> str:
        try:
            await picky()
        except errors.StepFailed as error:
            return error.failure.kind
        return "?"

    run = Run(local, "flow")
    assert kinds(run.failed(1, "Other")) == ["StepRetrying"]
    run = Run(local, "flow")
    assert kinds(run.failed(1, "Other", permanent=True)) == ["StepFailed", "RunCompleted"]
    run = Run(local, "flow")
    assert kinds(run.failed(1, kind)) == ["StepFailed", "RunCompleted"]
    assert result_of(run.last) == kind


CALLS = {
    "picky": lambda: picky(),
    "lenient": lambda: picky.options(retry=Retry(attempts=2, initial=0))(),
    "strict": lambda: double.options(retry=Retry(attempts=5, never=LookupError))(1),
    "strict_in_a_queue": lambda: queued.options(retry=Retry(attempts=5, never="LookupError"))(),
}


@app.workflow
async def calls(which: str) -> Any:
    return await CALLS[which]()


@pytest.mark.parametrize(
    ("which", "bases", "event"),
    [
        ("picky", ("LookupError",), "StepFailed"),
        ("lenient", ("LookupError",), "StepRetrying"),
        ("strict", ("LookupError",), "StepFailed"),
        ("strict", ("Exception",), "StepRetrying"),
        ("strict_in_a_queue", ("LookupError",), "StepFailed"),
    ],
)
def test_never_of_the_call_decides_by_what_the_failure_derives_from(
    crash: bool, which: str, bases: tuple[str, ...], event: str
) -> None:
    run = Run(app, "calls", which, crash=crash)
    assert kinds(run.failed(1, "KeyError", bases=bases))[0] == event


def test_the_policy_of_a_call_decides_when_a_stuck_run_resumes() -> None:
    old, new = with_steps_of(app), with_steps_of(app)

    async def flow() -> Any:
        return await gather(CALLS["strict_in_a_queue"](), double(1))

    async def changed() -> Any:
        return await gather(CALLS["strict_in_a_queue"](), picky())

    old.workflow(name="flow")(flow)
    new.workflow(name="flow")(changed)
    run = Run(old, "flow")
    for resumed in (["StepFailed", "RunFailed"], ["StepRetrying"]):
        run = Run(old, "flow")
        run.reload(new)
        assert run.machine.reason
        base = "LookupError" if len(resumed) == 2 else "OSError"
        assert kinds(run.failed(1, "Oops", bases=(base,))) == ["RunStuck", "StepRetrying"]
        assert not run.failed(1, "Oops", bases=(base,)).events, "the same outcome again"
        assert run.machine.next_due is None
        run.reload(new)
        run.reload(old)
        assert kinds(run.advance(after=10**9)) == ["RunResumed", *resumed], "the time does not count"
        assert not run.reload().reason


def test_attempts_end_when_the_next_one_would_be_too_late(crash: bool) -> None:
    hour = with_steps_of(app)
    policy = Retry(within=timedelta(hours=1), initial=60, factor=1, jitter=0)

    @hour.workflow
    async def flow() -> int:
        return await double.options(retry=policy)(1)

    run = Run(hour, "flow", crash=crash)
    first = run.at
    attempts = 0
    event: Any = None
    while not isinstance(event, StepFailed):
        attempts += 1
        event = run.failed(1, attempt=attempts, ms=240_000, after=240_000).events[0]
        if isinstance(event, StepRetrying):
            assert event.due - first <= 3_600_000
            run.advance(Due(), after=event.due - run.at)
    assert attempts == 13  # one every five minutes, the last one after exactly an hour


def test_lost_workers_take_nothing_from_the_time_of_a_policy() -> None:
    hour = with_steps_of(app)

    @hour.workflow
    async def flow() -> int:
        return await queued.options(retry=Retry(within=60, initial=1, jitter=0))()

    run = Run(hour, "flow")
    assert kinds(run.failed(1, "WorkerLost", after=3_600_000)) == ["StepRetrying"]
    run.advance(Due())
    assert kinds(run.failed(1, "ValueError", attempt=2, after=3_600_000)) == ["StepRetrying"]


@pytest.mark.parametrize("crash", [False, True])
def test_one_death_that_a_step_is_to_blame_for_does_not_fail_it(crash: bool) -> None:
    run = Run(app, "two", 5, crash=crash)
    lost = Failure("WorkerLost", "no")
    for attempt, to_blame in ((1, False), (2, False), (3, True)):
        assert kinds(run.advance(Outcome(1, attempt, 0.5, None, lost, to_blame=to_blame))) == ["StepRetrying"]
        run.advance(Due())
    assert kinds(run.advance(Outcome(1, 4, 0.5, None, lost, to_blame=True)))[0] == "StepFailed"


@pytest.mark.parametrize("crash", [False, True])
def test_a_step_that_is_to_blame_for_a_death_stays_so_through_others(crash: bool) -> None:
    run = Run(app, "two", 5, crash=crash)
    lost = Failure("WorkerLost", "no")
    run.advance(Outcome(1, 1, 0.5, None, lost, to_blame=True))
    [job] = run.advance(Due()).jobs
    assert (job.lost, job.blamed) == (1, True)
    run.advance(Outcome(1, 2, 0.5, None, lost))
    [job] = run.advance(Due()).jobs
    assert (job.lost, job.blamed) == (2, False)


def test_a_result_of_the_wrong_type_fails_the_step_before_it_is_recorded() -> None:
    run = Run(app, "two", 5)
    run.done(1, "ten")
    assert kinds(run.last) == ["StepFailed", "RunFailed"]
    assert run.last.events[0].failure.kind == "PayloadInvalid"  # type: ignore[union-attr]


def test_wrong_arguments_raise_a_type_error_at_the_await() -> None:
    local = with_steps_of(app)

    @local.workflow
    async def flow() -> str:
        try:
            await double()  # type: ignore[call-arg]
        except TypeError as error:
            return str(error)
        return "?"

    assert "'x'" in result_of(Run(local, "flow").last)


def test_a_call_that_is_not_awaited_schedules_nothing() -> None:
    local = App()

    @local.workflow
    async def flow() -> int:
        double(1)  # pyright: ignore[reportUnusedCoroutine]
        return 1

    assert kinds(Run(local, "flow").last) == ["RunStarted", "RunCompleted"]


def test_awaiting_a_step_twice_gives_the_same_value_again() -> None:
    local = with_steps_of(app)

    @local.workflow
    async def flow() -> list[int]:
        call = double(1)

        async def other() -> int:
            return await call

        both: Any = await gather(call, other(), call)
        return [*both, await call]

    run = Run(local, "flow")
    assert len(run.last.jobs) == 1
    assert result_of(run.done(1, 2)) == [2, 2, 2, 2]


def test_gather_keeps_the_order_and_runs_helpers_as_fibers() -> None:
    local = with_steps_of(app)

    @local.workflow
    async def flow() -> Any:
        async def helper(x: int) -> int:
            return await double(await double(x))

        nested = gather(double(5), gather(), return_exceptions=True)
        return await gather(double(1), helper(2), nested, sleep(1))

    run = Run(local, "flow")
    assert [plain(job.args)[0] for job in run.last.jobs] == [1, 5, 2], "fibers start after the gather has begun"
    run.done(4, 20)
    assert plain(run.last.jobs[0].args) == [20, 0]
    run.done(5, 40)
    run.done(2, 50)
    run.advance(Due(), after=1000)
    assert result_of(run.done(1, 2)) == [2, 40, [50, []], None]


def test_gather_raises_the_first_error_at_once_and_the_others_go_on() -> None:
    local = with_steps_of(app)

    @local.workflow
    async def flow() -> str:
        async def broken() -> None:
            raise KeyError("x")

        try:
            await gather(double(1), broken(), double(2))
        except KeyError:
            await double(3)
        return "caught"

    run = Run(local, "flow")
    assert [plain(job.args)[0] for job in run.last.jobs] == [1, 2, 3]
    run.done(1, 2)
    run.done(2, 4)
    assert kinds(run.done(3, 6)) == ["StepCompleted", "RunCompleted"]


def test_gather_can_return_the_exceptions() -> None:
    local = with_steps_of(app)

    @local.workflow
    async def flow() -> list[str]:
        results = await gather(picky(), double(1), return_exceptions=True)
        return [type(result).__name__ for result in results]

    run = Run(local, "flow")
    run.failed(1, permanent=True)
    assert result_of(run.done(2, 2)) == ["StepFailed", "int"]


def test_several_outcomes_in_one_advance_are_one_transition() -> None:
    local = with_steps_of(app)

    @local.workflow
    async def flow() -> int:
        return sum(await gather(*(double(i) for i in range(3))))

    run = Run(local, "flow")
    run.advance(*(Outcome(seq, 1, 0.1, raw(seq)) for seq in (3, 1, 2)))
    assert kinds(run.last) == ["StepCompleted"] * 3 + ["RunCompleted"]
    assert result_of(run.last) == 6


def test_the_end_of_a_run_revokes_attempts_that_another_owner_enqueued() -> None:
    mine = with_steps_of(app)

    @mine.workflow
    async def flow() -> None:
        await queued()

    run = Run(mine, "flow")
    run.failed(1)
    run.advance(Due(), after=60_000)
    assert [job.attempt for job in run.last.jobs] == [2]
    run.reload()  # its history doesn't say that attempt 2 was offered
    run.advance(CancelRequested("enough"), after=1)
    assert [(job.seq, job.attempt) for job in run.last.besides.revoked] == [(1, 2)]


def test_a_step_of_a_queue_is_not_in_flight_at_the_owner() -> None:
    local = with_steps_of(app)

    @local.workflow
    async def flow() -> None:
        await queued()
        await double.options(queue="gpu", timeout=None)(1)

    run = Run(local, "flow")
    assert not run.machine.in_flight
    assert run.last.jobs[0].step.queue == "gpu"
    run.done(1, 1)
    assert not run.machine.in_flight
    assert run.last.jobs[0].timeout is None


def test_after_a_takeover_running_steps_start_again_as_the_same_attempt() -> None:
    local = App()
    local.steps["double"] = double

    @local.workflow
    async def flow() -> None:
        await gather(double(1), double(2), double(3))

    run = Run(local, "flow")
    run.failed(2)
    run.done(1, 2)
    machine = run.reload()
    assert [(job.seq, job.attempt) for job in machine.running_jobs()] == [(3, 1)]
    assert machine.in_flight
    assert machine.next_due == run.at - 1 + 1000
    assert [(job.seq, job.attempt) for job in run.advance(Due(), after=5000).jobs] == [(2, 2)]


def wishes(seconds: float, kind: str = "Busy") -> Failure:
    return Failure(kind, "no", fields={"retry_after": seconds})


def test_the_error_says_when_the_next_attempt_begins(crash: bool) -> None:
    run = Run(app, "two", 5, crash=crash)
    event: Any = run.advance(Outcome(1, 1, 0.5, None, wishes(90))).events[0]
    assert (type(event), event.due - run.at) == (StepRetrying, 90_000)
    run.advance(Due(), after=89_999)
    assert not run.last.jobs
    run.advance(Due(), after=1)
    assert [job.attempt for job in run.last.jobs] == [2]
    event = run.advance(Outcome(1, 2, 0.5, None, Failure("Other", "no"))).events[0]
    assert event.due - run.at == 2_000, "the pause of the policy"
    run.advance(Due(), after=2_000)
    assert kinds(run.advance(Outcome(1, 3, 0.5, None, wishes(1))))[0] == "StepFailed", "it was the last attempt"


def test_an_attempt_that_the_error_wants_too_late_is_not_made(crash: bool) -> None:
    limited = with_steps_of(app)

    @limited.workflow
    async def flow() -> int:
        return await double.options(retry=Retry(within=60, jitter=0))(1)

    run = Run(limited, "flow", crash=crash)
    assert kinds(run.advance(Outcome(1, 1, 0.0, None, wishes(60))))[0] == "StepRetrying"
    run = Run(limited, "flow", crash=crash)
    assert kinds(run.advance(Outcome(1, 1, 0.0, None, wishes(61))))[0] == "StepFailed"


def test_what_the_error_has_said_to_a_stuck_run_counts_when_it_resumes() -> None:
    old, new = with_steps_of(app), with_steps_of(app)

    async def flow() -> int:
        return await double(1)

    async def changed() -> int:
        return await picky()

    old.workflow(name="flow")(flow)
    new.workflow(name="flow")(changed)
    run = Run(old, "flow")
    run.reload(new)
    assert kinds(run.advance(Outcome(1, 1, 0.5, None, wishes(90)))) == ["RunStuck", "StepRetrying"]
    failed_at = run.at
    run.reload(old)
    event: Any = run.advance(after=1000).events[-1]
    assert (type(event), event.due - failed_at) == (StepRetrying, 90_000)
