"""What goes into the single binary, without building it."""

from __future__ import annotations

import tomllib
from pathlib import Path

from binary.build import EXTRAS, LEFT_OUTSIDE

FOR_DEVELOPERS = {"binary", "dev", "docs", "release", "test"}


def test_it_is_decided_for_every_extra_whether_it_is_inside() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert {*EXTRAS, *LEFT_OUTSIDE} | FOR_DEVELOPERS == project["optional-dependencies"].keys()
