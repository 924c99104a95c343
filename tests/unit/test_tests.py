"""The tests as documentation: the manual uses the public API only, names are short, one test runs in one process."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import pytest_xdist_auto_num_workers

pytest_plugins = ["pytester"]

TESTS = Path(__file__).parents[1]
GUIDE = sorted(file for file in (TESTS / "guide").glob("*.py") if file.name != "conftest.py")
PUBLIC = {"streamflow", "streamflow.testing", "streamflow.events"}
HELPERS = {"tests.guide", "tests.guide.conftest", "tests.support.waiting"}
"""What the manual may import of the tests: conftest.py starts daemons and workers, waiting.py is public API itself."""
INTERNALS = {"store", "kernel", "keys", "read_namespace"}
"""Attributes of a client that are not its public API."""
LONGEST_NAME = 70


def name_of(file: Path) -> str:
    return str(file.relative_to(TESTS))


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module


@pytest.mark.parametrize("file", [*GUIDE, TESTS / "support" / "waiting.py"], ids=name_of)
def test_the_guide_uses_the_public_api_only(file: Path) -> None:
    tree = ast.parse(file.read_text())
    project = {name for name in imports(tree) if name.split(".")[0] in {"streamflow", "tests"}}
    assert project <= PUBLIC | HELPERS
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            private = node.attr.startswith("_") and not node.attr.endswith("__") and owner != "os"
            assert not private, f"line {node.lineno}: {node.attr} is private"
            assert owner != "client" or node.attr not in INTERNALS, f"line {node.lineno}: client.{node.attr}"


@pytest.mark.parametrize("file", sorted(TESTS.rglob("test_*.py")), ids=name_of)
def test_names_of_tests_have_at_most_seventy_characters(file: Path) -> None:
    """The name says the behaviour; details belong into a docstring."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    names = [node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, functions)]
    assert [name for name in names if name.startswith("test_") and len(name) > LONGEST_NAME] == []


@pytest.mark.parametrize(
    ("words", "divided"),
    [
        ("", True),
        ("tests/unit tests/kernel", True),
        ("-x --durations=5 -m server", True),
        ("tests/unit/test_wire.py", False),
        ("tests/unit/test_wire.py::test_it", False),
        ("tests/unit -k commit", False),
        ("--lf", False),
        ("-s", False),
        ("--trace", False),
    ],
)
def test_folders_are_divided_among_processes_and_a_single_test_is_not(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, words: str, divided: bool
) -> None:
    monkeypatch.delenv("PYTEST_XDIST_AUTO_NUM_WORKERS", raising=False)
    processes = pytest_xdist_auto_num_workers(pytester.parseconfig(*words.split()))
    assert processes is not None
    assert (processes > 1) if divided else (processes == 0)


def test_a_number_of_processes_that_was_asked_for_is_respected(
    pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_XDIST_AUTO_NUM_WORKERS", "5")
    assert pytest_xdist_auto_num_workers(pytestconfig) is None
