"""`trigger status`: which processes serve which triggers, and what is wrong with them."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import pytest
from click.testing import CliRunner, Result

import streamflow as sf
from streamflow import triggers
from streamflow.cli import cli
from streamflow.embedded.server import EmbeddedServer
from streamflow.store.connection import Call
from streamflow.triggers import reports
from streamflow.triggers.serving import serve_all
from tests.support.pulling import receiving
from tests.support.shell import Shell
from tests.support.waiting import until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio

app = sf.App()


@app.workflow
async def build(path: str) -> str:
    return path


@app.trigger(triggers.list("words-of-the-status"))
def listed(delivery: triggers.Delivery[str]) -> None: ...


def of_files(directory: Path) -> triggers.Trigger[Any]:
    @sf.App().trigger(triggers.files(directory, "*", settle=0), name="dropped")
    def dropped(delivery: triggers.Delivery[triggers.File]) -> triggers.Action:
        return triggers.start(build, delivery.payload.name)

    return dropped


async def test_a_source_that_fails_is_shown_and_goes_when_it_is_mended(
    serve: Serve, embedded_server: EmbeddedServer, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "EVERY_SECONDS", 0.02)
    monkeypatch.setattr("streamflow.triggers.pulled.LONGEST_PAUSE", 0.05)
    directory = tmp_path / "mounted later"

    async def shown(*words: str) -> Result:
        environ = {"STREAMFLOW_REDIS": embedded_server.url, "STREAMFLOW_NAMESPACE": namespace}
        return await anyio.to_thread.run_sync(
            lambda: CliRunner().invoke(cli, ["trigger", "status", *words], env=environ)
        )

    shell = Shell(embedded_server.url, namespace, "status", "--check")
    async with serve(app) as (client, _):
        async with receiving(client, listed, of_files(directory)):

            async def problem() -> Any:
                rows = await reports.read_reports(client)
                return [row for row in rows if row.problem]

            await until(problem)
            result = await shown("--json")
            assert result.exit_code == 1
            dropped, other = json.loads(result.stdout)
            assert (dropped["trigger"], dropped["kind"]) == ("dropped", "files")
            assert "FileNotFoundError" in dropped["problem"]
            assert (other["trigger"], other["problem"], other["received"]) == ("listed", None, 0)
            found = (await shell.data(code=1))["health"][0]
            assert (found["level"], found["code"]) == ("warning", "trigger_failing")
            assert found["text"].startswith("trigger dropped: FileNotFoundError: ")
            assert found["command"] == f"streamflow trigger status --namespace {namespace}"
            directory.mkdir()
            (directory / "one").write_text("1")

            async def is_mended() -> bool:
                rows = await reports.read_reports(client)
                return [(row.served.received, row.problem) for row in rows] == [(1, ""), (0, "")]

            await until(is_mended)
            result = await shown()
            assert (result.exit_code, result.stdout.count("  ok\n")) == (0, 2)
            assert (await shell.data())["ok"]
        result = await shown()
        assert (result.exit_code, result.stdout) == (0, "")
        assert "no process serves triggers" in result.stderr


async def test_a_process_that_was_killed_is_shown_until_others_remove_it(
    serve: Serve, embedded_server: EmbeddedServer, namespace: str
) -> None:
    shell = Shell(embedded_server.url, namespace, "status")
    async with serve(app) as (client, _):
        for name, seconds in (("killed", 60), ("forgotten", 700)):
            served = ["listed", "list", "list words", 1, 0, 0, ""]
            report = ["host", 17, reports._now() - seconds * 1000, [served]]
            field = (client.keys.triggers, name, msgspec.msgpack.encode(report))
            await client.store.one(Call.plain("HSET", *field))
        assert len(await reports.read_reports(client)) == 2
        assert "nobody serves trigger listed" in await shell("--check", code=1)
        async with receiving(client, listed):

            async def others() -> list[str]:
                rows = await reports.read_reports(client)
                killed = [row.problem for row in rows if row.pid == 17]
                return killed if len(rows) == 2 and len(killed) == 1 else []

            [problem] = await until(others)
            assert problem.startswith("no report for 6")
            [known] = (await shell.data())["triggers"]
            assert (known["name"], known["processes"], known["problem"]) == ("listed", 1, ""), "another one serves it"
            assert (await shell.data("--check"))["ok"]
        await client.store.one(Call.plain("DEL", client.keys.triggers))


async def test_webhooks_that_are_not_served_are_shown(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ABSENT_SECRET", raising=False)
    hooks = sf.App()

    @hooks.trigger(triggers.webhook("/signed", signature=triggers.github(triggers.secret("ABSENT_SECRET"))))
    def signed(delivery: triggers.Delivery[str]) -> None: ...

    @hooks.trigger(triggers.webhook("/open"))
    def unsigned(delivery: triggers.Delivery[str]) -> None: ...

    async with serve(app) as (client, _):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(serve_all, hooks, client, "127.0.0.1", taken.getsockname()[1])

                async def are_shown() -> bool:
                    problems = {row.served.name: row.problem for row in await reports.read_reports(client)}
                    return "ABSENT_SECRET" in problems.get("signed", "") and "in use" in problems.get("unsigned", "")

                await until(are_shown)
                tasks.cancel_scope.cancel()
        assert await reports.read_reports(client) == []
