"""A webhook's request: its body, and the headers that say who has sent it and when.

Owns: the format, which is that of Standard Webhooks 1.0.0 (github.com/standard-webhooks/standard-webhooks,
spec/standard-webhooks.md), and how a secret is read. Must not: send anything, show a secret in a message.
Called by: `webhook.py`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamflow.errors import UsageError
from streamflow.sinks.rows import row_of

if TYPE_CHECKING:
    from streamflow.client.committed import CommittedEvent

VARIABLE = "STREAMFLOW_WEBHOOK_SECRET"
PREFIX = "whsec_"
SECRET_BYTES = range(24, 65)
_WORDS = re.compile(r"[A-Z][a-z0-9]*")


def read_secrets(file: str) -> list[bytes]:
    """The keys in the file, or in the variable if none is given; while a secret is being replaced they are two, with a
    blank or a line break between them. Raises `UsageError`."""
    if file:
        try:
            text, where = Path(file).read_text(), f"--secret-file {file}"
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it isn't text"
            raise UsageError(f"can't read --secret-file {file}: {reason}") from None
    else:
        text, where = os.environ.get(VARIABLE, ""), VARIABLE
    keys = [_key(word, where) for word in text.split()]
    if not keys:
        raise UsageError(f"webhooks are signed: give a secret in --secret-file or {VARIABLE}, or say --unsigned")
    return keys


def _key(word: str, where: str) -> bytes:
    try:
        key = base64.b64decode(word.removeprefix(PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if not word.startswith(PREFIX) or len(key) not in SECRET_BYTES:
        raise UsageError(f"{where}: a secret is {PREFIX} and 24 to 64 random bytes in base64") from None
    return key


def type_of(kind: str) -> str:
    """`RunCompleted` -> `run.completed`, `HistoryLimitReached` -> `history.limit_reached`."""
    first, *rest = [word.lower() for word in _WORDS.findall(kind)] or [kind.lower()]
    return f"{first}.{'_'.join(rest)}" if rest else first


def body_of(event: CommittedEvent) -> dict[str, Any]:
    row = row_of(event)
    return {"type": type_of(event.kind), "timestamp": row["at"], "data": row}


def webhook_id(event_id: str) -> str:
    """The same for each attempt. Not the event's id itself: users choose parts of that, and a full stop in it would be
    one of those that divide what is signed."""
    return "evt_" + hashlib.sha256(event_id.encode()).hexdigest()[:32]


def headers_of(message: str, seconds: int, body: bytes, keys: list[bytes]) -> dict[str, str]:
    """`message` is the webhook's id, `seconds` the time of this attempt since the epoch."""
    headers = {"content-type": "application/json", "webhook-id": message, "webhook-timestamp": str(seconds)}
    if keys:
        signed = b".".join((message.encode(), str(seconds).encode(), body))
        headers["webhook-signature"] = " ".join(
            "v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode() for key in keys
        )
    return headers
