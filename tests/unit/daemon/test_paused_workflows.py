"""What follows when a workflow is paused or goes on, at moments that are hard to meet on a server."""

from __future__ import annotations

from typing import Any

from streamflow.daemon.paused import behind_cancel, keeps_stuck, pause_wanted
from streamflow.daemon.paused_workflows import DUE, PausedWorkflows
from streamflow.daemon.shard import OwnedShard
from streamflow.events import RunPaused
from streamflow.machine.transition import PauseRequest
from streamflow.model.record import Header, Status
from streamflow.store.pauses import Pause
from streamflow.wire import InboxMessage
from tests.support.fakes import owned
from tests.support.machine_driver import raw

NOTE = Pause(5, "kim", "429")
WHOLE = RunPaused("flow", "", "workflow", "kim", "429", 5)
OWN = RunPaused("flow", "", "run", "lee", "call back", 9)
HEADER = Header(Status.RUNNING, 3, "c", 1000, 0, "flow", "", "")


class Steps:
    """An executor and its suspects: steps that wait for a slot, and those that were cancelled."""

    def __init__(self, *waiting: tuple[int, str]) -> None:
        self.waiting = list(waiting)
        self.begun: set[tuple[str, int]] = set()
        self.cancelled: list[tuple[str, int]] = []

    def waiting_runs(self) -> list[tuple[int, str]]:
        return self.waiting

    def has_begun(self, run_id: str, seq: int) -> bool:
        return (run_id, seq) in self.begun

    def cancel(self, run_id: str, seq: int) -> None:
        self.cancelled.append((run_id, seq))


class Live:
    def __init__(self, *steps: int) -> None:
        self.header = HEADER
        self.machine: Any = self
        self.steps = dict.fromkeys(steps)


def made(*shards: OwnedShard, steps: Steps | None = None) -> tuple[PausedWorkflows, list[int]]:
    woken: list[int] = []
    any_steps: Any = steps or Steps()
    by_number = {shard.number: shard for shard in shards}
    paused = PausedWorkflows(
        by_number, any_steps, any_steps, lambda shard: woken.append(shard.number), lambda shard: None
    )
    return paused, woken


def test_runs_whose_steps_wait_for_a_slot_are_looked_at_at_once() -> None:
    shard, other = owned(1), owned(2)
    waits: Any = Live(1)
    shard.live["a"] = waits
    paused, woken = made(shard, other, steps=Steps((1, "a"), (1, "not-in-memory"), (7, "not-owned")))
    paused.update({"flow": NOTE})
    assert shard.inputs == {"a": [DUE]}
    assert woken == [1]
    paused.update({"flow": NOTE, "other": NOTE})
    assert shard.inputs == {"a": [DUE]}, "only those of what is new"


def test_runs_of_a_workflow_that_goes_on_are_read_in_all_shards() -> None:
    shard, other = owned(1), owned(2)
    paused, _ = made(shard, other)
    paused.update({"flow": NOTE})
    assert shard.stuck == {}
    paused.update({})
    assert shard.stuck == other.stuck == {(Status.PAUSED, "flow"): 0, (Status.STUCK, "flow"): 0}


def test_a_shard_whose_takeover_met_the_end_of_a_pause_reads_them_later() -> None:
    shard = owned(1)
    shard.unread_while_paused = {"flow", "still"}
    paused, _ = made()
    paused.update({"still": NOTE})
    paused.added(shard)
    assert shard.stuck.keys() == {(Status.PAUSED, "flow"), (Status.STUCK, "flow")}


def test_a_run_that_was_paused_by_an_old_note_is_woken_behind_its_commit() -> None:
    shard = owned(1)
    live: Any = Live(1, 2)
    steps = Steps()
    steps.begun.add(("a", 1))
    paused, _ = made(shard, steps=steps)
    paused.is_recorded(shard, "a", live, WHOLE)
    assert shard.inputs == {"a": [DUE]}
    assert steps.cancelled == [("a", 2)], "what runs goes on"
    paused.is_recorded(shard, "b", live, OWN)
    paused.update({"flow": NOTE})
    paused.is_recorded(shard, "c", live, WHOLE)
    assert list(shard.inputs) == ["a"]


def wanted(before: RunPaused | None, *kinds: str, paused: bool = False, is_cancelling: bool = False) -> Any:
    bodies = {"pause": raw(PauseRequest("lee", "call back"))}
    messages = [InboxMessage("9-0", kind, "r", bytes(bodies.get(kind, raw(None)))) for kind in kinds]
    return pause_wanted({"flow": NOTE} if paused else {}, HEADER, before, messages, is_cancelling=is_cancelling)


def test_what_a_run_is_paused_by() -> None:
    assert wanted(None) is None
    assert wanted(None, paused=True) == WHOLE
    assert wanted(WHOLE) is None, "the workflow goes on"
    assert wanted(None, "signal", "pause") == OWN
    assert wanted(WHOLE, "pause", paused=True) == OWN
    assert wanted(OWN, "pause", paused=True) == OWN
    assert wanted(OWN, "resume") is None
    assert wanted(OWN, "resume", paused=True) == WHOLE
    assert wanted(OWN, "resume", "pause") == OWN
    assert wanted(OWN, "terminate") == OWN, "it ends all the same"
    assert wanted(OWN, "cancel", paused=True) is None
    assert wanted(None, paused=True, is_cancelling=True) is None
    assert wanted(OWN, paused=True, is_cancelling=True) == OWN
    broken = InboxMessage("9-0", "pause", "r", b"\xff")
    assert pause_wanted({}, HEADER, None, [broken], is_cancelling=False) is None


def test_a_stuck_run_stays_stuck_unless_it_is_paused_itself() -> None:
    stuck = Header(Status.STUCK, 3, "c", 1000, 0, "flow", "", "")
    assert keeps_stuck(stuck, WHOLE)
    assert not keeps_stuck(stuck, OWN)
    assert not keeps_stuck(stuck, None)
    assert not keeps_stuck(HEADER, WHOLE)


def test_a_pause_behind_a_cancel_waits() -> None:
    def messages(*kinds: str) -> list[InboxMessage]:
        return [InboxMessage(f"{n}-0", kind, "r", b"") for n, kind in enumerate(kinds)]

    assert behind_cancel(messages("signal", "cancel", "signal", "pause", "signal")) == 3
    assert behind_cancel(messages("pause", "cancel")) == 2
    assert behind_cancel(messages("pause", "signal")) == 2
