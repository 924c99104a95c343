"""The words of the project: plain technical English, one term for one thing (docs/glossary.md)."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

BANNED = {
    r"(?<!there )\b(?:is|are|was|were) no (?!longer\b|more\b|\d|such\b|other\b)\w+": "is not a …",
    r"makes? no sense": "say which values are allowed, and which was given",
    r"good-?bye": "deregister",
    r"\bno beat\b|\bbeats? (?:get|gets|got) through": "heartbeat failed",
    r"\b(?:views|shards|messages) wait\b": "… not updated, will retry",
    r"asking its code": "running its clean-up code",
    r"\bif it is some\b|\bat most so many\b|\bso long ago\b|\bbetween looks\b|\bthe least that\b": "see --help",
    r"\bsigns? of life\b|\bprov(?:e|es|ing) life\b": "heartbeat",
    r"\btold\b(?! to\b)": "reported",
    r"\bnews\b": "notification",
    r"\b(?:next|new|second|former|each|one|this|several) li(?:fe|ves)\b|\blife (?:of|before|after)\b": "generation",
    r"\bput(?:s|ting)? away\b": "evicted",
    r"\btaken for dead\b|\bfell silent\b|\bfalls? silent\b": "considered dead",
    r"\bhand(?:s|ed|ing)? (?:\w+ ){0,3}in\b(?! hand)": "report",
    r"\bset aside\b": "dead-lettered",
    r"\banew\b": "again",
    r"decides? nothing (?:any )?more": "can't start steps or timers",
    r"decided otherwise": "made a different decision",
    r"when it is quiet": "once the system is idle",
    r"\bfor ever\b": "forever",
    r"\bneedn't\b|\bmustn't\b": "doesn't have to / must not",
    r"\bwherefrom\b|\btherefrom\b|\bthereby\b|\bhence\b": "plain words",
    r"\bwhoever\b|\bsays? so\b|\bnobody waits\b|\bif need be\b|\bpassed over\b|\bgone on\b": "name the subject",
    r"\bput out of memory\b|\btaken? off\b|\btaken back\b|\bhears? of\b|\bspoilt\b": "evicted, removed, learns",
    r"takes? no \w+ any ?more|\bhand(?:s|ed)? back\b|\bcomes? back by itself\b": "refuses, requeued, reconnects",
    r"\bruns? for nothing\b|\bstand-?ins?\b|\bis none of\b|\bfor good\b|\bof all time\b": "stopped, must be one of",
    r"\bwhat (?:came|has become) of\b|\bgoes all its ways\b|\bwere asked for\b|\blast word\b": "plain words",
    r"\bcome to nothing\b|\bcomes to nothing\b|\bin the midst\b|\bof its own accord\b": "plain words",
}
"""What is not said -> what is said instead."""


def texts(file: Path) -> list[tuple[int, str]]:
    """(line, text) of what people read: a page's prose, or a module's strings, docstrings and comments."""
    source = file.read_text()
    if file.suffix != ".py":
        return list(enumerate(_prose(source).split("\n"), 1))
    found = [
        (node.lineno, node.value)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    return found + [
        (number, line.partition("#")[2]) for number, line in enumerate(source.split("\n"), 1) if "# " in line
    ]


def _prose(page: str) -> str:
    """Without blocks of code, whose lines stay as blank ones."""
    return re.sub(r"^```.*?^```", lambda block: "\n" * block[0].count("\n"), page, flags=re.MULTILINE | re.DOTALL)


FILES = [
    *(ROOT / "streamflow").rglob("*.py"),
    *(ROOT / "bench").rglob("*.py"),
    *(ROOT / "examples").rglob("*.py"),
    *(ROOT / "lua").rglob("*.lua"),
    *(ROOT / "lua").glob("*.md"),
    *(page for page in (ROOT / "docs").rglob("*.md") if "decisions" not in page.parts),
    *ROOT.glob("*.md"),
]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_banned_phrase(file: Path) -> None:
    found = [
        f"{file.relative_to(ROOT)}:{line}: {match[0]!r} -> {better}"
        for line, text in texts(file)
        for phrase, better in BANNED.items()
        for match in re.finditer(phrase, text, re.IGNORECASE)
    ]
    assert not found, "\n".join(found)
