"""Daemons and workers over HTTP: what they say is true, also after a daemon has died, and while code blocks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from prometheus_client.parser import text_string_to_metric_families

import streamflow as sf
from streamflow.daemon import namespace_figures
from streamflow.daemon.daemon import Daemon
from streamflow.embedded.server import EmbeddedServer
from streamflow.http import catalog, pages
from streamflow.screen.layout import status_lines
from streamflow.settings import Settings
from streamflow.status.collector import StatusCollector
from streamflow.store.connection import Call
from streamflow.worker.worker import Worker
from tests.support.serving import FAST
from tests.support.waiting import DEADLINE, until
from tests.system.conftest import Serve, Work

pytestmark = pytest.mark.anyio

app = sf.App()
HTTP = "127.0.0.1:0"
CALM = 10.0
"""Seconds without a heartbeat that the others bear, where each step is counted: a slow machine must not cost shards."""
SOON = sf.Retry(initial=0.01, jitter=0)
Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@app.step
async def double(n: int) -> int:
    return 2 * n


@app.step(retry=SOON)
async def flaky(n: int) -> int:
    if sf.step_info().attempt < 3:
        raise RuntimeError("not yet")
    return n


@app.step(retry=sf.NO_RETRY)
async def breaks() -> None:
    raise ValueError("broken")


@app.step(queue="gpu")
async def render(n: int) -> int:
    return n


@app.step(retry=sf.NO_RETRY)
async def block(seconds: float) -> None:
    time.sleep(seconds)  # noqa: ASYNC251


@app.workflow
async def doubles(n: int) -> int:
    return await double(await double(n))


@app.workflow
async def tries(n: int) -> int:
    return await flaky(n)


@app.workflow
async def fails() -> None:
    await breaks()


@app.workflow
async def waits() -> None:
    await sf.signal("go", type=str)


@app.workflow
async def renders(n: int) -> int:
    return await render(n)


@app.workflow
async def blocks(seconds: float) -> None:
    await block(seconds)


@pytest.fixture(autouse=True)
def nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each scrape reads everything again."""
    monkeypatch.setattr(pages, "KEPT", 0.0)
    monkeypatch.setattr(namespace_figures, "KEPT", 0.0)


def fetch(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=DEADLINE) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def get(process: Daemon | Worker, page: str) -> tuple[int, Any]:
    assert process.http is not None
    status, text = await anyio.to_thread.run_sync(fetch, f"{process.http.url}/{page}")
    return status, text if page == "metrics" else json.loads(text)


