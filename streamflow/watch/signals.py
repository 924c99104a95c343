"""Interrupting the main thread: the signals that run a handler there, between two of its bytecodes.

Owns: the handlers of both signals, and who is asked when one comes. Must not: decide what is interrupted (each watch
does). Called by: the watch.

A thread can't raise in another one, but the handler of a signal runs in the main thread, sees the frame that it
interrupts, and what it raises is raised there. `SEND` is sent by the watch's thread. While code holds on to the
interpreter (a regular expression without end) that thread can't run, so `TIMER` comes from the operating system, after
some seconds of processor time without a look of the watch: such code looks for signals itself, or returns some time.
A step may have replaced one of their handlers: the other is used then, until the loop has put ours back.
`END` is for code that does neither. It ends the process, as it does by default, after a traceback of all threads: no
code in Python can run any more. A process that is stopped uses no processor time, so neither timer runs out. `STACK`
and an earlier `END` come from the process beside a daemon or worker, which asks for the stack before it decides.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import signal
import threading
from types import FrameType
from typing import Any, Protocol

SEND = signal.SIGURG
"""Ignored unless somebody handles it, so that one which comes late harms nobody."""
TIMER = getattr(signal, "SIGVTALRM", None)
END = getattr(signal, "SIGPROF", None)
STACK = getattr(signal, "SIGRTMIN", None)
"""Writes the stacks of all threads into a file, without any code in Python."""
_NUMBERS = (SEND,) if TIMER is None else (SEND, TIMER)
AGAIN = 1.0
"""Seconds of processor time after which the timer's signal is repeated."""


_log = logging.getLogger("streamflow.watch")


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
_ends = False
"""Whether `END` may come."""
_timers = threading.Lock()
"""Held while timers are set: none may run on once nobody handles its signal, which ends the process then."""


def listen(watch: Interrupter) -> bool:
    """Whether the caller's thread can be interrupted: it has to be the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return False
    if not _listening:
        _before.extend((number, signal.signal(number, _on_signal)) for number in _NUMBERS)
    _listening.add(watch)
    return True


def ignore(watch: Interrupter) -> None:
    if watch not in _listening:
        return
    with _timers:
        _listening.discard(watch)
        if not _listening and TIMER is not None:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
    if not _listening and threading.current_thread() is threading.main_thread():
        while _before:
            number, handler = _before.pop()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def keep_listening() -> None:
    """Put our handlers back, if somebody has replaced them. Only the main thread can: each answer of its loop does."""
    for number in _NUMBERS:
        if signal.getsignal(number) is not _on_signal and _listening:
            signal.signal(number, _on_signal)
            _log.warning(
                "the handler of %s was replaced, probably by a step, and is put back: code that blocks the event loop "
                "is interrupted by it",
                number.name,
            )


def arm() -> None:
    """Begin the timer of `TIMER` again: called with each look of a watch."""
    with _timers:
        if TIMER is not None and _listening:
            signal.setitimer(signal.ITIMER_VIRTUAL, min(watch.patience for watch in _listening), AGAIN)


def may_end_process() -> bool:
    """Whether `END` can be used: nobody else (a profiler) does. Call it in the main thread."""
    global _ends
    if END is None or signal.getsignal(END) is not signal.SIG_DFL:
        return False
    with contextlib.suppress(Exception):  # stderr may be closed
        faulthandler.register(END, all_threads=True, chain=True)
    _ends = True
    return True


def show_stacks_in(file: int) -> None:
    """At each `STACK`. Raises what `faulthandler.register` does."""
    if STACK is not None:
        faulthandler.register(STACK, file=file, all_threads=True)


def end_process_after(seconds: float) -> None:
    """End this process after so much processor time, unless this is called again before."""
    with _timers:
        if _ends:
            signal.setitimer(signal.ITIMER_PROF, seconds)


def never_end_process() -> None:
    global _ends
    with _timers:
        _ends = False
        signal.setitimer(signal.ITIMER_PROF, 0.0)


def send(thread: int) -> None:
    for number in _NUMBERS:
        if signal.getsignal(number) is _on_signal:
            signal.pthread_kill(thread, number)
            return


def _on_signal(_: int, frame: FrameType | None) -> None:
    for watch in list(_listening):
        watch.interrupt(frame)
