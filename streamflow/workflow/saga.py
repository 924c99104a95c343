"""Sagas: what was done is undone, in reverse, when the rest can't be done.

Owns: the order and the shielding of compensations. Must not: make decisions, except through what it awaits.
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
    """The block of `async with sf.saga() as saga:`. It is undone when it fails or is cancelled.

    Compensations are calls of steps, workflows or helpers, so they are as durable as what they undo. They run in
    reverse order and are shielded: neither a cancel nor a time-out interrupts them. If some fail, the others run all
    the same, and the block raises `CompensationFailed`; else it raises what ended it. A block that completes, or that
    continues as new, is not undone.
    """

    def __init__(self) -> None:
        self._compensations: list[tuple[Callable[..., Awaitable[Any]], tuple[Any, ...], dict[str, Any]]] = []

    def compensate(self, function: Callable[P, Awaitable[Any]], *args: P.args, **kwargs: P.kwargs) -> None:
        """Call `function(*args, **kwargs)` if the block fails or is cancelled, before those registered earlier.

        `function` is a step, a workflow or an `async def`. Register it before the action that it undoes: a step that
        failed with a time-out may have taken effect. So it must do no harm when there is nothing to undo. Raises
        `UsageError` if `function` is not callable.

        >>> saga.compensate(cancel_flight, trip)
        >>> await book_flight(trip)
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
                except (Exception, CancelledError) as failure:  # shielded: what it awaits was cancelled, not the run
                    failures.append(failure)
        try:
            if failures:
                raise CompensationFailed(failures) from error
        finally:  # their tracebacks have this frame
            del failures, error


def _begin(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Awaitable[Any]:
    """Call it. That a plain function was given shows only now, when it has been called."""
    awaitable = function(*args, **kwargs)
    if not hasattr(awaitable, "__await__"):
        raise UsageError(
            "saga.compensate() must get a step, a workflow or an `async def`, but "
            f"{getattr(function, '__qualname__', function)} returned a value of type {type(awaitable).__name__}: "
            "make it a step"
        )
    return awaitable
