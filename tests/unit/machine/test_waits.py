"""Timers, signals, children, cancellation, and the deterministic functions."""

from __future__ import annotations

import gc
from typing import Any

import msgspec
import pytest

from streamflow import errors, events
from streamflow.errors import Failure
from streamflow.events import AnyEvent, CancelRequested, ChildCompleted, SignalReceived
from streamflow.machine.transition import Due
from streamflow.model.sharding import Partition
from streamflow.workflow import api as sf
from streamflow.workflow.app import App
from streamflow.workflow.retry import Retry
from tests.support.machine_driver import Run, failure_in, kinds, plain, raw, result_of, with_steps_of

app = App()


@app.step
async def act(x: int) -> int:
    return x


@app.workflow
async def child(x: int) -> int:
    return await act(x)


@app.workflow
async def parent() -> Any:
    try:
        return await child(3)
    except errors.ChildFailed as error:
        return [error.run_id, error.workflow, str(error.failure)]


@app.workflow
async def approve() -> Any:
    try:
        return await sf.signal("go", bool, timeout=10)
    except TimeoutError:
        return "late"


def test_a_sleep_ends_when_it_is_due_and_not_before() -> None:
    local = App()

    @local.workflow
    async def flow() -> str:
        await sf.sleep(1.1)
        return sf.now().isoformat()

    run = Run(local, "flow", at=1000)
    assert kinds(run.last) == ["RunStarted", "TimerSet"]
    assert run.machine.next_due == 2100
    assert not run.advance(Due(), after=1099).events
    assert kinds(run.advance(Due(), after=1)) == ["TimerFired", "RunCompleted"]
    assert result_of(run.last) == "1970-01-01T00:00:02.100000+00:00"


def test_timers_fire_in_the_order_of_their_due_times() -> None:
    local = App()

    @local.workflow
    async def flow() -> list[int]:
        order: list[int] = []

        async def after(seconds: int) -> None:
            await sf.sleep(seconds)
            order.append(seconds)

        await sf.gather(after(3), after(1), after(2))
        return order

    run = Run(local, "flow")
    assert result_of(run.advance(Due(), after=5000)) == [1, 2, 3]


def test_a_timer_set_while_timers_fire_waits_for_the_next_time() -> None:
    local = App()

    @local.workflow
    async def flow() -> None:
        while True:
            await sf.sleep(0)

    run = Run(local, "flow")
    assert kinds(run.advance(Due(), after=1)) == ["TimerFired", "TimerSet"]


def test_time_never_goes_backwards_for_a_run() -> None:
    local = App()

    @local.workflow
    async def flow() -> float:
        await sf.signal("go")
        return sf.now().timestamp()

    run = Run(local, "flow", at=5000)
    assert result_of(run.advance(SignalReceived("go", raw(None)), after=-3000)) == 5.0


def test_a_signal_in_time_removes_the_timer() -> None:
    run = Run(app, "approve")
    assert run.machine.next_due == 11_000
    assert kinds(run.advance(SignalReceived("go", raw(True)))) == ["SignalReceived", "RunCompleted"]
    assert run.machine.next_due is None
    assert result_of(run.last) is True


def test_the_timer_of_a_signal_that_came_never_fires() -> None:
    local = App()

    @local.workflow
    async def flow() -> None:
        await sf.signal("go", timeout=1)
        await sf.signal("again", timeout=60)

    run = Run(local, "flow", at=1000)
    run.advance(SignalReceived("go", raw(None)))
    assert run.machine.next_due == 61_000
    assert not run.advance(Due(), after=5000).events


def test_a_signal_that_does_not_come_raises_the_builtin_timeout_error() -> None:
    run = Run(app, "approve")
    assert kinds(run.advance(Due(), after=10_000)) == ["TimerFired", "RunCompleted"]
    assert result_of(run.last) == "late"


