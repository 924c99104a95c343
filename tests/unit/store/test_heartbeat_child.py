"""When the process for heartbeats repeats the last one of its daemon, and what it reports of a death."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from streamflow.interpreter import python_command
from streamflow.store import heartbeat_child

SETTINGS = {
    "url": "redis://127.0.0.1:1",
    "script": "a script",
    "key": "members",
    "member": "me",
    "parent": os.getpid(),
    "every": 0.5,
    "limit": 1.0,
    "longest": 60.0,
    "patience": 2.0,
    "ended": "",
    "held": None,
}


def sent(
    monkeypatch: pytest.MonkeyPatch,
    *lines: tuple[float, dict[str, Any] | None],
    is_primary: Callable[[], bool] = lambda: True,
    on_close: Callable[[], None] = lambda: None,
    states: str = "S",
    delay: float = 0.0,
    **settings: Any,
) -> list[Any]:
    """What is sent when these lines come at these times (None: none came). `is_primary`: whether the server that the
    connection leads to takes it. `states`: of the parent in /proc, once the lines have ended; without a "Z" among them
    it never ends. `delay`: from the time at which a line was written until it was read."""
    clock: float | None = None
    script = iter([(0.0, SETTINGS | settings), *lines])
    following = iter(states)
    found: list[Any] = []

    class Lines:
        ended = False

        def next(self, _: float | None) -> bytes:
            nonlocal clock
            is_first = clock is None
            try:
                clock, line = next(script)
            except StopIteration:
                self.ended = True
                return b""
            if line is None:
                return b""
            return json.dumps(line).encode() if is_first else f"{clock - delay} {json.dumps(line)}".encode()

    class Client:
        def register_script(self, source: str) -> Client:
            assert source == "a script"
            return self

        def __call__(self, keys: list[str], args: list[str]) -> None:
            if not is_primary():
                raise heartbeat_child.redis.ReadOnlyError("You can't write against a read only replica.")
            assert (args[0], args[3]) == ("me", "")
            if keys == ["members"]:
                assert args[2] == "", "it makes nobody a member"
                found.append(json.loads(args[1]) if args[1] else "removed")
            else:
                found.append((*keys, json.loads(args[1]), args[2]))

        def close(self) -> None:
            on_close()

    monkeypatch.setattr(heartbeat_child, "Lines", Lines)
    monkeypatch.setattr(heartbeat_child.redis.Redis, "from_url", lambda *_, **__: Client())
    monkeypatch.setattr(heartbeat_child.signal, "signal", lambda *_: None)
    monkeypatch.setattr(heartbeat_child.time, "monotonic", lambda: clock or 0.0)

    def has_ended(_: object) -> bool:
        return next(following, "Z" if "Z" in states else "S") == "Z"

    def sleep(seconds: float) -> None:
        nonlocal clock
        clock = (clock or 0.0) + seconds

    monkeypatch.setattr(heartbeat_child.Parent, "has_ended", has_ended)
    monkeypatch.setattr(heartbeat_child.time, "sleep", sleep)
    heartbeat_child.main()
    return found


def test_the_last_heartbeat_is_repeated_with_numbers_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    beat = {"beat": 7, "name": "me"}
    found = sent(monkeypatch, (0.0, beat), (0.5, None), (1.0, None), (1.5, None))
    assert found == [{"beat": -7001, "name": "me"}, {"beat": -7002, "name": "me"}]


def test_one_that_starts_late_knows_how_long_its_daemon_has_been_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sent(monkeypatch, (0.0, {"beat": 7}), (0.1, None), delay=1.0) == [{"beat": -7001}]


def test_a_connection_to_a_demoted_server_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []
    lines: list[tuple[float, dict[str, Any] | None]] = [(0.0, {"beat": 7}), (1.0, None), (1.5, None)]
    found = sent(monkeypatch, *lines, is_primary=lambda: bool(closed), on_close=lambda: closed.append(True))
    assert (found, closed) == ([{"beat": -7002}], [True])


def test_it_is_silent_when_the_daemon_is_heard_again_or_stays_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sent(monkeypatch, (0.0, {"beat": 7}), (1.5, {"beat": 8}), (2.0, None)) == []
    assert sent(monkeypatch, (0.0, {"beat": 7}), (61.0, None)) == []
    assert sent(monkeypatch, (5.0, None)) == [], "it was never heard"


def test_it_is_silent_for_a_daemon_that_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat_child.Parent, "is_stopped", lambda _: True)
    assert sent(monkeypatch, (0.0, {"beat": 7}), (1.5, None)) == []


def test_a_worker_says_when_each_was_sent_by_the_servers_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sent(monkeypatch, (0.0, {"beat": 7, "sent": 5000}), (1.25, None)) == [{"beat": -7001, "sent": 6250}]


def test_a_death_removes_the_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sent(monkeypatch, (0.0, {"beat": 7}), states="SSZ") == ["removed"]
    assert sent(monkeypatch, (0.0, {"beat": 7}), (0.5, None), states="Z") == ["removed"], "its end of the pipe is open"
    assert sent(monkeypatch, states="Z") == [], "it was not a member yet"


def test_the_death_of_a_worker_is_noted_before_its_heartbeat_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = sent(monkeypatch, (0.0, {"beat": 7, "sent": 5000}), states="SSZ", ended="ended")
    assert found == [("ended", {"beat": 7, "sent": 5020}, "1"), "removed"]


def test_a_death_is_reported_until_the_server_takes_it_or_others_know(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []

    def is_primary() -> bool:
        return len(closed) == 3

    def on_close() -> None:
        closed.append(True)

    assert sent(monkeypatch, (0.0, {"beat": 7}), states="Z", is_primary=is_primary, on_close=on_close) == ["removed"]
    closed.clear()
    assert sent(monkeypatch, (0.0, {"beat": 7}), states="Z", is_primary=lambda: False, on_close=on_close) == []
    assert 10 <= len(closed) <= 12, "for two seconds"


def test_a_daemon_that_has_closed_the_pipe_is_not_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sent(monkeypatch, (0.0, {"beat": 7}), states="S") == []


def test_what_proc_says_of_a_process() -> None:
    me = heartbeat_child.Parent(os.getpid())
    assert (me.has_ended(), me.is_stopped()) == (False, False)
    assert heartbeat_child.Parent(2**30).has_ended()


def test_a_zombie_has_ended_and_a_stopped_process_has_not() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        seen = heartbeat_child.Parent(process.pid)
        assert not seen.has_ended()
        process.send_signal(signal.SIGSTOP)
        wait_for(seen.is_stopped)
        assert not seen.has_ended()
        process.kill()
        wait_for(seen.has_ended)
        process.wait()
        assert seen.has_ended()
    finally:
        process.kill()
        process.wait()


def test_a_later_process_with_the_number_of_the_parent_is_not_the_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    me = heartbeat_child.Parent(os.getpid())
    monkeypatch.setattr(me, "_began", "1")
    assert me.has_ended()


def wait_for(condition: Callable[[], bool]) -> None:
    over = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < over
        time.sleep(0.01)


def test_lines_come_whole_from_the_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    monkeypatch.setattr(heartbeat_child.select, "select", lambda *_: ([0], [], []))
    read = os.read
    monkeypatch.setattr(heartbeat_child.os, "read", lambda _, size: read(reader, size))
    os.write(writer, b"one\ntwo\nthr")
    lines = heartbeat_child.Lines()
    assert [lines.next(1.0), lines.next(1.0)] == [b"one", b"two"]
    os.write(writer, b"ee\n")
    assert lines.next(1.0) == b"three"
    monkeypatch.setattr(heartbeat_child.select, "select", lambda *_: ([], [], []))
    assert lines.next(0.0) == b""
    monkeypatch.setattr(heartbeat_child.select, "select", lambda *_: ([0], [], []))
    os.close(writer)
    assert (lines.next(0.0), lines.ended) == (b"", True)
    os.close(reader)


def test_it_starts_without_the_sdk_of_opentelemetry() -> None:
    """redis-py imports it wherever it is installed, which it is for these tests."""
    command = [*python_command(), "-X", "importtime", heartbeat_child.__file__]
    ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert "redis.observability" in ran.stderr
    assert "opentelemetry.sdk.metrics.export" not in ran.stderr
