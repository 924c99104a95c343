"""The release script: which commits it refuses, that it builds the same bytes twice, and the checksums."""

from __future__ import annotations

import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from release import build

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="there is no git on PATH")


def git(root: Path, *words: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    subprocess.run(["git", *who, *words], cwd=root, check=True, capture_output=True)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with one commit that may be released."""
    root = tmp_path / "project"
    (root / "streamflow").mkdir(parents=True)
    (root / "pyproject.toml").write_text('[project]\nname = "streamflowd"\nversion = "1.2.3"\n')
    (root / "streamflow/version.py").write_text('__version__ = "1.2.3"\n')
    (root / "CHANGELOG.md").write_text("# Changes\n\n## 1.2.3, 2026-11-29\n\n## 1.2.2, 2026-11-01\n")
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "a")
    return root


def change(root: Path, name: str, before: str, after: str) -> None:
    file = root / name
    assert before in file.read_text()
    file.write_text(file.read_text().replace(before, after))
    git(root, "commit", "-qam", "b")


def test_a_clean_commit_with_its_version_in_the_changelog_is_accepted(project: Path) -> None:
    assert build.check(project, rehearsal=False) == "1.2.3"


def test_a_tree_with_changes_is_refused_with_their_names(project: Path) -> None:
    (project / "more.txt").touch()
    with pytest.raises(build.Refused, match=r"not committed:\n\?\? more.txt"):
        build.check(project, rehearsal=True)


def test_versions_that_differ_are_refused(project: Path) -> None:
    change(project, "streamflow/version.py", "1.2.3", "1.2.4")
    with pytest.raises(build.Refused, match=r"pyproject\.toml has version 1\.2\.3, streamflow/version\.py has 1\.2\.4"):
        build.check(project, rehearsal=True)


def test_a_changelog_without_the_version_or_its_date_is_refused(project: Path) -> None:
    change(project, "CHANGELOG.md", "1.2.3, 2026-11-29", "1.2.3, unreleased")
    with pytest.raises(build.Refused, match=r"calls 1\.2\.3 'unreleased': write the date"):
        build.check(project, rehearsal=False)
    assert build.check(project, rehearsal=True) == "1.2.3"
    change(project, "CHANGELOG.md", "1.2.3, unreleased", "1.2.30, 2026-11-29")
    with pytest.raises(build.Refused, match=r"no heading `## 1\.2\.3, <date>`"):
        build.check(project, rehearsal=True)


def test_only_committed_files_are_exported(project: Path, tmp_path: Path) -> None:
    (project / "secret.txt").touch()
    build.export(project, tmp_path / "exported")
    assert {file.name for file in (tmp_path / "exported").iterdir()} == {"CHANGELOG.md", "pyproject.toml", "streamflow"}


def test_two_builds_that_differ_are_refused(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the name of the folder were in what is built."""

    def write_folder(*words: str | Path, cwd: Path, **_: str) -> str:
        output = cwd.parent / "dist"
        output.mkdir()
        (output / "x.whl").write_text(cwd.parent.name)
        return ""

    monkeypatch.setattr(build, "export", lambda root, folder: folder.mkdir())
    monkeypatch.setattr(build, "run", write_folder)
    with pytest.raises(build.Refused, match="two builds of the same commit differ"):
        build.packages(project, tmp_path, "0")


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is not a checkout")
@pytest.mark.skipif(not (find_spec("build") and find_spec("hatchling")), reason="the extra dev is not installed")
def test_sdist_and_wheel_of_this_commit_are_the_same_in_any_folder(tmp_path: Path) -> None:
    files = build.packages(ROOT, tmp_path, build.commit_time(ROOT))  # builds twice, and refuses what differs
    assert [file.suffix for file in files] == [".whl", ".gz"]


def test_the_checksums_are_those_that_sha256sum_checks(tmp_path: Path) -> None:
    for name in ("b.whl", "a.tar.gz"):
        (tmp_path / name).write_text(name)
    file = build.checksums([tmp_path / "b.whl", tmp_path / "a.tar.gz"], tmp_path)
    assert [line.split()[1] for line in file.read_text().splitlines()] == ["a.tar.gz", "b.whl"]
    subprocess.run(["sha256sum", "--check", "--strict", file.name], cwd=tmp_path, check=True, capture_output=True)
