"""The one place where code of a run is run: outside the daemon's event loop, task and context variables.

Owns: what asyncio finds when a workflow asks for the running loop or the current task, which tasks steps find, and
which context variables the code sees. Must not: drive coroutines (`coroutines.py` does), know redis.
Called by: `run.py` around every advance and every end, `factory.py` around every replay.

A workflow has no task, and an event loop that refuses everything: what would attach to the daemon's own task
(`asyncio.timeout`, `TaskGroup`, a cancel scope of anyio) or leave something running behind the run's back
(`create_task`, `call_later`, `to_thread`) raises at once, in the run that does it. Each run has a context of its own: a
context variable that it sets is seen by no other run, and can be reset in a later transition.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import sys
import traceback
from collections.abc import Callable, Generator
from types import CodeType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from streamflow.model.failures import foreign_call, is_library
from streamflow.workflow.awaitable import active

if TYPE_CHECKING:
    from typing_extensions import TypeVarTuple, Unpack

    Ts = TypeVarTuple("Ts")

T = TypeVar("T")

_running_loop = asyncio._get_running_loop
_set_running_loop = asyncio._set_running_loop
_unregister = asyncio._unregister_task


class SealedLoop(asyncio.AbstractEventLoop):
    """The running event loop of workflow code, as asyncio sees it: it refuses everything, with what to write instead.

    One object serves all runs: what it would need to know of a run is `active`.
    """

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def get_debug(self) -> bool:
        return False

    def create_task(self, coro: Any, **_: Any) -> NoReturn:
        close = getattr(coro, "close", None)
        if close is not None:
            close()  # it is never awaited, which Python would warn of
        refuse("create_task")

    def __repr__(self) -> str:
        return "<the event loop of a workflow, which runs nothing by itself>"


def refuse(name: str) -> NoReturn:
    """Raise what a workflow gets for asking its event loop to do something; `name` is the loop's method."""
    called: list[CodeType] = []
    frame = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]
    for outer, line in traceback.walk_stack(frame):
        if not is_library(outer.f_code.co_filename):
            raise foreign_call(called or [_named(name)], f"{outer.f_code.co_filename}:{line}")
        called.insert(0, outer.f_code)
    raise foreign_call(called, "an unknown line")


def _named(name: str) -> CodeType:
    """A method of the loop that user code called itself, as a library's function would be called."""
    return refuse.__code__.replace(co_name=name, co_qualname=name)


def _refusal(name: str) -> Callable[..., NoReturn]:
    def refused(self: SealedLoop, *args: Any, **kwargs: Any) -> NoReturn:
        for argument in args:  # a coroutine that is handed over is never awaited
            if asyncio.iscoroutine(argument):
                argument.close()
        refuse(name)

    return refused


for _name in dir(asyncio.AbstractEventLoop):
    if not _name.startswith("_") and _name not in vars(SealedLoop):
        setattr(SealedLoop, _name, _refusal(_name))

SEALED = SealedLoop()


_hiding = False


def hide_tasks() -> None:
    """This process is a daemon's or worker's own: from now on `hide` hides."""
    global _hiding
    _hiding = True


def hide(task: asyncio.Task[Any]) -> None:
    """Leave a task out of `asyncio.all_tasks()`, so that a step which cancels all of these harms nobody else."""
    if _hiding:
        _unregister(task)


def hide_all() -> None:
    """Hide all tasks that there are now."""
    for task in asyncio.all_tasks():
        hide(task)


@contextlib.contextmanager
def one_seal() -> Generator[None]:
    """Code of many runs is run inside: entering and leaving once costs 2 µs, for each run it would cost 1.5."""
    outside = enter_seal()
    try:
        yield
    finally:
        leave_seal(outside)


def enter_seal() -> tuple[Any, Any, Any]:
    """Let asyncio find the sealed loop and no task until `leave_seal`."""
    loop = _running_loop()
    task = _leave_task(loop)
    hooks = sys.get_asyncgen_hooks()
    _set_running_loop(SEALED)
    sys.set_asyncgen_hooks(None, _finalize)
    return loop, task, hooks


def leave_seal(outside: tuple[Any, Any, Any]) -> None:
    loop, task, hooks = outside
    _set_running_loop(loop)
    _enter_task(loop, task)
    sys.set_asyncgen_hooks(*hooks)


def sealed(context: contextvars.Context, function: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
    """Call `function` as code of a run is called: in the run's context, with no task and no loop of the daemon.

    From inside a run's own code, where a machine is active, it is a plain call.
    """
    if _running_loop() is SEALED:
        return context.run(function, *args) if active.get() is None else function(*args)
    outside = enter_seal()
    try:
        return context.run(function, *args)
    finally:
        leave_seal(outside)


def _finalize(generator: Any) -> None:
    """An async generator is dropped before its end (`break` in an `async for`): its `finally` blocks are the run's."""
    machine = active.get()
    if machine is not None:
        machine.finalize(generator)


if sys.version_info >= (3, 14):  # the current task is the thread's, whatever loop runs
    from asyncio.tasks import _swap_current_task

    def _leave_task(loop: Any) -> Any:
        return None if loop is None else _swap_current_task(loop, None)

    def _enter_task(loop: Any, task: Any) -> None:
        if task is not None:
            _swap_current_task(loop, task)

else:  # it is looked up by the running loop, and the sealed one never has any

    def _leave_task(loop: Any) -> Any:
        return None

    def _enter_task(loop: Any, task: Any) -> None:
        pass
