"""What user code registers: the `App` and its steps, workflows and reducers.

Owns: the definitions, their names, and what a call of one means inside a workflow and outside.
Must not: run anything durable (the machines do), do I/O.
Called by: user modules, the machines, executor, client and CLI (which read the registered parameters).
"""

from __future__ import annotations

import copy
import inspect
import typing
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, Literal, ParamSpec, Protocol, Self, TypeVar, cast, overload

from msgspec import UNSET, UnsetType

from streamflow.errors import UsageError
from streamflow.model import codec
from streamflow.model.names import check_name, check_run_id
from streamflow.workflow.actions import ON_PARENT_END, ChildCall, StepCall
from streamflow.workflow.awaitable import active
from streamflow.workflow.retry import Retry

P = ParamSpec("P")
R = TypeVar("R")
OnParentEnd = Literal["cancel", "abandon", "wait"]

_DEFAULT_RETRY = Retry()


class Step(Generic[P, R]):
    """User code that acts. Inside a workflow a call gives a durable awaitable; outside it calls the plain function.

    `options()` gives a copy with other settings and the same name, so a call carries all that it needs.
    """

    __slots__ = (
        "function",
        "is_async",
        "known",
        "name",
        "origin",
        "parameters",
        "process",
        "queue",
        "retry",
        "tag",
        "timeout",
    )

    def __init__(
        self,
        function: Callable[P, Any],
        name: str,
        retry: Retry = _DEFAULT_RETRY,
        timeout: float | None = None,
        queue: str | None = None,
        process: bool = False,
    ) -> None:
        self.function = function
        self.name = check_name("step", name)
        self.parameters = codec.Parameters(function, f"step {name}")
        self.is_async = inspect.iscoroutinefunction(function)
        self.retry = _check_retry(name, retry)
        self.timeout = _check_timeout(name, timeout)
        self.queue = queue if queue is None else check_name("queue", queue)
        self.process = process and _check_process(name, function)
        """Whether it runs in a process of its own, for it computes."""
        self.tag = ""
        self.origin: Step[P, R] = self
        """The registered step that this is a copy of; itself if it is none."""
        self.known = True
        """False for the stand-in of a recorded step whose function no longer exists (see `missing_step`)."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Awaitable[R]:
        if active.get() is not None:
            return StepCall(self, args, kwargs)
        return self.function(*args, **kwargs)

    def options(
        self,
        *,
        timeout: float | UnsetType | None = UNSET,
        queue: str | UnsetType | None = UNSET,
        retry: Retry | UnsetType = UNSET,
        tag: str = "",
    ) -> Step[P, R]:
        """The same step with other settings for one call. `tag` comes back in a reducer's `StepDone`.

        >>> await fetch.options(timeout=5)(url)
        """
        other = copy.copy(self)
        if timeout is not UNSET:
            other.timeout = _check_timeout(self.name, timeout)
        if queue is not UNSET:
            other.queue = queue if queue is None else check_name("queue", queue)
        if retry is not UNSET:
            other.retry = _check_retry(self.name, retry)
        other.tag = tag
        return other

    def __repr__(self) -> str:
        return f"<step {self.name}>"


def missing_step(name: str) -> Step[..., Any]:
    """A stand-in for a step that a history names and no app registers any more. It is never run."""

    def gone(value: Any = None) -> Any:
        raise UsageError(f"step {name} is not registered")

    step: Step[..., Any] = Step(gone, name)
    step.known = False
    return step


class Startable:
    """What workflows and reducers share: a name, a version, and being started as a child run."""

    __slots__ = ("child_id", "child_tenant", "function", "name", "on_parent_end", "parameters", "tag", "version")

    kind = "workflow"

    def __init__(self, function: Callable[..., Any], name: str, parameters: codec.Parameters) -> None:
        self.function = function
        self.name = check_name("workflow", name)
        self.parameters = parameters
        self.version = 0
        self.on_parent_end: OnParentEnd = "cancel"
        self.child_id = ""
        self.child_tenant = ""
        self.tag = ""

    def options(self, *, id: str = "", tenant: str = "", tag: str = "", on_parent_end: OnParentEnd = "cancel") -> Self:
        """The same, to be started as a child run with this id, or for this tenant rather than the parent's.

        `on_parent_end` says what happens to it when the parent ends before it, or gives up awaiting it: `"cancel"`,
        `"abandon"` (it goes on alone) or `"wait"` (the parent ends when it has). `tag` comes back in a reducer's
        `ChildDone`. Raises `UsageError`, `InvalidName`.
        """
        if on_parent_end not in ON_PARENT_END:
            raise UsageError(
                f"{self.kind} {self.name}: on_parent_end={on_parent_end!r} is none of {', '.join(ON_PARENT_END)}"
            )
        other = copy.copy(self)
        other.on_parent_end = on_parent_end
        other.child_id = check_run_id(id) if id else ""
        other.child_tenant = check_name("tenant", tenant) if tenant else ""
        other.tag = tag
        return other

    def _child(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ChildCall:
        if active.get() is None:
            raise UsageError(
                f"{self.kind} {self.name} was called outside a workflow: start a run with client.start({self.name}, …) "
                f"or call the plain function with {self.name}.function(…)"
            )
        return ChildCall(self, args, kwargs)

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name}>"


class Workflow(Startable, Generic[P, R]):
    """User code that decides: an `async def` that awaits only streamflow's own awaitables."""

    __slots__ = ()

    def __init__(self, function: Callable[P, Coroutine[Any, Any, R]], name: str, version: int = 0) -> None:
        if not inspect.iscoroutinefunction(function):
            raise UsageError(f"workflow {name} is a plain function: a workflow is an `async def`")
        if isinstance(version, bool) or not isinstance(version, int) or version < 0:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"workflow {name}: version={version!r} makes no sense; it is a whole number of at least 0")
        super().__init__(function, name, codec.Parameters(function, f"workflow {name}"))
        self.version = version

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Awaitable[R]:
        """Inside a workflow: start a child run and await its result."""
        return self._child(args, kwargs)


