"""The report on a daemon's or worker's health: written by its thread, read by `streamflow health`."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from streamflow import health as module
from streamflow.cli import cli
from streamflow.daemon.health import Ownership
from streamflow.daemon.troubles import Troubles
from streamflow.errors import StoreError
from streamflow.health import Health, HealthFile, read_all
from streamflow.loops import HEARTBEATS, TURN, Supervisor, _Turn
from streamflow.settings import Settings
from streamflow.steps.executor import StepExecutor
from streamflow.store.durability import Confirmation, Durability
from streamflow.watch.report import HealthReport
from tests.support.fakes import KERNEL, FakeStore


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"streamflow-{os.getuid()}"


def report(name: str = "host-1-ab", **fields: Any) -> Health:
    values: dict[str, Any] = {"kind": "daemon", "namespace": "default", "pid": 7, "at": time.monotonic()} | fields
    return Health(name=name, **values)


def test_a_report_is_read_as_it_was_written_last() -> None:
    file = HealthFile("host-1-ab")
    try:
        file.write(report(problems=["a long problem " * 20]))
        assert not file.is_due
        file.write(report(warnings=["it is draining"]))
        [read] = read_all()
        assert (read.healthy, read.problems, read.warnings) == (True, [], ["it is draining"])
        assert read_all(7) == [read]
        assert read_all(8) == []
    finally:
        file.close()
    assert read_all() == []


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> float:
    """The monotonic clock, which stands still: what is said in seconds doesn't depend on how long a test takes."""
    at = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: at)
    return at


def test_an_old_report_is_a_problem(now: float) -> None:
    file = HealthFile("host-1-ab")
    try:
        file.write(report(at=now - 60))
        [read] = read_all()
        assert not read.healthy
        assert read.problems[0].startswith("no report for 60 s")
    finally:
        file.close()


def test_the_file_of_a_dead_process_is_deleted(directory: Path) -> None:
    file = HealthFile("host-1-ab")
    file.write(report())
    os.close(file._file)  # as a kill does: with it goes the lock
    file._file = -1
    assert [path.name for path in directory.iterdir()] == ["host-1-ab.json"]
    assert read_all() == []
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("foreign", ["link", "writable"])
def test_a_directory_that_others_can_write_to_is_not_used(directory: Path, foreign: str) -> None:
    if foreign == "link":
        directory.symlink_to(directory.parent)
    else:
        directory.mkdir()
        directory.chmod(0o777)
    with pytest.raises(OSError, match="not a directory that only this user can write to"):
        HealthFile("host-1-ab").write(report())


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["health", *words])
    return result.exit_code, result.output


def test_the_command_says_why_and_exits_with_one(directory: Path) -> None:
    where = f"reports in {directory}: if one runs, call this as its user, with its TMPDIR\n"
    assert run() == (1, f"no daemon, worker or sink {where}")
    good, bad = HealthFile("good"), HealthFile("bad")
    try:
        good.write(report("good", pid=7, warnings=["it is draining"]))
        assert run() == (0, "daemon good: healthy\ndaemon good: warning: it is draining\n")
        bad.write(report("bad", kind="worker", pid=8, problems=["the loop 'reader' fails: boom\x1b"]))
        code, text = run()
        assert code == 1
        assert "worker bad: the loop 'reader' fails: boom" in text
        assert "\x1b" not in text
        assert run("--pid", "7")[0] == 0
        assert run("--pid", "9") == (1, f"no daemon, worker or sink with process id 9 {where}")
        code, text = run("--json", "--pid", "8")
        assert code == 1
        assert '"healthy":false' in text
    finally:
        good.close()
        bad.close()


class Member:
    def __init__(self) -> None:
        self.unconfirmed = 0.1
        self.desired = 8
        self.draining = False


class Owning:
    def __init__(self) -> None:
        self.shards: dict[int, Any] = {}
        self.lost_writes = self
        self.recent_count = 0


def test_a_daemon_knows_its_ownership_and_its_server(monkeypatch: pytest.MonkeyPatch) -> None:
    member, owner = Member(), Owning()
    troubles = Troubles()
    own = Ownership(Settings(grace=5.0), owner, member, troubles, FakeStore())  # type: ignore[arg-type]
    assert own.problems() == [], "it has just started"
    own._fine -= 18.0
    assert own.problems() == ["it owns no shard, although it should own 8"]
    member.draining = True
    assert own.problems() == []
    member.unconfirmed = 3.0
    assert own.problems() == ["the server has confirmed no heartbeat for 3.0 s"]
    assert own.warnings() == []
    owner.recent_count = 7
    troubles.failed("shard 5", "is stopped", StoreError("commit: WRONGTYPE"), stops=True)
    troubles.failed("shard 5", "has views that could not be stored", StoreError("WRONGTYPE"), stops=False)
    troubles.failed("partition 3 of queue gpu", "takes no messages", StoreError("NOPERM"), stops=False)
    assert own.warnings() == [
        "the server has lost or set back 7 runs within the last hour: the log names them",
        "shard 5 is stopped: commit: WRONGTYPE",
        "partition 3 of queue gpu takes no messages: NOPERM",
    ]


