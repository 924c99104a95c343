"""streamflow: durable workflow orchestration for Python, partitioned from day one.

The public API: `import streamflow as sf`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from streamflow.pure.definitions import App
from streamflow.pure.errors import (
    ChildFailed,
    Failure,
    ForeignAwait,
    InvalidName,
    NamespaceMismatch,
    NamespaceMissing,
    PayloadInvalid,
    PayloadTooLarge,
    RunCancelled,
    RunConflict,
    RunEnded,
    RunError,
    RunFailed,
    RunNotFound,
    StepFailed,
    StoreError,
    StoreFull,
    StoreMisconfigured,
    StoreUnavailable,
    StreamflowError,
    UnknownWorkflow,
    UsageError,
)
from streamflow.pure.operations import gather, info, now, random, send_signal, signal, sleep, uuid4
from streamflow.pure.record import Status
from streamflow.pure.reducing import (
    CancelRequest,
    ChildDone,
    ChildError,
    Complete,
    Decision,
    Event,
    Fail,
    Signal,
    Started,
    StepDone,
    StepError,
    TimerDone,
)
from streamflow.pure.retry import NO_RETRY, Retry
from streamflow.runtime.step_context import StepInfo, cancelled, heartbeat, step_info
from streamflow.version import __version__

if TYPE_CHECKING:
    from streamflow.edges.client import Client, Run, connect
    from streamflow.edges.local import local

# Loaded when first asked for: a module of flows, or `streamflow --help`, needs no client of the server.
_LATER = {
    "Client": "streamflow.edges.client",
    "Run": "streamflow.edges.client",
    "connect": "streamflow.edges.client",
    "local": "streamflow.edges.local",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'streamflow' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_LATER[name]), name)
    return value


__all__ = [
    "NO_RETRY",
    "App",
    "CancelRequest",
    "ChildDone",
    "ChildError",
    "ChildFailed",
    "Client",
    "Complete",
    "Decision",
    "Event",
    "Fail",
    "Failure",
    "ForeignAwait",
    "InvalidName",
    "NamespaceMismatch",
    "NamespaceMissing",
    "PayloadInvalid",
    "PayloadTooLarge",
    "Retry",
    "Run",
    "RunCancelled",
    "RunConflict",
    "RunEnded",
    "RunError",
    "RunFailed",
    "RunNotFound",
    "Signal",
    "Started",
    "Status",
    "StepDone",
    "StepError",
    "StepFailed",
    "StepInfo",
    "StoreError",
    "StoreFull",
    "StoreMisconfigured",
    "StoreUnavailable",
    "StreamflowError",
    "TimerDone",
    "UnknownWorkflow",
    "UsageError",
    "__version__",
    "cancelled",
    "connect",
    "gather",
    "heartbeat",
    "info",
    "local",
    "now",
    "random",
    "send_signal",
    "signal",
    "sleep",
    "step_info",
    "uuid4",
]
