"""The sandbox's world honours all that a machine can ask for, also what no machine here asks for by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from msgspec import Raw

import streamflow as sf
import streamflow.testing as sft
from streamflow.events import (
    NOTHING,
    AskAnswered,
    RunContinued,
    RunStarted,
    SignalReceived,
    StepScheduled,
    TimerSet,
    decode_history,
)
from streamflow.machine.run import RunMachine
from streamflow.machine.transition import Effects
from streamflow.model.sharding import Partition
from streamflow.testing import world as worlds
from streamflow.workflow.actions import StepJob

pytestmark = pytest.mark.anyio

app = sf.App()


@app.step(queue="gpu")
async def queued(value: int) -> int:
    return value


@app.step
async def here(value: int) -> int:
    return value


@app.workflow
async def idle() -> None: ...


class Scripted(RunMachine):
    """A machine that does what the test says, one script an advance; then it only takes notes."""

    def __init__(self, *scripts: Callable[[Effects], None]) -> None:
        super().__init__(app, Partition.RUN, "r", "idle")
        self.scripts = list(scripts)
        self.inputs: list[Any] = []

    def advance(self, inputs: list[Any], clock: int, not_before: int = 0, *, in_seal: bool = False) -> Effects:
        self.at = clock
        self.inputs += inputs
        effects = Effects()
        if self.scripts:
            self.scripts.pop(0)(effects)
        return effects


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Scripted]:
    def scripted(*scripts: Callable[[Effects], None]) -> Scripted:
        machine = Scripted(*scripts)
        monkeypatch.setattr(worlds, "new_machine", lambda *_, **__: machine)
        return machine

    return scripted


def started(effects: Effects) -> None:
    effects.events = [RunStarted("idle", "", NOTHING)]


async def test_an_answer_ends_the_wait_of_the_caller(scripted: Callable[..., Scripted]) -> None:
    def answer(effects: Effects) -> None:
        effects.own_besides().answers = [AskAnswered("a" * 32, "seats", Raw(msgspec.msgpack.encode(7)))]
        effects.events = [effects.besides.answers[0]]

    scripted(started, answer)
    async with sft.Sandbox(app) as sandbox:
        run = await sandbox.start(idle, id="r")
        await run.signal("any")
        assert msgspec.msgpack.decode(sandbox.world.answers["a" * 32], type=AskAnswered).result == Raw(b"\x07")


async def test_the_newest_published_values_are_kept(scripted: Callable[..., Scripted]) -> None:
    def publish(**values: bytes) -> Callable[[Effects], None]:
        def script(effects: Effects) -> None:
            effects.events = [SignalReceived("any", NOTHING)]
            effects.own_besides().published = values

        return script

    scripted(started, publish(a=b"\x01", b=b"\x02"), publish(b=b"\x03"))
    async with sft.Sandbox(app) as sandbox:
        run = await sandbox.start(idle, id="r")
        await run.signal("any")
        await run.signal("any")
        assert sandbox.world.records["r"].published == {"a": b"\x01", "b": b"\x03"}


async def test_a_run_that_continues_as_new_keeps_what_comes_from_there_on(scripted: Callable[..., Scripted]) -> None:
    again = RunContinued("idle", "", NOTHING, 0, 1, 1, 1, [])

    def fresh(effects: Effects) -> None:
        effects.events = [SignalReceived("any", NOTHING), again, TimerSet(2, 5)]
        effects.own_besides().fresh = True

    scripted(started, fresh)
    async with sft.Sandbox(app) as sandbox:
        run = await sandbox.start(idle, id="r")
        await run.signal("any")
        (transition,) = await run.history()  # whole: the history begins at the event in it
        assert transition.events == [SignalReceived("any", NOTHING), again, TimerSet(2, 5)]
        assert (await run.export()).transitions == sandbox.world.records["r"].transitions
        assert [type(event) for event in sandbox.world.events("r")] == [
            RunStarted,
            SignalReceived,
            RunContinued,
            TimerSet,
        ]


async def test_attempts_that_are_revoked_or_cancelled_have_no_outcome(scripted: Callable[..., Scripted]) -> None:
    jobs = [StepJob(1, 1, queued, Raw(b"\x91\x01")), StepJob(2, 1, here, Raw(b"\x91\x02"))]

    def schedule(effects: Effects) -> None:
        started(effects)
        effects.events += [StepScheduled(job.seq, job.step.name, job.args) for job in jobs]
        effects.jobs = jobs[:]

    def give_up(effects: Effects) -> None:
        effects.events = [SignalReceived("any", NOTHING)]
        effects.own_besides().revoked = [jobs[0]]
        effects.own_besides().cancelled = [2]

    machine = scripted(schedule, give_up)
    async with sft.Sandbox(app) as sandbox:
        sandbox.stub(queued, takes=60)
        sandbox.stub(here, takes=60)
        run = await sandbox.start(idle, id="r")
        await run.signal("any")
        before = len(machine.inputs)
        await sandbox.sleep(120)
        assert machine.inputs[before:] == []
        assert (len(sandbox.calls(queued)), len(sandbox.calls(here))) == (1, 1)


async def test_an_outcome_comes_when_nobody_cancels_the_step(scripted: Callable[..., Scripted]) -> None:
    def schedule(effects: Effects) -> None:
        started(effects)
        effects.jobs = [StepJob(1, 1, here, Raw(b"\x91\x02"))]

    machine = scripted(schedule)
    async with sft.Sandbox(app) as sandbox:
        sandbox.stub(here, takes=60)
        await sandbox.start(idle, id="r")
        await sandbox.sleep(59)
        assert len(machine.inputs) == 1
        await sandbox.sleep(1)
        assert (machine.inputs[1].seq, machine.inputs[1].ms, machine.inputs[1].result) == (1, 60_000, Raw(b"\x02"))


async def test_a_crash_while_a_step_runs_drops_what_it_gives() -> None:
    crashing = sf.App()

    @crashing.step
    async def number() -> int: ...

    @crashing.workflow
    async def once() -> int:
        return await number()

    async with sft.Sandbox(crashing) as sandbox:
        given: list[int] = []

        def crash_at_first() -> int:
            given.append(len(given))
            if len(given) == 1:
                sandbox.crash()
            return given[-1]

        sandbox.stub(number, crash_at_first)
        assert await (await sandbox.start(once)).result() == 1
        assert [call.attempt for call in sandbox.calls(number)] == [1, 1]


async def test_an_attempt_that_runs_again_gets_the_same_stub() -> None:
    failing = sf.App()

    @failing.step(retry=sf.Retry(attempts=2))
    async def number() -> int:
        return 1

    @failing.workflow
    async def once() -> int:
        return await number()

    async with sft.Sandbox(failing) as sandbox:
        sandbox.stub(number, raises=OSError, takes=5, times=1)
        run = await sandbox.start(once)
        await sandbox.sleep(1)
        sandbox.crash()
        assert await run.result() == 1
        assert [call.attempt for call in sandbox.calls(number)] == [1, 1, 2]


async def test_a_crash_leaves_the_steps_of_queues_to_their_workers() -> None:
    apart = sf.App()

    @apart.step(queue="gpu")
    async def number() -> int:
        return 1

    @apart.workflow
    async def once() -> int:
        return await number()

    async with sft.Sandbox(apart) as sandbox:
        sandbox.stub(number, takes=5)
        run = await sandbox.start(once)
        sandbox.crash()
        assert await run.result() == 1
        assert len(sandbox.calls(number)) == 1


async def test_records_are_bytes_that_decode_to_what_happened() -> None:
    async with sft.Sandbox(app) as sandbox:
        run = await sandbox.start(idle)
        record = sandbox.world.records[run.id]
        assert decode_history(record.transitions) == record.log
        assert (record.head.status, record.head.version, record.head.is_open) == ("completed", 1, False)
