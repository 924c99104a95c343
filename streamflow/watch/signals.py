"""Interrupting the main thread: the signals that run a handler there, between two of its bytecodes.

Owns: the handlers of both signals, and who is asked when one comes. Must not: decide what is interrupted (each watch
does). Called by: the watch.

A thread can't raise in another one, but the handler of a signal runs in the main thread, sees the frame that it
interrupts, and what it raises is raised there. `SEND` is sent by the watch's thread. While code holds on to the
interpreter (a regular expression without end) that thread can't run, so `TIMER` comes from the operating system, after
some seconds of processor time without a look of the watch: such code looks for signals itself, or returns some time.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Protocol

SEND = signal.SIGURG
"""Ignored unless somebody handles it, so that one which comes late harms nobody."""
TIMER = getattr(signal, "SIGVTALRM", None)
AGAIN = 1.0
"""Seconds of processor time after which the timer's signal is repeated."""


class Interrupter(Protocol):
    patience: float
    """Seconds of processor time without a look of the watch after which its handler is called."""

    def interrupt(self, frame: FrameType | None) -> None:
        """Raise in the code that `frame` executes, or do nothing. Called in the main thread."""
        ...


_listening: set[Interrupter] = set()
"""The watches of all loops that run in the main thread."""
_before: list[tuple[signal.Signals, Any]] = []
"""Handlers to restore."""


def listen(watch: Interrupter) -> bool:
    """Whether the caller's thread can be interrupted: it has to be the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return False
    if not _listening:
        numbers = (SEND,) if TIMER is None else (SEND, TIMER)
        _before.extend((number, signal.signal(number, _on_signal)) for number in numbers)
    _listening.add(watch)
    arm()
    return True


def ignore(watch: Interrupter) -> None:
    if watch not in _listening:
        return
    _listening.discard(watch)
    if not _listening and threading.current_thread() is threading.main_thread():
        if TIMER is not None:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)  # before its handler goes: by default it ends the process
        while _before:
            number, handler = _before.pop()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def arm() -> None:
    """Begin the timer again: called with each look of a watch."""
    if TIMER is not None and _listening:
        signal.setitimer(signal.ITIMER_VIRTUAL, min(watch.patience for watch in list(_listening)), AGAIN)


def send(thread: int) -> None:
    signal.pthread_kill(thread, SEND)


def _on_signal(_: int, frame: FrameType | None) -> None:
    for watch in list(_listening):
        watch.interrupt(frame)
