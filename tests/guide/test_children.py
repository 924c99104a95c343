"""Child runs: workflows that a workflow awaits. They live on shards of their own."""

from __future__ import annotations

from typing import Any

import pytest

import streamflow as sf
from streamflow import events
from tests.guide.conftest import Serve
from tests.support.waiting import child_of, happened, reduced

pytestmark = pytest.mark.anyio

app = sf.App()


@app.step
async def double(n: int) -> int:
    return 2 * n


@app.workflow
async def leaf(n: int) -> int:
    return await double(n)


@app.workflow
async def tree(depth: int) -> int:
    """A binary tree of runs; gives the number of its leaves."""
    if depth == 0:
        return 1
    return sum(await sf.gather(tree(depth - 1), tree(depth - 1)))


@app.workflow
async def many(count: int) -> list[int]:
    return await sf.gather(*(leaf(n) for n in range(count)))


@app.workflow
async def doomed() -> None:
    raise ValueError("no way")


@app.workflow
async def parent_of_doomed() -> list[str]:
    try:
        await doomed()
    except sf.ChildFailed as error:
        return [error.run_id, error.workflow, str(error.failure)]
    return []


@app.workflow
async def patient() -> str:
    return await sf.signal("go", str)


@app.workflow
async def waits_for_children() -> list[str]:
    return list(await sf.gather(patient(), patient(), waits_for_grandchild()))


@app.workflow
async def waits_for_grandchild() -> str:
    return await patient()


@app.workflow
async def named_child(run_id: str) -> list[Any]:
    try:
        return [await leaf.options(id=run_id)(21)]
    except sf.ChildFailed as error:
        return [error.failure.kind, error.run_id]


@app.workflow
async def who() -> list[str]:
    info = sf.info()
    return [info.run_id, info.parent, info.workflow]


@app.workflow
async def asks_who() -> list[str]:
    return await who()


async def test_a_childs_result_is_the_value_of_its_await(serve: Serve) -> None:
    async with serve(app) as client:
        assert await (await client.start(many, 3)).result(10) == [0, 2, 4]


async def test_children_have_children(serve: Serve) -> None:
    async with serve(app) as client:
        assert await (await client.start(tree, 5)).result(10) == 32
        assert len(await client.runs(workflow="tree", status="completed", limit=100)) == 63