def test_early_signals_are_kept_in_order_per_name() -> None:
    local = App()

    @local.workflow
    async def flow() -> list[Any]:
        await sf.signal("start")
        return [await sf.signal("a", int), await sf.signal("b", str), await sf.signal("a", int)]

    run = Run(local, "flow")
    for name, value in (("a", 1), ("a", 2), ("b", "x")):
        assert kinds(run.advance(SignalReceived(name, raw(value)))) == ["SignalReceived"]
    assert result_of(run.advance(SignalReceived("start", raw(None)))) == [1, "x", 2]


def test_waiters_of_one_name_are_served_first_come_first_served() -> None:
    local = App()

    @local.workflow
    async def flow() -> list[int]:
        return list(await sf.gather(sf.signal("a", int), sf.signal("a", int)))

    run = Run(local, "flow")
    run.advance(SignalReceived("a", raw(1)))
    assert result_of(run.advance(SignalReceived("a", raw(2)))) == [1, 2]


def test_a_signal_of_the_wrong_type_is_skipped_with_a_warning() -> None:
    run = Run(app, "approve")
    run.advance(SignalReceived("go", raw("yes")))
    assert kinds(run.last) == ["SignalReceived", "SignalSkipped"]
    assert "value of signal go is not a bool" in run.last.besides.warnings[0]
    assert result_of(run.advance(SignalReceived("go", raw(False)))) is False


def test_a_signal_to_another_run_leaves_through_the_outbox() -> None:
    local = App()

    @local.workflow
    async def flow() -> str:
        await sf.send_signal("other", "go", [1])
        return "sent"

    run = Run(local, "flow")
    assert kinds(run.last) == ["RunStarted", "SignalSent", "RunCompleted"]
    (message,) = run.last.besides.outbox
    assert (message.target, message.kind, plain(message.body)) == ("other", "signal", ["go", [1]])


def test_a_child_is_started_through_the_outbox_and_its_result_awaited() -> None:
    run = Run(app, "parent", tenant="acme")
    (message,) = run.last.besides.outbox
    assert (message.target, message.kind) == ("r.1", "start")
    assert plain(message.body) == ["child", "acme", "r#1", [3]]
    assert kinds(run.advance(ChildCompleted(1, "child", raw(3)))) == ["ChildCompleted", "RunCompleted"]
    assert result_of(run.last) == 3
    assert not run.advance(ChildCompleted(1, "child", raw(3))).events


def test_a_childs_failure_raises_at_the_await() -> None:
    run = Run(app, "parent")
    run.advance(events.ChildFailed(1, "child", Failure("KeyError", "k")))
    assert result_of(run.last) == ["r.1", "child", "KeyError: k"]


def test_a_childs_result_of_the_wrong_type_is_its_failure() -> None:
    run = Run(app, "parent")
    assert kinds(run.advance(ChildCompleted(1, "child", raw("three")))) == ["ChildFailed", "RunCompleted"]


def test_an_ending_child_sends_its_outcome_to_its_parent() -> None:
    run = Run(app, "child", 3, parent="up#7")
    run.done(1, 3)
    (message,) = run.last.besides.outbox
    event: Any = msgspec.msgpack.decode(message.body, type=AnyEvent)
    assert (message.target, message.kind) == ("up", "child")
    assert isinstance(event, ChildCompleted)
    assert (event.seq, event.name, plain(event.result)) == (7, "child", 3)
    run = Run(app, "child", 3, parent="up#7")
    event = msgspec.msgpack.decode(run.advance(CancelRequested("why")).besides.outbox[0].body, type=AnyEvent)
    assert event == events.ChildFailed(7, "child", Failure("RunCancelled", "why"), cancelled=True)


def test_a_childs_id_and_tenant_can_be_chosen() -> None:
    """The id gets the partition's prefix."""
    local = App()

    @local.workflow
    async def inner() -> None: ...

    @local.workflow
    async def flow() -> None:
        await sf.gather(inner(), inner.options(id="mine", tenant="beta")())

    run = Run(local, "flow", tenant="acme", run_id="acme/r", partition=Partition.TENANT)
    assert [message.target for message in run.last.besides.outbox] == ["acme/r.1", "beta/mine"]


