"""Every command that asks the server, on a cluster: the same as on one server; and what is said of a wrong URL."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import pytest
from click.testing import CliRunner, Result

import streamflow as sf
from streamflow.cli import cli
from streamflow.client.client import connect
from streamflow.daemon import sizes
from streamflow.daemon.daemon import Daemon
from streamflow.embedded.cluster import ClusterNode, EmbeddedCluster
from streamflow.embedded.server import EmbeddedServer
from streamflow.status.collector import StatusCollector
from streamflow.store.connection import Call
from streamflow.store.keys import NamespaceKeys
from streamflow.store.topology import slot_of
from tests.support.cluster import frozen
from tests.support.serving import FAST, running_daemon
from tests.support.shell import Shell
from tests.support.waiting import DEADLINE, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

FLOWS = """
import streamflow as sf

app = sf.App()

@app.step
async def double(n: int) -> int:
    return 2 * n

@app.step(queue="gpu")
def train(n: int) -> int:
    return n + 1

@app.step(queue="gpu", retry=sf.Retry(attempts=2, initial=0))
def overheat(n: int) -> int:
    raise RuntimeError(f"gpu {n} is hot")

mended = []

@app.step(retry=sf.NO_RETRY)
async def mend() -> None:
    if not mended:
        raise ValueError("not yet")

@app.workflow
async def fails() -> None:
    await mend()

@app.workflow
async def child(n: int) -> int:
    return await double(n)

@app.workflow
async def heating(n: int) -> int:
    return await overheat(n)

@app.workflow
async def doomed(n: int) -> int:
    return await heating.options(id=f"heating-{n}")(n)

@app.workflow
async def flow(n: int) -> int:
    sf.publish("progress", n)
    sf.set_attributes(size=n)
    values = await sf.gather(double(n), train(n), *(child(n) for _ in range(6)))
    question = await sf.question("name", str)
    question.answer(f"you are {question.value}")
    return sum(values) + await sf.signal("more", int)
