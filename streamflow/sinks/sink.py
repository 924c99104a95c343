"""PUBLIC: what a sink is: it writes batches of committed events to a target.

Owns: the protocol, and the errors by which a sink says what is wrong. Must not: know a target, or how sinks are run.
Called by: the sinks, `runner.py`, who writes a sink of their own.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from streamflow.errors import StreamflowError, UsageError

if TYPE_CHECKING:
    from streamflow.client.subscription import EventBatch


class Subscribable(Protocol):
    """A client, or the sandbox of a test."""

    @property
    def events(self) -> Callable[..., Any]: ...


class Sink(Protocol):
    """Where events go. Derive from it and write `write`; `streamflow.sinks.run` calls all of it.

    Whatever `open` or `write` raises is logged once, the sink is closed, and after a pause both are called again, with
    the same batch: so `write` must be safe to repeat, also after it was killed in the middle. `TargetError` says what
    is wrong without a traceback. `Gone` and `UsageError` end the sink instead.
    """

    group: str = ""
    """The group whose position is moved, known before `open`: for a target that keeps positions itself."""
    max_events: int = 500
    """Events of a batch, at most."""
    max_wait: float = 1.0
    """Seconds that a batch waits for more events."""

    async def open(self) -> None:
        """Connect to the target, and see to it that what is needed is there."""

    async def write(self, batch: EventBatch) -> None:
        """Store these events. When it returns they are as safe as the target makes them: then they are acknowledged,
        and never come again."""
        ...

    async def close(self) -> None:
        """Let go of the target. Also called after `open` or `write` has raised."""

    @property
    def figures(self) -> dict[str, int]:
        """What the sink counts besides events and batches, by name."""
        return {}

    @property
    def problem(self) -> str:
        """What is wrong with the target, if `write` goes on trying by itself; else empty."""
        return ""

    async def instead(self) -> dict[str, Any] | str | None:
        """If its options ask for something else than taking events: does that, and gives what is to be printed."""
        return None


class TargetError(StreamflowError):
    """A sink's target can't be reached or doesn't take what it is given now: the sink tries again."""


class Gone(StreamflowError):
    """A sink's target wants no more events: the sink ends, and its group keeps its position."""


def required(module: str, extra: str) -> Any:
    """Import what a sink needs besides streamflow. Raises `UsageError` that says what to install."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise UsageError(f"this sink needs {module}: pip install 'streamflowd[{extra}]'") from None
