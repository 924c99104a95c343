"""What user code registers: the `App` and its steps, workflows and reducers.

Owns: the definitions, their names, and what calling one does inside a workflow and outside.
Must not: run anything durable (the machines do), do I/O.
Called by: user modules, the machines, executor, client and CLI (which read the registered parameters).
"""

from __future__ import annotations

import copy
import functools
import inspect
import sys
import typing
import weakref
from collections.abc import Callable, Coroutine, Iterable
from datetime import timedelta
from types import FrameType
from typing import Any, Generic, Literal, ParamSpec, Protocol, Self, TypeVar, cast, overload

from msgspec import UNSET, UnsetType

from streamflow.errors import InvalidName, UsageError
from streamflow.events import HistoryEvent
from streamflow.model import codec
from streamflow.model.bugs import BUGS, Park, check_parks
from streamflow.model.durations import duration_text, seconds_of
from streamflow.model.names import check_name, check_run_id, check_text
from streamflow.workflow.actions import ON_PARENT_END, ChildCall, StepCall
from streamflow.workflow.awaitable import Call, active
from streamflow.workflow.messages import (
    UNDECLARED,
    Declared,
    PublishedDefinition,
    QuestionDefinition,
    SignalDefinition,
)
from streamflow.workflow.retry import Retry
from streamflow.workflow.trigger import Delivery, Source, Trigger
from streamflow.workflow.view import Aggregate, Key, View, Width

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
D = TypeVar("D", bound="Step[..., Any] | Startable")
Parks = Park | Iterable[Park]
OnParentEnd = Literal["cancel", "abandon", "wait"]
"""What happens to a child when its parent ends first: see `Workflow.options`."""

TriggerFunction = Callable[[Delivery[T]], Any]

_DEFAULT_RETRY = Retry()


class _Verbatim(str):
    """An annotation of a module that has `from __future__ import annotations`: shown without quotes."""

    __slots__ = ()

    __repr__ = str.__str__


def _as_written(signature: inspect.Signature) -> inspect.Signature:
    def verbatim(annotation: Any) -> Any:
        return _Verbatim(annotation) if isinstance(annotation, str) else annotation

    parameters = [one.replace(annotation=verbatim(one.annotation)) for one in signature.parameters.values()]
    return signature.replace(parameters=parameters, return_annotation=verbatim(signature.return_annotation))


class _Help:
    """`__doc__` of a class and, another one, of its objects: `help(step)` is about the user's function."""

    def __init__(self, of_class: str | None) -> None:
        self._of_class = of_class

    def __get__(self, definition: Step[..., Any] | Startable | None, _: type) -> str | None:
        if definition is None:
            return self._of_class
        signature = _as_written(inspect.signature(definition.function))
        about = inspect.getdoc(definition.function)
        return "\n\n".join((f"{definition.name}{signature}", *([about] if about else []), definition.in_words()))


def _helpful(definition: type[D]) -> type[D]:
    definition.__doc__ = _Help(definition.__doc__)  # pyright: ignore[reportAttributeAccessIssue]
    return definition


