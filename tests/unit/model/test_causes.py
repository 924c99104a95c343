"""Causes: what a failure comes from, and which failures have the same one."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamflow import errors
from streamflow.errors import Failure
from streamflow.events import NOTHING, RunFailed, StepFailed, StepRetrying, StepScheduled, Transition, decode_transition
from streamflow.model.causes import (
    MAX_KEY,
    Cause,
    attempts_before,
    cause_of,
    condensed,
    key_of,
    plain_message,
    root_of,
    stuck_cause,
    where_of,
)
from streamflow.model.failures import failure_of
from streamflow.model.logged import encode_logged

FRAMES = (
    '  File "/srv/app/flows.py", line 7, in order\n    await charge()\n'
    '  File "/srv/app/pay.py", line 48, in charge\n    client.post()\n'
    '  File "/usr/lib/python3.12/asyncio/base.py", line 9, in wait\n    raise\n'
    '  File "/home/kim/.venv/lib/python3.12/site-packages/httpx/_client.py", line 99, in send\n    raise\n'
)


def of_step(step: str, attempt: int, failure: Failure) -> Failure:
    return failure_of(errors.StepFailed(step, attempt, failure))


def of_child(run_id: str, workflow: str, failure: Failure) -> Failure:
    return failure_of(errors.ChildFailed(run_id, workflow, failure))


TIMEOUT = Failure("ConnectTimeout", "api:443", FRAMES)
DEEP = of_child("a~1", "order", of_child("a~1~2", "payment", of_step("charge", 5, TIMEOUT)))


# --- the innermost error ----------------------------------------------------------------------------------------------


def test_a_value_that_does_not_fit_is_the_cause_and_not_how_that_was_found() -> None:
    inner = Failure("ValidationError", "Expected `int`, got `str`")
    failure = Failure("PayloadInvalid", "the value of signal go is not a int: Expected `int`, got `str`", cause=inner)
    assert str(cause_of("r", "w", failure)).startswith("PayloadInvalid: the value of signal go is not a int")


def test_the_cause_is_the_steps_error_of_the_childs_child() -> None:
    where = "pay.py:48 in charge"
    assert cause_of("a", "top", DEEP) == Cause("a~1~2", "payment", "ConnectTimeout", "api:443", "charge", 5, where)
    assert root_of(DEEP).traceback == FRAMES


def test_without_children_the_cause_is_of_the_run_itself() -> None:
    assert cause_of("a", "top", Failure("ValueError", "boom")) == Cause("a", "top", "ValueError", "boom")
    cause = cause_of("a", "top", of_step("charge", 2, TIMEOUT))
    assert (cause.run_id, cause.workflow, cause.step, cause.attempt) == ("a", "top", "charge", 2)


def test_a_step_of_the_parent_says_nothing_about_an_error_of_its_child() -> None:
    """Only by hand: a step error that was raised from a child's."""
    failure = Failure("StepFailed", "", fields={"step": "s", "attempt": 1}, cause=of_child("b", "w", Failure("K", "m")))
    assert cause_of("a", "top", failure) == Cause("b", "w", "K", "m")


def test_an_error_of_ones_own_raised_from_a_steps_has_the_steps_as_cause() -> None:
    failure = Failure("OrderFailed", "no luck", "", cause=of_step("charge", 1, TIMEOUT))
    assert cause_of("a", "top", failure).kind == "ConnectTimeout"


def test_an_error_that_was_only_being_handled_is_not_the_cause() -> None:
    failure = Failure("OrderFailed", "no luck", "", context=of_step("charge", 1, TIMEOUT))
    assert cause_of("a", "top", failure).kind == "OrderFailed"


def test_a_group_of_one_stands_for_its_error_and_one_of_many_for_itself() -> None:
    boom = Failure("ValueError", "boom")
    assert cause_of("a", "w", Failure("ExceptionGroup", "1 error", members=(boom,))).kind == "ValueError"
    assert cause_of("a", "w", Failure("ExceptionGroup", "2 errors", members=(boom, boom))).kind == "ExceptionGroup"


