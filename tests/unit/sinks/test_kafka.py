"""The sink `kafka` against the mock broker that librdkafka has in itself: it speaks the protocol over loopback, in this
process, and keeps records in memory. What only a real cluster does (replicas, elections) isn't tested here."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamflow.errors import UsageError
from streamflow.sinks import Kafka, TargetError
from tests.support.kafka import consume, mock_brokers
from tests.support.sink_events import FakeBatch, step_done

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def brokers() -> Iterator[str]:
    with mock_brokers() as names:
        yield names


async def write(sink: Kafka, *events: Any) -> None:
    try:
        await sink.open()
        await sink.write(FakeBatch(events))
    finally:
        await sink.close()


async def test_a_record_has_the_run_as_its_key_and_the_event_as_json(brokers: str) -> None:
    await write(Kafka(brokers, topic="one"), step_done(1, {"cents": 2**60}))
    [record] = consume(brokers, "one", {"r1:c1:0"})
    assert record.key() == b"r1"
    assert json.loads(record.value())["data"]["result"] == {"cents": str(2**60)}
    assert dict(record.headers()) == {
        "id": b"r1:c1:0", "kind": b"StepCompleted", "workflow": b"order", "tenant": b"acme", "shard": b"0",
        "offset": b"1764496001000-0",
    }  # fmt: skip
    assert record.timestamp()[1] == 1764496001000


async def test_the_events_of_a_run_are_in_one_partition_in_order(brokers: str) -> None:
    events = [step_done(position, position, run=f"r{position % 7}") for position in range(300)]
    await write(Kafka(brokers, topic="many"), *events)
    records = consume(brokers, "many", {event.id for event in events})
    partitions: dict[bytes, set[int]] = {}
    for record in records:
        partitions.setdefault(record.key(), set()).add(record.partition())
    assert all(len(of_run) == 1 for of_run in partitions.values())
    for run in range(7):
        ids = [json.loads(record.value())["id"] for record in records if record.key() == f"r{run}".encode()]
        assert ids == [event.id for event in events if event.run_id == f"r{run}"]


async def test_a_record_that_is_too_large_is_sent_without_its_data(
    brokers: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "properties").write_text("# small\nmessage.max.bytes=20000\ncompression.type=none\n")
    sink = Kafka(brokers, topic="large", properties=str(tmp_path / "properties"))
    with caplog.at_level(logging.WARNING, "streamflow.sinks"):
        await write(sink, step_done(1, "small"), step_done(2, "x" * 50_000), step_done(3, "small"))
    values = [
        json.loads(record.value())["data"] for record in consume(brokers, "large", {"r1:c1:0", "r1:c2:0", "r1:c3:0"})
    ]
    assert [value.get("result") for value in values] == ["small", None, "small"]
    assert values[1]["bytes"] > 50_000
    assert "r1:c2:0" in caplog.text


async def test_brokers_that_cannot_be_reached_are_an_error_that_names_them(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(TargetError, match=r"127\.0\.0\.1:1"):
        await write(Kafka("127.0.0.1:1", timeout=0.5), step_done(1))
    assert [record for record in caplog.records if record.name.startswith("streamflow")] == []


async def test_properties_with_a_secret_are_not_shown(tmp_path: Path) -> None:
    (tmp_path / "properties").write_text("sasl.password=geheim\nno.such.property=geheim\n")
    with pytest.raises(UsageError, match=r"no\.such\.property") as failure:
        await Kafka("127.0.0.1:1", properties=str(tmp_path / "properties")).open()
    assert "geheim" not in str(failure.value)
    (tmp_path / "properties").write_text("geheim\n")
    with pytest.raises(UsageError, match="line 1: expected NAME=VALUE"):
        Kafka("127.0.0.1:1", properties=str(tmp_path / "properties"))
