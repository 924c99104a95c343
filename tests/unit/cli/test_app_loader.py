"""Finding the app that `--app` names."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamflow.cli.app_loader import load_app
from streamflow.errors import UsageError

APP = "import streamflow\napp = streamflow.App()\n"


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory; what is imported from it is forgotten after the test."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in set(sys.modules) - before:
        origin = getattr(sys.modules[name], "__file__", None) or ""
        if origin.startswith(str(tmp_path)) or name.startswith("cli_"):
            del sys.modules[name]


def write(path: Path, text: str = APP) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_module_in_the_current_directory(directory: Path) -> None:
    write(directory / "cli_flows.py")
    app = load_app("cli_flows:app")
    assert app is sys.modules["cli_flows"].app
    assert load_app("cli_flows") is app


def test_a_module_of_a_package(directory: Path) -> None:
    write(directory / "cli_pkg/__init__.py", "")
    write(directory / "cli_pkg/flows.py", "from .base import app\n")
    write(directory / "cli_pkg/base.py")
    app = load_app("cli_pkg.flows:app")
    assert load_app("cli_pkg/flows.py") is app  # by its file, too, with its relative imports


def test_a_file_anywhere_with_its_neighbours(directory: Path) -> None:
    write(directory / "far/cli_neighbour.py", "NAME = 'here'\n")
    write(directory / "far/cli_far.py", f"import cli_neighbour\n{APP}assert cli_neighbour.NAME == 'here'\n")
    load_app("far/cli_far.py:app")
    load_app(str(directory / "far" / "cli_far.py"))


def test_a_file_that_is_imported_already_is_that_module(directory: Path) -> None:
    file = write(directory / "cli_known.py")
    app = load_app("cli_known")
    assert load_app(str(file)) is app
    assert load_app("cli_known.py:app") is app


def test_a_file_that_has_the_name_of_another_module(directory: Path) -> None:
    import json

    write(directory / "json.py")
    write(directory / "my-flows.py")
    load_app("json.py:app")
    load_app("my-flows.py:app")
    assert sys.modules["json"] is json


def test_the_only_app_needs_no_name(directory: Path) -> None:
    write(directory / "cli_one.py", "import streamflow\nflows = streamflow.App()\n")
    assert load_app("cli_one") is sys.modules["cli_one"].flows


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "names no module"),
        (":app", "names no module"),
        ("cli_missing:app", "there is no module 'cli_missing'"),
        ("cli_missing.sub:app", "there is no module 'cli_missing'"),
        ("missing.py:app", "there is no file missing.py"),
        ("./folder", "is a directory"),
        ("cli_two:nope", "has no attribute 'nope'; it has: first, second"),
        ("cli_two", "has 2 apps: choose one, --app cli_two:first"),
        ("cli_two:number", "has a int, no App, under 'number'"),
        ("cli_none", "has no App in it"),
        ("cli_none:app", "and it has none"),
    ],
)
def test_what_is_wrong_is_said(directory: Path, words: str, says: str) -> None:
    (directory / "folder").mkdir()
    write(
        directory / "cli_two.py", "import streamflow\nfirst, second = streamflow.App(), streamflow.App()\nnumber = 1\n"
    )
    write(directory / "cli_none.py", "x = 1\n")
    with pytest.raises(UsageError) as caught:
        load_app(words)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def inner():\n    1 / 0\n\ninner()\n", "ZeroDivisionError"),
        ("import no_such_thing\n", "No module named 'no_such_thing'"),
        ("def broken(:\n", "SyntaxError"),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
    ],
)
@pytest.mark.parametrize("words", ["cli_bad:app", "cli_bad.py:app"])
def test_an_exception_while_importing_is_shown_with_the_user_s_frames_only(
    directory: Path, words: str, text: str, says: str
) -> None:
    file = write(directory / "cli_bad.py", text)
    with pytest.raises(UsageError) as caught:
        load_app(words)
    message = str(caught.value)
    assert says in message
    assert f'File "{file}"' in message
    assert "importlib" not in message
    assert "app_loader.py" not in message
