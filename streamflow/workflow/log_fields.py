"""What a log line of a run has besides its message: which run, workflow, step, attempt and trace it belongs to.

Owns: the names of these fields, and finding their values where the line is written. Must not: log, import OpenTelemetry
(only somebody who has imported it can have a span).
Called by: run_logger, `streamflow.logs`; `steps/context.py`, whose record of the running attempt it reads.
"""

from __future__ import annotations

import contextvars
import sys
from typing import TYPE_CHECKING, Any, Protocol

from streamflow.workflow.awaitable import active

if TYPE_CHECKING:
    from streamflow.workflow.actions import StepJob


class Attempt(Protocol):
    """The attempt of a step that the calling task, thread or process runs."""

    run_id: str
    job: StepJob


attempt: contextvars.ContextVar[Attempt] = contextvars.ContextVar("streamflow_step")


def is_replayed() -> bool:
    """Whether the code that runs here has run before, and says again what it has said."""
    machine = active.get()
    return machine is not None and not machine.live


def run_fields() -> dict[str, Any]:
    """`run` and `workflow`, in a step also `step` and `attempt`; `trace_id` and `span_id` (hex, as in
    OpenTelemetry's own logs) of the current span, if there is one. Empty outside of workflows and steps, but for the
    span."""
    fields: dict[str, Any] = {}
    machine = active.get()
    if machine is not None:
        fields["run"], fields["workflow"] = machine.run_id, machine.workflow
    elif (running := attempt.get(None)) is not None:
        job = running.job
        fields["run"] = running.run_id
        if job.workflow:  # the daemon may be of an earlier release
            fields["workflow"] = job.workflow
        fields["step"], fields["attempt"] = job.step.name, job.attempt
    current_span = getattr(sys.modules.get("opentelemetry.trace"), "get_current_span", None)
    if current_span is not None:
        span = current_span().get_span_context()
        if span.is_valid:
            fields["trace_id"], fields["span_id"] = f"{span.trace_id:032x}", f"{span.span_id:016x}"
    return fields