async def test_a_child_knows_its_id_its_workflow_and_its_parent(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(asks_who, id="p")
        assert await run.result(10) == [await child_of(client, "p", 1), "p", "who"]


async def test_the_failure_of_a_child_is_an_exception_with_its_id_and_error(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(parent_of_doomed, id="p")
        run_id = await child_of(client, "p", 1)
        assert run_id.startswith("p.1~")
        assert await run.result(10) == [run_id, "doomed", "ValueError: no way"]
        assert (await client.run(run_id).describe()).status is sf.Status.FAILED


async def test_the_end_of_a_child_by_cancelling_is_a_failure_for_its_parent(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(waits_for_grandchild, id="p")
        child = client.run(await child_of(client, "p", 1))
        await reduced(client, child.id)
        await child.cancel("not needed")
        with pytest.raises(sf.RunFailed, match=rf"child run {child.id} \(patient\) failed: RunCancelled: not needed"):
            await run.result(10)
        assert (await happened(run, events.ChildFailed)).cancelled


async def test_cancelling_a_parent_cancels_all_below_it(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(waits_for_children, id="p")
        below = [await child_of(client, "p", *numbers) for numbers in [(1,), (2,), (3,), (3, 1)]]
        for run_id in below:
            await reduced(client, run_id)
        await run.cancel("enough")
        with pytest.raises(sf.RunCancelled, match="enough"):
            await run.result(10)
        for run_id in below:
            with pytest.raises(sf.RunCancelled, match="enough"):
                await client.run(run_id).result(10)


async def test_a_parent_that_fails_cancels_the_children_that_still_run(serve: Serve) -> None:
    @(local := sf.App()).workflow
    async def flow() -> None:
        await sf.gather(patient(), doomed())

    local.workflows |= {"patient": patient, "doomed": doomed}
    async with serve(local) as client:
        run = await client.start(flow, id="p")
        with pytest.raises(sf.RunFailed, match="no way"):
            await run.result(10)
        with pytest.raises(sf.RunCancelled):
            await client.run(await child_of(client, "p", 1)).result(10)


@app.workflow
async def leaves(policy: str) -> str:
    await sf.start(patient, id="the-child", on_parent_end=policy)  # type: ignore[arg-type]
    return "the parent's result"


async def test_a_child_that_was_started_detached_outlives_its_parent(serve: Serve) -> None:
    async with serve(app) as client:
        assert await (await client.start(leaves, "abandon")).result(10) == "the parent's result"
        await reduced(client, "the-child")  # its start is a message, which comes later than the parent's result
        child = client.run("the-child", str)
        await child.signal("go", "alone")
        assert await child.result(10) == "alone"


async def test_a_parent_may_wait_for_its_children_at_its_end(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(leaves, "wait")
        await reduced(client, "the-child")
        assert (await run.describe()).status is sf.Status.RUNNING
        await client.run("the-child").signal("go", "done")
        assert await run.result(10) == "the parent's result"
        assert await client.run("the-child", str).result(10) == "done"


async def test_by_default_children_are_cancelled_when_their_parent_ends(serve: Serve) -> None:
    async with serve(app) as client:
        assert await (await client.start(leaves, "cancel")).result(10) == "the parent's result"
        with pytest.raises(sf.RunCancelled, match=r"the parent run .* ended"):
            await client.run("the-child").result(10)


@app.workflow
async def keeps_options() -> list[str]:
    first = await sf.start(patient.options(id="audit-1", tenant="acme", on_parent_end="abandon"))
    second = await sf.start(patient.options(id="audit-2", tenant="acme"), on_parent_end="abandon")
    third = await sf.start(patient.options(id="lost", tenant="lost", on_parent_end="abandon"), id="audit-3", tenant="b")
    fourth = await sf.start(patient.options(id="audit-4").options(on_parent_end="abandon").options(tenant="acme"))
    return [first.id, second.id, third.id, fourth.id]


async def test_options_of_a_child_add_up_and_sf_start_keeps_them(serve: Serve) -> None:
    async with serve(app) as client:
        parent = await client.start(keeps_options)
        assert await parent.result(10) == ["audit-1", "audit-2", "audit-3", "audit-4"]
        assert [(await client.run(run_id).describe()).tenant for run_id in await parent.result(10)] == [
            "acme",
            "acme",
            "b",
            "acme",
        ]
        for run_id in await parent.result(10):
            await client.run(run_id).signal("go", "on its own")
            assert await client.run(run_id).result(10) == "on its own"


@app.workflow
async def by_name(*, customer: str, count: int = 1) -> str:
    return f"{count} for {customer}"


@app.workflow
async def starts_by_name() -> str:
    return await (await sf.start(by_name, count=3, customer="acme")).result()


async def test_a_run_can_be_started_with_keyword_arguments(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(by_name.options(id="order-1", tenant="acme"), customer="acme", count=2)
        assert (run.id, await run.result(10)) == ("order-1", "2 for acme")
        assert (await run.describe()).tenant == "acme"
        assert await (await client.start(by_name, customer="b")).result(10) == "1 for b"
        assert await (await client.start(starts_by_name)).result(10) == "3 for acme"
        with pytest.raises(TypeError, match="costumer"):
            await client.start(by_name, customer="a", costumer="b")  # type: ignore[call-arg]
        with pytest.raises(sf.UsageError, match="pass customer by position"):
            await client.start("by_name", customer="acme")  # type: ignore[call-overload]


async def test_a_run_can_have_ten_thousand_children(serve: Serve) -> None:
    local = sf.App()

    @local.workflow
    async def one(n: int) -> int:
        return n

    @local.workflow
    async def all_of_them(count: int) -> int:
        return sum(await sf.gather(*(one(n) for n in range(count))))

    async with serve(local) as client:
        run = await client.start(all_of_them, 10_000)
        assert await run.result(40) == sum(range(10_000))
        assert len(await run.history()) < 1000, "many outcomes are one transition"


async def test_a_child_can_be_given_an_id(serve: Serve) -> None:
    async with serve(app) as client:
        assert await (await client.start(named_child, "the-leaf")).result(10) == [42]
        assert await client.run("the-leaf", int).result(10) == 42


async def test_the_id_of_another_run_is_refused_to_a_child(serve: Serve) -> None:
    async with serve(app) as client:
        taken = await client.start(patient, id="taken")
        assert await (await client.start(named_child, "taken")).result(10) == ["RunConflict", "taken"]
        assert (await taken.describe()).status.value in ("pending", "running")
