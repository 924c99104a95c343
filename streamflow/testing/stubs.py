"""What steps do instead of running, and what was called.

Owns: the stubs of a sandbox and the record of its calls. Must not: run anything (`attempts.py` does).
Called by: the sandbox (sets, reads), attempts (asks what to do).
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
"""Which attempt: run id, number of the decision, number of the attempt."""


class StubCall(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt that began. `at` is the virtual time, aware, in UTC; `attempt` counts from 1.

    An attempt that was begun again after a crash is there twice.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    run_id: str
    seq: int
    attempt: int
    at: datetime


class Stub:
    """One `sandbox.stub(…)`. `times`: how many attempts it serves; None for all."""

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
        """Whether this is what the attempt gets; one that is begun again after a crash gets the same again."""
        if key not in self._served:
            if self._times is not None and len(self._served) >= self._times:
                return False
            self._served.add(key)
        return True


class Stubs:
    def __init__(self, app: App) -> None:
        self._app = app
        self._stubs: dict[str, list[Stub]] = {}
        self._calls: dict[str, list[StubCall]] = {}

    def add(self, step: Step[..., Any] | str, stub: Stub) -> None:
        registered = self._registered(step)
        given = (stub.replacement is not None) + (stub.returns is not UNSET) + (stub.raises is not None)
        if given > 1 or (not given and not stub.takes):
            raise UsageError(
                f"a stub of step {registered.name} does one thing: give a function, or returns=, or raises= "
                "(and takes= with any of them, or alone)"
            )
        if stub.takes < 0:
            raise UsageError(f"a stub of step {registered.name} can't take {stub.takes:g} s")
        if stub.returns is not UNSET:
            # What the step's own annotation refuses would fail the run later, far from this line.
            data = codec.encode(stub.returns, f"result of the stub of step {registered.name}")
            registered.parameters.decode_result(data)
        self._stubs.setdefault(registered.name, []).insert(0, stub)

    def find(self, name: str, key: Key) -> Stub | None:
        """The newest stub that serves this attempt."""
        return next((stub for stub in self._stubs.get(name, ()) if stub.serves(key)), None)

    def called(self, name: str, call: StubCall) -> None:
        self._calls.setdefault(name, []).append(call)

    def calls(self, step: Step[..., Any] | str) -> list[StubCall]:
        return self._calls.get(self._registered(step).name, [])[:]

    def _registered(self, step: Step[..., Any] | str) -> Step[..., Any]:
        name = step if isinstance(step, str) else getattr(step, "name", repr(step))
        found = self._app.steps.get(name)
        if found is None or (isinstance(step, Step) and step.origin is not found):
            raise UsageError(self._app.unknown_step(name))
        return found
