"""The process beside a daemon or worker that sends its heartbeats while its interpreter is held, and reports its death.

Owns: when it is silent, and what a death is. Must not: import anything of streamflow (it is a script that imports only
redis), or outlive its parent for longer than the report takes.
Called by: `watch/heartbeat_process.py` starts it as a script and writes to its standard input.

Code in C that holds on to the interpreter stops every thread of its process, also the one that sends heartbeats for a
blocked event loop. The parent writes each heartbeat that it has sent as a line, after one line of settings. When none
comes for `limit` seconds, although the parent exists and isn't stopped, this process repeats the last one with another
number, for `longest` seconds at most. The numbers are negative, so that they are never those of the parent.

A death is seen here within milliseconds, at the end of the standard input; when something that the parent has forked
keeps that open, after `every` seconds in /proc. Then the parent's heartbeat is removed, so that others need not wait
for a time-out, and a worker's is put among the `ended` first. A parent that ends in peace has killed this process
before. A stopped one (SIGSTOP, a debugger) may go on, and is left to the time-out.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

import redis

LOOK_AGAIN = 0.01
"""Seconds between two looks whether a process whose end of the pipe is closed has ended."""
TRY_AGAIN = 0.2
"""Seconds between two tries to report a death."""


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the parent decides what they mean
    lines = Lines()
    settings = json.loads(lines.next(None) or b"{}")
    if not settings:
        return
    parent = Parent(int(settings["parent"]))
    client: Any = redis.Redis.from_url(  # pyright: ignore[reportUnknownMemberType]
        settings["url"], socket_timeout=settings["every"], socket_connect_timeout=1.0
    )
    script: Any = client.register_script(settings["script"])
    last: dict[str, Any] = {}
    heard, repeated = time.monotonic(), 0
    while True:
        line = lines.next(settings["every"])
        if line:
            last, heard, repeated = json.loads(line), time.monotonic(), 0
            continue
        if lines.ended or parent.has_ended():
            break
        late = time.monotonic() - heard
        if last and settings["limit"] <= late < settings["longest"] and not parent.is_stopped():
            repeated += 1
            heartbeat = later(last, late) | {"beat": -(1000 * int(last["beat"]) + repeated)}
            try:
                script(keys=[settings["key"]], args=[settings["member"], json.dumps(heartbeat), "", ""])
            except (redis.RedisError, OSError):
                client.close()  # the server may have been demoted: the next one resolves its name again
    over = time.monotonic() + settings["patience"]
    while not parent.has_ended():
        if time.monotonic() > over:
            return  # it lives, and has closed its end
        time.sleep(LOOK_AGAIN)
    while last:
        heartbeat = later(last, time.monotonic() - heard)
        try:
            if settings["ended"]:
                script(keys=[settings["ended"]], args=[settings["member"], json.dumps(heartbeat), "1", ""])
            script(keys=[settings["key"]], args=[settings["member"], "", "", ""])
            return
        except (redis.RedisError, OSError):
            client.close()
        if time.monotonic() > over:
            return  # the others have noticed by now, if the server is there for them
        time.sleep(TRY_AGAIN)


def later(heartbeat: dict[str, Any], seconds: float) -> dict[str, Any]:
    """`sent` of a worker's heartbeat is when it was sent."""
    return heartbeat | {"sent": heartbeat["sent"] + round(1000 * seconds)} if heartbeat.get("sent") else heartbeat


class Lines:
    """The lines of the standard input."""

    def __init__(self) -> None:
        self.ended = False
        self._data = b""

    def next(self, seconds: float | None) -> bytes:
        """The next line; empty if none came within so many seconds, or it has `ended`."""
        while b"\n" not in self._data and not self.ended:
            ready, _, _ = select.select([0], [], [], seconds)
            if not ready:
                return b""
            data = os.read(0, 65_536)
            self.ended = not data
            self._data += data
        line, newline, rest = self._data.partition(b"\n")
        if not newline:
            return b""
        self._data = rest
        return line


class Parent:
    """A process, distinguished from a later one with its number by when it began."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._began = self._look()[1]

    def has_ended(self) -> bool:
        """Also one that nobody has waited for yet, and one of which the kernel writes a core dump: a long time."""
        state, began = self._look()
        return state in "ZX" or began != self._began or self._is_dumped()

    def is_stopped(self) -> bool:
        """By SIGSTOP or a debugger: to the others it is dead then."""
        return self._look()[0] in "TtZX"

    def _look(self) -> tuple[str, str]:
        try:
            fields = Path(f"/proc/{self._number}/stat").read_text(errors="replace").rpartition(")")[2].split()
            return fields[0], fields[19]
        except (OSError, IndexError):
            return "X", ""

    def _is_dumped(self) -> bool:
        try:
            return "CoreDumping:\t1" in Path(f"/proc/{self._number}/status").read_text(errors="replace")
        except OSError:
            return True


if __name__ == "__main__":
    sys.exit(main())
