"""The demo's app: maps a tree of Python sources. A supervisor, a child run a package, a step a file.

Owns: the workflows, the steps, and the same count without streamflow (`count_directly`).
Must not: start anything, print, or know daemons. Called by: the demo, and the daemons that it starts.

    survey ──┬── package "asyncio" ──┬── list_files, then parse_file for each
             │      ╰╴signals "progress" to the survey
             ├── package "email"   ── …
             ╰── merges what the packages return

Steps may run more than once (a killed daemon's are run again by the next owner), their results are recorded once.
Each execution leaves one byte in the journal, so that the demo can say how often that was.
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
"""The package of the files that lie in the root itself. Parentheses: no directory of a package has them."""
LEFT_OUT = frozenset({"site-packages", "dist-packages", "__pycache__", "node_modules"})
PAGE = 400
"""Files of a package that are parsed at the same time: bounds one transition, and one payload, of a huge package."""
LARGEST = 12
"""Packages that are named one by one in the result."""
PROGRESS = "progress"


class Longest(msgspec.Struct, frozen=True, order=True):
    """A function: how many lines it has and where it is. Orders by lines, so the largest wins a merge."""

    lines: int
    name: str
    path: str


class Totals(msgspec.Struct, frozen=True):
    """Facts about some files. Adding two gives the facts about both: it does not matter who counted what, and when."""

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
            max((one for one in (self.longest, other.longest) if one is not None), default=None),
        )


class Package(msgspec.Struct, frozen=True):
    name: str
    totals: Totals


class Progress(msgspec.Struct, frozen=True):
    """What a package tells the survey. `done`: it was its last word."""

    files: int
    done: bool


class Survey(msgspec.Struct, frozen=True):
    """`largest` packages by lines; `reported`: files of which the survey heard by signal while it waited."""

    totals: Totals
    packages: int
    largest: list[Package]
    reported: int


# --- workflows --------------------------------------------------------------------------------------------------------


@app.workflow
async def survey(root: str, journal: str) -> Survey:
    """Map a source tree: a child run for each top-level package, merged into one result."""
    names = await list_packages(root, journal)
    # Two things at once: the children work, and a helper hears what they say meanwhile.
    packages, reported = await gather(
        gather(*(package(root, name, journal) for name in names)),
        hear(len(names)),
    )
    return merged(packages, reported)


async def hear(packages: int) -> int:
    """Count the files that the packages report, until each of them is done."""
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
        for part in await gather(*(parse_file(root, path, journal) for path in page)):
            totals += part
        done = len(page) < PAGE
        await send_signal(info().parent, PROGRESS, Progress(len(page), done))
        if done:
            return Package(name, totals)
        after = page[-1]


def merged(packages: Iterable[Package], reported: int) -> Survey:
    totals = Totals()
    packages = sorted(packages, key=lambda one: (-one.totals.lines, one.name))
    for one in packages:
        totals += one.totals
    return Survey(totals, len(packages), packages[:LARGEST], reported)


# --- steps: what touches the file system, and what takes time ---------------------------------------------------------

QUICKLY = Retry(attempts=3, initial=0.2)


@app.step(retry=QUICKLY)
def list_packages(root: str, journal: str) -> list[str]:
    """The top-level packages of the tree, sorted."""
    mark(journal)
    return packages_in(root)


@app.step(retry=QUICKLY)
def list_files(root: str, name: str, after: str, journal: str) -> list[str]:
    """The next page of a package's files, relative to the root, sorted."""
    mark(journal)
    return [path for path in files_of(root, name) if path > after][:PAGE]


@app.step(retry=QUICKLY)
def parse_file(root: str, path: str, journal: str) -> Totals:
    """What is in one file. A plain function, so it runs in a thread of the daemon."""
    mark(journal)
    return measure(Path(root, path), path)


def mark(journal: str) -> None:
    """One more execution. O_APPEND: no byte is lost or overwritten, whoever is killed when."""
    descriptor = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, b".")
    finally:
        os.close(descriptor)


def executions(journal: Path) -> int:
    """How many steps have begun so far."""
    return journal.stat().st_size if journal.exists() else 0


# --- the plain functions, which know nothing of streamflow ------------------------------------------------------------


def packages_in(root: str) -> list[str]:
    """Directories of the root that have Python files somewhere in them, and `MODULES` if the root itself has some."""
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
        folders[:] = [one for one in folders if _wanted(one)]
        yield from (os.path.relpath(Path(folder, file), root) for file in files if _is_source(file))


def _is_source(file: str) -> bool:
    return file.endswith(".py") and _is_text(file)


def _wanted(folder: str) -> bool:
    return folder not in LEFT_OUT and not folder.startswith(".") and _is_text(folder)


def _is_text(name: str) -> bool:
    """Names of other bytes than UTF-8 can't travel in payloads."""
    return not any("\ud800" <= char <= "\udfff" for char in name)


def measure(file: Path, path: str) -> Totals:
    """The facts about one file; `path` is what it is called in them."""
    try:
        source = file.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the compiler thinks of the file's style
            tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return Totals(skipped=1)
    functions = classes = imports = 0
    longest: Longest | None = None
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            functions += 1
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            one = Longest(lines, node.name, path)
            longest = one if longest is None else max(longest, one)
        elif isinstance(node, ast.ClassDef):
            classes += 1
        elif isinstance(node, ast.Import | ast.ImportFrom):
            imports += len(node.names)
    return Totals(1, 0, len(source.splitlines()), functions, classes, imports, longest)


def count_directly(root: str) -> Survey:
    """The same survey by one process, one file after the other: what the runs' result must be equal to."""
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
