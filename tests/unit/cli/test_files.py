"""`files`: what is shipped for deployments is listed and written, and nobody's changes are lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from streamflow.cli import cli
from streamflow.cli.commands import files as module

DEPLOY = Path(__file__).parents[3] / "deploy"
UNITS = ["systemd/streamflow-daemon@.service", "systemd/streamflow-worker@.service"]


def invoke(*words: str) -> Result:
    return CliRunner().invoke(cli, ["files", *words])


def test_every_file_of_the_checkout_is_listed() -> None:
    listed = invoke().stdout.splitlines()
    assert listed == sorted(path.relative_to(DEPLOY).as_posix() for path in DEPLOY.rglob("*") if path.is_file())
    assert {"prometheus/alerts.yml", "grafana/streamflow.json", *UNITS} <= set(listed)


def test_a_directory_is_written_as_it_is_shipped(tmp_path: Path) -> None:
    result = invoke("systemd", "--output", str(tmp_path / "new"))
    assert result.stdout.splitlines() == [str(tmp_path / "new" / unit) for unit in UNITS]
    for unit in UNITS:
        assert (tmp_path / "new" / unit).read_bytes() == (DEPLOY / unit).read_bytes()


def test_what_was_changed_is_kept_without_force(tmp_path: Path) -> None:
    invoke("systemd", "--output", str(tmp_path))
    assert invoke("systemd", "--output", str(tmp_path)).exit_code == 0, "nothing is different"
    (tmp_path / UNITS[1]).write_text("mine")
    (tmp_path / UNITS[0]).unlink()
    result = invoke("systemd", "--output", str(tmp_path))
    assert (result.exit_code, f"{tmp_path / UNITS[1]} exists and is different" in result.stderr) == (2, True)
    assert not (tmp_path / UNITS[0]).exists(), "nothing was written"
    assert invoke("systemd", "--output", str(tmp_path), "--force").exit_code == 0
    assert (tmp_path / UNITS[1]).read_bytes() == (DEPLOY / UNITS[1]).read_bytes()


def test_an_unknown_name_and_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    result = invoke("helm")
    assert (result.exit_code, "there are grafana, kubernetes, prometheus, systemd" in result.stderr) == (2, True)
    (tmp_path / "file").write_text("")
    result = invoke("grafana", "--output", str(tmp_path / "file"))
    assert (result.exit_code, "can't be written: " in result.stderr) == (2, True)


def test_a_wheel_without_them_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "__file__", str(tmp_path / "a/b/c/files.py"))
    result = invoke()
    assert (result.exit_code, "reinstall streamflowd" in result.stderr) == (2, True)
