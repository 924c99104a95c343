"""Sources that a process reads from by itself, in contrast to webhooks, which are delivered to it.

Owns: what they have in common, and that one that fails is begun again. Must not: know a kind. Called by: `serving.py`;
each kind is a subclass.
"""

from __future__ import annotations

import abc
import importlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar, cast

import anyio

from streamflow.errors import StoreError, StreamflowError, UsageError
from streamflow.text import recordable
from streamflow.triggers.quarantine import MOST_BYTES
from streamflow.triggers.receiver import Hung, Receiver
from streamflow.workflow.trigger import Source

T = TypeVar("T")

_log = logging.getLogger("streamflow.triggers")

MAX_BODY = 1024 * 1024

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
"""Seconds before a source that has failed is begun again; the pause doubles with each failure."""
STORE_PAUSE = 1.0
"""Seconds before deliveries that could not be stored are tried again."""


class SourceFailed(StreamflowError):
    """A source can't be read from now: it is begun again after a pause."""


class PulledSource(Source):
    """A source with a loop of its own."""

    @abc.abstractmethod
    async def serve(self, receiver: Receiver) -> None:
        """Receive until cancelled; acknowledge what `receiver.receive` has returned for. Raises whatever fails: it is
        begun again then, and must find what it had not acknowledged. Empties `receiver.problem` when it can read."""


async def keep_serving(source: PulledSource, receiver: Receiver) -> None:
    """Until cancelled. What fails is said in the log, once for a series."""
    pause = FIRST_PAUSE
    name = receiver.trigger.name
    failing = False
    while True:
        began = time.monotonic()
        try:
            await source.serve(receiver)
            return
        except Exception as error:
            if time.monotonic() - began > 2 * LONGEST_PAUSE:
                pause, failing = FIRST_PAUSE, False
            cause = _first(error)
            kind = "" if isinstance(cause, StreamflowError) else f"{type(cause).__name__}: "
            if not failing:
                _log.warning("trigger %s receives nothing, will retry: %s%s", name, kind, cause)
            failing, receiver.problem = True, recordable(f"{kind}{cause}", 500)
        await anyio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def _first(error: Exception) -> Exception:
    """Of what several tasks have raised: the group itself says nothing."""
    while isinstance(error, ExceptionGroup):
        error = cast("ExceptionGroup[Exception]", error).exceptions[0]
    return error


async def is_stored(processing: Awaitable[object]) -> bool:
    """Whether a delivery is stored or quarantined; False if it has to come again."""
    try:
        await processing
    except (StoreError, Hung):
        return False
    return True


async def process_at_once(process: Callable[[T], Awaitable[bool]], items: Iterable[T]) -> list[T]:
    """Process all at the same time; returns those for which `process` says False."""
    left: list[T] = []

    async def one(item: T) -> None:
        if not await process(item):
            left.append(item)

    async with anyio.create_task_group() as tasks:
        for item in items:
            tasks.start_soon(one, item)
    return left


def required(module: str, extra: str) -> Any:
    """Import what a source needs besides streamflow. Raises `UsageError` that says what to install."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise UsageError(f"this trigger needs {module}: pip install 'streamflowd[{extra}]'") from None


def checked_max_body(max_body: int) -> int:
    """Raises `UsageError`."""
    if not 1 <= max_body <= MOST_BYTES:
        raise UsageError(f"max_body is 1 to {MOST_BYTES:,} bytes, got {max_body!r}")
    return max_body
