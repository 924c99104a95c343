"""What is recorded of an exception: everything around it, within a budget, whatever its own code does."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import sys
from collections import deque
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamflow.errors import ChildFailed, Failure, Fatal, PayloadInvalid, RetryLater, StepFailed, UsageError
from streamflow.model.failures import failure_of, is_permanent, retry_after_of
from streamflow.model.plain import plain_failure

WHOLE = 25 * 1024
"""Bytes of an encoded failure: 16 KB of texts, 8 KB of traceback, and what is around them."""


class Declined(Exception):
    def __init__(self, code: str, retry_after: int) -> None:
        super().__init__(code)
        self.code = code
        self.retry_after = retry_after


def caught(function: Any) -> BaseException:
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def pay() -> None:
    try:
        {}["token"]
    except KeyError as error:
        declined = Declined("card_declined", 30)
        declined.add_note("order 17")
        raise declined from error


def recorded(error: BaseException) -> Failure:
    """What a reader of the history has."""
    data = msgspec.msgpack.encode(failure_of(error))
    assert len(data) <= WHOLE
    return msgspec.msgpack.decode(data, type=Failure)


def test_cause_notes_fields_and_lines_are_kept() -> None:
    failure = recorded(caught(pay))
    assert (failure.kind, failure.message, failure.notes) == ("Declined", "card_declined", ("order 17",))
    assert failure.fields == {"code": "card_declined", "retry_after": 30}
    assert failure.cause is not None
    assert (failure.cause.kind, failure.cause.message, failure.context) == ("KeyError", "'token'", None)
    for text in ("raise declined from error", '{}["token"]', "direct cause", "KeyError: 'token'", "order 17"):
        assert text in failure.traceback
    assert '{}["token"]' in failure.cause.traceback


def test_the_context_is_kept_unless_it_is_suppressed() -> None:
    def implicit() -> None:
        try:
            raise KeyError("first")
        except KeyError:
            raise ValueError("second")  # noqa: B904

    def suppressed() -> None:
        try:
            raise KeyError("first")
        except KeyError:
            raise ValueError("second") from None

    failure = recorded(caught(implicit))
    assert failure.context is not None
    assert (failure.context.kind, failure.cause) == ("KeyError", None)
    assert "During handling" in failure.traceback
    assert recorded(caught(suppressed)).context is None


def test_members_of_groups_are_kept_with_their_own_lines() -> None:
    async def many() -> None:
        async def one() -> None:
            pay()

        async with asyncio.TaskGroup() as group:
            group.create_task(one())

    failure = recorded(caught(lambda: asyncio.run(many())))
    (member,) = failure.members
    assert (member.kind, member.fields["retry_after"], member.notes) == ("Declined", 30, ("order 17",))
    assert member.cause is not None
    assert "raise declined from error" in member.traceback
    assert "raise declined from error" in failure.traceback
    assert "Declined: card_declined" in failure.message


def test_an_exception_without_anything_around_it_has_only_its_frames() -> None:
    def plain() -> None:
        raise ValueError("x")

    failure = recorded(caught(plain))
    assert failure == Failure("ValueError", "x", failure.traceback)
    assert failure.traceback.rstrip().endswith('raise ValueError("x")')
    assert set(plain_failure(failure)) == {"kind", "message", "traceback"}


class Slotted(Exception):
    __slots__ = ("code", "never_set")

    def __init__(self) -> None:
        self.code = 7


class Size(enum.Enum):
    BIG = "big"


class Various(Exception):
    def __init__(self) -> None:
        super().__init__("various")
        self.number, self.nothing, self.flag = 1.5, None, True
        self.when, self.price = datetime(2024, 1, 2, tzinfo=UTC), Decimal("1.10")
        self.size, self.pair, self.data = Size.BIG, (1, "a"), {"a": [1, {"b": None}]}
        self.huge, self.machine, self._private = 2**70, object(), 1
        self.half = "\ud83d"

    @property
    def broken(self) -> int:
        raise RuntimeError


def test_fields_are_attributes_that_are_plain_data() -> None:
    assert recorded(Various()).fields == {
        "number": 1.5,
        "nothing": None,
        "flag": True,
        "when": "2024-01-02T00:00:00Z",
        "price": "1.10",
        "size": "big",
        "pair": [1, "a"],
        "data": {"a": [1, {"b": None}]},
        "half": "\\ud83d",
    }
    assert recorded(Slotted()).fields == {"code": 7}
    assert recorded(FileNotFoundError(2, "No such file", "/nope")).fields == {"errno": 2}  # the others are in its text
    assert recorded(SystemExit(3)).fields == {"code": 3}


def test_fields_are_few_and_small() -> None:
    error = ValueError("x")
    error.__dict__.update({f"field{number}": "y" * 1000 for number in range(1000)})
    fields = recorded(error).fields
    assert len(fields) == 16
    assert all(len(value.encode()) <= 256 for value in fields.values())


def test_a_failure_of_a_step_or_child_is_the_cause_of_its_error() -> None:
    failure = failure_of(caught(pay))
    for error in (StepFailed("pay", 2, failure), ChildFailed("run-1", "flow", failure)):
        cause = recorded(error).cause
        assert cause is not None
        assert (cause.kind, cause.fields, cause.notes) == (failure.kind, failure.fields, failure.notes)
        assert recorded(error).traceback.count("raise declined from error") == 1


# --- what can't be shown ----------------------------------------------------------------------------------------------


class Meta(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise ZeroDivisionError


class Renamed(Exception, metaclass=Meta): ...


class NoText(Exception):
    def __str__(self) -> str:
        raise SystemExit


class NotText(Exception):
    def __str__(self) -> str:
        return 503  # type: ignore[return-value]


class OddText(str):
    __slots__ = ()

    def __len__(self) -> int:
        raise ZeroDivisionError

    def encode(self, *args: Any, **kwargs: Any) -> bytes:
        raise ZeroDivisionError


class Odd(Exception):
    def __str__(self) -> str:
        return OddText("odd")


class Closed(Exception):
    def __getattribute__(self, name: str) -> Any:
        raise ZeroDivisionError(name)

    @property
    def __class__(self) -> Any:  # type: ignore[override]
        raise ZeroDivisionError

    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise ZeroDivisionError


def with_notes(notes: object) -> Exception:
    error = ValueError("x")
    error.__notes__ = notes  # type: ignore[attr-defined]
    return error


def endless() -> Exception:
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    return one


def long_chain() -> Exception:
    error = ValueError("é" * 5000)
    for number in range(5000):
        outer = ValueError(f"{number} " + "é" * 5000)
        outer.__cause__ = error
        error = outer
    return error


def nested_groups() -> Exception:
    error: Exception = ValueError("x" * 5000)
    for _ in range(50):
        members: list[Exception] = [error] * 20
        error = ExceptionGroup("group", members)
    return error


def too_deep() -> BaseException:
    def deeper() -> None:
        deeper()

    return caught(deeper)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Renamed("x"),
        NoText,
        NotText,
        Odd,
        Closed,
        lambda: with_notes(3),
        lambda: with_notes([NoText(), "\ud83d", object()]),
        lambda: with_notes(["x" * 100_000] * 1000),
        endless,
        long_chain,
        nested_groups,
        too_deep,
        lambda: ExceptionGroup("10,000", [ValueError("x" * 1000) for _ in range(10_000)]),
        lambda: ValueError("\ud83d\0" * 100_000),
        lambda: type("é" * 400, (Exception,), {})("x"),
    ],
)
def test_what_can_not_be_shown_is_kept_by_its_type(make: Any) -> None:
    error = make()
    assert recorded(error).kind[:6] == type.__dict__["__name__"].__get__(type(error))[:6]


def test_a_source_that_can_not_be_read_costs_the_frames_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> str:
        raise SystemExit

    error = caught(pay)
    monkeypatch.setattr("linecache.getline", broken)
    monkeypatch.setattr("linecache.checkcache", broken)
    assert recorded(error).fields["retry_after"] == 30


@given(st.text(st.characters(), max_size=300), st.text(max_size=20), st.integers(0, 3))
def test_any_text_is_recorded_within_the_budget(message: str, note: str, causes: int) -> None:
    error = ValueError(message)
    error.add_note(note)
    for _ in range(causes):
        outer = ValueError(message)
        outer.__cause__ = error
        error = outer
    assert recorded(error).kind == "ValueError"


# --- the record -------------------------------------------------------------------------------------------------------


class Former(msgspec.Struct, array_like=True, frozen=True):
    """A failure as it was before it had more than three fields."""

    kind: str
    message: str
    traceback: str = ""


def test_older_records_are_read_and_older_code_reads_newer_ones() -> None:
    old = msgspec.msgpack.encode(Former("ValueError", "x", "lines"))
    assert msgspec.msgpack.decode(old, type=Failure) == Failure("ValueError", "x", "lines")
    new = msgspec.msgpack.encode(failure_of(caught(pay)))
    assert msgspec.msgpack.decode(new, type=Former).kind == "Declined"


def test_recording_costs_little() -> None:
    failure = failure_of(ValueError("x"))
    assert len(msgspec.msgpack.encode(failure)) == len(msgspec.msgpack.encode(Former("ValueError", "x"))) + 5


def test_no_stack_is_left_for_it() -> None:
    def at_the_limit() -> Failure:
        try:
            return at_the_limit()
        except RecursionError as error:
            return failure_of(error)

    assert at_the_limit().kind == "RecursionError"
    assert sys.getrecursionlimit() > 0


# --- errors of one's own ----------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Decline:
    code: str
    until: datetime
    where: Path
    proof: bytes
    by_number: dict[int, tuple[Decimal, ...]]


DECLINE = Decline("51", datetime(2026, 5, 1, tzinfo=UTC), Path("/a"), b"\xff", {7: (Decimal("0.10"),)})


def test_the_data_of_a_final_error_is_read_as_its_type() -> None:
    failure = recorded(Fatal("no", data=DECLINE))
    assert failure.fields["data"]["proof"] == b"\xff"
    assert failure.data(Decline) == DECLINE
    exported = msgspec.json.decode(msgspec.json.encode(failure.fields))
    assert msgspec.structs.replace(failure, fields=exported).data(Decline) == DECLINE
    assert failure_of(Fatal("no", data=DECLINE)).data(Decline) == DECLINE, "in the sandbox it isn't encoded"
    assert recorded(StepFailed("pay", 1, recorded(ChildFailed("r", "w", failure)))).data(Decline) == DECLINE
    with pytest.raises(PayloadInvalid, match="the data of Fatal is not a int"):
        failure.data(int)


def test_data_may_be_any_value_that_could_be_a_result() -> None:
    class Model(pydantic.BaseModel):
        raw: bytes
        names: dict[int, str] = {}

    for data, kind in (
        (Model(raw=b"\xff", names={1: "one"}), Model),
        (deque([1, 2]), deque[int]),
        ([1, "a"], list[Any]),
        (0, int),
    ):
        assert recorded(Fatal(data=data)).data(kind) == data


def test_without_data_the_fields_are_read_as_a_type() -> None:
    class Fields(msgspec.Struct):
        code: str
        retry_after: float = 0.0

    assert recorded(caught(pay)).data(Fields) == Fields("card_declined", 30)
    with pytest.raises(PayloadInvalid, match=r"the data of ValueError is not a Fields: .* missing required field"):
        recorded(ValueError()).data(Fields)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("x" * 5000, "it has 5,003 bytes, and there is room for 4,096"),
        (object(), "can't be encoded"),
        ({(1, 2): "x"}, ""),
    ],
)
def test_data_that_cannot_be_kept_is_left_out_whole_and_says_why(data: Any, why: str) -> None:
    error = Fatal("no", data=data)
    error.add_note("mine")
    failure = recorded(error)
    assert failure.fields == {}
    assert failure.notes[0].startswith("its data is not kept: ")
    assert why in failure.notes[0]
    assert failure.notes[1:] == ("mine",)


def test_an_own_class_keeps_its_attributes_beside_the_data() -> None:
    class Refused(RetryLater):
        def __init__(self, code: int) -> None:
            super().__init__("no", retry_after=timedelta(minutes=1), data={"of": code})
            self.code = code

    assert recorded(Refused(4)).fields == {"retry_after": 60.0, "data": {"of": 4}, "code": 4}


def test_fatal_errors_and_wrong_use_are_permanent_also_within_groups() -> None:
    group = ExceptionGroup("two", [ValueError(), ExceptionGroup("one", [Fatal()])])
    assert [is_permanent(error) for error in (Fatal(), UsageError(), group)] == [True] * 3
    assert not is_permanent(ExceptionGroup("two", [ValueError(), RetryLater(retry_after=1)]))
    wrapped = ValueError()
    wrapped.__cause__ = Fatal()
    assert not is_permanent(wrapped), "its author has said something else"


def with_wish(value: Any) -> Exception:
    error = ValueError()
    error.retry_after = value  # type: ignore[attr-defined]
    return error


class Busy(Exception):
    retry_after = 9


class Computed(Exception):
    @property
    def retry_after(self) -> float:
        raise AssertionError


def _crowded() -> Exception:
    error = with_wish(5)
    error.__dict__ = {f"a{number}": number for number in range(50)} | error.__dict__
    return error


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (RetryLater("x", retry_after=2), 2.0),
        (RetryLater("x", retry_after=timedelta(days=2)), 172800.0),
        (RetryLater("x", retry_after=-1), None),
        (RetryLater("x", retry_after=float("inf")), 1e8),
        (with_wish(0.5), 0.5),
        (with_wish(timedelta(seconds=90)), 90.0),
        (Busy(), 9),
        (Computed(), None),
        (ExceptionGroup("all", [Busy(), ExceptionGroup("some", [with_wish(30), with_wish("x")])]), 30),
        (_crowded(), 5),
        *((with_wish(no), None) for no in (0, -3, True, "30", "P", None, float("nan"), 10**400, 1e12, [1], b"1", {})),
    ],
)
def test_an_error_says_when_the_next_attempt_begins(error: Exception, seconds: float | None) -> None:
    assert retry_after_of(recorded(error)) == seconds
    assert retry_after_of(failure_of(error)) == seconds, "in the sandbox it isn't encoded"


@pytest.mark.parametrize("wrong", ["30", None, float("nan"), True, object()])
def test_a_wish_that_is_no_time_is_refused_where_it_is_raised(wrong: Any) -> None:
    with pytest.raises(UsageError, match=r"sf\.RetryLater: retry_after must be seconds or a timedelta, got "):
        RetryLater("x", retry_after=wrong)
