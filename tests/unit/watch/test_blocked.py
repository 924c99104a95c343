"""The lines that have blocked a loop lately: the newest, each once."""

from __future__ import annotations

import pytest

from streamflow.model.blocked import BlockedLine
from streamflow.watch import blocked
from streamflow.watch.blocked import KEPT, MAX_TEXT, WINDOW, BlockedLines


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(blocked.time, "monotonic", lambda: now[0])
    return now


def test_a_line_that_blocks_again_is_counted_and_the_longest_time_kept(clock: list[float]) -> None:
    lines = BlockedLines()
    lines.saw("workflow order", "/srv/app/order.py:61 (total(items))", 0.1, "r1")
    lines.saw("workflow order", "/srv/app/order.py:61 (total(items))", 0.9, "r1", again=True)
    clock[0] += 5
    lines.saw("workflow order", "/srv/app/order.py:61 (total(items))", 0.2, "r2")
    clock[0] += 2
    assert lines.newest() == [BlockedLine("workflow order", "order.py:61 (total(items))", 900.0, 2, 2.0, "r2")]


def test_the_newest_lines_are_kept_and_only_for_a_while(clock: list[float]) -> None:
    lines = BlockedLines()
    for n in range(KEPT + 3):
        lines.saw("own", f"x.py:{n}", 1.0, "")
        clock[0] += 1
    assert [line.line for line in lines.newest()] == [f"x.py:{n}" for n in range(KEPT + 2, 2, -1)]
    clock[0] += WINDOW - 1.5
    assert [line.line for line in lines.newest()] == [f"x.py:{KEPT + 2}"]
    clock[0] += 2
    assert lines.newest() == []


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("order.py:61 (x)", "order.py:61 (x)"),
        ("C:\\\\app\\\\order.py:61 (x)", "order.py:61 (x)"),
        ("/a/b.py:7 (open('/etc/x:9'))", "b.py:7 (open('/etc/x:9'))"),
        ("an unknown line", "an unknown line"),
        ("/a/b.py:7 " + "x" * 500, ("b.py:7 " + "x" * 500)[:MAX_TEXT]),
    ],
)
def test_a_line_is_short(line: str, shown: str) -> None:
    lines = BlockedLines()
    lines.saw("own", line, 1.0, "")
    assert lines.newest()[0].line == shown