@_helpful
class Step(Generic[P, R]):
    """A function with side effects, registered with `@app.step`.

    Inside a workflow a call gives a durable awaitable: its result is recorded once, and the function itself runs at
    least once. Awaiting it raises `StepFailed` when the step has failed after its retries. Outside a workflow a call
    runs the plain function.

    >>> @app.step(retry=sf.Retry(attempts=3), timeout=30)
    ... async def fetch(url: str) -> str: ...
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
        timeout: float | timedelta | None = None,
        queue: str | None = None,
        process: bool = False,
    ) -> None:
        self.name = check_name("step", name)
        self.function: Callable[P, Any] = _check_form(function, f"step {name}")
        function = self.function
        self.parameters = codec.Parameters(function, f"step {name}")
        self.is_async = _is_async(function)
        self.retry = _check_retry(name, retry)
        self.timeout = _check_timeout(name, timeout)
        self.queue = queue if queue is None else check_name("queue", queue)
        self.process = process and _check_process(name, function)
        """Whether it runs in a separate process, because it computes."""
        self.tag = ""
        self.origin: Step[P, R] = self
        """The registered step that this is a copy of; itself if it is the registered one."""
        self.known = True
        """False for the placeholder of a recorded step that is not registered any more (see `missing_step`)."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        if active.get() is not None:
            return StepCall(self, args, kwargs)
        return self.function(*args, **kwargs)

    def options(
        self,
        *,
        timeout: float | timedelta | UnsetType | None = UNSET,
        queue: str | UnsetType | None = UNSET,
        retry: Retry | UnsetType = UNSET,
        tag: str | UnsetType = UNSET,
    ) -> Step[P, R]:
        """A copy of the step with other settings, for one call. What isn't given stays as it is: as registered, or as
        an earlier `options()` set it.

        `timeout` is seconds or a timedelta for one attempt, None for no limit; `queue` names a queue of workers, None
        runs it at the daemon; `retry` is the retry policy, which counts wherever the attempts run; a reducer gets `tag`
        in its `StepDone` or `StepFailure`. Raises `UsageError`, `InvalidName`.

        >>> await fetch.options(timeout=5, queue="crawlers")(url)
        """
        other = copy.copy(self)
        if timeout is not UNSET:
            other.timeout = _check_timeout(self.name, timeout)
        if queue is not UNSET:
            other.queue = queue if queue is None else check_name("queue", queue)
        if retry is not UNSET:
            other.retry = _check_retry(self.name, retry)
        if tag is not UNSET:
            other.tag = check_text("tag", tag)
        return other

    def in_words(self) -> str:
        """What it is and how it is run, for `help(step)`."""
        where = f"in workers of queue {self.queue}" if self.queue is not None else "at the daemon"
        kind = "in a process of its own" if self.process else "in the event loop" if self.is_async else "in a thread"
        seconds = "no time-out" if self.timeout is None else f"a time-out of {self.timeout:g} s for each attempt"
        return (
            f"A step, which runs {where}, {kind}, with {seconds} and {self.retry}.\n"
            f"In a workflow, `await {self.name}(…)`; with other settings, `await {self.name}.options(…)(…)`."
        )

    def __repr__(self) -> str:
        return f"<step {self.name}>"


def missing_step(name: str) -> Step[..., Any]:
    """A placeholder for a step that a history names and the app doesn't register any more. It is never run."""

    def placeholder(value: Any = None) -> Any:
        raise UsageError(f"step {name} is not registered")

    step: Step[..., Any] = Step(placeholder, name)
    step.known = False
    return step


class Startable:
    """Base of workflows and reducers: a name, a version, and how they are started as a child run."""

    __slots__ = (
        "child_id",
        "child_tenant",
        "declared",
        "function",
        "name",
        "on_parent_end",
        "parameters",
        "parks",
        "tag",
        "timeout_ms",
        "version",
    )

    kind = "workflow"

    def __init__(self, function: Callable[..., Any], name: str, parameters: codec.Parameters) -> None:
        self.function = function
        self.name = check_name("workflow", name)
        self.parameters = parameters
        self.declared = UNDECLARED
        """Its signals, questions and published values."""
        self.version = 0
        self.timeout_ms = 0
        """What its code has from when it begins; 0 for no limit."""
        self.parks: tuple[Park, ...] | None = None
        """The exceptions that park its runs; None for those of the app."""
        self.on_parent_end: OnParentEnd = "cancel"
        self.child_id = ""
        self.child_tenant = ""
        self.tag = ""

    def options(
        self,
        *,
        id: str | UnsetType = UNSET,
        tenant: str | UnsetType = UNSET,
        tag: str | UnsetType = UNSET,
        on_parent_end: OnParentEnd | UnsetType = UNSET,
    ) -> Self:
        """A copy with other settings for a run. What isn't given stays as it is, so options add up.

        `id` is the child's run id, by default (and for an empty text) the parent's id and a number. `tenant` is the
        child's tenant, by default the parent's. `on_parent_end` says what happens to the child when the parent ends
        first, or stops awaiting it: `"cancel"`, the default, cancels it, `"abandon"` lets it continue on its own,
        `"wait"` delays the parent's end until the child has ended. A reducer gets `tag` in its `ChildDone` or
        `ChildFailure`. `client.start` takes `id` and `tenant` from here, too. Raises `UsageError`, `InvalidName`.

        >>> receipt = await invoice.options(id=f"invoice-{order.id}")(order)
        """
        other = copy.copy(self)
        if on_parent_end is not UNSET:
            if on_parent_end not in ON_PARENT_END:
                raise UsageError(
                    f"{self.kind} {self.name}: on_parent_end must be one of {', '.join(ON_PARENT_END)}, "
                    f"got {on_parent_end!r}"
                )
            other.on_parent_end = on_parent_end
        if id is not UNSET:
            other.child_id = check_run_id(id) if id else ""
        if tenant is not UNSET:
            other.child_tenant = check_name("tenant", tenant) if tenant else ""
        if tag is not UNSET:
            other.tag = check_text("tag", tag)
        return other

    def set_parks(self, parks: Parks | UnsetType) -> None:
        """Raises `UsageError`."""
        if parks is not UNSET:
            self.parks = check_parks(f"{self.kind} {self.name}", parks)

    def _child(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ChildCall:
        if active.get() is None:
            raise UsageError(
                f"{self.kind} {self.name} was called outside a workflow: start a run with client.start({self.name}, …) "
                f"or call the plain function with {self.name}.function(…)"
            )
        return ChildCall(self, args, kwargs)

    def in_words(self) -> str:
        """What it is and how a run of it is started, for `help(workflow)`."""
        kind = f"{self.kind}, version {self.version}" if self.version else self.kind
        if self.timeout_ms:
            kind += f", with a time-out of {duration_text(self.timeout_ms)}"
        return (
            f"A {kind}. A run of it is started by `await client.start({self.name}, …)`, in another workflow by\n"
            f"`await {self.name}(…)` or `await sf.start({self.name}, …)`; `options(id=…, tenant=…)` gives a copy with "
            "those."
        )

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name}>"