def _reducer_input(input: Any = None) -> Any: ...


class Reducer(Startable):
    """The primitive itself: a plain function `(state, event) -> Decision`. Its state is its snapshot.

    The initial state is the default of the first parameter if it has one, otherwise the annotation called without
    arguments. The input of the run comes in the `Started` event.
    """

    __slots__ = ("initial", "state_type")

    kind = "reducer"

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        if inspect.iscoroutinefunction(function):
            raise UsageError(f"reducer {name} is async: a reducer is a plain function (state, event) -> Decision")
        parameters = list(inspect.signature(function).parameters.values())
        if len(parameters) < 2 or any(p.default is p.empty for p in parameters[2:]):
            raise UsageError(f"reducer {name} takes {len(parameters)} parameters: it is called with (state, event)")
        super().__init__(function, name, codec.Parameters(_reducer_input, f"reducer {name}"))
        try:
            self.state_type: Any = typing.get_type_hints(function).get(parameters[0].name, Any)
        except NameError as error:
            raise UsageError(f"the annotations of reducer {name} can't be resolved: {error}") from error
        codec.decoder_for(self.state_type)  # a state that can't be stored is refused here, not in the first commit
        self.initial = self._initial(parameters[0])

    def _initial(self, parameter: inspect.Parameter) -> Callable[[], Any]:
        if parameter.default is not parameter.empty:
            data = codec.encode(parameter.default, f"initial state of reducer {self.name}")
            return lambda: codec.decode(data, self.state_type, f"initial state of reducer {self.name}")
        if callable(self.state_type) and self.state_type is not Any:
            return self.state_type
        raise UsageError(
            f"reducer {self.name} has no initial state: annotate its first parameter with a type that can be called "
            "without arguments, or give the parameter a default"
        )

    def __call__(self, input: Any = None) -> Awaitable[Any]:
        """Inside a workflow: start a child run and await its result."""
        return self._child((input,), {})


def _check_process(name: str, function: Callable[..., Any]) -> bool:
    """Another process finds the function by its module and name."""
    why = ""
    if inspect.iscoroutinefunction(function):
        why = "is async: only a plain function runs in a process; leave process=True out"
    elif not inspect.isfunction(function):
        why = f"is a {type(function).__name__}: process=True takes a plain function"
    elif "<" in function.__qualname__:  # <lambda>, <locals>
        why = f"is {function.__qualname__}, which another process can't import: define it at the top of its module"
    if why:
        raise UsageError(f"step {name} {why}")
    return True


def _check_retry(name: str, retry: object) -> Retry:
    if not isinstance(retry, Retry):
        raise UsageError(f"step {name}: retry={retry!r} is no Retry: use retry=sf.Retry(attempts=3), or sf.NO_RETRY")
    return retry


def _check_timeout(name: str, timeout: float | None) -> float | None:
    if timeout is not None and not timeout > 0:
        raise UsageError(f"step {name}: timeout={timeout!r} makes no sense; it is a number of seconds above 0, or None")
    return timeout


