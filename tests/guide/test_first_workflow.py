"""A workflow decides, steps act, and the client starts runs and waits for their results."""

from __future__ import annotations

import pytest

import streamflow as sf
from tests.guide.conftest import Serve
from tests.support.waiting import names_of

pytestmark = pytest.mark.anyio

app = sf.App()


@app.step
async def fetch(url: str) -> str:
    return f"the page at {url}"


@app.step
def count_words(page: str) -> int:
    return len(page.split())


@app.workflow
async def digest(url: str) -> int:
    return await count_words(await fetch(url))


@app.workflow
async def mistaken() -> None:
    raise LookupError("nothing here")


async def test_a_run_goes_through_its_steps_and_gives_the_result_of_its_workflow(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(digest, "https://example.org")
        assert await run.result(timeout=10) == 4


async def test_the_result_can_be_read_later_by_anybody_who_knows_the_id(serve: Serve) -> None:
    async with serve(app) as client:
        started = await client.start(digest, "https://example.org", id="digest-1")
        await started.result(timeout=10)
    assert await client.run("digest-1", int).result(timeout=10) == 4


async def test_a_run_that_was_started_without_a_daemon_waits_for_one(serve: Serve) -> None:
    async with serve(app) as client:
        pass  # it has created the namespace
    run = await client.start(digest, "https://example.org")
    assert (await run.describe()).status is sf.Status.PENDING
    async with serve(app):
        assert await run.result(timeout=10) == 4


async def test_a_history_has_everything_that_happened(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(digest, "https://example.org")
        await run.result(timeout=10)
        assert await names_of(run) == [
            "RunStarted",
            "StepScheduled",
            "StepCompleted",
            "StepScheduled",
            "StepCompleted",
            "RunCompleted",
        ]


async def test_an_exception_in_a_workflow_fails_the_run_and_names_the_line(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(mistaken)
        with pytest.raises(sf.RunFailed, match="LookupError: nothing here") as failed:
            await run.result(timeout=10)
        assert failed.value.run_id == run.id
        assert "test_first_workflow.py" in failed.value.failure.traceback
        assert 'raise LookupError("nothing here")' in failed.value.failure.traceback


async def test_outside_a_workflow_a_step_is_the_plain_function() -> None:
    assert count_words("so it can be tested by itself") == 7
    assert await fetch("here") == "the page at here"
