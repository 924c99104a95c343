"""Exported histories: lossless files, errors that say what to do, and what a replay finds."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

import streamflow as sf
import streamflow.testing as sft
from streamflow.client.histories import dump_history, find_histories, parse_history
from streamflow.model.sharding import Partition

app = sf.App()


class Total(msgspec.Struct):
    sum: int = 0


@app.step
async def double(value: int) -> int:
    return 2 * value


@app.workflow
async def twice(value: int) -> int:
    await sf.sleep(5)
    return await double(await double(value))


@app.workflow
async def waits() -> None:
    await sf.signal("go")


@app.workflow
async def parent() -> int:
    return await twice(1)


@app.reducer
def adder(state: Total, event: sf.Event) -> sf.Decision:
    if isinstance(event, sf.Signal):
        return sf.Decision(Total(state.sum + event.value))
    return sf.Decision(state)


@app.reducer
def at_once(state: Total, event: sf.Event) -> sf.Decision:
    return sf.Decision(state, [sf.Complete(1)])


def recorded(workflow: Any, *args: Any, partition: Partition = Partition.RUN, signal: Any = None) -> sft.History:
    """What a run in a sandbox leaves; with a `signal`, before it has ended."""

    async def play() -> sft.History:
        async with sft.Sandbox(app, partition=partition) as sandbox:
            run = await sandbox.start(workflow, *args, id="r")
            if signal is not None:
                await run.signal("add", signal)
            else:
                await sandbox.sleep(10)
            return await run.export()

    return asyncio.run(play())


def other(source: str) -> sf.App:
    """An app whose code was changed."""
    changed = sf.App()
    exec(source, {"app": changed, "sf": sf, "msgspec": msgspec})
    return changed


def test_a_file_loses_nothing(tmp_path: Path) -> None:
    history = recorded(twice, 5)
    sft.save_history(history, tmp_path / "r.json")
    assert sft.load_history(tmp_path / "r.json") == history


def test_a_file_can_be_read_by_people() -> None:
    shown = msgspec.json.decode(dump_history(recorded(twice, 5)))
    assert (shown["run_id"], shown["workflow"], shown["status"]) == ("r", "twice", "completed")
    assert [event["event"] for event in shown["events"]] == [
        "started", "timer", "timer-fired", "step", "step-done", "step", "step-done", "completed",
    ]  # fmt: skip
    assert shown["events"][3] | {"number": 4, "at": "2026-01-01T00:00:05+00:00", "args": [5]} == shown["events"][3]


def test_only_the_record_is_read_back() -> None:
    history = recorded(twice, 5)
    edited = msgspec.json.decode(dump_history(history)) | {"events": [], "workflow": "other"}
    assert parse_history(msgspec.json.encode(edited), "r.json") == history


@pytest.mark.parametrize("workflow", [twice, waits, parent])
def test_code_that_has_not_changed_fits(workflow: Any) -> None:
    sft.replay(app, recorded(workflow, *((5,) if workflow is twice else ())))


def test_a_child_s_id_in_another_partition_fits() -> None:
    history = recorded(parent, partition=Partition.WORKFLOW)
    assert history.run_id == "parent/r"
    sft.replay(app, parse_history(dump_history(history), "r.json"))


def test_code_that_decides_something_else_diverges_at_the_first_event() -> None:
    changed = other("""
@app.step
async def double(value: int) -> int: ...
@app.workflow
async def twice(value: int) -> int:
    return await double(await double(value))
""")
    with pytest.raises(sf.Diverged) as raised:
        sft.replay(changed, recorded(twice, 5))
    assert (raised.value.run_id, raised.value.number) == ("r", 2)
    assert "the history has TimerSet(1), the code did StepScheduled(1, double)" in str(raised.value)


def test_code_that_does_more_at_the_end_of_an_ended_run_diverges_too() -> None:
    changed = other("""
@app.step
async def double(value: int) -> int: ...
@app.workflow
async def twice(value: int) -> int:
    await sf.sleep(5)
    return await double(await double(await double(value)))
""")
    with pytest.raises(sf.Diverged, match=r"event 8: the history has RunCompleted, the code did StepScheduled"):
        sft.replay(changed, recorded(twice, 5))


def test_a_workflow_that_is_gone_is_named() -> None:
    with pytest.raises(sf.UnknownWorkflow, match="workflow twice is not registered; known workflows: none"):
        sft.replay(sf.App(), recorded(twice, 5))


def test_a_reducer_s_snapshot_must_fit_its_state() -> None:
    history = recorded(adder, None, signal=3)
    sft.replay(app, history)
    changed = other("""
class Total(msgspec.Struct):
    sum: str = ""
@app.reducer
def adder(state: Total, event: sf.Event) -> sf.Decision:
    return sf.Decision(state)
""")
    with pytest.raises(sf.PayloadInvalid, match="state of reducer adder"):
        sft.replay(changed, history)
    ended = msgspec.structs.replace(history.head, status=sf.Status.CANCELLED, ended=1)
    with pytest.raises(sf.PayloadInvalid, match="state of reducer adder"):
        sft.replay(changed, msgspec.structs.replace(history, header=ended.encode()))


def test_a_reducer_that_ended_at_once_has_no_snapshot_to_check() -> None:
    history = recorded(at_once, None)
    assert not history.head.is_open
    sft.replay(app, history)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "x.json is not an exported history; create one with: streamflow export RUN --output FILE"),
        (b"\xff\x00", "x.json is not an exported history"),
        (b"[1]", "x.json is not an exported history"),
        (b'{"a": 1}', "x.json is not an exported history"),
        (b'{"streamflow_history": 2}', "x.json has format 2 .* reads format 1: export it again"),
        (b'{"streamflow_history": 1}', "x.json is damaged: .*`run_id`.* Export it again"),
    ],
)
def test_garbage_is_refused_with_what_to_do(data: bytes, says: str) -> None:
    with pytest.raises(sf.UsageError, match=says):
        parse_history(data, "x.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("header", "!"),
        ("header", "AAAA"),
        ("transitions", ["AAAA"]),
        ("transitions", "AAAA"),
        ("transitions", []),
    ],
)
def test_a_record_that_was_edited_is_refused(field: str, value: Any) -> None:
    document = msgspec.json.decode(dump_history(recorded(twice, 5)))
    document["record"][field] = value
    with pytest.raises(sf.UsageError, match=r"x\.json is damaged: .*Export it again"):
        parse_history(msgspec.json.encode(document), "x.json")


@pytest.mark.parametrize(("field", "value"), [("run_id", "a b"), ("partition", "moon")])
def test_a_document_that_was_edited_is_refused(field: str, value: str) -> None:
    document = msgspec.json.decode(dump_history(recorded(twice, 5))) | {field: value}
    with pytest.raises(sf.UsageError, match=r"x\.json is damaged"):
        parse_history(msgspec.json.encode(document), "x.json")


def test_a_file_that_can_t_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(sf.UsageError, match=r"can't read the history .*none\.json: No such file"):
        sft.load_history(tmp_path / "none.json")


def test_histories_are_found_below_a_directory_in_order(tmp_path: Path) -> None:
    with pytest.raises(sf.UsageError, match="there is no history"):
        find_histories(tmp_path)
    (tmp_path / "b").mkdir()
    for name in ("b/c.json", "z.json", "a.json", "notes.txt"):
        (tmp_path / name).write_text("{}")
    assert [str(file.relative_to(tmp_path)) for file in find_histories(tmp_path)] == ["a.json", "b/c.json", "z.json"]
