"""The file of a bulk: what is read back, and what is refused."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from streamflow import actions
from streamflow.actions.targets import MAX_REASONS, Tally, Target, TargetFile
from streamflow.errors import UsageError


def created(path: Path, count: int = 3) -> TargetFile:
    file = TargetFile.create(path, actions.Retry(reason="up"), {"workflow": "w", "error": None}, "ns", "abc", "kim@h")
    file.add(Target(f"r{number}", number) for number in range(1, count + 1))
    return file


def test_it_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    file = created(tmp_path / "a")
    file.complete()
    file.tally.add("r1", "done", "")
    file.tally.add("r2", "failed", "run r2 is odd")
    file.note("r2", "failed", "run r2 is odd")
    file.save()
    file.close()
    again = TargetFile.open(tmp_path / "a")
    assert (again.head, again.count) == (file.head, 3)
    assert again.head.action == actions.Retry(reason="up")
    assert again.head.filters == {"workflow": "w"}
    assert again.tally == Tally(2, 1, 0, 1, {"failed: run … is odd": 1})
    assert list(again.targets(1)) == [(2, Target("r2", 2)), (3, Target("r3", 3))]
    again.close()
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


def test_a_line_that_a_kill_has_cut_is_dropped_and_written_over(tmp_path: Path) -> None:
    file = created(tmp_path / "a")
    file.complete()
    file.tally.add("r1", "done", "")
    file.save()
    file.close()
    with (tmp_path / "a").open("ab") as cut:
        cut.write(b'{"next":2,"do')
    again = TargetFile.open(tmp_path / "a")
    assert again.tally.next == 1
    again.tally.add("r2", "done", "")
    again.save()
    again.close()
    last = TargetFile.open(tmp_path / "a")
    last.close()
    assert last.tally.next == 2


def test_one_that_was_not_complete_is_refused(tmp_path: Path) -> None:
    created(tmp_path / "a").close()
    with pytest.raises(UsageError, match="isn't complete, and nothing was done to any run"):
        TargetFile.open(tmp_path / "a")


@pytest.mark.parametrize("text", ["", "hello\n", '{"a":1}\n', "[" * 100_000])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a").write_text(text)
    with pytest.raises(UsageError, match="is not a list of runs that a bulk command has written"):
        TargetFile.open(tmp_path / "a")


def test_one_that_was_edited_is_refused(tmp_path: Path) -> None:
    file = created(tmp_path / "a")
    file.complete()
    file.close()
    lines = (tmp_path / "a").read_text().splitlines(keepends=True)
    (tmp_path / "a").write_text("".join([*lines[:2], "nonsense\n", *lines[2:]]))
    with pytest.raises(UsageError, match="is damaged"):
        TargetFile.open(tmp_path / "a")
    (tmp_path / "a").write_text("".join([*lines[:2], *lines[3:]]))  # a run less
    with pytest.raises(UsageError, match="isn't complete"):
        TargetFile.open(tmp_path / "a")


def test_no_file_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    with pytest.raises(UsageError, match=r"can't write the list of runs to .*File exists; name another file"):
        created(tmp_path / "a")
    with pytest.raises(UsageError, match="No such file"):
        created(tmp_path / "none" / "a")
    with pytest.raises(UsageError, match="No such file"):
        TargetFile.open(tmp_path / "b")


def test_two_processes_do_not_work_on_one_file(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    file = created(tmp_path / "a")
    file.complete()
    with pytest.raises(UsageError, match="another process is working on"):
        TargetFile.open(tmp_path / "a")
    file.close()
    TargetFile.open(tmp_path / "a").close()


def test_different_reasons_are_bounded() -> None:
    tally = Tally()
    for number in range(1000):
        tally.add(f"r{number}", "failed", f"run r{number} has {number % 50}")
    assert len(tally.reasons) == MAX_REASONS + 1
    assert sum(tally.reasons.values()) == 1000
    assert tally.reasons["failed: other reasons"] == 600
