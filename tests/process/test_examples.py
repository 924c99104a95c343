"""The examples run as their first lines say, and load as the app of a daemon."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from streamflow.cli.app_loader import load_app

pytestmark = [pytest.mark.anyio]

ROOT = Path(__file__).parents[2]
EXAMPLES = {
    "agents": [
        "archived: the unfinished thought of large",
        "refused: a person has to approve it",
        "progress: {'read': 100, 'of': 100}",
        "waits for acme: ['b-1']",
        "notes on the desk: ",
        "result: small outline of honey bees, 400 words read, approved by Grace",
        "archived: 5 notes on wasps",
        "run b-2 was cancelled",
        "run b-2.desk was cancelled",
    ],
    "research": [
        "large model on 4 topics of honey bees large model on 4 topics of honey bees, but shorter",
        "approved: large model on 4 topics of honey bees, but shorter",
        "the large model cost 36.0 cents",
        "the small model cost 3.2 cents",
    ],
    "documents": [
        "1000 words in 250 files",
        "0 runs are on the server, 4 in the archive",
        "from the archive: 1000 words in 250 files",
    ],
    "indexing": ["ants: 5 numbers", "honey bees: 6 numbers"],
    "approval": ["Grace said yes", "of 420.00 to Ada", "an expense still waits for you", "refused", "expired"],
    "saga": [
        "done: parcel with anvil to Norway",
        "undone: payment of card 4111\n    undone: reservation of anvil\n    failed: step ship failed",
        "done: parcel with anvil to Italy, zone north\nthe bug is mended:\n    done: reservation of 2",
        "done: parcel with anvil to Italy, zone south",
        "events of 4 orders are in a file of JSON lines",
    ],
}
WARNED = {
    "documents": ["the archive of namespace default is file:///"],
    "saga": ["order failed: ValueError: nobody delivers to Atlantis (step ship, attempt 1, saga.py:"],
}
"""Lines on stderr: of a run that is meant to fail, and of an archive that is new."""


def check_warnings(name: str, lines: list[str]) -> None:
    expected = WARNED.get(name, [])
    assert len(lines) == len(expected), lines
    for line, words in zip(lines, expected, strict=True):
        assert words in line


def test_every_example_is_tested() -> None:
    assert {file.stem for file in (ROOT / "examples").glob("*.py")} == EXAMPLES.keys()


@pytest.mark.parametrize("name", EXAMPLES)
async def test_an_example_runs_by_itself(name: str) -> None:
    process = [sys.executable, "-W", "error", str(ROOT / "examples" / f"{name}.py")]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    done = await asyncio.to_thread(subprocess.run, process, capture_output=True, env=environ, timeout=50)
    assert done.returncode == 0, done.stderr.decode()
    check_warnings(name, done.stderr.decode().splitlines())
    for words in EXAMPLES[name]:
        assert words in done.stdout.decode()


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_the_app_of_a_daemon(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert load_app(f"{ROOT / 'examples' / name}.py").workflows
