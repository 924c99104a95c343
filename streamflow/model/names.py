"""Which ids and names are allowed: alphabets and lengths.

Owns: these checks. Must not: know what a name is used for. Called by: the client, the command line, the app, daemons.

Names are part of keys and of headers (fields between spaces), and are printed on terminals, so the alphabet has no
braces, glob characters, spaces, `#` or control characters.
"""

from __future__ import annotations

import re

from streamflow.errors import InvalidName, UsageError
from streamflow.text import recordable, type_name

MAX_ID = 256
MAX_NAME = 128
MAX_TEXT = 1024
"""Characters of a tag."""

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@=+~/-]*")
_ASK_ID = re.compile(r"[0-9a-f]{32}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@=+~-]*")
MOST_KNOWN = 1000
_known: set[str] = set()
"""Names that were allowed before: an app has few, and the same ones come with each signal and value."""
_last: list[str | None] = [None]
"""The run id that was allowed last: thousands of messages may be for one run."""


def check_run_id(run_id: str) -> str:
    """`run_id` itself. Raises `InvalidName`."""
    if type(run_id) is str and run_id == _last[0]:
        return run_id
    alphabet = "letters, digits and _ . : @ = + ~ / -, starting with a letter or digit"
    checked = _check("run id", run_id, _RUN_ID, MAX_ID, alphabet)
    if type(run_id) is str:
        _last[0] = checked
    return checked


def check_name(kind: str, name: str) -> str:
    """`name` itself. Raises `InvalidName`; `kind` says in its message what was named: workflow, step, queue, …"""
    if type(name) is str and name in _known:
        return name
    alphabet = "letters, digits and _ . : @ = + ~ -, starting with a letter, digit or _"
    checked = _check(kind, name, _NAME, MAX_NAME, alphabet)
    if type(name) is str and len(_known) < MOST_KNOWN:
        _known.add(checked)
    return checked


def check_ask_id(ask_id: str) -> str:
    """`ask_id` itself: it becomes part of a key. Raises `UsageError`."""
    if not isinstance(ask_id, str) or not _ASK_ID.fullmatch(ask_id):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(
            f"the id of a question has 32 hex digits, as in Asked.id, got {recordable(ascii(ask_id), 100)}"
        )
    return ask_id


def check_text(what: str, text: str) -> str:
    """`text` itself if it can be recorded as it is. Raises `UsageError`."""
    if type(text) is str and text.isascii() and len(text) <= MAX_TEXT:
        return text
    if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"a {what} must be a str, got {type_name(text)}")
    if len(text) > MAX_TEXT:
        raise UsageError(f"a {what} has {len(text):,} characters; the limit is {MAX_TEXT:,}")
    if recordable(text, 8 * MAX_TEXT) != text:
        raise UsageError(f"a {what} is not valid Unicode: {text[:64]!a} contains a surrogate code point")
    return str.__str__(text)


def _check(kind: str, value: object, pattern: re.Pattern[str], limit: int, alphabet: str) -> str:
    if not isinstance(value, str):
        raise InvalidName(f"{kind} must be a str, got {type(value).__name__}")
    if len(value) > limit:
        raise InvalidName(f"{kind} {value[:32]!r}… has {len(value)} characters; the limit is {limit}")
    if not pattern.fullmatch(value):
        raise InvalidName(f"{kind} {value!r} is not allowed: use {alphabet}")
    return value
