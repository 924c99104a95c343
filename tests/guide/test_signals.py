"""Signals: messages from outside to one run, typed, kept until wanted, each delivered once."""

from __future__ import annotations

import logging
from typing import Any

import anyio
import msgspec
import pytest

import streamflow as sf
from streamflow.events import SignalReceived, TimerSet
from tests.guide.conftest import Serve
from tests.support.waiting import happened

pytestmark = pytest.mark.anyio

app = sf.App()


class Approval(msgspec.Struct):
    by: str
    granted: bool


@app.workflow
async def approve(timeout: float | None = None) -> str:
    try:
        approval = await sf.signal("approval", Approval, timeout=timeout)
    except TimeoutError as error:
        return str(error)
    return f"{'granted' if approval.granted else 'refused'} by {approval.by}"


@app.workflow
async def collect(count: int) -> list[Any]:
    return [await sf.signal("item") for _ in range(count)]


@app.workflow
async def listener() -> str:
    return await sf.signal("hello", str)


@app.workflow
async def caller(run_id: str) -> None:
    await sf.send_signal(run_id, "hello", f"from {sf.info().workflow}")


async def test_a_run_waits_for_a_signal_and_gets_its_value_typed(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(approve, None)
        await run.signal("approval", Approval("ada", True))
        assert await run.result(10) == "granted by ada"


async def test_a_signal_that_comes_early_is_kept(serve: Serve) -> None:
    async with serve(app) as client:
        pass
    run = await client.start(approve, None)
    await run.signal("approval", {"by": "bob", "granted": False})
    async with serve(app):
        assert await run.result(10) == "refused by bob"


@app.reducer
def adder(state: list[int], event: sf.Event) -> sf.Decision:
    """How many numbers came, and their sum."""
    count, total = state or (0, 0)
    match event:
        case sf.Signal(name="add", value=number):
            return sf.Decision([count + 1, total + number])
        case sf.Signal():
            return sf.Decision(state, [sf.Complete([count, total])])
        case _:
            return sf.Decision([0, 0])


async def test_thousands_of_signals_count_once_each_even_when_the_daemon_dies(serve: Serve) -> None:
    signals = 3000
    run: sf.Run[list[int]] | None = None
    async with anyio.create_task_group() as sending:
        async with serve(app, crash=True) as client:
            run = await client.start(adder)
            for number in range(1, signals + 1):
                sending.start_soon(run.signal, "add", number)
            await happened(run, SignalReceived)
        async with serve(app):
            pass  # the third goes on with what this one handed over
    async with serve(app):
        assert run is not None
        await run.signal("end")
        assert await run.result(20) == [signals, signals * (signals + 1) // 2]
    assert (await run.describe()).version < signals / 10, "many were folded into one transition"


async def test_signals_of_one_client_arrive_once_each_and_in_order(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(collect, 200)
        async with anyio.create_task_group() as sending:
            for number in range(200):
                sending.start_soon(run.signal, "item", number)
        assert await run.result(10) == list(range(200))


async def test_each_name_has_its_own_queue(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(collect, 1)
        await run.signal("other", "not this")
        await run.signal("item", "this")
        assert await run.result(10) == ["this"]


async def test_waiting_can_have_a_timeout(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(approve, 0.02)
        assert await run.result(10) == "no signal approval within 0.02 s"


async def test_the_timeout_of_a_signal_that_came_does_not_fire_later(serve: Serve) -> None:
    app = sf.App()

    @app.workflow
    async def flow() -> str:
        while True:
            try:
                await sf.signal("go", timeout=0.05)
            except TimeoutError:  # it comes late, on a busy machine
                continue
            await sf.sleep(0.1)
            return "well"

    async with serve(app) as client:
        run = await client.start(flow)
        await happened(run, TimerSet)
        await run.signal("go")
        assert await run.result(10) == "well"


async def test_a_value_of_another_type_is_skipped_with_a_warning(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(app) as client:
        run = await client.start(approve, None)
        await run.signal("approval", "just a text")
        await run.signal("approval", {"by": "eve"})
        await run.signal("approval", Approval("ada", True))
        assert await run.result(10) == "granted by ada"
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len([text for text in warnings if "skipped a signal" in text]) == 2


async def test_an_ended_run_takes_no_signal(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(collect, 0)
        await run.result(10)
        with pytest.raises(sf.RunEnded):
            await run.signal("item")


async def test_a_signal_to_an_unknown_run_is_an_error(serve: Serve) -> None:
    async with serve(app) as client:
        with pytest.raises(sf.RunNotFound):
            await client.run("nobody").signal("item")


async def test_a_run_can_signal_another_one(serve: Serve) -> None:
    async with serve(app) as client:
        listening = await client.start(listener)
        await client.start(caller, listening.id)
        assert await listening.result(10) == "from caller"


async def test_a_signal_from_a_run_to_an_unknown_run_is_lost_without_harm(serve: Serve) -> None:
    async with serve(app) as client:
        assert await (await client.start(caller, "nobody")).result(10) is None
        listening = await client.start(listener)
        await client.start(caller, listening.id)
        assert await listening.result(10) == "from caller"


async def test_what_was_signalled_can_be_seen_in_the_history(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(collect, 2)
        await run.signal("item", {"n": 1})
        event = await happened(run, SignalReceived)
        assert (event.name, msgspec.msgpack.decode(event.value)) == ("item", {"n": 1})
