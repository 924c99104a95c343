"""Directories of `--path`: where they stand, and what is said of packages that were built for another Python."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from streamflow import search_path
from streamflow.cli import cli
from streamflow.cli.app_loader import load_app
from streamflow.errors import UsageError

APP = "import streamflow\napp = streamflow.App()\n"


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(search_path, "_added", [])
    return tmp_path


def test_nothing_in_a_directory_shadows_what_is_installed(directory: Path) -> None:
    packages = directory / "packages"
    packages.mkdir()
    for name in ("redis", "colorsys", "searched_only_here"):
        (packages / f"{name}.py").write_text("")
    before = list(sys.path)
    search_path.add("packages")
    search_path.add(packages)
    assert sys.path == [*before, str(packages)]
    assert importlib.import_module("colorsys").__file__ != str(packages / "colorsys.py")
    assert importlib.import_module("searched_only_here").__file__ == str(packages / "searched_only_here.py")
    assert search_path.added() == [str(packages)]


def test_path_files_in_a_directory_lead_to_editable_installs(directory: Path) -> None:
    (directory / "packages").mkdir()
    (directory / "project").mkdir()
    (directory / "packages/project.pth").write_text(f"{directory / 'project'}\n")
    search_path.add("packages")
    assert sys.path[-1] == str(directory / "project")


def test_a_virtual_environment_is_refused_and_its_packages_are_named(directory: Path) -> None:
    packages = directory / "venv/lib/python3.12/site-packages"
    packages.mkdir(parents=True)
    (directory / "venv/pyvenv.cfg").touch()
    with pytest.raises(UsageError, match=rf"name the packages in it, --path {packages}"):
        search_path.add("venv")


@pytest.mark.parametrize("command", ["daemon", "worker", "dev", "replay", "check"])
def test_every_command_with_an_app_refuses_a_path_that_is_not_there(command: str) -> None:
    words = ["none.json"] if command == "replay" else []
    result = CliRunner().invoke(cli, [command, *words, "--app", "flows:app", "--path", "nowhere"])
    assert result.exit_code == 2
    assert result.stderr == "error: --path nowhere: there is no such directory\n"


def test_a_file_in_the_place_of_a_directory_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "flows.py").touch()
    with pytest.raises(UsageError, match="it is a file; name the directory that it is in"):
        search_path.add(tmp_path / "flows.py")


def test_the_variable_has_several_separated_as_in_path(directory: Path) -> None:
    (directory / "one").mkdir()
    (directory / "two").mkdir()
    variable = os.pathsep.join(["one", "", str(directory / "two")])
    result = CliRunner().invoke(cli, ["replay", "none.json", "--app", "sought:app"], env={"STREAMFLOW_PATH": variable})
    assert "there is no module 'sought'" in result.stderr
    assert sys.path[-2:] == [str(directory / "one"), str(directory / "two")]


def test_extensions_for_another_python_are_named_with_both_versions(directory: Path) -> None:
    package = directory / "packages/fast_sums"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "try:\n    from fast_sums import _sums\nexcept ImportError as error:\n    raise ImportError('bad') from error\n"
    )
    (package / "_sums.cpython-39-x86_64-linux-gnu.so").touch()
    (directory / "flows.py").write_text(f"import fast_sums\n{APP}")
    search_path.add("packages")
    with pytest.raises(UsageError) as raised:
        load_app("flows:app")
    version = f"Python {sys.version_info.major}.{sys.version_info.minor}"
    assert f"{package}/_sums.cpython-39-x86_64-linux-gnu.so is built for cpython-39-x86_64-linux-gnu" in str(
        raised.value
    )
    assert f"this is {version}" in str(raised.value)
    assert "ImportError: bad" in str(raised.value)


def test_a_module_that_is_missing_altogether_is_not_blamed_on_a_version(directory: Path) -> None:
    (directory / "flows.py").write_text(f"import nobody_has_this\n{APP}")
    with pytest.raises(UsageError) as raised:
        load_app("flows:app")
    assert "built for" not in str(raised.value)


def test_a_package_that_is_missing_leads_to_the_option_that_names_it(directory: Path) -> None:
    (directory / "flows.py").write_text(f"import nobody_has_this.inside\n{APP}")
    for found in ("no directory is given", f"none of {directory}/packages has it"):
        with pytest.raises(UsageError, match=r"No module named 'nobody_has_this'") as raised:
            load_app("flows:app")
        last = str(raised.value).splitlines()[-1]
        assert last.startswith("--path DIRECTORY (or STREAMFLOW_PATH) names where nobody_has_this is, such as the lib/")
        assert last.endswith(found)
        (directory / "packages").mkdir(exist_ok=True)
        search_path.add("packages")


def test_a_module_that_a_package_lacks_has_nothing_to_do_with_directories(directory: Path) -> None:
    (directory / "flows.py").write_text(f"import json.no_such_part\n{APP}")
    with pytest.raises(UsageError, match=r"No module named 'json\.no_such_part'") as raised:
        load_app("flows:app")
    assert "--path" not in str(raised.value)
