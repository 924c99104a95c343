"""Reading a log in a file: by run, and as it grows.

Owns: which lines belong to a run, following the file when it is turned over, the form of a line for people.
Must not: write the file (log_file.py does), or talk to a server. Called by: `logs`, `dev`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec

from streamflow.cli.log_file import older
from streamflow.cli.logs import json_line

DEV_LOG = "log.jsonl"
"""The name of the file in the directory of `streamflow dev`."""

_FIRST = ("ts", "level", "logger", "message", "exception")
"""Fields of every line, which have their own place in the form for people."""


class Filter(NamedTuple):
    """Which lines are wanted. Empty: all."""

    run: str = ""
    steps: Collection[str] = ()

    def matches(self, fields: dict[str, Any]) -> bool:
        return (not self.run or fields.get("run") == self.run) and (not self.steps or fields.get("step") in self.steps)


class Reader:
    """Reads a log from its beginning, that of the file before it included, and then what is added to it.

    `from_end`: only what is added from now on. A line that isn't a JSON object is skipped.
    """

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        self.path = path
        self.oldest = ""
        """`ts` of the first line that was read."""
        self._file: BinaryIO | None = None
        self._waiting: list[BinaryIO] = []
        self._open_first(from_end)

    def close(self) -> None:
        for file in (*self._waiting, *(() if self._file is None else (self._file,))):
            file.close()
        self._file, self._waiting = None, []

    def read(self) -> Iterator[dict[str, Any]]:
        """The lines that are there by now and weren't read yet."""
        for file in self._waiting:
            yield from self._lines(file)
            file.close()
        self._waiting = []
        while True:
            if self._file is None:
                self._file = _opened(self.path)
                if self._file is None:
                    return
            current = _identity(self.path)
            # In this order: who has seen that the name has another file writes no line into this one any more, but for
            # one that was under way.
            yield from self._lines(self._file)
            if current is None or current == _identity(self._file):
                return
            yield from self._lines(self._file)
            self._file.close()
            self._file = None

    def _open_first(self, from_end: bool) -> None:
        for _ in range(3):
            self._file = _opened(self.path)
            before = None if from_end else _opened(older(self.path))
            if before is None or self._file is None or _identity(before) != _identity(self._file):
                break
            before.close()  # it was turned over between the two
            self._file.close()
        else:
            before = None
        if before is not None:
            self._waiting.append(before)
        if from_end and self._file is not None:
            self._file.seek(0, io.SEEK_END)

    def _lines(self, file: BinaryIO) -> Iterator[dict[str, Any]]:
        while True:
            position = file.tell()
            line = file.readline()
            if not line.endswith(b"\n"):  # nothing more, or not yet all of it
                file.seek(position)
                return
            try:
                fields = msgspec.json.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue
            if isinstance(fields, dict):
                self.oldest = self.oldest or str(fields.get("ts", ""))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
                yield fields


def _opened(path: Path) -> BinaryIO | None:
    try:
        return path.open("rb")
    except FileNotFoundError:
        return None


def _identity(file: BinaryIO | Path) -> tuple[int, int] | None:
    try:
        found = file.stat() if isinstance(file, Path) else os.fstat(file.fileno())
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


# --- for people -----------------------------------------------------------------------------------------------------


def text_of(fields: dict[str, Any], hidden: Collection[str] = ()) -> str:
    """As `TextFormatter` would have written the line, with the date if it is of another day. `hidden`: fields that the
    reader knows."""
    from streamflow.screen.sanitize import safe

    first = {name: str(fields.get(name, "")) for name in _FIRST}
    head = f"{_time(first['ts'])} {safe(first['level'].upper()):<7} {safe(first['logger'])}: {safe(first['message'])}"
    others = (
        f"{safe(name)}={safe(value if isinstance(value, str) else json_line(value), 500)}"
        for name, value in fields.items()
        if name not in _FIRST and name not in hidden
    )
    trace = [f"    {safe(line)}" for line in first["exception"].split("\n")] if first["exception"] else []
    return "\n".join([" ".join((head, *others)), *trace])


def _time(ts: str) -> str:
    try:
        at = datetime.fromisoformat(ts).astimezone()
    except (ValueError, OverflowError):
        return "-"
    form = "%H:%M:%S.%f" if at.date() == datetime.now(UTC).astimezone().date() else "%Y-%m-%d %H:%M:%S.%f"
    return at.strftime(form)[:-3]
