"""`1 event`, and not `1 events`: a number in front of a word for several things goes through `plural`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FILES = [file for room in ("cli", "screen", "status", "actions") for file in (ROOT / "streamflow" / room).rglob("*.py")]
COUNTED = re.compile(
    r"^ (?:bytes|chunks|consumers|daemons|deliveries|events|files|groups|lines|messages|partitions|payloads|processes"
    r"|queues|retries|rows|runs|servers|shards|signals|steps|times|triggers|workers|workflows)\b"
)
NEVER_ONE = {"event.count", "line.count", "moved", "first['retries']", "rate"}
"""What is only said of larger numbers, and rates."""


def counted(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of each number in an f-string with a plural behind it."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.JoinedStr):
            continue
        for value, text in zip(node.values, node.values[1:], strict=False):
            if isinstance(value, ast.FormattedValue) and isinstance(text, ast.Constant):
                number = ast.unparse(value.value)
                if COUNTED.match(str(text.value)) and number not in NEVER_ONE:
                    yield node.lineno, f"{{{number}}}{text.value}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT / "streamflow")))
def test_one_of_them_is_not_several(file: Path) -> None:
    assert list(counted(ast.parse(file.read_text()))) == []


def test_numbers_are_found() -> None:
    assert list(counted(ast.parse('f"counts {reading.events:,} events of {n} runs"'))) == [
        (1, "{reading.events} events of "),
        (1, "{n} runs"),
    ]
