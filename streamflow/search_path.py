"""Directories in which an app finds its packages: `--path` and `STREAMFLOW_PATH`.

Owns: where they stand in the search path, and what is said of a package that no directory has, or of extension modules
that another Python has to run.
Must not: import anything of an app. Called by: the command line, the processes of steps.

They come last. So nothing in them shadows the standard library, streamflow, or what that needs: a virtual environment
that has another release of those does no harm. What they share (redis, msgspec, …) is the one that streamflow uses.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import site
import sys
import sysconfig
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from streamflow.errors import UsageError

_TAG = re.compile(r"\.((?:cpython-|cp|pypy)\d[\w-]*)\.so$")

_added: list[str] = []


def add(directory: str | Path) -> None:
    """Search there, too, and where its `.pth` files lead: a directory may be the `site-packages` of a virtual
    environment, in which the app itself is installed as editable. Adding twice does nothing. Raises `UsageError`."""
    path = Path(directory).expanduser().absolute()
    if not path.is_dir():
        reason = "it is a file; name the directory that it is in" if path.is_file() else "there is no such directory"
        raise UsageError(f"--path {directory}: {reason}")
    if (path / "pyvenv.cfg").is_file():
        packages = next(iter(sorted(path.glob("lib/python3*/site-packages"))), path / "lib/python3.…/site-packages")
        raise UsageError(f"--path {directory} is a virtual environment: name the packages in it, --path {packages}")
    if str(path) in _added:
        return
    _added.append(str(path))
    site.addsitedir(str(path))
    importlib.invalidate_caches()


def added() -> list[str]:
    """The directories that were given, for a child process."""
    return list(_added)


def foreign_extension(error: BaseException) -> str:
    """Why an import failed, if the reason is an extension module that was built for another Python; else empty."""
    for name in _missing(error):
        for entry in sys.path:
            module = Path(entry, *name.split("."))
            # The module itself, or whatever a package wanted to import from itself: that error names the package only.
            files = [*module.parent.glob(f"{module.name}.*.so"), *module.rglob("*.so")]
            for file, tag in sorted((file, found[1]) for file in files if (found := _TAG.search(file.name))):
                stem = file.name.removesuffix(f".{tag}.so")
                if not any(file.with_name(f"{stem}{suffix}").exists() for suffix in EXTENSION_SUFFIXES):
                    version = f"{sys.version_info.major}.{sys.version_info.minor}"
                    ours = (sysconfig.get_config_var("EXT_SUFFIX") or "").strip(".").removesuffix(".so")
                    return (
                        f"{file} is built for {tag}, and this is Python {version} ({ours}): install the packages for "
                        f"Python {version}, as with `pip install --target DIRECTORY --python-version {version} "
                        "--only-binary=:all: PACKAGE`"
                    )
    return ""


def missing_package(error: BaseException) -> str:
    """What to do about an import of a package that isn't there at all; empty if that isn't why it failed."""
    for name in _missing(error):
        package = name.partition(".")[0]
        if importlib.util.find_spec(package) is None:
            version = f"{sys.version_info.major}.{sys.version_info.minor}"
            where = f"none of {', '.join(_added)} has it" if _added else "no directory is given"
            return (
                f"--path DIRECTORY (or STREAMFLOW_PATH) names where {package} is, such as the "
                f"lib/python{version}/site-packages of a virtual environment; {where}"
            )
    return ""


def _missing(error: BaseException | None) -> Iterator[str]:
    """Names of the modules that were not found, the first cause first: packages wrap such an error in their own."""
    if error is None:
        return
    yield from _missing(error.__cause__ or error.__context__)
    if isinstance(error, ImportError) and error.name:
        yield error.name
