"""What `dev --reload` takes for a change of the code."""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner

from streamflow.cli import cli
from streamflow.cli.reloading import Reloader, roots

NOTHING: Mapping[str, object] = {}


async def nothing() -> None: ...


@pytest.fixture
def reloader(tmp_path: Path) -> Reloader:
    return Reloader("flows:app", [tmp_path / ".hidden" / "code"], nothing, NOTHING)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("flows.py", True),
        ("deep/down/flows.py", True),
        ("notes.txt", False),
        ("flows.pyc", False),
        ("__pycache__/flows.py", False),
        (".venv/lib/flows.py", False),
        (".flows.py", False),
        ("lib/site-packages/other.py", False),
    ],
)
def test_python_files_count_but_not_those_of_tools(reloader: Reloader, name: str, counts: bool) -> None:
    assert reloader.counts(reloader.directories[0] / name) is counts


def test_a_file_elsewhere_does_not_count(reloader: Reloader, tmp_path: Path) -> None:
    assert not reloader.counts(tmp_path / "flows.py")


def test_a_file_that_is_saved_with_the_same_content_is_no_change(reloader: Reloader, tmp_path: Path) -> None:
    file = tmp_path / "flows.py"
    file.write_text("a")
    assert reloader.is_new(file)
    file.write_text("a")
    assert not reloader.is_new(file)
    file.write_text("b")
    assert reloader.is_new(file)
    file.unlink()
    assert reloader.is_new(file)
    assert not reloader.is_new(file)


def module(name: str, file: Path) -> types.ModuleType:
    made = types.ModuleType(name)
    made.__file__ = str(file)
    return made


def test_the_directories_are_those_from_which_modules_were_imported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, file in (
        ("flows", "a/flows.py"),
        ("pack", "b/pack/__init__.py"),
        ("pack.inner", "b/pack/inner.py"),
        ("pack.deep.er", "b/pack/deep/er.py"),
        ("nested", "a/lib/nested.py"),
        ("installed", "c/site-packages/installed.py"),
        ("__main__", "d/main.py"),
    ):
        monkeypatch.setitem(sys.modules, name, module(name, tmp_path / file))
    assert [one for one in roots() if one.is_relative_to(tmp_path)] == [tmp_path / "a", tmp_path / "b"]


def test_without_the_library_dev_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    (tmp_path / "reload_flows.py").write_text(
        "import streamflow as sf\napp = sf.App()\n\n@app.workflow\nasync def echo() -> None: ...\n"
    )
    done = CliRunner().invoke(cli, ["dev", "--reload", "--app", str(tmp_path / "reload_flows.py")])
    assert done.exit_code == 2
    assert "--reload needs watchfiles. Run: pip install 'streamflowd[reload]'" in done.output


def test_a_queue_of_no_step_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "queueless_flows.py").write_text(
        "import streamflow as sf\napp = sf.App()\n\n@app.workflow\nasync def echo() -> None: ...\n"
    )
    done = CliRunner().invoke(cli, ["dev", "--worker", "gpu", "--app", str(tmp_path / "queueless_flows.py")])
    assert done.exit_code == 2
    assert "has queue='gpu' (its steps name none; write @app.step(queue=…))" in done.output
