"""Which exceptions of a run's code are bugs, that park the run, and which its author has raised to fail it.

Owns: `BUGS`, the rule, and the mark on an exception that says when it was born.
Must not: raise, whatever an exception is; run code of the exception's.
Called by: the machines, when code has ended with an exception, and when it awaits while it handles one; `app.py`, which
checks what users give.

Of an exception in `BUGS` that a `raise` statement of the run's own code is in the way of, the author has wanted it.
What the interpreter or a library has raised, nobody has.
"""

from __future__ import annotations

import dis
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Literal, cast

from streamflow.errors import CancelledError, Fatal, StreamflowError, UsageError
from streamflow.model.failures import is_library, is_streamflow, kinds_of, members_of, own_attributes, traceback_of
from streamflow.text import is_a

BUGS: tuple[type[BaseException], ...] = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    RecursionError,
    TypeError,
    UsageError,
)
"""The classes of exceptions that park a run unless it says something else: what a mistake in code raises. A `raise`
statement of the run's own code with one of them fails it all the same, but for `AssertionError`."""

# Of dict itself: a user may have given an exception a dict of their own class.
_set_default = dict[str, int].setdefault
_get = dict[str, int].get

Park = type[BaseException] | str
_MARK = "_streamflow_born"
_FAILING = (Fatal, StreamflowError, CancelledError)
"""What says in itself that the run fails: it is `Fatal`, or an outcome of what the code has waited for."""


def check_parks(what: str, value: object) -> tuple[Park, ...]:
    """`value` as a tuple. Raises `UsageError` for what can't be `parks`."""
    members = (value,) if isinstance(value, str | type) or not isinstance(value, Iterable) else tuple(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    for member in cast("tuple[object, ...]", members):
        is_class = isinstance(member, type) and issubclass(member, BaseException)
        if not is_class and not (isinstance(member, str) and member.isidentifier()):
            raise UsageError(
                f"{what}: parks must be exception classes or names of classes, as in parks=(*sf.BUGS, OrderInvalid), "
                f"got {member!r}"
            )
    return cast("tuple[Park, ...]", members)


def note_born(error: BaseException, before: int) -> None:
    """This exception exists since the transition that `before` events are before, or longer. Of a group, so do its
    members: `except*` makes new groups of them."""
    for one in _with_members(error):
        _set_default(own_attributes(one), _MARK, before)


def as_old_as(error: BaseException, other: BaseException) -> BaseException:
    """`error`, which stands for the other one."""
    born = _get(own_attributes(other), _MARK)
    if born is not None:
        note_born(error, born)
    return error


def is_bug(error: BaseException, parks: tuple[Park, ...], before: int, package: str) -> bool:
    """Whether the exception with which a run's code has ended parks the run.

    `before`: number of events before this transition; an exception that was born in an earlier one has been handled,
    and what was decided meanwhile is in the history. `package`: the first part of the name of the workflow's module,
    which is the user's own code wherever it is installed. A group is one if each member is.
    """
    if not parks:
        return False
    try:
        return _is_bug(error, parks, before, package)
    except Exception:  # a class among `parks` decides by code of its own what its subclasses are
        return False


def _is_bug(error: BaseException, parks: tuple[Park, ...], before: int, package: str) -> bool:
    is_default = was_raised = False
    for one in _with_members(error):
        if _get(own_attributes(one), _MARK, before) != before:
            return False
        if members_of(one):
            was_raised = was_raised or _was_raised(one, package)
            continue
        match _match(one, parks):
            case None:
                return False
            case "default":
                is_default = True
                was_raised = was_raised or _was_raised(one, package)
            case "named":
                pass
    return not (is_default and was_raised)


def _match(error: BaseException, parks: tuple[Park, ...]) -> Literal["default", "named"] | None:
    """Whether one of `parks` names the class, and whether it is one that only `BUGS` has."""
    if is_a(error, _FAILING) and not is_a(error, UsageError):
        return None
    kinds = kinds_of(error)
    found: Literal["default"] | None = None
    for park in parks:
        if park in kinds if isinstance(park, str) else issubclass(type(error), park):
            if park not in BUGS or park is AssertionError:
                return "named"
            found = "default"
    return found


def _with_members(error: BaseException) -> Iterator[BaseException]:
    """The exception, and if it is a group its members, and theirs: each once."""
    seen: set[int] = set()
    left = [error]
    while left:
        one = left.pop()
        if id(one) not in seen:
            seen.add(id(one))
            yield one
            left += members_of(one)


def _was_raised(error: BaseException, package: str) -> bool:
    """Whether a `raise` statement of the user's code has raised it, first or again. A `raise` without an exception
    leaves no trace."""
    trace = traceback_of(error)
    if trace is None:  # made and never raised: a member of a group that somebody has made
        return True
    while trace is not None:
        code = trace.tb_frame.f_code
        opcode = code.co_code[trace.tb_lasti] if trace.tb_lasti >= 0 else 0
        if dis.opname[opcode] == "RAISE_VARARGS" and _is_own(trace.tb_frame, package):
            return True
        trace = trace.tb_next
    return False


def _is_own(frame: FrameType, package: str) -> bool:
    file = frame.f_code.co_filename
    if is_streamflow(file):
        return False
    if not is_library(file):
        return True
    module = frame.f_globals.get("__name__")
    return bool(package) and type(module) is str and module.partition(".")[0] == package
