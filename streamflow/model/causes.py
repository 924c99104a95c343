"""What a failure comes from: the innermost error, through children and steps; and which failures have the same cause.

Owns: `Cause`, finding it in a recorded failure, and the key by which failures are grouped. All of it follows from the
recorded text alone, so that each daemon finds the same, wherever its Python is installed.
Must not: raise, whatever a failure has in it.
Called by: the form of failures in the log (`logged.py`), the view `causes`, listings, `show`, the log line of a run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache

import msgspec

from streamflow.errors import Failure
from streamflow.events import StepFailed, StepRetrying, Transition

MAX_CHAIN = 32
"""Causes below each other that are followed. Recorded failures have at most 24 exceptions."""
MAX_MESSAGE = 500
"""Characters of a cause's message: as many as the log has of any failure."""
MAX_LINE = 200
"""Characters of a message's first line that count for the key, before values are taken out..."""
MAX_KEY = 120
"""...and afterwards."""
MIN_ID = 4
"""Characters from which the id of the run is taken out of its message: a shorter one may be a part of any word."""
MAX_NAME = 60
"""Characters of the file's and the function's name in `Cause.where`."""

Key = tuple[str, str, str, str]
"""Workflow of the innermost run, kind, message without its values, file and function: equal for the same cause."""

STUCK = "stuck"
"""The kind of a cause that has made no run fail, but keeps runs stuck."""


class Cause(msgspec.Struct, frozen=True):
    """What a run failed from: the innermost error, through children, steps and `raise … from`.

    `run_id` and `workflow` are those of the run in which it was raised: the failed run itself, or the child, or the
    child's child. `step` and `attempt` (the last one, from 1) say which step raised it: empty and 0 if the code of the
    workflow did. `kind` is the error's class (`stuck` for a run that can't continue), `message` its text, at most 500
    characters. `where` is the last line of the user's code in its traceback, as `pay.py:48 in charge`; empty if it has
    none.
    """

    run_id: str
    workflow: str
    kind: str
    message: str
    step: str = ""
    attempt: int = 0
    where: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}" if self.message else self.kind


class FailedAttempt(msgspec.Struct, frozen=True):
    """A failed attempt of a step, before its last one. `at` is when it ended (aware, in UTC), `ms` how long it ran."""

    attempt: int
    at: datetime
    ms: float
    failure: Failure


def cause_of(run_id: str, workflow: str, failure: Failure) -> Cause:
    """The cause of the failure of a run. A group of one error stands for that error; of several none is the cause."""
    step, attempt = "", 0
    node = failure
    for node in _chain(failure):
        fields = node.fields
        if node.kind == "ChildFailed" and node.cause is not None:
            child, name = fields.get("run_id"), fields.get("workflow")
            if isinstance(child, str) and isinstance(name, str):
                run_id, workflow, step, attempt = child, name, "", 0
        elif node.kind == "StepFailed" and node.cause is not None:
            name, number = fields.get("step"), fields.get("attempt")
            if isinstance(name, str) and isinstance(number, int):
                step, attempt = name, number
    return Cause(run_id, workflow, node.kind, node.message[:MAX_MESSAGE], step, attempt, where_of(node.traceback))


def root_of(failure: Failure) -> Failure:
    """The innermost failure, which `cause_of` is about: its traceback is that of the step, if a step raised it."""
    *_, node = _chain(failure)
    return node


def stuck_cause(run_id: str, workflow: str, reason: str) -> Cause:
    """What keeps a run stuck."""
    return Cause(run_id, workflow, STUCK, reason[:MAX_MESSAGE])


def attempts_before(transitions: Sequence[Transition], cause: Cause) -> list[FailedAttempt]:
    """The failed attempts of the cause's step before its last one, oldest first, in a history of the cause's run."""
    found: dict[int, list[FailedAttempt]] = {}
    last: list[FailedAttempt] = []
    for transition in transitions:
        for event in transition.events:
            if isinstance(event, StepRetrying) and event.name == cause.step:
                at = datetime.fromtimestamp(transition.at / 1000, UTC)
                attempt = FailedAttempt(event.attempt, at, event.ms, event.failure)
                found.setdefault(event.seq, []).append(attempt)
            elif isinstance(event, StepFailed) and event.name == cause.step:
                attempts = found.setdefault(event.seq, [])
                if event.attempt == cause.attempt:
                    last = [*attempts]
                at = datetime.fromtimestamp(transition.at / 1000, UTC)  # its last one, until the run was retried
                attempts.append(FailedAttempt(event.attempt, at, event.ms, event.failure))
    return last


