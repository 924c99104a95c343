"""Streamflow's own loggers, when a handler of the application raises.

Owns: what becomes of a line that can't be logged. Must not: set up logging, or change loggers of others.
Called by: the supervisor of a daemon's or worker's loops.

`Handler.handleError` keeps what goes wrong in `emit` of the standard library's handlers, but filters and handlers of
the application, or of its libraries, may raise anything. Logging it would then end what logs: a loop, in the middle of
a decision, or the supervisor that reports the loop's error, and with it the process.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
from typing import Any

from streamflow.text import recordable, text_of, type_name

NAME = "streamflow"
MAX_SAID = 100
"""Kinds of errors that are said on stderr, each once."""

_RAISED = (Exception, SystemExit, GeneratorExit, asyncio.CancelledError)
"""Not KeyboardInterrupt, and not what interrupts code that blocks."""
_said: set[tuple[str, str]] = set()


def guard_own_loggers() -> None:
    """From now on nothing that handlers and filters raise comes out of streamflow's loggers. Each handler gets its line
    though another one raises. Safe to repeat: loggers are made when their modules are imported."""
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if (name == NAME or name.startswith(NAME + ".")) and isinstance(logger, logging.Logger):
            kind = type(logger)
            if not issubclass(kind, _Guarded):
                logger.__class__ = _guarded(kind)


@functools.cache
def _guarded(kind: type[logging.Logger]) -> type[logging.Logger]:
    return type(kind.__name__, (_Guarded, kind), {})


class _Guarded(logging.Logger):
    def handle(self, record: logging.LogRecord) -> None:
        try:
            super().handle(record)
        except _RAISED as error:
            _say(self, error)

    def callHandlers(self, record: logging.LogRecord) -> None:  # noqa: N802
        logger: logging.Logger | None = self
        handlers: list[logging.Handler] = []
        while logger is not None:
            handlers += logger.handlers
            logger = logger.parent if logger.propagate else None
        if not handlers:
            super().callHandlers(record)
        for handler in handlers:
            if record.levelno >= handler.level:
                try:
                    handler.handle(record)
                except _RAISED as error:
                    _say(handler, error)


def _say(source: Any, error: BaseException) -> None:
    key = type_name(source), type_name(error)
    if key in _said or len(_said) >= MAX_SAID:
        return
    _said.add(key)
    text = recordable(text_of(error), 1024)
    line = f"the log's {key[0]} raised {key[1]}, which is said once: {text}\n"
    try:
        os.write(2, line.encode("utf-8", "backslashreplace"))
    except OSError:  # stderr is closed
        return
