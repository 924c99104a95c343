"""Failures as they are recorded, and the error for a foreign await.

Owns: what is recorded of an exception (class name, message, the user's frames), and the advice for a workflow that
awaits something that isn't streamflow's. Must not: raise. Called by: the machines and the executor.
"""

from __future__ import annotations

import dis
import functools
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, cast

from streamflow.errors import Failure, ForeignAwait

MAX_TRACEBACK = 4096
MAX_MESSAGE = 4096

_PACKAGE = Path(__file__).parents[1]
_INTERNAL = tuple(f"{_PACKAGE / package}{os.sep}" for package in ("model", "workflow", "machine"))
"""Paths of frames that are left out of a traceback: they don't help the user."""
_STDLIB = str(Path(os.__file__).parent) + os.sep


def failure_of(error: BaseException, skip: tuple[str, ...] = ()) -> Failure:
    """Class name, message, and the traceback without streamflow's own frames; 4096 characters of each are kept.

    `skip`: more path prefixes whose frames are left out.
    """
    message = text_of(error) + _members(error)
    return Failure(
        type(error).__name__, _clip(_encodable(message), MAX_MESSAGE), _traceback(error, (*_INTERNAL, *skip))
    )


def text_of(error: BaseException) -> str:
    """`str(error)`, whatever a `__str__` of user code does: recording an exception must not raise another one."""
    try:
        return str(error)
    except Exception as broken:
        return f"<{type(broken).__name__} in __str__>"


MAX_KINDS = 32


def kinds_of(error: BaseException) -> tuple[str, ...]:
    """The names of its class and of the classes that it derives from: what `never` of a retry policy is compared
    with."""
    return tuple(_clip(_encodable(cls.__name__), 256) for cls in type(error).__mro__[:-1][:MAX_KINDS])


def _members(error: BaseException) -> str:
    """The exceptions in a group: the group's own text has only their number."""
    if not isinstance(error, BaseExceptionGroup):
        return ""
    group = cast("BaseExceptionGroup[BaseException]", error)
    return ": " + "; ".join(str(failure_of(member)) for member in group.exceptions)


def _traceback(error: BaseException, skip: tuple[str, ...]) -> str:
    # Reads source lines through linecache: the only access to files in this layer, and to files already imported.
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(skip)]
    text = "".join(traceback.StackSummary.from_list(frames).format())
    return _encodable(text[-MAX_TRACEBACK:])


def _clip(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def foreign_await(coroutine: Any, awaited: object) -> ForeignAwait:
    """The error to throw into a workflow that awaited `awaited`, naming the innermost line of the user's code."""
    chain = list(_chain(coroutine))
    own = [(code, line) for code, line in chain if not is_library(code.co_filename)] or chain[:1]
    where = f"{own[-1][0].co_filename}:{own[-1][1]}" if own else "an unknown line"
    return ForeignAwait(
        f"a workflow awaited {_describe(awaited)} at {where}. A workflow can only await streamflow's own awaitables: "
        + _advice([code for code, _ in chain if is_library(code.co_filename)], awaited)
    )


def outside_loop(error: BaseException) -> BaseException:
    """`error`, or the `ForeignAwait` that it means: what asyncio and anyio raise where there is no task or no loop."""
    if not isinstance(error, RuntimeError | TypeError | AttributeError) or isinstance(error, ForeignAwait):
        return error
    frames = [(frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    last = max((number for number, (code, _) in enumerate(frames) if not is_library(code.co_filename)), default=-1)
    called = [code for code, _ in frames[last + 1 :]]
    if not called or not called[0].co_filename.startswith(_event_libraries()):
        return error
    where = f"{frames[last][0].co_filename}:{frames[last][1]}" if last >= 0 else "an unknown line"
    return foreign_call(called, where).with_traceback(error.__traceback__)


def foreign_call(called: list[CodeType], where: str) -> ForeignAwait:
    """The error of a workflow that called asyncio or anyio at `where`. `called`: the library's functions, outermost
    first."""
    name = "asyncio or anyio"
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


def _describe(awaited: object) -> str:
    if awaited is None:
        return "something that yields to an event loop"
    return f"a {type(awaited).__module__}.{type(awaited).__qualname__}"
