"""The lines of the log `streamflow.audit`: who has done what to which run, why, and the outcome.

Owns: the logger, its fields, and who is named if nobody says who. Must not: decide where the lines go.
Called by: one, many, whole.
"""

from __future__ import annotations

import getpass
import logging
import socket

from streamflow.actions.action import Action
from streamflow.errors import StoreUnavailable

_log = logging.getLogger("streamflow.audit")


def audit(action: Action, namespace: str, run_id: str, by: str, outcome: str, detail: str = "") -> None:
    """`outcome`: done, already, failed, or unknown where no answer came; `detail`: why it wasn't done."""
    if not _log.isEnabledFor(logging.INFO):
        return
    fields = {
        "action": action.name,
        "arguments": action.words(),
        "namespace": namespace,
        "run_id": run_id,
        "by": by,
        "reason": action.why,
        "outcome": outcome,
        "detail": detail,
    }
    _log.info("%s: %s run %s: %s", by, action.name, run_id, outcome, extra={k: v for k, v in fields.items() if v})


def audit_whole(
    action: str, namespace: str, kind: str, name: str, by: str, reason: str, outcome: str, detail: str = ""
) -> None:
    """As `audit`, of a queue or workflow as a whole: `kind` says which."""
    fields = {
        "action": action,
        "namespace": namespace,
        kind: name,
        "by": by,
        "reason": reason,
        "outcome": outcome,
        "detail": detail,
    }
    _log.info("%s: %s %s %s: %s", by, action, kind, name, outcome, extra={k: v for k, v in fields.items() if v})


def outcome_of(action: Action, error: Exception) -> str:
    """Of an action that has raised this."""
    if isinstance(error, StoreUnavailable | TimeoutError):
        return "unknown"
    return "already" if action.is_moot(error) else "failed"


def me() -> str:
    """`user@host`, of this process."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):  # a container's user may have no name
        return socket.gethostname()
