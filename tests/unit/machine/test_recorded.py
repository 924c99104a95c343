"""What a machine makes of `sf.record`: events of the transition that are no decisions, once whatever is replayed."""

from __future__ import annotations

from typing import Any

import pytest

import streamflow as sf
from streamflow import events
from streamflow.events import Recorded, SignalReceived
from streamflow.machine.transition import Outcome
from streamflow.wire import BadMessage, InboxMessage, decode_message, encode_outcome
from streamflow.workflow.recording import MAX_RECORDS, Record
from tests.support.machine_driver import Run, raw

app = sf.App(parks=())


@app.step(retry=sf.Retry(attempts=2, initial=0.001))
async def ask(prompt: str) -> str:
    raise NotImplementedError


@app.workflow
async def talking() -> str:
    sf.record("begun", 1)
    try:
        for number in range(2):
            sf.record("tokens", number, model="large", try_=3)
            await sf.signal("go")
        return await ask("x")
    finally:
        sf.record("over", 1)


@app.workflow
async def failing() -> None:
    await sf.signal("go")
    sf.record("paid", 5)
    await ask("x")


@app.reducer
def counting(state: int, event: sf.Event) -> sf.Decision:
    sf.record("seen", 1, kind=type(event).__name__)
    return sf.Decision(state + 1)


def go() -> SignalReceived:
    return SignalReceived("go", raw(None))


def recorded(run: Run) -> list[tuple[str, float]]:
    return [(event.name, event.value) for event in run.history if isinstance(event, Recorded)]


def replay_other(run: Run, code: sf.App) -> str:
    return run.reload(code).reason


@pytest.mark.parametrize("crash", [False, True])
def test_it_is_an_event_where_it_was_called_and_once_after_each_replay(crash: bool) -> None:
    run = Run(app, "talking")
    run.crash = crash
    assert run.names == ["RunStarted", "Recorded", "Recorded"]
    assert run.history[2] == Recorded("talking", "", "tokens", 0, {"model": "large", "try_": "3"})
    run.advance(go())
    run.advance(go())
    run.done(1, "y")
    assert recorded(run) == [("begun", 1), ("tokens", 0), ("tokens", 1), ("over", 1)]
    assert run.names[-1] == "RunCompleted", "an ending stays the last event"


def test_code_that_records_more_less_or_otherwise_has_not_diverged() -> None:
    run = Run(app, "talking")
    run.advance(go())
    other = sf.App(parks=())

    @other.step(name="ask")
    async def ask_again(prompt: str) -> str:
        raise NotImplementedError

    @other.workflow(name="talking")
    async def quiet() -> str:
        await sf.signal("go")
        sf.record("another", 1)
        await sf.signal("go")
        sf.record("new", 2)
        return await ask_again("x")

    assert replay_other(run, other) == ""
    run.advance(go())
    assert recorded(run) == [("begun", 1), ("tokens", 0), ("tokens", 1), ("new", 2)]
    assert replay_other(run, app) == "", "and back"


def test_what_is_recorded_between_decisions_is_skipped_among_them() -> None:
    run = Run(app, "talking")
    run.advance(go())
    run.advance(go())
    run.advance(Outcome(1, 1, 3.0, raw("y"), records=(Record("tokens", 7),)))
    assert run.names[-4:] == ["StepCompleted", "Recorded", "Recorded", "RunCompleted"]
    assert run.reload().reason == ""


def test_records_of_an_attempt_stand_behind_its_outcome_also_of_a_failure() -> None:
    run = Run(app, "talking")
    run.advance(go())
    run.advance(go())
    failure = sf.Failure("ValueError", "no")
    run.advance(Outcome(1, 1, 3.0, None, failure, records=(Record("tokens", 5, {"model": "small"}),)))
    assert run.names[-2:] == ["StepRetrying", "Recorded"]
    assert run.history[-1] == Recorded("talking", "", "tokens", 5, {"model": "small"}, "ask", 1, 1)
    late = Outcome(1, 1, 3.0, raw("late"), records=(Record("tokens", 5),))
    run.advance(late, after=1)
    assert run.names[-1] == "Recorded", "an outcome that changes nothing records nothing"
    run.advance(Outcome(1, 2, 3.0, None, failure, records=(Record("tokens", 6),)), after=10)
    of_steps = [(event.value, event.attempt) for event in run.history if isinstance(event, Recorded) and event.seq]
    assert of_steps == [(5, 1), (6, 2)]
    assert run.names[-1] == "RunFailed"


