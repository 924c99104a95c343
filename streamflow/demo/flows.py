"""The demo's app: maps a tree of Python sources. A supervisor, a child run per package, a step per file.

Owns: the workflows, the steps, and the same count without streamflow (`count_directly`).
Must not: start anything, print, or know about daemons. Called by: the demo, and the daemons that it starts.

    survey ──┬── package "asyncio" ──┬── list_files, then parse_file for each
             │      ╰╴signals "progress" to the survey
             ├── package "email"   ── …
             ╰── merges what the packages return

Steps may run more than once (the next owner runs those of a killed daemon again), their results are recorded once.
Each execution appends one byte to the journal, so that the demo can count executions.
"""

from __future__ import annotations

import ast
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from streamflow.workflow.api import gather, info, send_signal, signal
from streamflow.workflow.app import App
from streamflow.workflow.retry import Retry

app = App()

MODULES = "(modules)"
"""The package of the files in the root itself. In parentheses, because no directory of a package has them."""
IGNORED_FOLDERS = frozenset({"site-packages", "dist-packages", "__pycache__", "node_modules"})
PAGE = 400
"""Files of a package that are parsed at the same time: limits the size of a transition, and of a payload."""
LARGEST = 12
"""Packages that the result lists individually."""
PROGRESS = "progress"
"""The signal by which a package reports its progress."""


class Longest(msgspec.Struct, frozen=True, order=True):
    """A function: how many lines it has and where it is. Ordered by lines, so a merge keeps the largest."""

    lines: int
    name: str
    path: str


class Totals(msgspec.Struct, frozen=True):
    """Figures about some files. The sum of two is about both, in whatever order the files were counted."""

    files: int = 0
    skipped: int = 0
    """Files that can't be decoded or parsed: test data of a parser, another version's syntax."""
    lines: int = 0
    functions: int = 0
    classes: int = 0
    imports: int = 0
    longest: Longest | None = None

    def __add__(self, other: Totals) -> Totals:
        return Totals(
            self.files + other.files,
            self.skipped + other.skipped,
            self.lines + other.lines,
            self.functions + other.functions,
            self.classes + other.classes,
            self.imports + other.imports,
            max((longest for longest in (self.longest, other.longest) if longest is not None), default=None),
        )


class Package(msgspec.Struct, frozen=True):
    name: str
    totals: Totals


class Progress(msgspec.Struct, frozen=True):
    """What a package reports to the survey. `done`: this is its last report."""

    files: int
    done: bool


class Survey(msgspec.Struct, frozen=True):
    """`largest` packages by lines; `reported`: files that the packages reported by signal while they worked."""

    totals: Totals
    packages: int
    largest: list[Package]
    reported: int


# --- workflows --------------------------------------------------------------------------------------------------------


@app.workflow
async def survey(root: str, journal: str) -> Survey:
    """Map a source tree: a child run for each top-level package, merged into one result."""
    names = await list_packages(root, journal)
    # Concurrently: the children work, and `count_reported` receives their signals.
    packages, reported = await gather(
        gather(*(package(root, name, journal) for name in names)),
        count_reported(len(names)),
    )
    return merged(packages, reported)


async def count_reported(packages: int) -> int:
    """Count the files that the packages report, until all packages are done."""
    files = 0
    while packages:
        progress = await signal(PROGRESS, Progress)
        files += progress.files
        packages -= progress.done
    return files


@app.workflow
async def package(root: str, name: str, journal: str) -> Package:
    """Parse the files of one top-level package, a step each, and add up what they contain."""
    totals = Totals()
    after = ""
    while True:
        page = await list_files(root, name, after, journal)
        for file_totals in await gather(*(parse_file(root, path, journal) for path in page)):
            totals += file_totals
        done = len(page) < PAGE
        await send_signal(info().parent, PROGRESS, Progress(len(page), done))
        if done:
            return Package(name, totals)
        after = page[-1]


