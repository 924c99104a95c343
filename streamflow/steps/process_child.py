"""What the process of a `process=True` step runs first: a script that imports nothing but the standard library.

Owns: that the process ignores signals meant for its daemon or worker, and that it never outlives that. Must not: decode
anything (`processes.py` does, imported once the parent's `sys.path` is known).
Called by: `processes.py` starts it as a script, with the number of a socket and its own process id as arguments.

A frame on the socket is its length in eight bytes, then that many bytes. The parent sends one JSON frame with its
`sys.path`, the file of its main module, how its log is set up and the directories of `--path`, and then calls, one
after the other; each is confirmed by an empty frame before it begins, and answered by a frame, before which there may
be some with what it has emitted.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import sys
import threading
from functools import partial
from types import FrameType

FOR_THE_PARENT = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""A terminal or service manager sends these to every process that it knows of; the parent decides what they mean."""
NICENESS = 5
"""Added to that of the parent: where there are fewer processors than what computes, its event loop comes first."""
LOOK_EVERY_MS = 500
"""Between two looks whether the parent is still there, where its end isn't reported by itself."""


def main() -> None:
    _let_the_parent_come_first()  # before all else: what is imported below takes as long as many a step
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    _leave_signals_to_the_parent()
    _die_with_the_parent(connection, int(sys.argv[2]))
    try:
        paths, main_file, log, directories = json.loads(_receive(connection))
        # A daemon's path begins with the directory of its app, which it has added after its own imports: so does this.
        sys.path += [path for path in paths if path not in sys.path]
        processes = importlib.import_module("streamflow.steps.processes")
        importlib.import_module("streamflow.forks").leave_signals_to_forks(FOR_THE_PARENT)
        if log is not None:  # as its daemon or worker; by name, because all that the command line has is above this
            importlib.import_module("streamflow.cli.logs").set_up(*log)
        sys.path[:] = paths
        _send(connection, processes.load_main(main_file, directories))
        while True:
            call = _receive(connection)
            _send(connection, b"")
            _send(connection, processes.answer_call(call, partial(_send, connection)))
    except (EOFError, OSError):  # the parent has closed the socket
        os._exit(0)


def _let_the_parent_come_first() -> None:
    os.nice(NICENESS)
    # Where Linux shares processors among sessions first, as it does by default, that counts inside of this one only.
    with contextlib.suppress(OSError), open("/proc/self/autogroup", "w") as group:  # noqa: PTH123
        group.write(str(NICENESS))


def _leave_signals_to_the_parent() -> None:
    """A handler and not SIG_IGN, which commands that a step starts would inherit: they could not be terminated."""

    def ignore(number: int, _: FrameType | None) -> None:
        pass

    for number in FOR_THE_PARENT:
        signal.signal(number, ignore)
    # The parent has blocked them while it started this process, so that none could come before the handlers.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FOR_THE_PARENT)


def _die_with_the_parent(connection: socket.socket, parent: int) -> None:
    """Linux ends the process with its parent, also while it is busy in C code. Elsewhere, and where a copy of the
    parent still has the socket, a thread looks."""
    try:
        import ctypes

        set_death_signal = 1
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        pass
    threading.Thread(target=_watch, args=(connection, parent), name="streamflow-parent", daemon=True).start()


def _watch(connection: socket.socket, parent: int) -> None:
    hang_ups = select.poll()
    hang_ups.register(connection, 0)  # only what is always reported: the other side is closed
    while os.getppid() == parent and not hang_ups.poll(LOOK_EVERY_MS):
        pass
    os.killpg(0, signal.SIGKILL)  # commands that the step has started, too


def _receive(connection: socket.socket) -> bytes:
    return _exactly(connection, int.from_bytes(_exactly(connection, 8), "big"))


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = connection.recv(min(size - len(data), 1 << 20))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def _send(connection: socket.socket, body: bytes) -> None:
    connection.sendall(len(body).to_bytes(8, "big") + body)


if __name__ == "__main__":
    main()
