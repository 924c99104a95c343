"""Errors of one's own: final at once, or with the time of the next attempt, and with data that is read as its type."""

from __future__ import annotations

import pytest

import streamflow as sf
from streamflow.events import StepRetrying
from tests.guide import error_flows as flows
from tests.guide.conftest import Serve, Work

pytestmark = pytest.mark.anyio

DEADLINE = 20


async def test_a_fatal_error_is_final_wherever_the_step_runs(serve: Serve, work: Work) -> None:
    async with serve(flows.app, processes=1) as client, work(flows.app, "bank"):
        run = await client.start(flows.declines)
        assert await run.result(timeout=DEADLINE) == [[1, "51", {"day": 0.5}]] * 4


async def test_the_error_says_when_the_next_attempt_begins_wherever_it_runs(serve: Serve, work: Work) -> None:
    async with serve(flows.app, processes=1) as client, work(flows.app, "bank", processes=1):
        run = await client.start(flows.waits)
        assert await run.result(timeout=DEADLINE) == [3] * 4
        pauses = [
            (event.attempt, event.due - transition.at)
            for transition in await run.history()
            for event in transition.events
            if isinstance(event, StepRetrying)
        ]
        assert sorted(pauses) == [(1, 50)] * 4 + [(2, 70)] * 4


async def test_the_client_reads_the_data_through_children_and_steps(serve: Serve) -> None:
    async with serve(flows.app) as client:
        for workflow in (flows.pays, flows.orders):
            with pytest.raises(sf.RunFailed) as failed:
                await (await client.start(workflow)).result(timeout=DEADLINE)
            assert failed.value.failure.data(flows.Decline).code == "51"


async def test_a_workflow_fails_with_data_too(serve: Serve) -> None:
    async with serve(flows.app) as client:
        with pytest.raises(sf.RunFailed, match="Fatal: closed") as failed:
            await (await client.start(flows.refuses)).result(timeout=DEADLINE)
        failure = failed.value.failure
        assert failure.data(tuple[str, int]) == ("monday", 3)
        with pytest.raises(sf.PayloadInvalid, match="the data of Fatal is not a Decline"):
            failure.data(flows.Decline)