class _StepDecorator(Protocol):
    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Step[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Step[P, R]: ...


class _WorkflowDecorator(Protocol):
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Workflow[P, R]: ...


class App:
    """A registry of steps, workflows and reducers. A daemon serves one app.

    >>> app = sf.App()
    >>> @app.step
    ... async def fetch(url: str) -> str: ...
    """

    def __init__(self) -> None:
        self.steps: dict[str, Step[..., Any]] = {}
        self.workflows: dict[str, Workflow[..., Any] | Reducer] = {}
        """By name; of a workflow with several versions the highest, which new runs begin with."""
        self.versions: dict[tuple[str, int], Workflow[..., Any]] = {}
        """All versions of workflows."""

    @overload
    def step(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Step[P, R]: ...
    @overload
    def step(self, function: Callable[P, R], /) -> Step[P, R]: ...
    @overload
    def step(
        self,
        /,
        *,
        name: str | None = None,
        retry: Retry = _DEFAULT_RETRY,
        timeout: float | None = None,
        queue: str | None = None,
        process: bool = False,
    ) -> _StepDecorator: ...
    def step(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        retry: Retry = _DEFAULT_RETRY,
        timeout: float | None = None,
        queue: str | None = None,
        process: bool = False,
    ) -> Any:
        """Register a step: an `async def`, or a plain function that will run in a worker thread.

        `timeout` is seconds for one attempt; `queue` names a pool of workers (`streamflow worker --queue`);
        `process=True` runs a plain function that computes in a process of its own. Raises `UsageError`.
        """

        def register(function: Callable[..., Any]) -> Step[..., Any]:
            step: Step[..., Any] = Step(function, name or _name_of(function), retry, timeout, queue, process)
            if step.name in self.steps:
                raise UsageError(
                    f"two steps are named {step.name}: give one of them another name with @app.step(name=…)"
                )
            self.steps[step.name] = step
            return step

        return register if function is None else register(function)

    @overload
    def workflow(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Workflow[P, R]: ...
    @overload
    def workflow(self, /, *, name: str | None = None, version: int = 0) -> _WorkflowDecorator: ...
    def workflow(
        self, function: Callable[..., Any] | None = None, /, *, name: str | None = None, version: int = 0
    ) -> Any:
        """Register a workflow, an `async def`. Raises `UsageError`.

        Several functions may have one `name` and different versions: a run keeps the version that it began with, and
        new runs begin with the highest. Take an old one away when no run of it is open any more.
        """

        def register(function: Callable[..., Any]) -> Workflow[..., Any]:
            workflow: Workflow[..., Any] = Workflow(function, name or _name_of(function), version)
            self._add_version(workflow)
            return workflow

        return register if function is None else register(function)

    @overload
    def reducer(self, function: Callable[..., Any], /) -> Reducer: ...
    @overload
    def reducer(self, /, *, name: str | None = None) -> Callable[[Callable[..., Any]], Reducer]: ...
    def reducer(self, function: Callable[..., Any] | None = None, /, *, name: str | None = None) -> Any:
        """Register a reducer, a plain function `(state, event) -> Decision`. Raises `UsageError`."""

        def register(function: Callable[..., Any]) -> Reducer:
            reducer = Reducer(function, name or _name_of(function))
            self._add(reducer)
            return reducer

        return register if function is None else register(function)

    def _add_version(self, workflow: Workflow[..., Any]) -> None:
        name, version = workflow.name, workflow.version
        newest = self.workflows.get(name)
        if (name, version) in self.versions or isinstance(newest, Reducer):
            self._add(workflow)  # which says what is wrong
        self.versions[name, version] = workflow
        if newest is None or newest.version < version:
            self.workflows[name] = workflow

    def version(self, name: str, version: int) -> Workflow[..., Any] | None:
        """The code for runs of a workflow that began with this version."""
        definition = self.versions.get((name, version))
        if definition is None:
            newest = self.workflows.get(name)  # put there by hand, as tests do
            if isinstance(newest, Workflow) and newest.version == version:
                return newest
        return definition

    def _add(self, definition: Workflow[..., Any] | Reducer) -> None:
        if definition.name in self.workflows:
            raise UsageError(
                f"two workflows or reducers are named {definition.name}: give one of them another name=, or another "
                "version= if it is a new version of the same workflow"
            )
        self.workflows[definition.name] = definition

    @property
    def queues(self) -> list[str]:
        """The queues that registered steps name. A call may name others with `options(queue=…)`."""
        return sorted({step.queue for step in self.steps.values() if step.queue is not None})

    def unknown_workflow(self, name: str) -> str:
        """The sentence for a workflow name that isn't registered here."""
        known = ", ".join(sorted(self.workflows)) or "none"
        return f"workflow {name} is not registered; known workflows: {known}"

    def unknown_version(self, name: str, version: int) -> str:
        """The sentence for a version of a workflow that isn't registered here."""
        known = ", ".join(str(number) for other, number in sorted(self.versions) if other == name)
        return (
            f"this run of workflow {name} began with version {version}, and this app has only {known}: register the "
            f"old function, too, with @app.workflow(name={name!r}, version={version}), until its runs have ended"
        )

    def unknown_step(self, name: str) -> str:
        """The sentence for a step that isn't registered here (or whose name belongs to another one)."""
        known = ", ".join(sorted(self.steps)) or "none"
        return f"step {name} is not registered with this app; known steps: {known}"


def _name_of(function: Callable[..., Any]) -> str:
    return cast("str", getattr(function, "__name__", type(function).__name__))
