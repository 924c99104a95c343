"""Daemons that kill themselves at a place that the test names: their flows patch it, and say which there are."""

from __future__ import annotations

import contextlib
import subprocess
import uuid
from collections.abc import Generator
from pathlib import Path

from tests.process.test_cli_runs import SECONDS, Cli, until


class DyingCli(Cli):
    """A command line in a directory with `flows.py`, and daemons that serve it with an archive in that directory."""

    def __init__(self, directory: Path, url: str, flows: str) -> None:
        super().__init__(directory, url, f"t{uuid.uuid4().hex[:12]}")
        (directory / "flows.py").write_text(flows)
        self.archive = directory / "archive"
        self._daemons: list[subprocess.Popen[str]] = []

    def daemon(self, *arguments: str, dies: str = "", archive: str = "", **environ: str) -> subprocess.Popen[str]:
        """One that has its shards, or is dead already. `dies`: where it kills itself."""
        log = self.directory / f"daemon-{len(self._daemons)}.log"
        before, self.environ = self.environ, {**self.environ, "DIES": dies, "STREAMFLOW_DEAD_AFTER": "2", **environ}
        url = archive or f"file://{self.archive}"
        with log.open("wb") as file:
            found = self.spawn(
                *("daemon", "--app", "flows:app", "--shards", "4", "--archive", url),
                *arguments,
                stdin=subprocess.DEVNULL,
                stderr=file,
            )
        self._daemons.append(found)
        self.environ = before
        until(lambda: "now 4 of 4" in log.read_text() or found.poll() is not None, "the daemon took its shards")
        return found

    def close(self) -> None:
        for daemon in self._daemons:
            daemon.kill()
            daemon.wait(SECONDS)


@contextlib.contextmanager
def dying_cli(directory: Path, url: str, flows: str) -> Generator[DyingCli]:
    cli = DyingCli(directory, url, flows)
    try:
        yield cli
    finally:
        cli.close()
