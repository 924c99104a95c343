"""After a deploy, runs that the new code can't continue are stuck before anything comes for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from click.testing import CliRunner

import streamflow as sf
from streamflow.cli import cli
from streamflow.daemon import deploy_check, stuck_runs, takeover
from streamflow.daemon.code_fingerprint import fingerprint
from streamflow.daemon.daemon import Daemon
from streamflow.daemon.deploy_check import DeployCheck
from streamflow.embedded.server import EmbeddedServer
from streamflow.events import RunStuck, SignalReceived, StepCompleted
from streamflow.store.connection import Call
from tests.support.waiting import happened, names_of, reduced, status_of, until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio


def release(
    *steps: str, name: str = "flow", wait: Callable[[], Any] = lambda: sf.signal("go", str), last: str = ""
) -> sf.App:
    """A workflow that takes these steps, and then waits, and then may take a last one."""
    app = sf.App()

    async def act() -> str:
        return sf.step_info().step

    final = app.step(name=last or "nothing")(act)
    registered = [app.step(name=step)(act) for step in steps]

    @app.workflow(name=name)
    async def flow() -> list[str]:
        found = [*[await step() for step in registered], await wait()]
        return [*found, await final()] if last else found

    @app.reducer
    def tally(state: int, event: sf.Event) -> sf.Decision:
        return sf.Decision(state + 1)

    return app


DIVERGED = (
    "diverged at event 2: the history has StepScheduled(1, pack), a step that is not registered any more, the code did"
)


async def test_runs_that_wait_are_stuck_from_the_deploy_on(
    serve: Serve, embedded_server: EmbeddedServer, namespace: str
) -> None:
    async with serve(release("pack")) as (client, _):
        runs = [await client.start("flow", id=f"r{n}") for n in range(20)]
        for run in runs:
            await happened(run, StepCompleted)
    async with serve(release("weigh")):
        for run in runs:
            await status_of(run, sf.Status.STUCK)
        assert DIVERGED in (await runs[0].describe()).reason
        found = await client.runs(status="stuck", limit=100)
        assert {run.id for run in found} == {run.id for run in runs}
        assert all(DIVERGED in run.reason for run in found)
        options = ["--status", "stuck", "--redis", embedded_server.url, "--namespace", namespace]
        assert f"r7 is stuck: run r7 {DIVERGED}" in await printed("runs", *options)
        listed = json.loads(await printed("runs", *options, "--json"))
        assert all(DIVERGED in run["reason"] for run in listed)
        assert len(listed) == 20
        await runs[0].signal("go", "now")
        await happened(runs[0], SignalReceived)
    async with serve(release("pack")):
        assert await runs[0].result(10) == ["pack", "now"]
        await runs[1].signal("go", "later")
        assert await runs[1].result(10) == ["pack", "later"]

        async def none_is_stuck() -> bool:
            return [run.reason for run in await client.runs(workflow="flow")] == [""] * 20

        await until(none_is_stuck)
        assert (await runs[2].describe()).reason == ""


async def test_stuck_runs_of_many_pages_continue_after_a_deploy(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than are read at the takeover, and more than a page of those that follow."""
    monkeypatch.setattr(takeover, "STUCK_IDS", 8)
    for module in (stuck_runs, deploy_check):
        monkeypatch.setattr(module, "PAGE", 50)
    many = 160  # a sorted set of 128 entries or less is read whole

    async def have(client: sf.Client, status: str) -> bool:
        return len(await client.runs(status=status, limit=2 * many)) == many

    async with serve(release("pack"), shards=1) as (client, _):
        runs = [await client.start("flow", id=f"r{n}") for n in range(many)]
        for run in runs:
            await happened(run, StepCompleted)
    async with serve(release("weigh"), shards=1):
        await until(lambda: have(client, "stuck"))
    async with serve(release("pack"), shards=1):
        await until(lambda: have(client, "running"))


@pytest.mark.parametrize("wait", [lambda: sf.sleep(3600), lambda: sf.question("name")])
async def test_it_does_not_matter_what_they_wait_for(serve: Serve, wait: Callable[[], Any]) -> None:
    async with serve(release("pack", wait=wait)) as (client, _):
        run = await client.start("flow")
        await happened(run, StepCompleted)
    async with serve(release("weigh", wait=wait)):
        assert DIVERGED in (await happened(run, RunStuck)).reason


async def test_a_workflow_that_is_no_longer_registered(serve: Serve) -> None:
    async with serve(release("pack")) as (client, _):
        run = await client.start("flow")
        await happened(run, StepCompleted)
    async with serve(release("pack", name="other")):
        stuck = await happened(run, RunStuck)
        assert stuck.reason.startswith("workflow flow is not registered; known workflows: ")
        assert [found.id for found in await client.runs(status="stuck")] == [run.id]


