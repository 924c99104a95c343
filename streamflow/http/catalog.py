"""Every metric once: its name, its kind, its labels, and what it says.

Owns: `METRICS`, which /metrics follows; pages, dashboard and alert rules are held against it by tests.
Must not: know where a value comes from. Called by: `figures.py`, `exposition.py`, daemon and worker (set values).

Names follow Prometheus' rules: base units, `_total` for what only grows. What begins with `streamflow_namespace_` or
`streamflow_server_` is about all of the namespace, and each daemon says the same of it: take the maximum. Everything
else is about one process: add it up. No label has values without bound: names of workflows, steps and queues are those
of the app, and some more; the others are `other`, as are groups of subscribers beyond the first fifty. Ids, tenants and
error messages are in no label, but what an app's own views have in their keys is: of the five largest.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Kind = Literal["gauge", "counter", "histogram"]
Whose = Literal["process", "daemon", "worker", "sink", "namespace"]
"""Daemons and workers have it; daemons; workers; sinks; each daemon says the same."""

COMMON = "sf_namespace"
"""The label that every metric has: streamflow's namespace. (`namespace` is a label of Kubernetes.)"""
OTHER = "other"
"""The value of a label in the place of those that are too many."""


class Metric(msgspec.Struct, frozen=True):
    name: str
    kind: Kind
    whose: Whose
    help: str
    labels: tuple[str, ...] = ()
    powers: tuple[int, ...] = ()
    """Of a histogram: its buckets end at these powers of two, of microseconds for seconds."""

    @property
    def series(self) -> tuple[str, ...]:
        """The names with which it is in the text."""
        return tuple(f"{self.name}_{part}" for part in ("bucket", "count", "sum")) if self.powers else (self.name,)


_MS_TO_HOURS = (*range(10, 27), 28, 30, 32, 34)
"""1 ms to 67 s by factors of two, then to 4.8 hours by factors of four."""

# --- every process ----------------------------------------------------------------------------------------------------

BUILD_INFO = Metric(
    "streamflow_build_info", "gauge", "process", "1; the labels say what this process is.", ("kind", "version")
)
HEALTH_PROBLEMS = Metric(
    "streamflow_health_problems", "gauge", "process", "Problems that make /health answer 503; it names them."
)
HEALTH_WARNINGS = Metric("streamflow_health_warnings", "gauge", "process", "Warnings that /health names.")
READY = Metric("streamflow_ready", "gauge", "process", "1 if /ready answers 200.")
DRAINING = Metric("streamflow_draining", "gauge", "process", "1 from SIGTERM to the end.")
HEARTBEAT_AGE = Metric(
    "streamflow_heartbeat_age_seconds",
    "gauge",
    "process",
    "Time since a heartbeat that the server has confirmed; at a worker, since its last answer.",
)
LOOP_LAG = Metric(
    "streamflow_loop_lag_seconds",
    "histogram",
    "process",
    "By how much the event loop was late when it was asked, twice a second.",
    powers=tuple(range(10, 27, 2)),
)
LOOP_BLOCKED = Metric(
    "streamflow_loop_blocked_seconds", "gauge", "process", "For how long the event loop has been late now."
)
LOOP_FAILURES = Metric(
    "streamflow_loop_failures_total", "counter", "process", "Unexpected errors of loops, which were run again."
)
STEPS_STARTED = Metric(
    "streamflow_steps_started_total", "counter", "process", "Attempts of steps that this process has started."
)
STEPS_RUNNING = Metric("streamflow_steps_running", "gauge", "process", "Attempts that run in this process.")
STEPS_WAITING = Metric(
    "streamflow_steps_waiting", "gauge", "process", "Attempts that wait for a slot, thread or process here."
)
CHUNKS = Metric(
    "streamflow_chunks_total", "counter", "process", "Chunks that steps have emitted here and the server has stored."
)
CHUNKS_MISSED = Metric(
    "streamflow_chunks_missed_total", "counter", "process",
    "Chunks that steps have emitted here and nobody can read: too many at once, or the server was short of memory.",
)  # fmt: skip
THREADS_HUNG = Metric(
    "streamflow_threads_hung",
    "gauge",
    "process",
    "Threads that have not returned: from ended steps, or from storage.",
)

