"""The thread in which a view's code runs: apart from the daemon's event loop, and for a limited time.

Owns: the thread, and what happens to a call that doesn't return: its code is interrupted; code that can't be is left
behind with its thread. Must not: know views. Called by: `view_folder.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import queue
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

INTERRUPT_SECONDS = 1.0
"""After an interruption, until the thread counts as lost."""


class CodeHangs(Exception):
    """A call has taken too long. `lost`: it couldn't be interrupted, and its thread was left behind."""

    def __init__(self, text: str, *, lost: bool) -> None:
        super().__init__(text)
        self.lost = lost


class _Interrupted(BaseException):
    """Raised in code that takes too long."""


class _Work:
    __slots__ = ("function", "future", "loop")

    def __init__(
        self, function: Callable[[], Any], loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any]
    ) -> None:
        self.function, self.loop, self.future = function, loop, future


class ViewThread:
    """Runs one call at a time. The thread begins with the first one, and doesn't keep the process alive."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None
        self._work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()

    async def call(self, function: Callable[[], T], limit: float) -> T:
        """What the function gives or raises, in the thread. Raises `CodeHangs` if it takes longer than `limit` seconds,
        and `RuntimeError` with the cause if the code raises what is no `Exception`, as `sys.exit()`."""
        if self._thread is None:
            self._work = queue.SimpleQueue()
            self._thread = threading.Thread(target=_serve, args=(self._work,), name=self._name, daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._work.put(_Work(function, loop, future))
        try:
            done, _ = await asyncio.wait({future}, timeout=limit)
        except asyncio.CancelledError:
            self.close()
            raise
        if done:
            return future.result()
        line = self._line()
        self._interrupt()
        done, _ = await asyncio.wait({future}, timeout=INTERRUPT_SECONDS)
        if done:
            future.exception()
        else:
            self._thread = None  # it is left behind
        raise CodeHangs(f"its code has not returned within {limit:g} s, and was at {line}", lost=not done)

    def close(self) -> None:
        """The thread ends behind the call that it is in."""
        if self._thread is not None:
            self._work.put(None)
            self._thread = None

    def _line(self) -> str:
        assert self._thread is not None
        frame = sys._current_frames().get(self._thread.ident or 0)  # pyright: ignore[reportPrivateUsage]
        if frame is None:
            return "an unknown line"
        last = traceback.extract_stack(frame)[-1]
        return f"{last.filename}:{last.lineno} in {last.name}"

    def _interrupt(self) -> None:
        """Python code gets the exception before its next bytecode; a call of C code when it returns."""
        assert self._thread is not None
        ident = ctypes.c_ulong(self._thread.ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(_Interrupted))


def _serve(work: queue.SimpleQueue[_Work | None]) -> None:
    while True:
        try:
            item = work.get()
        except _Interrupted:  # it came late, behind the call
            continue
        if item is None:
            return
        value: Any = None
        error: BaseException | None = None
        try:
            value = item.function()
        except BaseException as raised:
            error = raised
        # The event loop may have ended; the interruption may come only here.
        with contextlib.suppress(RuntimeError, _Interrupted):
            item.loop.call_soon_threadsafe(_settle, item.future, value, error)


def _settle(future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(value)
    elif isinstance(error, Exception) and not isinstance(error, StopIteration):
        future.set_exception(error)
    else:
        wrapped = RuntimeError(f"the code of the view raised {type(error).__name__}: {error}")
        wrapped.__cause__ = error
        future.set_exception(wrapped)
