"""Finding the app that `--app` names."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from streamflow.cli.app_loader import load_app
from streamflow.errors import UsageError

APP = "import streamflow\napp = streamflow.App()\n"


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


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
    write(directory / "cli_single.py", "import streamflow\nflows = streamflow.App()\n")
    assert load_app("cli_single") is sys.modules["cli_single"].flows


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("", "names no module"),
        (":app", "names no module"),
        ("cli_missing:app", "there is no module 'cli_missing'"),
        ("cli_missing.sub:app", "there is no module 'cli_missing'"),
        ("cli_none.sub:app", "(there is a file cli_none/sub.py, but another module cli_none is imported instead)"),
        ("missing.py:app", "there is no file missing.py"),
        ("./folder", "is a directory"),
        ("cli_two:nope", "--app cli_two:nope: there is no such attribute; apps in cli_two: first, second"),
        ("cli_two", "has 2 apps: choose one, such as --app cli_two:first"),
        ("cli_two:number", "--app cli_two:number: it is of type int, not App"),
        ("cli_none", "cli_none has no App: write"),
        ("cli_none:app", "there is no such attribute; cli_none has no App: write"),
    ],
)
def test_a_wrong_target_is_explained(directory: Path, target: str, message: str) -> None:
    (directory / "folder").mkdir()
    write(
        directory / "cli_two.py", "import streamflow\nfirst, second = streamflow.App(), streamflow.App()\nnumber = 1\n"
    )
    write(directory / "cli_none.py", "x = 1\n")
    write(directory / "cli_none/sub.py")
    with pytest.raises(UsageError) as caught:
        load_app(target)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("def inner():\n    1 / 0\n\ninner()\n", "ZeroDivisionError"),
        ("import no_such_thing\n", "No module named 'no_such_thing'"),
        ("def broken(:\n", "SyntaxError"),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
    ],
)
@pytest.mark.parametrize("target", ["cli_bad:app", "cli_bad.py:app"])
def test_an_exception_while_importing_is_shown_with_the_user_s_frames_only(
    directory: Path, target: str, text: str, part: str
) -> None:
    file = write(directory / "cli_bad.py", text)
    with pytest.raises(UsageError) as caught:
        load_app(target)
    message = str(caught.value)
    assert part in message
    assert f'File "{file}"' in message
    assert "importlib" not in message
    assert "app_loader.py" not in message
