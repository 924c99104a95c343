"""Flows of an application that sets a provider of its own: spans go to the file that `TRACING_TEST_SPANS` names, and
with `TRACING_TEST_HANGS` to an exporter that never returns, too."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult

import streamflow as sf

app = sf.App()
log = logging.getLogger("shop")


class ToFile(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with Path(os.environ["TRACING_TEST_SPANS"]).open("a") as file:
            file.writelines((span.to_json(indent=None) or "") + "\n" for span in spans)
        return SpanExportResult.SUCCESS


class Hangs(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        time.sleep(3600)
        return SpanExportResult.FAILURE


if os.environ.get("TRACING_TEST_SPANS"):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(ToFile()))
    if os.environ.get("TRACING_TEST_HANGS"):
        provider.add_span_processor(BatchSpanProcessor(Hangs(), schedule_delay_millis=50))
    trace.set_tracer_provider(provider)


@app.step
async def reserve(order: str) -> str:
    log.info("reserved")
    return order


@app.step(retry=sf.Retry(attempts=3, initial=0.0))
async def ship(order: str, file: str) -> int:
    Path(file).touch()
    if sf.step_info().attempt == 1:
        await asyncio.Event().wait()
    return sf.step_info().attempt


@app.step(process=True)
def print_label(order: str) -> str:
    log.info("printed")
    with trace.get_tracer("printer").start_as_current_span("print"):
        return order


@app.workflow
async def sell(order: str, file: str) -> int:
    await reserve(order)
    attempt = await ship(order, file)
    await print_label(order)
    return attempt


@app.workflow
async def reserve_only(order: str) -> str:
    return await reserve(order)
