"""What a sink's process reports for `streamflow health`: a target that is down is a warning."""

from __future__ import annotations

from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from streamflow.client.subscription import EventBatch
from streamflow.health import Health, read_all
from streamflow.sinks import TargetError, runner
from streamflow.sinks.health import report_health
from streamflow.sinks.sink import Sink
from tests.support.sink_events import FakeClient, step_done

pytestmark = pytest.mark.anyio


class Down(Sink):
    async def write(self, batch: EventBatch) -> None:
        raise TargetError("connection refused")


async def test_a_target_that_is_down_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamflow.health.reports", lambda: tmp_path / "reports")
    monkeypatch.setattr("streamflow.sinks.health.EVERY", 0.01)
    running = runner.SinkRunner(FakeClient([step_done(1)]), Down(), group="billing")
    found: list[Health] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(report_health, running, "shop")
        tasks.start_soon(running.run)
        with anyio.fail_after(15):
            while not (found := read_all()) or not found[0].warnings:
                await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    [health] = found
    assert (health.kind, health.namespace, health.healthy) == ("sink", "shop", True)
    assert health.name.startswith("down-billing-")
    assert health.warnings == ["its target is down: connection refused"]
    assert read_all() == []
