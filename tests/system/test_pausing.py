"""A paused queue: nothing new begins in it, what is under way ends, and everything goes on later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import pytest

import streamflow as sf
from streamflow import actions
from streamflow.embedded.server import EmbeddedServer
from streamflow.errors import StoreUnavailable
from streamflow.screen.panels.queues import queues_panel
from streamflow.status.collector import StatusCollector
from streamflow.store.connection import Call
from streamflow.worker.heartbeats import WorkerHeartbeats
from streamflow.worker.worker import Worker
from tests.support.shell import Shell
from tests.support.waiting import DEADLINE, until
from tests.system.conftest import Serve, Work
from tests.system.test_queues import Gate

pytestmark = pytest.mark.anyio


async def knows(worker: Worker, *queues: str) -> None:
    """Wait until the worker has heard which queues are paused."""

    async def heard() -> bool:
        return worker.reader.paused == set(queues)

    await until(heard)


async def waiting(client: sf.Client, queue: str) -> tuple[int, int]:
    """How many attempts wait in a queue, and how many workers have."""
    [found] = [one for one in (await StatusCollector(client).collect()).queues if one.name == queue]
    return found.waiting, found.running


async def test_what_is_under_way_ends_and_nothing_new_begins(serve: Serve, work: Work) -> None:
    gate = Gate()
    async with serve(gate.app) as (client, _), work(gate.app) as worker:
        first = await client.start(gate.waits, id="first")
        await gate.attempts(1)
        assert await client.pause_queue("gpu", reason="the driver is updated", by="kim") is None
        await knows(worker, "gpu")
        others = [await client.start(gate.waits, id=f"other-{n}") for n in range(10)]

        async def all_wait() -> bool:
            return await waiting(client, "gpu") == (10, 1)

        await until(all_wait)
        gate.go.set()
        assert await first.result(DEADLINE) == "attempt 1"
        assert await waiting(client, "gpu") == (10, 0)
        assert len(gate.begun) == 1
        paused = await client.resume_queue("gpu")
        assert paused is not None
        assert (paused.by, paused.reason) == ("kim", "the driver is updated")
        assert [await run.result(DEADLINE) for run in others] == ["attempt 1"] * 10
        assert len(gate.begun) == 11


async def test_a_worker_that_starts_meanwhile_takes_nothing_either(serve: Serve, work: Work) -> None:
    gate = Gate()
    gate.go.set()
    async with serve(gate.app) as (client, _):
        runs = [await client.start(gate.waits, id=f"r{n}") for n in range(20)]
        await client.pause_queue("gpu")
        async with work(gate.app) as worker:
            await knows(worker, "gpu")
            await worker.reader.look_once()
            assert await waiting(client, "gpu") == (20, 0)
            assert gate.begun == []
            await client.resume_queue("gpu")
            assert [await run.result(DEADLINE) for run in runs] == ["attempt 1"] * 20


async def test_a_worker_takes_nothing_before_it_knows_what_is_paused(
    serve: Serve, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    gate.go.set()
    answered, lost = WorkerHeartbeats.answered, anyio.Event()

    def late(self: WorkerHeartbeats, answers: Sequence[Any]) -> None:
        if not lost.is_set():
            answers = [StoreUnavailable("lost"), *answers[1:-1], StoreUnavailable("lost")]
        answered(self, answers)

    async with serve(gate.app) as (client, _):
        runs = [await client.start(gate.waits, id=f"r{n}") for n in range(20)]
        monkeypatch.setattr(WorkerHeartbeats, "answered", late)
        async with work(gate.app) as worker:
            await worker.reader.look_once()
            assert worker.reader.paused == {"gpu"}
            assert await waiting(client, "gpu") == (20, 0)
            lost.set()
            assert [await run.result(DEADLINE) for run in runs] == ["attempt 1"] * 20


async def test_other_queues_of_the_worker_go_on(serve: Serve, work: Work) -> None:
    app = sf.App()

    @app.step(queue="slow")
    async def slow() -> str:
        return "slow"

    @app.step(queue="quick")
    async def quick() -> str:
        return "quick"

    @app.workflow
    async def either(which: str) -> str:
        return await (slow() if which == "slow" else quick())

    async with serve(app) as (client, _), work(app, "slow", "quick", concurrency=1) as worker:
        await client.pause_queue("slow")
        await knows(worker, "slow")
        held = [await client.start(either, "slow", id=f"slow-{n}") for n in range(10)]
        quicks = [await client.start(either, "quick", id=f"quick-{n}") for n in range(10)]
        assert [await run.result(DEADLINE) for run in quicks] == ["quick"] * 10
        assert {(await run.describe()).status for run in held} == {"running"}
        await client.resume_queue("slow")
        assert [await run.result(DEADLINE) for run in held] == ["slow"] * 10


async def test_the_first_who_pauses_counts(serve: Serve) -> None:
    async with serve(sf.App()) as (client, _):
        assert await client.pause_queue("gpu", by="kim", reason="one") is None
        before = await client.pause_queue("gpu", by="lee", reason="two")
        assert before is not None
        assert before.says() == "by kim: one"
        assert {name: pause.by for name, pause in (await client.paused_queues()).items()} == {"gpu": "kim"}
        with pytest.raises(sf.InvalidName):
            await client.pause_queue("no spaces")


async def test_a_note_that_nobody_can_read_pauses_as_well(serve: Serve, work: Work) -> None:
    gate = Gate()
    async with serve(gate.app) as (client, _), work(gate.app) as worker:
        await client.store.one(Call.plain("HSET", client.keys.paused, "queue:gpu", b"\xff"))
        await knows(worker, "gpu")
        assert (await client.paused_queues())["gpu"].says() == ""
        assert await client.resume_queue("gpu") is not None
        await knows(worker)


async def test_commands_and_the_screen_say_who_has_paused_it(
    serve: Serve, work: Work, embedded_server: EmbeddedServer, namespace: str
) -> None:
    run = Shell(embedded_server.url, namespace)
    gate = Gate()
    async with serve(gate.app) as (client, _), work(gate.app) as worker:
        refused = await run("pause", "--queue", "gpus", code=2)
        assert "no worker or step has used queue gpus; did you mean gpu?" in refused
        assert await run("pause", "--queue", "gpu", "--reason", "the driver") == (
            "queue gpu is paused: what is under way ends, nothing new begins\n"
        )
        assert "was paused already by " in await run("pause", "--queue", "gpu")
        await knows(worker, "gpu")
        status = await run.data("status")
        [queue] = status["queues"]
        assert (queue["name"], queue["paused"]["reason"]) == ("gpu", "the driver")
        [paused] = [one for one in status["health"] if one["code"] == "queue_paused"]
        assert (paused["level"], paused["command"].split(" --namespace")[0]) == (
            "note",
            "streamflow resume --queue gpu",
        )
        assert ": the driver (0 steps waiting)" in paused["text"]
        panel = queues_panel(await StatusCollector(client).collect(), 80)
        assert panel is not None
        assert "paused" in "\n".join(line.plain for line in panel.lines)
        assert "queue gpu goes on; it was paused by " in await run("resume", "--queue", "gpu")
        assert "error: queue gpu is not paused\n" in await run("resume", "--queue", "gpu", code=1)
        await client.pause_queue("tpu")
        assert "queue gpu is not paused; did you mean tpu?" in await run("resume", "--queue", "gpu", code=1)
        assert "queue slow is not paused; paused are: tpu\n" in await run("resume", "--queue", "slow", code=1)
        assert await run.data("pause", "--queue", "new", "--force") == {
            "queue": "new",
            "paused": True,
            "already": False,
        }
        await client.resume_queue("new")


async def test_a_retry_in_a_paused_queue_says_what_it_waits_for(serve: Serve, work: Work) -> None:
    gate = Gate()
    async with serve(gate.app) as (client, _), work(gate.app) as worker:
        run = await client.start(gate.waits, id="r")
        await gate.attempts(1)
        await client.pause_queue("gpu", reason="new driver", by="kim")
        await knows(worker, "gpu")
        done = await actions.perform(client, actions.Retry(step="wait"), "r")
        held = "queue gpu is paused by kim: new driver: it begins after streamflow resume --queue gpu"
        assert done.text.splitlines()[1:] == [held]
        await client.resume_queue("gpu")
        gate.go.set()
        assert await run.result(DEADLINE) == "attempt 2"
