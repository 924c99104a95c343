"""Which steps and code a process tries alone after its predecessor died, and what its note says meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest

import streamflow as sf
from streamflow.loops import wait_until
from streamflow.machine.transition import Outcome
from streamflow.steps import suspects as module
from streamflow.steps.executor import StepExecutor
from streamflow.steps.suspects import Note, Suspect, Suspects, decode_note, encode_note, read_notes
from streamflow.workflow.actions import StepJob
from tests.support.fakes import KERNEL, FakeStore
from tests.support.machine_driver import raw

pytestmark = pytest.mark.anyio

app = sf.App()
gates: dict[int, asyncio.Event] = {}


@app.step
async def wait(number: int) -> None:
    await gates[number].wait()


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(10):
        await wait_until(condition, 0.001)


class Bench:
    def __init__(self) -> None:
        self.store = FakeStore(mark_suspects=b"OK")
        self.ended: list[int] = []
        self.executor = StepExecutor(100, 1, self._outcome)
        any_store: Any = self.store
        self.suspects = Suspects(self.executor, any_store, KERNEL, "me")

    def _outcome(self, _shard: int, _run_id: str, outcome: Outcome) -> None:
        self.ended.append(outcome.seq)

    def submit(self, *seqs: int, lost: int = 1, blamed: bool = False) -> None:
        for seq in seqs:
            gates[seq] = asyncio.Event()
            job = StepJob(seq, lost + 1, app.steps["wait"], raw([seq]))
            job.lost, job.blamed = lost, blamed
            self.suspects.submit(0, "r", job)

    def end(self, *seqs: int) -> None:
        for seq in seqs:
            gates[seq].set()

    @property
    def begun(self) -> set[int]:
        return {seq for seq in gates if self.executor.has("r", seq)}

    @property
    def note(self) -> Note:
        sent = self.store.sent("mark_suspects")
        return decode_note(sent[-1].args[1]) if sent else Note()


@pytest.fixture
async def it(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    gates.clear()
    for name in ("TRIAL", "ALL_TRIALS", "HALF_TIME", "HOLD"):
        monkeypatch.setattr(module, name, 60.0)  # whatever takes that long never ends in a test
    bench = Bench()
    tasks = [asyncio.create_task(loop()) for loop in (bench.suspects.run, bench.suspects.run_notes)]
    yield bench
    for task in tasks:
        task.cancel()
    bench.executor.close()


async def test_a_step_that_was_never_lost_starts_at_once_and_is_not_noted(it: Bench) -> None:
    it.submit(1, 2, lost=0)
    assert it.begun == {1, 2}
    await asyncio.sleep(0.01)
    assert it.store.calls == []


async def test_steps_that_were_lost_once_are_tried_one_after_another(it: Bench) -> None:
    it.submit(1, 2, 3)
    await until(lambda: it.begun == {1})
    assert it.note.last == Suspect(0, "r", 1, 1)
    assert [suspect.seq for suspect in it.note.waiting] == [2, 3]
    assert it.note.blames("r", 1)
    assert not it.note.blames("r", 2)
    it.end(1)
    await until(lambda: it.begun == {2})
    assert it.note.last == Suspect(0, "r", 2, 1)


async def test_the_note_names_a_step_before_it_begins(it: Bench) -> None:
    begun_at_note: list[set[int]] = []

    def mark(_: Any) -> bytes:
        begun_at_note.append(it.begun)
        return b"OK"

    it.store.answers["mark_suspects"] = mark
    it.submit(1)
    await until(lambda: it.begun == {1})
    assert begun_at_note[0] == set()


async def test_a_step_that_outlives_its_trial_is_still_noted_but_not_blamed(
    it: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TRIAL", 0.02)
    it.submit(1, 2)
    await until(lambda: it.begun == {1, 2} and it.note.last is None)
    assert [suspect.seq for suspect in it.note.running] == [1, 2]
    assert not it.note.blames("r", 1)
    assert not it.note.blames("r", 2)
    it.end(2)
    await until(lambda: [suspect.seq for suspect in it.note.running] == [1])
    assert it.note.blames("r", 1), "nothing else that is suspect runs"
    it.end(1)
    await until(lambda: it.note == Note())


async def test_a_step_that_has_run_for_long_has_begun_and_is_not_to_blame(
    it: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So its process's death counts as its loss, and when it was lost often enough, it is suspected all the same."""
    monkeypatch.setattr(module, "TRIAL", 0.02)
    monkeypatch.setattr(module, "HALF_TIME", 0.0)
    monkeypatch.setattr(module, "LONGEST_MARK", 0.05)
    it.submit(1)
    it.submit(2, lost=module.ALWAYS_AFTER)
    await until(lambda: [suspect.seq for suspect in it.note.older] == [1])
    await until(lambda: [suspect.seq for suspect in it.note.running] == [2])
    assert it.note.has_begun("r", 1)
    assert not it.note.blames("r", 1)
    assert it.note.blames("r", 2)


async def test_of_steps_that_were_lost_again_half_begin_first(it: Bench) -> None:
    it.submit(*range(8), lost=2)
    await until(lambda: len(it.begun) == 4)
    first = it.begun
    await asyncio.sleep(0.02)
    assert it.begun == first
    it.end(*first)
    await until(lambda: len(it.begun) == 2)
    it.end(*range(8))
    await until(lambda: len(it.ended) == 8)


