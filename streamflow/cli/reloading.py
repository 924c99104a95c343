"""`dev --reload`: what a change of the code starts again.

Owns: which files count, that one burst of changes is one restart, and that code which can't be imported replaces none
that runs. Must not: start or end a process (dev_processes.py does). Called by: `dev`.

The app is imported by a process that checks it before anything ends: with a mistake in a file, the code that was
running goes on, the mistake is said, and the next change tries again.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio

from streamflow.embedded.child import own_environ
from streamflow.errors import UsageError
from streamflow.interpreter import python_command
from streamflow.model.failures import is_library

GATHER_MS = 200
"""Changes follow each other within this time: an editor writes a file in several steps, git many files."""
LONGEST_GATHER_MS = 2_000
CHECK_SECONDS = 60.0
IGNORED = ("__pycache__", "node_modules", "site-packages")
"""Directories, besides those whose names begin with a dot."""

_log = logging.getLogger("streamflow.dev")


def required_watcher() -> None:
    """Raises `UsageError` without the library."""
    try:
        importlib.import_module("watchfiles")
    except ImportError:
        raise UsageError("--reload needs watchfiles. Run: pip install 'streamflowd[reload]'") from None


def roots() -> list[Path]:
    """The directories from which the app's modules were imported, without those of installed packages; none of them in
    another one. To be called when the app has been imported."""
    found = {Path.cwd()} if not (imported := _imported()) else imported
    return sorted(one for one in found if not any(other in one.parents for other in found))


def _imported() -> set[Path]:
    directories: set[Path] = set()
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if (
            name == "__main__"
            or name.partition(".")[0] == "streamflow"
            or not isinstance(file, str)
            or not file.endswith(".py")
            or is_library(file)
        ):
            continue
        path = Path(file).resolve()
        depth = name.count(".") + (path.name == "__init__.py")
        if depth < len(path.parents):
            directories.add(path.parents[depth])
    return directories


class Reloader:
    """`restart` is awaited for each burst of changes of Python files below `directories`, once the app can be imported.

    `environ`: of a process that imports the app, as fields of `Settings`.
    """

    def __init__(
        self,
        app_target: str,
        directories: Sequence[Path],
        restart: Callable[[], Awaitable[None]],
        environ: Mapping[str, object],
    ) -> None:
        self._app = app_target
        self.directories = directories
        self._restart = restart
        self._environ = environ
        self._digests: dict[Path, bytes] = {}
        self.notice = ""
        """What keeps the newest code from running; one line."""

    async def run(self) -> None:
        async with aclosing(self._changes()) as bursts:
            async for files in bursts:
                names = ", ".join(file.name for file in files[:3]) + (" …" if len(files) > 3 else "")
                problem = await self._problem()
                if problem:
                    reason = problem.splitlines()[-1]
                    self.notice = f"not reloaded: {reason}"
                    about = {"exception": problem}
                    _log.error("%s changed; the code that was running goes on: %s", names, reason, extra=about)
                else:
                    self.notice = ""
                    _log.warning("%s changed: starting again with the new code", names)
                    await self._restart()

    async def _changes(self) -> AsyncGenerator[list[Path]]:
        """Lists of files with another content than when they were changed before."""
        watchfiles: Any = importlib.import_module("watchfiles")
        watched = watchfiles.awatch(
            *self.directories,
            watch_filter=lambda _, path: self.counts(Path(path)),  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
            debounce=LONGEST_GATHER_MS,
            step=GATHER_MS,
            ignore_permission_denied=True,
            raise_interrupt=False,
        )
        async with aclosing(watched):
            async for changes in watched:
                if files := [file for file in sorted({Path(path) for _, path in changes}) if self.is_new(file)]:
                    yield files

    def counts(self, file: Path) -> bool:
        """Whether it is a Python file in a directory of code."""
        root = next((one for one in self.directories if file.is_relative_to(one)), None)
        if root is None or file.suffix != ".py":
            return False
        return not any(part.startswith(".") or part in IGNORED for part in file.relative_to(root).parts)

    def is_new(self, file: Path) -> bool:
        """Not if it was saved as it was, or if code writes the same file whenever it is imported."""
        try:
            digest = hashlib.sha256(file.read_bytes()).digest()
        except OSError:
            digest = b""
        if self._digests.get(file) == digest:
            return False
        self._digests[file] = digest
        return True

    async def _problem(self) -> str:
        """Why the app can't be imported; empty if it can."""
        command = python_command("-m", "streamflow", "check", "--json", "--app", self._app)
        try:
            with anyio.fail_after(CHECK_SECONDS):
                done = await anyio.run_process(
                    command, env=own_environ(self._environ), check=False, start_new_session=True
                )
        except TimeoutError:
            return f"importing the app takes more than {CHECK_SECONDS:g} s"
        printed = done.stdout.decode(errors="replace")
        document = printed[printed.rfind("\n{") + 1 :]  # behind what the app prints while it is imported
        try:
            findings = json.loads(document)["findings"]
        except ValueError:
            return done.stderr.decode(errors="replace").strip() or f"its import ended with code {done.returncode}"
        wrong = (one["message"] for one in findings if one["about"] == "app" and one["level"] == "error")
        return next(wrong, "")
