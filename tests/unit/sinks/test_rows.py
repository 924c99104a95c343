"""Events as JSON and as columns: whatever is in a payload, every reader can read it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import Raw

from streamflow import events as ev
from streamflow.errors import Failure
from streamflow.sinks.columns import columns_of, json_without_nul
from streamflow.sinks.rows import json_bytes, row_of
from streamflow.sinks.run_rows import run_rows
from tests.support.sink_events import made, raw, step_done


def result_of(value: Any) -> Any:
    return json.loads(json_bytes(row_of(step_done(1, value))))["data"]["result"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({"a": [1, None, True, "ü\0"]}, {"a": [1, None, True, "ü\0"]}),
        (2**53 - 1, 9007199254740991),
        ([2**53, -(2**53)], ["9007199254740992", "-9007199254740992"]),
        ({"n": 2**64 - 1}, {"n": "18446744073709551615"}),
        ("9" * 20, "9" * 20),
        (float("nan"), None),
        (b"\0\xff", "AP8="),
        ({1: "x"}, {"1": "x"}),
    ],
)
def test_a_payload_is_json_that_every_parser_reads_alike(value: Any, shown: Any) -> None:
    assert result_of(value) == shown


def test_what_cannot_be_decoded_is_shown_by_its_size() -> None:
    event = made(ev.StepCompleted(1, "charge", 1, 1.0, Raw(b"\xa3\xed\xa0\x80")), 1)
    assert row_of(event)["data"]["result"] == {"bytes": 4}
    assert json_bytes({"text": "\ud800"}) == b'{"text":"\\\\ud800"}'


def test_columns_have_no_nul_and_name_the_error() -> None:
    failure = Failure("ValueError", "a\0b")
    columns = columns_of(made(ev.StepFailed(1, "charge", 2, 3.0, failure), 1))
    shown = {name: columns[name] for name in ("name", "seq", "attempt", "ms", "error_kind", "error")}
    assert shown == {
        "name": "charge", "seq": 1, "attempt": 2, "ms": 3.0, "error_kind": "ValueError", "error": "a\u2400b"
    }  # fmt: skip
    assert json.loads(json_without_nul(columns["data"]))["failure"]["message"] == "a\u2400b"


def test_a_run_is_what_its_events_make_of_it() -> None:
    began = made(ev.RunStarted("order", "acme", raw([7]), version=3), 0)
    failed = made(ev.RunFailed("order", "acme", 5000, Failure("Declined", "card")), 5)
    [row] = run_rows([began, step_done(1), failed])
    assert (row["status"], row["input"], row["version"], row["events"]) == ("failed", [7], 3, 3)
    assert (row["started_at"], row["ended_at"]) == ("2025-11-30T09:46:40.000Z", "2025-11-30T09:46:45.000Z")
    assert (row["error_kind"], row["error"], row["ms"]) == ("Declined", "card", 5000)
    [row] = run_rows([failed, made(ev.RunRetried("order", "acme", 1, 1), 6)])
    assert (row["status"], row["ended_at"], row["error"]) == ("running", None, None)
    [row] = run_rows([step_done(7)])
    assert row["status"] is None


def test_a_quarantined_message_is_no_event_of_a_run_s_row() -> None:
    event = made(ev.MessageQuarantined("17-0", "can't be decoded", "any\0thing"), 1, run="any\0thing")
    assert run_rows([event]) == []
    assert "\\u0000" not in json_without_nul([columns_of(event)]).decode()


def test_a_delayed_start_begins_when_it_is_due() -> None:
    began, delayed = made(ev.RunStarted("order", "", raw([])), 0), made(ev.StartDelayed(1), 0)
    [row] = run_rows([began, delayed])
    assert (row["status"], row["started_at"]) == ("pending", None)
    [row] = run_rows([began, delayed, made(ev.StartDue(4), 9)])
    assert (row["status"], row["started_at"], row["version"]) == ("running", "2025-11-30T09:46:49.000Z", 4)
