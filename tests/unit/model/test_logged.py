"""The log's form of a transition: what happened and how large it was, and no large payload, whatever the event."""

from __future__ import annotations

import typing
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from streamflow import events
from streamflow.errors import Failure
from streamflow.events import (
    AnyEvent,
    AskAnswered,
    Awaited,
    HistoryEvent,
    RunContinued,
    RunStuck,
    SignalReceived,
    StepCompleted,
    StepScheduled,
    Transition,
    Unrecorded,
    decode_transition,
    encode_transition,
    gone_bytes,
)
from streamflow.model.logged import (
    LARGE,
    LoggedTransition,
    Origin,
    decode_logged,
    decode_subscribed,
    encode_logged,
    encode_origin,
)
from streamflow.model.plain import plain
from streamflow.screen.payload import preview
from streamflow.views.shard_views import ShardViews

SECRET = "SECRET-4711 "
TYPES = typing.get_args(AnyEvent)
SMALL = Raw(b"\x05")


def payload(size: int) -> Raw:
    """A payload of that size, which is full of the secret."""
    text = SECRET * (size // len(SECRET) + 1)
    data = (msgspec.msgpack.encode(text[: size - header]) for header in (1, 2, 3))
    return Raw(next(encoded for encoded in data if len(encoded) == size))


def failure(message: int, traceback: int) -> Failure:
    return Failure(
        "ValueError", "m" * message, SECRET * (traceback // len(SECRET)), cause=Failure("KeyError", "k", SECRET)
    )


def example(kind: type[HistoryEvent], large: bool) -> Any:
    """An event with all that can be large: then above what the log keeps, else just below."""
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        type_ = str(field.type)
        if field.type is Raw:
            values[field.name] = payload(LARGE + 1 if large else LARGE)
        elif "Failure" in type_:
            values[field.name] = failure(20, 600 if large else 100)
        elif field.name == "reason":
            values[field.name] = "r" * (4000 if large else 500)
        elif field.name == "carried":
            values[field.name] = [SignalReceived("s", payload(600 if large else 100)), SignalReceived("s", SMALL)]
        elif field.type is str:
            values[field.name] = "flow"
        elif field.type in (int, float, int | float):
            values[field.name] = 7
    return kind(**values)


def logged(*items: Any, number: int = 3, created: int = 99) -> LoggedTransition | None:
    """As a reader finds it in the log; None if the log has the transition itself."""
    data = encode_logged(Transition(5, list(items)), number, created)
    return decode_logged(data) if data else None


def can_be_large(kind: type[HistoryEvent]) -> bool:
    return example(kind, large=True) != example(kind, large=False)


@pytest.mark.parametrize("kind", TYPES)
def test_a_transition_without_large_parts_is_logged_as_it_is(kind: type[HistoryEvent]) -> None:
    assert encode_logged(Transition(5, [example(kind, large=False)]), 3, 99) == b""


@pytest.mark.parametrize("kind", [kind for kind in TYPES if can_be_large(kind)])
def test_no_event_brings_a_large_part_into_the_log(kind: type[HistoryEvent]) -> None:
    whole = example(kind, large=True)
    data = encode_logged(Transition(5, [example(kind, large=False), whole]), 3, 99)
    alone = encode_logged(Transition(5, [whole]), 3, 99)
    assert SECRET.encode() not in alone
    assert len(alone) < 1000
    found = decode_logged(data)
    assert (found.at, found.number, found.created) == (5, 3, 99)
    kept, cut = found.events
    assert kept == example(kind, large=False), "what is small stays beside it"
    for field in msgspec.structs.fields(kind):
        before, after = getattr(whole, field.name), getattr(cut, field.name)
        if field.type is Raw:
            assert gone_bytes(after) == LARGE + 1
        elif isinstance(before, Failure):
            assert (after.kind, after.message, after.traceback) == (before.kind, before.message, "")
            assert f"{len(msgspec.msgpack.encode(before)):,} bytes" in after.notes[0]
        elif field.name == "reason":
            assert after == before[:500]
        elif field.name == "carried":
            assert [gone_bytes(signal.value) for signal in after] == [600, 0]
        else:
            assert after == before


@pytest.mark.parametrize("kind", TYPES)
def test_views_count_and_show_the_same_from_the_log(kind: type[HistoryEvent]) -> None:
    whole = Transition(5_000, [example(kind, large=True)])
    data = encode_logged(whole, 3, 99) or encode_transition(whole.at, whole.events)
    from_memory, from_log = ShardViews(), ShardViews()
    from_memory.fold("r", whole)
    from_log.fold("r", decode_transition(data))
    assert from_log.encode() == from_memory.encode()


def test_many_small_events_are_logged_as_they_are() -> None:
    """Together they are far above the limit, as in a fan-out: none of them is large."""
    scheduled = [StepScheduled(n, "noop", payload(100)) for n in range(200)]
    done = [StepCompleted(n, "noop", 1, 0.5, SMALL) for n in range(1000)]
    assert logged(*scheduled, *done) is None


def test_one_large_part_among_many_small_ones_is_found() -> None:
    done: list[Any] = [StepCompleted(n, "noop", 1, 0.5, SMALL) for n in range(100)]
    done[57] = StepCompleted(57, "noop", 1, 0.5, payload(LARGE + 1))
    found = logged(*done)
    assert found is not None
    assert [n for n, event in enumerate(found.events) if gone_bytes(getattr(event, "result"))] == [57]  # noqa: B009


def test_a_reader_tells_another_transition_from_its_own() -> None:
    """After a failover a run may have another transition of that number."""
    whole = Transition(5, [StepCompleted(1, "noop", 1, 0.5, payload(5000))])
    found = logged(*whole.events)
    assert found is not None
    assert found.is_of(whole)
    assert not found.is_of(Transition(6, whole.events))
    assert not found.is_of(Transition(5, [*whole.events, RunStuck("flow", "", "why")]))
    assert not found.is_of(Transition(5, [RunStuck("flow", "", "why")]))


def test_the_size_of_what_is_there_is_not_taken_for_one_that_is_gone() -> None:
    for value in (None, 5, "x", b"1234567", "12345678", 2.5, [1] * 9, payload(10)):
        data = value if isinstance(value, Raw) else Raw(msgspec.msgpack.encode(value))
        assert gone_bytes(data) == 0
    assert gone_bytes(b"") == 0


def test_what_is_gone_is_shown_by_its_size() -> None:
    found = logged(AskAnswered("a" * 32, "price", payload(50_000)))
    assert found is not None
    [event] = found.events
    assert isinstance(event, AskAnswered)
    assert plain(event.result) == {"gone": 50_000}
    assert "gone" in preview(event.result, 80)


def test_a_generation_keeps_what_is_small_of_what_it_carries() -> None:
    carried: list[Any] = [SignalReceived("a", SMALL), events.AskReceived("b" * 32, "q", payload(700))]
    event = RunContinued("flow", "", SMALL, 0, 4, 1, 2, carried)
    found = logged(event)
    assert found is not None
    [cut] = found.events
    assert isinstance(cut, RunContinued)
    assert (cut.input, cut.carried[0]) == (SMALL, carried[0])
    assert gone_bytes(cut.carried[1].value) == 700


UNRECORDED = [
    None,
    Unrecorded([Awaited("go", "str", 5)]),
    Unrecorded([Awaited("go")], [1, 2]),
    Unrecorded([], [], [3]),
    Unrecorded([Awaited("?name")], [], None, 7),
    Unrecorded(untaken={"go": 2}),
]


@pytest.mark.parametrize("unrecorded", UNRECORDED)
def test_subscribers_read_transitions_whatever_no_event_tells_of_them(unrecorded: Unrecorded | None) -> None:
    event = SignalReceived("go", SMALL)
    data = encode_transition(1234, [event], unrecorded)
    origin = Origin("1:2", 3, 4, "flow", "acme")
    found = decode_subscribed(b"\x96" + data[1:] + encode_origin(data, origin)[1:])
    assert (found.at, found.events, found.origin) == (1234, [event], origin)
    before = decode_subscribed(data)  # of the time without groups
    assert (before.at, before.events, before.number, before.origin) == (1234, [event], 0, None)
