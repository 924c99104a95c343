"""Failures as they are recorded, and the error for a foreign await.

Owns: what is recorded of an exception (its name, text, notes, fields, causes, members, and the user's frames), what it
says about further attempts, and the advice for a workflow that awaits something that isn't streamflow's.
Must not: raise. Called by: the machines and the executor.
"""

from __future__ import annotations

import contextlib
import dis
import enum
import functools
import os
import sys
import textwrap
import traceback
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from types import CodeType, FrameType, MemberDescriptorType
from typing import Any, cast
from uuid import UUID

import msgspec

from streamflow.errors import (
    MAX_MESSAGE,
    MAX_RETRY_AFTER,
    MAX_TRACEBACK,
    Failure,
    Fatal,
    ForeignAwait,
    RetryLater,
    StreamflowError,
    UsageError,
)
from streamflow.model import codec
from streamflow.model.durations import seconds_of
from streamflow.text import is_a, recordable, text_of, type_name

MAX_BYTES = 16 * 1024
"""Bytes of all texts of one recorded failure, with its causes and members. A history has one for each attempt."""
MAX_NODES = 24
"""Exceptions of a recorded failure: itself, its causes, the members of groups, and theirs."""
MAX_MEMBERS = 10
MAX_DEPTH = 8
MAX_NOTES = 8
MAX_FIELDS = 16
MAX_FIELD = 256
"""Bytes of a text in a field."""
MAX_DATA = 4096
"""Bytes of the `data` of a `Fatal` or `RetryLater`."""
MAX_FRAMES = 100

_PACKAGE = Path(__file__).parents[1]
_INTERNAL = tuple(f"{_PACKAGE / package}{os.sep}" for package in ("model", "workflow", "machine"))
"""Paths of frames that are left out of a traceback: they don't help the user."""
_STDLIB = str(Path(os.__file__).parent) + os.sep


def failure_of(error: BaseException, skip: tuple[str, ...] = ()) -> Failure:
    """What is recorded of an exception: class name, text, notes, fields, cause, context and members, and the traceback
    without streamflow's own frames. Never raises, whatever the exception's own code does.

    `skip`: more path prefixes whose frames are left out.
    """
    try:
        return _Recorder((*_INTERNAL, *skip)).root(error)
    except BaseException as broken:  # the last resort: for example no stack left
        return Failure(type_name(error), f"<{type_name(broken)} while it was recorded>")


MAX_KINDS = 32
_NAME_OF = type.__dict__["__name__"].__get__


def kinds_of(error: BaseException) -> tuple[str, ...]:
    """The names of its class and of the classes that it derives from: what `never` of a retry policy is compared
    with."""
    bases = type.__dict__["__mro__"].__get__(type(error))
    return tuple(recordable(_NAME_OF(cls), 256) for cls in bases[:-1][:MAX_KINDS])


def is_permanent(error: BaseException) -> bool:
    """Whether no attempt of a step can do better: a `Fatal`, a group with one in it, or code that is used wrongly."""
    return is_a(error, UsageError) or any(is_a(one, Fatal) for one in _with_members(error))


def _with_members(error: BaseException) -> list[BaseException]:
    """The error, the members if it is a group, and theirs; not more than are recorded."""
    found = [error]
    for one in found:
        found += members_of(one)[: MAX_NODES - len(found)]
    return found


def retry_after_of(failure: Failure) -> float | None:
    """Seconds after which the error of a step, as it was recorded, wants the next attempt to begin; of a group the
    latest that one of its members wants. None if it doesn't say."""
    latest = 0.0
    found = [failure]
    for one in found:
        found += one.members[: MAX_NODES - len(found)]
        value = one.fields.get("retry_after")
        if isinstance(value, str) and value.startswith("P"):  # as a timedelta is recorded
            with contextlib.suppress(Exception):
                value = msgspec.convert(value, timedelta)
        seconds = None if isinstance(value, str) else seconds_of(value)
        if seconds is not None and latest < seconds <= MAX_RETRY_AFTER:
            latest = seconds
    return latest or None


