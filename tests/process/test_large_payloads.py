"""Daemons are killed between storing a large payload and referring to it, and while payloads are deleted."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from streamflow.embedded.server import EmbeddedServer
from streamflow.model.references import references_in
from streamflow.store.keys import NamespaceKeys
from tests.process.dying import DyingCli, dying_cli
from tests.process.test_cli_runs import SECONDS, until

pytestmark = pytest.mark.timeout(180)

TEXT = "".join(f"{number:08d}" for number in range(2500))

FLOWS = """
import os
import signal
from pathlib import Path

import streamflow as sf
from streamflow.archive.payloads import Payloads
from streamflow.daemon import large_payloads, payload_sweep

app = sf.App()
TEXT = "".join(f"{number:08d}" for number in range(2500))


@app.step
async def load(name: str) -> str:
    return name + TEXT


@app.workflow
async def doubled(name: str) -> str:
    text = await load(name)
    return await joined(text, text[::-1])


@app.workflow
async def joined(text: str, other: str) -> str:
    return text + other


@app.workflow
async def keeps(name: str) -> str:
    text = await load(name)
    sf.publish("has", name)
    return text + await sf.signal("more", str)


def dies():
    os.kill(os.getpid(), signal.SIGKILL)


async def stores_and_dies(self, payloads):
    "The first time that each of them is stored."
    await store(self, payloads)
    seen = Path("seen").read_text().split() if Path("seen").exists() else []
    fresh = [one.digest.hex() for one in payloads if one.digest.hex() not in seen]
    if fresh:
        with open("seen", "a") as file:
            file.write(" ".join(fresh) + "\\n")
        dies()


async def dies_before(self, week, digest):
    dies()


async def dies_behind(self, week, digest):
    await remove(self, week, digest)
    dies()


payload_sweep.SWEEP_EVERY = 0.2
store, remove, week_of = Payloads.store, Payloads.remove, large_payloads.week_of
match os.environ.get("DIES"):
    case "behind a payload":
        Payloads.store = stores_and_dies
    case "before a deletion":
        Payloads.remove = dies_before
    case "behind a deletion":
        Payloads.remove = dies_behind
if "WEEKS_AGO" in os.environ:  # for all that is stored
    large_payloads.week_of = lambda ms: week_of(ms) - int(os.environ["WEEKS_AGO"])
"""


@pytest.fixture
def cli(embedded_server: EmbeddedServer, tmp_path: Path) -> Iterator[DyingCli]:
    with dying_cli(tmp_path, embedded_server.url, FLOWS) as cli:
        yield cli


LARGE = ("--large-payload", "8192")


def stored(cli: DyingCli) -> set[str]:
    """Digests of the payloads in storage."""
    return {path.stem for path in cli.archive.rglob("*.pay")}


def referred_to(cli: DyingCli) -> set[str]:
    """Digests of the payloads that the records of runs refer to."""
    keys = NamespaceKeys(cli.own["STREAMFLOW_NAMESPACE"])
    with Redis.from_url(cli.own["STREAMFLOW_REDIS"]) as redis:
        records: list[Any] = [
            element
            for shard in range(4)
            for key in redis.scan_iter(match=keys.shard(shard).run("*"), count=1000)
            for element in redis.lrange(key, 0, -1)  # pyright: ignore[reportGeneralTypeIssues]
        ]
    return {one.digest.hex() for element in records for one in references_in(element)}


def statuses(cli: DyingCli) -> set[str]:
    return {run["status"] for run in cli("runs", "--json").json}


def test_a_daemon_that_dies_behind_a_payload_loses_no_run_and_no_payload(cli: DyingCli) -> None:
    """What a step returns, what the code of a run makes for its child, and what a child returns: of each run all of
    them are stored by a daemon that dies then."""
    names, kills = ["a", "b"], 0
    first = cli.daemon(*LARGE)
    first.terminate()
    first.wait(SECONDS)
    for name in names:
        assert cli("enqueue", "doubled", "--input", f'"{name}"', "--id", name).code == 0
    while True:
        daemon = cli.daemon(*LARGE, dies="behind a payload")
        until(
            lambda daemon=daemon: daemon.poll() is not None or statuses(cli) == {"completed"},
            "the daemon has died, or all runs have ended",
        )
        if daemon.poll() is None:
            break
        assert daemon.returncode == -signal.SIGKILL
        kills += 1
        *_, last = (cli.directory / "seen").read_text().splitlines()
        assert set(last.split()) <= stored(cli), "it was durable"
        assert not set(last.split()) & referred_to(cli), "and nothing was committed that refers to it"
    seen = (cli.directory / "seen").read_text().split()
    assert len(seen) == 3 * len(names)
    assert kills >= 3, "each of the three kinds has killed one"
    assert stored(cli) == set(seen) == referred_to(cli)
    for name in names:
        text = name + TEXT
        assert cli("enqueue", "doubled", "--input", f'"{name}"', "--id", name, "--wait").json == text + text[::-1]


def test_a_sweep_that_is_killed_deletes_nothing_that_is_needed(cli: DyingCli) -> None:
    earlier = cli.daemon(*LARGE, WEEKS_AGO="2")
    for name in ("kept", "gone", "gone too"):
        assert cli("enqueue", "keeps", "--input", f'"{name}"', "--id", name.replace(" ", "-")).code == 0
    for name in ("gone", "gone-too"):
        until(lambda name=name: cli("read", name, "has").code == 0, "the run has its payload")
        assert cli("signal", name, "more", '"!"').code == 0
        until(lambda name=name: cli("show", name, "--json").json["status"] == "completed", "the run has ended")
        assert cli("forget", name).code == 0
    until(lambda: cli("read", "kept", "has").code == 0, "the run has its payload")
    earlier.terminate()
    earlier.wait(SECONDS)
    [week] = {path.parent for path in cli.archive.rglob("*.pay")}
    assert len(stored(cli)) == 5, "of the runs that are gone a result of a step and one of the run"
    [needed] = referred_to(cli)

    killed = cli.daemon(*LARGE, dies="before a deletion")
    assert killed.wait(SECONDS) == -signal.SIGKILL
    assert len(stored(cli)) == 5
    assert cli("enqueue", "keeps", "--input", '"gone"', "--id", "again").code == 0

    killed = cli.daemon(*LARGE, dies="behind a deletion")
    assert killed.wait(SECONDS) == -signal.SIGKILL
    assert len(list(week.iterdir())) == 4

    cli.daemon(*LARGE)
    until(lambda: [path.stem for path in week.iterdir()] == [needed], "all that nothing needs is deleted")
    for name, run_id in (("kept", "kept"), ("gone", "again")):
        until(lambda run_id=run_id: cli("read", run_id, "has").code == 0, "the run has its payload")
        assert cli("signal", run_id, "more", '"!"').code == 0
        done = cli("enqueue", "keeps", "--input", f'"{name}"', "--id", run_id, "--wait")
        assert done.json == name + TEXT + "!"
    assert needed in referred_to(cli)
    assert referred_to(cli) <= stored(cli)
