"""What a run waits for, from its record: of runs that are stuck, were retried, or whose record is only read in part."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw

from streamflow.errors import Failure
from streamflow.events import (
    NOTHING,
    AnyEvent,
    Awaited,
    ChildStarted,
    RecordedTransition,
    RunContinued,
    RunFailed,
    RunResumed,
    RunRetried,
    RunStarted,
    RunStuck,
    StepRetrying,
    StepScheduled,
    TimerSet,
    Transition,
    Unrecorded,
    decode_recorded,
    decode_transition,
    encode_transition,
)
from streamflow.model.logged import decode_logged
from streamflow.model.payload_types import type_text
from streamflow.model.waits import Wait, waits_of

FAILED = Failure("ConnectError", "api:443\nand more")


def told(*transitions: tuple[list[AnyEvent], Unrecorded | None]) -> list[tuple[Any, ...]]:
    recorded = [
        decode_recorded(encode_transition(1000 + number, events, unrecorded))
        for number, (events, unrecorded) in enumerate(transitions)
    ]
    return [(wait.kind, wait.name, wait.seq) for wait in waits_of(recorded)]


def test_releases_that_do_not_know_the_addition_read_over_it() -> None:
    events: list[AnyEvent] = [TimerSet(1, 5000)]
    for unrecorded in (
        Unrecorded([Awaited("approve", "Approval", 7)]),
        Unrecorded(closed=[4, 5]),
        Unrecorded([Awaited("?ask")], still=[]),
        Unrecorded([Awaited("a")], more=3),
    ):
        data = encode_transition(9, events, unrecorded)
        assert decode_transition(data) == Transition(9, events)
        logged = decode_logged(data)
        assert (logged.at, logged.events, logged.number, logged.created) == (9, events, 0, 0)
        assert decode_recorded(data) == RecordedTransition(9, events, 0, 0, unrecorded)


def test_a_transition_with_nothing_to_add_has_the_bytes_that_it_had() -> None:
    events: list[AnyEvent] = [StepScheduled(1, "charge", NOTHING)]
    assert encode_transition(9, events, None) == msgspec.msgpack.encode(Transition(9, events))
    assert decode_recorded(encode_transition(9, events)).unrecorded is None


def test_an_earlier_release_leaves_open_which_message_is_awaited() -> None:
    started: AnyEvent = RunStarted("w", "", NOTHING)
    assert told(([started], None)) == [("message", "", 0)]
    assert told(([started, TimerSet(1, 9000, "approve")], None)) == [("message", "", 0)]


def test_a_run_without_a_transition_waits_for_its_start() -> None:
    assert waits_of([]) == [Wait(kind="start")]


def test_a_stuck_run_waits_for_other_code_and_for_what_still_runs() -> None:
    step: AnyEvent = StepScheduled(1, "charge", NOTHING)
    stuck: tuple[list[AnyEvent], None] = ([RunStuck("w", "", "it diverged")], None)
    asks = Unrecorded([Awaited("approve")])
    assert told(([step], asks), stuck) == [("code", "", 0), ("step", "charge", 1)]
    resumed: tuple[list[AnyEvent], Unrecorded] = ([RunResumed("w", "")], Unrecorded([Awaited("approve")], still=[]))
    assert told(([step], asks), stuck, resumed) == [("signal", "approve", 0), ("step", "charge", 1)]


def test_what_a_retried_run_had_given_up_is_open_again() -> None:
    """And what it had begun behind the point where it goes on is not."""
    begun: list[AnyEvent] = [
        StepScheduled(1, "charge", NOTHING),
        TimerSet(2, 9000),
        ChildStarted(3, "k", "kid", "", NOTHING),
    ]
    given_up: list[AnyEvent] = [StepScheduled(4, "undo", NOTHING), TimerSet(5, 8000)]
    failed: list[AnyEvent] = [RunFailed("w", "", 1, FAILED)]
    retried: list[AnyEvent] = [RunRetried("w", "", 3, 5, [(1, 4)])]
    history = [
        (begun, None),
        (given_up, Unrecorded(closed=[2, 3])),
        (failed, None),
        (retried, Unrecorded(still=[2, 3])),
    ]
    assert told(*history) == [("step", "charge", 1), ("child", "k", 3), ("timer", "", 2)]
    waits = waits_of(decode_recorded(encode_transition(1, *parts)) for parts in history)
    assert waits[0].attempt == 4


def test_a_new_generation_waits_for_nothing_of_the_old_one() -> None:
    continued = RunContinued("w", "", NOTHING, 0, 9, 1000, 1, [], [(3, "k", "kid")])
    assert told(([StepScheduled(1, "charge", NOTHING)], None), ([continued], None)) == [("child", "k", 3)]


def test_the_newest_part_of_a_history_knows_a_step_that_is_tried_again() -> None:
    [wait] = waits_of([RecordedTransition(1000, [StepRetrying(7, "charge", 2, 3.0, FAILED, 5000)])])
    assert (wait.kind, wait.name, wait.seq, wait.attempt) == ("step", "charge", 7, 3)
    assert wait.why == "ConnectError: api:443"
    assert wait.until is not None
    assert wait.until.timestamp() == 5


def test_a_message_has_been_awaited_since_it_was_first() -> None:
    asks = Unrecorded([Awaited("?quote", "int", 9000)])
    recorded = [RecordedTransition(at, [], 0, 0, asks) for at in (1000, 2000)]
    [wait] = waits_of(recorded)
    assert (wait.kind, wait.name, wait.type) == ("question", "quote", "int")
    assert wait.since is not None
    assert wait.until is not None
    assert (wait.since.timestamp(), wait.until.timestamp()) == (1, 9)


def test_declared_types_are_spelled_for_people() -> None:
    class Hostile(type):
        def __getattribute__(cls, name: str) -> Any:
            raise RuntimeError(name)

    class Evil(metaclass=Hostile):
        pass

    assert [type_text(kind) for kind in (Any, int, Failure, list[int], str | None, None, Raw)] == [
        "", "int", "Failure", "list[int]", "str | None", "None", "Raw",
    ]  # fmt: skip
    assert type_text(dict[str, list[tuple[int, ...]]] | list[dict[str, Failure]])[60:] == ""
    assert isinstance(type_text(Evil), str)
