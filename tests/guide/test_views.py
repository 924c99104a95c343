"""Views of one's own: what the agents of each tenant cost, counted while they run."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest

import streamflow as sf
import streamflow.testing as sft
from tests.guide.conftest import Serve, Work
from tests.support.waiting import until

pytestmark = pytest.mark.anyio

app = sf.App()
PRICES = {"large": 30, "small": 1}


@app.step(retry=sf.Retry(attempts=2, initial=0.01))
async def ask(model: str, prompt: str) -> str:
    sf.record("tokens", len(prompt), model=model)
    if prompt == "fail once" and sf.step_info().attempt == 1:
        raise ValueError("no answer")
    return prompt.upper()


@app.step(process=True)
def embed(text: str) -> int:
    sf.record("tokens", len(text), model="embedding")
    return len(text)


@app.step(queue="gpu")
async def render(text: str) -> int:
    sf.record("tokens", len(text), model="vision")
    return len(text)


@app.workflow
async def drawing(text: str) -> int:
    return await render(text)


@app.workflow
async def agent(prompt: str) -> str:
    draft = await ask("small", prompt)
    answer = await ask("large", draft)
    sf.record("answers", 1)
    return answer


@app.workflow
async def indexing(text: str) -> int:
    return await embed(text)


app.view(sf.total("tokens"), name="tokens", by=["model", "tenant"], window="day")
app.view(sf.count(), name="ended", kinds=[sf.events.RunCompleted], by=["workflow"])
app.view(sf.histogram(lambda event: getattr(event.event, "ms", None)), name="latency", kinds=[sf.events.StepCompleted],
         by=["step", "workflow"], window="hour")  # fmt: skip


class Bill(msgspec.Struct):
    cents: int = 0
    calls: int = 0


@app.view(name="bill", records="tokens", by=lambda event: {"tenant": event.tenant.upper()})
class TotalBill:
    """A monoid of one's own, with a state that has a type."""

    def zero(self) -> Bill:
        return Bill()

    def fold(self, state: Bill, event: sf.ViewEvent) -> Bill:
        record = event.event
        assert isinstance(record, sf.events.Recorded)
        return Bill(state.cents + int(record.value) * PRICES.get(record.labels["model"], 0), state.calls + 1)

    def merge(self, one: Bill, other: Bill) -> Bill:
        return Bill(one.cents + other.cents, one.calls + other.calls)

    def value(self, state: Bill) -> int:
        return state.cents


async def counted(client: sf.Client, view: str, events: int) -> sf.ViewReading:
    """The view, when it has counted so many events."""

    async def has_counted() -> bool:
        return view in await client.views() and (await client.view(view)).events == events

    await until(has_counted)
    return await client.view(view)


async def test_a_view_has_the_cost_of_each_model_and_tenant(serve: Serve) -> None:
    async with serve(app) as client:
        for tenant, prompt in (("acme", "four"), ("acme", "sixsix"), ("beta", "two")):
            await (await client.start(agent, prompt, tenant=tenant)).result()
        found = await counted(client, "tokens", 6)
        assert [(row.key["model"], row.key["tenant"], row.value) for row in found.rows] == [
            ("large", "acme", 10),
            ("small", "acme", 10),
            ("large", "beta", 3),
            ("small", "beta", 3),
        ]
        assert found.counts_from is None, "all that was ever recorded"
        assert (await client.view("tokens", tenant="beta")).sum() == 6
        assert (await client.view("tokens", since=datetime(2200, 1, 1, tzinfo=UTC))).windows == []


async def test_a_view_of_events_that_are_recorded_anyway(serve: Serve) -> None:
    async with serve(app) as client:
        await (await client.start(agent, "x")).result()
        await (await client.start(agent, "y")).result()
        ended = await counted(client, "ended", 2)
        assert [(row.key, row.value) for row in ended.rows] == [({"workflow": "agent"}, 2)]
        latency = (await counted(client, "latency", 4)).rows[0]
        assert (latency.key, latency.value) == ({"step": "ask", "workflow": "agent"}, 4)
        assert latency.state["count"] == 4
        assert 0 <= latency.state["p50"] <= latency.state["max"]


async def test_an_aggregate_of_ones_own_keeps_a_state_with_a_type(serve: Serve) -> None:
    async with serve(app) as client:
        await (await client.start(agent, "four", tenant="acme")).result()
        found = await counted(client, "bill", 2)
        assert [(row.key, row.value, row.state) for row in found.rows] == [
            ({"tenant": "ACME"}, 4 * 31, {"cents": 4 * 31, "calls": 2})
        ]


async def test_a_failed_attempt_was_paid_too(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(agent, "fail once", tenant="acme")
        await run.result()
        found = await counted(client, "tokens", 3)
        assert {row.key["model"]: row.value for row in found.rows} == {"small": 18, "large": 9}
        recorded = [event async for _, event in run.events() if isinstance(event, sf.events.Recorded)]
        assert [(event.step, event.attempt) for event in recorded] == [("ask", 1), ("ask", 2), ("ask", 1), ("", 0)]


async def test_a_step_in_a_process_records_as_well(serve: Serve) -> None:
    async with serve(app) as client:
        await (await client.start(indexing, "some text")).result()
        assert [row.value for row in (await counted(client, "tokens", 1)).rows] == [9]


async def test_a_step_at_a_worker_records_as_well(serve: Serve, work: Work) -> None:
    async with serve(app) as client, work(app, "gpu"):
        await (await client.start(drawing, "a cat")).result()
        assert [(row.key["model"], row.value) for row in (await counted(client, "tokens", 1)).rows] == [("vision", 5)]


async def test_a_view_that_nobody_has_is_refused_with_those_there_are(serve: Serve) -> None:
    async with serve(app) as client:
        await (await client.start(agent, "x")).result()
        await counted(client, "tokens", 2)
        with pytest.raises(sf.UnknownView, match=r"tokn.*known views: .*tokens"):
            await client.view("tokn")


async def test_any_label_filters_also_one_that_an_argument_is_called() -> None:
    own = sf.App()

    @own.workflow
    async def buying(year: int) -> None:
        sf.record("cents", 5, since=year, labels="x")

    own.view(sf.total("cents"), name="paid", by=["since", "labels"])
    async with sft.Sandbox(own) as sandbox:
        for year in (2024, 2025):
            await (await sandbox.start(buying, year)).result()
        found = await sandbox.view("paid", labels={"since": 2024, "labels": "x"})
        assert [row.key["since"] for row in found.rows] == ["2024"]
        with pytest.raises(sf.UsageError, match="for a label of that name"):
            await sandbox.view("paid", since=2024)  # pyright: ignore[reportArgumentType]


async def test_the_testing_kit_counts_without_a_server() -> None:
    async with sft.Sandbox(app) as sandbox:
        for tenant in ("acme", "beta"):
            await (await sandbox.start(agent, "fail once", tenant=tenant)).result()
        found = await sandbox.view("tokens", tenant="acme")
        assert {row.key["model"]: row.value for row in found.rows} == {"small": 18, "large": 9}
        bill = await sandbox.view("bill")
        assert bill.rows[0].state == {"cents": 18 + 270, "calls": 3}
        assert await sandbox.views() == ["bill", "ended", "latency", "tokens"]
        with pytest.raises(sf.UnknownView, match="known views"):
            await sandbox.view("cost")