@_helpful
class Workflow(Startable, Generic[P, R]):
    """A durable function, registered with `@app.workflow`: an `async def` that awaits only streamflow's own awaitables.

    It makes decisions, and leaves side effects to steps, so that a replay of its history makes the same decisions
    again. Inside another workflow a call starts a child run, and awaiting it gives its result or raises `ChildFailed`.
    Outside, start it with `client.start(workflow, …)`.

    >>> @app.workflow
    ... async def digest(url: str) -> int:
    ...     return len(await fetch(url))
    """

    __slots__ = ()

    def __init__(self, function: Callable[P, Coroutine[Any, Any, R]], name: str, version: int = 0) -> None:
        function = _check_form(function, f"workflow {name}")
        if not _is_async(function):
            raise UsageError(f"workflow {name} must be an `async def`, got a plain function")
        if isinstance(version, bool) or not isinstance(version, int) or version < 0:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"workflow {name}: version must be an integer >= 0, got {version!r}")
        super().__init__(function, name, codec.Parameters(function, f"workflow {name}"))
        self.version = version

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """Inside a workflow: start a child run, and give an awaitable of its result. Outside: raises `UsageError`."""
        return self._child(args, kwargs)


def _reducer_input(input: Any = None) -> Any: ...


@_helpful
class Reducer(Startable):
    """A state machine, registered with `@app.reducer`: a plain function `(state, event) -> sf.Decision`.

    It is called once for each event. Its state is stored with each transition, so nothing is replayed, and its history
    may have any length. The initial state is the default of the first parameter if it has one, otherwise the
    parameter's annotation called without arguments. The run's input comes with the `Started` event. Inside a workflow a
    call starts a child run; outside, start it with `client.start(reducer, input)`.
    """

    __slots__ = ("initial", "state_type")

    kind = "reducer"

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        if inspect.iscoroutinefunction(function):
            raise UsageError(f"reducer {name} must be a plain function (state, event) -> Decision, got an `async def`")
        parameters = list(inspect.signature(function).parameters.values())
        if len(parameters) < 2 or any(p.default is p.empty for p in parameters[2:]):
            raise UsageError(f"reducer {name} must have two parameters (state, event), got {len(parameters)}")
        super().__init__(function, name, codec.Parameters(_reducer_input, f"reducer {name}", exact=False))
        try:
            self.state_type: Any = typing.get_type_hints(function).get(parameters[0].name, Any)
        except NameError as error:
            raise UsageError(f"the annotations of reducer {name} can't be resolved: {error}") from error
        codec.decoder_for(self.state_type)  # refuse a state that can't be stored here, not in the first commit
        self.initial = self._initial(parameters[0])

    def _initial(self, parameter: inspect.Parameter) -> Callable[[], Any]:
        if parameter.default is not parameter.empty:
            data = codec.encode(parameter.default, f"initial state of reducer {self.name}")
            return lambda: codec.decode(data, self.state_type, f"initial state of reducer {self.name}")
        if callable(self.state_type) and self.state_type is not Any:
            return self.state_type
        raise UsageError(
            f"reducer {self.name} has no initial state: give its first parameter a default, or annotate it with a type "
            "that can be called without arguments"
        )

    def __call__(self, input: Any = None) -> Call[Any]:
        """Inside a workflow: start a child run, and give an awaitable of its result. Outside: raises `UsageError`."""
        return self._child((input,), {})


