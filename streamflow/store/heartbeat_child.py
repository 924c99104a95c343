"""The process that sends a daemon's heartbeats while its interpreter is held: a script that imports only redis.

Owns: when it is silent. Must not: import anything else of streamflow, or outlive its daemon.
Called by: `daemon/heartbeat_process.py` starts it as a script and writes to its standard input.

Code in C that holds on to the interpreter stops every thread of its process, also the one that sends heartbeats for a
blocked event loop. The daemon writes each heartbeat that it has sent as a line, after one line of settings. When none
comes for `limit` seconds, although the daemon exists and isn't stopped, this process repeats the last one with another
number, for `longest` seconds at most. The numbers are negative, so that they are never those of the daemon.
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


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the daemon decides what they mean
    lines = Lines()
    settings = json.loads(lines.next(None) or b"{}")
    parent = int(settings["parent"])
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
        if not Path(f"/proc/{parent}").exists():  # something that it has forked has its end of the pipe
            os._exit(0)
        late = time.monotonic() - heard
        if last and settings["limit"] <= late < settings["longest"] and not is_stopped(parent):
            repeated += 1
            number = -(1000 * int(last["beat"]) + repeated)
            try:
                script(keys=[settings["key"]], args=[settings["member"], json.dumps({**last, "beat": number}), ""])
            except (redis.RedisError, OSError):
                client.close()  # the server may have been demoted: the next one resolves its name again


class Lines:
    """The lines of the standard input. Its end ends the process."""

    def __init__(self) -> None:
        self._data = b""

    def next(self, seconds: float | None) -> bytes:
        """The next line; empty if none came within so many seconds."""
        while b"\n" not in self._data:
            ready, _, _ = select.select([0], [], [], seconds)
            if not ready:
                return b""
            data = os.read(0, 65_536)
            if not data:
                os._exit(0)
            self._data += data
        line, _, self._data = self._data.partition(b"\n")
        return line


def is_stopped(process: int) -> bool:
    """By SIGSTOP or a debugger: to the others it is dead then."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return True
    return state in "TtZX"


if __name__ == "__main__":
    sys.exit(main())
