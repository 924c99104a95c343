"""PUBLIC: triggers: what comes from outside starts runs and signals them. `sf.triggers` in code that registers them."""

from __future__ import annotations

from streamflow.triggers.actions import (
    Action,
    Actions,
    SignalRun,
    SignalWithStart,
    StartRun,
    signal,
    signal_with_start,
    start,
)
from streamflow.triggers.completion import Completed, completed
from streamflow.triggers.files import File, files
from streamflow.triggers.http import Webhooks, webhook
from streamflow.triggers.kafka import kafka
from streamflow.triggers.postgres import postgres
from streamflow.triggers.postgres_notify import postgres_notify
from streamflow.triggers.redis_list import redis_list as list  # noqa: A004 (read as sf.triggers.list)
from streamflow.triggers.secret import Secret, secret
from streamflow.triggers.signatures import Signature, github, hmac, slack, stripe
from streamflow.triggers.stream import stream
from streamflow.workflow.trigger import Delivery, Source, Trigger

__all__ = [
    "Action",
    "Actions",
    "Completed",
    "Delivery",
    "File",
    "Secret",
    "SignalRun",
    "SignalWithStart",
    "Signature",
    "Source",
    "StartRun",
    "Trigger",
    "Webhooks",
    "completed",
    "files",
    "github",
    "hmac",
    "kafka",
    "list",
    "postgres",
    "postgres_notify",
    "secret",
    "signal",
    "signal_with_start",
    "slack",
    "start",
    "stream",
    "stripe",
    "webhook",
]