def _is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine: an `async def`, also as a method, a partial, or an object's `__call__`."""
    while isinstance(function, functools.partial):
        function = cast("Any", function).func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _check_form(function: Any, what: str) -> Any:
    """The function itself, of a static method as well. Raises `UsageError` for a form that can't work, with what to
    write instead."""
    if isinstance(function, staticmethod):
        function = cast("Any", function).__func__
    if isinstance(function, classmethod) or not callable(function):
        raise UsageError(f"{what} must be a function, got a {type(function).__name__}")  # pyright: ignore[reportUnknownArgumentType]
    inner = inspect.unwrap(cast("Any", function))
    while isinstance(inner, functools.partial):
        inner = cast("Any", inner).func
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise UsageError(f"{what} is a generator (it has `yield`), and gives one result: return a list instead")
    if _is_async(inner) and not _is_async(cast("Any", function)):
        raise UsageError(
            f"{what} is an `async def` under a decorator whose own function is a plain one, so it can't be seen "
            "whether that awaits it: make the decorator's function an `async def` too, or call it from a function of "
            "your own"
        )
    names = list(inspect.signature(cast("Any", function)).parameters)
    owner = getattr(function, "__qualname__", "").rpartition(".")[0]  # pyright: ignore[reportUnknownArgumentType]
    if inspect.isfunction(function) and names[:1] in (["self"], ["cls"]) and owner and not owner.endswith("<locals>"):
        raise UsageError(
            f"{what} is a method, and `{names[0]}` can't be recorded: make it a function or a static method, or "
            f"register the method of one object, as in app.step(service.{function.__name__})"
        )
    return function  # pyright: ignore[reportUnknownVariableType]


def _check_process(name: str, function: Callable[..., Any]) -> bool:
    """True if another process can find the function by its module and name. Raises `UsageError`."""
    reason = ""
    if inspect.iscoroutinefunction(function):
        reason = "is an `async def`, and process=True is for plain functions: leave process=True out"
    elif not inspect.isfunction(function):
        reason = f"is a {type(function).__name__}, and process=True is for plain functions"
    elif "<" in function.__qualname__:  # <lambda>, <locals>
        reason = f"is {function.__qualname__}, which another process can't import: define it at the top of its module"
    if reason:
        raise UsageError(f"step {name} {reason}")
    return True


def _check_retry(name: str, retry: object) -> Retry:
    if not isinstance(retry, Retry):
        raise UsageError(
            f"step {name}: retry must be an sf.Retry, as sf.Retry(attempts=3), or sf.NO_RETRY, got {retry!r}"
        )
    return retry


def _check_timeout(name: str, timeout: float | timedelta | None, kind: str = "step") -> float | None:
    if timeout is None:
        return None
    seconds = seconds_of(timeout)
    if seconds is None or seconds <= 0:
        raise UsageError(
            f"{kind} {name}: timeout must be seconds > 0 or a timedelta, or None for no limit, got {timeout!r}"
        )
    return seconds