def test_what_code_records_again_after_a_retry_counts_once() -> None:
    run = Run(app, "failing")
    run.advance(go())
    run.failed(1)
    run.failed(1, attempt=2, after=10)
    assert run.names[-1] == "RunFailed"
    run.retry()
    assert recorded(run) == [("paid", 5)], "the retry goes on behind it"
    run.done(1, "y", attempt=3)
    assert recorded(run) == [("paid", 5)]


def test_a_retry_from_before_a_record_does_not_record_it_again() -> None:
    broken = sf.App(parks=())
    mended = sf.App(parks=())
    for code, fails in ((broken, True), (mended, False)):

        @code.workflow(name="charge")
        async def charge(fails: bool = fails) -> None:
            await sf.signal("go")
            sf.record("cents", 100)
            sf.record("cents", 100)
            if fails:
                raise ValueError("as it says")
            sf.record("cents", 100)
            await sf.signal("go")

    run = Run(broken, "charge", False)
    # The input decides in neither: the default of each does.
    run = Run(broken, "charge")
    run.advance(go())
    assert run.names[-1] == "RunFailed"
    run.retry(mended)
    assert recorded(run) == [("cents", 100)] * 3, "two of the first time, and the one that is new"
    run.reload()
    run.advance(go())
    assert recorded(run) == [("cents", 100)] * 3
    assert run.names[-1] == "RunCompleted"


def test_a_fork_records_what_it_does_itself_and_nothing_that_it_shares() -> None:
    run = Run(app, "talking")
    run.advance(go())
    fork = run.fork(None, "f")
    own = [event for event in fork.history[len(run.history) :] if isinstance(event, Recorded)]
    assert own == []
    assert recorded(fork) == recorded(run), "it is a part of its history"
    fork.advance(go())
    fork.done(1, "y")
    assert recorded(fork)[len(recorded(run)) :] == [("over", 1)]


def test_a_fork_from_a_record_goes_on_from_the_fact_before_it() -> None:
    run = Run(app, "failing")
    run.advance(go())
    position = run.names.index("Recorded") + 1
    fork = run.fork(position, "f")
    assert fork.names == ["RunStarted", "SignalReceived", "RunForked", "Recorded", "StepScheduled"]


def test_a_reducer_records_with_a_call() -> None:
    run = Run(app, "counting", 1)
    run.advance(go())
    assert recorded(run) == [("seen", 1), ("seen", 1)]


def test_code_of_a_closed_run_records_nothing() -> None:
    run = Run(app, "talking")
    run.machine.close()
    assert run.machine.effects.events == []


def test_an_outcome_brings_its_records_through_an_inbox() -> None:
    records = (Record("tokens", 7, {"model": "large"}), Record("cents", 0.5))
    body = encode_outcome(Outcome(1, 1, 3.0, raw("y"), records=records))
    decoded = decode_message(InboxMessage("1-1", "outcome", "r", body), None)
    assert isinstance(decoded, Outcome)
    assert decoded.records == records
    plain = encode_outcome(Outcome(1, 1, 3.0, raw("y")))
    assert b"records" not in plain, "outcomes without records are as long as ever"


@pytest.mark.parametrize(
    ("value", "labels", "message"),
    [
        (10**400, {}, "got an int of 1,329 bits"),
        (10**5000, {}, "got an int of 16,610 bits"),
        (float("inf"), {}, "got inf"),
        (1, {"size": 10**5000}, "label size must be a str, or an int up to"),
    ],
    ids=["large", "unprintable", "infinite", "label"],
)
def test_numbers_of_any_size_are_refused_by_a_usage_error(value: float, labels: dict[str, Any], message: str) -> None:
    with pytest.raises(sf.UsageError, match=message):
        sf.record("x", value, **labels)


@pytest.mark.parametrize(
    "records",
    [(Record("x", 1),) * (MAX_RECORDS + 1), (Record("x", float("nan")),), (Record("x", 2**60),)],
    ids=["many", "nan", "large"],
)
def test_an_outcome_with_other_records_is_quarantined(records: tuple[Record, ...]) -> None:
    body = encode_outcome(Outcome(1, 1, 3.0, raw("y"), records=records))
    with pytest.raises(BadMessage, match="recorded values"):
        decode_message(InboxMessage("1-1", "outcome", "r", body), None)


def test_an_event_is_told_by_its_words() -> None:
    assert Recorded("w", "", "tokens", 1).describe() == "Recorded(tokens)"
    assert events.Recorded is Recorded
