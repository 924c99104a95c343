"""When the process for heartbeats repeats the last one of its daemon, and when it is silent."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest

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
}


class Over(Exception):
    """Nothing comes on the standard input any more."""


def sent(
    monkeypatch: pytest.MonkeyPatch,
    *lines: tuple[float, dict[str, Any] | None],
    is_primary: Callable[[], bool] = lambda: True,
    on_close: Callable[[], None] = lambda: None,
    **settings: Any,
) -> list[dict[str, Any]]:
    """What is sent when these lines come at these times (None: none came). `is_primary`: whether the server that the
    connection leads to takes it."""
    clock = 0.0
    script = iter([(0.0, SETTINGS | settings), *lines])
    found: list[dict[str, Any]] = []

    class Lines:
        def next(self, _: float | None) -> bytes:
            nonlocal clock
            try:
                clock, line = next(script)
            except StopIteration:
                raise Over from None
            return b"" if line is None else json.dumps(line).encode()

    class Client:
        def register_script(self, source: str) -> Client:
            assert source == "a script"
            return self

        def __call__(self, keys: list[str], args: list[str]) -> None:
            assert (keys, args[0], args[2]) == (["members"], "me", ""), "it makes nobody a member"
            if not is_primary():
                raise heartbeat_child.redis.ReadOnlyError("You can't write against a read only replica.")
            found.append(json.loads(args[1]))

        def close(self) -> None:
            on_close()

    monkeypatch.setattr(heartbeat_child, "Lines", Lines)
    monkeypatch.setattr(heartbeat_child.redis.Redis, "from_url", lambda *_, **__: Client())
    monkeypatch.setattr(heartbeat_child.signal, "signal", lambda *_: None)
    monkeypatch.setattr(heartbeat_child.time, "monotonic", lambda: clock)
    with pytest.raises(Over):
        heartbeat_child.main()
    return found


def test_the_last_heartbeat_is_repeated_with_numbers_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    beat = {"beat": 7, "name": "me"}
    found = sent(monkeypatch, (0.0, beat), (0.5, None), (1.0, None), (1.5, None))
    assert found == [{"beat": -7001, "name": "me"}, {"beat": -7002, "name": "me"}]


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
    monkeypatch.setattr(heartbeat_child, "is_stopped", lambda _: True)
    assert sent(monkeypatch, (0.0, {"beat": 7}), (1.5, None)) == []


def test_a_process_that_runs_is_not_stopped_and_one_that_is_gone_is() -> None:
    assert not heartbeat_child.is_stopped(os.getpid())
    assert heartbeat_child.is_stopped(2**30)


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
    os.close(reader)
    os.close(writer)
