"""How sinks are run: acknowledged is what is written, and a target that fails holds up nobody else."""

from __future__ import annotations

import logging

import anyio
import pytest

from streamflow import sinks
from streamflow.client.subscription import EventBatch
from streamflow.errors import UsageError
from streamflow.sinks import runner
from streamflow.sinks.sink import Gone, Sink, TargetError, required
from tests.support.sink_events import FakeClient, step_done

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(runner, "LONGEST_PAUSE", 0.005)


class Noted(Sink):
    """Notes what is called. `failures`: what `write` raises, one after the other."""

    def __init__(self, client: FakeClient, *failures: Exception) -> None:
        self.client = client
        self.failures = list(failures)
        self.calls: list[str] = []

    async def open(self) -> None:
        self.calls.append("open")

    async def write(self, batch: EventBatch) -> None:
        assert batch.offset not in self.client.acknowledged
        if self.failures:
            self.calls.append("fail")
            raise self.failures.pop(0)
        self.calls.append(batch.events[0].id)

    async def close(self) -> None:
        self.calls.append("close")


async def test_a_batch_is_acknowledged_when_it_is_written() -> None:
    client = FakeClient([step_done(1), step_done(2)], [step_done(3)])
    sink = Noted(client)
    figures = await sinks.run(client, sink, group="billing", workflows=["order"], kinds=["StepCompleted"])
    assert sink.calls == ["open", "r1:c1:0", "r1:c3:0", "close"]
    assert client.acknowledged == ["1764496002000-0", "1764496003000-0"]
    assert (figures.events, figures.batches, figures.failures) == (3, 2, 0)
    asked = {"group": "billing", "from_": "oldest", "workflows": ["order"], "kinds": ["StepCompleted"]}
    assert [{name: one[name] for name in asked} for one in client.asked] == [asked]
    assert sink.group == "billing"


async def test_a_target_that_is_down_is_opened_again_for_the_same_batch(caplog: pytest.LogCaptureFixture) -> None:
    client = FakeClient([step_done(1)], [step_done(2)])
    sink = Noted(client, *[TargetError("connection refused") for _ in range(5)])
    with caplog.at_level(logging.INFO, "streamflow.sinks"):
        figures = await sinks.run(client, sink, group="g")
    assert sink.calls == ["open", *["fail", "close", "open"] * 5, "r1:c1:0", "r1:c2:0", "close"]
    assert figures.failures == 5
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "sink noted: connection refused; will retry"
    assert said[1].startswith("sink noted works again, after ")
    assert len(said) == 2


async def test_an_error_of_the_sink_s_own_is_shown_once_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    client = FakeClient([step_done(1)])
    with caplog.at_level(logging.INFO, "streamflow.sinks"):
        await sinks.run(client, Noted(client, ZeroDivisionError("x"), ZeroDivisionError("x")), group="g")
    assert [record.levelname for record in caplog.records if record.exc_info] == ["ERROR"]
    assert client.acknowledged == ["1764496001000-0"]


@pytest.mark.parametrize("error", [Gone("it wants no more"), UsageError("no such table")])
async def test_errors_that_end_a_sink_acknowledge_nothing(error: Exception) -> None:
    client = FakeClient([step_done(1)])
    sink = Noted(client, error)
    with pytest.raises(type(error)):
        await sinks.run(client, sink, group="g")
    assert client.acknowledged == []
    assert sink.calls[-1] == "close"


async def test_with_a_patience_a_target_that_stays_down_is_an_error() -> None:
    client = FakeClient([step_done(1)])
    with pytest.raises(TargetError, match="refused"):
        await sinks.run(client, Noted(client, *[TargetError("refused")] * 9999), group="g", patience=0.02)
    assert client.acknowledged == []


async def test_stop_ends_a_sink_whose_target_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "FIRST_PAUSE", 1000.0)
    client = FakeClient([step_done(1)])
    sink = Noted(client, TargetError("refused"))
    running = runner.SinkRunner(client, sink, group="g")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(running.run)
        with anyio.fail_after(15):
            while "fail" not in sink.calls:
                await anyio.lowlevel.checkpoint()
            running.stop()
    assert client.acknowledged == []
    assert sink.calls == ["open", "fail", "close"]


async def test_a_write_that_is_under_way_ends_before_the_sink_does() -> None:
    client = FakeClient([step_done(1)], [step_done(2)])
    began, goes_on = anyio.Event(), anyio.Event()

    class Slow(Noted):
        async def write(self, batch: EventBatch) -> None:
            began.set()
            await goes_on.wait()
            await super().write(batch)

    sink = Slow(client)
    running = runner.SinkRunner(client, sink, group="g")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(running.run)
        with anyio.fail_after(15):
            await began.wait()
        running.stop()
        goes_on.set()
    assert client.acknowledged == ["1764496001000-0"]
    assert sink.calls == ["open", "r1:c1:0", "close"]


async def test_what_a_sink_needs_is_named_with_the_way_to_install_it() -> None:
    with pytest.raises(UsageError, match=r"pip install 'streamflowd\[lake\]'"):
        required("no_such_module_anywhere", "lake")


def test_each_file_of_the_targets_is_a_command_with_a_class_of_its_name() -> None:
    assert sinks.names() == ["jsonl", "kafka", "parquet", "postgres", "webhook"]
    assert [sinks.find(name).__name__ for name in sinks.names()] == [name.capitalize() for name in sinks.names()]
