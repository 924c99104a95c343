"""Failures as they are recorded, and the error for a foreign await.

Owns: what is recorded of an exception (class name, message, the user's frames), and the advice for a workflow that
awaits something that isn't streamflow's. Must not: raise. Called by: the machines and the executor.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any, cast

from streamflow.errors import Failure, ForeignAwait

MAX_TRACEBACK = 4096
MAX_MESSAGE = 4096

_PACKAGE = Path(__file__).parents[1]
_INTERNAL = tuple(f"{_PACKAGE / package}{os.sep}" for package in ("model", "workflow", "machine"))
"""Paths of frames that are left out of a traceback: they don't help the user."""
_STDLIB = str(Path(os.__file__).parent) + os.sep
_NO_LOOP = ("no running event loop", "no current event loop")


def failure_of(error: BaseException, skip: tuple[str, ...] = ()) -> Failure:
    """Class name, message, and the traceback without streamflow's own frames; 4096 characters of each are kept.

    `skip`: more path prefixes whose frames are left out.
    """
    try:
        message = str(error)
    except Exception as broken:  # an error in a __str__ must not stop the run's owner
        message = f"<{type(broken).__name__} in __str__>"
    message += _members(error)
    return Failure(
        type(error).__name__, _clip(_encodable(message), MAX_MESSAGE), _traceback(error, (*_INTERNAL, *skip))
    )


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
    own = [(code, line) for code, line in chain if not _is_library(code.co_filename)] or chain[:1]
    where = f"{own[-1][0].co_filename}:{own[-1][1]}" if own else "an unknown line"
    return ForeignAwait(
        f"a workflow awaited {_describe(awaited)} at {where}. A workflow can only await streamflow's own awaitables: "
        + _advice([code for code, _ in chain], awaited)
    )


def outside_loop(error: BaseException) -> BaseException:
    """`error`, or the `ForeignAwait` that explains it: calls of asyncio fail at once, because no event loop runs."""
    if not (isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_LOOP)):
        return error
    frames = [(frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    own = [(code, line) for code, line in frames if not _is_library(code.co_filename)]
    where = f"{own[-1][0].co_filename}:{own[-1][1]}" if own else "an unknown line"
    foreign = ForeignAwait(
        f"a workflow called asyncio or anyio at {where}. A workflow can only await streamflow's own awaitables: "
        + _advice([code for code, _ in frames], None)
    )
    return foreign.with_traceback(error.__traceback__)


def _advice(codes: list[CodeType], awaited: object) -> str:
    names = {code.co_name for code in codes if _is_library(code.co_filename)}
    if names & {"sleep", "__sleep0", "sleep_until", "sleep_forever"}:
        return "use sf.sleep(…) instead of asyncio.sleep or anyio.sleep."
    if type(awaited).__name__ == "_GatheringFuture":
        return "use sf.gather(…) instead of asyncio.gather."
    if "wait_for" in names:
        return "use `with sf.timeout(…):` instead of asyncio.wait_for."
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


def _is_library(filename: str) -> bool:
    return (
        filename.startswith((*_INTERNAL, _STDLIB, "<frozen", sys.prefix + os.sep + "lib"))
        or f"{os.sep}site-packages{os.sep}" in filename
        or f"{os.sep}dist-packages{os.sep}" in filename
    )


def _describe(awaited: object) -> str:
    if awaited is None:
        return "something that yields to an event loop"
    return f"a {type(awaited).__module__}.{type(awaited).__qualname__}"
