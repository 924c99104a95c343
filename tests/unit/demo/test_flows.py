"""The demo's steps and its direct count, as the plain functions that they are."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from streamflow.demo import flows as demo_flows
from streamflow.demo.flows import MODULES, Longest, Package, Totals, count_directly, measure

SOURCE = """\
import os, sys
from pathlib import Path as P, PurePath


class Bee:
    def fly(self):
        return 1

    async def sleep(self):
        def dream():
            pass

        return dream
"""


def tree(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return str(root)


def test_a_file_is_measured_with_its_nested_functions(tmp_path: Path) -> None:
    tree(tmp_path, {"bee.py": SOURCE})
    assert measure(tmp_path / "bee.py", "bee.py") == Totals(1, 0, 13, 3, 1, 4, Longest(5, "sleep", "bee.py"))


@pytest.mark.parametrize(
    "content",
    [b"def (:\n", b"x = '\xe9'\n", b"x = '\0'\n", b"x = " + b"(" * 5000],
    ids=["syntax", "bytes", "nul", "deep"],
)
def test_a_file_that_is_not_python_is_skipped_and_counted(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "odd.py").write_bytes(content)
    assert measure(tmp_path / "odd.py", "odd.py") == Totals(skipped=1)
    assert measure(tmp_path / "gone.py", "gone.py") == Totals(skipped=1)


def test_totals_are_the_same_in_whatever_order_they_are_merged() -> None:
    parts = [
        Totals(1, 0, 10, 2, 1, 3, Longest(7, "b", "x.py")),
        Totals(1, 0, 20, 3, 0, 1, Longest(7, "a", "y.py")),
        Totals(skipped=1),
    ]
    sums = {sum(order, Totals()) for order in itertools.permutations(parts)}
    assert sums == {Totals(2, 1, 30, 5, 1, 4, Longest(7, "b", "x.py"))}


def test_packages_are_directories_with_sources_and_modules_of_the_root(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "top.py": "",
            "notes.txt": "",
            "bees/hive.py": "",
            "bees/wax/cell.py": "",
            "bees/__pycache__/hive.py": "",
            "docs/index.txt": "",
            "site-packages/other.py": "",
            ".hidden/secret.py": "",
        },
    )
    assert demo_flows.packages_in(root) == [MODULES, "bees"]
    assert demo_flows.files_of(root, MODULES) == ["top.py"]
    assert demo_flows.files_of(root, "bees") == ["bees/hive.py", "bees/wax/cell.py"]


def test_a_name_that_is_not_utf_8_is_left_out(tmp_path: Path) -> None:
    root = tree(tmp_path, {"bees/hive.py": ""})
    (tmp_path / "bees" / "\udcff.py").write_text("")  # the byte FF, which is not UTF-8
    assert demo_flows.files_of(root, "bees") == ["bees/hive.py"]


def test_pages_of_files_follow_one_another_without_gap_or_overlap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_flows, "PAGE", 3)
    root = tree(tmp_path, {f"bees/m{number}.py": "" for number in range(7)})
    journal = str(tmp_path / "journal")
    pages: list[list[str]] = []
    after = ""
    while page := demo_flows.list_files.function(root, "bees", after, journal):
        pages.append(page)
        after = page[-1]
    assert [len(page) for page in pages] == [3, 3, 1]
    assert list(itertools.chain(*pages)) == demo_flows.files_of(root, "bees")


def test_each_execution_of_a_step_leaves_one_mark(tmp_path: Path) -> None:
    root, journal = tree(tmp_path, {"bees/hive.py": SOURCE}), tmp_path / "journal"
    assert demo_flows.executions(journal) == 0
    demo_flows.list_packages.function(root, str(journal))
    demo_flows.parse_file.function(root, "bees/hive.py", str(journal))
    demo_flows.parse_file.function(root, "bees/hive.py", str(journal))
    assert demo_flows.executions(journal) == 3


def test_the_direct_count_names_the_largest_packages_first(tmp_path: Path) -> None:
    root = tree(tmp_path, {"top.py": "x = 1\n", "bees/hive.py": SOURCE, "bees/bad.py": "def (:"})
    survey = count_directly(root)
    bees = Totals(1, 1, 13, 3, 1, 4, Longest(5, "sleep", "bees/hive.py"))
    modules = Totals(files=1, lines=1)
    assert survey.largest == [Package("bees", bees), Package(MODULES, modules)]
    assert survey.totals == bees + modules
    assert (survey.packages, survey.reported) == (2, 3)
