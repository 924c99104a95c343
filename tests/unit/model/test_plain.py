"""Payloads and failures as JSON: what `show --json`, `tail --json` and `export` print of them."""

from __future__ import annotations

import json

from streamflow import events
from streamflow.errors import Failure
from streamflow.model.plain import event_json, plain
from streamflow.model.references import Reference


def test_a_failure_is_printed_with_everything_that_it_has() -> None:
    cause = Failure("KeyError", "'x'")
    failure = Failure("Declined", "no", "lines", ("a note",), {"code": 7, "data": b"\xff"}, cause)
    group = Failure("ExceptionGroup", "two", "", members=(failure, Failure("ValueError", "y", context=cause)))
    row = event_json(1, "run-1", events.StepFailed(1, "pay", 1, 2.0, group))
    assert json.loads(json.dumps(row))["failure"] == {
        "kind": "ExceptionGroup",
        "message": "two",
        "traceback": "",
        "members": [
            {
                "kind": "Declined",
                "message": "no",
                "traceback": "lines",
                "notes": ["a note"],
                "fields": {"code": 7, "data": "/w=="},
                "cause": {"kind": "KeyError", "message": "'x'", "traceback": ""},
            },
            {
                "kind": "ValueError",
                "message": "y",
                "traceback": "",
                "context": {"kind": "KeyError", "message": "'x'", "traceback": ""},
            },
        ],
    }


def test_a_reference_to_storage_says_what_it_stands_for() -> None:
    arguments = b"\x92" + Reference(b"\xab" * 32, 10_003, 2969).encode() + b"\x01"
    assert plain(arguments) == ["payload abababababababab of 10,003 bytes, in storage", 1]
