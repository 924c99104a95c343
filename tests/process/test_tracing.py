"""Traces and log lines of real daemons: one is killed, another goes on; an exporter hangs; a step has a process."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import streamflow as sf
from streamflow.embedded.server import EmbeddedServer
from tests.process import tracing_flows as flows
from tests.process.faults import ServingProcess, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

FLOWS = Path(__file__).with_name("tracing_flows.py")
Start = Callable[..., ServingProcess]


@pytest.fixture
async def start_daemon(embedded_server: EmbeddedServer, namespace: str, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts `streamflow daemon`; all end with the test."""
    started: list[ServingProcess] = []

    def start(**environ: str) -> ServingProcess:
        command = ("daemon", "--app", f"{FLOWS}:app", "--shards", "4", "--grace", "1")
        log = tmp_path / f"daemon-{len(started)}.log"
        url, spans = embedded_server.url, str(tmp_path / "spans")
        started.append(
            ServingProcess(*command, url=url, namespace=namespace, log=log, TRACING_TEST_SPANS=spans, **environ)
        )
        return started[-1]

    yield start
    for daemon in started:
        await daemon.end()


def exported(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "spans").read_text().splitlines()]


async def serving(daemon: ServingProcess) -> None:
    async def ready() -> bool:
        return daemon.logged("serves namespace")

    await until(ready, "the daemon serves")


async def test_a_killed_daemon_leaves_its_runs_trace_to_the_next(
    start_daemon: Start, client: sf.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, memory = TracerProvider(), InMemorySpanExporter()
    mine.add_span_processor(SimpleSpanProcessor(memory))
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", mine)
    file = tmp_path / "ships"
    first = start_daemon()
    await serving(first)
    run = await client.start(flows.sell, "o-1", str(file))

    async def ships() -> bool:
        return file.exists()

    await until(ships, "the step runs")
    first.send(signal.SIGKILL)
    second = start_daemon()
    assert await run.result(timeout=60) == 2
    second.send(signal.SIGTERM)
    assert await second.wait() == 0
    [sent] = memory.get_finished_spans()
    assert sent.context is not None
    trace_id, sent_id = f"0x{sent.context.trace_id:032x}", f"0x{sent.context.span_id:016x}"
    spans = exported(tmp_path)
    assert {span["context"]["trace_id"] for span in spans} == {trace_id}
    [whole] = [span for span in spans if span["name"] == "run sell"]
    assert whole["parent_id"] == sent_id
    whole_id = whole["context"]["span_id"]
    steps = [span for span in spans if span["parent_id"] == whole_id]
    assert [(span["name"], span["attributes"]["streamflow.attempt"]) for span in steps] == [
        ("step reserve", 1),
        ("step ship", 1),
        ("step ship", 2),
        ("step print_label", 1),
    ]
    lost = steps[1]
    assert (lost["status"]["status_code"], lost["attributes"]["error.type"]) == ("ERROR", "WorkerLost")
    [inside] = [span for span in spans if span["name"] == "print"]
    assert inside["parent_id"] == steps[3]["context"]["span_id"]
    lines = [json.loads(line) for log in (first.log, second.log) for line in log.read_text().splitlines()]
    fields = {line["message"]: line for line in lines if line["logger"] == "shop"}
    assert {name: line["step"] for name, line in fields.items()} == {"reserved": "reserve", "printed": "print_label"}
    for line, span in ((fields["reserved"], steps[0]), (fields["printed"], steps[3])):
        assert (line["run"], line["workflow"], line["attempt"]) == (run.id, "sell", 1)
        assert f"0x{line['trace_id']}" == trace_id
        assert f"0x{line['span_id']}" == span["context"]["span_id"]


async def test_an_exporter_that_hangs_delays_neither_runs_nor_the_end(start_daemon: Start, client: sf.Client) -> None:
    daemon = start_daemon(TRACING_TEST_HANGS="1")
    await serving(daemon)
    runs = await client.start_many(flows.reserve_only, [(f"o-{number}",) for number in range(20)])
    for run in runs:
        assert await run.result(timeout=60)
    began = time.monotonic()
    daemon.send(signal.SIGTERM)
    assert await daemon.wait() == 0
    assert time.monotonic() - began < 15, "the grace period, the last spans, and the noise of the machine"
    assert daemon.logged("the last spans may be lost")
