"""Signals of processes that a step forks, `multiprocessing` for one: their own, from the first moment on.

Owns: what such a process does with signals that this one handles in a way of its own. Must not: handle signals, start
processes.
Called by: `process.py` in daemons and workers; `steps/process_child.py` in processes of steps.

A copy has the handlers of the original and the socket that wakes its event loop up: a pool that ends its processes by
SIGTERM would end the daemon. What comes before Python's own work after a fork would even be lost to the copy, which the
pool then waits for; so these signals are blocked while a thread forks.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Set

_handled: frozenset[signal.Signals] = frozenset()


class _Before(threading.local):
    blocked: Set[int] | None = None
    """What the thread that forks had blocked before."""


_before = _Before()


def leave_signals_to_forks(numbers: Iterable[signal.Signals]) -> None:
    """From now on, processes that are forked do what is usual with these signals, and no others. None: there is no
    difference."""
    global _handled
    _handled = frozenset(numbers)


def _block() -> None:
    if _handled:
        _before.blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _handled)


def _unblock() -> None:
    blocked, _before.blocked = _before.blocked, None
    if blocked is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _reset() -> None:
    numbers = _handled
    leave_signals_to_forks(())
    if numbers:
        signal.set_wakeup_fd(-1)
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
    _unblock()  # one that has come meanwhile ends this process here
    if signal.SIGINT in numbers:
        signal.signal(signal.SIGINT, signal.default_int_handler)


os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=_reset)
