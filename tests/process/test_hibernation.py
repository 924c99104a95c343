"""Hibernation by commands, and daemons that are killed while they move runs out and wake them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamflow.embedded.server import EmbeddedServer
from tests.process.dying import DyingCli, dying_cli
from tests.process.test_cli_runs import SECONDS, until

pytestmark = pytest.mark.timeout(180)

RUNS = 4

FLOWS = """
import os
import signal
import streamflow as sf
from streamflow.daemon.hibernation import Hibernation
from streamflow.daemon.waking import Waking

app = sf.App()


@app.workflow
async def order(name: str) -> str:
    return f"{name}: " + await sf.signal("approve", str)


async def dies(self, *args):
    os.kill(os.getpid(), signal.SIGKILL)


async def dies_behind_some(self, *args):
    await moved(self, *args)
    os.kill(os.getpid(), signal.SIGKILL)


match os.environ.get("DIES"):
    case "behind the objects":
        Hibernation._forget = dies
    case "behind the verb":
        moved = Hibernation._forget
        Hibernation._forget = dies_behind_some
    case "before it wakes one":
        Waking._put_back = dies
    case "behind a wake-up":
        moved = Waking._put_back
        Waking._put_back = dies_behind_some
"""


@pytest.fixture
def cli(embedded_server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DyingCli]:
    monkeypatch.setenv("COLUMNS", "120")
    with dying_cli(tmp_path, embedded_server.url, FLOWS) as cli:
        yield cli


def hibernating(cli: DyingCli) -> list[str]:
    return sorted(run["run_id"] for run in cli("runs", "--hibernating", "--json").json)


NAMES = sorted(f"o{number}" for number in range(RUNS))


def test_daemons_are_killed_between_any_two_steps_and_every_run_ends_once(cli: DyingCli) -> None:
    first = cli.daemon()
    (cli.directory / "runs.jsonl").write_text("".join(f'{{"id": "{name}", "input": "{name}"}}\n' for name in NAMES))
    assert cli("enqueue", "order", "--file", "runs.jsonl").code == 0
    until(lambda: {run["status"] for run in cli("runs", "--json").json} == {"running"}, "all wait")
    first.terminate()
    first.wait(SECONDS)

    killed = cli.daemon("--hibernate-after", "0.2", dies="behind the objects")
    assert killed.wait(SECONDS) == -signal.SIGKILL
    assert list(cli.archive.rglob("parked/**/*.run")), "it has written some"
    assert hibernating(cli) == []

    killed = cli.daemon("--hibernate-after", "0.2", dies="behind the verb")
    assert killed.wait(SECONDS) == -signal.SIGKILL
    some = hibernating(cli)
    assert some, "it has moved some"

    whole = cli.daemon("--hibernate-after", "0.2")
    until(lambda: hibernating(cli) == NAMES, "all are moved out")
    assert "not listed: 4 hibernating runs" in cli("runs").err
    shown = cli("show", "o1")
    assert "hibernates since" in shown.out
    assert cli("show", "o1", "--json").json["hibernating"]
    status = cli("status", "--json").json
    assert status["hibernating"] == RUNS
    cli.archive.rename(cli.directory / "away")
    shown = cli("show", "o1")
    assert shown.code == 0, "what the server knows, and why there is no more"
    assert "waits for  storage" in shown.out
    assert "history    can't be read now" in shown.out
    assert "since" not in shown.out
    assert cli("show", "o1", "--json").json["waits_for"][0]["kind"] == "storage"
    (cli.directory / "away").rename(cli.archive)
    listed = cli("runs", "--hibernating", "--limit", "3")
    assert "3 of 4 hibernating runs" in listed.err
    assert "next page: --next " in listed.err
    assert cli("runs", "--hibernating", "--status", "failed").code == 2
    whole.terminate()
    whole.wait(SECONDS)

    for name in NAMES:
        assert cli("signal", name, "approve", '"yes"').code == 0
    for place in ("before it wakes one", "behind a wake-up"):
        killed = cli.daemon(dies=place)
        assert killed.wait(SECONDS) == -signal.SIGKILL
    cli.daemon()
    until(lambda: {run["status"] for run in cli("runs", "--json").json} == {"completed"}, "all have ended")
    assert sorted(run["run_id"] for run in cli("runs", "--json").json) == NAMES
    assert hibernating(cli) == []


def test_an_archive_that_is_not_mounted_is_refused_until_it_is_taken(cli: DyingCli) -> None:
    first = cli.daemon("--hibernate-after", "0.2")
    for name in ("o1", "o2"):
        assert cli("enqueue", "order", "--input", f'"{name}"', "--id", name).code == 0
    until(lambda: hibernating(cli) == ["o1", "o2"], "both are moved out")
    first.terminate()
    first.wait(SECONDS)
    assert cli("archive").out.endswith("is the archive of this namespace\n")
    cli.archive.rename(cli.directory / "mounted")
    cli.archive.mkdir()

    second = cli.daemon()
    shown = cli("archive", "--json")
    assert shown.code == 1
    assert "Is it mounted" in shown.out
    asked = cli("terminate", "o1")
    assert "it hibernates, so it is read from storage first" in asked.out
    until(lambda: "Is it mounted" in str(cli("show", "o1", "--json").json["waits_for"]), "the run waits")
    until(lambda: "storage_waits" in cli("status", "--check", "--json").out, "the status warns")
    assert hibernating(cli) == ["o1", "o2"]
    assert list(cli.archive.iterdir()) == []

    # The disk is gone: who knows it makes the empty directory the archive, and both runs can be ended.
    refused = cli("archive", "--take")
    assert (refused.code, "add --yes" in refused.err) == (2, True)
    taken = cli("archive", "--take", "--yes")
    assert taken.code == 0, taken.out
    until(lambda: cli("show", "o1", "--json").json["status"] == "cancelled", "the lost run has ended")
    assert "its history is lost" in cli("show", "o1").out
    assert cli("cancel", "o2").code == 0
    assert cli("terminate", "o2").code == 0
    until(lambda: cli("show", "o2", "--json").json["status"] == "cancelled", "and the other one")
    second.terminate()
    second.wait(SECONDS)
