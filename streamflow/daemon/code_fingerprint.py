"""What identifies the code of an app: two daemons with the same fingerprint continue runs in the same way.

Owns: what the fingerprint is made from. Must not: run code of the app. Called by: `deploy_check.py`;
`view_folder.py` (`view_version`).

It has everything that is known to decide a replay: names and versions of all definitions, the code of workflow
functions with the values that they enclose, and the source files of all modules that are neither Python's nor from a
package that is only used. A difference that decides nothing costs one check of runs more; so in doubt it differs.
"""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import Any, cast

from streamflow.version import __version__
from streamflow.views import aggregates
from streamflow.workflow.app import App, Step
from streamflow.workflow.view import View

_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_OWN = str(Path(__file__).resolve().parent.parent)


def fingerprint(app: App) -> str:
    """32 hex digits. Reads source files, so it must be called before a deploy replaces them: when the daemon starts."""
    digest = hashlib.sha256()
    feed = _Feed(lambda text: digest.update(text.encode(errors="replace") + b"\0"))
    feed.text(f"{__version__} {sys.version_info[:2]}")
    functions: list[Any] = []
    for name, step in sorted(app.steps.items()):
        feed.text(f"step {name} {step.parameters.names}")
        functions.append(step.function)
    workflows = {(name, 0): workflow for name, workflow in app.workflows.items()} | app.versions
    for (name, version), workflow in sorted(workflows.items()):
        feed.text(f"workflow {name} {version}")
        feed.value(workflow.function)
        functions.append(workflow.function)
    packages = {str(getattr(function, "__module__", "")).partition(".")[0] for function in functions}
    for path in sorted(_source_files(packages)):
        try:
            feed.text(hashlib.sha256(path.read_bytes()).hexdigest())
        except OSError:  # from an archive, or deleted: what is known about its functions must do
            feed.text(path.name)
    return digest.hexdigest()[:32]


def _source_files(packages: set[str]) -> set[Path]:
    """The files of loaded modules of these packages, and of all that are not installed."""
    files: set[Path] = set()
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not isinstance(file, str):
            continue
        is_installed = file.startswith((*_INSTALLED, _OWN))
        if not is_installed or name.partition(".")[0] in packages:
            files.add(Path(file))
    return files


class _Feed:
    """Feeds values to a digest, as far as they are the same in every process that has the same code."""

    def __init__(self, text: Callable[[str], object]) -> None:
        self.text = text
        self._seen: set[int] = set()

    def value(self, value: Any) -> None:
        if value is None or isinstance(value, str | bytes | int | float | complex):
            self.text(f"{type(value).__name__} {value!r}")
            return
        if id(value) in self._seen:
            return
        self._seen.add(id(value))
        if isinstance(value, CodeType):
            self._code(value)
        elif isinstance(value, FunctionType | MethodType):
            function = cast("FunctionType", getattr(value, "__func__", value))
            self.value(function.__code__)
            self.value(function.__defaults__)
            self.value(function.__kwdefaults__)
            for cell in function.__closure__ or ():
                try:
                    self.value(cell.cell_contents)
                except ValueError:  # not assigned yet
                    self.text("empty")
        elif isinstance(value, Step):
            self.text(f"step {cast('Step[..., Any]', value).name}")
        elif isinstance(value, type):
            self.text(f"{value.__module__}.{value.__qualname__}")
        elif isinstance(value, Mapping):
            for key, item in cast("Mapping[Any, Any]", value).items():
                self.value(key)
                self.value(item)
        elif isinstance(value, list | tuple):
            self.text(str(len(cast("list[Any]", value))))
            for item in cast("list[Any]", value):
                self.value(item)
        elif isinstance(value, set | frozenset):  # in no order
            for text in sorted(f"{type(item).__name__} {item!r}" for item in cast("set[Any]", value)):
                self.text(text)
        else:
            self.text(f"{type(value).__module__}.{type(value).__qualname__}")

    def _code(self, code: CodeType) -> None:
        self.text(code.co_code.hex())
        self.text(" ".join((*code.co_names, *code.co_varnames, *code.co_freevars)))
        for constant in code.co_consts:
            self.value(constant)


def view_version(view: View) -> str:
    """12 hex digits that say which code a view has: its aggregate, its key, and what it takes in which windows. Not
    what only bounds it (`keep`, `top`), and not functions that its code calls: `version=` is for those."""
    digest = hashlib.sha256()
    feed = _Feed(lambda text: digest.update(text.encode(errors="replace") + b"\0"))
    kinds = " ".join(sorted(kind.__name__ for kind in view.kinds))
    feed.text(f"{kinds} {sorted(view.records)} {view.by} {view.window}")
    aggregate = view.aggregate
    feed.text(f"{type(aggregate).__module__}.{type(aggregate).__qualname__}")
    if type(aggregate).__module__ != aggregates.__name__:  # theirs mean the same in every release
        for name in ("zero", "fold", "merge", "value"):
            feed.value(getattr(aggregate, name, None))
    for name, value in sorted(getattr(aggregate, "__dict__", {}).items()):
        feed.text(name)
        feed.value(value)
    feed.value(view.given_key)
    return digest.hexdigest()[:12]
