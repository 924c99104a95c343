"""The stubs of steps, and the record of their calls.

Owns: both, for one sandbox. Must not: run anything (`attempts.py` does).
Called by: the sandbox (adds stubs, reads calls), attempts (find the stub, record the call).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec
from msgspec import UNSET

from streamflow.errors import UsageError
from streamflow.model import codec
from streamflow.workflow.app import App, Step

Key = tuple[str, int, int]
"""Identifies an attempt: run id, number of the decision, number of the attempt."""


class StubCall(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt of a step that has started, stubbed or not.

    An attempt that was started again after a crash is recorded twice.
    """

    args: tuple[Any, ...]
    """Positional arguments."""
    kwargs: dict[str, Any]
    """Keyword-only arguments."""
    run_id: str
    seq: int
    """Number of the decision within its run."""
    attempt: int
    """Number of the attempt, from 1."""
    at: datetime
    """Virtual time, aware, in UTC."""


class Stub:
    """One `sandbox.stub(…)`. `takes` is in virtual seconds; `times`: the number of attempts it serves, None for all."""

    def __init__(
        self,
        replacement: Callable[..., Any] | None,
        returns: Any,
        raises: BaseException | type[BaseException] | None,
        takes: float,
        times: int | None,
    ) -> None:
        self.replacement = replacement
        self.returns = returns
        self.raises = raises
        self.takes = takes
        self._times = times
        self._served: set[Key] = set()

    def serves(self, key: Key) -> bool:
        """Whether this stub serves the attempt. One that is started again after a crash gets the same stub."""
        if key not in self._served:
            if self._times is not None and len(self._served) >= self._times:
                return False
            self._served.add(key)
        return True


class Stubs:
    """All stubs of a sandbox, and all calls."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._stubs: dict[str, list[Stub]] = {}
        self._calls: dict[str, list[StubCall]] = {}

    def deploy(self, app: App) -> None:
        self._app = app

    def add(self, step: Step[..., Any] | str, stub: Stub) -> None:
        registered = self._registered(step)
        given = (stub.replacement is not None) + (stub.returns is not UNSET) + (stub.raises is not None)
        if given > 1 or (not given and not stub.takes):
            raise UsageError(
                f"a stub of step {registered.name} must have exactly one of a function, returns= and raises= "
                "(takes= with any of them, or alone)"
            )
        if stub.takes < 0:
            raise UsageError(f"a stub of step {registered.name}: takes must be seconds >= 0, got {stub.takes:g}")
        if stub.returns is not UNSET:
            # A value that the step's annotation doesn't allow would fail the run later, far from this line.
            data = codec.encode(stub.returns, f"result of the stub of step {registered.name}")
            registered.parameters.decode_result(data)
        self._stubs.setdefault(registered.name, []).insert(0, stub)

    def find(self, name: str, key: Key) -> Stub | None:
        """The newest stub that serves this attempt, if any."""
        return next((stub for stub in self._stubs.get(name, ()) if stub.serves(key)), None)

    def called(self, name: str, call: StubCall) -> None:
        self._calls.setdefault(name, []).append(call)

    def calls(self, step: Step[..., Any] | str) -> list[StubCall]:
        return self._calls.get(self._registered(step).name, [])[:]

    def _registered(self, step: Step[..., Any] | str) -> Step[..., Any]:
        name = step if isinstance(step, str) else getattr(step, "name", repr(step))
        registered = self._app.steps.get(name)
        if registered is None or (isinstance(step, Step) and step.origin is not registered):
            raise UsageError(self._app.unknown_step(name))
        return registered