_CAUSE = "\nThe above exception was the direct cause of the following exception:\n\n"
_CONTEXT = "\nDuring handling of the above exception, another exception occurred:\n\n"


class _Recorder:
    """Records one exception with everything around it, within `MAX_BYTES` and `MAX_NODES`.

    The exception itself takes its part of the budget first, then its cause or context, then the members of a group.
    """

    def __init__(self, skip: tuple[str, ...]) -> None:
        self._skip = skip
        self._bytes = MAX_BYTES
        self._nodes = MAX_NODES
        self._seen: set[int] = set()
        self._whole: dict[int, Failure] = {}
        """Copies whose traceback has those of their causes and members already."""

    def root(self, error: BaseException) -> Failure:
        failure = self._record(error, 0, MAX_MESSAGE, MAX_OWN_FRAMES)
        if failure.cause is None and failure.context is None and not failure.members and not failure.notes:
            return failure
        text = "".join(self._printed(failure))
        while len(text.encode()) > MAX_TRACEBACK:  # the end has the exception itself
            text = "…" + text[len(text) // 8 + 2 :]
        return msgspec.structs.replace(failure, traceback=text)

    def _record(self, error: BaseException, depth: int, message: int, frames: int) -> Failure:
        self._nodes -= 1
        self._seen.add(id(error))
        kind = self._take(type_name(error), 256)
        text = self._take(_message(error), message)
        trace = self._take_end(_frames(error, self._skip), frames)
        data, lost = self._data(error)
        notes = (*lost, *self._notes(error))
        fields = self._fields(error) | data
        cause, context = None, None
        below = (depth + 1, message // 2, frames // 2)
        explicit, implicit = _CAUSE_OF(error), _CONTEXT_OF(error)
        recorded = _recorded_in(error)
        if explicit is not None:
            cause = self._next(explicit, *below)
        elif recorded is not None:
            cause = self._copy(recorded, *below)
        elif implicit is not None and not _SUPPRESSED_IN(error):
            context = self._next(implicit, *below)
        members = [self._next(member, *below) for member in members_of(error)[:MAX_MEMBERS]]
        kept = tuple(member for member in members if member is not None)
        return Failure(kind, text, trace, notes, fields, cause, context, kept)

    def _next(self, error: BaseException, depth: int, message: int, frames: int) -> Failure | None:
        if id(error) in self._seen or depth > MAX_DEPTH or self._nodes <= 0 or self._bytes <= 0:
            return None
        return self._record(error, depth, max(message, 256), max(frames, 512))

    def _copy(self, failure: Failure, depth: int, message: int, frames: int) -> Failure | None:
        """A failure that was recorded before, with what fits of it: a step's is the cause of its `StepFailed`."""
        if depth > MAX_DEPTH or self._nodes <= 0 or self._bytes <= 0:
            return None
        self._nodes -= 1
        below = (depth + 1, message // 2, frames // 2)
        kind = self._take(failure.kind, 256)
        text = self._take(failure.message, max(message, 256))
        trace = self._take_end(failure.traceback, max(frames, 512))
        notes = tuple(self._take(note, MAX_FIELD) for note in failure.notes)
        fields = failure.fields
        self._bytes -= _size(fields)
        copies = [self._copy(other, *below) for other in (failure.cause, failure.context) if other is not None]
        members = (self._copy(member, *below) for member in failure.members)
        kept = tuple(member for member in members if member is not None)
        cause, context = (copies[0] if copies else None), None
        if failure.cause is None:
            cause, context = None, cause
        copy = Failure(kind, text, trace, notes, fields, cause, context, kept)
        if cause is not None or context is not None or kept or notes:
            self._whole[id(copy)] = copy
        return copy

    def _printed(self, failure: Failure, indent: str = "") -> Iterator[str]:
        """The lines of a traceback as Python prints it: causes first, then the exception, then a group's members."""
        if id(failure) not in self._whole:
            if failure.cause is not None:
                yield from self._printed(failure.cause, indent)
                yield textwrap.indent(_CAUSE, indent)
            if failure.context is not None:
                yield from self._printed(failure.context, indent)
                yield textwrap.indent(_CONTEXT, indent)
            lines = [failure.traceback.rstrip("\n")] if failure.traceback else []
            yield textwrap.indent("\n".join([*lines, str(failure), *failure.notes]) + "\n", indent)
            for number, member in enumerate(failure.members, 1):
                yield f"{indent}  +---------------- {number} ----------------\n"
                yield from self._printed(member, f"{indent}  | ")
        else:
            yield textwrap.indent(failure.traceback.rstrip("\n") + "\n", indent)

    # --- the parts ----------------------------------------------------------------------------------------------------

    def _take(self, text: object, limit: int) -> str:
        taken = recordable(text, max(min(limit, self._bytes), 0))
        self._bytes -= len(taken) if taken.isascii() else len(taken.encode())
        return taken

    def _take_end(self, text: str, limit: int) -> str:
        limit = max(min(limit, self._bytes), 0)
        data = text[-limit:].encode("utf-8", "backslashreplace")[-limit:] if limit else b""
        self._bytes -= len(data)
        return data.decode("utf-8", "ignore")

    def _notes(self, error: BaseException) -> tuple[str, ...]:
        try:
            given: object = own_attributes(error).get("__notes__")
            notes = list(cast("list[object]", given)) if type(given) in (list, tuple) else []
        except BaseException:
            notes = []
        return tuple(self._take(note, MAX_FIELD * 2) for note in notes[:MAX_NOTES])

    def _data(self, error: BaseException) -> tuple[dict[str, Any], tuple[str, ...]]:
        """The `data` of a `Fatal` or `RetryLater` as the field of that name, or the note that says why it isn't kept.
        It is kept whole or not at all: half of it would be decoded as something else."""
        if not is_a(error, (Fatal, RetryLater)):
            return {}, ()
        try:
            value: Any = own_attributes(error).get("data")
            if value is None:
                return {}, ()
            encoded = codec.encode(value, f"data of {type_name(error)}")
            limit = min(MAX_DATA, self._bytes)
            if len(encoded) > limit:
                raise ValueError(f"it has {len(encoded):,} bytes, and there is room for {limit:,}")
            plain = msgspec.msgpack.decode(encoded)
            msgspec.to_builtins(plain, str_keys=True)  # or `export` couldn't show it
            self._bytes -= len(encoded)
            return {"data": plain}, ()
        except BaseException as broken:  # types are user code
            return {}, (self._take(f"its data is not kept: {text_of(broken)}", MAX_FIELD * 2),)

    def _fields(self, error: BaseException) -> dict[str, Any]:
        """The exception's attributes that are plain data. No code of the user's runs: properties are not read."""
        fields: dict[str, Any] = {}
        try:
            for name, value in _attributes(error):
                if len(fields) == MAX_FIELDS or self._bytes <= 0:
                    break
                plain = _NOTHING if name.startswith("_") else _plain(value)
                if plain is not _NOTHING:
                    size = _size(plain)
                    if size <= self._bytes:
                        fields[recordable(name, 64)] = plain
                        self._bytes -= size
        except BaseException:
            return fields
        return fields


MAX_OWN_FRAMES = 4096
_NOTHING = object()
_TEXTUAL = (datetime, date, time, timedelta, Decimal, UUID)


def _message(error: BaseException) -> str:
    """The exception's text; of a group also the names and texts of its members, as its own has only their number."""
    text = text_of(error)
    members = members_of(error)
    if not members:
        return text
    shown = [f"{type_name(member)}: {recordable(text_of(member), 512)}" for member in members[:MAX_MEMBERS]]
    more = [f"and {len(members) - MAX_MEMBERS:,} more"] if len(members) > MAX_MEMBERS else []
    return f"{text}: {'; '.join([*shown, *more])}"


# How to read an exception without running its code: `isinstance`, attributes and properties may be its own.

_CAUSE_OF = BaseException.__dict__["__cause__"].__get__
_CONTEXT_OF = BaseException.__dict__["__context__"].__get__
_SUPPRESSED_IN = BaseException.__dict__["__suppress_context__"].__get__
traceback_of = BaseException.__dict__["__traceback__"].__get__
own_attributes = BaseException.__dict__["__dict__"].__get__
_MEMBERS_IN = BaseExceptionGroup.__dict__["exceptions"].__get__


def members_of(error: BaseException) -> tuple[BaseException, ...]:
    """Of a group; of any other exception none."""
    return _MEMBERS_IN(error) if issubclass(type(error), BaseExceptionGroup) else ()


def _recorded_in(error: BaseException) -> Failure | None:
    """The failure that an error of streamflow's stands for: `StepFailed`, `ChildFailed`, `RunFailed`, `AskRefused`."""
    failure = own_attributes(error).get("failure")
    return failure if issubclass(type(error), StreamflowError) and type(failure) is Failure else None


def _attributes(error: BaseException) -> Iterator[tuple[str, Any]]:
    """The instance's own attributes, then the members of classes with slots and of the built-in ones (`errno`).
    First `retry_after`, by which the run decides, even if a class has it for all its instances."""
    own = dict(own_attributes(error))
    if "retry_after" in own:
        yield "retry_after", own.pop("retry_after")
    elif (value := _retry_after_of_class(error)) is not None:
        yield "retry_after", value
    if is_a(error, (Fatal, RetryLater)):
        own.pop("data", None)  # `_data` has it
    yield from own.items()
    text = text_of(error)
    for kind in type.__dict__["__mro__"].__get__(type(error)):
        if kind in (BaseException, BaseExceptionGroup):
            return
        for name, member in list(kind.__dict__.items()):
            if isinstance(member, MemberDescriptorType):
                try:
                    value = member.__get__(error)
                except AttributeError:  # a slot that was never set
                    continue
                if value is not None and not (type(value) is str and value in text):  # OSError's text has its parts
                    yield name, value


def _retry_after_of_class(error: BaseException) -> float | timedelta | None:
    for kind in type.__dict__["__mro__"].__get__(type(error)):
        value = kind.__dict__.get("retry_after")
        if type(value) in (int, float, timedelta):
            return value
    return None


def _plain(value: Any, depth: int = 0) -> Any:
    """`value` if it is plain data, a copy within the limits; else `_NOTHING`."""
    kind = cast("type[Any]", type(value))
    if value is None or kind is bool or kind is float:
        return value
    if kind is int:
        return value if -(2**63) <= value < 2**63 else _NOTHING
    if kind is str:
        return recordable(value, MAX_FIELD)
    if kind is bytes:
        return value[:MAX_FIELD]
    if kind in _TEXTUAL:
        return msgspec.to_builtins(value)
    if depth < 3 and issubclass(kind, enum.Enum):
        return _plain(object.__getattribute__(value, "_value_"), depth + 1)
    if depth < 3 and kind in (list, tuple):
        items = [_plain(item, depth + 1) for item in list(value)[:MAX_FIELDS]]
        return _NOTHING if any(item is _NOTHING for item in items) else items
    if depth < 3 and kind is dict:
        pairs = [(name, _plain(item, depth + 1)) for name, item in list(value.items())[:MAX_FIELDS]]
        if any(type(name) is not str or item is _NOTHING for name, item in pairs):
            return _NOTHING
        return {recordable(name, 64): item for name, item in pairs}
    return _NOTHING


def _size(value: object) -> int:
    return len(msgspec.msgpack.encode(value))


def _frames(error: BaseException, skip: tuple[str, ...]) -> str:
    # Reads source lines through linecache: the only access to files in this layer, and to files already imported.
    try:
        trace = traceback.extract_tb(traceback_of(error), limit=-MAX_FRAMES)
        frames = [frame for frame in trace if not frame.filename.startswith(skip)]
        return "".join(traceback.StackSummary.from_list(frames).format())
    except BaseException:  # a module's loader may raise while the source is read
        return ""


def foreign_await(coroutine: Any, awaited: object) -> ForeignAwait:
    """The error to throw into a workflow that awaited `awaited`, naming the innermost line of the user's code."""
    chain = list(_chain(coroutine))
    own = [(code, line) for code, line in chain if not is_library(code.co_filename)] or chain[:1]
    where = f"{own[-1][0].co_filename}:{own[-1][1]}" if own else "an unknown line"
    return ForeignAwait(
        f"a workflow awaited {_describe(awaited)} at {where}. A workflow can only await streamflow's own awaitables: "
        + _advice([code for code, _ in chain if is_library(code.co_filename)], awaited)
    )


def without_outermost_frame(error: BaseException) -> BaseException:
    """`error`, whose traceback no longer refers to the function that caught it."""
    trace = traceback_of(error)
    return error if trace is None else BaseException.with_traceback(error, trace.tb_next)


def outside_loop(error: BaseException) -> BaseException:
    """`error`, or the `ForeignAwait` that it means: what asyncio and anyio raise where there is no task or no loop."""
    module: object = type.__getattribute__(type(error), "__module__")
    is_of_library = type(module) is str and module.partition(".")[0] in ("anyio", "sniffio")
    if not is_a(error, (RuntimeError, TypeError, AttributeError)) and not is_of_library:
        return error
    if is_a(error, ForeignAwait):
        return error
    frames = [(frame.f_code, line) for frame, line in traceback.walk_tb(traceback_of(error))]
    last = max((number for number, (code, _) in enumerate(frames) if not is_library(code.co_filename)), default=-1)
    called = [code for code, _ in frames[last + 1 :] if code.co_filename != contextlib.__file__]
    if not called or not called[0].co_filename.startswith(_event_libraries()):
        return error
    where = f"{frames[last][0].co_filename}:{frames[last][1]}" if last >= 0 else "an unknown line"
    return foreign_call(called, where).with_traceback(traceback_of(error))


def foreign_call(called: list[CodeType], where: str) -> ForeignAwait:
    """The error of a workflow that called asyncio or anyio at `where`. `called`: the library's functions, outermost
    first."""
    name = "asyncio or anyio"
    called = [code for code in called if code.co_filename != contextlib.__file__] or called
    if called:
        library = "anyio" if f"{os.sep}anyio{os.sep}" in called[0].co_filename else "asyncio"
        name = f"{library}.{called[0].co_qualname.removesuffix('.__aenter__').removesuffix('.__enter__')}"
    return ForeignAwait(
        f"a workflow called {name} at {where}. A workflow has no event loop and no task, and can only await "
        f"streamflow's own awaitables: {_advice(called, None)}"
    )


MAX_CODES = 100
"""Functions that `line_of_call` looks through."""


def line_of_call(names: tuple[str, ...], frame: FrameType | None, coroutine: Any) -> str:
    """Where user code called one of `names` and dropped what that gave, as `file:line`.

    `frame`: the innermost one when it was dropped. If that is the user's, and its line names the call, it is that line.
    Else a variable held it, perhaps of a function that has ended: then it is the lines that name it in the function
    that `frame` or `coroutine` runs, and in those of its module that it calls.
    """
    code, scope = getattr(coroutine, "cr_code", None), None
    if frame is not None and not is_library(frame.f_code.co_filename):
        code, scope = frame.f_code, frame.f_globals
        if frame.f_lineno in _lines(code, names):
            return f"{code.co_filename}:{frame.f_lineno}"
    if code is None:
        return "an unknown line"
    if scope is None:
        modules = (module for module in sys.modules.values() if getattr(module, "__file__", "") == code.co_filename)
        scope = vars(next(modules, sys))
    found = list(dict.fromkeys(f"{c.co_filename}:{line}" for c in _called(code, scope) for line in _lines(c, names)))
    return " or ".join(found[:3]) or f"{code.co_filename}:{code.co_firstlineno}"


def line_of_function(function: Any) -> str:
    """Where a function is defined, as `file:line`."""
    code = getattr(function, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if isinstance(code, CodeType) else "an unknown line"


def line_of_coroutine(coroutine: Any) -> str:
    """The innermost line of the user's at which a coroutine is, or waits, as `file:line`; empty if it has ended."""
    line = ""
    while coroutine is not None:
        frame: FrameType | None = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        if frame is not None and not is_library(frame.f_code.co_filename):
            line = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)
    return line


def _called(code: CodeType, scope: dict[str, Any]) -> list[CodeType]:
    """`code`, what is defined in it, and the plain functions of its module that it names, and so on."""
    codes = [code]
    for current in codes:
        inner = [const for const in current.co_consts if isinstance(const, CodeType)]
        functions = (getattr(scope.get(name), "__code__", None) for name in current.co_names)
        inner += [function for function in functions if isinstance(function, CodeType)]
        codes += [other for other in dict.fromkeys(inner) if other not in codes][: MAX_CODES - len(codes)]
    return codes


def _lines(code: CodeType, names: tuple[str, ...]) -> Iterator[int]:
    for instruction in dis.get_instructions(code):
        position = instruction.positions
        if position is not None and position.lineno is not None and instruction.argval in names:
            yield position.lineno


@functools.cache
def _event_libraries() -> tuple[str, ...]:
    names = ("asyncio", "anyio", "sniffio")
    files = [getattr(sys.modules.get(name), "__file__", None) for name in names]
    return tuple(str(Path(file).parent) + os.sep for file in files if file)


_INSTEAD = {
    "sf.sleep(…)": {"sleep", "__sleep0", "sleep_until", "sleep_forever", "call_later", "call_at"},
    "`with sf.timeout(…):`": {"timeout", "timeout_at", "wait_for", "move_on_after", "fail_after", "move_on_at"},
    "sf.gather(…), sf.race(…) or sf.map(…)": {"gather", "wait", "as_completed"},
    "`async with sf.task_group() as group:`": {
        "TaskGroup.__aenter__",
        "create_task_group",
        "create_task",
        "ensure_future",
    },
    "a step: a plain function that is decorated with @app.step runs in a thread": {"to_thread", "run_sync"},
    "sf.now()": {"time"},
}
"""What to write in place of a function of asyncio or anyio; for all others it is a step."""


def _advice(called: list[CodeType], awaited: object) -> str:
    if type(awaited).__name__ == "_GatheringFuture":
        return "use sf.gather(…) instead of asyncio.gather."
    names = {code.co_qualname for code in called}
    for instead, functions in _INSTEAD.items():
        if names & functions:
            return f"use {instead} instead."
    return "move it into a step."


def _chain(coroutine: Any) -> Iterator[tuple[CodeType, int]]:
    """Code and line of each suspended frame, from the workflow's to the innermost."""
    current = coroutine
    while current is not None:
        for kind in ("cr", "gi", "ag"):
            frame = getattr(current, f"{kind}_frame", None)
            if frame is not None:
                yield frame.f_code, frame.f_lineno
                current = getattr(current, f"{kind}_await" if kind != "gi" else "gi_yieldfrom", None)
                break
        else:
            return


def is_library(filename: str) -> bool:
    """Whether a frame of this file says nothing to the author of a workflow."""
    return (
        filename.startswith((*_INTERNAL, _STDLIB, "<frozen", sys.prefix + os.sep + "lib"))
        or f"{os.sep}site-packages{os.sep}" in filename
        or f"{os.sep}dist-packages{os.sep}" in filename
    )


def is_streamflow(filename: str) -> bool:
    """Whether it is a file of streamflow's own."""
    return filename.startswith(f"{_PACKAGE}{os.sep}")


def _describe(awaited: object) -> str:
    if awaited is None:
        return "something that yields to an event loop"
    return f"a {type(awaited).__module__}.{type(awaited).__qualname__}"
