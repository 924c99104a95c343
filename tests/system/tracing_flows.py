"""Steps in every kind of place, and the workflows that call them: a module, because the process of a step imports it.

In the process of a step, where `TRACING_TEST_SPANS` names a file, spans are exported to it as lines of JSON.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from opentelemetry import trace

import streamflow as sf

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

app = sf.App()
log = logging.getLogger("flows")

if os.environ.get("TRACING_TEST_SPANS") and Path(sys.argv[0]).name == "process_child.py":
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

    class ToFile(SpanExporter):
        def export(self, spans: list[ReadableSpan] | tuple[ReadableSpan, ...]) -> SpanExportResult:  # type: ignore[override]
            with Path(os.environ["TRACING_TEST_SPANS"]).open("a") as file:
                file.writelines((span.to_json(indent=None) or "") + "\n" for span in spans)
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(ToFile()))
    trace.set_tracer_provider(provider)


def note(what: str) -> str:
    """What an instrumented library does in a step: a span of its own, under the current one."""
    log.warning(what)
    with trace.get_tracer("library").start_as_current_span(what) as span:
        return f"{span.get_span_context().trace_id:032x}"


@app.step
async def in_task() -> str:
    return note("in a task")


@app.step
def in_thread() -> str:
    return note("in a thread")


@app.step(process=True)
def in_process() -> str:
    return note("in a process")


@app.step(queue="gpu")
async def in_queue() -> str:
    return note("in a worker")


@app.workflow
async def child() -> str:
    return await in_queue()


@app.workflow
async def everywhere() -> list[str]:
    here = f"{trace.get_current_span().get_span_context().trace_id:032x}"
    return [here, await in_task(), await in_thread(), await in_process(), await child()]


@app.step
async def one() -> int:
    return 1


@app.workflow
async def nothing() -> int:
    return await one()
