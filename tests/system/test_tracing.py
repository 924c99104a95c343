"""One trace of a run, whatever processes and daemons it goes through; and what makes no span."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import SpanKind, StatusCode

import streamflow as sf
import streamflow.testing as sft
from streamflow.embedded.server import EmbeddedServer
from streamflow.events import SignalReceived, StepCompleted, StepScheduled
from streamflow.logs import RunFilter
from streamflow.model.record import decode_header
from tests.support.waiting import happened
from tests.system import tracing_flows as flows
from tests.system.conftest import Serve, Work

pytestmark = pytest.mark.anyio


class Spans:
    """What was exported in this process."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def all(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        [span] = self.named(name)
        return span

    def under(self, parent: ReadableSpan) -> list[str]:
        """Names of the spans whose parent this is, in the order in which they began."""
        found = [span for span in self.all() if span.parent and span.parent.span_id == id_of(parent)]
        return [span.name for span in sorted(found, key=lambda span: span.start_time or 0)]


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


def trace_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.trace_id:032x}"


def facts(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spans]:
    spans = Spans()
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", spans.provider)
    yield spans
    spans.provider.shutdown()


@pytest.fixture
async def client(spans: Spans, embedded_server: EmbeddedServer, namespace: str) -> AsyncIterator[sf.Client]:
    async with sf.connect(embedded_server.url, namespace=namespace) as client:
        yield client


