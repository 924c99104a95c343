"""The log line of each run that has failed or is stuck: what it says, and that an outage doesn't fill the log."""

from __future__ import annotations

import asyncio
import logging

import pytest

from streamflow import errors
from streamflow.daemon import failure_log
from streamflow.daemon.failure_log import LINES, FailureLog, Noted
from streamflow.errors import Failure
from streamflow.model.failures import failure_of

pytestmark = pytest.mark.anyio

TIMEOUT = Failure("ConnectTimeout", "api:443", '  File "/srv/pay.py", line 48, in charge\n')
OF_STEP = failure_of(errors.StepFailed("charge", 5, TIMEOUT))


@pytest.mark.parametrize(
    ("noted", "line", "fields"),
    [
        (
            Noted("order-7", "order", OF_STEP),
            "run order-7 of order failed: ConnectTimeout: api:443 (step charge, attempt 5, pay.py:48 in charge)",
            {"run": "order-7", "workflow": "order", "step": "charge", "attempt": 5},
        ),
        (
            Noted("p", "top", failure_of(errors.ChildFailed("o-7", "o", OF_STEP))),
            "run p of top failed: ConnectTimeout: api:443 (run o-7 of o, step charge, attempt 5, pay.py:48 in charge)",
            {"run": "p", "workflow": "top"},
        ),
        (
            Noted("a", "w", Failure("ValueError", "100 % of %s")),
            "run a of w failed: ValueError: 100 % of %s",
            {"run": "a", "workflow": "w"},
        ),
        (
            Noted("a", "w", reason="it diverged"),
            "run a of w is stuck until a daemon has code that fits its history: it diverged",
            {"run": "a", "workflow": "w"},
        ),
        (
            Noted("a", "w", Failure("KeyError", "'b'"), "KeyError: 'b' (File \"a.py\", line 3, in w)"),
            (
                "run a of w is stuck, its code raised KeyError: 'b' (File \"a.py\", line 3, in w); "
                "it goes on when other code is deployed, or with streamflow retry a"
            ),
            {"run": "a", "workflow": "w"},
        ),
    ],
)
async def test_the_line_says_which_run_and_why(
    noted: Noted, line: str, fields: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    FailureLog().write([noted])
    [record] = caplog.records
    assert record.getMessage() == line
    assert (record.name, record.levelno) == ("streamflow.runs", logging.WARNING)
    assert {name: record.__dict__.get(name) for name in ("run", "workflow", "step", "attempt")} == {
        "step": None,
        "attempt": None,
        **fields,
    }


async def test_an_outage_writes_so_many_lines_a_second_and_then_how_many_more(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    waits: list[float] = []
    monkeypatch.setattr(failure_log.time, "monotonic", lambda: now)
    monkeypatch.setattr(asyncio.get_running_loop(), "call_later", lambda wait, _: waits.append(wait), raising=False)
    log = FailureLog()
    failed = [Noted(f"run-{n}", "w", TIMEOUT) for n in range(LINES + 7)]
    log.write(failed[:40])
    now = 100.75
    log.write(failed[40:])
    assert len(caplog.records) == LINES
    assert waits == [0.25], "said once, when the second is over"
    log.say_left_out()
    assert "and 7 more runs failed or got stuck within that second" in caplog.records[-1].getMessage()
    now = 101.0
    log.write(failed[:1])
    assert "run run-0 of w failed" in caplog.records[-1].getMessage(), "the next second has lines again"
