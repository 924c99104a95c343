"""PUBLIC: which run a log line belongs to, for loggers of the standard library and for structlog.

Owns: a filter for handlers and a processor for structlog. Must not: set up logging (the application or the command line
does), import structlog where nobody uses it.
Called by: the log of the command line; applications that configure logging themselves.

Daemons and workers of the command line need none of this: each line that a step or a workflow logs carries the fields
already. An application that configures its own handlers adds the filter:

>>> handler = logging.StreamHandler()
>>> handler.addFilter(sf_logs.RunFilter())
>>> handler.setFormatter(logging.Formatter("%(message)s run=%(run)s step=%(step)s", defaults={"run": "-", "step": "-"}))

and one that uses structlog the processor, early in its list:

>>> structlog.configure(processors=[sf_logs.add_run_fields, structlog.processors.JSONRenderer()])
"""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

from streamflow.workflow.log_fields import is_replayed, run_fields

__all__ = ["RunFilter", "add_run_fields", "run_fields"]

in_children: list[str | None] | None = None
"""What the command line has set up its log with here, for the processes of steps."""


class RunFilter(logging.Filter):
    """A filter for handlers: adds the fields of `run_fields` to records of steps and workflows, and drops what the code
    of a run logs again while it is replayed."""

    def filter(self, record: logging.LogRecord) -> bool:
        if is_replayed():
            return False
        for name, value in run_fields().items():
            if name not in record.__dict__:  # given with `extra=`
                setattr(record, name, value)
        return True


def add_run_fields(_: Any, __: str, event_dict: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A processor for structlog: adds the fields of `run_fields` that the line doesn't have, and drops what the code of
    a run logs again while it is replayed."""
    if is_replayed():
        from structlog import DropEvent

        raise DropEvent
    for name, value in run_fields().items():
        event_dict.setdefault(name, value)
    return event_dict
