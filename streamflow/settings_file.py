"""The settings file, in TOML: which file it is, what stands in it, and where.

Owns: which file is read, to whom it may belong, the errors of reading it, and the line of a key.
Must not: know a setting, its type or its default (settings.py has them). Called by: settings.py.

A file that is named (`--config`, `STREAMFLOW_CONFIG`) has settings at its top level; a `pyproject.toml` has them in
`[tool.streamflow]`. Without a name the `pyproject.toml` of the working directory is read, if it has that table. The
directories above are not searched, as for the socket of `streamflow dev`: a command that is started below `/tmp` must
not take a server's URL from what another user has left there. For the same reason such a file must belong to the user
who starts the command, or to root.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, cast

import msgspec

from streamflow.errors import UsageError
from streamflow.input_file import read_input

PROJECT = "pyproject.toml"
"""A file of this name has settings in a table of its own."""
TABLE = "tool.streamflow"


class SettingsFile(msgspec.Struct, frozen=True):
    """A settings file that was read. `values` are as TOML has them, not checked yet."""

    path: str
    """Absolute, as errors show it."""
    values: dict[str, Any]
    text: str

    @property
    def name(self) -> str:
        """The path, and the table if the file has others."""
        return f"{self.path} [{TABLE}]" if Path(self.path).name == PROJECT else self.path

    def place_of(self, key: str) -> str:
        """`path:line` of a key, or the path alone if the key isn't written in a line of its own."""
        line = _line_of(key, self.text, TABLE if Path(self.path).name == PROJECT else "")
        return f"{self.path}:{line}" if line else self.path


def read_settings_file(named: str | None) -> SettingsFile | None:
    """The file that was named, else the `pyproject.toml` here if it has settings, else None. Raises `UsageError`."""
    return _named_file(named) if named else _project_here()


def _named_file(named: str) -> SettingsFile:
    path = str(Path(named).expanduser().absolute())
    if path == os.devnull:
        return SettingsFile(path, {}, "")
    if Path(path).exists() and not Path(path).is_file():  # a pipe could be read only once
        raise UsageError(f"can't read the settings file {path}: it is not a regular file")
    data = read_input(path, f"the settings file {path}")
    try:
        document = _parse(data)
    except ValueError as error:
        raise UsageError(f"the settings file {path} is not valid TOML: {error}") from None
    return SettingsFile(path, _table(path, document) if Path(path).name == PROJECT else document, data.decode())


def _project_here() -> SettingsFile | None:
    path = Path(PROJECT)
    try:
        if not path.is_file():
            return None
        data = path.read_bytes()
        owners = {path.lstat().st_uid, path.stat().st_uid}
        shown = str(path.absolute())
    except OSError:  # it can't be read, or this directory is gone
        return None
    if b"streamflow" not in data:  # most have nothing for us, and parsing takes as long as all of `--version`
        return None
    try:
        document = _parse(data)
    except ValueError as error:
        if TABLE.encode() not in data:
            return None  # that of something else is broken
        raise UsageError(f"{shown} is not valid TOML, and has [{TABLE}]: {error}") from None
    values = _table(shown, document)
    if not values:
        return None
    if hasattr(os, "geteuid") and not owners <= {os.geteuid(), 0}:
        raise UsageError(
            f"{shown} has [{TABLE}], but belongs to another user, who could send you to another server: if you trust "
            f"it, add --config {PROJECT}; --config {os.devnull} reads no file"
        )
    return SettingsFile(shown, values, data.decode())


def _parse(data: bytes) -> dict[str, Any]:
    """Raises `ValueError` whose message has the position."""
    import tomllib  # here, because most commands find no file

    try:
        return tomllib.loads(data.decode().replace("\r\n", "\n"))
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from None
    except RecursionError:
        raise ValueError("its values are nested too deeply") from None
    except tomllib.TOMLDecodeError as error:
        hint = "; a text stands in quotes" if str(error).startswith("Invalid value") else ""
        raise ValueError(f"{error}{hint}") from None


def _table(path: str, document: dict[str, Any]) -> dict[str, Any]:
    found = document
    for name in TABLE.split("."):
        inner = found.get(name, {})
        if not isinstance(inner, dict):
            raise UsageError(f"{path}: {name} must be a table, [{TABLE}]")
        found = cast("dict[str, Any]", inner)
    return found


def _line_of(key: str, text: str, table: str) -> int:
    """The number of the line where the value of a key begins; 0 if it isn't found, as in an inline table.

    `tomllib` gives no positions. A line that begins with the key may be inside a text of several lines, or in another
    table: it counts only if what stands before it is complete, and doesn't have the key yet, and the line's table is
    the right one.
    """
    key_form = rf"""(?:{re.escape(key)}|"{re.escape(key)}"|'{re.escape(key)}')"""
    lines = text.replace("\r\n", "\n").split("\n")
    current = ""
    for number, line in enumerate(lines, 1):
        if header := re.match(r"\s*\[\s*([^\[\]]+?)\s*\]\s*(#.*)?$", line):
            if _is_complete(lines[: number - 1]):
                current = re.sub(r"[\s\"']", "", header[1])
        elif current == table and re.match(rf"\s*{key_form}\s*=", line) and _is_complete(lines[: number - 1]):
            return number
    return 0


def _is_complete(lines: list[str]) -> bool:
    try:
        _parse("\n".join(lines).encode())
    except ValueError:
        return False
    return True