async def test_those_that_were_lost_most_often_come_last(it: Bench) -> None:
    it.submit(1, lost=3)
    it.submit(2, lost=2)
    await until(lambda: it.begun == {1} or it.begun == {2})
    first = it.begun
    it.end(*first)
    await until(lambda: it.begun == {1, 2} - first)
    it.submit(3, lost=2)
    it.submit(4, lost=4)
    it.end(*it.begun)
    await until(lambda: it.begun == {3})


async def test_a_step_that_is_to_blame_waits_until_nothing_else_runs(it: Bench) -> None:
    it.submit(1, lost=0)
    it.submit(2, lost=2, blamed=True)
    it.submit(3, 4, lost=2)
    await until(lambda: it.begun == {1, 3, 4})  # with one to blame, the others are hardly suspect
    it.end(3, 4)
    await asyncio.sleep(0.02)
    assert it.begun == {1}
    it.end(1)
    await until(lambda: it.begun == {2})
    assert it.note.blames("r", 2)


async def test_but_not_forever(it: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HOLD", 0.02)
    it.submit(1, lost=0)
    it.submit(2, lost=2, blamed=True)
    await until(lambda: it.begun == {1, 2})


async def test_a_step_that_is_cancelled_before_its_trial_never_begins(it: Bench) -> None:
    it.submit(1, 2, 3)
    await until(lambda: it.begun == {1})
    it.suspects.cancel("r", 2)
    it.end(1)
    await until(lambda: it.begun == {3})
    it.suspects.forget_shards([0])
    await until(lambda: it.note.waiting == ())


async def test_the_code_of_a_run_is_noted_until_it_has_decided(it: Bench) -> None:
    await it.suspects.mark_code(3, "bad", "c7")
    assert it.note.code == Suspect(3, "bad", 0, 1, commit="c7")
    it.suspects.code_ended(more=False)
    await until(lambda: it.note == Note())


async def test_no_step_begins_while_suspect_code_waits_or_runs(it: Bench) -> None:
    code = [True]
    it.suspects.code_waits = lambda: code[0]
    it.submit(1)
    await asyncio.sleep(0.03)
    assert it.begun == set()
    code[0] = False
    await until(lambda: it.begun == {1})
    assert it.suspects.trying


async def test_code_that_came_while_a_step_was_held_goes_first(it: Bench) -> None:
    """Its death would otherwise have two culprits, and blame neither."""
    code = [False]
    it.suspects.code_waits = lambda: code[0]
    it.submit(1, lost=0)
    it.submit(2, lost=2, blamed=True)
    await asyncio.sleep(0.03)
    code[0] = True
    it.end(1)
    await asyncio.sleep(0.03)
    assert it.begun == set()
    code[0] = False
    await until(lambda: it.begun == {2})


async def test_suspect_code_may_run_again_after_a_trial(it: Bench) -> None:
    tried: list[bool] = []
    it.suspects.on_tried = lambda: tried.append(it.suspects.trying)
    it.submit(1)
    await until(lambda: it.begun == {1})
    it.end(1)
    await until(lambda: tried == [False])


async def test_no_step_is_to_blame_when_code_was_being_run(it: Bench) -> None:
    only = Suspect(0, "r", 1, 2)
    assert Note(running=(only,)).blames("r", 1)
    assert not Note(code=Suspect(0, "bad", 0, 1), running=(only,)).blames("r", 1)


async def test_the_note_no_longer_names_what_belongs_to_another_owner(it: Bench) -> None:
    it.suspects.learn(Suspect(4, "worse", 0, 2))
    await it.suspects.mark_code(3, "bad", "c7")
    it.suspects.code_ended(more=True)
    it.suspects.forget_shards([3])
    it.suspects.forget_shards([4])
    await until(lambda: it.note == Note())


async def test_what_is_known_of_other_code_is_carried_on(it: Bench) -> None:
    it.suspects.learn(Suspect(3, "bad", 0, 2))
    it.suspects.learn(Suspect(4, "worse", 0, 2))
    await it.suspects.mark_code(3, "bad", "c7")
    assert it.note.code == Suspect(3, "bad", 0, 2, commit="c7"), "one more death of it makes three"
    assert it.note.waiting == (Suspect(4, "worse", 0, 2),)
    it.suspects.acquit(3, "bad")
    it.suspects.code_ended(more=False)
    await until(lambda: it.note.code is None)
    assert it.note.waiting == (Suspect(4, "worse", 0, 2),)


async def test_notes_of_the_dead_are_read_and_garbage_is_an_empty_one() -> None:
    note = Note(code=Suspect(1, "r", 0, 2, "why"))
    stored = {KERNEL.keys.suspects("a"): encode_note(note), KERNEL.keys.suspects("b"): b"{garbage"}
    stored[KERNEL.keys.suspects("c")] = b"[" * 100_000
    store: Any = FakeStore(GET=lambda call: stored.get(call.args[1]))
    assert await read_notes(store, KERNEL, ["a", "b", "c", "a", ""]) == {"a": note, "b": Note(), "c": Note()}
