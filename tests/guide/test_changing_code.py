"""Code changes while runs are open: `sf.patched`, `version=`, and what a deploy does. (Histories that no longer fit are
in `test_divergence.py`, replays before a deploy in `test_replaying.py`.)"""

from __future__ import annotations

from typing import Any

import pytest

import streamflow as sf
from streamflow.events import RunStuck, StepCompleted, StepRetrying
from tests.guide.conftest import Serve, Work
from tests.support.waiting import DEADLINE, happened, names_of, status_of

pytestmark = pytest.mark.anyio


def with_steps() -> sf.App:
    app = sf.App()

    async def act() -> str:
        return sf.step_info().step

    for name in ("pack", "weigh", "send"):
        app.step(name=name)(act)
    return app


def before() -> sf.App:
    app = with_steps()

    @app.workflow
    async def order() -> list[str]:
        done = [await app.steps["pack"]()]
        await sf.signal("go")
        return [*done, await app.steps["send"]()]

    return app


def patched() -> sf.App:
    """The same with a step more, for runs that hadn't come so far."""
    app = with_steps()

    @app.workflow
    async def order() -> list[str]:
        done = [await app.steps["pack"]()]
        if sf.patched("weigh"):
            done.append(await app.steps["weigh"]())
        await sf.signal("go")
        return [*done, await app.steps["send"]()]

    return app


def cleaned_up() -> sf.App:
    """When no run from before the patch is open any more."""
    app = with_steps()

    @app.workflow
    async def order() -> list[str]:
        done = [await app.steps["pack"](), await app.steps["weigh"]()]
        await sf.signal("go")
        return [*done, await app.steps["send"]()]

    return app


def versions(*numbers: int) -> sf.App:
    app = with_steps()
    for number in numbers:

        async def order(number: int = number) -> list[Any]:
            done: list[Any] = [await app.steps["pack" if number == 1 else "weigh"]()]
            await sf.signal("go")
            return [*done, sf.info().version]

        app.workflow(name="order", version=number)(order)
    return app


async def test_a_patch_applies_to_new_runs_and_old_ones_keep_the_old_code(serve: Serve) -> None:
    async with serve(before()) as client:
        old: sf.Run[Any] = await client.start("order")
        await happened(old, StepCompleted)
    async with serve(patched()):
        new: sf.Run[Any] = await client.start("order")
        await happened(new, StepCompleted, 2)
        await old.signal("go")
        assert await old.result(10) == ["pack", "send"]
    async with serve(patched()):
        await new.signal("go")
        assert await new.result(10) == ["pack", "weigh", "send"]


async def test_the_patch_can_be_removed_when_the_old_runs_have_ended(serve: Serve) -> None:
    async with serve(patched()) as client:
        run: sf.Run[Any] = await client.start("order")
        await happened(run, StepCompleted, 2)
    async with serve(cleaned_up()):
        await run.signal("go")
        assert await run.result(10) == ["pack", "weigh", "send"]
        assert "Patched" in await names_of(run)


async def test_a_run_stays_with_the_version_that_it_began_with(serve: Serve) -> None:
    async with serve(versions(1)) as client:
        old: sf.Run[Any] = await client.start("order")
        await happened(old, StepCompleted)
    async with serve(versions(1, 2)):
        new: sf.Run[Any] = await client.start("order")
        await happened(new, StepCompleted)
        for run in (old, new):
            await run.signal("go")
        assert await old.result(10) == ["pack", 1]
        assert await new.result(10) == ["weigh", 2]


async def test_a_run_whose_version_is_gone_waits_for_a_deploy_that_has_it(serve: Serve) -> None:
    async with serve(versions(1)) as client:
        run: sf.Run[Any] = await client.start("order")
        await happened(run, StepCompleted)
    async with serve(versions(2)):
        await run.signal("go")
        assert "version 1, but this app has only 2" in (await happened(run, RunStuck)).reason
        await status_of(run, sf.Status.STUCK)
    async with serve(versions(1, 2)):  # nobody does anything for it: it goes on by itself
        assert await run.result(10) == ["pack", 1]


# --- parameters -------------------------------------------------------------------------------------------------------


def moving(*, parameters: str = "source, target", down: bool = False, queue: str | None = None) -> sf.App:
    """A workflow that calls `move(source="A", target="B")`; its step has other parameters after a deploy."""
    app = sf.App()

    async def move(source: str, target: str) -> str:
        if down:
            raise ConnectionError
        return f"from {source} to {target}"

    async def reordered(target: str, source: str) -> str:
        return await move(source, target)

    async def added(source: str, target: str, vehicle: str) -> str:
        return f"{await move(source, target)} by {vehicle}"

    functions = {"source, target": move, "target, source": reordered, "source, target, vehicle": added}
    retry = sf.Retry(attempts=1000, initial=0.05, factor=1.0)
    step: Any = app.step(name="move", retry=retry, queue=queue)(functions[parameters])

    @app.workflow
    async def by_keyword() -> str:
        return await (
            step(source="A", target="B", vehicle="car") if "vehicle" in parameters else step(source="A", target="B")
        )

    @app.workflow
    async def by_position() -> str:
        return await step(*(["B", "A"] if parameters == "target, source" else ["A", "B"]))

    return app


async def test_arguments_by_keyword_arrive_under_their_names_after_a_deploy(serve: Serve) -> None:
    async with serve(moving(down=True)) as client:
        run: sf.Run[Any] = await client.start("by_keyword")
        await happened(run, StepRetrying)
    async with serve(moving(parameters="target, source")):
        assert await run.result(DEADLINE) == "from A to B"


@pytest.mark.parametrize(
    ("workflow", "parameters"), [("by_keyword", "source, target, vehicle"), ("by_position", "target, source")]
)
async def test_a_step_whose_parameters_changed_waits_for_a_deploy_that_fits(
    serve: Serve, workflow: str, parameters: str
) -> None:
    async with serve(moving(down=True)) as client:
        run: sf.Run[Any] = await client.start(workflow)
        await happened(run, StepRetrying)
    async with serve(moving(parameters=parameters)):
        assert "StepScheduled(1, move) with" in (await happened(run, RunStuck)).reason
        await status_of(run, sf.Status.STUCK)
    async with serve(moving()):
        assert await run.result(DEADLINE) == "from A to B"


async def test_a_worker_with_other_parameters_leaves_the_step_to_one_that_fits(serve: Serve, work: Work) -> None:
    ours, theirs = moving(queue="trucks"), moving(queue="trucks", parameters="target, source")
    async with serve(ours) as client:
        run: sf.Run[Any] = await client.start("by_position")
        async with work(theirs, "trucks"):
            declined = await happened(run, StepRetrying, 2)
            assert declined.declined
            assert declined.failure.message.endswith(
                "has step move with the parameters (target,source), the daemon with (source,target)"
            )
        async with work(ours, "trucks"):
            assert await run.result(DEADLINE) == "from A to B"