def _chain(failure: Failure) -> list[Failure]:
    """The failure, what it was raised from, and so on to the innermost one, or to one that says what that says."""
    nodes = [failure]
    while len(nodes) < MAX_CHAIN and failure.kind != "PayloadInvalid":
        if failure.cause is not None:
            failure = failure.cause
        elif len(failure.members) == 1:
            failure = failure.members[0]
        else:
            break
        nodes.append(failure)
    return nodes


def condensed(failure: Failure, *notes: str) -> Failure:
    """As little of a failure as has the same cause, with notes: what the log has of one that is too large for it, and a
    retry of what is over."""
    cause = cause_of("", "", failure)
    message, frame = failure.message[:MAX_MESSAGE], _frame(cause.where)
    if len(_chain(failure)) == 1:
        return Failure(failure.kind, message, frame, notes)
    node = Failure(cause.kind, _first_line(cause.message), frame)
    if cause.step:
        node = Failure("StepFailed", "", fields={"step": cause.step, "attempt": cause.attempt}, cause=node)
    if cause.run_id or cause.workflow:
        node = Failure("ChildFailed", "", fields={"run_id": cause.run_id, "workflow": cause.workflow}, cause=node)
    return Failure(failure.kind, message, notes=notes, cause=node)


# --- where ------------------------------------------------------------------------------------------------------------

_FRAMES = re.compile(r'^  File "([^"\n]+)", line (\d+)(?:, in (\S+))?$', re.MULTILINE)
"""Frames of the exception itself: those of a group's members are indented."""
_LIBRARY = re.compile(r"[\\/](?:site-packages|dist-packages|python3\.?\d*)[\\/]|^<|\.zip[\\/]", re.IGNORECASE)
"""Paths of installed packages and of Python's own library, on whatever machine the error was raised."""
MAX_PATHS = 500
"""Paths and places that are remembered, with what was found out about them."""


_WHERE = re.compile(r"(.*):(\d+)(?: in (\S+))?$")


def where_of(traceback: str) -> str:
    """The last frame of the user's code, as `pay.py:48 in charge`; the last one of all if each is a library's."""
    frames = _FRAMES.findall(traceback)
    if not frames:
        return ""
    path, line, function = frames[-1]
    for frame in reversed(frames):
        if not _is_library(frame[0]):
            path, line, function = frame
            break
    name = path.replace("\\", "/").rpartition("/")[2][-MAX_NAME:]
    return f"{name}:{line[:9]}{f' in {function[:MAX_NAME]}' if function else ''}"


@lru_cache(MAX_PATHS)
def _is_library(path: str) -> bool:
    return _LIBRARY.search(path) is not None


@lru_cache(MAX_PATHS)
def _without_line(where: str) -> str:
    match = _WHERE.match(where)
    return "" if match is None else f"{match[1]} in {match[3]}" if match[3] else match[1]


def _frame(where: str) -> str:
    """A traceback of which `where_of` gives `where` again."""
    match = _WHERE.match(where)
    if match is None:
        return ""
    name, line, function = match.groups()
    return f'  File "{name}", line {line}{f", in {function}" if function else ""}\n'


# --- the same cause ---------------------------------------------------------------------------------------------------

_QUOTED = re.compile(r"""(?<!\w)(?:'[^'\n]*'|"[^"\n]*")(?!\w)""")
_DIGIT = re.compile("[0-9]")
_VALUES = re.compile(
    r"0x[0-9a-fA-F]+"  # addresses
    r"|[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
    r"|\b(?=[a-fA-F]*[0-9])[0-9a-fA-F]{8,}\b"  # hashes and tokens
    r"|\b(?=[a-zA-Z]*[0-9])[0-9a-zA-Z]{16,}\b"
    r"|[0-9]+(?:[.,:-][0-9]+)*"  # numbers, versions, addresses, dates
)


def key_of(cause: Cause) -> Key:
    """Equal for failures of the same cause. Of the place only file and function count: lines move with each deploy."""
    message = _first_line(cause.message)
    if len(cause.run_id) >= MIN_ID:
        message = message.replace(cause.run_id, "…")
    return cause.workflow, cause.kind, plain_message(message), _without_line(cause.where)


def plain_message(text: str) -> str:
    """The first line of a message, quoted values as `'…'`, and numbers, hashes, addresses and ids as `#`."""
    line = _QUOTED.sub("'…'", _first_line(text))
    return (_VALUES.sub("#", line) if _DIGIT.search(line) else line)[:MAX_KEY]


def _first_line(text: str) -> str:
    return text.partition("\n")[0][:MAX_LINE]