async def test_one_trace_goes_from_the_client_through_every_kind_of_step(
    spans: Spans, serve: Serve, work: Work, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRACING_TEST_SPANS", str(tmp_path / "spans"))
    tracer = trace.get_tracer("caller")
    async with serve(flows.app) as (client, _), work(flows.app):
        with tracer.start_as_current_span("request") as request:
            run = await client.start(flows.everywhere)
        seen = await run.result(timeout=60)
    trace_id = f"{request.get_span_context().trace_id:032x}"
    assert set(seen) == {trace_id}, "the code of the workflow and of every step is in the trace of the request"
    started = spans.one("start everywhere")
    assert (spans.under(spans.one("request")), started.kind) == (["start everywhere"], SpanKind.PRODUCER)
    assert spans.under(started) == ["run everywhere"]
    whole = spans.one("run everywhere")
    assert (whole.kind, facts(whole)["streamflow.status"], facts(whole)["streamflow.run_id"]) == (
        SpanKind.CONSUMER,
        "completed",
        run.id,
    )
    assert spans.under(whole) == ["step in_task", "step in_thread", "step in_process", "run child"]
    assert spans.under(spans.one("run child")) == ["wait gpu", "step in_queue"]
    assert spans.under(spans.one("step in_task")) == ["in a task"]
    assert spans.under(spans.one("step in_thread")) == ["in a thread"]
    assert spans.under(spans.one("step in_queue")) == ["in a worker"]
    other = json.loads((tmp_path / "spans").read_text())
    assert other["name"] == "in a process"
    assert int(other["parent_id"], 16) == id_of(spans.one("step in_process"))
    step = spans.one("step in_queue")
    assert {name: facts(step)[f"streamflow.{name}"] for name in ("workflow", "step", "attempt", "queue")} == {
        "workflow": "child",
        "step": "in_queue",
        "attempt": 1,
        "queue": "gpu",
    }
    for span in spans.all():
        assert span.end_time is not None
        assert span.start_time is not None
        assert span.start_time <= span.end_time


app = sf.App()


@app.step(retry=sf.Retry(attempts=2, initial=0.0))
async def flaky() -> int:
    if sf.step_info().attempt == 1:
        raise LookupError("not yet")
    return 1


@app.step
async def add(number: int) -> int:
    return number + 1


@app.workflow
async def waits() -> int:
    with trace.get_tracer("code").start_as_current_span("opened in code"):
        number = await add(1)
    number += await sf.signal("go", int)
    question = await sf.question("left", int)
    question.answer(number)
    with trace.get_tracer("code").start_as_current_span("opened later"):
        return number + await add(number)


@app.workflow
async def retries() -> int:
    return await flaky()


@app.workflow
async def fails() -> None:
    await add(1)
    raise ValueError("too bad")


@app.workflow
async def counts(number: int) -> int:
    await add(number)
    if number < 2:
        raise sf.ContinueAs(number + 1)
    return number


@app.workflow
async def sends(target: str) -> None:
    await sf.send_signal(target, "go", 5)


async def test_another_daemon_continues_the_trace_and_ends_its_span_once(spans: Spans, serve: Serve) -> None:
    async with serve(app, crash=True) as (client, _):
        run = await client.start(waits)
        await happened(run, StepCompleted)
        await run.signal("go", 3)
        await happened(run, SignalReceived)
    assert spans.named("run waits") == []
    async with serve(app):
        assert await run.ask("left", 0, timeout=30, type=int) == 5
        assert await run.result(timeout=30) == 11
    whole = spans.one("run waits")
    assert {trace_of(span) for span in spans.named("step add")} == {trace_of(whole)}
    assert {id_of(whole)} == {span.parent.span_id for span in spans.named("step add") if span.parent}
    assert len(spans.named("step add")) == 2, "one for each attempt, and none for the replay"
    assert whole.start_time is not None
    assert all((span.start_time or 0) >= whole.start_time - 2_000_000 for span in spans.named("step add"))


async def test_code_that_is_replayed_makes_no_spans_again(spans: Spans, serve: Serve) -> None:
    async with serve(app, crash=True) as (client, _):
        run = await client.start(waits)
        await run.signal("go", 3)
        await happened(run, SignalReceived)
    async with serve(app):
        await run.ask("left", 0, timeout=30, type=int)
        await run.result(timeout=30)
    whole = spans.one("run waits")
    assert len(spans.named("opened in code")) <= 1, "not at all if the first daemon died while it was open"
    assert [span.parent and span.parent.span_id for span in spans.named("opened later")] == [id_of(whole)]


async def test_signals_and_asks_are_linked_to_those_who_sent_them(spans: Spans, serve: Serve) -> None:
    async with serve(app) as (client, _):
        run = await client.start(waits)
        sender = await client.start(sends, run.id)
        await sender.result(timeout=30)
        await run.ask("left", 0, timeout=30, type=int)
        await run.result(timeout=30)
    received = next(span for span in spans.named("signal go") if span.kind is SpanKind.CONSUMER)
    whole = spans.one("run waits")
    assert received.parent is not None
    assert received.parent.span_id == id_of(whole)
    assert [link.context.span_id for link in received.links] == [id_of(spans.one("run sends"))]
    asked, answered = sorted(spans.named("ask left"), key=lambda span: span.kind is SpanKind.CONSUMER)
    assert (asked.kind, answered.kind) == (SpanKind.CLIENT, SpanKind.CONSUMER)
    assert [link.context.span_id for link in answered.links] == [id_of(asked)]
    assert trace_of(asked) != trace_of(whole), "who asks has a trace of its own"


async def test_a_failure_is_an_error_with_its_exception(spans: Spans, serve: Serve) -> None:
    async with serve(app) as (client, _):
        run = await client.start(retries)
        assert await run.result(timeout=30) == 1
        failed = await client.start(fails)
        with pytest.raises(sf.RunFailed):
            await failed.result(timeout=30)
    first, second = spans.named("step flaky")
    assert [facts(span)["streamflow.attempt"] for span in (first, second)] == [1, 2]
    assert (first.status.status_code, second.status.status_code) == (StatusCode.ERROR, StatusCode.UNSET)
    assert facts(first)["error.type"] == "LookupError"
    [event] = first.events
    assert event.name == "exception"
    assert "not yet" in str((event.attributes or {})["exception.message"])
    whole = spans.one("run fails")
    assert (whole.status.status_code, whole.status.description) == (StatusCode.ERROR, "ValueError: too bad")


async def test_each_generation_of_a_run_is_a_span_linked_to_the_last(spans: Spans, serve: Serve) -> None:
    async with serve(app) as (client, _):
        run = await client.start(counts, 0)
        assert await run.result(timeout=30) == 2
    generations = spans.named("run counts")
    assert [facts(span)["streamflow.status"] for span in generations] == ["continued", "continued", "completed"]
    assert [facts(span).get("streamflow.generation", 0) for span in generations] == [0, 1, 2]
    assert len({trace_of(span) for span in generations}) == 1
    assert len({span.parent.span_id for span in generations if span.parent}) == 1, "all are what the client has started"
    assert [spans.under(span) for span in generations] == [["step add"]] * 3
    for before, span in itertools.pairwise(generations):
        assert [link.context.span_id for link in span.links] == [id_of(before)]
        assert (span.start_time or 0) >= (before.end_time or 0)


async def test_each_end_of_a_retried_run_is_a_span_linked_to_the_first(spans: Spans, serve: Serve) -> None:
    """The steps of both are under the first, whose id each daemon knows, also one that has not seen the retry."""
    mended: list[bool] = []
    fragile = sf.App()

    @fragile.step(retry=sf.NO_RETRY)
    async def mend() -> None:
        if not mended:
            raise ValueError("not yet")

    @fragile.workflow
    async def breaks() -> None:
        await mend()
        await sf.signal("end")

    async with serve(fragile, crash=True) as (client, _):
        run = await client.start(breaks)
        with pytest.raises(sf.RunFailed):
            await run.result(30)
        mended.append(True)
        await run.retry()
        await happened(run, StepCompleted)
    async with serve(fragile):
        await run.signal("end")
        await run.result(30)
    first, second = spans.named("run breaks")
    assert [facts(span)["streamflow.status"] for span in (first, second)] == ["failed", "completed"]
    assert trace_of(first) == trace_of(second)
    assert id_of(first) != id_of(second)
    assert [link.context.span_id for link in second.links] == [id_of(first)]
    assert facts(second)["streamflow.retried"] is True
    assert spans.under(first)[:2] == ["step mend", "step mend"]


async def test_a_run_that_nobody_traces_begins_a_trace_at_its_daemon(
    spans: Spans, serve: Serve, embedded_server: EmbeddedServer, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve(app, crash=True):
        with monkeypatch.context() as without:
            without.setattr("streamflow.client.session.find_tracing", lambda: None)
            async with sf.connect(embedded_server.url, namespace=namespace) as client:
                run = await client.start(waits)
                await happened(run, StepScheduled)
    async with serve(app) as (client, _):
        run = client.run(run.id)
        await run.signal("go", 3)
        await run.ask("left", 0, timeout=30, type=int)
        await run.result(timeout=30)
    whole = spans.one("run waits")
    assert whole.parent is None
    assert {span.parent.span_id for span in spans.named("step add") if span.parent} == {id_of(whole)}
    assert {trace_of(span) for span in spans.named("step add")} == {trace_of(whole)}


async def test_a_trace_that_is_not_sampled_makes_no_span_anywhere(
    spans: Spans, serve: Serve, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = TracerProvider(sampler=ParentBased(ALWAYS_OFF))
    never.add_span_processor(SimpleSpanProcessor(spans.exporter))
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", never)
    async with serve(flows.app) as (client, _), work(flows.app):
        run = await client.start(flows.child)
        trace_id = await run.result(timeout=30)
    assert spans.all() == []
    assert trace_id != "0" * 32, "the context goes on, so that nobody begins another trace"


class Breaks(SpanProcessor):
    def on_start(self, span: Any, parent_context: Any = None) -> None:
        raise RuntimeError("a processor of the application")

    def on_end(self, span: ReadableSpan) -> None:
        raise RuntimeError("a processor of the application")


async def test_a_processor_that_raises_is_nobodys_trouble(
    spans: Spans, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    spans.provider.add_span_processor(Breaks())
    async with serve(app) as (client, _):
        run = await client.start(counts, 1)
        await run.signal("ignored")
        assert await run.result(timeout=30) == 2
    assert any("a span could not be made" in record.getMessage() for record in caplog.records)


async def test_nothing_is_stored_or_sent_where_nobody_traces(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", None)
    async with serve(flows.app) as (client, daemon):
        run = await client.start(flows.nothing)
        assert await run.result(timeout=30) == 1
        shard = (await client.read_namespace()).shard_of(run.id)
        line, _ = await client._batcher.peek(shard, run.id)
        assert decode_header(line).trace == ""
        assert daemon.executor.tracing is None


async def test_lines_of_steps_and_workflows_name_the_run_and_the_trace(
    spans: Spans, serve: Serve, work: Work, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.addFilter(adds := RunFilter())
    try:
        async with serve(flows.app) as (client, _), work(flows.app):
            run = await client.start(flows.everywhere)
            await run.result(timeout=60)
    finally:
        caplog.handler.removeFilter(adds)
    lines = {record.getMessage(): vars(record) for record in caplog.records if record.name == "flows"}
    assert set(lines) == {"in a task", "in a thread", "in a worker"}, "the process has a log of its own"
    task = lines["in a task"]
    step = spans.one("step in_task")
    assert (task["run"], task["workflow"], task["step"], task["attempt"]) == (run.id, "everywhere", "in_task", 1)
    assert (task["trace_id"], task["span_id"]) == (trace_of(step), f"{id_of(step):016x}")
    assert lines["in a thread"]["span_id"] == f"{id_of(spans.one('step in_thread')):016x}"
    assert lines["in a worker"]["workflow"] == "child"
    assert lines["in a worker"]["trace_id"] == trace_of(step)


async def test_a_sandbox_makes_no_spans_of_its_own(spans: Spans) -> None:
    async with sft.Sandbox(app) as sandbox:
        run = await sandbox.start(waits)
        sandbox.crash()
        await run.signal("go", 3)
        assert await run.ask("left", 0, type=int) == 5
        assert await run.result() == 11
    assert {span.name for span in spans.all()} <= {"opened in code", "opened later"}
