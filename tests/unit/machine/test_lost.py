"""A run whose history is lost: no code has its version, it is stuck, and it ends when somebody terminates it."""

from __future__ import annotations

import pytest

import streamflow as sf
from streamflow import events
from streamflow.events import CancelRequested, SignalReceived, decode_history
from streamflow.machine.factory import rehydrate
from streamflow.machine.lost import is_parent, lost_run, possible_parents
from streamflow.model.record import ParentLink, decode_header
from streamflow.model.sharding import Partition, child_run_id
from streamflow.model.sleeping import Sleeper, decode_sleeper

app = sf.App()
RAN: list[str] = []


@app.workflow
async def order() -> None:
    RAN.append("order")


@app.reducer
def door(state: int, event: sf.Event) -> sf.Decision:
    RAN.append("door")
    return sf.Decision(state + 1)


def sleeper(workflow: str, parent: str = "-") -> Sleeper:
    return decode_sleeper(f"1764500000000 7 - 0a1b2c3d {parent} {workflow}".encode())


@pytest.mark.parametrize("workflow", ["order", "door", "gone", "-"])
def test_it_is_stuck_with_whatever_code_and_ends_when_it_is_terminated(workflow: str) -> None:
    parent = ParentLink("p", 3, 1764400000000)
    record = lost_run("r", sleeper(workflow), Partition.RUN, parent, "x.run is missing").record
    header = decode_header(record[0])
    assert (header.version, header.created, header.workflow) == (7, 1764500000000, workflow)
    RAN.clear()
    machine = rehydrate(app, Partition.RUN, "r", header, record[1], decode_history(record[2:]))
    first = machine.advance([SignalReceived("go", events.NOTHING)], header.created + 5)
    assert (first.status, first.ended) == ("stuck", False)
    last = machine.advance([CancelRequested("no use", True)], header.created + 9)
    assert (last.status, last.ended) == ("cancelled", True)
    ending = last.events[-1]
    assert isinstance(ending, events.RunCancelled)
    assert ending.reason == "no use; its history is lost: x.run is missing"
    assert [(message.kind, message.target) for message in last.besides.outbox] == [("child", "p")]
    assert RAN == []


@pytest.mark.parametrize(
    ("partition", "run_id", "workflow", "tenant"),
    [
        (Partition.RUN, "acme/r", "-", ""),
        (Partition.TENANT, "acme/r", "-", "acme"),
        (Partition.TENANT, "default/r", "-", ""),
        (Partition.WORKFLOW, "a_long_name/r", "a_long_name", ""),
    ],
)
def test_the_id_says_what_the_line_does_not(partition: Partition, run_id: str, workflow: str, tenant: str) -> None:
    header = decode_header(lost_run(run_id, sleeper("-"), partition, None, "").record[0])
    assert (header.workflow, header.tenant) == (workflow, tenant)


def test_the_id_of_a_child_says_who_its_parent_may_be() -> None:
    child = child_run_id("invoice-17", 5, 3, Partition.RUN, "", "order", b"")
    assert possible_parents(child, Partition.RUN) == [ParentLink("invoice-17", 3, 0)]
    assert possible_parents("invoice-17", Partition.RUN) == []
    digest = str(sum(ord(character) * 31**place for place, character in enumerate(reversed("p#3@5"))) % 2**32)
    assert is_parent(ParentLink("p", 3, 5), digest)
    assert not is_parent(ParentLink("p", 3, 6), digest)
    unknown = lost_run(child, sleeper("order", digest), Partition.RUN, None, "gone").why
    assert unknown == "its history is lost: gone; whose child it is isn't known, so its parent gets no outcome"