class _StepDecorator(Protocol):
    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Step[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Step[P, R]: ...


class _WorkflowDecorator(Protocol):
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Workflow[P, R]: ...


_MAIN = {"__main__", "__mp_main__"}
"""Names under which Python, and a step's separate process, import the file that is run as a script."""
_apps: dict[tuple[str, int], tuple[str, weakref.ref[App]]] = {}
"""The apps that were made in the code of a module, by file and line, with the module's name."""


def _twin(app: App, frame: FrameType) -> App | None:
    """The app that the same line of the same file has made, when the file is imported as `__main__` and by its name."""
    module, file = frame.f_globals.get("__name__", ""), frame.f_globals.get("__file__")
    if frame.f_code.co_name != "<module>" or not isinstance(file, str):
        return None
    place = (file, frame.f_lineno)
    other, reference = _apps.get(place, ("", None))
    twin = reference() if reference is not None and other != module and _MAIN & {other, module} else None
    if twin is None:
        _apps[place] = (module, weakref.ref(app))
    return twin


def _is_copy(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Whether both are one function of a file that is imported as `__main__` and by its name."""
    one, other = inspect.unwrap(one), inspect.unwrap(other)
    modules = {getattr(one, "__module__", ""), getattr(other, "__module__", "")}
    return len(modules) == 2 and bool(_MAIN & modules) and _place(one) == _place(other) is not None


def _place(function: Any) -> tuple[str, int, str] | None:
    code, scope = getattr(function, "__code__", None), getattr(function, "__globals__", {})
    if code is None or not scope.get("__file__"):
        return None
    return scope["__file__"], code.co_firstlineno, function.__qualname__


class App:
    """A registry of steps, workflows and reducers. Daemons and workers serve one app.

    Names are unique in an app: all steps, and all workflows and reducers together. A file that is run as a script and
    imported by its name as well makes one app, although Python runs it twice.

    `parks`: exceptions that park a run, which goes on when its code is mended, instead of failing it: classes, or names
    of classes; also for classes derived from them. By default `sf.BUGS`, what a mistake in code raises. `()` for none,
    `(*sf.BUGS, OrderInvalid)` for one more. `@app.workflow(parks=…)` and `@app.reducer(parks=…)` say it for one. Raises
    `UsageError`.

    >>> app = sf.App()
    >>> @app.step
    ... async def fetch(url: str) -> str: ...
    >>> @app.workflow
    ... async def digest(url: str) -> int:
    ...     return len(await fetch(url))
    """

    def __init__(self, *, parks: Parks = BUGS) -> None:
        self.parks = check_parks("sf.App", parks)
        """The exceptions that park runs instead of failing them, for workflows and reducers that name no others."""
        twin = _twin(self, sys._getframe(1))  # pyright: ignore[reportPrivateUsage]
        if twin is not None:
            self.steps, self.workflows, self.versions = twin.steps, twin.workflows, twin.versions
            self.triggers = twin.triggers
            self.views = twin.views
            return
        self.steps: dict[str, Step[..., Any]] = {}
        """By name."""
        self.workflows: dict[str, Workflow[..., Any] | Reducer] = {}
        """By name; of a workflow with several versions the highest one, which new runs begin with."""
        self.versions: dict[tuple[str, int], Workflow[..., Any]] = {}
        """All versions of workflows, by name and version."""
        self.triggers: dict[str, Trigger[Any]] = {}
        """By name."""
        self.views: dict[str, View] = {}
        """By name."""

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
        timeout: float | timedelta | None = None,
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
        timeout: float | timedelta | None = None,
        queue: str | None = None,
        process: bool = False,
    ) -> Any:
        """Register a step: an `async def`, which runs in the event loop, or a plain function, which runs in a thread.

        - `name`: by default the function's name. Histories record it, so keep it when the function is renamed.
        - `retry`: the policy for failed attempts; up to 20 within 15 minutes by default. `sf.NO_RETRY` for one.
        - `timeout`: seconds or a timedelta for one attempt; None for no limit.
        - `queue`: run it at workers of this queue (`streamflow worker --queue`) instead of at the daemon.
        - `process`: run a plain function in a separate process, because it computes.

        Raises `UsageError`, `InvalidName`, and `PayloadInvalid` for parameters that can't be recorded.

        >>> @app.step(retry=sf.Retry(attempts=3), timeout=30)
        ... async def fetch(url: str) -> str: ...
        """

        def register(function: Callable[..., Any]) -> Step[..., Any]:
            step: Step[..., Any] = Step(function, name or _name_of(function), retry, timeout, queue, process)
            known = self.steps.get(step.name)
            if known is not None and _is_copy(known.function, function):
                return step
            if known is not None:
                raise UsageError(
                    f"two steps are named {step.name}: give one of them another name with @app.step(name=…)"
                )
            self.steps[step.name] = step
            return step

        return register if function is None else register(function)

    @overload
    def workflow(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Workflow[P, R]: ...
    @overload
    def workflow(
        self,
        /,
        *,
        name: str | None = None,
        version: int = 0,
        signals: Iterable[SignalDefinition[Any]] | None = None,
        questions: Iterable[QuestionDefinition[Any, Any]] | None = None,
        published: Iterable[PublishedDefinition[Any]] | None = None,
        parks: Parks | UnsetType = UNSET,
        timeout: float | timedelta | None = None,
    ) -> _WorkflowDecorator: ...
    def workflow(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        version: int = 0,
        signals: Iterable[SignalDefinition[Any]] | None = None,
        questions: Iterable[QuestionDefinition[Any, Any]] | None = None,
        published: Iterable[PublishedDefinition[Any]] | None = None,
        parks: Parks | UnsetType = UNSET,
        timeout: float | timedelta | None = None,
    ) -> Any:
        """Register a workflow, an `async def`. `name` is by default the function's name.

        `signals`, `questions` and `published` declare all that it waits for and publishes: others are refused where
        they are sent or waited for. Of a kind that isn't given any name is accepted.

        Several functions may have the same `name` and different versions: a run keeps the version that it began with,
        and new runs begin with the highest. Remove an old version when no run of it is open any more. `parks`: the
        exceptions that park a run of this one, see `App`; by default those of the app.

        `timeout`: seconds or a timedelta that a run has, from when its code begins, in all its generations together.
        What has not ended by then is cancelled, can clean up, and fails: `result()` raises `RunTimedOut`. A start may
        give another one; what a deploy changes here is for runs that begin later.

        Raises `UsageError`, `InvalidName`, and `PayloadInvalid` for parameters that can't be recorded.

        >>> @app.workflow(name="digest", version=2)
        ... async def digest_with_links(url: str) -> int: ...
        """

        def register(function: Callable[..., Any]) -> Workflow[..., Any]:
            workflow: Workflow[..., Any] = Workflow(function, name or _name_of(function), version)
            workflow.declared = Declared(f"workflow {workflow.name}", signals, questions, published)
            workflow.set_parks(parks)
            workflow.timeout_ms = round(1000 * (_check_timeout(workflow.name, timeout, "workflow") or 0))
            self._add_version(workflow)
            return workflow

        return register if function is None else register(function)

    @overload
    def reducer(self, function: Callable[..., Any], /) -> Reducer: ...
    @overload
    def reducer(
        self,
        /,
        *,
        name: str | None = None,
        signals: Iterable[SignalDefinition[Any]] | None = None,
        questions: Iterable[QuestionDefinition[Any, Any]] | None = None,
        published: Iterable[PublishedDefinition[Any]] | None = None,
        parks: Parks | UnsetType = UNSET,
    ) -> Callable[[Callable[..., Any]], Reducer]: ...
    def reducer(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        signals: Iterable[SignalDefinition[Any]] | None = None,
        questions: Iterable[QuestionDefinition[Any, Any]] | None = None,
        published: Iterable[PublishedDefinition[Any]] | None = None,
        parks: Parks | UnsetType = UNSET,
    ) -> Any:
        """Register a reducer, a plain function `(state, event) -> Decision`. `name` is by default the function's name,
        `parks` (the exceptions that park a run, see `App`) that of the app.

        `signals`, `questions` and `published` as of a workflow; the reducer still gets plain data.

        Raises `UsageError`, `InvalidName`, and `PayloadInvalid` for a state that can't be stored.

        >>> @app.reducer
        ... def counter(state: Count, event: sf.Event) -> sf.Decision: ...
        """

        def register(function: Callable[..., Any]) -> Reducer:
            reducer = Reducer(function, name or _name_of(function))
            reducer.declared = Declared(f"reducer {reducer.name}", signals, questions, published)
            reducer.set_parks(parks)
            self._add(reducer)
            return reducer

        return register if function is None else register(function)

    def trigger(self, source: Source, /, *, name: str | None = None) -> Callable[[TriggerFunction[T]], Trigger[T]]:
        """Register a plain function that says what each delivery of a source is for.

        It gets an `sf.triggers.Delivery`, whose payload is decoded as its annotation says, and returns what
        `sf.triggers.start`, `signal` or `signal_with_start` give, a list of these, or None if the delivery is for
        nothing. It must not act itself: it may be called again for the same delivery, in any process.

        `source`: one of `sf.triggers`, such as `sf.triggers.webhook`. `name`: the function's name by default; what a
        delivery has started or signalled is known by it, so it must stay the same. `streamflow trigger` serves them.

        Raises `UsageError` for a function of another form or a name that is taken, `InvalidName`.

        >>> @app.trigger(sf.triggers.webhook("/push", signature=sf.triggers.github(sf.triggers.secret("HOOK_SECRET"))))
        ... def pushed(delivery: sf.triggers.Delivery[Push]) -> sf.triggers.Action:
        ...     return sf.triggers.start(build, delivery.payload.after, id=f"build-{delivery.payload.after}")
        """
        if not isinstance(source, Source):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"@app.trigger is given a source, such as sf.triggers.webhook('/push'), got {source!r}")

        def register(function: TriggerFunction[T]) -> Trigger[T]:
            trigger = Trigger(source, function, _name_of(function) if name is None else name)
            known = self.triggers.get(trigger.name)
            if known is not None and not _is_copy(known.function, function):
                raise UsageError(f"trigger {trigger.name} is registered twice: give one of them another name")
            self.triggers[trigger.name] = trigger
            return trigger

        return register

    @overload
    def view(
        self,
        aggregate: None = None,
        /,
        *,
        name: str | None = None,
        kinds: Iterable[type[HistoryEvent]] | None = None,
        records: str | Iterable[str] | None = None,
        by: Iterable[str] | Key = (),
        window: Width | None = None,
        keep: float | timedelta | None = None,
        top: int = 100,
        version: str = "",
    ) -> Callable[[type[Any]], View]: ...
    @overload
    def view(
        self,
        aggregate: Aggregate[Any] | type[Any],
        /,
        *,
        name: str | None = None,
        kinds: Iterable[type[HistoryEvent]] | None = None,
        records: str | Iterable[str] | None = None,
        by: Iterable[str] | Key = (),
        window: Width | None = None,
        keep: float | timedelta | None = None,
        top: int = 100,
        version: str = "",
    ) -> View: ...
    def view(
        self,
        aggregate: Any = None,
        /,
        *,
        name: str | None = None,
        kinds: Iterable[type[HistoryEvent]] | None = None,
        records: str | Iterable[str] | None = None,
        by: Iterable[str] | Key = (),
        window: Width | None = None,
        keep: float | timedelta | None = None,
        top: int = 100,
        version: str = "",
    ) -> Any:
        """Register a view: numbers over the committed events of all runs, each event counted once whatever crashes.

        `aggregate` is what is made of the events of a key: a ready-made one (`sf.total("tokens")`, `sf.count()`,
        `sf.highest`, `sf.lowest`, `sf.histogram`), or as a decorator a class of your own with `zero()`, `fold(state,
        event)` and `merge(one, other)`, and mostly `value(state)`, the number by which keys are ranked. The class is
        called once, without arguments; its methods get a `ViewEvent`.

        - `name`: by default that of the class in lower case. `client.view("cost")` and `streamflow view cost` read it.
        - `kinds`: classes of events that it takes, `[sf.events.Recorded]` by default: what `sf.record` has recorded.
        - `records`: the names of records that it takes; by default those of the aggregate, or else all.
        - `by`: the key: names of labels (of the record; also `workflow`, `tenant`, `step`, `name` and `kind`), or a
          function of the event that gives a dict of labels, or None for an event that doesn't count.
        - `window`: `"minute"`, `"hour"` or `"day"` (UTC), each counted apart; None for one that holds all.
        - `keep`: seconds or a timedelta for which windows are kept: 2 hours, 3 days or 60 days by default.
        - `top`: that many keys of each window are shown, the largest by value; the others together, as `rest`.
        - `version`: says that the code is the same or another one; by default that is found by the code of the view.

        Daemons fold it behind the runs, in a thread of its own: code that raises or hangs stops this view only. A new
        or changed view is filled from what the logs still have, beside the old one, which is read until the new one
        has caught up. Raises `UsageError`, `InvalidName`, and `PayloadInvalid` for a state that can't be stored.

        >>> app.view(sf.total("tokens"), name="cost", by=["model", "tenant"], window="day")
        """

        def register(given: Any) -> View:
            found: Any = given() if isinstance(given, type) else given
            called = name or type(found).__name__.lower()
            view = View(
                called,
                found,
                kinds=kinds,
                records=records,
                by=by,
                window=window,
                keep=keep,
                top=top,
                version=version,
            )
            known = self.views.get(view.name)
            if known is not None and not _is_copy(*(cast("Any", type(one)).fold for one in (known.aggregate, found))):
                raise UsageError(f"two views are named {view.name}: give one of them another name=")
            return self.views.setdefault(view.name, view)

        return register if aggregate is None else register(aggregate)

    def _add_version(self, workflow: Workflow[..., Any]) -> None:
        name, version = workflow.name, workflow.version
        known = self.versions.get((name, version))
        if known is not None and _is_copy(known.function, workflow.function):
            return
        newest = self.workflows.get(name)
        if (name, version) in self.versions or isinstance(newest, Reducer):
            self._add(workflow)  # raises
        self.versions[name, version] = workflow
        if newest is None or newest.version < version:
            self.workflows[name] = workflow

    def version(self, name: str, version: int) -> Workflow[..., Any] | None:
        """The workflow `name` in this version, for runs that began with it; None if it is not registered."""
        definition = self.versions.get((name, version))
        if definition is None:
            newest = self.workflows.get(name)  # a test may have set it directly
            if isinstance(newest, Workflow) and newest.version == version:
                return newest
        return definition

    def declared_by(self, name: str, version: int) -> Declared:
        """What a workflow or reducer declares; nothing of one that isn't registered."""
        found = self.workflows.get(name)
        if found is None or found.version != version:
            found = self.version(name, version)
        return UNDECLARED if found is None else found.declared

    def has_copy_of(self, step: Step[..., Any]) -> bool:
        """Whether its step of this name is the same code, imported as `__main__` and by its name."""
        known = self.steps.get(step.name)
        return known is not None and _is_copy(known.function, step.function)

    def _add(self, definition: Workflow[..., Any] | Reducer) -> None:
        known = self.workflows.get(definition.name)
        if known is not None and _is_copy(known.function, definition.function):
            return
        if definition.name in self.workflows:
            raise UsageError(
                f"two workflows or reducers are named {definition.name}: give one of them another name=, or another "
                "version= if they are versions of the same workflow"
            )
        self.workflows[definition.name] = definition

    @property
    def queues(self) -> list[str]:
        """The queues that registered steps name, sorted. A call may name others with `options(queue=…)`."""
        return sorted({step.queue for step in self.steps.values() if step.queue is not None})

    def unknown_workflow(self, name: str) -> str:
        """The message for a workflow name that isn't registered here."""
        known = ", ".join(sorted(self.workflows)) or "none"
        return f"workflow {name} is not registered; known workflows: {known}"

    def unknown_version(self, name: str, version: int) -> str:
        """The message for a version of a workflow that isn't registered here."""
        known = ", ".join(str(number) for other, number in sorted(self.versions) if other == name)
        return (
            f"this run of workflow {name} began with version {version}, but this app has only {known}: register that "
            f"function again with @app.workflow(name={name!r}, version={version}) until its runs have ended"
        )

    def unknown_step(self, name: str) -> str:
        """The message for a step that isn't registered here, or whose name belongs to another one."""
        known = ", ".join(sorted(self.steps)) or "none"
        return f"step {name} is not registered with this app; known steps: {known}"


def _name_of(function: Callable[..., Any]) -> str:
    name = getattr(function, "__name__", "")
    if not name or name == "<lambda>":
        what = "a lambda" if name else f"a {type(function).__name__}"
        raise InvalidName(f"{what} has no name of its own, and a step or workflow needs one: give it with name=…")
    return cast("str", name)
