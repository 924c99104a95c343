"""Mistakes that people make, and the error messages that they get."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import anyio
import pytest

import streamflow as sf
from streamflow.events import RunStuck
from tests.guide.conftest import Serve
from tests.support.waiting import DEADLINE, happened

pytestmark = pytest.mark.anyio

app = sf.App()


@app.workflow
async def echo(value: Any) -> Any:
    return value


@app.step
async def big(size: int) -> bytes:
    return bytes(size)


@app.workflow
async def big_step(size: int) -> int:
    try:
        return len(await big(size))
    except sf.StepFailed as error:
        return -error.attempt


@app.workflow
async def big_result(size: int) -> bytes:
    return bytes(size)


@app.workflow
async def sleeps_as_in_asyncio() -> None:
    await asyncio.sleep(1)


@app.workflow
async def sleeps_as_in_anyio() -> None:
    await anyio.sleep(1)


@app.workflow
async def limits_as_in_asyncio() -> None:
    await asyncio.wait_for(sf.signal("go"), 5)


@app.workflow
async def waits_for_an_event() -> None:
    await anyio.Event().wait()


@app.workflow
async def calls_a_child_without_a_name() -> None:
    await sf.send_signal("somebody", "a name with blanks")


async def failure_of(client: sf.Client, workflow: Any, *args: Any) -> sf.Failure:
    with pytest.raises(sf.RunFailed) as failed:
        await (await client.start(workflow, *args)).result(10)
    return failed.value.failure


async def bug_of(client: sf.Client, workflow: Any, *args: Any) -> sf.Failure:
    """The run is stuck until its code is mended: this is what it raised."""
    run = await client.start(workflow, *args)
    await happened(run, RunStuck)
    failure = (await run.describe()).failure
    assert failure is not None
    return failure


@pytest.mark.parametrize("workflow", [sleeps_as_in_asyncio, sleeps_as_in_anyio])
async def test_asyncio_sleep_is_refused_with_the_line_and_the_right_call(serve: Serve, workflow: Any) -> None:
    async with serve(app) as client:
        failure = await bug_of(client, workflow)
        assert failure.kind == "ForeignAwait"
        line = workflow.function.__code__.co_firstlineno + 2
        assert f"test_mistakes.py:{line}. " in failure.message
        assert failure.message.endswith("use sf.sleep(…) instead.")


async def test_asyncio_wait_for_is_refused_with_the_right_call(serve: Serve) -> None:
    async with serve(app) as client:
        failure = await bug_of(client, limits_as_in_asyncio)
        assert failure.message.endswith("use `with sf.timeout(…):` instead.")


async def test_waiting_for_anything_else_of_asyncio_is_refused(serve: Serve) -> None:
    async with serve(app) as client:
        failure = await bug_of(client, waits_for_an_event)
        assert failure.kind == "ForeignAwait"
        assert "anyio.Event" in failure.message
        assert "move it into a step" in failure.message


async def test_a_workflow_that_blocks_is_named_with_its_line(serve: Serve) -> None:
    app = sf.App()
    warnings = Warnings()

    @app.workflow
    async def blocking() -> bool:
        return warnings.came.wait(DEADLINE)

    logging.getLogger("streamflow.watch").addHandler(warnings)
    try:
        async with serve(app, blocking=0.02) as client:
            run = await client.start(blocking)
            assert await run.result(10) is True
    finally:
        logging.getLogger("streamflow.watch").removeHandler(warnings)
    line = blocking.function.__code__.co_firstlineno + 2
    [text] = warnings.texts
    assert f"run {run.id} has blocked its daemon for " in text
    assert f"test_mistakes.py:{line} (return warnings.came.wait(DEADLINE))" in text


class Warnings(logging.Handler):
    """Collects the warnings about blocking; `came` is set with the first."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.came = threading.Event()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "has blocked its daemon" in record.getMessage():
            self.texts.append(record.getMessage())
            self.came.set()


async def test_a_run_of_an_unknown_workflow_is_stuck_with_the_known_names(serve: Serve) -> None:
    async with serve(app) as client:
        run: sf.Run[Any] = await client.start("ecco", 1)
        reason = (await happened(run, RunStuck)).reason
        assert reason.startswith("workflow ecco is not registered; known workflows: big_result, big_step, ")


