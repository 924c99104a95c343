"""Sagas: what was done is undone, in reverse, when the rest can't be done.

Owns: the order and the shielding of compensations. Must not: decide anything but through what it awaits.
Called by: `api.py`. After Garcia-Molina and Salem, "Sagas", 1987.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, ParamSpec

from streamflow.errors import CancelledError, CompensationFailed, ContinueAs, UsageError
from streamflow.workflow.awaitable import UNWINDING
from streamflow.workflow.concurrency import Shield, check_callable

P = ParamSpec("P")


class Saga:
    """Made by `sf.saga()`. Compensations are steps, workflows or helpers, so they are as durable as what they undo."""

    def __init__(self) -> None:
        self._compensations: list[tuple[Callable[..., Awaitable[Any]], tuple[Any, ...], dict[str, Any]]] = []

    def compensate(self, function: Callable[P, Awaitable[Any]], *args: P.args, **kwargs: P.kwargs) -> None:
        """Call `function(*args)` if the block fails or is cancelled, before the compensations registered earlier.

        Register before the action when it may take effect without telling (a step that fails after a time-out may have
        acted), and make the compensation harmless when there is nothing to undo.
        """
        check_callable(function, "saga(): compensate()")
        self._compensations.append((function, args, kwargs))

    async def __aenter__(self) -> Saga:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, (ContinueAs, *UNWINDING)):
            return
        failures: list[BaseException] = []
        with Shield():
            while self._compensations:
                function, args, kwargs = self._compensations.pop()
                try:
                    await _begin(function, *args, **kwargs)
                except (Exception, CancelledError) as failure:  # shielded: the cancel is of something that it awaits
                    failures.append(failure)
        try:
            if failures:
                raise CompensationFailed(failures) from error
        finally:  # their tracebacks have this frame
            del failures, error


def _begin(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Awaitable[Any]:
    """A plain function is a mistake that shows only now, when it was called."""
    made = function(*args, **kwargs)
    if not hasattr(made, "__await__"):
        raise UsageError(
            "compensate() takes a step, a workflow or an `async def`, and "
            f"{getattr(function, '__qualname__', function)} gave {type(made).__name__}: make it a step"
        )
    return made
