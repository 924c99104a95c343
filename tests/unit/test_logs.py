"""Which run a log line belongs to, for the standard library's loggers and for structlog."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

import streamflow as sf
import streamflow.testing as sft
from streamflow.logs import RunFilter, add_run_fields, run_fields

pytestmark = pytest.mark.anyio

app = sf.App()
slog = structlog.get_logger("shop")
plain = logging.getLogger("shop.plain")


@app.step
def charge(customer: int) -> int:
    slog.bind(customer=customer).info("charged")
    plain.warning("charged plainly")
    return customer


@app.workflow
async def bill(customer: int) -> int:
    log = slog.bind(customer=customer)
    structlog.contextvars.bind_contextvars(tenant="acme")
    log.info("begin")
    await charge(customer)
    plain.warning("in the code")
    await sf.signal("next")
    log.new(other=1).info("end")
    return customer


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, add_run_fields, structlog.processors.JSONRenderer()],
        logger_factory=structlog.PrintLoggerFactory(stream),
    )
    yield stream
    structlog.reset_defaults()


async def bill_with_a_crash() -> str:
    async with sft.Sandbox(app) as sandbox:
        run = await sandbox.start(bill, 7)
        sandbox.crash()
        await run.signal("next")
        assert await run.result() == 7
        return run.id


async def test_structlog_writes_each_line_once_with_the_run_and_what_is_bound(lines: io.StringIO) -> None:
    run_id = await bill_with_a_crash()
    begin, charged, end = (json.loads(line) for line in lines.getvalue().splitlines())
    run = {"run": run_id, "workflow": "bill"}
    assert begin == {**run, "event": "begin", "customer": 7, "tenant": "acme"}
    assert charged == {**run, "event": "charged", "customer": 7, "step": "charge", "attempt": 1}
    assert end == {**run, "event": "end", "other": 1, "tenant": "acme"}


async def test_a_handler_with_the_filter_has_the_fields_in_its_format() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(RunFilter())
    form = "%(message)s %(workflow)s %(step)s %(attempt)s"
    handler.setFormatter(logging.Formatter(form, defaults={"workflow": "-", "step": "-", "attempt": "-"}))
    plain.addHandler(handler)
    try:
        await bill_with_a_crash()
        plain.warning("outside")
    finally:
        plain.removeHandler(handler)
    assert stream.getvalue().splitlines() == [
        "charged plainly bill charge 1",
        "in the code bill - -",
        "outside - - -",
    ]


def test_what_a_line_says_itself_is_kept(lines: io.StringIO) -> None:
    event: dict[str, Any] = {"event": "x", "run": "mine"}
    assert add_run_fields(None, "info", event)["run"] == "mine"
    assert run_fields() == {}, "outside of workflows and steps, and of spans"
