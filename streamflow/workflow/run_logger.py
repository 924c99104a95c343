"""`sf.logger`: a logger for workflows and steps, which is silent while a run is replayed.

Owns: when a line is written, and the fields that it carries. Must not: set up logging (the process does).
Called by: user workflows and steps.
"""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

from streamflow.workflow.log_fields import is_replayed, run_fields

if TYPE_CHECKING:
    RunLoggerBase = logging.LoggerAdapter[logging.Logger]
else:
    RunLoggerBase = logging.LoggerAdapter


class RunLogger(RunLoggerBase):
    """Used as any logger. In workflows and steps each record has the fields of `run_fields` (as by `extra=`)."""

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802
        return not is_replayed() and self.logger.isEnabledFor(level)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**run_fields(), **(kwargs.get("extra") or {})}
        return msg, kwargs


def logger(name: str) -> RunLogger:
    """A logger for workflows and steps: the one of the standard library with this name, but silent during a replay.

    The code of a run is run again from the start whenever the run is loaded into memory, so a plain logger repeats
    its lines then. This one writes each line once (again only if the transition in which it was written was not
    committed). It adds fields: `run` and `workflow`, in steps also `step` and `attempt`, and where OpenTelemetry is in
    use `trace_id` and `span_id`. Elsewhere it is the plain logger.

    >>> log = sf.logger(__name__)
    >>> @app.workflow
    ... async def bill(customer: str) -> None:
    ...     log.info("charging %s", customer)
    """
    return RunLogger(logging.getLogger(name), {})
