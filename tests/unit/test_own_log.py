"""A handler or filter of the application that raises ends nothing of streamflow."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator

import pytest

from streamflow import own_log
from streamflow.loops import Supervisor
from streamflow.own_log import guard_own_loggers

pytestmark = pytest.mark.anyio

ERRORS: list[type[BaseException]] = [RuntimeError, SystemExit, asyncio.CancelledError]


class Raises(logging.Handler):
    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.error = error

    def emit(self, record: logging.LogRecord) -> None:
        raise self.error("handler")


class Keeps(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.getMessage(), record.funcName or ""))


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[logging.Logger]:
    """A logger of streamflow's, and the root logger, which get their handlers and filters back."""
    logger = logging.getLogger("streamflow.test_own_log")
    logger.propagate = True
    monkeypatch.setattr(own_log, "_said", set())
    guard_own_loggers()
    yield logger
    logger.filters.clear()
    logger.handlers.clear()


@pytest.fixture
def add(log: logging.Logger) -> Iterator[Callable[[logging.Handler], None]]:
    added: list[logging.Handler] = []

    def add(handler: logging.Handler) -> None:
        added.append(handler)
        logging.getLogger().addHandler(handler)

    yield add
    for handler in added:
        logging.getLogger().removeHandler(handler)


@pytest.mark.parametrize("error", ERRORS)
def test_each_handler_gets_the_line_though_another_one_raises(
    log: logging.Logger,
    add: Callable[[logging.Handler], None],
    error: type[BaseException],
    capfd: pytest.CaptureFixture[str],
) -> None:
    keeps = Keeps()
    add(Raises(error))
    add(keeps)
    log.error("one")
    log.error("two")
    function = "test_each_handler_gets_the_line_though_another_one_raises"
    assert keeps.lines == [("one", function), ("two", function)]
    assert capfd.readouterr().err.count(f"the log's Raises raised {error.__name__}, which is said once: handler") == 1


def test_a_filter_that_raises_ends_nothing(log: logging.Logger, capfd: pytest.CaptureFixture[str]) -> None:
    def refuse(record: logging.LogRecord) -> bool:
        raise SystemExit("filter")

    log.addFilter(refuse)
    log.error("one")
    assert "raised SystemExit, which is said once: filter" in capfd.readouterr().err


def test_ctrl_c_and_loggers_of_others_are_left_alone(
    log: logging.Logger, add: Callable[[logging.Handler], None]
) -> None:
    add(Raises(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        log.error("one")
    assert type(logging.getLogger("test_own_log.others")) is logging.Logger
    add(Raises(RuntimeError))
    with pytest.raises((RuntimeError, KeyboardInterrupt)):
        logging.getLogger("test_own_log.others").error("two")


async def test_a_failing_loop_goes_on_though_its_error_cant_be_logged(
    log: logging.Logger, add: Callable[[logging.Handler], None]
) -> None:
    add(Raises(RuntimeError))
    turns: list[int] = []

    async def loop() -> None:
        turns.append(1)
        if len(turns) < 3:
            raise ValueError("the loop's own")

    await Supervisor(logging.getLogger("streamflow.test_own_log")).run("loop", loop, longest=0.001)
    assert len(turns) == 3
