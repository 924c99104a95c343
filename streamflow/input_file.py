"""The one reader of what people give: files and stdin, as editors and shells of all systems write them.

Owns: the byte order mark, the encodings that show in the first bytes, and the errors of reading.
Must not: know what is in a file. Called by: the command line, the histories of runs.
"""

from __future__ import annotations

import codecs
import os
import sys
from io import BufferedReader
from pathlib import Path
from typing import IO, cast

from streamflow.errors import UsageError

STDIN = "-"

_LONGEST_MARK = 4
_OTHERS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),  # before UTF-16, with which it begins
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
    (b"\x1f\x8b", "a gzip file"),
)


def read_input(source: str | Path, what: str) -> bytes:
    """All of a file, or of stdin (`-`): UTF-8 without its byte order mark. `what` names it in errors.

    Raises `UsageError` when it can't be read, or is in another encoding.
    """
    with open_input(source, what) as stream:
        try:
            return stream.read()
        except OSError as error:
            raise UsageError(f"can't read {what}: {error.strerror}") from None


def open_input(source: str | Path, what: str) -> IO[bytes]:
    """The same for reading line by line: positioned behind the byte order mark. Closing it leaves stdin open."""
    try:
        if source == STDIN:
            if cast("object", sys.stdin) is None:
                raise UsageError(f"can't read {what}: stdin is closed")
            stream = _stdin()
        else:
            stream = Path(source).expanduser().open("rb")
        try:
            _skip_mark(stream, what)
        except BaseException:
            stream.close()
            raise
    except OSError as error:
        raise UsageError(f"can't read {what}: {error.strerror}") from None
    return stream


def _stdin() -> BufferedReader:
    try:
        number = sys.stdin.fileno()
    except (OSError, ValueError):  # replaced by something in memory, as tests do
        return BufferedReader(cast("IO[bytes]", sys.stdin.buffer))  # pyright: ignore[reportArgumentType]
    return os.fdopen(number, "rb", closefd=False)


def _skip_mark(stream: BufferedReader, what: str) -> None:
    head = stream.peek(_LONGEST_MARK)[:_LONGEST_MARK]
    for mark, encoding in _OTHERS:
        if head.startswith(mark):
            raise UsageError(f"can't read {what}: it is {encoding}; save it as UTF-8")
    if head.startswith(codecs.BOM_UTF8):
        stream.read(len(codecs.BOM_UTF8))
    elif b"\0" in head[:2]:  # a file of text in UTF-8 has none
        raise UsageError(f"can't read {what}: it looks like UTF-16; save it as UTF-8")


def option_text(text: str, option: str) -> str | bytes:
    """The value of an option: the text itself, or what is in `@FILE`, or in stdin for `-`. Raises `UsageError`."""
    if text == STDIN or text.startswith("@"):
        return read_input(text.removeprefix("@"), f"{option} {text}")
    return text
