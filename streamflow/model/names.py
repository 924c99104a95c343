"""Which ids and names are allowed: alphabets and lengths.

Owns: these checks. Must not: know what a name is used for. Called by: the client, the command line, the app, daemons.

Names are part of keys and of headers (fields between spaces), and are printed on terminals, so the alphabet has no
braces, glob characters, spaces, `#` or control characters.
"""

from __future__ import annotations

import re

from streamflow.errors import InvalidName

MAX_ID = 256
MAX_NAME = 128

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@=+~/-]*")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@=+~-]*")


def check_run_id(run_id: str) -> str:
    """`run_id` itself. Raises `InvalidName`."""
    alphabet = "letters, digits and _ . : @ = + ~ / -, starting with a letter or digit"
    return _check("run id", run_id, _RUN_ID, MAX_ID, alphabet)


def check_name(kind: str, name: str) -> str:
    """`name` itself. Raises `InvalidName`; `kind` says in its message what was named: workflow, step, queue, …"""
    alphabet = "letters, digits and _ . : @ = + ~ -, starting with a letter, digit or _"
    return _check(kind, name, _NAME, MAX_NAME, alphabet)


def _check(kind: str, value: object, pattern: re.Pattern[str], limit: int, alphabet: str) -> str:
    if not isinstance(value, str):
        raise InvalidName(f"{kind} must be a str, got {type(value).__name__}")
    if len(value) > limit:
        raise InvalidName(f"{kind} {value[:32]!r}… has {len(value)} characters; the limit is {limit}")
    if not pattern.fullmatch(value):
        raise InvalidName(f"{kind} {value!r} is not allowed: use {alphabet}")
    return value
