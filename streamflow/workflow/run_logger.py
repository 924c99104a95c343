"""`sf.logger`: a logger for workflow code, which is silent while a run is replayed.

Owns: when a line is written, and the fields that it carries. Must not: set up logging (the process does).
Called by: user workflows; the log of the command line, for loggers of the standard library.
"""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

from streamflow.workflow.awaitable import active

if TYPE_CHECKING:
    RunLoggerBase = logging.LoggerAdapter[logging.Logger]
else:
    RunLoggerBase = logging.LoggerAdapter


def is_not_replayed(_: logging.LogRecord) -> bool:
    """A filter for handlers: drops what any logger is given, or `warnings.warn`, by code of a run that is replayed."""
    machine = active.get()
    return machine is None or machine.live


class RunLogger(RunLoggerBase):
    """Used as any logger. In a workflow each record has `run` and `workflow` as fields (`extra=`)."""

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802
        machine = active.get()
        return (machine is None or machine.live) and self.logger.isEnabledFor(level)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        machine = active.get()
        fields = {} if machine is None else {"run": machine.run_id, "workflow": machine.workflow}
        kwargs["extra"] = {**fields, **(kwargs.get("extra") or {})}
        return msg, kwargs


def logger(name: str) -> RunLogger:
    """A logger for workflow code: the one of the standard library with this name, but silent during a replay.

    The code of a run is run again from the start whenever the run is loaded into memory, so a plain logger repeats
    its lines then. This one writes each line once (again only if the transition in which it was written was not
    committed), and adds the run's id and workflow as fields. In steps and elsewhere it is the plain logger.

    >>> log = sf.logger(__name__)
    >>> @app.workflow
    ... async def bill(customer: str) -> None:
    ...     log.info("charging %s", customer)
    """
    return RunLogger(logging.getLogger(name), {})