def test_what_the_server_causes_is_kept_apart_from_the_process(now: float) -> None:
    import logging

    executor = StepExecutor(1, 1, lambda *_: None)
    loops = Supervisor(logging.getLogger("streamflow.test"))
    away = False
    written = HealthReport("daemon", "host-1-ab", "shop", executor, loops, lambda: ["silent"], is_away=lambda: away)
    loops._last["relay"] = (now, "StoreUnavailable: no answer")
    loops._last["rollup"] = (now, "ValueError: boom")
    loops.unserved.add("relay")
    for name in ("details of steps", HEARTBEATS):
        loops._turns[name] = turn = _Turn()
        turn.began, turn.limit = now - 130.0, TURN
    fails, waits, beats = (
        "the loop 'rollup' fails: ValueError: boom",
        "the loop 'details of steps' hangs: its turn has taken 130 s",
        "the loop 'heartbeats' hangs: its turn has taken 130 s",
    )
    of_server = ["silent", "the loop 'relay' fails: StoreUnavailable: no answer"]
    health = written.health("")
    assert (health.problems, health.outside) == ([fails, waits, beats], of_server)
    away = True
    health = written.health("")
    assert (health.problems, health.outside) == ([fails, beats], [*of_server, waits]), "heartbeats never wait so long"
    executor.close()


def test_only_what_a_restart_helps_against_counts_for_liveness() -> None:
    health = report(outside=["the server is silent"], warnings=["it is draining"])
    whole, live = health.judged(live=False), health.judged(live=True)
    assert (whole.healthy, whole.problems, whole.warnings) == (False, ["the server is silent"], ["it is draining"])
    assert (live.healthy, live.problems, live.warnings) == (True, [], ["the server is silent", "it is draining"])
    health.problems = ["hung"]
    assert not health.judged(live=True).healthy
    file = HealthFile("host-1-ab")
    try:
        file.write(report(outside=["the server is silent"]))
        assert run() == (1, "daemon host-1-ab: the server is silent\n")
        assert run("--live") == (0, "daemon host-1-ab: healthy\ndaemon host-1-ab: warning: the server is silent\n")
    finally:
        file.close()


def test_loops_threads_and_the_event_loop_are_in_the_report(monkeypatch: pytest.MonkeyPatch, now: float) -> None:
    import logging

    executor = StepExecutor(1, 1, lambda *_: None)
    loops = Supervisor(logging.getLogger("streamflow.test"))
    written = HealthReport("worker", "host-1-ab", "default", executor, loops, lambda: ["its own"])
    assert written.health("").outside == ["its own"]
    loops._last["reader"] = (now, "ValueError: boom")
    loops._turns["expired claims"] = turn = _Turn()
    turn.began, turn.limit = now - 130.0, TURN
    executor.hung = 3
    health = written.health("step s of run r")
    assert health.problems == [
        "the event loop is blocked by step s of run r",
        "the loop 'reader' fails: ValueError: boom",
        "the loop 'expired claims' hangs: its turn has taken 130 s",
    ]
    assert health.warnings == ["3 of the 32 threads hang that may"]
    executor.exhausted = True
    assert "3 threads hang, no more can be added" in written.health("").problems[-1]
    monkeypatch.setattr(module, "_make_directory", lambda _: (_ for _ in ()).throw(PermissionError(13, "read-only")))
    written.report("")  # it is said once, and harms nothing
    written.report("")
    written.close()
    executor.close()


def test_decisions_that_wait_for_replicas_are_a_warning(now: float) -> None:
    store = FakeStore()
    confirmation = store.confirmation = Confirmation(store, KERNEL, Durability(2))  # type: ignore[arg-type]
    own = Ownership(Settings(), Owning(), Member(), Troubles(), store)  # type: ignore[arg-type]
    assert own.warnings() == []
    waits = confirmation._waits(0)
    waits._since, waits.count = now - 7, 1
    [warning] = own.warnings()
    assert warning.startswith(
        "nothing was confirmed for 7 s (durability replicas:2): only 1 of 2 replicas has confirmed it, so decisions"
    )
    waits.name = "10.0.0.1:6379"
    [warning] = own.warnings()
    assert warning.startswith("nothing was confirmed by 10.0.0.1:6379 for 7 s (durability replicas:2): only 1 of 2")
    assert warning.endswith("so decisions of its shards wait")
