"""Which exceptions park a run, and which fail it."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import types
from collections.abc import Callable, Generator
from decimal import Decimal, DivisionByZero
from typing import Any

import pytest

import streamflow as sf
from streamflow.errors import ChildFailed, Failure, StepFailed, UsageError
from streamflow.model.bugs import BUGS, as_old_as, check_parks, is_bug, note_born


class Invariant(Exception):
    pass


class Derived(KeyError):
    pass


def error_of(function: Callable[[], object]) -> BaseException:
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError("it raises nothing")


def bug(function: Callable[[], object], parks: Any = BUGS) -> bool:
    return is_bug(error_of(function), check_parks("test", parks), 7, __name__.partition(".")[0])


def key() -> object:
    empty: dict[str, int] = {}
    return empty["b"]


def raises(error: BaseException) -> Callable[[], object]:
    def function() -> object:
        raise error

    return function


def again() -> object:
    try:
        return key()
    except KeyError:
        raise


def again_by_name() -> object:
    try:
        return key()
    except KeyError as error:
        raise error


def another() -> object:
    try:
        return key()
    except KeyError as error:
        raise LookupError("no such order") from error


def in_finally() -> object:
    try:
        return key()
    finally:
        os.getpid()


@contextlib.contextmanager
def block() -> Generator[None]:
    try:
        yield
    finally:
        os.getpid()


def in_block() -> object:
    with block():
        return key()


def asserts() -> None:
    assert os.environ is None


def deep() -> object:
    return deep()


def unknown() -> object:
    return no_such_name  # type: ignore[name-defined]  # noqa: F821  # pyright: ignore


def imports() -> None:
    import no_such_module_anywhere  # type: ignore[import-not-found]  # noqa: F401  # pyright: ignore


def wrong_call() -> object:
    return key(1)  # type: ignore[call-arg]  # pyright: ignore


@pytest.mark.parametrize(
    "function",
    [
        key,
        again,
        in_finally,
        in_block,
        asserts,
        deep,
        unknown,
        imports,
        wrong_call,
        lambda: [][1],
        lambda: 1 // 0,
        lambda: key.nothing,  # type: ignore[attr-defined]  # pyright: ignore
        lambda: os.environ["STREAMFLOW_NOT_SET"],  # raised by a `raise`, of a library
        lambda: Decimal(1) / 0,
        lambda: json.dumps(object()),
        lambda: sf.sleep("soon"),  # type: ignore[arg-type]  # pyright: ignore
        lambda: functools.reduce(max, []),  # pyright: ignore
    ],
)
def test_what_nobody_has_raised_is_a_bug(function: Callable[[], object]) -> None:
    assert bug(function)
    assert not bug(function, ())
    assert bug(function, (Exception,))


@pytest.mark.parametrize(
    "error",
    [KeyError("b"), TypeError("no"), Derived("b"), UsageError("no"), ZeroDivisionError(), DivisionByZero()],
)
def test_what_the_author_raises_is_no_bug(error: BaseException) -> None:
    assert not bug(raises(error))


def test_what_the_author_raises_again_or_from_it_is_no_bug() -> None:
    assert not bug(again_by_name)
    assert not bug(another)


def test_an_assertion_is_a_bug_however_it_is_raised() -> None:
    assert bug(raises(AssertionError("never")))


@pytest.mark.parametrize("error", [ValueError("x"), OSError(), RuntimeError(), NotImplementedError(), Invariant()])
def test_other_classes_fail_the_run_unless_they_are_named(error: Exception) -> None:
    assert not bug(raises(error))
    assert bug(raises(error), (*BUGS, type(error)))
    assert bug(raises(error), type(error).__name__)
    assert bug(raises(error), (Exception,))


def test_a_name_names_derived_classes_too() -> None:
    assert bug(raises(Derived("b")), "KeyError")
    assert not bug(raises(Derived("b")), "ValueError")


@pytest.mark.parametrize(
    "error",
    [
        sf.Fatal("final"),
        StepFailed("charge", 3, Failure("KeyError", "'b'")),
        ChildFailed("child", "flow", Failure("KeyError", "'b'")),
        sf.Cancelled("enough"),
        sf.HistoryTooLong("too long"),
    ],
)
def test_what_says_that_the_run_fails_parks_none(error: BaseException) -> None:
    assert not bug(raises(error), (BaseException,))


def test_a_group_is_a_bug_if_each_member_is() -> None:
    def group(*functions: Callable[[], object]) -> BaseException:
        made = BaseExceptionGroup("some", [error_of(function) for function in functions])
        made.__traceback__ = error_of(key).__traceback__  # as one that a task group raises
        return made

    def check(error: BaseException, parks: Any = BUGS) -> bool:
        return is_bug(error, check_parks("test", parks), 7, "tests")

    assert check(group(key, asserts))
    assert not check(group(key, raises(ValueError())))
    assert check(group(key, raises(ValueError())), (*BUGS, ValueError))
    assert not check(group(key, raises(KeyError())))
    nested = group(key)
    for _ in range(40):  # each twice: the tree has 2^40 leaves
        nested = BaseExceptionGroup("nested", [nested, nested])
    nested.__traceback__ = group(key).__traceback__
    assert not check(nested)  # somebody has made the inner ones, and never raised them
    assert check(nested, (*BUGS, KeyError))
    assert not bug(raises(BaseExceptionGroup("by hand", [KeyError("b")])))


def test_what_was_born_earlier_is_no_bug() -> None:
    error = error_of(key)
    note_born(error, 5)
    note_born(error, 7)  # it stays as old as it is
    assert not is_bug(error, BUGS, 7, "tests")
    assert is_bug(error, BUGS, 5, "tests")
    assert not is_bug(as_old_as(error_of(wrong_call), error), BUGS, 7, "tests")
    assert is_bug(as_old_as(error_of(wrong_call), error_of(key)), BUGS, 7, "tests")
    group = ExceptionGroup("some", [KeyError("b")])
    note_born(group, 5)
    assert not is_bug(group.exceptions[0], (KeyError,), 7, "tests")


def test_the_users_own_package_counts_wherever_it_is_installed() -> None:
    source = "def fails():\n    raise KeyError('b')\n"
    module = types.ModuleType("shop.orders")
    exec(compile(source, "/usr/lib/python3/site-packages/shop/orders.py", "exec"), module.__dict__)
    error = error_of(module.fails)
    assert not is_bug(error, BUGS, 0, "shop")
    assert is_bug(error, BUGS, 0, "other")


class Liar(KeyError):
    """Its class is another one on each look."""

    @property
    def __class__(self) -> Any:  # type: ignore[override]  # pyright: ignore
        raise SystemExit("looked at")

    def __getattribute__(self, name: str) -> Any:
        raise SystemExit(name)


class OwnDict(dict[str, Any]):
    def get(self, *args: Any) -> Any:
        raise SystemExit("asked")

    setdefault = get  # type: ignore[assignment]  # pyright: ignore


class Asks(type):
    def __subclasscheck__(cls, other: type) -> bool:
        raise RuntimeError("asked")


class Nobody(Exception, metaclass=Asks):
    pass


def test_hostile_exceptions_are_classified_without_their_code() -> None:
    def liar() -> None:
        raise Liar("b")

    error = error_of(liar)
    note_born(error, 1)
    assert not is_bug(error, BUGS, 1, "tests")
    other = error_of(key)
    other.__dict__ = OwnDict()
    note_born(other, 1)
    assert is_bug(other, BUGS, 1, "tests")
    assert not is_bug(error_of(key), (Nobody,), 1, "tests")


@pytest.mark.parametrize("value", [3, (3,), ("a.b",), (int,), KeyError("b"), None])
def test_parks_must_be_classes_or_names(value: Any) -> None:
    with pytest.raises(UsageError, match="workflow flow: parks must be exception classes or names of classes, as in"):
        sf.App().workflow(parks=value)(flow)
    with pytest.raises(UsageError, match="parks must be exception classes"):
        sf.App(parks=value)


async def flow() -> None: ...