async def scrape(process: Daemon | Worker) -> Series:
    """Every series by name and labels, as a scraper parses them; without the label that all have."""
    status, text = await get(process, "metrics")
    assert status == 200
    return {
        (sample.name, tuple(sorted(pair for pair in sample.labels.items() if pair[0] != catalog.COMMON))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(series: Series, metric: catalog.Metric, part: str = "", **labels: str) -> float:
    return series[f"{metric.name}{part}", tuple(sorted(labels.items()))]


async def scraped(process: Daemon | Worker, wanted: Callable[[Series], bool]) -> Series:
    """Scrape until the numbers are those that are expected: views follow with the next rollup."""
    found: Series = {}

    async def so() -> bool:
        nonlocal found
        found = await scrape(process)
        with contextlib.suppress(KeyError):
            return wanted(found)
        return False

    await until(so)
    return found


async def test_the_metrics_of_a_known_workload(serve: Serve) -> None:
    async with serve(app, http=HTTP, dead_after=CALM) as (client, daemon):
        for n in range(7):
            assert await (await client.start(doubles, n)).result(DEADLINE) == 4 * n
        await (await client.start(tries, 1)).result(DEADLINE)
        for _ in range(2):
            with pytest.raises(sf.RunFailed):
                await (await client.start(fails)).result(DEADLINE)
        waiting = await client.start(waits)
        await client.start(renders, 1)
        series = await scraped(
            daemon,
            lambda series: (
                value(series, catalog.RUNS_STARTED, workflow="renders") == 1
                and value(series, catalog.RUNS_STARTED, workflow="waits") == 1
                and value(series, catalog.QUEUE_WAITING, queue="gpu") == 1
                and value(series, catalog.VIEWS_ENTRIES) == 0
                and value(series, catalog.RUNS_LIVE) == 2
                and value(series, catalog.RUNS_ENDED, workflow="fails", status="failed") == 2
            ),
        )
        assert value(series, catalog.RUNS_STARTED, workflow="doubles") == 7
        assert value(series, catalog.RUNS_ENDED, workflow="doubles", status="completed") == 7
        assert value(series, catalog.RUNS_ENDED, workflow="fails", status="failed") == 2
        assert value(series, catalog.RUNS_ENDED, workflow="fails", status="completed") == 0
        assert value(series, catalog.RUNS_OPEN, workflow="waits", status="running") == 1
        assert value(series, catalog.RUNS_OPEN, workflow="doubles", status="running") == 0
        assert value(series, catalog.RUN_DURATION, "_count", workflow="doubles") == 7
        assert value(series, catalog.STEP_ATTEMPTS, step="double", outcome="completed") == 14
        assert value(series, catalog.STEP_ATTEMPTS, step="flaky", outcome="retried") == 2
        assert value(series, catalog.STEP_ATTEMPTS, step="flaky", outcome="completed") == 1
        assert value(series, catalog.STEP_ATTEMPTS, step="breaks", outcome="failed") == 2
        assert value(series, catalog.STEP_DURATION, "_count", step="double") == 14
        assert value(series, catalog.STEP_DURATION, "_bucket", step="double", le="+Inf") == 14
        assert 0 < value(series, catalog.STEP_DURATION, "_sum", step="double") < DEADLINE
        assert value(series, catalog.STEPS_STARTED) == 14 + 3 + 2
        assert value(series, catalog.SHARDS_OWNED) == value(series, catalog.SHARDS) == FAST["shards"]
        assert value(series, catalog.SHARDS_UNOWNED) == 0
        assert value(series, catalog.DAEMONS) == 1
        assert value(series, catalog.QUEUE_WORKERS, queue="gpu") == 0
        assert 0 <= value(series, catalog.QUEUE_OLDEST, queue="gpu") < DEADLINE
        commits = value(series, catalog.COMMITS, result="ok")
        assert commits >= 12  # each run has ended, or waits
        assert value(series, catalog.COMMIT_RUNS, "_count") == commits
        assert value(series, catalog.COMMIT_RUNS, "_sum") >= 12
        assert 0 < value(series, catalog.COMMIT_DURATION, "_count") <= commits
        assert value(series, catalog.COMMITS, result="fenced") == 0
        assert value(series, catalog.SERVER_MEMORY) > 1_000_000
        assert value(series, catalog.READ_SUCCESS) == value(series, catalog.READY) == 1
        assert value(series, catalog.INBOX_MESSAGES) == value(series, catalog.OUTBOX_MESSAGES) == 0
        text = str(series)
        assert waiting.id not in text
        known = {name for metric in catalog.METRICS for name in metric.series}
        ours = {name for name, _ in series if name.startswith("streamflow_")}
        assert ours <= known
        others = ("worker", "sink")
        absent = {name for metric in catalog.METRICS if metric.whose not in others for name in metric.series} - ours
        # This server has no maxmemory, nobody waits for its replicas, the app has no view, and there are no groups.
        of_views = {catalog.VIEW_VALUE.name, catalog.VIEW_EVENTS.name}
        of_groups = {metric.name for metric in catalog.METRICS if metric.labels == ("group",)}
        assert len(of_groups) == 5
        assert absent == {catalog.SERVER_MEMORY_LIMIT.name, catalog.CONFIRMATIONS_LACKING.name, *of_views, *of_groups}


async def test_the_daemon_that_leads_says_how_far_groups_are_behind(serve: Serve) -> None:
    async with serve(app, http=HTTP) as (client, daemon):
        async with client.events("billing"):
            pass
        await (await client.start(doubles, 1)).result()
        lag = (catalog.GROUP_LAG_ENTRIES.name, (("group", "billing"),))
        series = await scraped(daemon, lambda series: series.get(lag, 0) > 0)
        assert value(series, catalog.GROUP_LAG_BYTES, group="billing") > 0
        assert value(series, catalog.GROUP_CONSUMERS, group="billing") == 0
        await client.remove_group("billing")
        await scraped(daemon, lambda series: lag not in series)


async def test_a_name_with_many_values_becomes_other(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    from streamflow.http import figures

    monkeypatch.setattr(figures, "OTHERS", 2)
    async with serve(app, http=HTTP) as (client, daemon):
        for number in range(5):
            await client.start(f"unknown_{number}", 1)
        series = await scraped(
            daemon,
            lambda series: sum(v for (name, _), v in series.items() if name == catalog.RUNS_STARTED.name) == 5,
        )
        names = {dict(labels)["workflow"] for name, labels in series if name == catalog.RUNS_STARTED.name}
        assert names - set(app.workflows) == {"unknown_0", "unknown_1", "other"}
        assert value(series, catalog.RUNS_STARTED, workflow="other") == 3
        for number in range(5):  # they are stuck until a daemon knows them
            with contextlib.suppress(sf.StreamflowError):
                await client.run(f"unknown_{number}").terminate()


async def test_figures_add_up_after_a_daemon_has_died(serve: Serve) -> None:
    async with serve(app, crash=True, http=HTTP, dead_after=2.0) as (client, first):
        for n in range(5):
            await (await client.start(doubles, n)).result(DEADLINE)
        await client.start(waits, id="open")
        await scraped(first, lambda series: value(series, catalog.RUNS_OPEN, workflow="waits", status="running") == 1)
    async with serve(app, http=HTTP, dead_after=2.0) as (client, second):
        for n in range(3):
            await (await client.start(doubles, n)).result(DEADLINE)
        await client.run("open").signal("go", "on")
        await client.run("open").result(DEADLINE)
        series = await scraped(
            second,
            lambda series: (
                value(series, catalog.RUNS_ENDED, workflow="waits", status="completed") == 1
                and value(series, catalog.RUNS_ENDED, workflow="doubles", status="completed") == 8
                and value(series, catalog.DAEMONS) == 1
            ),
        )
        assert value(series, catalog.RUNS_STARTED, workflow="doubles") == 8
        assert value(series, catalog.RUNS_ENDED, workflow="doubles", status="completed") == 8
        assert value(series, catalog.RUNS_OPEN, workflow="waits", status="running") == 0
        assert value(series, catalog.STEP_ATTEMPTS, step="double", outcome="completed") == 16
        assert value(series, catalog.STEP_DURATION, "_count", step="double") == 16
        assert value(series, catalog.STEPS_STARTED) == 6  # those are of this process
        assert value(series, catalog.DAEMONS) == 1
        assert value(series, catalog.SHARDS_OWNED) == FAST["shards"]


async def test_two_daemons_say_the_same_of_the_namespace(serve: Serve) -> None:
    settings: dict[str, Any] = {"http": HTTP, "dead_after": CALM}
    async with serve(app, **settings) as (client, one), serve(app, **settings) as (_, other):
        for n in range(6):
            await (await client.start(doubles, n)).result(DEADLINE)

        def done(series: Series) -> bool:
            ended = value(series, catalog.RUNS_ENDED, workflow="doubles", status="completed")
            return (
                ended == value(series, catalog.RUNS_STARTED, workflow="doubles") == 6
                and value(series, catalog.STEP_ATTEMPTS, step="double", outcome="completed") == 12
                and value(series, catalog.DAEMONS) == 2
                and 0 < value(series, catalog.SHARDS_OWNED) < FAST["shards"]
            )

        first, second = await scraped(one, done), await scraped(other, done)
        while value(first, catalog.SHARDS_OWNED) + value(second, catalog.SHARDS_OWNED) != FAST["shards"]:
            first, second = await scraped(one, done), await scraped(other, done)  # each says what it owned a moment ago
        for whole in (catalog.RUNS_STARTED, catalog.RUNS_ENDED, catalog.STEP_ATTEMPTS, catalog.DAEMONS):
            of_first = {key: number for key, number in first.items() if key[0] == whole.name}
            assert of_first == {key: number for key, number in second.items() if key[0] == whole.name}
        started = value(first, catalog.STEPS_STARTED) + value(second, catalog.STEPS_STARTED)
        assert started == value(first, catalog.STEP_ATTEMPTS, step="double", outcome="completed") == 12
        assert await get(one, "ready") == (200, {"ready": True, "reasons": []})


async def test_health_answers_while_a_step_blocks_the_loop(serve: Serve) -> None:
    async with serve(app, http=HTTP) as (client, daemon):
        assert daemon.http is not None
        url = daemon.http.url
        seen: list[dict[str, Any]] = []

        def watch() -> None:
            ends = time.monotonic() + DEADLINE
            while time.monotonic() < ends and not any(not health["healthy"] for health in seen):
                seen.append(json.loads(fetch(f"{url}/health")[1]))

        watching = threading.Thread(target=watch)
        run = await client.start(blocks, 3.0)
        watching.start()
        await run.result(DEADLINE)
        await anyio.to_thread.run_sync(watching.join)
        [problem] = seen[-1]["problems"]
        assert problem.startswith(f"the event loop is blocked by step block of run {run.id} for ")
        assert "test_http.py" in problem
        assert "time.sleep(seconds)" in problem

        async def well() -> bool:
            return (await get(daemon, "health"))[0] == 200

        await until(well)
        series = await scrape(daemon)
        late = value(series, catalog.LOOP_LAG, "_count") - value(series, catalog.LOOP_LAG, "_bucket", le="0.262144")
        assert late >= 1


async def test_a_server_that_hangs_delays_no_probe(namespace: str, tmp_path: Path) -> None:
    async with EmbeddedServer(tmp_path / "data", memory=True) as server:
        daemon = Daemon(app, Settings(redis=server.url, namespace=namespace, http=HTTP, **FAST))
        serving = asyncio.create_task(daemon.run())
        await daemon.ready.wait()
        async with sf.connect(server.url, namespace=namespace) as client:
            await (await client.start(doubles, 1)).result(DEADLINE)
        await scraped(daemon, lambda series: value(series, catalog.RUNS_STARTED, workflow="doubles") == 1)
        os.kill(server.pid, signal.SIGSTOP)
        try:

            async def alone() -> bool:
                status, health = await get(daemon, "health")
                assert (status, health["problems"]) == (200, []), "a restart helps nobody"
                return any("the server has confirmed no heartbeat for" in warning for warning in health["warnings"])

            await until(alone)
            status, ready = await get(daemon, "ready")
            assert status == 503
            assert ready["reasons"][0].startswith("the server has confirmed no heartbeat for")
            began = time.monotonic()
            series = await scrape(daemon)
            assert time.monotonic() - began < DEADLINE
            assert value(series, catalog.READ_SUCCESS) == 0
            assert value(series, catalog.HEARTBEAT_AGE) > FAST["dead_after"]
            assert value(series, catalog.RUNS_STARTED, workflow="doubles") == 1  # for a minute, as it was read last
        finally:
            os.kill(server.pid, signal.SIGCONT)
        await scraped(daemon, lambda series: value(series, catalog.READ_SUCCESS) == 1)
        daemon.stop()
        await serving


async def test_a_port_in_use_is_said_before_a_server_is_asked() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        settings = Settings(redis="redis://127.0.0.1:1", http=address)
        for process in (Daemon(app, settings), Worker(app, settings, ["gpu"])):
            with pytest.raises(sf.UsageError, match=f"can't listen at {address} .*Address already in use"):
                await process.run()


async def test_a_worker_is_ready_when_it_reads_its_queues(
    work: Work, serve: Serve, namespace: str, embedded_server: EmbeddedServer
) -> None:
    early = Worker(app, Settings(redis=embedded_server.url, namespace=namespace, http=HTTP), ["gpu"])
    starting = asyncio.create_task(early.run())

    async def answers() -> bool:
        return early.http is not None

    await until(answers)  # there is no namespace yet
    assert (await get(early, "health"))[0] == 200
    assert await get(early, "ready") == (503, {"ready": False, "reasons": ["it is starting"]})
    early.stop()
    await starting
    async with serve(app, http=HTTP) as (client, daemon), work(app, "gpu", http=HTTP) as worker:
        assert await (await client.start(renders, 3)).result(DEADLINE) == 3

        async def ready() -> bool:
            return (await get(worker, "ready"))[0] == 200

        await until(ready)
        assert (await get(worker, "health"))[1]["kind"] == "worker"
        series = await scrape(worker)
        assert value(series, catalog.STEPS_STARTED) == 1
        assert value(series, catalog.CLAIMS) == value(series, catalog.CLAIMS_EXPIRED) == 0
        ours = {name for name, _ in series if name.startswith("streamflow_")}
        assert ours == {
            name for metric in catalog.METRICS if metric.whose in ("process", "worker") for name in metric.series
        }
        await scraped(daemon, lambda series: value(series, catalog.QUEUE_WORKERS, queue="gpu") == 1)
        worker.stop()

        async def draining() -> bool:
            if worker.http is None:
                return True
            with contextlib.suppress(OSError):
                return (await get(worker, "ready"))[1] == {"ready": False, "reasons": ["it is draining"]}
            return True

        await until(draining)


async def test_a_partition_that_a_worker_is_refused_is_named_everywhere(work: Work, serve: Serve) -> None:
    settings: dict[str, Any] = {"http": HTTP, "worker_timeout": 2.0}
    async with serve(app) as (client, _), work(app, "gpu", **settings) as worker:
        stream = client.keys.queue("gpu", 3).stream
        await client.store.send([Call.plain("SET", stream, "in the way")])
        name = "partition 3 of queue gpu"

        async def refused() -> bool:
            rows = (await StatusCollector(client).collect()).workers
            return name in (rows[0].impaired if rows else {})

        await until(refused)
        status = await StatusCollector(client).collect()
        assert "WRONGTYPE" in status.workers[0].impaired[name]
        lines = [line.plain for line in status_lines(status, 200)]
        assert f"{name} impaired" in lines[0]
        assert any(line.startswith(name) and "WRONGTYPE" in line for line in lines)
        code, answer = await get(worker, "ready")
        assert code == 503
        assert (
            f"1 of the {len(worker.claims.partitions)} partitions of its queues, such as {name}" in answer["reasons"][0]
        )
        await scraped(worker, lambda series: value(series, catalog.PARTITIONS_REFUSED) == 1)
        await client.store.send([Call.plain("DEL", stream)])

        async def accepted() -> bool:
            return not (await StatusCollector(client).collect()).workers[0].impaired

        await until(accepted)
        await scraped(worker, lambda series: value(series, catalog.PARTITIONS_REFUSED) == 0)
