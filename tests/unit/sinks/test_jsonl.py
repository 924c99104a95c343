"""The sink `jsonl`: what a crash leaves of a file, and that no event is in it twice."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from streamflow.errors import UsageError
from streamflow.sinks import Jsonl, TargetError
from streamflow.sinks.targets import jsonl
from tests.support.sink_events import FakeBatch, step_done

pytestmark = pytest.mark.anyio


async def write(target: str, *batches: list[Any], **options: Any) -> None:
    sink = Jsonl(target, **options)
    try:
        await sink.open()
        for events in batches:
            await sink.write(FakeBatch(events))
    finally:
        await sink.close()


def ids(path: Path) -> list[str]:
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


async def test_a_line_has_the_event_and_where_it_is_in_the_log(tmp_path: Path) -> None:
    path = tmp_path / "new" / "events.jsonl"
    await write(str(path), [step_done(1, {"cents": 990})])
    assert json.loads(path.read_text()) == {
        "id": "r1:c1:0",
        "kind": "StepCompleted",
        "run_id": "r1",
        "created": "2025-11-30T09:46:40.000Z",
        "workflow": "order",
        "tenant": "acme",
        "at": "2025-11-30T09:46:41.000Z",
        "shard": 0,
        "offset": "1764496001000-0",
        "number": 0,
        "data": {"seq": 1, "name": "charge", "attempt": 1, "ms": 12.5, "result": {"cents": 990}},
    }


async def test_what_comes_again_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    await write(str(path), [step_done(1), step_done(2)])
    await write(str(path), [step_done(1), step_done(2), step_done(3)], [step_done(3), step_done(4)])
    assert ids(path) == ["r1:c1:0", "r1:c2:0", "r1:c3:0", "r1:c4:0"]


@pytest.mark.parametrize("cut", [1, 2, 7, 8, 40, 200])
async def test_a_torn_line_is_cut_wherever_it_was_torn(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "events.jsonl"
    await write(str(path), [step_done(1), step_done(2)])
    whole = path.read_bytes()
    torn = whole[: whole.index(b"\n") + 1 + cut]
    path.write_bytes(torn)
    await write(str(path), [step_done(1), step_done(2)])
    assert path.read_bytes() == whole


async def test_blocks_of_zeros_that_a_power_cut_leaves_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    await write(str(path), [step_done(1)])
    with path.open("ab") as file:
        file.write(bytes(4096))
    await write(str(path), [step_done(1), step_done(2)])
    assert ids(path) == ["r1:c1:0", "r1:c2:0"]


async def test_a_file_that_is_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("my notes")
    with pytest.raises(UsageError, match="last line is not of an event"):
        await write(str(path), [step_done(1)])
    assert path.read_text() == "my notes"


async def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.jsonl"
    really = os.write
    left = 30

    def full(file: int, data: Any) -> int:
        nonlocal left
        if not left:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = really(file, bytes(data[:left]))
        left -= written
        return written

    sink = Jsonl(str(path))
    await sink.open()
    await sink.write(FakeBatch([step_done(1)]))
    monkeypatch.setattr(jsonl.os, "write", full)
    with pytest.raises(TargetError, match="No space left"):
        await sink.write(FakeBatch([step_done(2)]))
    monkeypatch.setattr(jsonl.os, "write", really)
    assert ids(path) == ["r1:c1:0"]
    await sink.write(FakeBatch([step_done(2)]))
    await sink.close()
    assert ids(path) == ["r1:c1:0", "r1:c2:0"]


async def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    path = str(tmp_path / "events.jsonl")
    sink = Jsonl(path)
    await sink.open()
    with pytest.raises(TargetError, match="another process"):
        await write(path, [step_done(1)])
    await sink.close()
    await write(path, [step_done(1)])


async def test_a_directory_gets_a_new_file_by_size(tmp_path: Path) -> None:
    large = "x" * 400_000
    batches = [[step_done(position, large)] for position in range(5)]
    await write(f"{tmp_path}/", *batches, max_size=1)
    files = sorted(tmp_path.glob("events-*.jsonl"))
    assert [ids(file) for file in files] == [["r1:c0:0", "r1:c1:0"], ["r1:c2:0", "r1:c3:0"], ["r1:c4:0"]]
    await write(str(tmp_path), [step_done(3, large), step_done(4, large), step_done(5)])
    assert [name for file in files for name in ids(file)] == [f"r1:c{position}:0" for position in range(6)]


async def test_a_directory_gets_a_new_file_by_age(tmp_path: Path) -> None:
    await write(f"{tmp_path}/", [step_done(1)], [step_done(2)], max_age=1e-9)
    assert [ids(file) for file in sorted(tmp_path.glob("events-*.jsonl"))] == [["r1:c1:0"], ["r1:c2:0"]]
