"""The archive by commands, and a daemon that is killed between writing and deleting."""

from __future__ import annotations

import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamflow.embedded.server import EmbeddedServer
from tests.process.test_cli_runs import SECONDS, Cli, until

FLOWS = """
import os
import signal
import streamflow as sf
from streamflow.archive.archive import Archive
from streamflow.daemon import retention

app = sf.App()
retention.SWEEP_EVERY = 0.2


@app.step(retry=sf.NO_RETRY)
async def charge(order: str) -> str:
    if order.startswith("bad") and not os.path.exists("mended"):
        raise ConnectionError("the bank is away")
    return f"charged {order}"


@app.workflow
async def order(name: str) -> str:
    sf.publish("stage", "charging")
    return await charge(name)


if "DIES" in os.environ:
    store = Archive.store

    async def dies(self, runs, at_ms=None):
        await store(self, runs, at_ms)
        if runs:
            os.kill(os.getpid(), signal.SIGKILL)

    Archive.store = dies
"""


@pytest.fixture
def cli(embedded_server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cli]:
    """A command line in a directory with the app above; daemons that a test starts are killed."""
    monkeypatch.setenv("COLUMNS", "120")
    (tmp_path / "flows.py").write_text(FLOWS)
    daemons: list[subprocess.Popen[str]] = []
    cli = Cli(tmp_path, embedded_server.url, f"t{uuid.uuid4().hex[:12]}")
    spawn = cli.spawn

    def spawned(*arguments: str, **options: object) -> subprocess.Popen[str]:
        daemons.append(spawn(*arguments, **options))
        return daemons[-1]

    cli.spawn = spawned  # type: ignore[method-assign]
    try:
        yield cli
    finally:
        for daemon in daemons:
            daemon.kill()
            daemon.wait(SECONDS)


def daemon(cli: Cli, *arguments: str, dies: bool = False) -> subprocess.Popen[str]:
    """That is ready. With `dies` it kills itself once it has archived something."""
    log = cli.directory / f"daemon-{uuid.uuid4().hex[:4]}.log"
    environ = {**cli.environ, "DIES": "1"} if dies else cli.environ
    before, cli.environ = cli.environ, environ
    with log.open("wb") as file:
        found = cli.spawn(
            *("daemon", "--app", "flows:app", "--shards", "4", "--archive", f"file://{cli.directory}/archive"),
            *arguments,
            stdin=subprocess.DEVNULL,
            stderr=file,
        )
    cli.environ = before
    until(lambda: "now 4 of 4" in log.read_text() or found.poll() is not None, "the daemon took its shards")
    return found


def objects(cli: Cli, kind: str) -> list[Path]:
    return sorted((cli.directory / "archive").rglob(f"*.{kind}"))


def test_a_daemon_that_is_killed_between_writing_and_deleting(cli: Cli) -> None:
    first = daemon(cli)
    for number in range(3):
        assert cli("enqueue", "order", "--input", f'"o{number}"', "--id", f"o{number}", "--wait").code == 0
    first.terminate()
    assert first.wait(SECONDS) == 0
    killed = daemon(cli, "--retention", "0.001", dies=True)
    assert killed.wait(SECONDS) == -signal.SIGKILL
    written = objects(cli, "run")
    assert written, "it has written"
    assert len(cli("runs", "--json").json) == 3, "it has deleted nothing"
    daemon(cli, "--retention", "0.001")
    until(lambda: not cli("runs", "--json").json, "the next daemon has archived and deleted them")
    assert len(objects(cli, "run")) == 3
    assert set(written) <= set(objects(cli, "run")), "the same objects were written once more"
    listed = cli("runs", "--archived", "--json").json
    assert sorted(run["run_id"] for run in listed) == ["o0", "o1", "o2"]


def test_purge_read_fork_and_restore_by_commands(cli: Cli) -> None:
    daemon(cli)
    for name in ("o1", "bad1", "bad2"):
        cli("enqueue", "order", "--input", f'"{name}"', "--id", name, "--wait")
    preview = cli("purge", "--workflow", "order", "--status", "failed", "--dry-run")
    assert "Move 2 failed runs of workflow order into the archive?" in preview.out
    assert objects(cli, "run") == []
    assert cli("purge", "--workflow", "order", "--yes", "--rate", "0").out == (
        "archived 3 · already so or not applicable 0 · failed 0\nnow: 3 gone\n"
    )
    assert cli("runs", "--json").json == []
    assert "no runs on the server: --archived lists those in the archive" in cli("runs").err
    assert "no matching runs on the server: --archived" in cli("runs", "--status", "failed").err
    listed = cli("runs", "--archived", "--status", "failed", "--json").json
    assert {run["run_id"] for run in listed} == {"bad1", "bad2"}
    assert all(run["archived"] and "the bank is away" in run["error"] for run in listed)
    assert "bad1" in cli("runs", "--archived", "--error", "bank").out
    shown = cli("show", "bad1")
    assert "archived" in shown.out
    assert "the bank is away" in shown.out
    assert cli("show", "o1", "--json").json["result"] == "charged o1"
    assert cli("read", "o1", "stage").out.strip() == '"charging"'
    assert cli("export", "o1", "--output", "o1.json").code == 0
    assert cli("replay", "o1.json", "--app", "flows:app").code == 0
    assert cli("replay", "o1", "--app", "flows:app").code == 0
    (cli.directory / "mended").touch()
    assert cli("fork", "bad1", "--id", "again", "--reason", "the bank is back").code == 0
    until(lambda: cli("show", "again", "--json").json["status"] == "completed", "the fork has ended")
    refused = cli("retry", "bad2")
    assert refused.code == 1
    assert "streamflow restore bad2" in refused.err
    for command in (("signal", "bad2", "go"), ("cancel", "bad2")):
        refused = cli(*command)
        assert refused.code == 1
        assert "streamflow restore bad2" in refused.err
    assert cli("restore", "bad2").out == "bad2 is back on the server\n"
    assert cli("retry", "bad2").code == 0
    until(lambda: cli("show", "bad2", "--json").json["status"] == "completed", "it has gone on")
    assert cli("restore", "--status", "failed", "--workflow", "order", "--yes", "--rate", "0").out == (
        "restored 1 · already so or not applicable 0 · failed 0\nnow: 1 failed\n"
    )
    assert cli("forget", "o1").out == "deleted o1\n"
    assert cli("show", "o1").code == 1
    assert cli("purge", "no-such-run").code == 1
