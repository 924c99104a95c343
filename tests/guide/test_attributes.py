"""Attributes: a few small values that a run gives itself, and by which it is found."""

from __future__ import annotations

from typing import Any

import pytest

import streamflow as sf
from streamflow.events import SignalReceived, StepCompleted
from tests.guide.conftest import Serve
from tests.support.waiting import happened, reduced, status_of

pytestmark = pytest.mark.anyio

app = sf.App()


@app.step
async def weigh(order: str) -> int:
    return len(order)


@app.workflow
async def order(customer: str, priority: int = 1) -> int:
    sf.set_attributes(customer=customer, priority=priority)
    weight = await weigh(customer)
    sf.set_attributes(weight=weight, priority=None)
    if await sf.signal("ship", bool):
        sf.set_attributes(shipped=True)
    return weight


@app.workflow
async def wrong(kind: str) -> str:
    sf.set_attributes(before="kept")
    try:
        match kind:
            case "type":
                sf.set_attributes(items=["a list"])  # pyright: ignore
            case "text":
                sf.set_attributes(text="x" * 257)
            case "number":
                sf.set_attributes(ratio=float("nan"))
            case "name":
                sf.set_attributes(**{"no spaces": 1})
            case "many":
                sf.set_attributes(**{f"a{number}": number for number in range(32)})
            case _:
                sf.set_attributes(**{f"a{number}": "y" * 250 for number in range(9)})
    except sf.UsageError as error:
        await sf.signal("go")
        return str(error)
    return "nothing was wrong"


@app.reducer
def basket(state: int, event: sf.Event) -> sf.Decision:
    match event:
        case sf.Signal(name="add"):
            sf.set_attributes(items=state + 1)
            return sf.Decision(state + 1)
        case sf.Signal(name="close"):
            return sf.Decision(state, [sf.Complete(state)])
        case _:
            sf.set_attributes(kind="basket")
            return sf.Decision(state)


async def found(client: sf.Client, **filters: Any) -> list[str]:
    return [run.id for run in await client.runs(**filters)]


async def test_runs_are_found_by_their_attributes(serve: Serve) -> None:
    async with serve(app) as client:
        for number, customer in enumerate(("acme", "acme", "globex")):
            await happened(await client.start(order, customer, id=f"o{number}"), StepCompleted)
        assert set(await found(client, attributes={"customer": "acme"})) == {"o0", "o1"}
        assert await found(client, attributes={"customer": "globex", "weight": 6}) == ["o2"]
        assert await found(client, attributes={"customer": "globex", "weight": 4}) == []
        [summary] = await client.runs(attributes={"customer": "globex"})
        assert summary.attributes == {"customer": "globex", "weight": 6}
        assert (await client.run("o2").describe()).attributes == summary.attributes


async def test_a_changed_attribute_is_found_under_its_new_value_only(serve: Serve) -> None:
    """`None` removes an attribute."""
    async with serve(app) as client:
        run = await client.start(basket, id="b")
        await run.signal("add")
        await happened(run, SignalReceived)
        assert await found(client, attributes={"items": 1, "kind": "basket"}) == ["b"]
        await run.signal("add")
        await happened(run, SignalReceived, 2)
        assert await found(client, attributes={"items": 1}) == []
        assert await found(client, attributes={"items": 2}) == ["b"]
        other = await client.start(order, "acme", 5, id="o")
        await happened(other, StepCompleted)
        assert await found(client, attributes={"priority": 5}) == []
        assert "priority" not in (await other.describe()).attributes


async def test_filters_apply_together(serve: Serve) -> None:
    async with serve(app) as client:
        runs = [
            await client.start(order, "acme", id=f"o{number}", tenant=tenant) for number, tenant in enumerate("aab")
        ]
        for run in runs:
            await happened(run, StepCompleted)
        await runs[0].signal("ship", True)
        assert await runs[0].result(10) == 4
        acme = {"customer": "acme"}
        assert await found(client, attributes=acme, status="completed") == ["o0"]
        assert await found(client, attributes=acme, status="running", tenant="a") == ["o1"]
        assert set(await found(client, attributes=acme, workflow="order")) == {"o0", "o1", "o2"}
        assert await found(client, attributes=acme, workflow="basket") == []
        assert len(await found(client, attributes=acme, limit=2)) == 2


