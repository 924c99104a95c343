"""What actions ask, answer and write: the words, without a server."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from streamflow import actions
from streamflow.actions.fork import Forked
from streamflow.actions.targets import AnyAction
from streamflow.client.listing import RunSummary
from streamflow.client.retrying import Retried, RetriedStep
from streamflow.errors import Failure, InvalidName, NotRetried, RunEnded, RunError, RunNotFound, UsageError
from streamflow.model.record import OPEN, Status

APPROVE = actions.Signal.of("approve", {"ok": True})
FORK = "Fork run r1? Each gets a new run that goes on from where it failed, was cancelled or is, and stays as it is."
ALL: list[AnyAction] = [
    actions.Cancel(),
    actions.Terminate(),
    APPROVE,
    actions.Retry(),
    actions.Fork(),
    actions.Forget(),
    actions.Purge(),
    actions.Restore(),
]


def summary(status: Status) -> RunSummary:
    now = datetime.now(UTC)
    return RunSummary(id="r1", status=status, workflow="w", tenant="", created=now, ended=None, parent=None)


@pytest.mark.parametrize(
    ("action", "question"),
    [
        (actions.Cancel(), "Cancel run r1? Clean-up code runs, sagas are undone, and children are cancelled, too."),
        (actions.Terminate(), "Terminate run r1? No clean-up code runs, and sagas are not compensated."),
        (APPROVE, "Send signal approve to run r1?"),
        (actions.Retry(), "Retry run r1, from where it went wrong? Recorded results are kept."),
        (actions.Retry(step="x"), "Give up the current attempt of step x of run r1, and begin the next one?"),
        (actions.Fork(), FORK),
        (actions.Fork(at=9), "Fork run r1? Each gets a new run that goes on from before event 9, and stays as it is."),
        (
            actions.Purge(),
            "Move run r1 into the archive? The ids are free again, and `streamflow restore` brings runs back.",
        ),
        (actions.Restore(), "Put run r1 back from the archive? Their retention begins again."),
        (actions.Forget(), "Delete run r1, with history and published values? Nothing brings them back."),
    ],
)
def test_a_question_says_what_comes_of_it(action: AnyAction, question: str) -> None:
    assert action.question("run r1") == question


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (actions.Cancel(reason="paid twice"), ["--reason", "paid twice"]),
        (actions.Terminate(), []),
        (APPROVE, ["approve", '{"ok":true}']),
        (actions.Signal.of("go"), ["go"]),
        (
            actions.Retry(step="charge", reason="x", anyway=True, alone=True),
            ["--step", "charge", "--reason", "x", "--anyway", "--alone"],
        ),
        (actions.Fork(at=9, id="r2", reason="x"), ["--at", "9", "--id", "r2", "--reason", "x"]),
        (actions.Forget(), []),
        (actions.Purge(), []),
        (actions.Restore(), []),
    ],
)
def test_an_action_is_a_command_line(action: AnyAction, words: list[str]) -> None:
    assert action.words() == words


@pytest.mark.parametrize("action", ALL, ids=lambda action: action.name)
@pytest.mark.parametrize("status", Status)
def test_what_an_action_is_for_and_what_it_says_of_others(action: AnyAction, status: Status) -> None:
    others = {
        "retry": {Status.FAILED, Status.STUCK},
        "forget": set(Status) - OPEN,
        "purge": set(Status) - OPEN,
        "restore": set(Status) - OPEN,
        "fork": set(Status) - {Status.PENDING},
    }
    wanted = others.get(action.name, OPEN)
    if status in wanted:
        assert action.check(summary(status)) == ""
    else:
        assert action.check(summary(status)) == f"run r1 is {status}: there is nothing to {action.name}"


def test_a_step_is_retried_in_open_runs_only() -> None:
    retry = actions.Retry(step="charge")
    assert retry.check(summary(Status.RUNNING)) == ""
    assert retry.check(summary(Status.FAILED)) == "run r1 is failed: it has no open step"


def test_what_was_done_is_said_as_it_always_was() -> None:
    assert actions.Cancel().did("r1", None) == "asked r1 to cancel"
    assert actions.Terminate().did("r1", None) == "asked for the termination of r1"
    assert APPROVE.did("r1", None) == "signal approve sent to r1"
    assert actions.Forget().did("r1", None) == "deleted r1"
    assert actions.Purge().did("r1", None) == "r1 is in the archive"
    assert actions.Restore().did("r1", None) == "r1 is back on the server"
    steps = [RetriedStep("charge", number, 3) for number in range(7)]
    assert actions.Retry().did("r1", Retried(12, steps, "p")) == (
        f"r1 goes on: {'; '.join(['step charge, attempt 3'] * 5)}; 2 more steps; 12 results are kept\n"
        "its parent p has taken its failure, and gets nothing from it any more"
    )
    assert actions.Fork().did("r1", Forked("r2", True)) == "r2 is a fork of r1"
    assert actions.Fork().did("r1", Forked("r2", False)) == "r2 is a fork of r1, and was started before"
    assert actions.Retry().did("r1", Retried(1, [])) == "r1 goes on: 1 result is kept"


def moot(action: AnyAction) -> list[str]:
    errors: dict[str, Exception] = {
        "ended": RunEnded("", "r1"),
        "gone": RunNotFound("", "r1"),
        "open": RunError("", "r1"),
        "running": NotRetried("r1", Failure("NotFailed", "")),
        "of a parent": NotRetried("r1", Failure("ParentFailed", "")),
        "undone": NotRetried("r1", Failure("StepsUndone", "")),
        "late": TimeoutError(),
    }
    return [name for name, error in errors.items() if action.is_moot(error)]


def test_a_refusal_may_mean_that_there_is_nothing_to_do() -> None:
    assert moot(actions.Cancel()) == moot(actions.Terminate()) == moot(APPROVE) == ["ended", "gone"]
    assert moot(actions.Retry()) == ["ended", "gone", "running", "of a parent"]
    assert moot(actions.Forget()) == ["ended", "gone", "open", "running", "of a parent", "undone"]


@pytest.mark.parametrize("action", ALL, ids=lambda action: action.name)
def test_an_action_shows_in_the_run_s_status(action: AnyAction) -> None:
    statuses: list[Status | None] = [None, *Status]
    shows = {status for status in statuses if action.took_effect(status)}
    ended = {Status.COMPLETED, Status.FAILED, Status.CANCELLED}
    expected: dict[str, set[Any]] = {
        "signal": {None, *Status},
        "fork": {None, *Status},
        "retry": {None, *Status} - {Status.FAILED, Status.STUCK},
        "forget": {None},
        "purge": {None},
        "restore": set(Status),
    }
    assert shows == expected.get(action.name, {None, *ended})


@pytest.mark.parametrize("value", [None, 1, "text", b"\x00\xff", [1, {"a": datetime(2026, 1, 1, tzinfo=UTC)}]])
def test_a_signal_s_value_comes_back_from_a_file_as_it_was(value: Any) -> None:
    written = msgspec.json.encode(actions.Signal.of("go", value))
    read = msgspec.json.decode(written, type=AnyAction)
    assert read == actions.Signal.of("go", value)


def test_a_signal_is_checked_when_it_is_made() -> None:
    with pytest.raises(InvalidName):
        actions.Signal.of("a b")


def test_read_only_is_wrong_usage() -> None:
    assert issubclass(actions.ReadOnly, UsageError)