# --- a daemon ---------------------------------------------------------------------------------------------------------

SHARDS_OWNED = Metric("streamflow_shards_owned", "gauge", "daemon", "Shards that this daemon owns.")
SHARDS_WANTED = Metric("streamflow_shards_wanted", "gauge", "daemon", "Shards that this daemon should own.")
SHARDS_STOPPED = Metric(
    "streamflow_shards_stopped",
    "gauge",
    "daemon",
    "Shards whose runs stand still, because this daemon can't acquire them or work for them; /health says why.",
)
SHARDS_IMPAIRED = Metric(
    "streamflow_shards_impaired",
    "gauge",
    "daemon",
    "Shards and partitions of queues for which something else fails, such as views or deliveries; /health says what.",
)
SHARDS_LOST = Metric(
    "streamflow_shards_lost_total",
    "counter",
    "daemon",
    "Shards that this daemon worked for when it found that they have another owner, or that their inbox has changed.",
)
RUNS_LIVE = Metric("streamflow_runs_live", "gauge", "daemon", "Runs in memory.")
STARTS_WAITING = Metric("streamflow_starts_waiting", "gauge", "daemon", "Starts that wait for their turn (admission).")
COMMITS = Metric(
    "streamflow_commits_total",
    "counter",
    "daemon",
    "Commits by their result: ok, duplicate, conflict, fenced, behind, refused.",
    ("result",),
)
COMMIT_RUNS = Metric(
    "streamflow_commit_runs",
    "histogram",
    "daemon",
    "Runs in a commit (its batch).",
    powers=tuple(range(10)),
)
COMMIT_DURATION = Metric(
    "streamflow_commit_duration_seconds",
    "histogram",
    "daemon",
    "From sending a pipeline of commits to its answers, retries included.",
    powers=tuple(range(8, 24)),
)
UNCONFIRMED = Metric(
    "streamflow_unconfirmed_seconds",
    "gauge",
    "daemon",
    "For how long nothing was confirmed by replicas or the disk, while decisions wait for it; 0 if none does.",
)
CONFIRMATIONS_LACKING = Metric(
    "streamflow_confirmations_lacking",
    "gauge",
    "daemon",
    "How many more replicas (or the disk: 1) of a server have to confirm what decisions have waited for longer than a "
    "second; `server` is empty unless there is a cluster.",
    ("server",),
)
INBOX_MESSAGES = Metric(
    "streamflow_inbox_messages", "gauge", "daemon", "Messages for runs of its shards that no commit has taken yet."
)
INBOX_LAG = Metric("streamflow_inbox_lag_seconds", "gauge", "daemon", "Age of the oldest of them.")
AGENDA_LAG = Metric(
    "streamflow_agenda_lag_seconds", "gauge", "daemon", "For how long a run has been due that no commit has taken yet."
)
OUTBOX_MESSAGES = Metric("streamflow_outbox_messages", "gauge", "daemon", "Undelivered messages to shards, in memory.")
OUTBOX_LAG = Metric(
    "streamflow_outbox_lag_seconds", "gauge", "daemon", "For how long the oldest of them has been first in its line."
)
VIEWS_ENTRIES = Metric(
    "streamflow_views_lag_entries", "gauge", "daemon", "Log entries that the stored views don't count yet."
)
VIEWS_LAG = Metric(
    "streamflow_views_lag_seconds",
    "gauge",
    "daemon",
    "Seconds for which such entries of a shard wait and none of them was counted.",
)
RUNS_LOST = Metric(
    "streamflow_runs_lost_total", "counter", "daemon", "Runs that the server has lost or set back; the log names them."
)
RUNS_HIBERNATING = Metric(
    "streamflow_runs_hibernating", "gauge", "daemon", "Runs of its shards that were moved out of the server's memory."
)
RUNS_HIBERNATED = Metric(
    "streamflow_runs_hibernated_total", "counter", "daemon", "Runs that it has moved out of the server's memory."
)
RUNS_WOKEN = Metric("streamflow_runs_woken_total", "counter", "daemon", "Such runs that it has put back.")
READ_SUCCESS = Metric(
    "streamflow_metrics_read_success", "gauge", "daemon", "1 if the server answered when it was last asked for metrics."
)