async def test_a_step_of_another_app_is_an_error_in_the_run(serve: Serve) -> None:
    other, app = sf.App(), sf.App()

    @other.step
    async def elsewhere() -> int:
        return 1

    @app.workflow
    async def flow() -> int:
        return await elsewhere()

    async with serve(app) as client:
        failure = await bug_of(client, flow)
        assert failure.kind == "UsageError"
        assert "step elsewhere is not registered with this app; known steps: none" in failure.message


async def test_a_child_of_another_app_is_an_error_in_the_run(serve: Serve) -> None:
    app = sf.App()

    @app.workflow
    async def flow() -> Any:
        return await echo(1)

    async with serve(app) as client:
        failure = await bug_of(client, flow)
        assert failure.kind == "UsageError"
        assert "workflow echo is not registered; known workflows: flow" in failure.message


async def test_calling_a_workflow_like_a_function_says_what_to_do_instead() -> None:
    with pytest.raises(sf.UsageError, match=r"start a run with client\.start\(echo, …\)"):
        await echo(1)


async def test_an_input_above_two_megabytes_is_refused_with_both_sizes(serve: Serve) -> None:
    async with serve(app) as client:
        with pytest.raises(sf.PayloadTooLarge, match=r"3,145,734 bytes; the limit is 2,097,152"):
            await client.start(echo, bytes(3 * 1024 * 1024))


async def test_a_result_above_two_megabytes_fails_its_step_or_run(serve: Serve) -> None:
    async with serve(app) as client:
        assert await (await client.start(big_step, 3 * 1024 * 1024)).result(10) == -1, "and isn't tried again"
        failure = await failure_of(client, big_result, 3 * 1024 * 1024)
        assert failure.kind == "PayloadTooLarge"
        assert "the result of big_result has 3,145,733 bytes" in failure.message
        assert "test_mistakes.py" in failure.traceback, "where the workflow is"


async def test_a_large_payload_is_accepted_with_a_warning(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    async with serve(app) as client:
        assert await (await client.start(big_step, 300_000)).result(10) == 300_000
    assert "the result of step big has 300,005 bytes; above 262,144 it slows its shard down" in caplog.text


async def test_a_deeply_nested_input_is_refused(serve: Serve) -> None:
    nested: list[Any] = []
    for _ in range(70):
        nested = [nested]
    async with serve(app) as client:
        with pytest.raises(sf.PayloadInvalid, match="nested more than 64 levels deep"):
            await client.start(echo, nested)


@pytest.mark.parametrize("name", ["", "two words", "{tag}", "a*", "line\nbreak", "/first", "x" * 257])
async def test_ids_outside_the_alphabet_are_refused(serve: Serve, name: str) -> None:
    async with serve(app) as client:
        with pytest.raises(sf.InvalidName, match="run id"):
            await client.start(echo, 1, id=name)


async def test_other_names_outside_the_alphabet_are_refused(serve: Serve) -> None:
    async with serve(app) as client:
        with pytest.raises(sf.InvalidName, match="tenant"):
            await client.start(echo, 1, tenant="a/b")
        with pytest.raises(sf.InvalidName, match="signal"):
            await client.run("somebody").signal("two words")
        with pytest.raises(sf.InvalidName, match="workflow"):
            await client.start("no such*", 1)
        failure = await bug_of(client, calls_a_child_without_a_name)
        assert failure.kind == "InvalidName"


async def test_a_namespace_that_does_not_exist_says_how_to_create_it(client: sf.Client) -> None:
    with pytest.raises(sf.NamespaceMissing, match="streamflow daemon --app MODULE:app --namespace"):
        await client.start(echo, 1)


async def test_another_number_of_shards_is_refused_with_both_numbers(serve: Serve) -> None:
    async with serve(app):
        pass
    with pytest.RaisesGroup(
        pytest.RaisesExc(sf.NamespaceMismatch, match="has 8 shards by run, but 16 by run were requested")
    ):
        async with serve(app, shards=16):
            pass
