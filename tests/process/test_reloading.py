"""`streamflow dev --reload --worker QUEUE`: the code changes while runs are under way."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from streamflow.cli import cli

pytestmark = pytest.mark.timeout(150)

ROOT = Path(__file__).parents[2]
SECONDS = 30.0
FLOWS = """
import streamflow as sf
from words import WORD

app = sf.App()
print("{imported}")


@app.step(queue="press")
async def say() -> str:
    return WORD


@app.workflow
async def speak() -> list[str]:
    before = await say()
    await sf.signal("go")
    return [before, await say()]
"""


class Dev:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._unset = [name for name in os.environ if name.startswith("STREAMFLOW_")]
        inherited = {name: value for name, value in os.environ.items() if name not in self._unset}
        inherited["STREAMFLOW_SHARDS"] = "8"
        self._environ = {**inherited, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}
        (directory / "flows.py").write_text(FLOWS)
        self.write("first")
        self._errors = (directory / "errors").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "streamflow", "dev", "--app", "flows.py", "--reload", "--worker", "press"],
            cwd=directory, env=self._environ, stdout=subprocess.DEVNULL, stderr=self._errors,
        )  # fmt: skip

    def write(self, word: str) -> None:
        (self.directory / "words.py").write_text(f"WORD = {word!r}\n")

    def run(self, *arguments: str) -> Any:
        """A command, in this process; it finds the server by its directory."""
        with contextlib.chdir(self.directory):
            done = CliRunner().invoke(cli, [*arguments, "--json"], env=dict.fromkeys(self._unset))
        assert done.exit_code == 0, done.output + self.log
        return json.loads(done.stdout)

    def spoken(self, run_id: str) -> list[str]:
        """What a run says that is signalled at once."""
        self.run("enqueue", "speak", "--id", run_id, "--signal", "go")
        return self.run("enqueue", "speak", "--id", run_id, "--wait")["result"]

    def said(self) -> list[str]:
        lines = self.log.splitlines()
        return [line.split("streamflow.dev: ", 1)[1] for line in lines if "streamflow.dev: " in line]

    @property
    def log(self) -> str:
        return (self.directory / "errors").read_text()

    def wait_for(self, words: str, times: int = 1) -> None:
        deadline = time.monotonic() + SECONDS
        while self.log.count(words) < times:
            assert time.monotonic() < deadline, self.log
            assert self.process.poll() is None, self.log
            time.sleep(0.05)

    def close(self) -> None:
        self._errors.close()
        self.process.terminate()
        try:
            self.process.wait(SECONDS)
        finally:
            self.process.kill()


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[Dev]:
    dev = Dev(tmp_path)
    try:
        dev.wait_for("acquired 8 shards")
        dev.wait_for("serves press of")
        yield dev
    finally:
        dev.close()


def test_a_changed_module_is_used_by_runs_that_go_on(dev: Dev) -> None:
    dev.run("enqueue", "speak", "--id", "r1")
    deadline = time.monotonic() + SECONDS
    while "first" not in json.dumps(dev.run("show", "r1")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for letter in ("se", "sec", "second"):  # as an editor that saves at each pause
        dev.write(letter)
    dev.wait_for("serves press of", 2)
    dev.run("signal", "r1", "go")
    assert dev.run("enqueue", "speak", "--id", "r1", "--wait")["result"] == ["first", "second"]
    assert dev.said() == ["words.py changed: starting again with the new code"]


def test_a_mistake_is_said_and_the_next_change_tries_again(dev: Dev) -> None:
    (dev.directory / "words.py").write_text("WORD = (\n")
    dev.wait_for("words.py changed; the code that was running goes on: SyntaxError: '(' was never closed")
    assert dev.spoken("r1") == ["first", "first"]
    (dev.directory / "words.py").write_text("WORDS = 1\n")
    dev.wait_for("the code that was running goes on: ImportError: cannot import name 'WORD'")
    dev.write("mended")
    dev.wait_for("words.py changed: starting again")
    dev.wait_for("serves press of", 2)
    assert dev.spoken("r2") == ["mended", "mended"]


def test_a_daemon_that_was_killed_is_started_by_the_next_change_only(dev: Dev) -> None:
    (number,) = [one["name"].split("-")[-2] for one in dev.run("status")["daemons"]]
    os.kill(int(number), signal.SIGKILL)
    dev.wait_for("the daemon exited unexpectedly with code -9; the next change of the code starts it again")
    time.sleep(1)
    assert len(dev.said()) == 1
    dev.write("second")
    dev.wait_for("acquired 8 shards", 2)
    assert dev.spoken("r1") == ["second", "second"]
