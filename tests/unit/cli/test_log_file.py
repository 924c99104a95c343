"""A log in a file: bounded, written by several processes, read again by run."""

from __future__ import annotations

import json
import logging
import multiprocessing
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from streamflow.cli import cli
from streamflow.cli.log_file import LogFile, older
from streamflow.cli.log_reading import Filter, Reader, text_of
from streamflow.cli.logs import MAX_LINE, JsonFormatter
from streamflow.errors import UsageError


def record(message: str, **extra: object) -> logging.LogRecord:
    log_record = logging.LogRecord("app", logging.INFO, "f.py", 1, message, None, None)
    vars(log_record).update(extra)
    return log_record


def log_file(path: Path, max_bytes: int) -> LogFile:
    log = LogFile(path, max_bytes)
    log.setFormatter(JsonFormatter(MAX_LINE))
    return log


def messages(reader: Reader) -> list[str]:
    return [fields["message"] for fields in reader.read()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.jsonl"


@pytest.fixture
def log(path: Path) -> Iterator[LogFile]:
    log = log_file(path, 2_000)
    yield log
    log.close()


@pytest.fixture
def reader(path: Path, log: LogFile) -> Iterator[Reader]:
    reader = Reader(path)
    yield reader
    reader.close()


def test_lines_are_json_that_only_this_user_can_read(path: Path, log: LogFile) -> None:
    log.emit(record("a\nb", run="r-1"))
    (line,) = path.read_text().splitlines()
    assert json.loads(line)["message"] == "a\nb"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere/log can't be written: No such file or directory"):
        LogFile(tmp_path / "nowhere" / "log")


def test_a_full_file_becomes_the_older_one_and_both_are_bounded(path: Path, log: LogFile) -> None:
    for number in range(200):
        log.emit(record(f"line {number}"))
    assert 0 < path.stat().st_size <= 2_000
    assert 1_000 < older(path).stat().st_size <= 2_000
    assert sorted(file.name for file in path.parent.iterdir()) == ["log.jsonl", "log.jsonl.1"]


def test_a_follower_misses_nothing_when_the_file_is_turned_over(reader: Reader, log: LogFile) -> None:
    seen: list[str] = []
    for number in range(200):
        log.emit(record(f"line {number}"))
        if number % 7 == 0:
            seen += messages(reader)
    assert [*seen, *messages(reader)] == [f"line {number}" for number in range(200)]


def test_a_late_reader_begins_with_the_older_file(path: Path, log: LogFile) -> None:
    for number in range(30):
        log.emit(record(f"line {number}"))
    assert older(path).exists()
    reader = Reader(path)
    seen = messages(reader)
    reader.close()
    assert seen == [f"line {number}" for number in range(30 - len(seen), 30)]
    assert len(seen) > 15


def test_a_reader_from_the_end_sees_only_what_is_added(path: Path, log: LogFile) -> None:
    log.emit(record("before"))
    reader = Reader(path, from_end=True)
    log.emit(record("after"))
    assert messages(reader) == ["after"]
    reader.close()


def test_a_removed_file_is_written_and_read_anew(path: Path, reader: Reader, log: LogFile) -> None:
    log.emit(record("before"))
    assert messages(reader) == ["before"]
    path.unlink()
    log.emit(record("after"))
    assert messages(reader) == ["after"]


def test_half_a_line_waits_for_its_end_and_no_json_is_skipped(path: Path, reader: Reader) -> None:
    with path.open("ab") as file:
        file.write(b'Segmentation fault\n[1]\n\xff\n{"message": "a"}\n{"mess')
        file.flush()
        assert messages(reader) == ["a"]
        file.write(b'age": "b"}\n')
    assert messages(reader) == ["b"]


def test_texts_of_a_line_that_is_too_long_are_cut(path: Path, reader: Reader) -> None:
    log = log_file(path, 10**7)
    log.emit(record("x" * MAX_LINE, run="r-1", tries=2, parts=["y" * 100_000]))
    log.close()
    (fields,) = reader.read()
    assert fields["message"].startswith("xxx")
    assert fields["message"].endswith("(1,048,576 characters)")
    assert (fields["run"], fields["tries"]) == ("r-1", 2)
    assert path.stat().st_size < 100_000


def _write(path: Path, name: str, max_bytes: int) -> None:
    log = log_file(path, max_bytes)
    for number in range(500):
        log.emit(record(f"{name} {number} {'.' * 200}"))
    log.close()


def test_processes_that_write_one_file_tear_no_line(path: Path) -> None:
    started = multiprocessing.get_context("spawn")
    processes = [started.Process(target=_write, args=(path, f"p{number}", 10**9)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    lines = [json.loads(line)["message"].split()[:2] for line in path.read_text().splitlines()]
    assert sorted(lines) == sorted([f"p{number}", str(line)] for number in range(3) for line in range(500))


def test_several_writers_turn_a_full_file_over_once(path: Path) -> None:
    """Each has its own handler and so its own file, as processes have."""
    threads = [threading.Thread(target=_write, args=(path, f"t{number}", 50_000)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert 25_000 < older(path).stat().st_size <= 52_000  # not one that another writer has just begun
    for file in (path, older(path)):
        for line in file.read_text().splitlines():
            json.loads(line)


def test_a_writer_that_finds_the_file_full_too_late_leaves_the_new_one(
    path: Path, log: LogFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = log_file(path, 2_000)
    for number in range(15):
        other.emit(record(f"line {number} {'.' * 30}"))
    full = path.read_bytes()

    def is_current() -> bool:
        """Another one turns the full file over between the look at its name and the look at its size."""
        monkeypatch.undo()
        other.emit(record("." * 1_200))
        return True

    monkeypatch.setattr(log, "_is_current", is_current)
    log.emit(record("." * 400))
    other.close()
    assert older(path).read_bytes() == full
    assert path.read_text().count("\n") == 2


# --- form and command -----------------------------------------------------------------------------------------------


def test_text_for_people_hides_no_character_and_names_another_day() -> None:
    fields: dict[str, Any] = {
        "ts": "2026-01-02T03:04:05.678Z", "level": "info", "logger": "app", "message": "a\nb\x1b[31m",
        "run": "r-1", "step": "pay", "attempt": 2, "exception": "Traceback\nValueError: x",
    }  # fmt: skip
    first, *trace = text_of(fields, ("run", "workflow")).split("\n")
    assert first.startswith("2026-01-0")
    assert first.endswith("INFO    app: a␊b␛[31m step=pay attempt=2")
    assert trace == ["    Traceback", "    ValueError: x"]
    assert text_of({"ts": "x"}).startswith("- ")


def test_a_filter_goes_by_run_and_step() -> None:
    assert Filter("r-1").matches({"run": "r-1", "step": "pay"})
    assert not Filter("r-1").matches({"run": "r-10"})
    assert not Filter("r-1").matches({})
    assert Filter("r-1", ("pay", "ship")).matches({"run": "r-1", "step": "ship"})
    assert not Filter("r-1", ("pay",)).matches({"run": "r-1"})


def test_logs_shows_the_lines_of_a_run(path: Path, log: LogFile) -> None:
    log.emit(record("one", run="r-1", workflow="order", step="pay"))
    log.emit(record("two", run="r-2", workflow="order"))
    log.emit(record("three", run="r-1", workflow="order"))
    shown = CliRunner().invoke(cli, ["logs", "r-1", "--log-file", str(path)])
    lines = [line.split(" ", 1)[1] for line in shown.output.splitlines()]
    assert lines == ["INFO    app: one step=pay", "INFO    app: three"]
    environ = {"STREAMFLOW_LOG_FILE": str(path)}
    of_step = CliRunner().invoke(cli, ["logs", "r-1", "--step", "pay", "--json"], env=environ)
    assert json.loads(of_step.output)["message"] == "one"


def test_logs_says_where_lines_that_it_does_not_have_may_be(
    path: Path, log: LogFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    nothing = CliRunner().invoke(cli, ["logs", "r-1"])
    assert nothing.exit_code == 1
    assert "there is no log .streamflow/log.jsonl" in nothing.output
    assert "start `streamflow dev`" in nothing.output
    assert '"run":"r-1"' in nothing.output
    wrong = CliRunner().invoke(cli, ["logs", "r-1", "--log-file", "nowhere"])
    assert "there is no log nowhere" in wrong.output
    empty = CliRunner().invoke(cli, ["logs", "r-1", "--log-file", str(path)])
    assert empty.exit_code == 1
    assert "no line of run r-1 in the log" in empty.output
    assert "which is empty" in empty.output
    log.emit(record("one", run="r-2"))
    other = CliRunner().invoke(cli, ["logs", "r-1", "--step", "pay", "--log-file", str(path)])
    assert "no line of run r-1, step pay, in the log" in other.output
    assert ", which begins at 20" in other.output
