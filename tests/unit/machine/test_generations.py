"""Continue-as-new, history limits, patches and versions, questions, and children's policies in machines. Each test runs
twice: with one machine, and with a machine that is built again from the record before every transition."""

from __future__ import annotations

from typing import Any

import pytest

import streamflow as sf
from streamflow import events
from streamflow.errors import Failure
from streamflow.events import AskReceived, CancelRequested, ChildCompleted, RunContinued, SignalReceived
from streamflow.machine import coroutines as driving
from streamflow.machine import run as running
from streamflow.machine.transition import Due
from tests.support.machine_driver import Run, failure_in, kinds, make_app, plain, raw, result_of


def signal(name: str, value: object = None) -> SignalReceived:
    return SignalReceived(name, raw(value))


# --- a next generation ------------------------------------------------------------------------------------------------


def counter_app() -> sf.App:
    app = make_app()

    @app.workflow
    async def counter(total: int, left: int) -> int:
        for _ in range(left):
            value = await sf.signal("add", int)
            if value == 0:
                return total
            total += value
        raise sf.ContinueAs(total, left=left)

    return app


def test_a_run_continues_with_a_new_input_and_a_fresh_history(crash: bool) -> None:
    run = Run(counter_app(), "counter", 0, 2, crash=crash)
    run.advance(signal("add", 1))
    run.advance(signal("add", 2))
    assert kinds(run.last) == ["SignalReceived", "RunContinued"]
    assert run.last.besides.fresh
    assert not run.last.ended
    assert len(run.elements) == 1
    assert plain(run.history[-1].input) == {"total": 3, "left": 2}  # type: ignore[union-attr]
    run.advance(signal("add", 0))
    assert result_of(run.last) == 3


def test_signals_that_nobody_took_are_carried_over(crash: bool) -> None:
    run = Run(counter_app(), "counter", 0, 2, crash=crash)
    run.advance(*(signal("add", n) for n in (1, 2, 3, 4, 5)))
    assert kinds(run.last).count("RunContinued") == 2, "once for each two signals"
    run.advance(signal("add", 6), signal("add", 0))
    assert result_of(run.last) == 1 + 2 + 3 + 4 + 5 + 6


