"""The comparison of two checkouts: which tree its daemons run, and how sure a ratio is."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

import streamflow
from bench.command import main
from bench.turns import ratio_of
from streamflow.embedded.child import start_python
from streamflow.errors import UsageError

HERE = Path(streamflow.__file__).parent.parent


@pytest.fixture
def other(tmp_path: Path) -> Path:
    package = tmp_path / "other" / "streamflow"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text("print('the other one')")
    return package.parent


def test_a_child_imports_the_streamflow_that_it_is_given(other: Path, tmp_path: Path) -> None:
    for source, expected in ((other, "the other one"), (None, streamflow.__version__)):
        log = tmp_path / f"{source is None}.log"
        assert start_python(["-m", "streamflow", "--version"], log, {}, source).wait() == 0
        assert expected in log.read_text()


@pytest.mark.parametrize(("tree", "says"), [("nothing", "no streamflow in"), ("here", "is what this process runs")])
def test_only_another_checkout_can_be_compared_with(tmp_path: Path, tree: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        main(["turns", str(HERE if tree == "here" else tmp_path), "chain"])


def test_a_ratio_is_that_of_most_rounds_with_its_standard_error() -> None:
    others = [1.0] * 9
    ratio, error = ratio_of([1.02] * 8 + [9.0], others)  # something else took the processor once
    assert (ratio, error) == (1.02, 0.0)
    ratio, wide = ratio_of([0.8, 0.9, 1.0, 1.1, 1.2], others[:5])
    assert ratio == 1.0
    _, narrow = ratio_of([0.8, 0.9, 1.0, 1.1, 1.2] * 4, [1.0] * 20)
    assert 0 < narrow == pytest.approx(wide / 2)
    assert ratio_of([2.0], [1.0]) == (2.0, math.inf)
