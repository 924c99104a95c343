"""`config`, `--config`, and what commands take from the settings file."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner, Result

from streamflow import search_path
from streamflow.cli import SECTIONS, cli
from streamflow.cli.options import setting_of
from streamflow.settings import VARIABLES, CommandSettings, Settings
from tests.unit.test_docs import ROOT, blocks

COMMANDS = [name for section in SECTIONS.values() for name in section]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in (*VARIABLES, "STREAMFLOW_TEST_SERVERS", "STREAMFLOW_TEST_EXAMPLES"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def invoke(*words: str, **environ: str) -> Result:
    return CliRunner().invoke(cli, list(words), env=environ)


def printed(*words: str, **environ: str) -> dict[str, Any]:
    result = invoke("config", "--json", *words, **environ)
    assert (result.exit_code, result.stderr) == (0, "")
    return json.loads(result.stdout)


def options_of(name: str) -> list[click.Parameter]:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    return command.params


def test_config_prints_every_setting_with_its_source(here: Path) -> None:
    (here / "s.toml").write_text('shards = 64\nredis = "rediss://me:s3cret@h:1/0?ssl_password=s3cret"\napp = "f:app"\n')
    found = printed("--config", "s.toml", "--beat", "0.25", "--log-level", "debug", STREAMFLOW_THREADS="2")
    assert found["file"] == f"{here}/s.toml"
    assert set(found["settings"]) == {*Settings.__struct_fields__, *CommandSettings.__struct_fields__}
    expected = {
        "shards": (64, "file", f"{here}/s.toml:1"),
        "redis": ("rediss://***@h:1/0", "file", f"{here}/s.toml:2"),
        "app": ("f:app", "file", f"{here}/s.toml:3"),
        "beat": (0.25, "option", "--beat"),
        "log_level": ("debug", "option", "--log-level"),
        "threads": (2, "environment", "STREAMFLOW_THREADS"),
        "partition": ("run", "default", None),
    }
    for name, (value, source, place) in expected.items():
        assert found["settings"][name] == {"value": value, "source": source, "place": place}


def test_config_names_directories_of_packages_that_were_given_as_options(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(search_path, "_added", [])
    for name in ("one", "two"):
        (here / name).mkdir()
    found = printed("--path", "one", "--path", "two")["settings"]["path"]
    assert found == {"value": f"{here}/one{os.pathsep}{here}/two", "source": "option", "place": "--path"}


def test_config_prints_the_same_as_text_and_no_password(here: Path) -> None:
    (here / "pyproject.toml").write_text("[tool.streamflow]\nredis = 'redis://:s3cret@h'\nretention = 3600\n")
    result = invoke("config")
    assert result.exit_code == 0
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert f"redis redis://***@h {here}/pyproject.toml:2" in lines
    assert f"retention 3600 {here}/pyproject.toml:3" in lines
    assert "grace 10 default" in lines
    assert f"settings file: {here}/pyproject.toml [tool.streamflow]" in lines
    assert invoke("config", "--config", os.devnull).stdout.endswith(f"settings file: {os.devnull}\n")
    (here / "pyproject.toml").unlink()
    assert invoke("config").stdout.endswith("settings file: none\n")


def test_config_prints_every_mistake_and_ends_with_2(here: Path) -> None:
    (here / "s.toml").write_text("redsi = 1\nshards = 'x'\n")
    result = invoke("config", "--config", "s.toml", STREAMFLOW_GRACE="soon")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 3
    for part in ("s.toml:1: unknown setting redsi; did", "s.toml:2: shards='x'", "STREAMFLOW_GRACE='soon'"):
        assert part in result.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_with_a_server_takes_a_file(name: str) -> None:
    options = {option for parameter in options_of(name) for option in parameter.opts}
    assert ("--config" in options) == ("--namespace" in options or name == "logs")  # log_file may be in the file


@pytest.mark.parametrize(("command", "word"), [("runs", None), ("show", "r1"), ("status", None), ("worker", None)])
def test_a_mistake_in_the_file_ends_a_command_before_it_asks_a_server(
    here: Path, command: str, word: str | None
) -> None:
    (here / "s.toml").write_text("redsi = 1\n")
    words = (command, *([word] if word else []), "--redis", "redis://127.0.0.1:1", "--namespace", "n")
    result = invoke(*words, "--config", "s.toml")
    assert (result.exit_code, result.stderr) == (
        2,
        f"error: {here}/s.toml:1: unknown setting redsi; did you mean redis?\n",
    )
    assert invoke(command, "--help", STREAMFLOW_CONFIG="s.toml").exit_code == 0


def test_check_reports_mistakes_in_the_file_as_findings(here: Path) -> None:
    (here / "s.toml").write_text("redsi = 1\nshards = 'x'\n")
    for words in (("check", "--json"), ("daemon", "--check", "--log-format", "json")):
        result = invoke(*words, "--config", "s.toml")
        about = [one["message"] for one in json.loads(result.stdout)["findings"] if one["about"] == "settings"]
        assert len(about) == 2
        assert result.exit_code == 1


def test_check_warns_of_a_password_that_others_can_read(here: Path) -> None:
    file = here / "s.toml"
    file.write_text("redis = 'redis://:s3cret@127.0.0.1:1'\n")
    for mode, warned in ((0o644, True), (0o600, False)):
        file.chmod(mode)
        result = invoke("check", "--config", "s.toml")
        assert ("every user of this machine can read it: chmod 600" in result.stdout) is warned
        assert "s3cret" not in result.output


def test_options_of_commands_come_from_the_file_too(here: Path) -> None:
    (here / "s.toml").write_text("app = 'no_such_module:app'\n")
    assert "no module 'no_such_module'" in invoke("daemon", "--config", "s.toml").stderr
    assert "no module 'other'" in invoke("daemon", "--config", "s.toml", STREAMFLOW_APP="other:app").stderr
    assert "no module 'third'" in invoke("daemon", "--config", "s.toml", "--app", "third:app").stderr
    (here / "s.toml").write_text(f"app = 'flows:app'\npath = 'nowhere{os.pathsep}elsewhere'\n")
    refused = invoke("daemon", "--config", "s.toml")
    assert refused.exit_code == 2
    assert "nowhere" in refused.stderr
    assert "elsewhere" not in refused.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_with_a_variable_is_in_the_settings(name: str) -> None:
    """Then it can be in the file, and `config` prints it. One that is not in `Settings` belongs into
    `CommandSettings`, with the same default."""
    defaults = {field.name: field.default for field in msgspec.structs.fields(CommandSettings)}
    for parameter in options_of(name):
        if setting := setting_of(parameter):
            assert setting in defaults
            default = parameter.default if isinstance(parameter.default, str | int) else None
            assert default == defaults[setting]


def test_the_file_is_that_of_its_command_only(here: Path) -> None:
    (here / "s.toml").write_text("shards = 8\n")
    assert printed("--config", "s.toml", STREAMFLOW_CONFIG="none.toml")["settings"]["shards"]["value"] == 8
    assert "STREAMFLOW_CONFIG" not in os.environ
    assert printed()["settings"]["shards"]["value"] == 256


def test_the_file_in_the_documentation_is_valid(here: Path) -> None:
    (example,) = blocks(ROOT / "docs/operations.md", "toml")
    (here / "streamflow.toml").write_text(example)
    found = printed("--config", "streamflow.toml")["settings"]
    assert {name for name, one in found.items() if one["source"] == "file"} == {
        line.partition(" = ")[0] for line in example.splitlines() if not line.startswith("#")
    }
