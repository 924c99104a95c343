"""Code and types of a user that raise, loop or block: the run is failed or parked, and no other run notices."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass
from typing import Any

import anyio
import pytest

import streamflow as sf
from tests.support.waiting import DEADLINE, until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio

STRICT = False
"""Whether a later deploy is running, whose type refuses what the one before accepted."""


class Refused(BaseException):
    """Not an `Exception`: what `except Exception` doesn't catch."""


@dataclass
class Price:
    amount: int

    def __post_init__(self) -> None:
        if self.amount < 0 or (STRICT and self.amount == 0):
            raise Refused(f"a price of {self.amount}")


def make_app() -> sf.App:
    app = sf.App()

    @app.step(retry=sf.NO_RETRY)
    async def quote(amount: int) -> Price:
        return {"amount": amount}  # type: ignore[return-value]

    @app.workflow
    async def asks(amount: int) -> int:
        return (await quote(amount)).amount

    @app.workflow
    async def listens() -> int:
        return (await sf.signal("price", Price)).amount

    @app.workflow
    async def waits(amount: int) -> int:
        price = await quote(amount)
        return price.amount + await sf.signal("go", int)

    @app.workflow
    async def innocent() -> str:
        await sf.signal("go", int)
        return "fine"

    @app.workflow
    async def raises() -> None:
        await sf.signal("go", int)
        raise Refused("enough")

    @app.workflow
    async def interrupts() -> None:
        await sf.signal("go", int)
        raise KeyboardInterrupt

    @app.workflow
    async def spins(stubborn: bool) -> None:
        await sf.signal("go", int)
        while True:
            try:
                sum(range(1000))
            except BaseException:
                if not stubborn:
                    raise

    @app.workflow
    async def spins_at_once() -> None:
        while True:
            pass

    return app


@pytest.fixture(autouse=True)
def not_strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.system.test_user_code_faults.STRICT", False, raising=False)
    globals()["STRICT"] = False


async def is_stuck(run: sf.Run[Any]) -> bool:
    return (await run.describe()).status == "stuck"


async def innocents_end(client: sf.Client, runs: list[sf.Run[Any]]) -> None:
    await asyncio.gather(*(run.signal("go", 1) for run in runs))
    assert await asyncio.gather(*(run.result(timeout=DEADLINE) for run in runs)) == ["fine"] * len(runs)


async def start_innocents(client: sf.Client, count: int = 5) -> list[sf.Run[Any]]:
    return [await client.start("innocent", id=f"innocent-{number}") for number in range(count)]


async def test_a_result_that_its_type_refuses_by_anything_fails_its_run_only(serve: Serve) -> None:
    async with serve(make_app(), shards=1) as (client, _):
        runs = await start_innocents(client)
        bad = await client.start("asks", -1)
        with pytest.raises(sf.RunFailed, match="a price of -1"):
            await bad.result(timeout=DEADLINE)
        await innocents_end(client, runs)


async def test_a_signal_that_its_type_refuses_by_anything_parks_its_run_only(serve: Serve) -> None:
    async with serve(make_app(), shards=1) as (client, _):
        runs = await start_innocents(client)
        bad = await client.start("listens")
        await bad.signal("price", {"amount": -1})
        await until(lambda: is_stuck(bad))
        await innocents_end(client, runs)


async def test_a_deploy_with_a_stricter_type_parks_the_run_until_it_is_mended(serve: Serve) -> None:
    """The messages that came meanwhile are kept."""
    async with serve(make_app(), shards=1) as (client, _):
        old = await client.start("waits", 0, id="old")
        await until(lambda: _waits(old))
        runs = await start_innocents(client)
    globals()["STRICT"] = True
    async with serve(make_app(), shards=1) as (client, _):
        await old.signal("go", 7)
        await until(lambda: is_stuck(old))
        await innocents_end(client, runs)
    globals()["STRICT"] = False
    async with serve(make_app(), shards=1):
        assert await old.result(timeout=DEADLINE) == 7


async def _waits(run: sf.Run[Any]) -> bool:
    return (await run.describe()).version >= 2


async def test_whatever_workflow_code_raises_ends_its_run_only(serve: Serve) -> None:
    async with serve(make_app(), shards=1) as (client, _):
        runs = await start_innocents(client)
        bad = await client.start("raises")
        await bad.signal("go", 1)
        with pytest.raises(sf.RunFailed, match="Refused: enough"):
            await bad.result(timeout=DEADLINE)
        await innocents_end(client, runs)


async def test_a_workflow_that_raises_keyboard_interrupt_is_parked(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """Where SIGINT has a handler that doesn't raise it, as in the process of a daemon."""
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        async with serve(make_app(), shards=1) as (client, _):
            runs = await start_innocents(client)
            bad = await client.start("interrupts")
            await bad.signal("go", 1)
            await until(lambda: is_stuck(bad))
            assert "KeyboardInterrupt" in caplog.text
            await innocents_end(client, runs)
            await bad.terminate()
            with pytest.raises(sf.RunCancelled):
                await bad.result(timeout=DEADLINE)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("stubborn", [False, True])
async def test_code_that_does_not_give_way_is_interrupted_and_parked(
    serve: Serve, stubborn: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(make_app(), shards=1, interrupt=0.3, blocking=0.05) as (client, _):
        runs = await start_innocents(client)
        bad = await client.start("spins", stubborn)
        await bad.signal("go", 1)
        with anyio.fail_after(DEADLINE):
            await until(lambda: is_stuck(bad))
        await innocents_end(client, runs)
        assert f"did not give way for 0.3 s at {__file__}:" in caplog.text
        await bad.terminate("enough")
        with pytest.raises(sf.RunCancelled, match="enough"):
            await bad.result(timeout=DEADLINE)


async def test_a_run_whose_first_line_loops_is_listed_as_stuck(serve: Serve) -> None:
    async with serve(make_app(), shards=1, interrupt=0.3, blocking=0.05) as (client, _):
        bad = await client.start("spins_at_once", id="bad")
        await until(lambda: is_stuck(bad))
        assert [run.id for run in await client.runs(status="stuck")] == ["bad"]
        await bad.cancel("not wanted")
        with pytest.raises(sf.RunCancelled, match="not wanted"):
            await bad.result(timeout=DEADLINE)
