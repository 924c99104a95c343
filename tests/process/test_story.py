"""A service by commands alone: a file comes in, a page shows its tokens, the server is killed, and a week later the run
is in the archive, and forked from there.

Each process is one that a user would have started in a terminal of its own. What a browser would do with the page is
done with its event stream. The week is a step of the clock of all processes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

import psycopg
import pytest

from streamflow.client.committed import KINDS
from streamflow.events import StepCompleted
from tests.support.later import later
from tests.support.postgres import PostgresServer, postgres_of_this_process

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[2]
SECONDS = 30.0
SWEEP_SECONDS = 100.0
"""A daemon looks once a minute which runs are to go to the archive."""
FLOWS = """
import asyncio
from pathlib import Path

import streamflow as sf
from streamflow import triggers

app = sf.App()
app.view(sf.total("tokens"), name="cost", by=["model"])


@app.step
async def review(path: str) -> str:
    words = Path(path).read_text().split()
    left_out = Path("left-out").read_text().split() if Path("left-out").exists() else []
    words = [word for word in words if word not in left_out]
    for number, word in enumerate(words):
        while number == 4 and Path("hold").exists():
            await asyncio.sleep(0.02)
        sf.emit(f"{word} ")
    sf.record("tokens", len(words), model="small")
    return f"{len(words)} words"


@app.workflow
async def reviewed(path: str) -> str:
    found = await review(path)
    await sf.signal("approve")
    return found


@app.trigger(triggers.files("incoming", "*.txt", settle=0.2))
def dropped(delivery: triggers.Delivery[triggers.File]) -> triggers.Action:
    return triggers.start(reviewed, delivery.payload.path, id=delivery.payload.name.removesuffix(".txt"))
"""


PAGE = """
import asyncio
import json
import socket

import uvicorn
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route

import streamflow as sf


async def main():
    async with sf.connect() as client:

        async def tokens(request):
            async def lines():
                run = client.run(request.path_params["run"])
                async for chunk in run.stream(str, after=request.headers.get("last-event-id", "")):
                    data = {"token": chunk.value, "restarted": chunk.restarted}
                    yield f"id: {chunk.offset}\\ndata: {json.dumps(data)}\\n\\n"
                yield "event: end\\ndata:\\n\\n"

            return StreamingResponse(lines(), media_type="text/event-stream")

        with socket.create_server(("127.0.0.1", 0)) as listening:
            print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
            app = Starlette(routes=[Route("/{run}/tokens", tokens)])
            await uvicorn.Server(uvicorn.Config(app, log_level="warning")).serve([listening])


