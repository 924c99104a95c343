"""streamflow: durable workflow orchestration for Python, partitioned from day one.

The public API: `import streamflow as sf`. Owns: its names. Must not: define anything else. Called by: user code.

- Register with an `App`: `@app.step` for what has side effects, `@app.workflow` for what calls steps, `@app.reducer`.
- In a workflow, await steps, other workflows, `sleep`, `signal`, `question`, and several of them with `gather`, `map`,
  `race`, `task_group`, `timeout`; `start` begins a child; `saga` undoes, `publish` and `set_attributes` show;
  `now`, `random` and `uuid4` are the same in each replay.
- In a step, `step_info`, `heartbeat`, `emit` and `cancelled`; raise `Fatal` to end its attempts, `RetryLater` to say
  when. In both `record`, for views.
- From outside, `async with connect() as client:` (`Client`) starts a run and gives its handle (`Run`); `local` needs no
  server. Tests use `streamflow.testing`.
- `@app.trigger` has webhooks, streams and files start runs and signal them: `triggers`.

`help(sf.gather)` has an example, as most have; `help(step)` and `help(workflow)` show your own.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from streamflow import events
from streamflow.errors import (
    ArchiveDamaged,
    ArchiveError,
    AskRefused,
    Cancelled,
    ChildFailed,
    CompensationFailed,
    ContinueAs,
    Diverged,
    Failure,
    Fatal,
    ForeignAwait,
    GroupRemoved,
    HistoryTooLong,
    InvalidName,
    NamespaceMismatch,
    NamespaceMissing,
    NotForked,
    NotRetried,
    PayloadInvalid,
    PayloadTooLarge,
    RetryLater,
    RunCancelled,
    RunConflict,
    RunEnded,
    RunError,
    RunExists,
    RunFailed,
    RunNotFound,
    RunTimedOut,
    StepFailed,
    StoreError,
    StoreFull,
    StoreMisconfigured,
    StoreUnavailable,
    StreamflowError,
    Unconfirmed,
    UnknownView,
    UnknownWorkflow,
    UsageError,
)
from streamflow.model.bugs import BUGS
from streamflow.model.causes import Cause
from streamflow.model.record import Status
from streamflow.model.waits import QueuePlace, StepHolder, Wait
from streamflow.steps.context import StepInfo, cancelled, emit, heartbeat, step_info
from streamflow.version import __version__
from streamflow.views.aggregates import count, highest, histogram, lowest, total
from streamflow.views.reading import ViewReading, ViewRow, ViewWindow
from streamflow.workflow.actions import Child, Question
from streamflow.workflow.api import (
    RunInfo,
    gather,
    info,
    map,
    now,
    patched,
    publish,
    question,
    race,
    random,
    saga,
    send_signal,
    set_attributes,
    shield,
    signal,
    sleep,
    start,
    task_group,
    timeout,
    uuid4,
)
from streamflow.workflow.app import App
from streamflow.workflow.concurrency import TaskGroup
from streamflow.workflow.messages import PublishedDefinition, QuestionDefinition, SignalDefinition
from streamflow.workflow.recording import record
from streamflow.workflow.reducer import (
    Answer,
    Asked,
    CancelRequest,
    ChildDone,
    ChildFailure,
    Complete,
    Decision,
    Event,
    Fail,
    Refuse,
    Signal,
    Started,
    StepDone,
    StepFailure,
    TimerDone,
)
from streamflow.workflow.retry import NO_RETRY, Retry
from streamflow.workflow.run_logger import logger
from streamflow.workflow.view import View, ViewEvent

if TYPE_CHECKING:
    from streamflow import triggers
    from streamflow.client.client import Client, connect
    from streamflow.client.committed import CommittedEvent
    from streamflow.client.groups import Group
    from streamflow.client.hibernating import HibernatingPage, HibernatingRun
    from streamflow.client.listing import MessageInfo, RunDescription, RunPage, RunSummary, WorkflowInfo
    from streamflow.client.newest import Change, Changes
    from streamflow.client.protocol import AnyClient
    from streamflow.client.retrying import Retried, RetriedStep
    from streamflow.client.run import Run
    from streamflow.client.streams import Chunk
    from streamflow.client.subscription import EventBatch, Subscription
    from streamflow.client.waits import RunOwner
    from streamflow.embedded.in_process import local
    from streamflow.store.pauses import Pause

# Imported at first use: a module of flows, or `streamflow --help`, needs no client of the server.
_LAZY = {
    "AnyClient": "streamflow.client.protocol",
    "Chunk": "streamflow.client.streams",
    "Client": "streamflow.client.client",
    "CommittedEvent": "streamflow.client.committed",
    "EventBatch": "streamflow.client.subscription",
    "Group": "streamflow.client.groups",
    "HibernatingPage": "streamflow.client.hibernating",
    "HibernatingRun": "streamflow.client.hibernating",
    "Subscription": "streamflow.client.subscription",
    "Retried": "streamflow.client.retrying",
    "RetriedStep": "streamflow.client.retrying",
    "Run": "streamflow.client.run",
    "RunDescription": "streamflow.client.listing",
    "MessageInfo": "streamflow.client.listing",
    "Pause": "streamflow.store.pauses",
    "Change": "streamflow.client.newest",
    "Changes": "streamflow.client.newest",
    "RunPage": "streamflow.client.listing",
    "RunSummary": "streamflow.client.listing",
    "WorkflowInfo": "streamflow.client.listing",
    "RunOwner": "streamflow.client.waits",
    "connect": "streamflow.client.client",
    "local": "streamflow.embedded.in_process",
}


if not TYPE_CHECKING:  # a type checker would take any name for one that it gives

    def __getattr__(name: str) -> Any:
        if name == "triggers":
            return importlib.import_module("streamflow.triggers")
        if name not in _LAZY:
            raise AttributeError(f"module 'streamflow' has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(_LAZY[name]), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


__all__ = [
    "BUGS",
    "NO_RETRY",
    "Answer",
    "AnyClient",
    "App",
    "ArchiveDamaged",
    "ArchiveError",
    "AskRefused",
    "Asked",
    "CancelRequest",
    "Cancelled",
    "Cause",
    "Change",
    "Changes",
    "Child",
    "ChildDone",
    "ChildFailed",
    "ChildFailure",
    "Chunk",
    "Client",
    "CommittedEvent",
    "CompensationFailed",
    "Complete",
    "ContinueAs",
    "Decision",
    "Diverged",
    "Event",
    "EventBatch",
    "Fail",
    "Failure",
    "Fatal",
    "ForeignAwait",
    "Group",
    "GroupRemoved",
    "HibernatingPage",
    "HibernatingRun",
    "HistoryTooLong",
    "InvalidName",
    "MessageInfo",
    "NamespaceMismatch",
    "NamespaceMissing",
    "NotForked",
    "NotRetried",
    "Pause",
    "PayloadInvalid",
    "PayloadTooLarge",
    "PublishedDefinition",
    "Question",
    "QuestionDefinition",
    "QueuePlace",
    "Refuse",
    "Retried",
    "RetriedStep",
    "Retry",
    "RetryLater",
    "Run",
    "RunCancelled",
    "RunConflict",
    "RunDescription",
    "RunEnded",
    "RunError",
    "RunExists",
    "RunFailed",
    "RunInfo",
    "RunNotFound",
    "RunOwner",
    "RunPage",
    "RunSummary",
    "RunTimedOut",
    "Signal",
    "SignalDefinition",
    "Started",
    "Status",
    "StepDone",
    "StepFailed",
    "StepFailure",
    "StepHolder",
    "StepInfo",
    "StoreError",
    "StoreFull",
    "StoreMisconfigured",
    "StoreUnavailable",
    "StreamflowError",
    "Subscription",
    "TaskGroup",
    "TimerDone",
    "Unconfirmed",
    "UnknownView",
    "UnknownWorkflow",
    "UsageError",
    "View",
    "ViewEvent",
    "ViewReading",
    "ViewRow",
    "ViewWindow",
    "Wait",
    "WorkflowInfo",
    "__version__",
    "cancelled",
    "connect",
    "count",
    "emit",
    "events",
    "gather",
    "heartbeat",
    "highest",
    "histogram",
    "info",
    "local",
    "logger",
    "lowest",
    "map",
    "now",
    "patched",
    "publish",
    "question",
    "race",
    "random",
    "record",
    "saga",
    "send_signal",
    "set_attributes",
    "shield",
    "signal",
    "sleep",
    "start",
    "step_info",
    "task_group",
    "timeout",
    "total",
    "triggers",
    "uuid4",
]
