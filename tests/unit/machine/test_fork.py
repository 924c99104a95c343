"""A fork shares a history up to an event: wherever that is, its code goes on, and each replay decides the same."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from msgspec import Raw

import streamflow as sf
import streamflow.testing as sft
from streamflow import events
from streamflow.client import forking
from streamflow.events import (
    RunForked,
    RunRetried,
    StartDelayed,
    StepScheduled,
    TimeoutReached,
    TimeoutSet,
    Transition,
    decode_history,
    encode_transition,
)
from streamflow.machine.factory import rehydrate
from streamflow.machine.fork_point import CannotFork, fork_of
from streamflow.machine.replay import WorkflowMachine
from streamflow.machine.retry_point import first_position, retry_point
from streamflow.machine.transition import RetryRequest
from streamflow.model.record import Header, Status
from streamflow.model.sharding import Partition
from streamflow.store.pauses import Pause
from streamflow.testing.world import World

app = sf.App()
Play = Callable[[sft.Sandbox], Awaitable[str]]


@app.step(retry=sf.Retry(attempts=2, initial=1.0))
async def act(what: str) -> str:
    if what.startswith("bad"):
        raise ValueError(what)
    return what.upper()


@app.step(queue="gpu", retry=sf.NO_RETRY)
async def far(what: str) -> str:
    return what


@app.workflow
async def kid(what: str) -> str:
    await sf.sleep(2)
    return await act(what)


@app.workflow
async def rich(rounds: int = 1) -> list[Any]:
    got: list[Any] = [str(sf.uuid4())]
    sf.set_attributes(step="first")
    got += await sf.gather(act("one"), act("two"), kid("kid"))
    sf.publish("got", len(got))
    if sf.patched("later"):
        got.append(await far("gpu"))
    try:
        await act("bad")
    except sf.StepFailed:
        got.append(await act("mended"))
    got.append(await sf.signal("go", str))
    got.append(await sf.race(act("fast"), kid("slow")))
    async with sf.timeout(60):
        got.append(await sf.signal("again", str))
    if rounds:
        raise sf.ContinueAs(rounds - 1)
    got.append(sf.random())
    return [*got, sf.info().run_id]


@app.workflow
async def tidy() -> str:
    try:
        await act("one")
        await sf.sleep(1000)
    finally:
        await act("tidied")
    return ""


@app.workflow
async def fails() -> str:
    await act("one")
    kept = await act("two")
    return kept + await act("bad end")


@app.workflow(parks=())
async def breaks() -> str:
    raise KeyError(await act("one"))


async def play_rich(sandbox: sft.Sandbox) -> str:
    run = await sandbox.start(rich, 0, id="rich")
    await run.signal("again", "early")
    await sandbox.sleep(20)
    await run.signal("go", "now")
    await run.result()
    return run.id


async def play_child(sandbox: sft.Sandbox) -> str:
    """Of the other run's: a fork of it is nobody's."""
    run = await sandbox.start(rich, 0, id="rich")
    await sandbox.sleep(20)
    started = [event async for _, event in run.events() if isinstance(event, events.ChildStarted)]
    return started[0].run_id


async def play_generations(sandbox: sft.Sandbox) -> str:
    run = await sandbox.start(rich, 1, id="rich")
    for name in ("again", "go", "again", "go"):
        await sandbox.sleep(20)
        await run.signal(name, name)
    await run.result()
    return run.id


async def play_cancelled(sandbox: sft.Sandbox) -> str:
    run = await sandbox.start(tidy, id="tidy")
    await sandbox.sleep(5)
    await run.cancel("enough")
    await sandbox.sleep(5)
    return run.id


async def play_retried(sandbox: sft.Sandbox) -> str:
    run = await sandbox.start(fails, id="fails")
    for _ in range(2):
        await sandbox.sleep(50)
        await run.retry()
    await sandbox.sleep(50)
    return run.id


async def play_stuck(sandbox: sft.Sandbox) -> str:
    buggy = sf.App()
    buggy.steps.update(app.steps)

    @buggy.workflow(name="tidy")
    async def bug() -> str:
        return (await act("one")) + {}["b"]  # type: ignore[index, no-any-return]

    sandbox.deploy(buggy)
    run = await sandbox.start(bug, id="tidy")
    await sandbox.sleep(5)
    await run.signal("held", 1)
    sandbox.deploy(app)
    await sandbox.sleep(5)
    return run.id


def with_bug(fault: type[Exception]) -> sf.App:
    buggy = sf.App(parks=(Exception,))
    buggy.steps.update(app.steps)

    @buggy.workflow(name="tidy")
    async def bug() -> str:
        raise fault(await act("one"))

    return buggy


async def play_stuck_again(sandbox: sft.Sandbox) -> str:
    """For one bug, and in the next release for another one."""
    sandbox.deploy(with_bug(KeyError))
    run = await sandbox.start("tidy", id="tidy")
    for fault in (KeyError, IndexError):
        sandbox.deploy(with_bug(fault))
        await sandbox.sleep(5)
        await run.signal("held", 1)
    sandbox.deploy(app)
    await sandbox.sleep(5)
    return run.id


async def play_bug(sandbox: sft.Sandbox) -> str:
    run = await sandbox.start(breaks, id="breaks")
    await sandbox.sleep(5)
    return run.id


async def play_fork(sandbox: sft.Sandbox) -> str:
    run_id = await play_rich(sandbox)
    history = await sandbox.run(run_id).history()
    [at] = [
        number
        for number, event in enumerate((event for one in history for event in one.events), 1)
        if isinstance(event, events.SignalReceived) and event.name == "go"
    ]
    fork = await sandbox.run(run_id).fork(at + 1)
    await sandbox.sleep(50)
    again = await fork.fork(len([event async for event in fork.events()]) - 3)
    await sandbox.sleep(50)
    return again.id


async def play_timed_out(sandbox: sft.Sandbox) -> str:
    run = await sandbox.start(tidy, delay=5, timeout=30, id="tidy")
    await sandbox.sleep(60)
    return run.id


async def play_times(sandbox: sft.Sandbox) -> str:
    """In each generation, and of each go."""
    run = await sandbox.start(rich, 1, timeout=1000, id="rich")
    for name in ("again", "go", "again", "go"):
        await sandbox.sleep(20)
        await run.signal(name, name)
    await run.result()
    return run.id


async def play_paused(sandbox: sft.Sandbox) -> str:
    await sandbox.pause_workflow("rich")
    run = await sandbox.start(rich, 0, timeout=1000, id="rich")
    await sandbox.resume_workflow("rich")
    for name in ("again", "go"):
        await sandbox.sleep(20)
        await run.pause()
        await run.signal(name, name)
        await sandbox.sleep(20)
        await run.resume()
    await run.result()
    return run.id


async def play_cancelled_in_a_pause(sandbox: sft.Sandbox) -> str:
    run = await sandbox.start(tidy, id="tidy", timeout=5000)
    await run.pause()
    await sandbox.sleep(20)
    await run.cancel("enough")
    await sandbox.sleep(20)
    return run.id


async def play_retried_in_time(sandbox: sft.Sandbox) -> str:
    run = await sandbox.start(fails, id="fails", timeout=5000)
    for _ in range(2):
        await sandbox.sleep(50)
        await run.retry()
    await sandbox.sleep(50)
    return run.id


PENDING = Header(Status.PENDING, 0, "-", 5, 0, "rich", "", "")


async def play_delayed(sandbox: sft.Sandbox) -> str:
    run = await sandbox.start(fails, id="fails", delay=20)
    await sandbox.sleep(100)
    return run.id


async def play_not_due(sandbox: sft.Sandbox) -> str:
    run = await sandbox.start(fails, id="fails", delay=20, timeout=9)
    await sandbox.sleep(5)
    return run.id


async def play_timed(sandbox: sft.Sandbox) -> str:
    run = await sandbox.start(tidy, id="tidy", timeout=50)
    await sandbox.sleep(100)
    await run.retry(anyway=True)
    await sandbox.sleep(100)
    return run.id


async def play_delayed_and_timed(sandbox: sft.Sandbox) -> str:
    run = await sandbox.start(tidy, id="tidy", delay=20, timeout=50)
    await sandbox.sleep(100)
    return run.id


async def play_timed_generations(sandbox: sft.Sandbox) -> str:
    run = await sandbox.start(rich, 1, id="rich", timeout=1000)
    for name in ("again", "go", "again", "go"):
        await sandbox.sleep(20)
        await run.signal(name, name)
    await run.result()
    return run.id


async def play_timed_and_stuck(sandbox: sft.Sandbox) -> str:
    sandbox.deploy(with_bug(KeyError))
    run = await sandbox.start("tidy", id="tidy", timeout=50)
    await sandbox.sleep(5)
    sandbox.deploy(app)
    await sandbox.sleep(100)
    return run.id


async def play_timed_fork(sandbox: sft.Sandbox) -> str:
    run_id = await play_timed_and_stuck(sandbox)
    fork = await sandbox.run(run_id).fork(4)
    await sandbox.sleep(100)
    return fork.id


async def play_paused_early(sandbox: sft.Sandbox) -> str:
    run = await sandbox.start(rich, 0, id="rich", timeout=1000)
    await run.signal("again", "early")
    await sandbox.sleep(2)
    await run.pause()
    await sandbox.sleep(20)
    await run.resume()
    await sandbox.sleep(20)
    await run.pause()
    await run.signal("go", "now")
    await sandbox.sleep(20)
    await run.resume()
    await run.result()
    return run.id


async def play_paused_when_due(sandbox: sft.Sandbox) -> str:
    run = await sandbox.start(tidy, id="tidy", delay=20, timeout=50)
    await sandbox.pause_workflow("tidy")
    await run.pause()
    await sandbox.sleep(10)
    await run.resume()
    await sandbox.sleep(40)
    await sandbox.resume_workflow("tidy")
    await sandbox.sleep(10)
    return run.id


async def play_delayed_and_stuck(sandbox: sft.Sandbox) -> str:
    buggy = sf.App(parks=(Exception,))
    buggy.steps.update(app.steps)

    @buggy.workflow(name="tidy")
    async def bug() -> str:
        raise KeyError

    sandbox.deploy(buggy)
    run = await sandbox.start("tidy", id="tidy", delay=20, timeout=50)
    await sandbox.sleep(40)
    sandbox.deploy(app)
    await sandbox.sleep(10)
    return run.id


async def play_paused_at_once(sandbox: sft.Sandbox) -> str:
    await sandbox.pause_workflow("rich")
    run = await sandbox.start(rich, 0, id="rich")
    await run.signal("again", "early")
    await sandbox.sleep(20)
    await sandbox.resume_workflow("rich")
    await sandbox.sleep(20)
    return run.id


async def play_cancelled_while_paused(sandbox: sft.Sandbox) -> str:
    run = await sandbox.start(tidy, id="tidy", timeout=50)
    await sandbox.sleep(5)
    await run.pause()
    await sandbox.sleep(5)
    await run.cancel("enough")
    await sandbox.sleep(5)
    return run.id


PLAYS = [
    play_rich,
    play_child,
    play_generations,
    play_cancelled,
    play_retried,
    play_stuck,
    play_stuck_again,
    play_bug,
    play_fork,
    play_timed_out,
    play_times,
    play_paused,
    play_cancelled_in_a_pause,
    play_retried_in_time,
    play_delayed,
    play_not_due,
    play_timed,
    play_delayed_and_timed,
    play_timed_generations,
    play_timed_and_stuck,
    play_timed_fork,
    play_paused_early,
    play_paused_when_due,
    play_delayed_and_stuck,
    play_paused_at_once,
    play_cancelled_while_paused,
]


def played(play: Play) -> tuple[str, Header, list[Transition]]:
    async def main() -> tuple[str, Header, list[Transition]]:
        async with sft.Sandbox(app) as sandbox:
            run_id = await play(sandbox)
            world: World = sandbox.world
            record = world.records[run_id]
            return run_id, record.head, decode_history(record.transitions)

    return asyncio.run(main())


def open_in(machine: Any) -> Any:
    steps = {seq: (call.attempt, call.due) for seq, call in machine.steps.items()}
    children = {seq: call.run_id for seq, call in machine.children.items()}
    return steps, sorted(machine.timers), children, machine.seq, machine.created, machine.started, machine.run_id


def new_fork(run_id: str, header: Header, history: list[Transition], at: int | None, **options: Any) -> RunForked:
    fork = fork_of(run_id, header, history, at, options.get("input"), "kim", "")
    return msgspec.structs.replace(fork, created=5_000_000_000_000)


@pytest.mark.parametrize("play", PLAYS, ids=lambda play: play.__name__)
def test_it_goes_on_from_before_each_event_and_each_replay_agrees(play: Play) -> None:
    run_id, header, history = played(play)
    recorded = [event for transition in history for event in transition.events]
    clock = history[-1].at + 1000
    forked = 0
    for at in range(1, len(recorded) + 2):
        if at <= first_position(history[0]):  # of the generation before
            with pytest.raises(CannotFork, match="continued as new"):
                new_fork(run_id, header, history, at)
            continue
        fork = new_fork(run_id, header, history, at)
        forked += 1
        named = max(at - 1, first_position(history[0]) + 1)
        times = [event for event in recorded[named : fork.shared] if isinstance(event, StartDelayed | TimeoutSet)]
        assert fork.shared <= named + len(times)  # those of a beginning are shared with it
        head = Header(Status.PENDING, 0, "-", 5, 0, header.workflow, "", "")
        machine = rehydrate(app, Partition.RUN, "forked", head, b"", [], fork=fork)
        assert (machine.run_id, machine.begun_jobs(clock), machine.running_jobs()) == ("forked", [], [])
        effects = machine.advance([fork], clock)
        failure = next((e.failure for e in effects.events if isinstance(e, events.RunFailed)), None)
        assert failure is None or failure.kind not in ("NotForked", "KeyError") or play is play_bug, (at, failure)
        assert isinstance(first := effects.events[0], RunForked)
        assert first.history == fork.history
        assert all(attempt == 1 for _, attempt in first.attempts)
        if effects.ended:
            continue
        assert machine.seq >= fork.seq
        assert machine.steps or machine.timers or machine.children or machine.awaited_messages or machine.begins, at
        shared = recorded[: fork.shared]
        if any(isinstance(event, TimeoutSet) for event in recorded) and not machine.begins:
            times = [event for event in shared if isinstance(event, TimeoutReached | RunRetried)]
            is_over = bool(times) and isinstance(times[-1], TimeoutReached)
            assert machine.over_at == (0 if is_over else clock + machine.time_limit), at
        element = encode_transition(machine.at, effects.events, effects.besides.unrecorded)
        opened = msgspec.structs.replace(head, status=effects.status, version=1)
        stored = [element]
        again = rehydrate(app, Partition.RUN, "forked", opened, b"", decode_history(stored))
        assert (again.reason, open_in(again)) == ("", open_in(machine)), at
        assert (again.status, again.over_at) == (machine.status, machine.over_at)
        assert again.events_count == machine.events_count
        assert (again.parent, again.created) == ("", fork.created)
        other = sf.App()  # whose code can't be replayed
        blind = rehydrate(other, Partition.RUN, "forked", opened, b"", decode_history(stored))
        assert sorted(blind.steps) == sorted(machine.steps)
        assert {seq: child.run_id for seq, child in machine.children.items()}.items() <= {
            seq: child.run_id for seq, child in blind.children.items()
        }.items()
    assert forked


def numbered(history: list[Transition], kind: type, nth: int = 0) -> int:
    recorded = [event for transition in history for event in transition.events]
    return [number for number, event in enumerate(recorded, 1) if isinstance(event, kind)][nth]


def test_a_decision_is_made_again_with_all_that_were_made_with_it() -> None:
    run_id, header, history = played(play_rich)
    third = numbered(history, StepScheduled, 1)
    fork = new_fork(run_id, header, history, third)
    assert (fork.shared, fork.kept) == (1, 0)
    machine = rehydrate(app, Partition.RUN, "forked", PENDING, b"", [], fork=fork)
    effects = machine.advance([fork], history[-1].at)
    assert [event.seq for event in effects.events if isinstance(event, StepScheduled)] == [1, 2]


def test_random_numbers_and_ids_are_its_own_behind_what_it_shares() -> None:
    async def main() -> list[list[Any]]:
        async with sft.Sandbox(app) as sandbox:
            run_id = await play_rich(sandbox)
            run = sandbox.run(run_id)
            first = await run.result()
            at = numbered(await run.history(), events.SignalReceived, 1)
            forks = [await run.fork(at), await run.fork(at)]
            found = [first]
            for fork in forks:
                await fork.signal("go", "now")
                found.append(await fork.result())
            return found

    first, *forks = asyncio.run(main())
    assert [fork[:-2] for fork in forks] == [first[:-2]] * 2  # with the uuid before the event
    assert len({first[-2], forks[0][-2], forks[1][-2]}) == 3
    assert [fork[-1] for fork in forks] == ["rich.fork-" + fork[-1][-12:] for fork in forks]


@pytest.mark.parametrize(
    ("play", "kind"),
    [
        (play_retried, events.StepFailed),
        (play_retried_in_time, events.StepFailed),
        (play_cancelled, events.CancelRequested),
        (play_timed_out, TimeoutReached),
        (play_bug, events.RunFailed),
    ],
    ids=["failed", "failed in time", "cancelled", "timed out", "bug"],
)
def test_without_an_event_it_goes_on_before_what_ended_the_run(play: Play, kind: type) -> None:
    run_id, header, history = played(play)
    fork = new_fork(run_id, header, history, None)
    assert fork.shared == numbered(history, kind, -1) - 1


def test_a_fork_that_does_not_fit_fails_and_harms_nothing() -> None:
    run_id, header, history = played(play_rich)
    fork = new_fork(run_id, header, history, len(history))
    other = sf.App()

    @other.workflow(name="rich")
    async def different(rounds: int) -> None:
        await sf.sleep(1)

    machine = rehydrate(other, Partition.RUN, "forked", PENDING, b"", [], fork=fork)
    effects = machine.advance([fork], history[-1].at)
    assert [type(event) for event in effects.events] == [RunForked, events.RunFailed]
    assert isinstance(failed := effects.events[-1], events.RunFailed)
    assert failed.failure.kind == "NotForked"
    assert failed.failure.message.endswith("retry this run, or fork from before that.")
    assert "continues" not in failed.failure.message
    assert (list(effects.besides.outbox), list(effects.besides.revoked), effects.jobs) == ([], [], [])
    assert effects.besides.attributes == {"step": "first", "forked_from": "rich"} or effects.besides.attributes == {
        "forked_from": "rich"
    }


@pytest.mark.parametrize("crash", [False, True])
def test_a_fork_of_a_paused_workflow_begins_nothing(crash: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with sft.Sandbox(app) as sandbox:
            run = await sandbox.start(rich, 0)
            await sandbox.sleep(20)
            known = set(sandbox.world.records)
            await sandbox.pause_workflow("rich", reason="429")
            with pytest.raises(sf.NotForked, match="is paused 429"):
                await run.fork()
            assert set(sandbox.world.records) == known
            monkeypatch.setattr(forking, "check_not_paused", lambda *_: None)
            if crash:
                sandbox.crash()
            fork = await run.fork(3)
            with pytest.raises(sf.RunFailed, match="Paused: its workflow is paused: 429"):
                await fork.result()
            assert set(sandbox.world.records) == {*known, fork.id}, "no child of it has begun"
            assert [type(event) for event in sandbox.world.events(fork.id)][-2:] == [RunForked, events.RunFailed]
            await sandbox.resume_workflow("rich")
            again = await run.fork(3)
            await sandbox.sleep(1)
            assert (await again.describe()).status == "running"

    asyncio.run(main())


def test_a_start_that_waits_while_a_pause_ends_begins() -> None:
    """Its owner has died meanwhile, and had the run in memory as a paused one."""
    world = World(app, Partition.RUN)
    world.pause_workflow("rich", Pause(world.now))
    world.start("r", "rich", "", b"\x90")
    world.crash()
    world.pause_workflow("rich", None)
    assert asyncio.run(world.step())
    assert [type(event) for event in world.events("r")][:2] == [events.RunStarted, StepScheduled]
    world.close()


@pytest.mark.parametrize("at", [None, 2], ids=["behind its last fact", "at its beginning"])
def test_a_fork_that_failed_at_once_is_retried_as_itself(at: int | None) -> None:
    """The gap of the retry has the event by which it became this run."""
    run_id, header, history = played(play_bug)
    fork = new_fork(run_id, header, history, at)
    begun = msgspec.structs.replace(PENDING, workflow="breaks")
    buggy, mended = sf.App(parks=()), sf.App()
    for each in (buggy, mended):
        each.steps.update(app.steps)

    @buggy.workflow(name="breaks")
    async def bad() -> str:
        raise KeyError if at == 2 else KeyError(await act("one"))

    @mended.workflow(name="breaks")
    async def good() -> list[str]:
        return [await act("one"), sf.info().run_id, str(sf.uuid4())]

    machine = rehydrate(buggy, Partition.RUN, "forked", begun, b"", [], fork=fork)
    effects = machine.advance([fork], history[-1].at)
    assert effects.ended
    stored = [encode_transition(machine.at, effects.events)]
    failed = msgspec.structs.replace(begun, status=Status.FAILED, version=1, ended=9)
    point = retry_point("forked", decode_history(stored))
    again = rehydrate(mended, Partition.RUN, "forked", failed, b"", decode_history(stored), retry=point)
    request = RetryRequest("a" * 32, failed.created, 1)
    effects = again.advance([request], history[-1].at)
    assert effects.events, effects.besides.answers
    assert isinstance(effects.events[0], RunRetried)
    assert (again.created, again.parent, again.run_id) == (fork.created, "", "forked")
    stored.append(encode_transition(again.at, effects.events))
    opened = msgspec.structs.replace(begun, status=Status.RUNNING, version=2)
    replayed = rehydrate(mended, Partition.RUN, "forked", opened, b"", decode_history(stored))
    assert (replayed.reason, open_in(replayed)) == ("", open_in(again))


def test_a_workflow_that_has_become_a_reducer_takes_no_fork() -> None:
    run_id, header, history = played(play_rich)
    fork = new_fork(run_id, header, history, 3)
    other = sf.App()

    @other.reducer(name="rich")
    def different(state: int, event: sf.Event) -> sf.Decision:
        return sf.Decision(state)

    machine = rehydrate(other, Partition.RUN, "forked", PENDING, b"", [], fork=fork)
    effects = machine.advance([fork], history[-1].at)
    assert isinstance(failed := effects.events[-1], events.RunFailed)
    assert "is a reducer by now" in failed.failure.message


@pytest.mark.parametrize(
    ("at", "kind"), [(0, "NoSuchEvent"), (10_000, "NoSuchEvent"), (None, "SayWhere")], ids=["0", "10,000", "no"]
)
def test_refusals(at: int | None, kind: str) -> None:
    run_id, header, history = played(play_rich)
    with pytest.raises(CannotFork) as found:
        new_fork(run_id, header, history, at)
    assert found.value.kind == kind


def test_a_history_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    run_id, header, history = played(play_rich)
    monkeypatch.setattr("streamflow.machine.fork_point.MOST_BYTES", 100)
    with pytest.raises(CannotFork, match="MB") as found:
        new_fork(run_id, header, history, 20)
    assert found.value.kind == "TooLarge"
    monkeypatch.setattr("streamflow.machine.fork_point.MOST_EVENTS", 10)
    with pytest.raises(CannotFork, match="events") as found:
        new_fork(run_id, header, history, 20)
    assert found.value.kind == "HistoryTooLong"


def test_another_input_is_in_the_first_event() -> None:
    run_id, header, history = played(play_rich)
    fork = new_fork(run_id, header, history, None, input=Raw(b"\x91\x07"))
    assert isinstance(started := fork.history[0].events[0], events.RunStarted)
    assert (bytes(started.input), fork.changed, fork.shared) == (b"\x91\x07", True, 1)


def test_machines_of_other_runs_know_nothing_of_it() -> None:
    machine = WorkflowMachine(app, Partition.RUN, "plain", "rich")
    assert machine.forking is None
