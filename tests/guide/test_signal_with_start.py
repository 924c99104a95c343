"""A signal or a question for a run that may have to be started first: both in one step, and once."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any, cast

import pytest

import streamflow as sf
import streamflow.testing as sft
from tests.guide.conftest import Serve

pytestmark = pytest.mark.anyio

app = sf.App()
add = sf.SignalDefinition("add", str)
how_many = sf.QuestionDefinition("how-many", None, int)
CHECK_OUT = "check out"


@app.workflow(signals=[add], questions=[how_many])
async def cart(customer: str) -> list[str]:
    """Collects what is put into it, until somebody checks out."""
    items: list[str] = []
    while CHECK_OUT not in items:
        arrived = await sf.race(sf.signal(add), sf.question(how_many))
        if isinstance(arrived, str):
            items.append(arrived)
        else:
            arrived.answer(len(items))
    return items[:-1]


@app.workflow
async def other() -> None:
    await sf.signal("never")


async def test_the_first_signal_starts_the_run_and_the_next_ones_find_it(serve: Serve) -> None:
    async with serve(app) as client:
        first = await client.signal_with_start(cart, "kim", id="kim", signal=add, value="shoes")
        second = await client.signal_with_start(cart, "kim", id="kim", signal=add, value="socks")
        await client.signal_with_start("cart", "kim", id="kim", signal="add", value=CHECK_OUT)
        assert (first.created, second.created) == (True, False)
        assert await first.result(10) == ["shoes", "socks"]


async def test_of_many_at_once_one_starts_the_run_and_none_is_lost(serve: Serve) -> None:
    async with serve(app) as client:
        items = [f"item {i}" for i in range(50)]
        runs = await asyncio.gather(
            *(client.signal_with_start(cart, "kim", id="kim", signal=add, value=item) for item in items)
        )
        assert sum(run.created for run in runs) == 1
        await runs[0].signal(add, CHECK_OUT)
        assert sorted(await runs[0].result(10)) == sorted(items)


async def test_the_same_idempotency_id_is_the_same_signal(serve: Serve) -> None:
    async with serve(app) as client:
        run = client.run("kim")
        for _ in range(3):
            await client.signal_with_start(cart, "kim", id="kim", signal=add, value="shoes", idempotency_id="c1")
            await run.signal(add, "socks", idempotency_id="c2")
        await run.signal(add, CHECK_OUT)
        assert await run.result(10) == ["shoes", "socks"]
        again = await client.signal_with_start(cart, "kim", id="kim", signal=add, value="shoes", idempotency_id="c1")
        assert not again.created, "also when the run that had it has ended: no new one begins"
        assert await again.result(10) == ["shoes", "socks"]


async def test_after_its_time_an_idempotency_id_is_a_new_one() -> None:
    async with sft.Sandbox(app) as sandbox:
        run = sandbox.run("kim")
        for _ in range(2):
            await sandbox.signal_with_start(
                cart, "kim", id="kim", signal=add, value="shoes", idempotency_id="c1", remember=timedelta(hours=1)
            )
            await sandbox.sleep(3601)
        await run.signal(add, CHECK_OUT)
        assert await run.result() == ["shoes", "shoes"]


async def test_an_ended_run_is_replaced_or_the_signal_is_refused(serve: Serve) -> None:
    async with serve(app) as client:
        first = await client.signal_with_start(cart, "kim", id="kim", signal=add, value=CHECK_OUT)
        assert await first.result(10) == []
        with pytest.raises(sf.RunEnded, match="run kim has ended"):
            await client.signal_with_start(cart, "kim", id="kim", signal=add, value="shoes", on_ended="reject")
        second = await client.signal_with_start(cart, "kim", id="kim", signal=add, value="shoes")
        assert second.created
        await second.signal(add, CHECK_OUT)
        assert await second.result(10) == ["shoes"]


async def test_a_run_of_another_workflow_gets_nothing(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(other, id="kim")
        with pytest.raises(sf.RunConflict, match="belongs to a run of workflow other, not cart"):
            await client.signal_with_start(cart, "kim", id="kim", signal=add, value="shoes")
        assert len(await run.history()) <= 1


async def test_a_question_starts_the_run_that_answers_it(serve: Serve) -> None:
    async with serve(app) as client:
        assert await client.ask_with_start(cart, "kim", id="kim", question=how_many, value=None, timeout=10) == 0
        await client.run("kim").signal(add, "shoes")
        assert await client.ask_with_start(cart, "kim", id="kim", question=how_many, value=None, timeout=10) == 1


async def test_a_question_with_an_idempotency_id_is_asked_once(serve: Serve) -> None:
    async with serve(app) as client:

        async def ask() -> Any:
            return await client.ask_with_start(
                "cart", "kim", id="kim", question="how-many", timeout=10, type=int, idempotency_id="q1"
            )

        assert await asyncio.gather(*(ask() for _ in range(5))) == [0] * 5
        await client.run("kim").signal(add, "shoes")
        assert await ask() == 0, "the answer of then"
        events = [event for transition in await client.run("kim").history() for event in transition.events]
        assert sum(isinstance(event, sf.events.AskAnswered) for event in events) == 1


async def test_nothing_is_sent_if_the_value_or_the_arguments_do_not_fit(serve: Serve) -> None:
    async with serve(app) as client:
        with pytest.raises(sf.PayloadInvalid):
            await client.signal_with_start("cart", "kim", id="kim", signal=add, value=cast("Any", 17))
        with pytest.raises(sf.UsageError, match="It declares: add"):
            await client.signal_with_start(cart, "kim", id="kim", signal="ad", value="x")
        with pytest.raises(sf.UsageError, match="on_ended must be one of new, reject"):
            await client.signal_with_start(cart, "kim", id="kim", signal=add, value="x", on_ended=cast("Any", "old"))
        with pytest.raises(sf.UsageError, match="1 to 1000 characters"):
            await client.signal_with_start(cart, "kim", id="kim", signal=add, value="x", idempotency_id="")
        assert await client.runs() == []


async def test_the_sandbox_does_the_same() -> None:
    async with sft.Sandbox(app) as sandbox:
        run = sandbox.run("kim")
        for item in ("shoes", "shoes", CHECK_OUT):
            await sandbox.signal_with_start(
                cart, "kim", id="kim", signal=add, value=item, idempotency_id=f"click {item}"
            )
        assert await run.result() == ["shoes"]
        assert await sandbox.ask_with_start(cart, "kim", id="kim", question=how_many, value=None) == 0
        await (await sandbox.start(other, id="ended")).terminate()
        with pytest.raises(sf.RunEnded):
            await sandbox.signal_with_start(other, id="ended", signal="x", on_ended="reject")
