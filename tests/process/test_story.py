"""A service by commands alone: a file comes in, somebody watches, the server is killed, a run is archived and forked.

Each process is one that a user would have started in a terminal of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streamflow.client.committed import KINDS
from streamflow.events import StepCompleted

pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).parents[2]
SECONDS = 30.0
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


class Terminals:
    """A directory with `flows.py`. `start` opens a terminal whose command stays; all are killed at the end."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "incoming").mkdir()
        (directory / "flows.py").write_text(FLOWS)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("STREAMFLOW_")}
        self._environ = {
            **inherited,
            "PYTHONPATH": str(ROOT),
            "NO_COLOR": "1",
            "COLUMNS": "120",
            "PYTHONIOENCODING": "utf-8",
            "STREAMFLOW_ARCHIVE": f"file://{directory}/archive",
        }
        self._open: list[subprocess.Popen[bytes]] = []

    def start(self, command: str, log: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", *command.split()]
        with (self.directory / log).open("wb") as output, (self.directory / f"{log}.err").open("wb") as error:
            process = subprocess.Popen(words, cwd=self.directory, env=self._environ, stdout=output, stderr=error)
        self._open.append(process)
        return process

    def said(self, log: str) -> str:
        return (self.directory / log).read_text() + (self.directory / f"{log}.err").read_text()

    def run(self, command: str, code: int = 0) -> str:
        words = [sys.executable, "-m", *command.split()]
        done = subprocess.run(
            words, cwd=self.directory, env=self._environ, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        assert done.returncode == code, (command, done.stdout, done.stderr)
        return done.stdout or done.stderr

    def data(self, command: str) -> Any:
        return json.loads(self.run(f"{command} --json"))

    def dev(self, log: str) -> subprocess.Popen[bytes]:
        process = self.start("streamflow dev --app flows.py", log)
        until(lambda: "serves namespace" in self.said(log), lambda: self.said(log))
        return process

    def close(self) -> None:
        for process in self._open:
            process.kill()
            process.wait(SECONDS)


def until(condition: Callable[[], object], otherwise: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.2)


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[Terminals]:
    terminals = Terminals(tmp_path)
    try:
        yield terminals
    finally:
        terminals.close()


def test_a_dropped_file_is_a_run_until_it_is_forked_from_the_archive(terminals: Terminals) -> None:
    directory, said, data = terminals.directory, terminals.said, terminals.data
    hold, events = directory / "hold", directory / "events.jsonl"
    hold.touch()
    dev = terminals.dev("dev")
    terminals.start("streamflow trigger run --app flows.py", "trigger")
    terminals.start("streamflow sink jsonl events.jsonl", "sink")

    (directory / "incoming/frog.txt").write_text("an old silent pond a frog jumps in")
    until(lambda: data("streamflow runs"), lambda: said("trigger"))
    tail = terminals.start("streamflow tail --stream frog", "tail")
    until(lambda: "an old silent pond " in said("tail"), lambda: said("tail"))

    dev.kill()  # its server dies with it, in the middle of the step
    dev.wait(SECONDS)
    hold.unlink()
    terminals.dev("dev-2")
    terminals.run("streamflow signal frog approve")
    assert tail.wait(SECONDS) == 0, said("tail")
    shown = (directory / "tail").read_text()
    assert shown.startswith("an old silent pond \n-- review #1"), shown
    assert shown.endswith("\nan old silent pond a frog jumps in \n"), shown

    def cost() -> list[tuple[dict[str, str], int]]:
        [window] = data("streamflow view cost")["windows"]
        return [(row["key"], row["value"]) for row in window["rows"]]

    until(lambda: cost() == [({"model": "small"}, 8)], cost)
    until(lambda: "RunCompleted" in events.read_text(), lambda: said("sink"))
    stored = [json.loads(line) for line in events.read_text().splitlines()]
    history = data("streamflow show frog")["events"]
    assert len({event["id"] for event in stored}) == len(stored)
    assert [KINDS[event["kind"]].__struct_config__.tag for event in stored] == [event["event"] for event in history]

    terminals.run("streamflow purge frog")
    assert "archived" in terminals.run("streamflow show frog")
    assert "streamflow restore frog" in terminals.run("streamflow signal frog approve", code=1)
    [outcome] = [event["number"] for event in history if event["event"] == StepCompleted.__struct_config__.tag]
    (directory / "left-out").write_text("a an")
    terminals.run(f"streamflow fork frog --at {outcome} --id frog-again")
    terminals.run("streamflow signal frog-again approve")
    assert terminals.run("streamflow tail --stream frog-again") == "old silent pond frog jumps in \n"
    assert data("streamflow show frog-again")["result"] == "6 words"
    until(lambda: cost() == [({"model": "small"}, 14)], cost)
