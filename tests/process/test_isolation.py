"""What `streamflow bench isolation` measures, with short times: it checks what is right, not how fast."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.command import main
from bench.isolation import End, Plan, bench_isolation, has_given_up
from bench.isolation_command import as_object, isolation
from bench.kinds import BY_NAME, KINDS
from bench.poisons import app
from bench.rig import rig
from streamflow.embedded.server import EmbeddedServer
from streamflow.process import RESTART
from streamflow.watch.watch import GIVES_UP

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(150)]

POISONS = (
    "workflow-loops",
    "workflow-raises",
    "workflow-group",
    "result-undecodable",
    "error-unshowable",
    "diverges",
    "async-stops-loop",
    "callback-exits",
    "process-killed",
)


async def test_poisons_harm_no_innocent_run_and_end_with_their_line(embedded_server: EmbeddedServer) -> None:
    plan = Plan(
        [BY_NAME[name] for name in POISONS], rate=30, seconds=1, limit=20, calm=0.6, patience=20, harm=3, interrupt=1
    )
    async with rig(embedded_server.url) as server:
        results = await bench_isolation(server, plan, print)
    assert [trial.kind.name for trial in results.trials] == list(POISONS)
    for trial in results.trials:
        what = f"{trial.kind.name}: {trial.ended}, {trial.reason}"
        assert trial.innocents >= 20, what
        assert trial.problems == [], what
        assert trial.twice == 0, what
        assert trial.ends == [], what
        assert trial.right, what
        assert trial.named or trial.kind.name == "diverges", what  # its reason names the event at which they differ
    trials = {trial.kind.name: trial for trial in results.trials}
    diverged, killed = trials["diverges"], trials["process-killed"]
    assert trials["workflow-loops"].worst > 0.8, "the fault took place"
    assert "stuck" in diverged.ended, "runs were evicted and replayed"
    assert "WorkerLost" in killed.reason
    shown = json.loads(json.dumps(as_object(results, plan, {})))
    assert shown["poisons"]["diverges"]["completed_right"] == diverged.innocents
    assert shown["poisons"]["process-killed"]["steps_twice"] == 0
    assert trials["workflow-group"].faults(math.inf) == []


async def test_a_process_that_gives_up_explains_steps_that_run_again(embedded_server: EmbeddedServer) -> None:
    plan = Plan([BY_NAME["workflow-waits"]], rate=30, seconds=1, limit=20, calm=0.6, patience=20, harm=8, interrupt=1)
    async with rig(embedded_server.url) as server:
        results = await bench_isolation(server, plan, print)
    [trial] = results.trials
    assert trial.problems == []
    assert [(end.code, end.gave_up, end.clean) for end in trial.ends] == [(RESTART, True, False)]
    assert trial.twice == 0
    assert trial.ended == "stuck"


def test_a_process_that_drains_before_it_restarts_has_ended_cleanly(tmp_path: Path) -> None:
    log = tmp_path / "daemon.log"
    before = f"an earlier worker {GIVES_UP} 75\n"
    log.write_text(f"{before}this worker drains and exits with code 75\n")
    assert has_given_up(log, 0)
    assert not has_given_up(log, len(before))
    assert End(1, RESTART).clean
    assert not End(1, RESTART, gave_up=True).clean


def test_each_kind_is_listed_with_workflows_that_exist() -> None:
    listed = json.loads(CliRunner().invoke(isolation, ["--list", "--json"]).stdout)
    assert [kind["kind"] for kind in listed] == [kind.name for kind in KINDS]
    assert len(BY_NAME) == len(KINDS) >= 25
    names = {workflow for kind in KINDS for workflow, _ in kind.starts(("url", "namespace"))}
    assert names <= set(app.workflows)


def test_the_command_has_options_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["isolation", "--list", "--only", "forks"]) == 0
    assert capsys.readouterr().out.startswith("forks")
