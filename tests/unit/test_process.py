"""The event loop of a daemon or worker goes on, whatever a step does to it."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from streamflow.loops import Supervisor
from streamflow.machine import sealed
from streamflow.process import ExitAtOnce, run_until_done

Loop = asyncio.AbstractEventLoop


def _loops() -> list[Callable[[], Loop]]:
    try:
        import uvloop
    except ImportError:
        return [asyncio.new_event_loop]
    return [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.fixture(params=_loops(), ids=lambda made: made.__module__.partition(".")[0])
def run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """`run_until_done` on an event loop of its own, which leaves this process as it was."""
    monkeypatch.setattr(sealed, "_hiding", False)
    interval = sys.getswitchinterval()
    loop: Loop = request.param()
    yield lambda main: run_until_done(loop, main)
    loop.close()
    sys.setswitchinterval(interval)


@pytest.fixture
def handled() -> Iterator[None]:
    """SIGINT is handled, as a daemon does."""
    before = signal.signal(signal.SIGINT, lambda *_: None)
    yield
    signal.signal(signal.SIGINT, before)


def _raise(error: BaseException) -> None:
    raise error


async def _raises(error: BaseException) -> None:
    raise error


def _stop() -> None:
    asyncio.get_running_loop().stop()


def _exit_in_callback() -> None:
    asyncio.get_running_loop().call_soon(_raise, SystemExit(3))


def _exit_in_task() -> None:
    _kept.append(asyncio.ensure_future(_raises(SystemExit(3))))


def _interrupt_in_task() -> None:
    _kept.append(asyncio.ensure_future(_raises(KeyboardInterrupt())))


_kept: list[asyncio.Future[None]] = []


@pytest.mark.usefixtures("handled")
@pytest.mark.parametrize("act", [_stop, _exit_in_callback, _exit_in_task, _interrupt_in_task])
def test_what_stops_the_event_loop_is_logged_and_the_rest_continues(
    run: Callable[..., None], act: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    reached: list[str] = []

    async def main() -> None:
        for _ in range(2):
            act()
            for _ in range(3):
                await asyncio.sleep(0)
        reached.append("the end")

    with caplog.at_level(logging.ERROR):
        run(main())
    assert reached == ["the end"]
    assert caplog.text.count("stopped the event loop, which continues") == 2
    while _kept:
        assert isinstance(_kept.pop().exception(), SystemExit | KeyboardInterrupt)


def _own(error: BaseException) -> Coroutine[Any, Any, None]:
    return _raises(error)


@pytest.mark.parametrize("error", [SystemExit(75), KeyboardInterrupt(), OSError()], ids=lambda e: type(e).__name__)
def test_what_the_service_raises_itself_is_raised(run: Callable[..., None], error: BaseException) -> None:
    with pytest.raises(type(error)):
        run(_own(error))


@pytest.mark.parametrize("error", [ExitAtOnce(1), KeyboardInterrupt()], ids=lambda e: type(e).__name__)
def test_a_second_signal_and_ctrl_c_end_the_service_in_order(run: Callable[..., None], error: BaseException) -> None:
    cleaned: list[bool] = []

    async def main() -> None:
        asyncio.get_running_loop().call_soon(_raise, error)
        try:
            await asyncio.sleep(30)
        finally:
            cleaned.append(True)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a process in the background
    try:
        with pytest.raises(type(error)):
            run(main())
    finally:
        signal.signal(signal.SIGINT, before)
    assert cleaned == [True]


def test_a_step_finds_none_of_the_tasks_of_its_daemon(run: Callable[..., None]) -> None:
    found: list[set[asyncio.Task[Any]]] = []

    async def step() -> None:
        found.append(asyncio.all_tasks())

    async def loop() -> None:
        await asyncio.create_task(step(), name="step")

    async def main() -> None:
        await Supervisor(logging.getLogger()).run("loop", loop)

    run(main())
    assert [task.get_name() for task in found[0]] == ["step"]
