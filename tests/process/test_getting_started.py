"""docs/getting-started.md, command by command: a run survives the death of everything by SIGKILL."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/getting-started.md").read_text()
SECONDS = 60.0
DEV = ".venv/bin/streamflow dev --app flows.py"
KILL = "kill -9 $(pgrep -f 'streamflow dev')"


class Terminals:
    """A directory with `flows.py`, in which the commands of the page run; `.venv/bin` is this interpreter's."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("STREAMFLOW_")}
        self._environ = {**inherited, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}

    def run(self, command: str) -> str:
        command = command.replace(".venv/bin/", f"{Path(sys.executable).parent}/")
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.directory,
            env=self._environ,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextlib.contextmanager
    def dev(self, name: str) -> Generator[None]:
        """`streamflow dev` until the end of the block, which is its SIGKILL. Other commands find its server."""
        command = [str(Path(sys.executable).parent / "streamflow"), *DEV.split()[1:]]
        log = self.directory / name
        with log.open("wb") as output:
            process = subprocess.Popen(command, cwd=self.directory, env=self._environ, stdout=output, stderr=output)
        try:
            self._wait_for(r"server: unix://\S+ [^\0]*serves namespace", log, process)
            yield
        finally:
            process.kill()
            process.wait()

    def _wait_for(self, pattern: str, log: Path, process: subprocess.Popen[bytes]) -> re.Match[str]:
        deadline = time.monotonic() + SECONDS
        while (found := re.search(pattern, log.read_text())) is None:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        return found

    def wait_for(self, command: str, words: str) -> str:
        """Until the command prints the words: a reader is slower than a daemon, a test is not."""
        deadline = time.monotonic() + SECONDS
        while words not in (output := self.run(command)):
            assert time.monotonic() < deadline, output
            time.sleep(0.05)
        return output


def test_a_reader_who_copies_every_command_sees_a_run_survive_a_kill(tmp_path: Path) -> None:
    source = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)[0]
    (tmp_path / "flows.py").write_text(source)
    commands = re.findall(r"^```sh\n(.*?)\n```$", PAGE, re.DOTALL | re.MULTILINE)
    _install, without_server, start, enqueue, kill, start_again, signal = commands
    assert start == start_again == DEV
    assert kill == KILL  # here by the process's number: a test shares its machine
    terminals = Terminals(tmp_path)

    assert terminals.run(without_server) == "['One.']\n"
    start_run, show = enqueue.splitlines()
    with terminals.dev("first.log"):
        terminals.run(start_run)
        assert "running" in terminals.wait_for(show, '"Three."')
    send, show = signal.splitlines()
    with terminals.dev("second.log"):
        terminals.run(send)
        output = terminals.wait_for(show, "completed")
    assert "2 steps" in output
    assert '["One.","Three."]' in output
