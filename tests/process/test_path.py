"""`--path` in an ordinary installation: an app's own packages, in tasks, threads and processes."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

import streamflow as sf
from streamflow.embedded.server import EmbeddedServer
from tests.process.packages import Command, write_app

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("given", ["option", "variable"])
async def test_steps_of_every_kind_find_the_packages_of_the_app(
    embedded_server: EmbeddedServer, namespace: str, client: sf.Client, tmp_path: Path, given: str
) -> None:
    app, packages = write_app(tmp_path), tmp_path / "packages"
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "STREAMFLOW_REDIS": embedded_server.url}
    words = [sys.executable, "-m", "streamflow", "daemon", "--app", f"{app}:app", "--namespace", namespace]
    words += ["--shards", "4", "--processes", "1"]
    if given == "option":
        words += ["--path", "packages"]  # relative to where the command was started
    else:
        environ["STREAMFLOW_PATH"] = os.pathsep.join(["", str(packages), str(packages)])
    daemon = Command(words, environ, tmp_path)
    try:
        answer = await daemon.result(client, "all_kinds")
        assert isinstance(answer, list)
        assert answer[:-1] == ["A!", "B!", "C!", "edited", "42"]
        assert int(answer[-1]) not in (daemon.process.pid, os.getpid())
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(20) == 0
    finally:
        daemon.end()