def test_terminating_ends_the_run_its_steps_and_its_children() -> None:
    local = App()
    cleaned: list[str] = []

    @local.step
    async def work() -> None:
        cleaned.append("the step ran in the workflow's process")

    @local.workflow
    async def inner() -> None: ...

    @local.workflow
    async def flow() -> None:
        async def helper() -> None:
            try:
                await work()
            finally:
                cleaned.append("helper")
                await work()

        await sf.gather(helper(), inner())

    run = Run(local, "flow")
    run.advance(CancelRequested("enough", terminate=True))
    assert kinds(run.last) == ["CancelRequested", "RunCancelled"]
    assert run.last.status == "cancelled"
    assert run.last.besides.cancelled == [2]
    assert [(m.target, m.kind) for m in run.last.besides.outbox] == [("r.1", "cancel")]
    assert cleaned == ["helper"], "finally blocks run, and decide nothing"
    assert run.advance(Due(), after=9).ended
    assert not run.last.events


def test_a_run_that_ends_cancels_what_it_leaves_open() -> None:
    local = with_steps_of(app)
    local.workflows["child"] = child

    @local.workflow(parks=())
    async def flow() -> None:
        await sf.gather(child(1), act(1), act.options(retry=act.retry)("x", "y"))  # type: ignore[call-arg,arg-type]

    run = Run(local, "flow")
    assert kinds(run.last)[-1] == "RunFailed"
    assert failure_in(run.last).kind == "TypeError"
    assert [message.kind for message in run.last.besides.outbox] == ["start", "cancel"]
    assert run.last.besides.cancelled == [2]
    assert not run.last.jobs


def test_a_machine_that_is_dropped_runs_no_step_of_a_finally_block() -> None:
    ran: list[int] = []
    local = App()

    @local.step
    async def work(x: int) -> None:
        ran.append(x)

    @local.workflow
    async def flow() -> None:
        try:
            await sf.signal("never")
        finally:
            await work(1)

    run = Run(local, "flow")
    del run.machine
    gc.collect()
    assert not ran


@pytest.mark.parametrize("crash", [False, True])
def test_an_owner_whose_clock_was_ahead_makes_no_later_timer_late(crash: bool) -> None:
    """The run's own time stands still until it is caught up with; what it waits for goes by the present owner's."""
    local = App()

    @local.step(retry=Retry(attempts=2, initial=10, jitter=0))
    async def flaky() -> None: ...

    @local.workflow
    async def flow() -> list[float]:
        times = [sf.now().timestamp()]
        await sf.signal("go")
        await sf.sleep(10)
        times.append(sf.now().timestamp())
        await flaky()
        return [*times, sf.now().timestamp()]

    run = Run(local, "flow", crash=crash, at=3_600_000)
    run.at = 5_000
    assert kinds(run.advance(SignalReceived("go", raw(None)))) == ["SignalReceived", "TimerSet"]
    assert run.machine.next_due == 15_000
    assert kinds(run.advance(Due(), after=9_999)) == []
    assert kinds(run.advance(Due(), after=1)) == ["TimerFired", "StepScheduled"]
    assert kinds(run.failed(2, after=0)) == ["StepRetrying"]
    assert run.machine.next_due == 25_000
    assert run.advance(Due(), after=9_999).jobs == []
    assert [job.attempt for job in run.advance(Due(), after=1).jobs] == [2]
    run.done(2, attempt=2)
    assert result_of(run.last) == [3600.0, 3600.0, 3600.0], "its own time didn't go back"


def test_random_values_and_the_time_are_the_same_in_a_replay() -> None:
    local = App()
    seen: list[list[Any]] = []

    @local.workflow
    async def flow() -> None:
        values = [str(sf.uuid4()), sf.random(), sf.now()]
        await sf.sleep(1)
        seen.append([*values, sf.random(), sf.now(), sf.info()])

    run = Run(local, "flow", parent="up#3", tenant="acme")
    run.advance(Due(), after=1000)
    again = Run(local, "flow", parent="up#3", tenant="acme")
    again.reload()
    again.advance(Due(), after=1000)
    assert len(seen) == 2
    assert seen[0] == seen[1]
    assert seen[0][-1] == sf.RunInfo("r", "flow", "acme", "up", events=2)
