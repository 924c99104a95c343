"""Async steps that block the event loop of a worker: it stays alive for the others, and says which step it is."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

import streamflow as sf
from streamflow.embedded.server import EmbeddedServer
from streamflow.events import StepRetrying
from tests.process.fault_flows import begun
from tests.process.faults import ServingProcess, until
from tests.process.test_step_processes import Serving, logged, of_kind, serving, step_began

__all__ = ["serving"]

FLOWS = Path(__file__).with_name("blocking_flows.py")
pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]


async def test_a_worker_with_a_blocked_loop_is_alive_for_the_others(serving: Serving, tmp_path: Path) -> None:
    """Longer than two time-outs: nothing that it runs begins at another worker."""
    serving.start("daemon")
    blocked = serving.start("worker", "--worker-timeout", "1")
    innocent, blocking = tmp_path / "innocent", tmp_path / "blocking"
    runs = [await serving.act("wait-queued", str(innocent), 1.0)]
    assert await step_began(innocent) == [blocked.pid]
    runs.append(await serving.act("block-queued", str(blocking), 4.0))
    assert await step_began(blocking) == [blocked.pid]
    serving.start("worker", "--worker-timeout", "1")
    await until(lambda: logged(blocked, "has blocked the event loop of its worker"), "the fault took place")
    assert [await run.result(timeout=30) for run in runs] == ["waited", "gave way"]
    assert (begun(innocent), begun(blocking)) == ([blocked.pid], [blocked.pid])
    assert [await of_kind(run, StepRetrying) for run in runs] == [[], []]


async def test_the_log_of_a_daemon_names_a_step_that_blocks_it(serving: Serving, tmp_path: Path) -> None:
    daemon = serving.start("daemon")
    run = await serving.act("block", str(tmp_path / "journal"), 2.0)
    await until(lambda: logged(daemon, f"step block of run {run.id} has blocked"), "a warning")
    assert daemon.logged("fault_flows.py")
    assert daemon.logged("time.sleep(seconds)")
    await run.result(timeout=30)


@pytest.mark.parametrize("what", ["task", "callback"])
async def test_what_a_step_has_left_behind_is_interrupted_on_any_event_loop(
    embedded_server: EmbeddedServer, namespace: str, tmp_path: Path, what: str
) -> None:
    """A daemon of the command line runs on uvloop, which has no frames in Python."""
    words = ("daemon", "--app", f"{FLOWS}:app", "--shards", "4", "--interrupt-steps", "1")
    daemon = ServingProcess(*words, url=embedded_server.url, namespace=namespace, log=tmp_path / "log")
    try:
        async with sf.connect(embedded_server.url, namespace=namespace) as client:
            await until(lambda: logged(daemon, "acquired 4 shards"), "it serves")
            await (await client.start("leaves_behind", what)).result(timeout=20)
            await until(lambda: logged(daemon, "code that step leaves of run "), "it is named")
            await until(lambda: logged(daemon, "; it was interrupted"), "and interrupted")
            await (await client.start("leaves_behind", "nothing")).result(timeout=20)
        assert daemon.logged("blocking_flows.py")
        daemon.send(signal.SIGTERM)
        assert await daemon.wait(20) == 0
    finally:
        await daemon.end()
