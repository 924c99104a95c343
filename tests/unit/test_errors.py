"""All errors cross process boundaries: each is copied and pickled with everything that it has."""

from __future__ import annotations

import copy
import inspect
import pickle
import threading
from typing import Any

import pytest

from streamflow import errors
from streamflow.errors import Failure
from streamflow.wire import BadMessage

FAILURE = Failure("Declined", "no", "lines", ("note",), {"code": 7}, Failure("KeyError", "'x'"))
CLASSES = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, BaseException) and kind.__module__ == errors.__name__ and not kind.__name__.startswith("_")
]
VALUES: dict[str, Any] = {
    "message": "half \ud83d",
    "run_id": "run-1",
    "failure": FAILURE,
    "step": "pay",
    "attempt": 2,
    "workflow": "flow",
    "name": "price",
    "errors": [ValueError("x")],
    "reason": "no: \ud83d",
    "number": 3,
    "status": "failed",
    "expected": "this",
    "found": "that",
    "line": "flows.py:7",
}


class Unpicklable(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__("one text")


def made(kind: Any) -> BaseException:
    names = [
        parameter.name
        for parameter in inspect.signature(kind.__init__).parameters.values()
        if parameter.name != "self" and parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.name != "source"
    ]
    if kind is errors.RetryLater:
        return kind("a text", retry_after=7, data=["some"])
    return kind(*(VALUES[name] for name in names)) if names else kind("a text", 7)


def shown(error: BaseException) -> dict[str, Any]:
    return {name: repr(value) for name, value in error.__dict__.items()}


def test_the_list_has_every_class_of_the_tree() -> None:
    assert len(CLASSES) >= 26
    assert {errors.StepFailed, errors.Cancelled, errors.ContinueAs, errors.Diverged} <= set(CLASSES)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("way", ["pickle", "copy", "deepcopy"])
def test_every_error_is_copied_and_pickled_whole(kind: Any, way: str) -> None:
    error = made(kind)
    error.add_note("a note")
    error.__cause__ = KeyError("why")
    ways: dict[str, Any] = {
        "pickle": lambda: pickle.loads(pickle.dumps(error)),
        "copy": lambda: copy.copy(error),
        "deepcopy": lambda: copy.deepcopy(error),
    }
    other = ways[way]()
    assert type(other) is kind
    assert (str(other), other.args, shown(other)) == (str(error), error.args, shown(error))
    assert repr(other.__cause__) == repr(error.__cause__)
    assert other.__suppress_context__


def test_what_does_not_pickle_is_replaced_by_what_can_be_said_of_it() -> None:
    error = errors.CompensationFailed([Unpicklable(1, 2)])
    error.__cause__ = Unpicklable(1, 2)
    other = pickle.loads(pickle.dumps(error))
    assert str(other) == str(error)
    assert [str(one) for one in (*other.errors, other.__cause__)] == ["Unpicklable: one text"] * 2
    held = pickle.loads(pickle.dumps(errors.Cancelled("why", threading.Lock())))
    assert (held.reason, held.source) == ("why", None)


def test_a_failure_is_hashed_and_pickled() -> None:
    assert pickle.loads(pickle.dumps(FAILURE)) == FAILURE
    assert len({FAILURE, Failure("Declined", "no", "lines", ("note",), {"code": 7}, Failure("KeyError", "'x'"))}) == 1


@pytest.mark.parametrize("value", ["no: \ud83d", 7, None, b"x", object(), "x" * 3_000_000])
def test_a_failure_can_be_made_of_anything_and_encoded(value: Any) -> None:
    import msgspec

    failure = Failure(value, value, value)
    data = msgspec.msgpack.encode(failure)
    assert msgspec.msgpack.decode(data, type=Failure) == failure
    assert len(data) < 15_000


def test_other_errors_pickle_too() -> None:
    assert str(pickle.loads(pickle.dumps(BadMessage("why")))) == "why"