def test_a_step_error_with_fields_of_other_types_is_taken_for_the_users() -> None:
    failure = Failure("StepFailed", "", fields={"step": 3, "attempt": "x"}, cause=Failure("ChildFailed", "mine"))
    assert cause_of("a", "w", failure) == Cause("a", "w", "ChildFailed", "mine")


# --- where ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("traceback", "where"),
    [
        (FRAMES, "pay.py:48 in charge"),
        ("", ""),
        ("no frames", ""),
        ('  File "C:\\app\\pay.py", line 3, in f\n', "pay.py:3 in f"),
        ('  File "C:\\Python311\\Lib\\json\\decoder.py", line 3, in f\n', "decoder.py:3 in f"),
        ('  File "/a/pay.py", line 3\n', "pay.py:3"),
        ('  File "/a/pay.py", line 3, in f\n  | File "/a/member.py", line 4, in g\n', "pay.py:3 in f"),
        ('  File "/a/pay.py", line 3, in f\n  File "<frozen runpy>", line 9, in g\n', "pay.py:3 in f"),
    ],
)
def test_where_is_the_last_line_of_the_users_code(traceback: str, where: str) -> None:
    assert where_of(traceback) == where


def test_where_of_a_real_error_that_a_library_raised() -> None:
    with pytest.raises(json.JSONDecodeError) as raised:
        json.loads("{")
    where = where_of(failure_of(raised.value).traceback)
    assert where.startswith("test_causes.py:")
    assert where.endswith(" in test_where_of_a_real_error_that_a_library_raised")


# --- the same cause ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "plain"),
    [
        ("api.example:443", "api.example:#"),
        ("user 'kim' has no \"card\"", "user '…' has no '…'"),
        ("can't read 'a' or 'b', don't know why", "can't read '…' or '…', don't know why"),
        ("10.0.0.7:6379 at 2026-11-29 13:52:01.204", "# at # #"),
        ("<Client object at 0x7f3a9c2b10>", "<Client object at #>"),
        ("order 5f0c8f6e-4a52-4d5e-9b0a-1f2e3d4c5b6a", "order #"),
        ("commit deadbeef12 of 01HZX3V8QK5T9W2M7N4B6C1D0E", "commit # of #"),
        ("abacus facade", "abacus facade"),
        ("first line\nsecond 5", "first line"),
        ("", ""),
    ],
)
def test_values_are_taken_out_of_a_message(message: str, plain: str) -> None:
    assert plain_message(message) == plain


def test_a_long_message_is_cut() -> None:
    assert len(plain_message("x y " * 10_000)) == MAX_KEY


def test_the_same_cause_has_one_key_whatever_the_values_and_the_line() -> None:
    other = FRAMES.replace("line 48", "line 51")
    a = cause_of("a-17", "order", of_step("charge", 5, Failure("Declined", "card 4711 of 'kim', run a-17", FRAMES)))
    b = cause_of("bert", "order", of_step("charge", 1, Failure("Declined", "card 12 of 'ann', run bert", other)))
    assert key_of(a) == key_of(b) == ("order", "Declined", "card # of '…', run …", "pay.py in charge")


def test_workflow_kind_message_and_function_tell_causes_apart() -> None:
    base = cause_of("a", "order", TIMEOUT)
    changes = ({"workflow": "w"}, {"kind": "K"}, {"message": "m"}, {"where": "pay.py:48 in refund"})
    others = [msgspec.structs.replace(base, **change) for change in changes]
    assert len({key_of(cause) for cause in [base, *others]}) == 5


def test_runs_that_are_stuck_for_the_same_reason_have_one_key() -> None:
    reasons = [stuck_cause(run, "order", f"run {run} diverged at event {n}") for run, n in (("a-17", 5), ("bert", 17))]
    assert {key_of(cause) for cause in reasons} == {("order", "stuck", "run … diverged at event #", "")}


# --- from the log -----------------------------------------------------------------------------------------------------


def from_log(failure: Failure) -> Failure:
    event = RunFailed("top", "", 1, failure)
    data = encode_logged(Transition(1, [event]), 1, 1)
    [logged] = decode_transition(data).events if data else [event]
    assert isinstance(logged, RunFailed)
    return logged.failure


