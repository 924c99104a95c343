"""A bug doesn't end a run: it is stuck with its history, and goes on when the code is mended."""

from __future__ import annotations

import pytest

import streamflow as sf
import streamflow.testing as sft

pytestmark = pytest.mark.anyio

app = sf.App()


@app.step
async def price(item: str) -> dict[str, int]:
    return {"amount": len(item)}


def release(version: str) -> sf.App:
    """The shop as it was deployed at some time."""
    shop = sf.App()
    shop.steps.update(app.steps)

    @shop.workflow
    async def order(item: str) -> int:
        found = await price(item)
        return found["amont"] if version == "buggy" else found["amount"]

    return shop


class OrderInvalid(Exception):
    """What the shop raises itself."""


strict = sf.App(parks=(*sf.BUGS, OrderInvalid))
strict.steps.update(app.steps)


@strict.workflow
async def refund(paid: int, amount: int) -> int:
    if amount > paid:
        raise OrderInvalid(f"a refund of {amount}, and {paid} were paid")
    return amount


@strict.workflow(parks=())
async def report(names: list[str]) -> str:
    return names[0]


@strict.workflow
async def lookup(item: str) -> str:
    if item != "tea":
        raise KeyError(item)
    return item


async def test_a_run_whose_code_has_a_bug_goes_on_with_mended_code() -> None:
    async with sft.Sandbox(release("buggy")) as sandbox:
        run: sf.Run[int] = await sandbox.start("order", "tea")
        why = await run.describe()
        assert why.status == "stuck"
        assert why.error == "KeyError: 'amont'"
        assert why.failure is not None
        assert "test_bugs.py" in why.failure.traceback
        sandbox.deploy(release("mended"))
        assert await run.result() == 3
        assert len(sandbox.calls(price)) == 1, "what was recorded is not done again"


async def test_a_test_that_waits_for_it_sees_the_traceback() -> None:
    async with sft.Sandbox(release("buggy")) as sandbox:
        run: sf.Run[int] = await sandbox.start("order", "tea")
        with pytest.raises(sft.Stalled, match=r"other code: it is stuck \(KeyError: 'amont'") as stalled:
            await run.result()
        [note] = stalled.value.__notes__
        assert 'return found["amont"]' in note


def test_what_the_author_raises_fails_the_run() -> None:
    with pytest.raises(sf.RunFailed, match="KeyError: 'rice'"):
        sft.run(lookup, "rice", app=strict)


async def test_a_class_of_ones_own_can_park_a_run() -> None:
    async with sft.Sandbox(strict) as sandbox:
        run = await sandbox.start(refund, 3, 5)
        assert (await run.describe()).reason.startswith("OrderInvalid: a refund of 5, and 3 were paid (File ")


def test_a_workflow_may_fail_for_each_bug() -> None:
    with pytest.raises(sf.RunFailed, match="IndexError"):
        sft.run(report, [], app=strict)


async def test_a_run_that_is_parked_survives_a_crash_at_every_event() -> None:
    async def mends(sandbox: sft.Sandbox) -> int:
        run: sf.Run[int] = await sandbox.start("order", "tea", id="order")
        assert (await run.describe()).status == "stuck"
        sandbox.deploy(release("mended"))
        return await run.result()

    survived = await sft.survives_crashes(release("buggy"), mends)
    assert survived.result == 3
    assert survived.points >= 3


RATES: dict[str, int] = {}
"""What isn't code: as a file, or an environment variable."""


def shop() -> sf.App:
    made = sf.App()
    made.steps.update(app.steps)

    @made.workflow
    async def convert(item: str) -> int:
        found = await price(item)
        return found["amount"] * RATES["chf"]

    return made


async def converts(sandbox: sft.Sandbox) -> int:
    RATES.clear()
    run: sf.Run[int] = await sandbox.start("convert", "tea", id="tea")
    with pytest.raises(sf.NotRetried, match="is still stuck: KeyError: 'chf'"):
        await run.retry()
    RATES["chf"] = 2
    assert (await run.describe()).status == "stuck", "nobody has said that it is mended"
    assert (await run.retry()).kept == 1
    return await run.result()


async def test_what_was_no_mistake_in_code_is_tried_again_on_request() -> None:
    async with sft.Sandbox(shop()) as sandbox:
        assert await converts(sandbox) == 6
        assert len(sandbox.calls(price)) == 1


async def test_a_run_that_is_tried_again_survives_a_crash_at_every_event() -> None:
    survived = await sft.survives_crashes(shop(), converts)
    assert survived.result == 6
    assert survived.points >= 4
