"""A second process beside a daemon or worker: sends its heartbeats while code in C holds on to its interpreter, and
reports its death.

Owns: that process, and what is written to it. Must not: decide when it beats (`store/heartbeat_child.py` does).
Called by: daemon and worker (start and stop it), membership and claims (each heartbeat that was confirmed).

Only for one with a process of its own, on Linux: the other process has to see whether that is stopped, or gone.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from streamflow.interpreter import python_command
from streamflow.server_url import cluster_of, sentinels_of
from streamflow.steps import executor
from streamflow.steps.stacks import LIBRARIES, PACKAGE
from streamflow.store import heartbeat_child
from streamflow.store.kernel import Kernel
from streamflow.store.scripts import load_scripts
from streamflow.watch import signals
from streamflow.watch.last_note import last_note
from streamflow.watch.shared_note import FORMAT, THREAD_FORMAT, SharedNote
from streamflow.watch.watch import LONGEST, Culprit

_log = logging.getLogger("streamflow.watch")


GIVES_WAY = 0.5
"""Seconds after `interrupt` or `interrupt_steps` after which code in C that holds the interpreter counts as one that
can't be interrupted: the operating system's timer has sent its signal then (`signals.py`)."""
RESTART_PAUSE = 60.0
"""The least seconds between two starts: where it can't run, a daemon must not start one with each heartbeat."""


class HeartbeatProcess:
    """`members`: the key with the heartbeats, of which this is `member`, every `every` seconds. `timeout`: seconds
    without one after which it is considered dead. `ended`: the key in which its death is noted, if it is noted."""

    def __init__(
        self,
        url: str,
        members: str,
        member: str,
        *,
        every: float,
        timeout: float,
        longest: float = LONGEST,
        ended: str = "",
    ) -> None:
        sentinels, cluster = sentinels_of(url), cluster_of(url)
        self._settings: dict[str, Any] = {
            "url": url if sentinels is None else sentinels.server,
            "sentinels": sentinels and sentinels._asdict(),
            "cluster": cluster and cluster._asdict(),
            "script": load_scripts()["heartbeat"].source,
            "key": members,
            "member": member,
            "ended": ended,
            "parent": os.getpid(),
            "every": every,
            # Later than the thread that beats for a blocked event loop, which suffices in most cases.
            "limit": max(1.75 * every, 0.65 * timeout),
            "longest": longest,
            "patience": timeout,
            "held": None,
        }
        self._files: tuple[int, ...] = ()
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        """When it was started last (monotonic s)."""
        self._stopped = not Path("/proc/self/stat").exists()

    def ends_held(self, note: SharedNote, kernel: Kernel, place: str) -> None:
        """Let it end this process, a "daemon" or "worker", when code in C has held the interpreter for longer than it
        may, whose code that is stands in `note`. Call it before `start`."""
        signals.show_stacks_in(note.stack)
        proof, of_step = (last_note(kernel, self._settings["member"], 0, Culprit("", seq, "")) for seq in (0, 1))
        self._files = (note.file, note.stack)
        self._settings["held"] = {
            "note": note.file,
            "stack": note.stack,
            "format": FORMAT,
            "thread_format": THREAD_FORMAT,
            "threads": note.threads,
            "step_limit": note.step_limit if note.step_limit < math.inf else 0.0,
            "after": GIVES_WAY,
            "place": place,
            "script": load_scripts()[proof.script].source,
            "key": proof.keys[0],
            "seconds": proof.args[0],
            "body": json.loads(proof.args[1]),
            "body_of_step": json.loads(of_step.args[1]),
            "show": signals.STACK,
            "end": signals.END,
            "package": PACKAGE,
            "machine": PACKAGE + "machine" + os.sep,
            "executor": executor.__file__,
            "libraries": LIBRARIES,
        }

    def start(self) -> None:
        if self._stopped:
            return
        self._started = time.monotonic()
        self._process = process = subprocess.Popen(
            python_command(heartbeat_child.__file__),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=self._files,
        )
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        self._write(json.dumps(self._settings).encode())

    def sent(self, heartbeat: bytes) -> None:
        """The daemon or worker has sent a heartbeat (JSON) itself."""
        process = self._process
        if process is not None and process.poll() is not None and time.monotonic() - self._started > RESTART_PAUSE:
            _log.warning(
                "the process for heartbeats ended (%d) and is started again: without it, code in C that holds the "
                "interpreter makes this process look dead, and its death is noticed later",
                process.returncode,
            )
            self.start()
        self._write(b"%f %b" % (time.monotonic(), heartbeat))

    def stop(self) -> None:
        """Before it deregisters: no heartbeat of it comes later, and its end is not reported as a death."""
        self._stopped = True
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.close()

    def _write(self, line: bytes) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):  # it has ended, or doesn't read
                os.write(self._process.stdin.fileno(), line + b"\n")