def test_the_log_keeps_the_cause_of_a_large_failure_and_little_else() -> None:
    large = from_log(DEEP)
    assert large != DEEP
    assert cause_of("a", "top", large) == cause_of("a", "top", DEEP)
    assert len(msgspec.msgpack.encode(large)) < 512
    assert "site-packages" not in str(large)


texts = st.one_of(
    st.text(max_size=40),
    st.sampled_from(["StepFailed", "ChildFailed", "a in b.py:3 in f", "x\n" * 300, "é" * 600, "run-1", "'a' 12"]),
    st.builds(
        '  File "{}", line {}, in {}\n'.format,
        st.sampled_from(["/a/pay.py", "a in b.py:3", "<string>", "/x/site-packages/y.py", "", "n" * 90]),
        st.integers(0, 10**12),
        st.sampled_from(["f", "<lambda>", "a in b:7 in c", "g" * 90]),
    ),
)
values = st.one_of(st.text(max_size=5), st.integers(-5, 10**15), st.none())
fields = st.dictionaries(st.sampled_from(["step", "attempt", "run_id", "workflow", "x"]), values, max_size=4)
failures: st.SearchStrategy[Failure] = st.recursive(
    st.builds(Failure, texts, texts, texts, fields=fields),
    lambda below: st.builds(
        Failure,
        texts,
        texts,
        texts,
        fields=fields,
        cause=st.none() | below,
        context=st.none() | below,
        members=st.lists(below, max_size=2).map(tuple),
    ),
    max_leaves=6,
)


@given(failures)
@settings(deadline=None)
def test_whatever_failed_has_the_same_key_and_place_from_the_log(failure: Failure) -> None:
    whole, cut = cause_of("run-1", "top", failure), cause_of("run-1", "top", condensed(failure, "note"))
    assert key_of(cut) == key_of(whole)
    assert (cut.run_id, cut.step, cut.attempt, cut.where) == (whole.run_id, whole.step, whole.attempt, whole.where)
    retried = cause_of("run-1", "top", condensed(condensed(failure), "note"))
    assert (key_of(retried), retried.where) == (key_of(whole), whole.where)


# --- the attempts before ----------------------------------------------------------------------------------------------


def test_the_attempts_before_are_those_of_the_call_that_failed() -> None:
    """Another call of the same step was retried, too, and one has failed before and was caught."""

    def retrying(seq: int, attempt: int) -> Any:
        return StepRetrying(seq, "charge", attempt, 5.0, Failure("Timeout", f"{seq}.{attempt}"), 99)

    history = [
        Transition(1, [StepScheduled(1, "charge", NOTHING), StepScheduled(2, "charge", NOTHING), retrying(1, 1)]),
        Transition(2, [retrying(2, 1), StepFailed(1, "charge", 2, 5.0, TIMEOUT)]),
        Transition(3, [retrying(2, 2), StepFailed(2, "charge", 3, 5.0, TIMEOUT)]),
    ]
    cause = cause_of("a", "top", of_step("charge", 3, TIMEOUT))
    before = attempts_before(history, cause)
    assert [(one.attempt, one.at.timestamp(), one.failure.message) for one in before] == [
        (1, 0.002, "2.1"),
        (2, 0.003, "2.2"),
    ]
    assert attempts_before(history, cause_of("a", "top", Failure("ValueError", "boom"))) == []


def test_the_last_attempt_before_a_retry_is_one_of_the_attempts_before() -> None:
    def retrying(attempt: int) -> Any:
        return StepRetrying(1, "charge", attempt, 5.0, Failure("Timeout", f"{attempt}"), 99)

    history = [
        Transition(1, [StepScheduled(1, "charge", NOTHING), retrying(1)]),
        Transition(2, [StepFailed(1, "charge", 2, 5.0, TIMEOUT)]),
        Transition(3, [retrying(3)]),
        Transition(4, [StepFailed(1, "charge", 4, 5.0, TIMEOUT)]),
    ]
    for last, before in ((2, [1]), (4, [1, 2, 3])):
        cause = cause_of("a", "top", of_step("charge", last, TIMEOUT))
        assert [one.attempt for one in attempts_before(history, cause)] == before
