"""A sandbox replaces children by stubs: a parent is tested without the code of its children."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

import streamflow as sf
import streamflow.testing as sft

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def no_unknown_keys_are_left() -> None:
    """In place of the fixture that looks at the server."""


app = sf.App()


@app.step
async def log(text: str) -> str:
    return text


@app.workflow
async def pay(customer: str, cents: int = 100) -> int:
    raise AssertionError("a stubbed child runs none of its code")


@app.workflow
async def ship(customer: str, *, fast: bool = False) -> str:
    return await log(f"shipped to {customer}")


@app.workflow
async def order(customer: str) -> list[Any]:
    try:
        paid = await pay(customer, cents=250)
    except sf.ChildFailed as error:
        return ["failed", error.failure.kind, error.failure.message, error.workflow]
    return [paid, await ship(customer, fast=True)]


@app.workflow
async def hurried(customer: str) -> str:
    try:
        async with sf.timeout(60):
            await pay(customer)
    except TimeoutError:
        return "too late"
    return "paid"


@app.reducer
def counted(state: int, event: sf.Event) -> sf.Decision:
    raise AssertionError("a stubbed child runs none of its code")


@app.workflow
async def counting() -> Any:
    return await counted({"from": 1})


@sf.App().workflow
async def unknown() -> None: ...


@pytest.fixture
async def sandbox() -> AsyncIterator[sft.Sandbox]:
    async with sft.Sandbox(app) as sandbox:
        yield sandbox


async def test_a_child_returns_what_its_stub_gives(sandbox: sft.Sandbox) -> None:
    sandbox.stub(pay, returns=7)
    run = await sandbox.start(order, "ada")
    assert await run.result() == [7, "shipped to ada"]
    (call,) = sandbox.calls(pay)
    assert (call.args, call.kwargs) == (("ada", 250), {})
    child = await sandbox.run(call.run_id).describe()
    assert (child.workflow, child.status, child.parent) == ("pay", "completed", run.id)


async def test_a_function_gets_the_arguments_of_the_child(sandbox: sft.Sandbox) -> None:
    async def shipped(customer: str, *, fast: bool) -> str:
        return f"{customer} {fast}"

    sandbox.stub(pay, lambda customer, cents: cents * 2)  # pyright: ignore[reportUnknownLambdaType]
    sandbox.stub("ship", shipped)
    assert await (await sandbox.start(order, "ada")).result() == [500, "ada True"]
    assert sandbox.calls(log) == []


async def test_the_parent_sees_the_exception_of_the_stub_as_the_child_s(sandbox: sft.Sandbox) -> None:
    sandbox.stub(pay, raises=ConnectionError("down"))
    run = await sandbox.start(order, "ada")
    assert await run.result() == ["failed", "ConnectionError", "down", "pay"]
    (failed,) = await sandbox.runs(status="failed")
    assert failed.error == "ConnectionError: down"


async def test_times_counts_children_and_then_the_stub_before_applies(sandbox: sft.Sandbox) -> None:
    sandbox.stub(pay, returns=1)
    sandbox.stub(pay, returns=2, times=1)
    results = [(await (await sandbox.start(order, "ada")).result())[0] for _ in range(3)]
    assert results == [2, 1, 1]


async def test_a_child_takes_virtual_time_and_can_be_cancelled(sandbox: sft.Sandbox) -> None:
    sandbox.stub(pay, returns=1, takes=timedelta(minutes=2))
    run = await sandbox.start(hurried, "ada")
    begun = sandbox.now
    assert await run.result() == "too late"
    assert sandbox.now - begun == timedelta(minutes=1)
    (child,) = await sandbox.runs(workflow="pay")
    assert child.status == "cancelled"
    sandbox.stub(pay, returns=1, takes=30)
    assert await (await sandbox.start(hurried, "ada")).result() == "paid"


async def test_a_run_that_the_test_starts_itself_is_not_stubbed(sandbox: sft.Sandbox) -> None:
    sandbox.stub(ship, returns="stub")
    assert await (await sandbox.start(ship, "ada")).result() == "shipped to ada"
    assert sandbox.calls(ship) == []


async def test_a_reducer_is_stubbed_as_a_workflow_is(sandbox: sft.Sandbox) -> None:
    sandbox.stub(counted, returns={"to": 3})
    assert await (await sandbox.start(counting)).result() == {"to": 3}
    assert sandbox.calls(counted)[0].args == ({"from": 1},)


async def test_what_does_not_fit_is_refused_at_the_stub(sandbox: sft.Sandbox) -> None:
    with pytest.raises(sf.PayloadInvalid, match="result of workflow pay is not a int"):
        sandbox.stub(pay, returns="much")  # pyright: ignore[reportArgumentType]
    with pytest.raises(sf.UsageError, match="a stub of workflow pay must have exactly one of"):
        sandbox.stub(pay, takes=3)
    with pytest.raises(sf.UsageError, match="step shop is not registered"):
        sandbox.stub("shop", returns=1)
    with pytest.raises(sf.UsageError, match="workflow unknown is not registered"):
        sandbox.stub(unknown, returns=None)
    sandbox.stub(pay, lambda customer, cents: "much")  # pyright: ignore[reportUnknownLambdaType, reportArgumentType]
    failed = await (await sandbox.start(order, "ada")).result()
    assert failed[:2] == ["failed", "PayloadInvalid"]
    sandbox.stub(pay, raises=KeyError("no card"))
    assert (await (await sandbox.start(order, "bo")).result())[:2] == ["failed", "KeyError"]


@pytest.mark.parametrize("raises", [None, ValueError("no")], ids=["returns", "raises"])
async def test_the_outcome_is_the_same_after_a_crash_at_each_event(raises: Exception | None) -> None:
    async def scenario(sandbox: sft.Sandbox) -> list[Any]:
        if raises is None:
            sandbox.stub(pay, returns=7, takes=10)
        else:
            sandbox.stub(pay, raises=raises, takes=10)
        return await (await sandbox.start(order, "ada")).result()

    survived = await sft.survives_crashes(app, scenario)
    assert survived.result == ([7, "shipped to ada"] if raises is None else ["failed", "ValueError", "no", "pay"])
    assert survived.points >= 4


def test_run_takes_stubs_of_children() -> None:
    assert sft.run(order, "ada", app=app, stubs={pay: 3, ship: "sent"}) == [3, "sent"]
