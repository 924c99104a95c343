"""The sink `parquet`: files that are whole, with a schema that says what is in them, and each event in one of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet  # pyright: ignore[reportMissingTypeStubs]
import pytest

from streamflow import events as ev
from streamflow.client.committed import CommittedEvent
from streamflow.errors import Failure, UsageError
from streamflow.sinks import Parquet, TargetError, folders
from tests.support.sink_events import FakeBatch, made, step_done

pytestmark = pytest.mark.anyio


async def write(target: str, *batches: Sequence[CommittedEvent], **options: Any) -> None:
    sink = Parquet(target, **options)
    await sink.open()
    for events in batches:
        await sink.write(FakeBatch(events))
    await sink.close()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def ids(folder: Path) -> list[str]:
    files = sorted(folder.rglob("*.parquet"))
    return [one for file in files for one in pyarrow.parquet.read_table(file).column("id").to_pylist()]


async def test_a_file_has_a_row_for_each_event(tmp_path: Path) -> None:
    failed = made(ev.StepFailed(1, "charge", 2, 3.0, Failure("Declined", "card")), 2)
    await write(str(tmp_path), [step_done(1, {"cents": 2**60}), failed])
    assert names(tmp_path) == ["events-0000-1764496001000-0_1764496002000-0.parquet"]
    [folder] = tmp_path.iterdir()
    assert folder.name == "2025-11-30"
    first, second = pyarrow.parquet.read_table(next(folder.iterdir())).to_pylist()
    assert json.loads(first.pop("data"))["result"] == {"cents": str(2**60)}
    assert first == {
        "id": "r1:c1:0", "kind": "StepCompleted", "run_id": "r1",
        "run_created": datetime(2025, 11, 30, 9, 46, 40, tzinfo=UTC), "workflow": "order", "tenant": "acme",
        "at": datetime(2025, 11, 30, 9, 46, 41, tzinfo=UTC), "name": "charge", "seq": 1, "attempt": 1, "ms": 12.5,
        "error_kind": None, "error": None, "shard": 0, "log_offset": "1764496001000-0", "number": 0,
    }  # fmt: skip
    assert (second["error_kind"], second["error"]) == ("Declined", "card")


@pytest.mark.parametrize("target", ["{}", "file://{}"])
async def test_a_batch_that_comes_again_is_there_once(tmp_path: Path, target: str) -> None:
    events = [step_done(position) for position in range(6)]
    for batch in (events[:3], events[:3], events[:5], events[:2], events[5:]):
        await write(target.format(tmp_path), batch)
    assert ids(tmp_path) == [event.id for event in events]


async def test_a_disk_that_is_full_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders.os, "fsync", full)
    with pytest.raises(TargetError, match="No space left"):
        await write(str(tmp_path), [step_done(1)])
    assert names(tmp_path) == []


async def test_a_url_that_fsspec_does_not_know_is_refused() -> None:
    with pytest.raises(UsageError, match="fsspec can't open"):
        await write("nosuch://bucket/events", [step_done(1)])
    with pytest.raises(UsageError, match="--compression lzo"):
        Parquet("x", compression="lzo")


async def test_a_shard_s_files_do_not_replace_another_s(tmp_path: Path) -> None:
    await write(str(tmp_path), [step_done(1, shard=0)], [step_done(1, run="r2", shard=1)])
    assert sorted(ids(tmp_path)) == ["r1:c1:0", "r2:c1:0"]
