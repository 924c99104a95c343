"""The door: what a name may look like. Checked by the client, the command line, the app and the daemon alike.

Owns: alphabets and lengths. Must not: know what a name is used for.
Names travel in keys, in headers (words between spaces) and on terminals, so the alphabet leaves out braces, globs,
spaces, `#` and control characters.
"""

from __future__ import annotations

import re

from streamflow.errors import InvalidName

MAX_ID = 256
MAX_NAME = 128

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@=+~/-]*")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@=+~-]*")


def check_run_id(run_id: str) -> str:
    alphabet = "letters, digits and _ . : @ = + ~ / -, starting with a letter or digit"
    return _check("run id", run_id, _RUN_ID, MAX_ID, alphabet)


def check_name(kind: str, name: str) -> str:
    """`kind` says in the message what the name is: workflow, step, tenant, signal, namespace, queue."""
    alphabet = "letters, digits and _ . : @ = + ~ -, starting with a letter, digit or _"
    return _check(kind, name, _NAME, MAX_NAME, alphabet)


def _check(kind: str, value: object, pattern: re.Pattern[str], limit: int, alphabet: str) -> str:
    if not isinstance(value, str):
        raise InvalidName(f"a {kind} is a str, not {type(value).__name__}")
    if len(value) > limit:
        raise InvalidName(f"{kind} {value[:32]!r}… has {len(value)} characters; the limit is {limit}")
    if not pattern.fullmatch(value):
        raise InvalidName(f"{kind} {value!r} is not allowed: use {alphabet}")
    return value
