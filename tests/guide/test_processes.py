"""`@app.step(process=True)`: a plain function that computes runs in a process of its own, and can be stopped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import streamflow as sf
from streamflow.events import StepRetrying
from tests.guide import process_flows as flows
from tests.guide.conftest import Serve, Work
from tests.support.waiting import DEADLINE, events_of, until

pytestmark = pytest.mark.anyio


async def _is_gone(pid: int) -> bool:
    """Dead, and not only a zombie that nobody has waited for."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


async def _pid_in(file: Path) -> int:
    async def written() -> int:
        return int(file.read_text() or 0) if file.exists() else 0

    return await until(written)


async def test_arguments_and_results_are_typed_and_the_daemon_does_not_compute(serve: Serve) -> None:
    async with serve(flows.app, processes=2) as client:
        one, two = await (await client.start(flows.sums, [1, 2, 3])).result(timeout=DEADLINE)
        assert (one.value, two.value) == (6, 7)
        assert os.getpid() not in (one.pid, two.pid)


async def test_a_process_is_reused(serve: Serve) -> None:
    async with serve(flows.app, processes=1) as client:
        pids = {
            one.pid for _ in range(3) for one in await (await client.start(flows.sums, [1])).result(timeout=DEADLINE)
        }
        assert len(pids) == 1


async def test_a_failure_names_the_line_and_may_be_permanent(serve: Serve) -> None:
    async with serve(flows.app, processes=1) as client:
        with pytest.raises(sf.RunFailed, match="after 1 attempt: KeyError: 'k'") as raised:
            await (await client.start(flows.refuses)).result(timeout=DEADLINE)
        assert raised.value.failure.kind == "StepFailed"


async def test_the_retry_policy_of_a_call_counts_there_too(serve: Serve) -> None:
    async with serve(flows.app) as client:
        assert await (await client.start(flows.refused_by_options)).result(timeout=DEADLINE) == [3, 1]


async def test_a_process_that_dies_is_a_failure_and_the_step_is_retried(serve: Serve) -> None:
    async with serve(flows.app, processes=1) as client:
        run = await client.start(flows.dies)
        assert await run.result(timeout=DEADLINE) == 2
        [retry] = [event for event in await events_of(run) if isinstance(event, StepRetrying)]
        assert retry.failure.kind == "WorkerLost"
        assert "the process of step die died (exit status 7)" in retry.failure.message


async def test_commands_that_a_step_starts_can_read_and_print_what_they_like(serve: Serve) -> None:
    async with serve(flows.app, processes=1) as client:
        assert await (await client.start(flows.commands)).result(timeout=DEADLINE) == ["called", "called"]


async def test_a_timeout_kills_the_process(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    async with serve(flows.app, processes=1) as client:
        await (await client.start(flows.sums, [1])).result(timeout=DEADLINE)  # its start-up isn't to be timed
        run = await client.start(flows.spins, str(file), 1.0)
        pid = await _pid_in(file)
        with pytest.raises(sf.RunFailed, match="took longer than 1 s"):
            await run.result(timeout=DEADLINE)
        await until(lambda: _is_gone(pid))
        await (await client.start(flows.sums, [1])).result(timeout=DEADLINE)  # and the place is free again


async def test_cancelling_the_run_kills_the_process(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    async with serve(flows.app, processes=1) as client:
        run = await client.start(flows.spins, str(file), None)
        pid = await _pid_in(file)
        await run.cancel()
        await until(lambda: _is_gone(pid))


async def test_step_info_works_there_and_the_step_may_run_at_a_worker(serve: Serve, work: Work) -> None:
    async with serve(flows.app) as client, work(flows.app, "cpu", processes=1):
        run = await client.start(flows.knows)
        run_id, step, key, cancelled = await run.result(timeout=DEADLINE)
        assert (run_id, step, cancelled) == (run.id, "know", "False")
        created = (await run.describe()).created
        assert key == f"{run.id}@{round(created.timestamp() * 1000)}/1"


async def test_a_heartbeat_in_a_process_is_refused_with_the_reason(serve: Serve) -> None:
    async with serve(flows.app, processes=1) as client:
        with pytest.raises(sf.RunFailed, match=r"sf.heartbeat\(\) doesn't reach the daemon"):
            await (await client.start(flows.tells)).result(timeout=DEADLINE)
