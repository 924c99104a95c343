"""The log of a process: one JSON object per line on stderr or in a file, or text for people.

Owns: both formats, and setting them up. Must not: be needed by a user of the library, know how a file is kept.
Called by: the command line; the processes of steps of its daemons and workers.

What comes from users (ids, reasons, payloads) may contain anything. In JSON it is escaped until every character is
printable, in text it is made visible, so no value can end its line, start another or reach the terminal as a command.
Fields: `ts` (UTC), `level`, `logger`, `message`, everything given as `extra=`, and `exception`.
"""

from __future__ import annotations

import logging
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO, cast

import msgspec

from streamflow.server_url import masked
from streamflow.text import visible_json

MAX_LINE = 1024 * 1024
"""Characters of a line in a file."""
MAX_TEXT = 16 * 1024
"""Characters of a text in a line that was longer."""

_STANDARD = frozenset(vars(logging.LogRecord("", 0, "", 0, "", None, None))) | {"message", "asctime"}
_COLOURS = {"DEBUG": "2", "WARNING": "33", "ERROR": "31", "CRITICAL": "31;1"}


def set_up(format: str | None, level: str, stream: TextIO | None = None, file: str | None = None) -> None:
    """Replace the root logger's handlers by one that writes to `stream` (default: stderr), but not what code of a run
    says again in a replay. Lines of workflows and steps have fields that say whose they are; in the processes of steps,
    too, which set up their log in the same way.

    Without a `format`: text on a terminal, else JSON. With a `file` JSON there, and nothing to the stream. Raises
    `UsageError` if the file can't be written.
    """
    from streamflow import logs  # here, so that commands without a log don't load it

    stream = cast("TextIO", sys.stderr) if stream is None else stream
    as_json = format == "json" or (format is None and not stream.isatty())
    if file:
        from streamflow.cli.log_file import LogFile

        handler = LogFile(Path(file))
        handler.setFormatter(JsonFormatter(MAX_LINE))
        file = str(handler.path)  # a step may change the directory
    else:
        handler = logging.StreamHandler(stream)
        handler.setFormatter(JsonFormatter() if as_json else TextFormatter(colours=stream.isatty()))
    handler.addFilter(logs.RunFilter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    logs.in_children = ["json" if as_json else "text", level, None, file]


def silence() -> None:
    """Log nothing, not even what the logging module prints when it has no handler."""
    logging.basicConfig(handlers=[logging.NullHandler()], force=True)


def json_line(value: object) -> str:
    """Compact JSON on one line in which every character is visible; values without a JSON form become text."""
    try:
        text = msgspec.json.encode(value, enc_hook=str).decode()
    except (TypeError, ValueError, RecursionError):
        text = msgspec.json.encode(msgspec.to_builtins(_stringified(value), str_keys=True, enc_hook=str)).decode()
    return visible_json(text)


def _stringified(value: object) -> object:
    """A copy without what an encoder refuses, such as a lone surrogate."""
    if isinstance(value, dict):
        return {str(key): _stringified(item) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return value if value is None or isinstance(value, bool | int | float) else repr(value)


def _shortened(line: str) -> str:
    """The same line with its texts cut."""
    fields = msgspec.json.decode(line)
    plain = {
        name: value if value is None or isinstance(value, bool | int | float) else _cut(value)
        for name, value in fields.items()
    }
    return json_line(plain)


def _cut(value: object) -> str:
    text = value if isinstance(value, str) else json_line(value)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}… ({len(text):,} characters)"


class JsonFormatter(logging.Formatter):
    """`longest`: characters of a line. Of a longer one, each text is cut."""

    def __init__(self, longest: int | None = None) -> None:
        super().__init__()
        self._longest = longest

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": masked(record.getMessage()),
        }
        fields.update(_extra(record))
        if record.exc_info and record.exc_info[0] is not None:
            fields["exception"] = _trace(record.exc_info)
        line = json_line(fields)
        return line if self._longest is None or len(line) <= self._longest else _shortened(line)


class TextFormatter(logging.Formatter):
    """`12:03:04.512 WARNING streamflow.daemon: message key=value`; exceptions follow, indented."""

    def __init__(self, colours: bool = False) -> None:
        super().__init__()
        self._colours = colours

    def format(self, record: logging.LogRecord) -> str:
        from streamflow.screen.sanitize import safe  # here, so that a daemon that logs JSON never loads rich

        time = datetime.fromtimestamp(record.created, UTC).astimezone().strftime("%H:%M:%S.%f")[:-3]
        level, colour = f"{record.levelname:<7}", _COLOURS.get(record.levelname)
        if self._colours and colour:
            level = f"\x1b[{colour}m{level}\x1b[0m"
        parts = [f"{time} {level} {record.name}: {safe(masked(record.getMessage()))}"]
        parts += [f"{name}={safe(str(value), 500)}" for name, value in _extra(record).items()]
        lines = [" ".join(parts)]
        if record.exc_info and record.exc_info[0] is not None:
            lines += [f"    {safe(line)}" for line in _trace(record.exc_info).split("\n")]
        return "\n".join(lines)


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {
        name: masked(value) if isinstance(value, str) else value
        for name, value in vars(record).items()
        if name not in _STANDARD
    }


def _trace(error: Any) -> str:
    return masked("".join(traceback.format_exception(*error)).rstrip())