async def test_a_listing_that_cannot_be_read_keeps_no_other_shard_unchecked(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(release("pack"), shards=4) as (client, _):
        runs = [await client.start("flow") for _ in range(16)]
        for run in runs:
            await happened(run, StepCompleted)
        listing = client.keys.shard(0).index("running", "flow")
    await client.store.send([Call.plain("DEL", listing), Call.plain("SET", listing, "x")])
    async with serve(release("send"), shards=4):
        shard_of = (await client.read_namespace()).shard_of
        for run in runs:
            if shard_of(run.id) != 0:
                await happened(run, RunStuck)
    assert "runs of shard 0 are not checked before something comes for them" in caplog.text


async def test_runs_that_fit_are_left_alone(serve: Serve) -> None:
    """Neither loaded nor changed."""
    async with serve(release("pack")) as (client, _):
        runs = [await client.start("flow"), await client.start("tally", 0)]
        await happened(runs[0], StepCompleted)
        await reduced(client, runs[1].id)
        before = [await run.describe(waits=False) for run in runs]
    async with serve(release("pack", last="weigh")) as (_, daemon):
        await checked(client, daemon)
        assert daemon.owner.live == 0
        assert [await run.describe(waits=False) for run in runs] == before


async def test_the_same_code_checks_nothing_again(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve(release("pack")) as (client, daemon):
        run = await client.start("flow")
        await happened(run, StepCompleted)
        await checked(client, daemon)
    replayed: list[str] = []
    fits = DeployCheck._fits

    async def noted(self: DeployCheck, shard: Any, run_id: str, record: list[bytes]) -> bool:
        replayed.append(run_id)
        return await fits(self, shard, run_id, record)

    monkeypatch.setattr(DeployCheck, "_fits", noted)
    async with serve(release("pack")) as (_, daemon):
        await checked(client, daemon)
    assert replayed == []
    async with serve(release("pack", last="weigh")) as (_, daemon):
        await checked(client, daemon)
    assert replayed == [run.id]


async def test_code_that_raises_in_a_replay_is_parked_once(serve: Serve) -> None:
    def failing(app: sf.App) -> sf.App:
        async def leave() -> None:
            raise KeyError("not found")

        app.workflows["flow"].function = leave  # pyright: ignore[reportAttributeAccessIssue]
        return app

    async with serve(release("pack")) as (client, _):
        run = await client.start("flow")
        await happened(run, StepCompleted)
    async with serve(failing(release("pack"))):
        await happened(run, RunStuck)
        assert (await names_of(run)).count("RunStuck") == 1


async def test_a_check_that_was_cut_short_begins_again(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve(release("pack")) as (client, daemon):
        runs = [await client.start("flow", id=f"r{n}") for n in range(3)]
        for run in runs:
            await happened(run, StepCompleted)
        await checked(client, daemon)
    tried = anyio.Event()

    def dies(self: DeployCheck, *_: Any) -> bool:
        tried.set()
        raise RuntimeError("the daemon dies here")

    with monkeypatch.context() as patch:
        patch.setattr(DeployCheck, "_fits", dies)
        async with serve(release("weigh"), crash=True):
            await tried.wait()
    async with serve(release("weigh")):
        for run in runs:
            await status_of(run, sf.Status.STUCK)


def test_the_fingerprint_follows_from_the_code_alone() -> None:
    assert fingerprint(release("pack")) == fingerprint(release("pack"))
    others = [release("weigh"), release("pack", name="other"), release("pack", wait=lambda: sf.sleep(1)), sf.App()]
    assert len({fingerprint(app) for app in (release("pack"), *others)}) == 5


FLOWS = """
import streamflow as sf
app = sf.App()

@app.workflow
async def flow(kind: str = "a") -> bool:
    return kind in {"a", "b", "c", "d"} and await sf.signal("go", bool)
"""


def test_the_fingerprint_is_the_same_in_every_process(tmp_path: Path) -> None:
    """Sets have another order in each."""
    flows = tmp_path / "flows_to_compare.py"
    flows.write_text(FLOWS)

    def found(seed: str) -> str:
        code = (
            "import flows_to_compare; from streamflow.daemon.code_fingerprint import fingerprint; "
            "print(fingerprint(flows_to_compare.app))"
        )
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONHASHSEED": seed}
        return subprocess.run(
            [sys.executable, "-B", "-c", code],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    one = found("1")
    assert found("2") == one
    flows.write_text(f"{FLOWS}# a comment, which no function has\n")
    assert found("1") != one


async def printed(*args: str) -> str:
    """What a command prints, on one line."""
    result = await anyio.to_thread.run_sync(lambda: CliRunner().invoke(cli, args))
    assert result.exit_code == 0
    return " ".join(result.output.split())


async def checked(client: sf.Client, daemon: Daemon) -> None:
    """Wait until the daemon has checked all its shards."""
    shards = list(daemon.owner.shards.values())
    assert shards

    async def all_done() -> bool:
        return all(shard.is_checked for shard in shards)

    await until(all_done)
    codes = await client.store.send([Call.plain("HGET", shard.keys.owner, "code") for shard in shards])
    assert set(codes) == {fingerprint(daemon.app).encode()}