def test_messages_that_no_generation_waits_for_do_not_grow_without_end(
    crash: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the name that takes most are dropped, the oldest first; what the code waits for is not."""
    monkeypatch.setattr(driving, "UNTAKEN_BYTES", 10 * (driving.UNTAKEN_OVERHEAD + 3))
    run = Run(counter_app(), "counter", 0, 1, crash=crash)
    warnings: list[str] = []
    for n in range(1, 30):
        numbers = [signal("number", 1000 + n) for _ in range(3)]
        run.advance(*numbers, signal("rare", 2000), signal("add", 1) if n < 29 else signal("number", 1000))
        warnings += run.last.besides.warnings
        begun = run.history[-1] if n < 29 else run.history[0]
        assert isinstance(begun, RunContinued) or n == 29
    begun = next(event for event in reversed(run.history) if isinstance(event, RunContinued))
    assert len(begun.carried) == 10
    assert sum(message.name == "rare" for message in begun.carried) == 5
    assert [plain(message.value) for message in begun.carried if message.name == "number"] == [1027] * 2 + [1028] * 3
    assert begun.dropped == {"number": 3, "rare": 1}
    assert "3 x number, 1 x rare" in warnings[-1]
    adds = [signal("add", 1) for _ in range(50)]
    run.advance(*adds, signal("add", 0))
    assert result_of(run.last) == 28 + 50, "what it waits for is carried over, however much it is"


def test_a_question_that_is_not_carried_over_is_refused(crash: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driving, "UNTAKEN_BYTES", 2 * (driving.UNTAKEN_OVERHEAD + 1))
    run = Run(counter_app(), "counter", 0, 1, crash=crash)
    run.advance(*(ask("why", n, n) for n in range(3)), signal("add", 1))
    [refused] = run.last.besides.answers
    assert refused.id == f"{0:032x}"
    assert refused.failure is not None
    assert refused.failure.kind == "ContinuedAsNew"
    assert "without waiting for why" in refused.failure.message
    begun = run.history[-1]
    assert isinstance(begun, RunContinued)
    assert begun.dropped == {"why": 1}
    assert [message.id for message in begun.carried if isinstance(message, AskReceived)] == [f"{1:032x}", f"{2:032x}"]


def test_a_new_generation_uses_new_numbers(crash: bool) -> None:
    """So a late outcome of the one before matches no step."""
    app = make_app()
    act = app.steps["act"]

    @app.workflow
    async def flow(generation: int) -> Any:
        if generation == 0:
            await sf.race(act("slow"), sf.signal("go"))
            raise sf.ContinueAs(1)
        return [await act("second generation"), sf.info().generation, sf.random()]

    run = Run(app, "flow", 0, crash=crash)
    run.advance(signal("go"))
    assert kinds(run.last) == ["SignalReceived", "StepCancelled", "RunContinued", "StepScheduled"]
    run.done(1, "late")
    assert not run.last.events
    run.done(2, "right")
    result, generation, number = result_of(run.last)
    assert (result, generation) == ("right", 1)
    assert 0 <= number < 1


def test_what_is_open_is_cancelled_and_the_run_keeps_its_start_time(crash: bool) -> None:
    app = make_app()
    act, child = app.steps["act"], app.workflows["child"]

    @app.workflow
    async def flow(generation: int) -> None:
        if generation == 0:
            await sf.start(child, "cancel")
            await sf.start(child, "abandon", on_parent_end="abandon")
            await sf.start(child, "wait", on_parent_end="wait")
            async with sf.task_group() as group:
                group.start_soon(act, "a")
                await sf.signal("go")
                raise sf.ContinueAs(1)

    run = Run(app, "flow", 0, crash=crash)
    run.advance(signal("go"), after=500)
    assert kinds(run.last) == ["SignalReceived", "StepCancelled", "RunContinued"]
    assert [(m.target, m.kind) for m in run.last.besides.outbox] == [("r.1", "cancel")]
    run.advance(ChildCompleted(3, "child", raw("x")), after=500)
    assert kinds(run.last) == ["ChildCompleted", "RunCompleted"]
    assert run.last.events[-1].ms == 1000  # type: ignore[union-attr]


def test_a_run_that_continues_forever_without_waiting_fails() -> None:
    app = make_app()

    @app.workflow
    async def flow() -> None:
        raise sf.ContinueAs

    assert "times without waiting" in failure_in(Run(app, "flow").last).message


def test_arguments_that_do_not_fit_fail_the_run(crash: bool) -> None:
    app = make_app()

    @app.workflow
    async def flow(n: int) -> None:
        await sf.signal("go")
        raise sf.ContinueAs(1, 2, 3)

    run = Run(app, "flow", 0, crash=crash)
    run.advance(signal("go"))
    assert failure_in(run.last).kind == "TypeError"


def test_except_exception_does_not_swallow_a_continuation(crash: bool) -> None:
    """Helpers may raise it."""
    app = make_app()

    @app.workflow
    async def flow(n: int) -> int:
        async def helper() -> None:
            await sf.signal("go")
            try:
                raise sf.ContinueAs(n + 1)
            except Exception:
                pass

        if n == 1:
            return n
        await sf.gather(helper())
        return -1

    run = Run(app, "flow", 0, crash=crash)
    run.advance(signal("go"))
    assert result_of(run.last) == 1


@pytest.mark.parametrize("how", ["gather", "map", "map-plain", "group"])
def test_a_helper_continues_the_run_wherever_it_runs(how: str, crash: bool) -> None:
    app = make_app()
    act = app.steps["act"]

    async def helper(number: int) -> Any:
        await act("x")
        raise sf.ContinueAs("second")

    def plain_helper(number: int) -> Any:
        raise sf.ContinueAs("second")

    @app.workflow
    async def flow(generation: str = "first") -> Any:
        if generation == "second":
            return generation
        match how:
            case "gather":
                return await sf.gather(helper(1), act("y"), return_exceptions=True)
            case "map":
                return await sf.map(helper, [1, 2], concurrency=1, return_exceptions=True)
            case "map-plain":
                await act("x")
                return await sf.map(plain_helper, [1, 2], concurrency=1, return_exceptions=True)
            case _:
                async with sf.task_group() as group:
                    group.start_soon(helper, 1)
                    await act("y")
                return "the group lost it"

    run = Run(app, "flow", crash=crash)
    (number,) = [call.seq for call in run.machine.steps.values() if plain(call.payload) == ["x"]]
    run.done(number, "X")
    assert kinds(run.last)[-2:] == ["RunContinued", "RunCompleted"]
    assert result_of(run.last) == "second"


def test_a_cancel_that_a_generation_was_shielded_from_reaches_the_next(crash: bool) -> None:
    app = make_app()
    act = app.steps["act"]

    @app.workflow
    async def flow(generation: int = 0) -> Any:
        if generation:
            try:
                await act("next")
            finally:
                await act("clean")
        with sf.shield():
            await act("first")
            raise sf.ContinueAs(generation + 1)

    run = Run(app, "flow", crash=crash)
    run.advance(CancelRequested("enough"))
    run.done(1)
    assert kinds(run.last)[1:] == ["RunContinued", "StepScheduled", "CancelRequested", "StepCancelled", "StepScheduled"]
    run.done(3)
    assert kinds(run.last) == ["StepCompleted", "RunCancelled"]


def test_a_cancel_is_not_lost_when_the_history_gets_too_long(crash: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "EVENTS_WARN", 3)
    monkeypatch.setattr(driving, "EVENTS_CONTINUE", 3)
    app = make_app()
    act = app.steps["act"]

    @app.workflow
    async def flow() -> Any:
        with sf.shield():
            await act("a")
            await act("b")
        try:
            await act("c")
        except sf.HistoryTooLong:
            await act("d")

    run = Run(app, "flow", crash=crash)
    run.done(1)
    run.advance(CancelRequested("enough"))
    assert kinds(run.last) == ["HistoryLimitReached", "CancelRequested"]
    run.done(2)
    assert kinds(run.last)[-1] == "RunCancelled"


def test_each_generation_draws_other_random_values(crash: bool) -> None:
    app = make_app()
    act = app.steps["act"]

    @app.workflow
    async def flow(seen: list[str]) -> Any:
        await act("x")
        seen.append(str(sf.uuid4()))
        if len(seen) == 3:
            return seen
        raise sf.ContinueAs(seen)

    run = Run(app, "flow", [], crash=crash)
    for number in (1, 2, 3):
        run.done(number)
    assert len(set(result_of(run.last))) == 3


# --- long histories ---------------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (running, driving):
        for name, value in {"EVENTS_WARN": 10, "EVENTS_CONTINUE": 20, "EVENTS_FAIL": 30}.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)


def patient_app(obedient: bool) -> sf.App:
    app = make_app()
    act = app.steps["act"]

    @app.workflow
    async def flow(n: int) -> int:
        while True:
            try:
                n += await sf.signal("add", int)
            except sf.HistoryTooLong:
                if obedient:
                    raise sf.ContinueAs(n) from None
            if n >= 25:
                await act("x")
                return n

    return app


@pytest.mark.usefixtures("small")
def test_a_long_history_warns_and_then_raises_history_too_long(crash: bool) -> None:
    run = Run(patient_app(obedient=True), "flow", 0, crash=crash)
    warnings: list[str] = []
    while not run.last.besides.fresh:
        run.advance(signal("add", 1))
        warnings += run.last.besides.warnings
    assert len(warnings) == 1
    assert "10 events" in warnings[0]
    assert kinds(run.last)[:2] == ["HistoryLimitReached", "RunContinued"]
    while run.last.events[-1].describe() != "StepScheduled(1, act)":
        run.advance(signal("add", 1))
    run.done(1)
    assert result_of(run.last) == 25


@pytest.mark.usefixtures("small")
def test_a_run_that_ignores_history_too_long_fails(crash: bool) -> None:
    run = Run(patient_app(obedient=False), "flow", -100, crash=crash)
    while not run.last.ended:
        run.advance(signal("add", 1))
    assert run.machine.events_count < 40
    assert failure_in(run.last).kind == "HistoryTooLong"
    assert "sf.ContinueAs" in failure_in(run.last).message


@pytest.mark.usefixtures("small")
def test_a_run_that_does_not_know_the_error_fails_with_it(crash: bool) -> None:
    app = make_app()

    @app.workflow
    async def flow() -> None:
        while True:
            await sf.signal("add", int)

    run = Run(app, "flow", crash=crash)
    while not run.last.ended:
        run.advance(signal("add", 1))
    assert failure_in(run.last).kind == "HistoryTooLong"


@pytest.mark.usefixtures("small")
def test_a_run_that_waits_for_its_children_at_its_end_is_limited_too(crash: bool) -> None:
    run = Run(policy_app(), "flow", crash=crash)
    run.advance(signal("end", "done"))
    while not run.last.ended:
        run.advance(signal("end", "nobody listens"))
    assert kinds(run.last) == ["HistoryLimitReached", "RunFailed"]
    assert run.machine.events_count < 40


@pytest.mark.usefixtures("small")
def test_the_decisions_of_one_transition_are_limited(crash: bool) -> None:
    app = make_app()
    act = app.steps["act"]

    @app.workflow
    async def flow() -> None:
        await sf.gather(*(act(n) for n in range(1000)))

    run = Run(app, "flow", crash=crash)
    assert failure_in(run.last).kind == "HistoryTooLong"
    assert len(run.history) < 40


# --- patches and versions ---------------------------------------------------------------------------------------------


def patched_apps() -> tuple[sf.App, sf.App, sf.App]:
    """The code before the change, with the patch, and when the old way is gone."""
    before, during, after = make_app(), make_app(), make_app()

    @before.workflow(name="flow")
    async def old() -> Any:
        await before.steps["act"]("one")
        return [await before.steps["act"]("old")]

    @during.workflow(name="flow")
    async def both() -> Any:
        act = during.steps["act"]
        await act("one")
        if sf.patched("change"):
            await act("extra")
        return [await act("old"), sf.patched("change")]

    @after.workflow(name="flow")
    async def new() -> Any:
        act = after.steps["act"]
        await act("one")
        await act("extra")
        return [await act("old"), "clean"]

    return before, during, after


def test_old_runs_take_the_old_branch_and_new_runs_the_patched_one(crash: bool) -> None:
    before, during, _ = patched_apps()
    old = Run(before, "flow")
    old.done(1)
    old.crash = crash
    assert not old.reload(during).reason
    old.done(2, "x")
    assert result_of(old.last) == ["x", False]

    new = Run(during, "flow", crash=crash)
    new.done(1)
    assert kinds(new.last) == ["StepCompleted", "Patched", "StepScheduled"]
    new.done(2)
    new.done(3, "x")
    assert result_of(new.last) == ["x", True]


def test_a_run_that_has_not_reached_the_patch_takes_the_new_branch(crash: bool) -> None:
    before, during, _ = patched_apps()
    run = Run(before, "flow")
    run.crash = crash
    run.reload(during)
    run.done(1)
    assert kinds(run.last) == ["StepCompleted", "Patched", "StepScheduled"]


def test_when_the_patch_is_removed_its_record_is_skipped() -> None:
    _, during, after = patched_apps()
    run = Run(during, "flow")
    run.done(1)
    assert not run.reload(after).reason
    run.done(2)
    run.done(3, "x")
    assert result_of(run.last) == ["x", "clean"]


@pytest.mark.parametrize("order", ["ba", "a-b", "-ab", "-ba"])
def test_a_patch_holds_for_a_run_whose_code_asks_for_it_in_another_order(order: str) -> None:
    def app_asking(order: str) -> sf.App:
        app = make_app()
        act = app.steps["act"]

        @app.workflow
        async def flow() -> Any:
            answers: dict[str, bool] = {}
            for name in order if "-" in order else f"{order}-":
                if name == "-":
                    await act("x")
                else:
                    answers[name] = sf.patched(name)
            await sf.signal("end")
            return answers

        return app

    run = Run(app_asking("ab"), "flow")
    run.done(1)
    run.reload(app_asking(order))
    run.advance(signal("end"))
    assert result_of(run.last) == {"a": True, "b": True}


def versioned_app(*versions: int) -> sf.App:
    app = make_app()
    for number in versions:

        async def flow(number: int = number) -> Any:
            await app.steps["act"](f"v{number}")
            return [number, sf.info().version]

        app.workflow(name="flow", version=number)(flow)
    return app


def test_a_run_keeps_its_version_and_new_ones_begin_with_the_highest(crash: bool) -> None:
    run = Run(versioned_app(1), "flow", crash=crash)
    assert not run.reload(versioned_app(1, 3, 2)).reason
    run.done(1)
    assert result_of(run.last) == [1, 1]
    new = Run(versioned_app(1, 3, 2), "flow", crash=crash)
    new.done(1)
    assert result_of(new.last) == [3, 3]


def test_a_run_whose_version_is_missing_is_stuck_until_it_is_back() -> None:
    run = Run(versioned_app(1), "flow")
    machine = run.reload(versioned_app(2))
    assert "version 1" in machine.reason
    run.advance(Due(), after=1)
    assert kinds(run.last) == ["RunStuck"]
    run.reload(versioned_app(1, 2))
    run.done(1)
    assert kinds(run.last) == ["RunResumed", "StepCompleted", "RunCompleted"]


def test_a_version_is_registered_once_and_is_a_number() -> None:
    app = versioned_app(1)
    for version, words in ((1, "another name="), (-1, "version must be an integer >= 0, got -1"), ("2", "got '2'")):
        with pytest.raises(sf.UsageError, match=words):

            @app.workflow(name="flow", version=version)  # type: ignore[arg-type]
            async def flow() -> None: ...


# --- questions --------------------------------------------------------------------------------------------------------


def ask(name: str, value: object, number: int = 1) -> AskReceived:
    return AskReceived(f"{number:032x}", name, raw(value))


def test_the_answer_of_a_question_leaves_with_the_transition(crash: bool) -> None:
    """It is answered once."""
    app = make_app()

    @app.workflow
    async def account(balance: int) -> int:
        while balance < 100:
            question = await sf.question("deposit", int)
            if question.value < 0:
                question.refuse("only deposits")
            else:
                balance += question.value
                question.answer(balance)
        return balance

    run = Run(app, "account", 1, crash=crash)
    run.advance(ask("deposit", 5))
    assert kinds(run.last) == ["AskReceived", "AskAnswered"]
    (answer,) = run.last.besides.answers
    assert (answer.id, plain(answer.result), answer.failure) == (f"{1:032x}", 6, None)
    run.advance(ask("deposit", -1, 2), ask("deposit", "x", 3), ask("deposit", 1, 4))
    refused, invalid, fine = run.last.besides.answers
    assert refused.failure == Failure("Refused", "only deposits")
    assert invalid.failure is not None
    assert invalid.failure.kind == "PayloadInvalid"
    assert plain(fine.result) == 7
    run.advance(ask("deposit", 93, 5))
    assert result_of(run.last) == 100
    assert len(run.last.besides.answers) == 1


def test_a_question_that_came_early_is_kept_and_is_never_a_signal(crash: bool) -> None:
    app = make_app()
    act = app.steps["act"]

    @app.workflow
    async def flow() -> Any:
        await act("first")
        question = await sf.question("x", str)
        question.answer("to " + question.value)
        return await sf.signal("x", str)

    run = Run(app, "flow", crash=crash)
    run.advance(ask("x", "q"), signal("x", "s"))
    run.done(1)
    assert kinds(run.last) == ["StepCompleted", "AskAnswered", "RunCompleted"]
    assert result_of(run.last) == "s"


def test_open_questions_are_carried_over_or_refused_when_a_run_continues(crash: bool) -> None:
    app = make_app()

    @app.workflow
    async def flow(generation: int) -> Any:
        question = await sf.question("x", int)
        if generation == 0:
            raise sf.ContinueAs(1)
        question.answer(question.value)
        return "answered"

    run = Run(app, "flow", 0, crash=crash)
    run.advance(ask("x", 1, 1), ask("x", 2, 2))
    first, second = run.last.besides.answers
    assert first.failure is not None
    assert first.failure.kind == "ContinuedAsNew"
    assert (second.id, plain(second.result)) == (f"{2:032x}", 2)


def test_a_question_is_answered_only_once() -> None:
    app = make_app()

    @app.workflow
    async def flow() -> None:
        question = await sf.question("x")
        question.answer(1)
        question.answer(2)

    run = Run(app, "flow")
    run.advance(ask("x", None))
    assert "answered already" in failure_in(run.last).message


def test_waiting_for_a_question_can_time_out(crash: bool) -> None:
    app = make_app()

    @app.workflow
    async def flow() -> str:
        try:
            await sf.question("x", timeout=5)
        except TimeoutError as error:
            return str(error)
        return ""

    run = Run(app, "flow", crash=crash)
    run.advance(Due(), after=5000)
    assert result_of(run.last) == "no question x within 5 s"


def test_a_reducer_answers_with_commands(crash: bool) -> None:
    app = make_app()

    @app.reducer
    def account(state: list[str], event: sf.Event) -> sf.Decision:
        match event:
            case sf.Asked(id=ask_id, name="later"):
                return sf.Decision([*state, ask_id])
            case sf.Asked(id=ask_id, value=value):
                return sf.Decision(state, [sf.Answer(ask_id, value * 2) if value else sf.Refuse(ask_id, "nothing")])
            case sf.Signal():
                return sf.Decision([], [sf.Answer(one, "at last") for one in state])
        return sf.Decision(state)

    run = Run(app, "account", None, crash=crash)
    run.advance(ask("x", 4, 1), ask("x", 0, 2), ask("later", 0, 3))
    assert [(a.id[-1], plain(a.result)) for a in run.last.besides.answers] == [("1", 8), ("2", None)]
    assert run.last.besides.answers[1].failure == Failure("Refused", "nothing")
    run.advance(signal("go"))
    assert [(a.id[-1], plain(a.result)) for a in run.last.besides.answers] == [("3", "at last")]


# --- children ---------------------------------------------------------------------------------------------------------


def test_a_child_can_be_started_and_awaited_later(crash: bool) -> None:
    app = make_app()
    child, act = app.workflows["child"], app.steps["act"]

    @app.workflow
    async def flow() -> Any:
        one = await sf.start(child, "x", id="mine", tenant="acme")
        await one.signal("hello", 1)
        await act("meanwhile")
        return [one.id, await one.result()]

    run = Run(app, "flow", crash=crash)
    assert kinds(run.last) == ["RunStarted", "ChildStarted", "SignalSent", "StepScheduled"]
    run.advance(ChildCompleted(1, "child", raw("early")))
    run.done(3)
    assert result_of(run.last) == ["mine", "early"]


def test_cancelling_the_wait_for_a_started_child_leaves_it_running(crash: bool) -> None:
    app = make_app()
    child = app.workflows["child"]

    @app.workflow
    async def flow() -> Any:
        one = await sf.start(child, "x")
        try:
            with sf.timeout(1):
                await one.result()
        except TimeoutError:
            await one.cancel("too slow")
        try:
            return await one.result()
        except sf.ChildFailed as error:
            return [error.run_id, str(error.failure)]

    run = Run(app, "flow", crash=crash)
    run.advance(Due(), after=1000)
    assert kinds(run.last) == ["TimerFired", "ChildCancelled"]
    run.advance(events.ChildFailed(1, "child", Failure("RunCancelled", "too slow"), cancelled=True))
    assert result_of(run.last) == ["r.1", "RunCancelled: too slow"]


def policy_app() -> sf.App:
    app = make_app()
    child = app.workflows["child"]

    @app.workflow
    async def flow() -> str:
        await sf.start(child, "a")
        await sf.start(child, "b", on_parent_end="abandon")
        await sf.start(child, "c", on_parent_end="wait")
        return await sf.signal("end", str)

    return app


def test_each_child_has_its_own_policy_for_the_end_of_its_parent(crash: bool) -> None:
    run = Run(policy_app(), "flow", crash=crash)
    run.advance(signal("end", "done"))
    assert kinds(run.last) == ["SignalReceived"]
    assert [(m.target, m.kind) for m in run.last.besides.outbox] == [("r.1", "cancel")]
    run.advance(signal("end", "nobody listens"), events.ChildFailed(1, "child", Failure("RunCancelled", "")))
    assert not run.last.ended
    run.advance(ChildCompleted(3, "child", raw("x")), after=100)
    assert kinds(run.last) == ["ChildCompleted", "RunCompleted"]
    assert result_of(run.last) == "done"


def test_steps_cancelled_by_ended_code_stay_cancelled_while_it_is_stuck() -> None:
    app = make_app()
    act, child = app.steps["act"], app.workflows["child"]

    async def failing() -> None:
        raise ValueError

    @app.workflow
    async def careless() -> str:
        await sf.start(child, "x", on_parent_end="wait")
        try:
            await sf.gather(act("open"), failing())
        except ValueError:
            return "done"
        return "not reached"

    run = Run(app, "careless")
    assert kinds(run.last)[-1] == "StepCancelled"
    assert not run.last.jobs
    without = sf.App()
    without.steps.update(app.steps)
    run.reload(without)
    run.advance(signal("any"))
    assert run.last.status == "stuck"
    assert run.machine.running_jobs() == []


def test_a_cancel_hurries_the_children_that_the_end_waits_for(crash: bool) -> None:
    run = Run(policy_app(), "flow", crash=crash)
    run.advance(signal("end", "done"))
    run.advance(CancelRequested("hurry"))
    assert [(m.target, m.kind) for m in run.last.besides.outbox] == [("r.3", "cancel")]
    run.advance(events.ChildFailed(3, "child", Failure("RunCancelled", "hurry"), cancelled=True))
    assert result_of(run.last) == "done"


def test_terminating_waits_for_no_child(crash: bool) -> None:
    run = Run(policy_app(), "flow", crash=crash)
    run.advance(signal("end", "done"))
    run.advance(CancelRequested("now", terminate=True))
    assert kinds(run.last) == ["CancelRequested", "RunCancelled"]
    assert ("r.3", "cancel") in [(m.target, m.kind) for m in run.last.besides.outbox]


def test_a_reducer_waits_for_children_too(crash: bool) -> None:
    app = make_app()
    child = app.workflows["child"]

    @app.reducer
    def flow(state: int, event: sf.Event) -> sf.Decision:
        match event:
            case sf.Started():
                return sf.Decision(state, [child.options(on_parent_end="wait")("x")])
            case sf.Signal(name="end"):
                return sf.Decision(state, [sf.Complete("done")])
        raise AssertionError(f"{event} after the end")

    run = Run(app, "flow", None, crash=crash)
    run.advance(signal("end"))
    assert not run.last.ended
    run.advance(signal("more"))
    run.advance(ChildCompleted(1, "child", raw("x")))
    assert kinds(run.last) == ["ChildCompleted", "RunCompleted"]


def test_a_policy_that_does_not_exist_is_a_mistake() -> None:
    app = make_app()
    with pytest.raises(sf.UsageError, match="must be one of cancel, abandon, wait, got 'keep'"):
        app.workflows["child"].options(on_parent_end="keep")  # type: ignore[arg-type]


def test_the_first_event_of_a_continued_history_names_its_generation() -> None:
    run = Run(counter_app(), "counter", 0, 1, at=5000)
    run.advance(signal("add", 7), after=10)
    event = run.history[-1]
    assert isinstance(event, RunContinued)
    assert (event.started, event.generation, event.workflow) == (5000, 1, "counter")
