"""The log: one line per record, whatever is in it."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamflow.cli.logs import JsonFormatter, TextFormatter, json_line, set_up
from streamflow.events import SignalReceived
from streamflow.text import visible_json
from streamflow.workflow import api as sf
from streamflow.workflow.app import App
from tests.support.machine_driver import Run, raw

EVIL = "a\nb\x1b[31m\x9b2J\u202e\u2028\x7f\U000e0041 é日本"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def record(message: str, **extra: object) -> logging.LogRecord:
    log_record = logging.LogRecord("app", logging.INFO, "f.py", 1, message, None, None)
    vars(log_record).update(extra)
    return log_record


def test_json_has_time_level_logger_message_and_the_extra_fields(stream: io.StringIO) -> None:
    set_up("json", "info", stream)
    logging.getLogger("app").info("started %s", "x", extra={"run": "r-1", "tries": 2})
    logging.getLogger("app").debug("not shown")
    line = json.loads(stream.getvalue())
    assert line.pop("ts").endswith("Z")
    assert line == {"level": "info", "logger": "app", "message": "started x", "run": "r-1", "tries": 2}


def test_an_exception_is_a_field_of_the_same_line(stream: io.StringIO) -> None:
    set_up("json", "info", stream)
    try:
        raise ValueError(EVIL)
    except ValueError:
        logging.getLogger("app").exception("failed")
    (line,) = stream.getvalue().splitlines()
    assert "ValueError" in json.loads(line)["exception"]


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()], ids=["json", "text"])
def test_nothing_ends_a_line_or_reaches_the_terminal(formatter: logging.Formatter) -> None:
    line = formatter.format(record(EVIL, run=EVIL))
    assert line.isprintable()
    assert "é日本" in line


def test_text_shows_the_fields_behind_the_message() -> None:
    line = TextFormatter().format(record("started", run="r-1"))
    assert line.endswith(" INFO    app: started run=r-1")


@given(st.text(st.characters(codec="utf-8")))
def test_json_stays_the_same_value_and_one_line(text: str) -> None:
    line = json_line({"text": text})
    assert json.loads(line) == {"text": text}
    assert len(line.splitlines()) == 1


@pytest.mark.parametrize("value", ["\ud800", object(), {1: object()}, b"\xff", float("nan")])
def test_whatever_is_given_becomes_a_line(value: object) -> None:
    assert json.loads(json_line({"value": value})).keys() == {"value"}


def test_escapes_beyond_the_first_plane_are_pairs() -> None:
    assert json.loads(visible_json('"\U000e0041"')) == "\U000e0041"


app = App()
plain = logging.getLogger("plain")


@app.workflow
async def says_much() -> str:
    plain.info("before")
    warnings.warn("careful", stacklevel=1)
    await sf.signal("go")
    plain.info("after")
    return "done"


def test_what_code_of_a_run_says_is_logged_once_though_it_is_replayed(stream: io.StringIO) -> None:
    set_up("json", "info", stream)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        run = Run(app, "says_much")
        run.reload()
        plain.info("from outside")
        assert not run.reload().reason
        run.advance(SignalReceived("go", raw(None)))
    lines = [json.loads(line)["message"].strip() for line in stream.getvalue().splitlines()]
    assert [line if "careful" not in line else "careful" for line in lines] == [
        "before",
        "careful",
        "from outside",
        "after",
    ]


@pytest.mark.parametrize("format", ["json", "text"])
def test_no_line_shows_the_password_of_a_server(stream: io.StringIO, format: str) -> None:
    set_up(format, "info", stream)
    url = "redis://me:hunter2@host:6379/0"
    try:
        raise ValueError(f"could not use {url}")
    except ValueError:
        logging.getLogger("app").exception("lost %s, will reconnect", url, extra={"url": url})
    assert "hunter2" not in stream.getvalue()
    assert stream.getvalue().count("redis://***@host:6379/0") >= 3
