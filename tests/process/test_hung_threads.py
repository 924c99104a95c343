"""Plain steps that never return: their threads are replaced, and in the end the process is."""

from __future__ import annotations

from pathlib import Path

import pytest

import streamflow as sf
from tests.process.fault_flows import begun
from tests.process.test_step_processes import Serving, serving

__all__ = ["serving"]

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]


@pytest.mark.parametrize("command", ["daemon", "worker"])
async def test_a_process_with_too_many_hung_threads_drains_and_exits(
    serving: Serving, tmp_path: Path, command: str
) -> None:
    """Before that, plain steps run though more threads hang than there are slots."""
    slots = "--threads" if command == "daemon" else "--concurrency"
    suffix = "" if command == "daemon" else "-queued"
    if command == "worker":
        serving.start("daemon")
    hung = serving.start(command, slots, "1", HUNG_THREADS="3")
    for number in range(3):
        run = await serving.act(f"hang{suffix}", str(tmp_path / "journal"))
        with pytest.raises(sf.RunFailed, match=r"took longer than 0\.2 s"):
            await run.result(timeout=30)
        run = await serving.act(f"quick{suffix}", number)
        assert await run.result(timeout=30) == number
    assert begun(tmp_path / "journal") == [hung.pid] * 3, "the fault took place"
    run = await serving.act(f"hang{suffix}", str(tmp_path / "journal"))
    with pytest.raises(sf.RunFailed):
        await run.result(timeout=30)
    assert await hung.wait() == 75
    assert hung.logged("4 threads hang in steps that have ended")
    assert hung.logged("drained")
