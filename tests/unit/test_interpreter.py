"""How children are started, in an ordinary installation and from the single binary."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from streamflow import binary
from streamflow.embedded.child import own_environ
from streamflow.interpreter import python_command

ROOT = Path(__file__).parents[2]


def test_children_of_an_ordinary_installation_keep_its_environment() -> None:
    assert binary.root() is None
    assert binary.details() == {}
    assert python_command("-m", "streamflow") == [sys.executable, "-P", "-m", "streamflow"]
    assert own_environ()["PYTHONPATH"].startswith(str(ROOT))  # this one is editable: a child imports the same


def test_children_of_the_binary_ignore_what_belongs_to_other_pythons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / binary.DETAILS).write_text('{"version": "1"}')
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", "/theirs")
    assert binary.details() == {"version": "1"}
    assert python_command("script.py") == [sys.executable, "-I", "script.py"]
    assert own_environ()["PYTHONPATH"] == "/theirs"  # for what steps start


def test_the_unpacked_directory_is_locked_while_a_process_uses_it(tmp_path: Path) -> None:
    (tmp_path / binary.DETAILS).write_text("{}")
    code = f"import sys; sys.prefix = {str(tmp_path)!r}; from streamflow import binary; binary.hold(); print(); input()"
    user = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert user.stdout is not None
    user.stdout.readline()
    cleaner = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(BlockingIOError):
            fcntl.flock(cleaner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        user.communicate(b"\n")
        fcntl.flock(cleaner, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(cleaner)
        user.kill()
        user.wait()
