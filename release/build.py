"""Builds everything of a release from the last commit, and uploads nothing: `python release/build.py`.

Owns: what belongs to a release (sdist, wheel, single binary, SBOM, checksums), that it is of a commit whose CHANGELOG
names the version, and that the same commit gives the same bytes. Must not: read a file that isn't committed.
Called by: `make release`, `.ci/run`. Needs the extras `dev` and `release`.

Sdist and wheel are built twice, in folders of other names, and must be equal. The times in all files are that of the
commit (`SOURCE_DATE_EPOCH`). The SBOM lists what pip chooses today for the wheel with all extras that users install;
its bytes are the same as long as that is.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parents[1]
FOR_DEVELOPERS = {"binary", "dev", "docs", "release", "test"}
"""Extras that nobody installs to run streamflow."""
CHECKSUMS = "SHA256SUMS"


class Refused(click.ClickException):
    """The release can't be made of this commit."""


def run(*words: str | Path, cwd: Path, **environ: str) -> str:
    """The output of a command. Raises `Refused` with the end of it if the command fails."""
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C.UTF-8", "TZ": "UTC", "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Refused(f"{' '.join(map(str, words))} failed:\n{done.stdout[-3000:]}")
    return done.stdout


# --- what it is made of -----------------------------------------------------------------------------------------------


def check(root: Path, *, rehearsal: bool) -> str:
    """The version to release. Raises `Refused` if the tree is dirty, or the files name several versions or none."""
    if changed := run("git", "status", "--porcelain", cwd=root).rstrip():
        raise Refused(f"these files are not committed:\n{changed}")
    version = project(root)["version"]
    in_code = re.search(r'^__version__ = "(.+)"$', (root / "streamflow/version.py").read_text(), re.MULTILINE)
    if in_code is None or in_code[1] != version:
        raise Refused(f"pyproject.toml has version {version}, streamflow/version.py has {in_code and in_code[1]}")
    heading = re.search(rf"^## {re.escape(version)}, (.+)$", (root / "CHANGELOG.md").read_text(), re.MULTILINE)
    if heading is None:
        raise Refused(f"CHANGELOG.md has no heading `## {version}, <date>`: say what has changed")
    if not rehearsal and not re.fullmatch(r"\d{4}-\d{2}-\d{2}", heading[1]):
        raise Refused(f"CHANGELOG.md calls {version} {heading[1]!r}: write the date, or add --rehearsal")
    return version


def project(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


def commit_time(root: Path) -> str:
    """Seconds since the epoch."""
    return run("git", "log", "-1", "--format=%ct", cwd=root).strip()


def export(root: Path, folder: Path) -> None:
    """The files of the last commit."""
    archive = folder.with_suffix(".tar")
    run("git", "archive", f"--output={archive}", "HEAD", cwd=root)
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")
    archive.unlink()


# --- the parts --------------------------------------------------------------------------------------------------------


def packages(root: Path, folder: Path, epoch: str) -> list[Path]:
    """Sdist and wheel, built twice. Raises `Refused` if the two differ."""
    built: list[list[Path]] = []
    for name in ("first", "second-with-another-name"):
        source, output = folder / name / "source", folder / name / "dist"
        source.parent.mkdir(parents=True)
        export(root, source)
        words = ("build", "--no-isolation", "--quiet", "--outdir", output, ".")
        run(sys.executable, "-m", *words, cwd=source, SOURCE_DATE_EPOCH=epoch)
        built.append(sorted(output.iterdir()))
    first, second = built
    if [(file.name, digest(file)) for file in first] != [(file.name, digest(file)) for file in second]:
        raise Refused("two builds of the same commit differ: compare them with diffoscope")
    return first


def binary(root: Path, folder: Path, epoch: str) -> list[Path]:
    """The single binary, if this commit can build one."""
    source = folder / "binary"
    export(root, source)
    if not (source / "binary/build.py").exists():
        return []
    run(sys.executable, "binary/build.py", cwd=source, SOURCE_DATE_EPOCH=epoch)
    return sorted((source / "dist").glob("streamflow-*-linux-*"))


def sbom(root: Path, folder: Path, wheel: Path, version: str, epoch: str) -> Path:
    """What an installation of the wheel with all extras of users consists of, as CycloneDX JSON."""
    environment = folder / "environment"
    venv.create(environment, with_pip=False)
    python = environment / "bin/python"
    extras = ",".join(sorted(set(project(root)["optional-dependencies"]) - FOR_DEVELOPERS))
    install = ("pip", "--python", python, "install", "-q", "--no-compile")  # it is listed, and never runs
    run(sys.executable, "-m", *install, f"{wheel}[{extras}]", cwd=folder)
    for record in environment.glob("lib/python*/site-packages/streamflowd-*.dist-info/direct_url.json"):
        record.unlink()  # the path of the wheel, which is another one each time
    file = folder / f"streamflowd-{version}.cdx.json"
    words = ("environment", "--output-reproducible", "--mc-type", "application", "--of", "JSON")
    about = ("--pyproject", root / "pyproject.toml", "--output-file", file)
    run(sys.executable, "-m", "cyclonedx_py", *words, *about, python, cwd=folder, SOURCE_DATE_EPOCH=epoch)
    return file


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def checksums(files: Sequence[Path], folder: Path) -> Path:
    """As `sha256sum --check` reads it."""
    lines = [f"{digest(file)}  {file.name}\n" for file in sorted(files, key=lambda file: file.name)]
    (folder / CHECKSUMS).write_text("".join(lines))
    return folder / CHECKSUMS


# --- the command ------------------------------------------------------------------------------------------------------


@click.command()
@click.option("--rehearsal", is_flag=True, help="Accept a version that CHANGELOG.md calls unreleased.")
@click.option("--without-binary", is_flag=True, help="Leave the single binary out, which takes a minute.")
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), help="Folder, which is emptied.  [dist/<version>]"
)
def main(rehearsal: bool, without_binary: bool, output: Path | None) -> None:
    """Build sdist, wheel, single binary, SBOM and checksums of the last commit. Uploads nothing."""
    os.umask(0o022)
    version = check(ROOT, rehearsal=rehearsal)
    epoch = commit_time(ROOT)
    output = (output or ROOT / "dist" / version).absolute()
    with tempfile.TemporaryDirectory(prefix="streamflow-release-") as name:
        folder = Path(name)
        files = packages(ROOT, folder, epoch)
        wheel = next(file for file in files if file.suffix == ".whl")
        files.append(sbom(ROOT, folder, wheel, version, epoch))
        if not without_binary:
            files += binary(ROOT, folder, epoch)
        files.append(checksums(files, folder))
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir(parents=True)
        for file in files:
            shutil.copy2(file, output)
    click.echo(f"streamflow {version}, commit {run('git', 'rev-parse', 'HEAD', cwd=ROOT).strip()}, in {output}")
    for file in sorted(output.iterdir()):
        click.echo(f"{file.stat().st_size:>12,}  {digest(file)[:16]}…  {file.name}")
    if not list(output.glob("streamflow-*-linux-*")):
        click.echo("without the single binary")


if __name__ == "__main__":
    main()