async def test_the_newest_start_comes_first(serve: Serve) -> None:
    async with serve(app) as client:
        for number in range(3):
            await reduced(client, (await client.start(order, "acme", id=f"o{number}")).id)
        newest_first = [run.created for run in await client.runs(attributes={"customer": "acme"})]
        assert newest_first == sorted(newest_first, reverse=True)


async def test_numbers_texts_and_booleans_are_different_values(serve: Serve) -> None:
    other = sf.App()

    @other.workflow
    async def tag(number: int) -> None:
        sf.set_attributes(value=[1, 1.0, "1", True, "true", "a:b/ü {x}"][number])

    async with serve(other) as client:
        for number in range(6):
            await (await client.start(tag, number, id=f"t{number}")).result(10)
        for number, value in enumerate([1, 1.0, "1", True, "true", "a:b/ü {x}"]):
            assert await found(client, attributes={"value": value}) == [f"t{number}"]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("type", "attribute items must be a str, int, float, bool or None, got list"),
        ("text", "attribute text has 257 characters"),
        ("number", "attribute ratio must be a finite number, got nan"),
        ("name", "attribute 'no spaces' is not allowed"),
        ("many", "at most 32 attributes, this change would make 33"),
        ("large", "the attributes of the run have"),
    ],
)
async def test_what_cannot_be_an_attribute_is_refused_where_it_is_set(serve: Serve, kind: str, reason: str) -> None:
    """Again when a replay sets it."""
    async with serve(app, crash=True) as client:
        run = await client.start(wrong, kind, id="w")
        await reduced(client, "w")
    async with serve(app):
        await run.signal("go")
        assert reason in await run.result(10)
    assert (await run.describe()).attributes == {"before": "kept"}


async def test_attributes_survive_the_death_of_a_daemon_and_are_not_set_twice(serve: Serve) -> None:
    async with serve(app, crash=True) as client:
        run, reducer = await client.start(order, "acme", id="o"), await client.start(basket, id="b")
        await happened(run, StepCompleted)
        await reducer.signal("add")
        await happened(reducer, SignalReceived)
    async with serve(app):
        assert await found(client, attributes={"customer": "acme", "weight": 4}) == ["o"]
        await run.signal("ship", True)
        await run.result(10)
        await reducer.signal("add")
        await happened(reducer, SignalReceived, 2)
        assert (await run.describe()).attributes == {"customer": "acme", "weight": 4, "shipped": True}
        assert (await reducer.describe()).attributes == {"kind": "basket", "items": 2}
        assert await found(client, attributes={"items": 1}) == []


async def test_an_ended_run_is_found_until_it_is_forgotten(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(basket, id="b")
        await run.signal("close")
        await run.result(10)
        assert await found(client, attributes={"kind": "basket"}) == ["b"]
        assert await client.forget("b")
        assert await found(client, attributes={"kind": "basket"}) == []


async def test_a_parked_run_keeps_its_attributes(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(order, "acme", id="o")
        await happened(run, StepCompleted)
    without = sf.App()
    async with serve(without):
        await run.signal("ship", True)
        await status_of(run, sf.Status.STUCK)
        assert await found(client, attributes={"customer": "acme"}, status="stuck") == ["o"]


async def test_filters_that_no_run_can_have_are_errors(serve: Serve) -> None:
    async with serve(app) as client:
        for attributes in ({"customer": None}, {"customer": ["acme"]}, {"no spaces": 1}):
            with pytest.raises(sf.UsageError):
                await client.runs(attributes=attributes)  # pyright: ignore
