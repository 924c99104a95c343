"""Logging in workflow code: each line once, whatever is replayed."""

from __future__ import annotations

import logging

import pytest

import streamflow as sf
import streamflow.testing as sft

pytestmark = pytest.mark.anyio

app = sf.App()
log = sf.logger("shop")
plain = logging.getLogger("plain")


@app.step
async def charge(customer: int) -> int:
    log.info("charged %d", customer)
    return customer


@app.workflow
async def bill() -> int:
    plain.info("begin")
    for customer in range(3):
        log.info("charging %d", customer, extra={"customer": customer})
        await charge(customer)
        await sf.signal("next")
    log.info("done")
    return 3


async def test_each_line_is_written_once_though_the_run_is_replayed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with sft.Sandbox(app) as sandbox:
        run = await sandbox.start(bill)
        for _ in range(3):
            sandbox.crash()
            await run.signal("next")
        assert await run.result() == 3
    lines = [record.getMessage() for record in caplog.records]
    assert lines.count("begin") == 4, "a plain logger shows that the code was run again"
    assert [line for line in lines if line.startswith("charging")] == ["charging 0", "charging 1", "charging 2"]
    assert lines.count("done") == 1


async def test_records_name_the_run_and_its_workflow(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "shop")
    async with sft.Sandbox(app) as sandbox:
        run = await sandbox.start(bill)
    first = next(record for record in caplog.records if record.getMessage() == "charging 0")
    fields = vars(first)
    assert (fields["run"], fields["workflow"], fields["customer"]) == (run.id, "bill", 0)
    step = vars(next(record for record in caplog.records if record.getMessage() == "charged 0"))
    assert (step["run"], step["workflow"], step["step"], step["attempt"]) == (run.id, "bill", "charge", 1)


def test_outside_of_a_workflow_it_is_the_plain_logger(caplog: pytest.LogCaptureFixture) -> None:
    log.warning("hello")
    assert caplog.records[-1].name == "shop"
    assert not log.isEnabledFor(logging.DEBUG)
