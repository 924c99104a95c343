"""`streamflow demo --incidents`: a namespace in which twelve things are wrong, until somebody ends it.

Owns: its server and its directory, what is printed, the lines that it is given, and that nothing is left behind.
Must not: know how an incident is made (`stage.py` does) or mended. Called by: the command line.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import shlex
import signal
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import anyio
import msgspec
from rich.console import Console

from streamflow.client.client import connect
from streamflow.demo import report
from streamflow.demo.fleet import fleet_of
from streamflow.demo.incidents.report import Facts, print_incidents
from streamflow.demo.incidents.stage import Stage
from streamflow.demo.incidents.twelve import DEPLOY, counts, incidents
from streamflow.embedded.server import EmbeddedServer

NAMESPACE = "incidents"
JOB_SECONDS = 1.0
"""Between two looks whether the terminal can be read, of a job in the background."""
SETTINGS = {
    "shards": 64,
    "partition": "run",
    "durability": "server",
    "threads": 2,
    "rollup": 0.5,
    "grace": 1.0,
    "silent_after": 2.0,
    "log_bytes": 16 * 1024 * 1024,
}


async def run_incidents(runs: int, *, daemons: int, as_json: bool, console: Console) -> int:
    """Make the namespace, print what is wrong in it and what to try, and keep it until SIGINT or SIGTERM.

    With `as_json`, one JSON document is printed, a `Facts`, and the progress on stderr. A line `fix` on stdin deploys
    release 1.8.3. Raises `StreamflowError` if a daemon ends too early. However it ends, it leaves no server, processes
    or files.
    """
    # For as long as there is something to clean up: a second signal must not end it in the middle.
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as received:
        async with anyio.create_task_group() as group:
            group.start_soon(_end_at_a_signal, received, group.cancel_scope)
            await _perform(runs, daemons, as_json, console)
    return 0


async def _end_at_a_signal(received: AsyncIterator[signal.Signals], scope: anyio.CancelScope) -> None:
    async for _ in received:
        scope.cancel()


async def _perform(runs: int, daemons: int, as_json: bool, console: Console) -> None:
    began = time.monotonic()
    printed_to = Console(stderr=True, markup=False, highlight=False, emoji=False) if as_json else console

    def progress(line: str) -> None:
        report.print_progress(printed_to, time.monotonic() - began, line)

    with tempfile.TemporaryDirectory(prefix="streamflow-demo-") as name:
        folder = Path(name)
        async with (
            EmbeddedServer(folder / "data", memory=True, private=True) as server,
            fleet_of(server.url, NAMESPACE, folder, SETTINGS) as fleet,
            connect(server.url, namespace=NAMESPACE) as client,
        ):
            progress(f"making {runs:,} runs")
            count = counts(runs)
            stage = Stage(client, fleet, folder, daemons, count)
            await stage.prepare(progress)
            facts = Facts(
                redis=server.url,
                namespace=NAMESPACE,
                folder=name,
                app=str(stage.app),
                runs=runs,
                took_s=round(time.monotonic() - began, 1),
                server_bytes=await stage.memory(),
                processes=[process.pid for process in (*fleet.daemons, *fleet.workers)],
                incidents=incidents(count, shlex.quote(str(stage.app))),
            )
            if as_json:
                console.file.write(msgspec.json.encode(facts).decode() + "\n")
                console.file.flush()
            else:
                print_incidents(facts, console)
            async with anyio.create_task_group() as group:
                group.start_soon(stage.forgive)
                async with _lines() as lines:
                    async for line in lines:
                        if line == DEPLOY:
                            await stage.deploy(progress)
                        elif line:
                            progress(f"{line!r} is nothing that this demo knows: it takes {DEPLOY!r}, and Ctrl-C")
                await anyio.sleep_forever()


@contextlib.asynccontextmanager
async def _lines() -> AsyncGenerator[AsyncIterator[str]]:
    """The lines of stdin, until it ends: what has none, such as a service, ends it at once."""
    loop = asyncio.get_running_loop()
    send, receive = anyio.create_memory_object_stream[str](math.inf)

    def put(text: str | None) -> None:
        with contextlib.suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
            send.close() if text is None else send.send_nowait(text)

    def read() -> None:
        # `os.read`, and in a thread that isn't waited for: `sys.stdin` can't be read on when Python ends.
        rest = b""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            while True:
                try:
                    found = os.read(0, 4096)
                except OSError:  # a terminal that belongs to another job, for now
                    if not os.isatty(0):
                        break
                    time.sleep(JOB_SECONDS)
                    continue
                if not found:
                    break
                *lines, rest = (rest + found).split(b"\n")
                for line in lines:
                    loop.call_soon_threadsafe(put, line.decode(errors="replace").strip())
            loop.call_soon_threadsafe(put, None)

    signal.signal(signal.SIGTTIN, signal.SIG_IGN)  # in the background of a shell it goes on, too
    threading.Thread(target=read, name="stdin", daemon=True).start()
    async with send, receive:
        yield receive