# --- a worker ---------------------------------------------------------------------------------------------------------

PARTITIONS_REFUSED = Metric(
    "streamflow_partitions_refused",
    "gauge",
    "worker",
    "Partitions of its queues that the server refuses this worker: nobody may take their steps. `status` says why.",
)
CLAIMS = Metric(
    "streamflow_claims", "gauge", "worker", "Attempts that this worker has claimed and that have not ended."
)
OUTCOMES_UNREPORTED = Metric(
    "streamflow_outcomes_unreported", "gauge", "worker", "Outcomes that wait to be reported to their runs."
)
CLAIMS_EXPIRED = Metric(
    "streamflow_claims_expired_total", "counter", "worker", "Claims of dead workers that this one has reported as lost."
)

# --- a sink -----------------------------------------------------------------------------------------------------------

SINK_EVENTS = Metric(
    "streamflow_sink_events_total", "counter", "sink", "Events that this process has written.", ("sink", "group")
)
SINK_BATCHES = Metric(
    "streamflow_sink_batches_total", "counter", "sink", "Batches that this process has written.", ("sink", "group")
)
SINK_RETRIES = Metric(
    "streamflow_sink_retries_total", "counter", "sink", "Writes that have failed and were tried again.",
    ("sink", "group"),
)  # fmt: skip
SINK_TARGET_DOWN = Metric(
    "streamflow_sink_target_down", "gauge", "sink", "1 while something is wrong with the target; /health says what.",
    ("sink", "group"),
)  # fmt: skip
SINK_WRITING = Metric(
    "streamflow_sink_writing_seconds",
    "gauge",
    "sink",
    "For how long the batch that is under way has not been written, retries included; 0 if none is.",
    ("sink", "group"),
)
SINK_WRITE_AGE = Metric(
    "streamflow_sink_last_write_age_seconds",
    "gauge",
    "sink",
    "Time since a batch was written; not there before the first one.",
    ("sink", "group"),
)
SINK_DEAD_LETTERS = Metric(
    "streamflow_sink_dead_letters_total",
    "counter",
    "sink",
    "Events that the receiver has refused to the end, of sinks that have such.",
    ("sink", "group"),
)
SINK_OTHERS = Metric(
    "streamflow_sink_others_total",
    "counter",
    "sink",
    "What the sink counts itself besides, such as the requests of a webhook.",
    ("sink", "group", "figure"),
)

# --- the namespace ----------------------------------------------------------------------------------------------------