"""


class LastingShell(Shell):
    """Commands that go on, too."""

    def until_printed(self, text: str, words: Sequence[str]) -> str:
        """The output of a command that goes on, up to a text."""
        found = ""
        with self.process(words, stdout=subprocess.PIPE) as process:
            deadline = threading.Timer(DEADLINE, process.kill)
            deadline.start()
            try:
                assert process.stdout is not None
                while text not in found and (line := process.stdout.readline()):
                    found += line
            finally:
                deadline.cancel()
                process.kill()
        return found

    def process(
        self, words: Sequence[str], stdout: int = subprocess.DEVNULL, stderr: int | None = None
    ) -> subprocess.Popen[str]:
        environ = os.environ | {name: value for name, value in self.environ.items() if value is not None}
        command = [sys.executable, "-m", "streamflow", *words]
        return subprocess.Popen(command, env=environ, stdout=stdout, stderr=stderr, text=True)


async def test_quarantined_messages_of_all_servers_are_put_back_or_dropped(
    shared_cluster: EmbeddedCluster, namespace: str
) -> None:
    app = sf.App()

    @app.workflow
    async def waits() -> int:
        return await sf.signal("go", int)

    shell = Shell(shared_cluster.url, namespace)
    async with (
        running_daemon(app, shared_cluster, namespace, crash=False),
        connect(shared_cluster.url, namespace=namespace) as client,
    ):
        shard_of = (await client.read_namespace()).shard_of
        runs = [await client.start(waits.options(id=f"r{n}")) for n in range(30)]
        await until(lambda: begun(runs))
        for number, run in enumerate(runs):
            keys = client.keys.shard(shard_of(run.id))
            body = msgspec.msgpack.encode(("go", number))
            words = ("run", run.id, "reason", "x", "kind", "signal", "body", body)
            await client.store.one(Call.plain("XADD", keys.poison, "*", *words))
            await client.store.one(Call.plain("XADD", keys.poison, "*", "run", run.id, "kind", "joke", "body", b""))
        listed = await shell.data("quarantine", "list", "--limit", "100")
        assert len(listed) == 60
        assert len({one["shard"] for one in listed}) > 3, "on several servers"
        assert (await shell.data("status"))["quarantine"]["count"] == 60
        await shell("quarantine", "redrive", "--all", code=1)
        assert [await run.result(DEADLINE) for run in runs] == list(range(30))
        assert {one["kind"] for one in await shell.data("quarantine", "list")} == {"joke"}
        assert (await shell("quarantine", "drop", "--all", "--yes")).count("dropped ") == 30
        assert (await shell.data("status"))["quarantine"] == {"count": 0, "latest": []}


async def test_starts_are_delayed_limited_and_take_the_places_of_ended_ones(
    shared_cluster: EmbeddedCluster, namespace: str
) -> None:
    app = sf.App()

    @app.workflow(name="flow")
    async def flow(number: int) -> int:
        sf.publish("number", number)
        sf.set_attributes(number=number)
        return number or await sf.signal("never", int)

    run = Shell(shared_cluster.url, namespace)
    async with (
        running_daemon(app, shared_cluster, namespace, crash=False),
        connect(shared_cluster.url, namespace=namespace) as client,
    ):
        for n in range(1, 13):  # on all servers
            again = ("enqueue", "flow", "--id", f"r{n}", "--wait", "--input")
            assert await run(*again, str(n)) == f"{n}\n"
            assert "is completed: no run was started" in await run(*again, "99", "--on-existing", "reject", code=1)
            assert await run(*again, "99") == f"{n}\n"
            assert await run(*again, "100", "--on-existing", "new", "--delay", "0.01s") == "100\n"
        assert len(await client.runs(attributes={"number": 100})) == 12
        assert await client.runs(attributes={"number": 1}) == []
        assert "RunTimedOut" in await run("enqueue", "flow", "--input", "0", "--run-timeout", "0.1s", "--wait", code=1)
        await run("enqueue", "flow", "--id", "late", "--input", "1", "--at", "2200-01-01")
        [late] = await run.data("runs", "--status", "pending")
        assert (late["run_id"], late["begins"]) == ("late", "2200-01-01T00:00:00Z")
        await run("terminate", "late")


async def waits_for(run: LastingShell, run_id: str, expected: list[tuple[str, str, str]]) -> bool:
    rows = {row["run_id"]: row["waits_for"] for row in await run.data("runs")}
    return [(wait["kind"], wait["name"], wait["type"]) for wait in rows.get(run_id, [])] == expected


async def begun(runs: list[sf.Run[int]]) -> bool:
    return all([(await run.describe()).version > 0 for run in runs])


async def has(run: Shell, run_id: str, status: str) -> bool:
    return run_id in {row["run_id"] for row in await run.data("runs", "--status", status)}


async def all_have(run: Shell, workflow: str, status: str, count: int) -> bool:
    rows = await run.data("runs", "--workflow", workflow, "--status", status, "--limit", "100")
    return len(rows) == count


async def test_all_commands_work_with_the_url_of_a_cluster(
    shared_cluster: EmbeddedCluster, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizes, "LOOK_EVERY", 0.1)
    file = tmp_path / "flows.py"
    file.write_text(FLOWS)
    run = LastingShell(shared_cluster.url, namespace)
    scope: dict[str, Any] = {"__name__": "flows"}
    exec(FLOWS, scope)
    app: sf.App = scope["app"]
    with (
        run.process(("worker", "--app", str(file), "--queue", "gpu", "--log-level", "error")) as worker,
        killing(worker),
    ):
        async with running_daemon(app, shared_cluster, namespace, crash=False, http="127.0.0.1:0") as daemon:
            assert await run("enqueue", "flow", "--id", "one", "--input", "3") == "started one\n"
            (tmp_path / "runs.jsonl").write_text("".join(f'{{"id": "c{n}", "input": {n}}}\n' for n in range(20)))
            await run("enqueue", "child", "--file", str(tmp_path / "runs.jsonl"))
            assert await run("enqueue", "child", "--id", "waited", "--input", "4", "--wait") == "8\n"
            assert "you are me" in await run("ask", "one", "name", '"me"', "--timeout", "20")
            await run("signal", "one", "more", "5")
            async with connect(shared_cluster.url, namespace=namespace) as client:
                assert await client.run("one").result(DEADLINE) == 6 + 4 + 6 * 6 + 5
                assert [await client.run(f"c{n}").result(DEADLINE) for n in range(20)] == [2 * n for n in range(20)]

            assert await run("read", "one", "progress") == "3\n"
            shown = await run("show", "one")
            assert "completed" in shown
            assert "CHILDREN 6" in shown
            listed = [row["run_id"] for row in await run.data("runs", "--limit", "100")]
            assert {"one", "waited", *(f"c{n}" for n in range(20))} <= set(listed)
            assert len(listed) == 28
            assert [row["run_id"] for row in await run.data("runs", "--attribute", "size=3")] == ["one"]
            assert (await run.data("show", "wai"))["run_id"] == "waited"
            roots = {row["run_id"] for row in await run.data("runs", "--since", "1h", "--roots", "--limit", "100")}
            assert roots == {"one", "waited", *(f"c{n}" for n in range(20))}
            async with connect(shared_cluster.url, namespace=namespace) as client:
                page = await client.runs(limit=9)
                paged = [one.id for one in page]
                while page.after:
                    page = await client.runs(limit=9, after=page.after)
                    paged += [one.id for one in page]
            assert sorted(paged) == sorted(listed), "each is in one page"
            assert "there is no run c, and several whose ids begin so: c" in await run("cancel", "c", code=2)

            for n in range(8):  # the child's history is on another server than its parent, for some
                await run("enqueue", "doomed", "--id", f"doomed-{n}", "--input", str(n), "--wait", code=1)
            rows = await run.data("runs", "--error", "IS HOT", "--workflow", "doomed")
            assert {row["run_id"]: row["error"] for row in rows} == {
                f"doomed-{n}": f"RuntimeError: gpu {n} is hot" for n in range(8)
            }
            for n in range(8):
                shown = await run.data("show", f"doomed-{n}")
                cause = shown["cause"]
                assert (cause["run_id"], cause["step"], cause["attempt"]) == (f"heating-{n}", "overheat", 2)
                assert [(one["attempt"], one["failure"]["message"]) for one in shown["attempts"]] == [
                    (1, f"gpu {n} is hot")
                ]
            assert "because of step overheat of run heating-1" in await run("show", "doomed-1")

            await run("enqueue", "fails", "--id", "again")
            await until(lambda: has(run, "again", "failed"))
            scope["mended"].append(True)
            assert "again goes on: step mend, attempt 2; 0 results are kept" in await run("retry", "again")
            await until(lambda: has(run, "again", "completed"))

            forked = await run.data("fork", "again", "--at", "2", "--id", "again-2")
            assert forked == {"run_id": "again-2", "created": True, "forked_from": "again"}
            await until(lambda: has(run, "again-2", "completed"))
            assert (await run.data("show", "again"))["forks"] == ["again-2"]

            (tmp_path / "fails.jsonl").write_text("".join(f'{{"id": "f{n}"}}\n' for n in range(30)))
            scope["mended"].clear()
            await run("enqueue", "fails", "--file", str(tmp_path / "fails.jsonl"))
            await until(lambda: all_have(run, "fails", "failed", 30))
            scope["mended"].append(True)
            targets = ("--targets", str(tmp_path / "targets"))
            retried = await run.data("retry", "--workflow", "fails", "--yes", "--rate", "0", *targets)
            assert (retried["targets"], retried["done"], retried["failed"], retried["file"]) == (30, 30, 0, None)
            await until(lambda: all_have(run, "fails", "completed", 32))

            (tmp_path / "flows.jsonl").write_text("".join(f'{{"id": "x{n}", "input": 1}}\n' for n in range(20)))
            await run("enqueue", "flow", "--file", str(tmp_path / "flows.jsonl"))
            cancelled = await run.data("cancel", "--workflow", "flow", "--yes", "--rate", "0", *targets)
            assert (cancelled["targets"], cancelled["done"], cancelled["now"]) == (20, 20, {"cancelled": 20})
            await run("enqueue", "flow", "--id", "two", "--input", "1")
            await until(lambda: waits_for(run, "two", [("question", "name", "str")]))
            assert (await run.data("show", "two"))["owner"]["daemon"] == daemon.member
            assert "question name: str" in await run("show", "two")
            await run("cancel", "two")
            await run("enqueue", "flow", "--id", "three", "--input", "1")
            await run("terminate", "three")

            async def both_ended() -> bool:
                rows = await run.data("runs", "--status", "cancelled")
                return {"two", "three"} <= {row["run_id"] for row in rows}

            await until(both_ended)
            exported = str(tmp_path / "one.json")
            await run("export", "one", "--output", exported)
            assert (await run("replay", "--app", str(file), "one", exported)).count("ok ") == 2
            words = ("tail", "--since", "all", "--run", "waited")
            tail = await anyio.to_thread.run_sync(run.until_printed, "RunCompleted", words)
            assert "RunStarted" in tail
            assert "RunCompleted" in tail
            await run("forget", "two", "three")
            assert "there is no run two, and several whose ids begin so: two." in await run("show", "two", code=2)
            text = await run("forget", "--workflow", "fails", "--yes", "--rate", "0", *targets)
            assert text == "deleted 32 · already so or not applicable 0 · failed 0\nnow: 32 gone\n"

            async def counted() -> bool:
                views = (await run.data("status", "--shards"))["views"]
                return views["runs"]["status"]["completed"] >= 28 and not views["runs"]["status"]["running"]

            await until(counted)

            async def is_sized() -> bool:
                sized = (await run.data("status"))["views"].get("sizes", {"workflows": []})
                rows = sized["workflows"]
                return sum(row["runs"] for row in rows) >= 28 and all(row["bytes"] > 0 for row in rows)

            await until(is_sized)
            status = await run.data("status", "--shards")
            assert (status["silent"], status["unserved"]) == ([], [])
            causes = {row["workflow"]: row for row in status["views"]["causes"]["causes"]}
            assert (causes["heating"]["message"], causes["heating"]["failed"]) == ("gpu # is hot", 16)
            attention = status["views"]["attention"]
            assert ("failed", "heating", 16) in [(row["kind"], row["name"], row["count"]) for row in attention["rows"]]
            assert attention["queues_known"], "the leader has read them"
            assert (status["server"]["servers"], status["server"]["away"], status["shards_unowned"]) == (3, 0, 0)
            used = [await memory(node) for node in shared_cluster.nodes]
            assert 0.8 * sum(used) < status["server"]["memory"] < 1.2 * sum(used)
            assert "cluster of 3" in await run("status", "--svg", str(tmp_path / "status.svg")) + await run("status")
            metrics = await anyio.to_thread.run_sync(metrics_of, daemon)
            assert f'streamflow_metrics_read_success{{sf_namespace="{namespace}"}} 1.0' in metrics
            assert "streamflow_server_memory_used_bytes" in metrics
            assert "ok       permissions" in await run("check", "--app", str(file), "--shards", "8")
            await run("daemon", "--check", "--app", str(file), "--shards", "8")
        assert "log entr" in await run("views", "rebuild")
        worker.terminate()
        assert await anyio.to_thread.run_sync(worker.wait, DEADLINE) == 0


@contextlib.contextmanager
def killing(process: subprocess.Popen[str]) -> Generator[None]:
    """In the end, so that nobody waits for it."""
    try:
        yield
    finally:
        process.kill()


def metrics_of(daemon: Daemon) -> str:
    assert daemon.http is not None
    with urllib.request.urlopen(f"{daemon.http.url}/metrics", timeout=DEADLINE) as response:
        return response.read().decode()


async def memory(node: ClusterNode) -> int:
    info = await node.command("INFO", "memory")
    return next(int(line.partition(":")[2]) for line in info.splitlines() if line.startswith("used_memory:"))


async def test_a_server_that_is_silent_costs_only_its_part_of_the_status(namespace: str) -> None:
    async with EmbeddedCluster(memory=True, node_timeout=30.0) as cluster:
        app = sf.App()
        async with running_daemon(app, cluster, namespace, crash=False, dead_after=10.0):
            keys = NamespaceKeys(namespace)
            central = await cluster.owner(slot_of(keys.members))
            having = [await cluster.owner(slot_of(keys.shard(n).owner)) for n in range(FAST["shards"])]
            silent = next(node for node in having if node is not central)
            async with connect(cluster.url, namespace=namespace) as client:
                collector = StatusCollector(client, dead_after=10.0)
                whole = await collector.settled()
                assert whole.server is not None
                assert (whole.server.servers, whole.server.away, whole.shards_unowned) == (len(set(having)), 0, 0)
                with frozen(silent):
                    part = await collector.collect()
                assert part.server is not None
                assert part.server.away == 1
                assert part.warnings == [f"1 of {part.server.servers} servers doesn't answer"]
                assert part.shards_unowned == 0, "its daemon says which it owns"
                assert [daemon.id for daemon in part.daemons] == [daemon.id for daemon in whole.daemons]


def invoke(*words: str) -> Result:
    return CliRunner().invoke(cli, words, env={"STREAMFLOW_REDIS": None, "STREAMFLOW_APP": None})


async def test_a_wrong_url_is_named_with_the_right_one(
    shared_cluster: EmbeddedCluster, embedded_server: EmbeddedServer
) -> None:
    node, single = shared_cluster.nodes[0], embedded_server.url
    wrong = {
        f"redis://{node.address}": "the server is part of a cluster: use redis+cluster://HOST:PORT",
        single.replace("redis://", "redis+cluster://"): "the server is not part of a cluster: use redis://",
        "redis+cluster://127.0.0.1:1": "Check that the cluster's servers are running",
        f"redis+cluster://user:s3cret@{node.address}": "refuses the credentials",
        f"rediss+cluster://{node.address}": "use redis+cluster://",
    }
    for url, expected in wrong.items():
        for words in (("check",), ("runs",)) if "part of a cluster" in expected else (("check",),):
            result = await anyio.to_thread.run_sync(lambda words=words, url=url: invoke(*words, "--redis", url))
            assert result.exit_code == 1, (url, words)
            assert expected in " ".join(result.output.split()), (url, words)
            assert "s3cret" not in result.output


async def test_the_benchmark_measures_how_evenly_masters_are_used(
    shared_cluster: EmbeddedCluster, namespace: str
) -> None:
    run = LastingShell(shared_cluster.url, namespace)
    words = ("bench", "fanout", "--runs", "20", "--repeat", "1", "--redis", shared_cluster.url, "--json")
    with run.process(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process, killing(process):
        printed, _ = await anyio.to_thread.run_sync(lambda: process.communicate(timeout=2 * DEADLINE))
    report = json.loads(printed)
    assert "cluster of 3" in str(report)
    figures = {name: figure["value"] for name, figure in report["figures"].items()}
    assert 1.0 <= figures["fanout.busiest"] < 3.0
    assert "fanout.ceiling" not in figures
    assert figures["fanout.cpu"] > figures["fanout.server_cpu"] > 0
    for node in shared_cluster.nodes:
        assert not await node.command("KEYS", "*bench-*"), "it has deleted its namespace"


async def test_a_workflow_and_runs_are_paused_on_all_servers(shared_cluster: EmbeddedCluster, namespace: str) -> None:
    """The note is on one server, the runs and the listings from which they go on are on all."""
    run = LastingShell(shared_cluster.url, namespace)
    scope: dict[str, Any] = {"__name__": "flows"}
    exec(FLOWS, scope)
    async with (
        running_daemon(scope["app"], shared_cluster, namespace, crash=False) as daemon,
        connect(shared_cluster.url, namespace=namespace) as client,
    ):
        await run("pause", "--workflow", "child", "--reason", "why")

        async def heard() -> bool:
            return "child" in daemon.owner.paused.notes

        await until(heard)
        runs: list[sf.Run[int]] = [await client.start("child", n, id=f"c{n}") for n in range(30)]
        await until(lambda: all_have(run, "child", "paused", 30))
        described = await runs[7].describe()
        assert (described.waits_for[0].kind, described.waits_for[0].name) == ("pause", "workflow")
        assert (await run.data("pause", "--runs", "--workflow", "child", "--yes", "--rate", "0"))["done"] == 30

        async def each_by_itself() -> bool:
            return all([(await one.describe()).waits_for[0].name == "run" for one in runs])

        await until(each_by_itself)
        await run("resume", "--workflow", "child")
        assert (await run.data("resume", "--runs", "--workflow", "child", "--yes", "--rate", "0"))["done"] == 30
        assert [await one.result(DEADLINE) for one in runs] == [2 * n for n in range(30)]
