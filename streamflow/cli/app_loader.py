"""Finding a user's `App` from the words after `--app`.

Owns: the forms of those words, the import, and the errors that say what is wrong with them or with the user's module.
Must not: run anything of the app. Called by: the command line.

    flows:app   pkg.flows:app   flows       a module; the current directory is looked in first
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
from streamflow.workflow.app import App

HOW = "use --app flows:app for a module, or --app path/flows.py:app for a file"


def load_app(words: str) -> App:
    """Raises `UsageError`; what the user's module raised while it was imported is in the message."""
    target, _, attribute = words.partition(":")
    if not target:
        raise UsageError(f"--app {words!r} names no module: {HOW}")
    module = _load_file(target, words) if _is_path(target) else _load_module(target, words)
    return _find(module, target, attribute)


def _is_path(target: str) -> bool:
    return target.endswith(".py") or "/" in target or os.sep in target


def _load_module(name: str, words: str) -> ModuleType:
    _look_first_in(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _failed(name, error) from error  # the user's module is there, and imports one that isn't
        file = f"{name.replace('.', '/')}.py"
        near = f"; there is a file {file}, in another directory than this one?" if Path(file).is_file() else ""
        raise UsageError(
            f"--app {words!r}: there is no module {error.name!r} in {Path.cwd()} or on the Python path{near}: {HOW}"
        ) from error
    except (Exception, SystemExit) as error:
        raise _failed(name, error) from error


def _load_file(target: str, words: str) -> ModuleType:
    path = Path(target).expanduser()
    if path.is_dir():
        raise UsageError(
            f"--app {words!r}: {path} is a directory: name the file in it, such as {path / 'flows.py'}:app"
        )
    if not path.is_file():
        raise UsageError(f"--app {words!r}: there is no file {path} (looked from {Path.cwd()})")
    path = path.resolve()
    package, root = "", path.parent
    while (root / "__init__.py").is_file():
        package, root = f"{root.name}.{package}", root.parent
    _look_first_in(root)
    if package:
        return _imported(package.removesuffix(".") if path.stem == "__init__" else package + path.stem)
    if not path.stem.isidentifier() or not _is_module_of(path.stem, path):
        # Another module has that name (a `types.py`, say): import this very file, under a name of its own.
        return _executed(f"streamflow_app_{path.stem}", path)
    return _imported(path.stem)


def _is_module_of(name: str, path: Path) -> bool:
    """Whether `import name` gives this file; also when it is imported already, as by the tests of an app."""
    if name in sys.modules:
        origin = getattr(sys.modules[name], "__file__", None)
    else:
        spec = importlib.util.find_spec(name)
        origin = None if spec is None else spec.origin
    return origin is not None and Path(origin).resolve() == path


def _look_first_in(directory: Path) -> None:
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
        raise UsageError(f"{path} can't be imported: it is no Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _failed(str(path), error) from error
    return module


def _failed(name: str, error: BaseException) -> UsageError:
    """The user's own part of the traceback: without our frames and the import system's."""
    ours = ("<frozen importlib", str(Path(__file__).parent), str(Path(importlib.__file__).parent))
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(ours)]
    lines = [*traceback.format_list(frames), *traceback.format_exception_only(error)]
    return UsageError(f"{name} can't be imported:\n{''.join(lines).rstrip()}")


def _find(module: ModuleType, target: str, attribute: str) -> App:
    apps = [name for name, value in vars(module).items() if isinstance(value, App)]
    found: object = module
    if attribute:
        for part in attribute.split("."):
            found = getattr(found, part, None)
    elif isinstance(vars(module).get("app"), App):
        found = module.app
    elif len(apps) == 1:
        found = getattr(module, apps[0])
    else:
        there = f"has {len(apps)} apps: choose one, --app {target}:{apps[0]}" if apps else "has no App in it"
        raise UsageError(f"{target} {there}{'' if apps else ': write `app = streamflow.App()` and register with it'}")
    if isinstance(found, App):
        return found
    there = f"it has: {', '.join(apps)}" if apps else "and it has none: write `app = streamflow.App()`"
    what = "has no attribute" if found is None else f"has a {type(found).__name__}, no App, under"
    raise UsageError(f"{target} {what} {attribute!r}; {there}")
