"""Finds a user's `App` from the target that `--app` gives, a module or a file.

Owns: the forms of a target, the import, and the errors about a wrong target or a module that can't be imported.
Must not: run anything of the app. Called by: `--app` on the command line, the pytest plugin.

    flows:app   pkg.flows:app   flows       a module; the current directory is searched first
    path/flows.py:app   path/flows.py       a file; inside a package it is imported as the package's module

Without `:attribute` it is `app`, or the only `App` in the module.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType

from streamflow.errors import UsageError
from streamflow.search_path import foreign_extension, missing_package
from streamflow.workflow.app import App

TARGET_FORMS = "use --app flows:app for a module, or --app path/flows.py:app for a file"
_HOW_TO_DEFINE = "write `app = streamflow.App()` and register workflows and steps with it"


def load_app(app_target: str) -> App:
    """Raises `UsageError`; its message has the traceback if the user's module raised while it was imported."""
    target, _, attribute = app_target.partition(":")
    if not target:
        raise UsageError(f"--app {app_target!r} names no module: {TARGET_FORMS}")
    module = _load_file(target, app_target) if _is_path(target) else _load_module(target, app_target)
    return _find(module, target, attribute)


def _is_path(target: str) -> bool:
    return target.endswith(".py") or "/" in target or os.sep in target


def _load_module(name: str, app_target: str) -> ModuleType:
    _search_first(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _failed(name, error) from error  # the user's module exists, and imports one that doesn't
        file = f"{name.replace('.', '/')}.py"
        hidden = f" (there is a file {file}, but another module {name.partition('.')[0]} is imported instead)"
        raise UsageError(
            f"--app {app_target!r}: there is no module {error.name!r} in {Path.cwd()} or on the Python path"
            f"{hidden if Path(file).is_file() else ''}: {TARGET_FORMS}"
        ) from error
    except (Exception, SystemExit) as error:
        raise _failed(name, error) from error


def _load_file(target: str, app_target: str) -> ModuleType:
    path = Path(target).expanduser()
    if path.is_dir():
        raise UsageError(
            f"--app {app_target!r}: {path} is a directory: name the file in it, such as {path / 'flows.py'}:app"
        )
    if not path.is_file():
        raise UsageError(f"--app {app_target!r}: there is no file {path} (searched from {Path.cwd()})")
    path = path.resolve()
    package, root = "", path.parent
    while (root / "__init__.py").is_file():
        package, root = f"{root.name}.{package}", root.parent
    _search_first(root)
    if package:
        return _imported(package.removesuffix(".") if path.stem == "__init__" else package + path.stem)
    if not path.stem.isidentifier() or not _is_module_of(path.stem, path):
        # Another module has that name (a `types.py`, say): import this very file, under a name that nothing else has.
        return _executed(f"streamflow_app_{path.stem}", path)
    return _imported(path.stem)


def _is_module_of(name: str, path: Path) -> bool:
    """Whether `import name` gives this file, which may be imported already, for example by the tests of an app."""
    if name in sys.modules:
        origin = getattr(sys.modules[name], "__file__", None)
    else:
        spec = importlib.util.find_spec(name)
        origin = None if spec is None else spec.origin
    return origin is not None and Path(origin).resolve() == path


def _search_first(directory: Path) -> None:
    folder = str(directory)
    if folder in sys.path:
        sys.path.remove(folder)
    sys.path.insert(0, folder)
    importlib.invalidate_caches()


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise _failed(name, error) from error


def _executed(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} can't be imported: it is not a Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _failed(str(path), error) from error
    return module


def _failed(name: str, error: BaseException) -> UsageError:
    """Has the user's part of the traceback: without our frames and those of the import system."""
    ours = ("<frozen importlib", str(Path(__file__).parent), str(Path(importlib.__file__).parent))
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(ours)]
    lines = [*traceback.format_list(frames), *traceback.format_exception_only(error)]
    if reason := foreign_extension(error) or missing_package(error):
        lines.append(reason)
    return UsageError(f"{name} can't be imported:\n{''.join(lines).rstrip()}")


def _find(module: ModuleType, target: str, attribute: str) -> App:
    apps = [name for name, member in vars(module).items() if isinstance(member, App)]
    value: object = module
    if attribute:
        for part in attribute.split("."):
            value = getattr(value, part, None)
    elif isinstance(vars(module).get("app"), App):
        value = module.app
    elif len(apps) == 1:
        value = getattr(module, apps[0])
    elif apps:
        raise UsageError(f"{target} has {len(apps)} apps: choose one, such as --app {target}:{apps[0]}")
    else:
        raise UsageError(f"{target} has no App: {_HOW_TO_DEFINE}")
    if isinstance(value, App):
        return value
    problem = "there is no such attribute" if value is None else f"it is of type {type(value).__name__}, not App"
    hint = f"apps in {target}: {', '.join(apps)}" if apps else f"{target} has no App: {_HOW_TO_DEFINE}"
    raise UsageError(f"--app {target}:{attribute}: {problem}; {hint}")