def merged(packages: Iterable[Package], reported: int) -> Survey:
    totals = Totals()
    packages = sorted(packages, key=lambda package: (-package.totals.lines, package.name))
    for part in packages:
        totals += part.totals
    return Survey(totals, len(packages), packages[:LARGEST], reported)


# --- steps: what touches the file system, and what takes time ---------------------------------------------------------

RETRY = Retry(attempts=3, initial=0.2)


@app.step(retry=RETRY)
def list_packages(root: str, journal: str) -> list[str]:
    """The top-level packages of the tree, sorted."""
    record_execution(journal)
    return packages_in(root)


@app.step(retry=RETRY)
def list_files(root: str, name: str, after: str, journal: str) -> list[str]:
    """The next page of a package's files, relative to the root, sorted."""
    record_execution(journal)
    return [path for path in files_of(root, name) if path > after][:PAGE]


@app.step(retry=RETRY)
def parse_file(root: str, path: str, journal: str) -> Totals:
    """What is in one file. A plain function, so it runs in a thread of the daemon."""
    record_execution(journal)
    return measure(Path(root, path), path)


def record_execution(journal: str) -> None:
    """Record one more execution. O_APPEND: no byte is lost or overwritten, whichever process is killed."""
    descriptor = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, b".")
    finally:
        os.close(descriptor)


def executions(journal: Path) -> int:
    """How many executions of steps have begun so far."""
    return journal.stat().st_size if journal.exists() else 0


# --- plain functions, which do not use streamflow ---------------------------------------------------------------------


def packages_in(root: str) -> list[str]:
    """Directories of the root that have Python files somewhere in them, and `MODULES` if the root itself has any."""
    with os.scandir(root) as entries:
        folders = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    names = [name for name in folders if _wanted(name) and any(True for _ in _files_below(root, name))]
    return ([MODULES] if files_of(root, MODULES) else []) + names


def files_of(root: str, name: str) -> list[str]:
    """The Python files of a package, relative to the root, sorted."""
    if name != MODULES:
        return sorted(_files_below(root, name))
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if entry.is_file() and _is_source(entry.name))


def _files_below(root: str, name: str) -> Iterator[str]:
    for folder, folders, files in os.walk(Path(root, name)):
        folders[:] = [name for name in folders if _wanted(name)]
        yield from (os.path.relpath(Path(folder, file), root) for file in files if _is_source(file))


def _is_source(file: str) -> bool:
    return file.endswith(".py") and _is_text(file)


def _wanted(folder: str) -> bool:
    return folder not in IGNORED_FOLDERS and not folder.startswith(".") and _is_text(folder)


def _is_text(name: str) -> bool:
    """A name with bytes that aren't UTF-8 can't be part of a payload."""
    return not any("\ud800" <= char <= "\udfff" for char in name)


def measure(file: Path, path: str) -> Totals:
    """The figures of one file; `path` is the name that they give for it."""
    try:
        source = file.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's warnings about the file
            tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return Totals(skipped=1)
    functions = classes = imports = 0
    longest: Longest | None = None
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            functions += 1
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            function = Longest(lines, node.name, path)
            longest = function if longest is None else max(longest, function)
        elif isinstance(node, ast.ClassDef):
            classes += 1
        elif isinstance(node, ast.Import | ast.ImportFrom):
            imports += len(node.names)
    return Totals(1, 0, len(source.splitlines()), functions, classes, imports, longest)


def count_directly(root: str) -> Survey:
    """The same survey in one process, one file after the other. The result of the runs must be equal to it."""
    packages: list[Package] = []
    files = 0
    for name in packages_in(root):
        totals = Totals()
        for path in files_of(root, name):
            totals += measure(Path(root, path), path)
            files += 1
        packages.append(Package(name, totals))
    return merged(packages, files)


if __name__ == "__main__":
    # `python -m streamflow.demo.flows ROOT`: the direct count, as JSON.
    sys.stdout.write(msgspec.json.encode(count_directly(sys.argv[1])).decode())
