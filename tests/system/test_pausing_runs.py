"""A paused run, or workflow: nothing new of it begins, what is under way ends, and everything goes on later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

import streamflow as sf
from streamflow import actions
from streamflow.daemon.daemon import Daemon
from streamflow.embedded.server import EmbeddedServer
from streamflow.errors import NotRetried
from streamflow.events import (
    AskReceived,
    RunPaused,
    SignalReceived,
    StepCompleted,
    StepRetrying,
    StepScheduled,
    TimerFired,
)
from tests.support.shell import Shell
from tests.support.waiting import DEADLINE, events_of, happened, status_of, until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio

OFTEN = sf.Retry(attempts=1000, initial=0.01, maximum=0.01, jitter=0)


class Bank:
    """Steps and workflows whose steps go on when they are let."""

    def __init__(self) -> None:
        self.app = app = sf.App()
        self.begun: list[str] = []
        self.open = anyio.Event()
        """Until then a step `pay` runs."""
        self.is_down = True

        @app.step
        async def pay(what: str) -> str:
            self.begun.append(what)
            await self.open.wait()
            return what

        @app.step(retry=OFTEN)
        async def charge(what: str) -> str:
            self.begun.append(what)
            if self.is_down:
                raise ConnectionError("the bank is down")
            return what

        @app.step
        async def refund(what: str) -> str:
            self.begun.append(f"refund {what}")
            return what

        @app.workflow
        async def order(what: str) -> list[Any]:
            paid = await pay(what)
            got = [await sf.signal("tip", int), await sf.signal("tip", int)]
            await sf.sleep(0.01)
            return [paid, *got, await pay("second")]

        @app.workflow
        async def storm(what: str) -> str:
            return await charge(what)

        @app.workflow
        async def trip(what: str) -> str:
            try:
                await sf.signal("go")
                return await charge(what)
            finally:
                await refund(what)

        @app.workflow
        async def shop(what: str) -> str:
            return await storm.options(id=f"{what}-kid")(what)

        @app.workflow
        async def loop(round: int) -> int:
            if await sf.signal("next", int) == 9:
                return round
            raise sf.ContinueAs(round + 1)

        @app.workflow
        async def answers() -> int:
            await sf.signal("begin")
            total = 0
            while total < 3:
                question = await sf.question("add", int)
                total += question.value
                question.answer(total)
            return total

        @app.reducer
        def tally(state: list[int], event: sf.Event) -> sf.Decision:
            if isinstance(event, sf.Signal):
                state.append(event.value)
                self.begun.append(f"tally {event.value}")
                if event.value == 9:
                    return sf.Decision(state, [sf.Complete(state)])
            return sf.Decision(state)

    async def begins(self, count: int) -> None:
        async def begun() -> bool:
            return len(self.begun) >= count

        await until(begun)


async def knows(daemon: Daemon, *workflows: str) -> None:
    """Wait until the daemon has heard which workflows are paused."""

    async def heard() -> bool:
        return daemon.owner.paused.notes.keys() == set(workflows)

    await until(heard)


async def is_idle(daemon: Daemon) -> None:
    """Everything that has come is taken, and what was paused or stuck is looked at."""

    async def idle() -> bool:
        shards = daemon.owner.shards.values()
        return bool(shards) and not any(shard.stuck or shard.has_work or shard.busy for shard in shards)

    await until(idle)


async def paused(run: sf.Run[Any]) -> RunPaused:
    await status_of(run, sf.Status.PAUSED)
    return [event for event in await events_of(run) if isinstance(event, RunPaused)][-1]


async def test_a_paused_run_ends_what_is_under_way_and_begins_nothing(serve: Serve) -> None:
    bank = Bank()
    async with serve(bank.app) as (client, _):
        run: sf.Run[Any] = await client.start("order", "tea", id="tea")
        await bank.begins(1)
        await run.pause(reason="the customer calls back", by="kim")
        pause = await paused(run)
        assert (pause.scope, pause.by, pause.reason) == ("run", "kim", "the customer calls back")
        bank.open.set()
        await happened(run, StepCompleted)
        await run.signal("tip", 1)
        await run.signal("tip", 2)
        await happened(run, SignalReceived, 2)
        assert await run.read("nothing", default=None) is None
        described = await run.describe()
        assert described.status == "paused"
        assert described.reason == "it is paused by kim: the customer calls back"
        assert (described.waits_for[0].kind, described.waits_for[0].why) == ("pause", "by kim: the customer calls back")
        assert [found.id for found in await client.runs(status="paused")] == ["tea"]
        with pytest.raises(TimeoutError, match="it is paused by kim: the customer calls back"):
            await run.result(0.01)
        assert bank.begun == ["tea"]
        await run.resume()
        assert await run.result(DEADLINE) == ["tea", 1, 2, "second"]
        names = [type(event).__name__ for event in await events_of(run)]
        assert names[names.index("RunPaused") :][:6] == [
            *("RunPaused", "StepCompleted", "SignalReceived", "SignalReceived", "PauseEnded", "TimerSet")
        ]


async def test_a_retry_storm_stops_when_its_workflow_is_paused(serve: Serve) -> None:
    bank = Bank()
    async with serve(bank.app) as (client, daemon):
        runs: list[sf.Run[Any]] = [await client.start("storm", f"r{n}", id=f"r{n}") for n in range(10)]
        await bank.begins(100)
        assert await client.pause_workflow("storm", reason="429", by="kim") is None
        again = await client.pause_workflow("storm", by="lee")
        assert again is not None
        assert (again.by, again.reason) == ("kim", "429"), "who was first"
        await knows(daemon, "storm")
        for run in runs:
            assert (await paused(run)).scope == "workflow"
        await is_idle(daemon)
        count = len(bank.begun)
        late: sf.Run[Any] = await client.start("storm", "late", id="late")
        assert (await paused(late)).reason == "429"
        assert (await client.runs(status="paused", limit=100)).looked_at == 11
        other: sf.Run[Any] = await client.start("loop", 0, id="other")
        await other.signal("next", 9)
        assert await other.result(DEADLINE) == 0, "other workflows go on"
        bank.is_down = False
        assert len(bank.begun) == count
        was = await client.resume_workflow("storm")
        assert was is not None
        assert was.by == "kim"
        assert [await run.result(DEADLINE) for run in [*runs, late]] == [*(f"r{n}" for n in range(10)), "late"]
        assert await client.paused_workflows() == {}
        assert await client.resume_workflow("storm") is None


async def test_steps_that_wait_for_a_slot_do_not_begin(serve: Serve) -> None:
    bank = Bank()
    async with serve(bank.app, concurrency=1) as (client, daemon):
        runs: list[sf.Run[Any]] = [await client.start("order", f"r{n}", id=f"r{n}") for n in range(8)]
        await bank.begins(1)

        async def all_wait() -> bool:
            return daemon.executor.waiting == 7

        await until(all_wait)
        await client.pause_workflow("order")
        await knows(daemon, "order")

        async def none_waits() -> bool:
            return daemon.executor.waiting == 0

        await until(none_waits)
        bank.open.set()
        first = next(run for run in runs if run.id == bank.begun[0])
        await happened(first, StepCompleted)
        await paused(first)
        await is_idle(daemon)
        assert len(bank.begun) == 1
        await client.resume_workflow("order")
        for run in runs:
            await run.signal("tip", 1)
            await run.signal("tip", 2)
        assert [await run.result(DEADLINE) for run in runs] == [[f"r{n}", 1, 2, "second"] for n in range(8)]
        assert len(bank.begun) == 16, "none of them has begun twice"


async def test_a_pause_outlives_its_owner_and_goes_on_at_another(serve: Serve) -> None:
    bank = Bank()
    async with serve(bank.app, crash=True) as (client, daemon):
        own: sf.Run[Any] = await client.start("loop", 0, id="own")
        whole: sf.Run[Any] = await client.start("storm", "w", id="whole")
        await bank.begins(3)
        await own.pause(by="kim")
        await paused(own)
        await client.pause_workflow("storm")
        await knows(daemon, "storm")
        await paused(whole)
    count = len(bank.begun)
    async with serve(bank.app, crash=True) as (client, daemon):
        await knows(daemon, "storm")
        await own.signal("next", 1)
        await happened(own, SignalReceived)
        new: sf.Run[Any] = await client.start("storm", "new", id="new")
        await paused(new)
        await is_idle(daemon)
        assert (await own.describe()).status == (await whole.describe()).status == "paused"
        assert len(bank.begun) == count
        assert len([event for event in await events_of(own) if isinstance(event, RunPaused)]) == 1
    bank.is_down = False
    async with serve(bank.app) as (client, _):
        await client.resume_workflow("storm")
        await own.resume()
        assert await whole.result(DEADLINE) == "w"
        assert await new.result(DEADLINE) == "new"
        await own.signal("next", 9)
        assert await own.result(DEADLINE) == 1


async def test_a_workflow_that_goes_on_while_no_daemon_runs(serve: Serve) -> None:
    """Its owner dies between the end of the pause and the runs that it should have read."""
    bank = Bank()
    async with serve(bank.app, crash=True) as (client, daemon):
        run: sf.Run[Any] = await client.start("storm", "w", id="whole")
        await bank.begins(3)
        await client.pause_workflow("storm")
        await knows(daemon, "storm")
        await paused(run)
    await client.resume_workflow("storm")
    bank.is_down = False
    async with serve(bank.app):
        assert await run.result(DEADLINE) == "w"


async def test_a_cancel_ends_the_pause_of_its_run_which_cleans_up(serve: Serve) -> None:
    bank = Bank()
    async with serve(bank.app) as (client, daemon):
        own: sf.Run[Any] = await client.start("trip", "own", id="own")
        whole: sf.Run[Any] = await client.start("trip", "whole", id="whole")
        await status_of(whole, sf.Status.RUNNING)
        await own.pause()
        await paused(own)
        await client.pause_workflow("trip")
        await knows(daemon, "trip")
        await own.signal("go")
        await whole.signal("go")
        await paused(whole)
        for run in (own, whole):
            await run.cancel("enough")
            with pytest.raises(sf.RunCancelled, match="enough"):
                await run.result(DEADLINE)
        assert sorted(bank.begun) == ["refund own", "refund whole"], "and the step that the signal was for did not"
        ended: sf.Run[Any] = await client.start("trip", "forced", id="forced")
        await paused(ended)
        await ended.terminate("now")
        with pytest.raises(sf.RunCancelled, match="now"):
            await ended.result(DEADLINE)
        assert "refund forced" not in bank.begun
        assert await client.runs(status="paused") == []


async def test_a_pause_behind_a_cancel_holds_the_clean_up(serve: Serve) -> None:
    bank = Bank()
    async with serve(bank.app, crash=True) as (client, _):
        run: sf.Run[Any] = await client.start("trip", "t", id="t")
        await status_of(run, sf.Status.RUNNING)
    await run.cancel("enough")
    await run.pause(by="kim")
    async with serve(bank.app) as (client, _):
        assert (await paused(run)).by == "kim"
        await run.resume()
        with pytest.raises(sf.RunCancelled, match="enough"):
            await run.result(DEADLINE)
        assert bank.begun == ["refund t"]


async def test_timers_and_questions_are_taken_in_order_when_it_goes_on(serve: Serve) -> None:
    bank = Bank()
    async with serve(bank.app) as (client, _):
        run: sf.Run[Any] = await client.start("answers", id="a")
        await status_of(run, sf.Status.RUNNING)
        await run.pause()
        await paused(run)
        await run.signal("begin")
        answers: list[int] = []

        async def ask(value: int) -> None:
            answers.append(await run.ask("add", value, DEADLINE, type=int))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, 1)
            await happened(run, AskReceived)
            tasks.start_soon(ask, 2)
            await happened(run, AskReceived, 2)
            assert answers == []
            await run.resume()
        assert sorted(answers) == [1, 3]
        assert await run.result(DEADLINE) == 3

        bank.open.set()
        sleeper: sf.Run[Any] = await client.start("order", "s", id="s")
        await sleeper.signal("tip", 1)
        await happened(sleeper, StepCompleted)
        await sleeper.pause()
        await paused(sleeper)
        await sleeper.signal("tip", 2)
        await happened(sleeper, SignalReceived, 2)
        await sleeper.resume()
        assert await sleeper.result(DEADLINE) == ["s", 1, 2, "second"]


async def test_a_timer_that_falls_due_meanwhile_is_recorded_and_waits(serve: Serve) -> None:
    app = sf.App()
    woken = list[str]()

    @app.step
    async def wake(what: str) -> None:
        woken.append(what)

    @app.workflow
    async def sleeps() -> None:
        await sf.sleep(0.3)
        await wake("up")

    async with serve(app) as (client, _):
        run: sf.Run[Any] = await client.start("sleeps", id="s")
        await run.pause()
        await paused(run)
        await happened(run, TimerFired)
        assert woken == []
        assert (await run.describe()).status == "paused"
        await run.resume()
        await run.result(DEADLINE)
        assert woken == ["up"]


async def test_a_reducer_is_paused_like_a_workflow(serve: Serve) -> None:
    bank = Bank()
    async with serve(bank.app, crash=True) as (client, _):
        run: sf.Run[Any] = await client.start("tally", [], id="t")
        await run.signal("add", 1)
        await happened(run, SignalReceived)
        await run.pause(by="kim")
        await paused(run)
        for value in (2, 3):
            await run.signal("add", value)
        await happened(run, SignalReceived, 3)
    async with serve(bank.app) as (client, daemon):
        await run.signal("add", 4)
        await happened(run, SignalReceived, 4)
        await is_idle(daemon)
        assert bank.begun == ["tally 1"]
        assert (await run.describe()).reason == "it is paused by kim"
        await run.resume()
        await run.signal("add", 9)
        assert await run.result(DEADLINE) == [1, 2, 3, 4, 9]


async def test_nothing_of_a_paused_run_is_retried(serve: Serve) -> None:
    bank = Bank()
    app = bank.app

    @app.step
    async def breaks() -> None:
        raise ValueError("no")

    @app.workflow
    async def fails() -> None:
        await breaks.options(retry=sf.Retry(attempts=1))()

    async with serve(app) as (client, daemon):
        failed: sf.Run[Any] = await client.start("fails", id="failed")
        with pytest.raises(sf.RunFailed):
            await failed.result(DEADLINE)
        await client.pause_workflow("fails", by="kim")
        await knows(daemon, "fails")
        with pytest.raises(NotRetried, match="workflow fails of run failed is paused by kim: resume"):
            await failed.retry()
        run: sf.Run[Any] = await client.start("order", "o", id="o")
        await bank.begins(1)
        await run.pause(by="kim")
        await paused(run)
        with pytest.raises(NotRetried, match="is paused, and begins no step: it is paused by kim"):
            await run.retry(step="pay")


async def test_children_of_a_paused_workflow_wait_and_their_parent_gets_them(serve: Serve) -> None:
    bank = Bank()
    bank.is_down = False
    async with serve(bank.app) as (client, daemon):
        await client.pause_workflow("storm")
        await knows(daemon, "storm")
        parent: sf.Run[Any] = await client.start("shop", "s", id="s")
        kid = client.run("s-kid")

        async def has_begun() -> bool:
            return bool(await client.runs(status="paused"))

        await until(has_begun)
        await parent.pause()
        await paused(parent)
        await client.resume_workflow("storm")
        assert await kid.result(DEADLINE) == "s"
        await happened(parent, sf.events.ChildCompleted)
        await parent.resume()
        assert await parent.result(DEADLINE) == "s"


async def test_a_run_of_a_paused_workflow_that_is_paused_itself_stays_so(serve: Serve) -> None:
    bank = Bank()
    async with serve(bank.app) as (client, daemon):
        run: sf.Run[Any] = await client.start("loop", 0, id="l")
        await status_of(run, sf.Status.RUNNING)
        await client.pause_workflow("loop")
        await knows(daemon, "loop")
        await run.signal("next", 1)
        assert (await paused(run)).scope == "workflow"
        await run.pause(by="kim")
        await happened(run, RunPaused, 2)
        await client.resume_workflow("loop")
        await knows(daemon)
        await is_idle(daemon)
        assert (await paused(run)).by == "kim"
        await run.resume()
        await run.signal("next", 9)
        assert await run.result(DEADLINE) == 1


async def test_retries_of_a_paused_run_begin_when_it_goes_on(serve: Serve) -> None:
    bank = Bank()
    async with serve(bank.app) as (client, daemon):
        run: sf.Run[Any] = await client.start("storm", "r", id="r")
        await bank.begins(5)
        await run.pause()
        await paused(run)
        await is_idle(daemon)
        count = len(bank.begun)
        bank.is_down = False
        assert len(bank.begun) == count
        await run.resume()
        assert await run.result(DEADLINE) == "r"
        history = await events_of(run)
        # Of one that failed while the run was paused, a second event says what is decided about it (`due`).
        ends = [event for event in history if isinstance(event, StepRetrying | StepCompleted)]
        attempts = [event.attempt for event in ends if not (isinstance(event, StepRetrying) and event.due == 0)]
        assert attempts == list(range(1, len(attempts) + 1))
        assert len([event for event in history if isinstance(event, StepScheduled)]) == 1
        assert len(bank.begun) == count + 1


async def test_a_stuck_run_of_a_paused_workflow_is_tried_when_that_goes_on(serve: Serve) -> None:
    def release(name: str) -> sf.App:
        app = sf.App()

        async def act() -> str:
            return sf.step_info().step

        steps = {step: app.step(name=step)(act) for step in ("pack", "weigh")}

        @app.workflow(name="flow")
        async def flow() -> str:
            done = await steps[name]()
            return done + await sf.signal("go", str)

        return app

    async with serve(release("pack"), crash=True) as (client, _):
        run: sf.Run[Any] = await client.start("flow", id="r")
        await happened(run, StepCompleted)
    async with serve(release("weigh"), crash=True):
        await run.signal("go", "!")
        await status_of(run, sf.Status.STUCK)
        reason = (await run.describe()).reason
        await client.pause_workflow("flow")
    async with serve(release("pack")) as (client, daemon):
        await knows(daemon, "flow")
        await run.signal("go", "?")
        await happened(run, SignalReceived, 2)
        await is_idle(daemon)
        described = await run.describe()
        assert (described.status, described.reason) == ("stuck", reason)
        assert {wait.kind for wait in described.waits_for} >= {"pause", "code"}
        await client.resume_workflow("flow")
        assert await run.result(DEADLINE) == "pack!"


async def test_commands_pause_what_is_named_and_say_who_has_paused_it(
    serve: Serve, embedded_server: EmbeddedServer, namespace: str, tmp_path: Path
) -> None:
    run = Shell(embedded_server.url, namespace)
    bank = Bank()
    async with serve(bank.app) as (client, daemon):
        one: sf.Run[Any] = await client.start("loop", 0, id="one")
        await status_of(one, sf.Status.RUNNING)
        assert "did you mean loop?" in await run("pause", "--workflow", "loops", code=2)
        for words in (
            ["pause"],
            ["pause", "--since", "1h"],
            ["pause", "--runs"],
            ["pause", "one", "--queue", "gpu"],
            ["pause", "--workflow", "loop", "--yes"],
            ["pause", "--queue", "gpu", "--workflow", "loop"],
        ):
            await run(*words, code=2)
        log = tmp_path / "audit.jsonl"
        told = await run("pause", "--workflow", "loop", "--reason", "429", "--audit-log", str(log))
        assert told == "workflow loop is paused: what is under way ends, nothing new begins\n"
        assert "workflow loop was paused already by " in await run("pause", "--workflow", "loop")
        await knows(daemon, "loop")
        line = msgspec.json.decode(log.read_bytes())
        assert (line["action"], line["workflow"], line["reason"], line["outcome"]) == ("pause", "loop", "429", "done")
        shown = await run("show", "one")
        assert "workflow loop by " in shown, "although nothing has come for it since"
        assert "streamflow resume --workflow loop" in shown
        status = await run.data("status")
        assert status["paused"]["loop"]["reason"] == "429"
        [said] = [one for one in status["health"] if one["code"] == "workflow_paused"]
        assert said["command"].startswith("streamflow resume --workflow loop")
        assert "is not paused by itself, its workflow loop is" in await run("resume", "one", code=1)
        await one.signal("next", 1)
        await paused(one)
        assert "its workflow is paused b" in await run("runs", "--status", "paused")
        assert (await run.data("pause", "one"))["requested"] == "pause"
        await happened(one, RunPaused, 2)
        assert "workflow loop goes on; it was paused by " in await run("resume", "--workflow", "loop")
        assert "error: workflow loop is not paused" in await run("resume", "--workflow", "loop", code=1)
        assert await run("resume", "one") == "asked one to resume\n"
        await status_of(one, sf.Status.RUNNING)
        assert "run one is not paused: it is running" in await run("resume", "one", code=1)
        two: sf.Run[Any] = await client.start("loop", 0, id="two")
        await status_of(two, sf.Status.RUNNING)
        assert "asked to pause 2" in await run("pause", "--runs", "--workflow", "loop", "--yes", "--reason", "both")
        for waits in (one, two):
            assert (await paused(waits)).reason == "both"
        assert "asked to resume 2" in await run("resume", "--runs", "--workflow", "loop", "--yes")
        for waits in (one, two):
            await waits.signal("next", 9)
            await waits.result(DEADLINE)


async def test_an_action_reads_the_pause_back(serve: Serve) -> None:
    bank = Bank()
    async with serve(bank.app) as (client, _):
        run: sf.Run[Any] = await client.start("loop", 0, id="one")
        await status_of(run, sf.Status.RUNNING)
        done = await actions.perform(client, actions.Pause(reason="why"), "one", by="kim", read_back=DEADLINE)
        assert done.took_effect
        done = await actions.perform(client, actions.Resume(), "one", by="kim", read_back=DEADLINE)
        assert done.took_effect
        with pytest.raises(actions.ReadOnly):
            await actions.pause_whole(client, "workflow", "loop", read_only=True)
        assert await client.paused_workflows() == {}
