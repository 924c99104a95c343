"""The stubs of steps and children, and the record of their calls.

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
from streamflow.workflow.app import App, Startable, Step

Key = tuple[str, int, int]
"""Identifies an attempt: run id, number of the decision, number of the attempt."""


class StubCall(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt of a step that has started, stubbed or not; or one stubbed child, whose `run_id` it has.

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
        self._workflows: dict[str, tuple[Startable, list[Stub]]] = {}
        self._children: dict[str, tuple[str, Stub]] = {}
        """The stubbed children by run id, with their workflow."""
        self._child_calls: dict[str, list[StubCall]] = {}
        self._raised: dict[str, BaseException] = {}
        """What the stubs of children have raised, by run id."""

    def deploy(self, app: App) -> None:
        self._app = app

    def add(self, target: Step[..., Any] | Startable | str, stub: Stub) -> None:
        found = self._found(target)
        what = f"{found.kind} {found.name}" if isinstance(found, Startable) else f"step {found.name}"
        given = (stub.replacement is not None) + (stub.returns is not UNSET) + (stub.raises is not None)
        if isinstance(found, Startable) and given != 1:
            raise UsageError(f"a stub of {what} must have exactly one of a function, returns= and raises=")
        if given > 1 or (not given and not stub.takes):
            raise UsageError(
                f"a stub of {what} must have exactly one of a function, returns= and raises= "
                "(takes= with any of them, or alone)"
            )
        if stub.takes < 0:
            raise UsageError(f"a stub of {what}: takes must be seconds >= 0, got {stub.takes:g}")
        if stub.returns is not UNSET:
            # A value that the annotation doesn't allow would fail the run later, far from this line.
            found.parameters.decode_result(codec.encode(stub.returns, f"result of the stub of {what}"))
        if isinstance(found, Startable):
            stubs = self._workflows[found.name][1] if found.name in self._workflows else []
            self._workflows[found.name] = found, [stub, *stubs]
        else:
            self._stubs.setdefault(found.name, []).insert(0, stub)

    def find(self, name: str, key: Key) -> Stub | None:
        """The newest stub that serves this attempt, if any; in a child that is stubbed, that of the child."""
        if (child := self._children.get(key[0])) is not None:
            return child[1]
        return next((stub for stub in self._stubs.get(name, ()) if stub.serves(key)), None)

    def child_begins(self, workflow: str, run_id: str) -> Startable | None:
        """The workflow as it was stubbed, if a stub serves this new child."""
        definition, stubs = self._workflows.get(workflow, (None, ()))
        stub = next((stub for stub in stubs if stub.serves((run_id, 0, 0))), None)
        if stub is None:
            return None
        self._children[run_id] = workflow, stub
        return definition

    def called(self, name: str, call: StubCall) -> None:
        if (child := self._children.get(call.run_id)) is not None:
            self._child_calls.setdefault(child[0], []).append(call)
        else:
            self._calls.setdefault(name, []).append(call)

    def failed(self, run_id: str, error: BaseException) -> None:
        if run_id in self._children:
            self._raised[run_id] = error

    def raised(self, run_id: str) -> BaseException:
        return self._raised[run_id].with_traceback(None)

    def calls(self, target: Step[..., Any] | Startable | str) -> list[StubCall]:
        found = self._found(target)
        calls = self._child_calls if isinstance(found, Startable) else self._calls
        return calls.get(found.name, [])[:]

    def _found(self, target: Step[..., Any] | Startable | str) -> Step[..., Any] | Startable:
        """The step or workflow of the app. Raises `UsageError`."""
        if isinstance(target, Startable) and target.name not in self._app.workflows:
            raise UsageError(self._app.unknown_workflow(target.name))
        name = target if isinstance(target, str) else target.name
        if isinstance(target, Startable) or (name not in self._app.steps and name in self._app.workflows):
            return self._app.workflows[name]
        return self._registered(target)

    def _registered(self, step: Step[..., Any] | str) -> Step[..., Any]:
        name = step if isinstance(step, str) else getattr(step, "name", repr(step))
        registered = self._app.steps.get(name)
        if registered is None or (isinstance(step, Step) and step.origin is not registered):
            raise UsageError(self._app.unknown_step(name))
        return registered
