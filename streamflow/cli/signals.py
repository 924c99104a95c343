"""The signals of a command before it has handlers of its own.

Owns: that SIGTERM and SIGINT count from the first instruction on, however the process was started. Must not: import
anything that takes time, or know what a command does. Called by: `main`, first.
"""

from __future__ import annotations

import os
import signal
from types import FrameType


def take_signals() -> None:
    """Undo what a process inherits that makes it deaf.

    As process 1 of a container it has no default actions: the system drops SIGTERM until there is a handler, also while
    an app is imported or a server is waited for. And a shell without job control lets its background commands ignore
    SIGINT; who sends it to a server wants it to stop, so other servers don't keep that either. SIGHUP stays as it is:
    `nohup` is a decision.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.getpid() == 1:
        signal.signal(signal.SIGTERM, _end_as_by_default)
    elif signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end_as_by_default(number: int, _: FrameType | None) -> None:
    """Nothing has begun that has to be finished: a daemon or worker that serves has another handler."""
    os._exit(128 + number)