RUNS_OPEN = Metric(
    "streamflow_namespace_runs_open",
    "gauge",
    "namespace",
    "Open runs by status: running (or waiting, or not begun yet), stuck, paused.",
    ("workflow", "status"),
)
WORKFLOW_PAUSED = Metric(
    "streamflow_namespace_workflow_paused",
    "gauge",
    "namespace",
    "1 if somebody has paused the workflow: its runs begin nothing new.",
    ("workflow",),
)
RUNS_STARTED = Metric(
    "streamflow_namespace_runs_started_total", "counter", "namespace", "Runs that have begun.", ("workflow",)
)
RUNS_ENDED = Metric(
    "streamflow_namespace_runs_ended_total",
    "counter",
    "namespace",
    "Runs that have ended: completed, failed (a run that is retried each time), cancelled.",
    ("workflow", "status"),
)
RUN_DURATION = Metric(
    "streamflow_namespace_run_duration_seconds",
    "histogram",
    "namespace",
    "From start to end of completed runs; the sum is off by up to 6 %.",
    ("workflow",),
    _MS_TO_HOURS,
)
STEP_ATTEMPTS = Metric(
    "streamflow_namespace_step_attempts_total",
    "counter",
    "namespace",
    "Attempts of steps by outcome: completed, retried, failed (for the last time).",
    ("step", "outcome"),
)
STEP_DURATION = Metric(
    "streamflow_namespace_step_duration_seconds",
    "histogram",
    "namespace",
    "Of attempts that completed; the sum is off by up to 6 %.",
    ("step",),
    _MS_TO_HOURS,
)
QUARANTINED = Metric(
    "streamflow_namespace_messages_quarantined_total", "counter", "namespace", "Messages that could not be processed."
)
QUEUE_WAITING = Metric(
    "streamflow_namespace_queue_steps_waiting",
    "gauge",
    "namespace",
    "Attempts in the queue that no worker has claimed.",
    ("queue",),
)
QUEUE_RUNNING = Metric(
    "streamflow_namespace_queue_steps_running",
    "gauge",
    "namespace",
    "Attempts in the queue that workers have claimed.",
    ("queue",),
)
QUEUE_OLDEST = Metric(
    "streamflow_namespace_queue_oldest_waiting_seconds",
    "gauge",
    "namespace",
    "Age of the oldest attempt that no worker has claimed; 0 if none waits.",
    ("queue",),
)
QUEUE_WORKERS = Metric(
    "streamflow_namespace_queue_workers",
    "gauge",
    "namespace",
    "Workers of the queue that live and are not draining.",
    ("queue",),
)
QUEUE_PAUSED = Metric(
    "streamflow_namespace_queue_paused",
    "gauge",
    "namespace",
    "1 if somebody has paused the queue: workers take nothing from it.",
    ("queue",),
)
VIEW_VALUE = Metric(
    "streamflow_namespace_view_value",
    "gauge",
    "namespace",
    "What a view of the app has counted in its newest window, of its five largest keys; `key` empty: beyond its `top`.",
    ("view", "key"),
)
VIEW_EVENTS = Metric(
    "streamflow_namespace_view_events", "gauge", "namespace", "Events that a view of the app has counted.", ("view",)
)
GROUP_CONSUMERS = Metric(
    "streamflow_namespace_group_consumers", "gauge", "namespace", "Consumers of a group of subscribers.", ("group",)
)
GROUP_LAG_ENTRIES = Metric(
    "streamflow_namespace_group_lag_entries",
    "gauge",
    "namespace",
    "Log entries (commits) that the group has not acknowledged.",
    ("group",),
)
GROUP_LAG = Metric(
    "streamflow_namespace_group_lag_seconds",
    "gauge",
    "namespace",
    "Age of the oldest entry that the group has not acknowledged; 0 if none waits.",
    ("group",),
)
GROUP_LAG_BYTES = Metric(
    "streamflow_namespace_group_lag_bytes",
    "gauge",
    "namespace",
    "Memory that these entries take, about: by the average of all that are in the log of their shard.",
    ("group",),
)
GROUP_LOST = Metric(
    "streamflow_namespace_group_lost_entries",
    "gauge",
    "namespace",
    "Log entries that were trimmed before the group had acknowledged them, since it began or was reset last.",
    ("group",),
)
QUEUES = Metric("streamflow_namespace_queues", "gauge", "namespace", "Queues that are registered.")
DAEMONS = Metric("streamflow_namespace_daemons", "gauge", "namespace", "Daemons that are members.")
SHARDS = Metric("streamflow_namespace_shards", "gauge", "namespace", "Shards of the namespace.")
SHARDS_UNOWNED = Metric("streamflow_namespace_shards_unowned", "gauge", "namespace", "Shards that no member owns.")
SERVER_MEMORY = Metric(
    "streamflow_server_memory_used_bytes",
    "gauge",
    "namespace",
    "Memory that the Redis or Valkey server uses; of a cluster, the master that is nearest to its maxmemory.",
)
SERVER_MEMORY_LIMIT = Metric(
    "streamflow_server_memory_limit_bytes", "gauge", "namespace", "Its maxmemory; not there if it has none."
)

METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