asyncio.run(main())
"""


class Terminals:
    """A directory with `flows.py` and `page.py`. `start` opens a terminal whose command stays; all are killed at the
    end. What is started behind `step_clock` begins later."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "incoming").mkdir()
        (directory / "flows.py").write_text(FLOWS)
        (directory / "page.py").write_text(PAGE)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("STREAMFLOW_")}
        self.environ = {
            **inherited,
            "PYTHONPATH": str(ROOT),
            "NO_COLOR": "1",
            "COLUMNS": "120",
            "PYTHONIOENCODING": "utf-8",
            "STREAMFLOW_ARCHIVE": f"file://{directory}/archive",
            "STREAMFLOW_RETENTION_RULES": "reviewed=6d",
        }
        self._open: list[subprocess.Popen[bytes]] = []

    def step_clock(self, days: int) -> None:
        self.environ |= later(days)

    def start(self, command: str, log: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, *command.split()]
        with (self.directory / log).open("wb") as output, (self.directory / f"{log}.err").open("wb") as error:
            process = subprocess.Popen(words, cwd=self.directory, env=self.environ, stdout=output, stderr=error)
        self._open.append(process)
        return process

    def said(self, log: str) -> str:
        return (self.directory / log).read_text() + (self.directory / f"{log}.err").read_text()

    def run(self, command: str, code: int = 0) -> str:
        words = [sys.executable, *f"-m streamflow {command}".split()]
        done = subprocess.run(
            words, cwd=self.directory, env=self.environ, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        assert done.returncode == code, (command, done.stdout, done.stderr)
        return done.stdout or done.stderr

    def data(self, command: str) -> Any:
        return json.loads(self.run(f"{command} --json"))

    def dev(self, log: str) -> subprocess.Popen[bytes]:
        process = self.start("-m streamflow dev --app flows.py", log)
        until(lambda: "serves namespace" in self.said(log), lambda: self.said(log))
        return process

    def close(self) -> None:
        for process in self._open:
            process.kill()
            process.wait(SECONDS)


def until(condition: Callable[[], object], otherwise: Callable[[], object], seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.2)


class Browser(threading.Thread):
    """Shows a page's tokens as they come, and connects again with the last id that it has seen."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self.address = address
        self.text = ""
        self._last = ""

    def run(self) -> None:
        while not self._reads_to_the_end():
            time.sleep(0.2)

    def _reads_to_the_end(self) -> bool:
        request = urllib.request.Request(self.address, headers={"last-event-id": self._last} if self._last else {})
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as lines:
                for line in lines:
                    name, _, value = line.decode().rstrip("\n").partition(": ")
                    if name == "id":
                        self._last = value
                    elif name == "data" and value:
                        chunk = json.loads(value)
                        self.text = chunk["token"] if chunk["restarted"] else self.text + chunk["token"]
                    elif name == "event":
                        return value == "end"
        except (OSError, HTTPException):
            pass  # as a browser does
        return False


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[Terminals]:
    terminals = Terminals(tmp_path)
    try:
        yield terminals
    finally:
        terminals.close()


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    yield from postgres_of_this_process()


def test_a_dropped_file_is_a_run_that_is_forked_a_week_later(terminals: Terminals, postgres: PostgresServer) -> None:
    directory, said, data = terminals.directory, terminals.said, terminals.data
    hold = directory / "hold"
    hold.touch()
    dev = terminals.dev("dev")
    terminals.start("-m streamflow trigger run --app flows.py", "trigger")
    terminals.environ["STREAMFLOW_SINK_POSTGRES"] = postgres.url
    sink = terminals.start("-m streamflow sink postgres", "sink")
    page = terminals.start("page.py", "page")
    until(lambda: "http" in said("page"), lambda: said("page"))

    (directory / "incoming/frog.txt").write_text("an old silent pond a frog jumps in")
    until(lambda: data("runs"), lambda: said("trigger"))
    browser = Browser(f"{(directory / 'page').read_text().strip()}/frog/tokens")
    browser.start()
    until(lambda: browser.text == "an old silent pond ", lambda: (browser.text, said("page")))

    dev.kill()  # its server dies with it, in the middle of the step
    dev.wait(SECONDS)
    hold.unlink()
    dev = terminals.dev("dev-2")
    until(lambda: browser.text == "an old silent pond a frog jumps in ", lambda: (browser.text, said("page")))
    terminals.run("signal frog approve")
    browser.join(SECONDS)
    assert not browser.is_alive()

    def cost() -> dict[str, int]:
        return {row["key"]["model"]: row["value"] for window in data("view cost")["windows"] for row in window["rows"]}

    def stored() -> list[tuple[str, str]]:
        with psycopg.connect(postgres.url) as connection:
            rows = connection.execute("SELECT id, kind FROM streamflow.events ORDER BY shard, log_offset, number")
            return rows.fetchall()

    until(lambda: cost() == {"small": 8}, cost)
    until(lambda: "RunCompleted" in [kind for _, kind in stored()], lambda: said("sink"))
    history = data("show frog")["events"]
    assert len({event for event, _ in stored()}) == len(stored())
    assert [KINDS[kind].__struct_config__.tag for _, kind in stored()] == [event["event"] for event in history]

    for process in (sink, page, dev):
        process.send_signal(signal.SIGTERM)
        process.wait(SECONDS)
    terminals.step_clock(days=7)
    terminals.dev("dev-3")
    until(lambda: list(directory.glob("archive/*/runs/*/frog")), lambda: said("dev-3"), SWEEP_SECONDS)
    until(lambda: data("runs") == [], lambda: said("dev-3"))
    assert [run["run_id"] for run in data("runs --archived")] == ["frog"]
    assert "archived" in terminals.run("show frog")
    assert data("show frog")["events"] == history
    assert "streamflow restore frog" in terminals.run("signal frog approve", code=1)
    [outcome] = [event["number"] for event in history if event["event"] == StepCompleted.__struct_config__.tag]
    (directory / "left-out").write_text("a an")
    terminals.run(f"fork frog --at {outcome} --id frog-again")
    terminals.run("signal frog-again approve")
    assert terminals.run("tail --stream frog-again") == "old silent pond frog jumps in \n"
    assert data("show frog-again")["result"] == "6 words"
    until(lambda: cost() == {"small": 14}, cost)
