"""Queues: `@app.step(queue=…)` runs in workers, wherever they are, and a worker may die at any time."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import pytest

import streamflow as sf
from streamflow import events
from streamflow.events import StepCompleted, StepRetrying, StepScheduled
from streamflow.machine.transition import Outcome
from streamflow.model.sharding import Partition, shard_of
from streamflow.store.connection import Call
from streamflow.store.kernel import Kernel
from streamflow.store.queues import read_queues
from streamflow.worker.reader import QueueReader
from streamflow.worker.recent_outcomes import RecentOutcomes
from tests.support.serving import FAST
from tests.support.waiting import DEADLINE, events_of, happened, names_of, until
from tests.system.conftest import Serve, Work

pytestmark = pytest.mark.anyio

SHARDS: int = FAST["shards"]
"""Also the number of partitions of each queue."""
NOW = sf.Retry(attempts=3, initial=0.0, jitter=0.0)
"""Retries without pauses."""


app = sf.App()


class Gate:
    """An app with a step that waits until it is let go, and what its attempts saw."""

    def __init__(self, retry: sf.Retry = NOW, timeout: float | None = None) -> None:
        self.app = gated = sf.App()
        self.begun: list[int] = []
        self.stopped: list[int] = []
        self.details: list[Any] = []
        self.go = anyio.Event()
        self.thread_go = threading.Event()
        self.cancelled = threading.Event()

        @gated.step(queue="gpu", retry=retry, timeout=timeout)
        async def wait(tell: int | None = None) -> str:
            info = sf.step_info()
            self.begun.append(info.attempt)
            self.details.append(info.details)
            if tell is not None:
                sf.heartbeat({"done": tell + len(self.begun)})
            try:
                await self.go.wait()
            except BaseException:
                self.stopped.append(info.attempt)
                raise
            return f"attempt {info.attempt}"

        @gated.step(queue="gpu", retry=retry)
        def poll() -> str:
            self.begun.append(sf.step_info().attempt)
            while not sf.cancelled():
                if self.thread_go.wait(0.005):
                    return "let go"
            self.cancelled.set()
            return "cancelled"

        @gated.workflow
        async def waits(tell: int | None = None) -> str:
            return await wait(tell)

        @gated.workflow
        async def polls() -> str:
            return await poll()

        self.waits, self.polls = waits, polls

    async def attempts(self, count: int) -> None:
        """Wait until so many have begun."""
        await until(lambda: _is(len(self.begun) >= count))


async def _is(value: bool) -> bool:
    return value


async def queue_is_empty(client: sf.Client, queue: str = "gpu") -> None:
    """Wait until nothing of any step is left in the queue: at most the clock, which the next look deletes."""

    async def empty() -> bool:
        keys = [client.keys.queue(queue, number) for number in range(SHARDS)]
        calls = [Call.plain("XLEN", one.stream) for one in keys]
        calls += [Call.plain("HKEYS", key) for one in keys for key in (one.steps, one.details)]
        return all(found in (0, [], [b"clock"]) for found in await client.store.send(calls))

    await until(empty)


async def created_of(run: sf.Run[Any]) -> int:
    return round((await run.describe()).created.timestamp() * 1000)


async def waits_in_queue(client: sf.Client, count: int = 1, queue: str = "gpu") -> None:
    async def there() -> bool:
        keys = [client.keys.queue(queue, number).stream for number in range(SHARDS)]
        return sum(await client.store.send([Call.plain("XLEN", key) for key in keys])) == count

    await until(there)


# --- the way there and back -------------------------------------------------------------------------------------------


async def test_steps_wait_for_a_worker_that_comes_later(serve: Serve, work: Work) -> None:
    gate = Gate()
    gate.go.set()
    async with serve(gate.app) as (client, _):
        runs = [await client.start(gate.waits) for _ in range(20)]
        await waits_in_queue(client, 20)
        async with work(gate.app):
            assert [await run.result(timeout=DEADLINE) for run in runs] == ["attempt 1"] * 20


async def test_a_worker_takes_no_more_steps_than_its_concurrency(serve: Serve, work: Work) -> None:
    gate = Gate()
    async with serve(gate.app) as (client, _):
        runs = [await client.start(gate.waits) for _ in range(10)]
        await waits_in_queue(client, 10)
        async with work(gate.app, concurrency=2), work(gate.app, concurrency=3):
            await gate.attempts(5)
            await anyio.wait_all_tasks_blocked()
            assert len(gate.begun) == 5
            gate.go.set()
            assert [await run.result(timeout=DEADLINE) for run in runs] == ["attempt 1"] * 10


async def test_entries_beyond_the_capacity_are_returned_to_the_queue(
    serve: Serve, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = QueueReader._take

    async def take_from_all(self: QueueReader, free: int) -> None:
        self._width = 256  # all partitions were empty a moment ago
        await take(self, free)

    monkeypatch.setattr(QueueReader, "_take", take_from_all)
    gate = Gate()
    async with serve(gate.app) as (client, _):
        runs = [await client.start(gate.waits) for _ in range(12)]
        await waits_in_queue(client, 12)
        async with work(gate.app, concurrency=1, worker_timeout=3600) as one:
            await gate.attempts(1)

            async def given_back() -> bool:
                [queue] = await read_queues(client.store, client.keys, ["gpu"], SHARDS, 5.0)
                return queue.running == 1

            await until(given_back)
            assert (one.claims.running, len(gate.begun)) == (1, 1)
            gate.go.set()
            assert [await run.result(timeout=DEADLINE) for run in runs] == ["attempt 1"] * 12
        await queue_is_empty(client)


async def test_a_step_that_takes_too_long_is_stopped_at_the_worker(serve: Serve, work: Work) -> None:
    gate = Gate(sf.NO_RETRY, timeout=0.05)
    async with serve(gate.app) as (client, _), work(gate.app):
        run = await client.start(gate.waits)
        with pytest.raises(sf.RunFailed, match=r"took longer than 0\.05 s"):
            await run.result(timeout=DEADLINE)
        assert gate.stopped == [1]
        await queue_is_empty(client)


async def test_a_step_that_the_worker_does_not_know_is_retried_elsewhere(serve: Serve, work: Work) -> None:
    gate = Gate(sf.Retry(attempts=1000, initial=0.01, factor=1.0))
    gate.go.set()
    async with serve(gate.app) as (client, _), work(app):
        run = await client.start(gate.waits)
        refused = await happened(run, StepRetrying)
        assert refused.failure.kind == "UnknownStep"
        assert "step wait is not registered" in refused.failure.message
        async with work(gate.app):
            assert (await run.result(timeout=DEADLINE)).startswith("attempt")


async def test_a_worker_whose_threads_hang_leaves_the_work_to_others(serve: Serve, work: Work) -> None:
    hanging, go = sf.App(), threading.Event()
    begun: list[int] = []

    @hanging.step(queue="gpu", retry=sf.Retry(attempts=3, initial=0.0), timeout=1.0)
    def hangs() -> int:
        begun.append(sf.step_info().attempt)
        if len(begun) == 1:
            go.wait(DEADLINE)
        return sf.step_info().attempt

    @hanging.workflow
    async def flow() -> int:
        return await hangs()

    async with serve(hanging) as (client, _), work(hanging, concurrency=1, worker_timeout=3600) as stuck:
        run = await client.start(flow)
        await happened(run, StepRetrying)
        await waits_in_queue(client)
        assert (stuck.claims.running, stuck.executor.lingering) == (0, 1)
        async with work(hanging, concurrency=1):
            assert await run.result(timeout=DEADLINE) == 2
        again = await client.start(flow)
        await waits_in_queue(client)
        assert begun == [1, 2]
        go.set()  # and when its thread has come back it takes part again
        assert await again.result(timeout=DEADLINE) == 1


# --- cancelling -------------------------------------------------------------------------------------------------------


async def test_cancelling_a_run_cancels_its_step_at_the_worker(serve: Serve, work: Work) -> None:
    gate = Gate()
    async with serve(gate.app) as (client, _), work(gate.app):
        run = await client.start(gate.waits)
        await gate.attempts(1)
        await run.cancel()
        await until(lambda: _is(gate.stopped == [1]))
        await queue_is_empty(client)


async def test_a_step_in_a_thread_asks_whether_it_is_cancelled(serve: Serve, work: Work) -> None:
    gate = Gate()
    async with serve(gate.app) as (client, _), work(gate.app):
        run = await client.start(gate.polls)
        await gate.attempts(1)
        await run.cancel()
        assert await anyio.to_thread.run_sync(gate.cancelled.wait, DEADLINE)
        await queue_is_empty(client)


async def test_cancelling_a_run_removes_its_waiting_step_from_the_queue(serve: Serve) -> None:
    gate = Gate()
    async with serve(gate.app) as (client, _):
        run = await client.start(gate.waits)
        await waits_in_queue(client)
        await run.cancel()
        await queue_is_empty(client)
        assert gate.begun == []


async def test_a_run_that_is_started_again_under_its_id_gets_its_own_steps(serve: Serve, work: Work) -> None:
    gate = Gate()
    async with serve(gate.app) as (client, _), work(gate.app, worker_timeout=3600):
        first = await client.start(gate.waits, id="again")
        await gate.attempts(1)
        shard = (await client.read_namespace()).shard_of("again")
        created = await created_of(first)
        await first.cancel()
        with pytest.raises(sf.RunCancelled):
            await first.result(timeout=DEADLINE)
        assert await client.forget("again")
        assert gate.stopped == []  # the worker has yet to hear of it
        second = await client.start(gate.waits, id="again")
        await gate.attempts(2)
        assert (gate.begun, gate.stopped) == ([1, 1], [1])
        late = Outcome(1, 1, 0.0, msgspec.Raw(msgspec.msgpack.encode("the first run's")))
        complete = Kernel(client.keys).report_outcome(shard, "again", created, msgspec.msgpack.encode(late))
        assert await client.store.one(complete) == "m"
        gate.go.set()
        assert await second.result(timeout=DEADLINE) == "attempt 1"
        await queue_is_empty(client)


async def test_outcomes_that_a_broken_shard_refuses_do_not_delay_others(
    serve: Serve, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamflow.worker.claims.REPORTS", 1)  # one refused outcome fills a pipeline
    gate = Gate()
    async with serve(gate.app) as (client, _), work(gate.app, worker_timeout=3600) as worker:
        broken = await client.start(gate.waits, id="broken")
        await gate.attempts(1)
        namespace = await client.read_namespace()
        shard = namespace.shard_of("broken")
        fine = next(f"fine-{n}" for n in range(100) if namespace.shard_of(f"fine-{n}") != shard)
        inbox = client.keys.shard(shard).inbox
        await client.store.one(Call.plain("RENAME", inbox, f"{inbox}:aside"))
        await client.store.one(Call.plain("SET", inbox, "not a stream"))
        gate.go.set()
        await until(lambda: _is(worker.claims.running == 0))
        assert await (await client.start(gate.waits, id=fine)).result(timeout=DEADLINE) == "attempt 1"
        await waits_in_queue(client, 1)  # the refused one's entry
        await client.store.one(Call.plain("RENAME", f"{inbox}:aside", inbox))
        assert await broken.result(timeout=DEADLINE) == "attempt 1"
        await queue_is_empty(client)


async def test_a_partition_of_a_queue_that_cannot_be_read_stops_no_other(
    serve: Serve, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamflow.worker.reader.RETRY_BROKEN", 0.1)
    gate = Gate()
    gate.go.set()
    async with serve(gate.app) as (client, _):
        there = shard_of("there", SHARDS, Partition.RUN)
        elsewhere = next(f"run-{n}" for n in range(100) if shard_of(f"run-{n}", SHARDS, Partition.RUN) != there)
        stream = client.keys.queue("gpu", there).stream
        await client.store.one(Call.plain("SET", stream, "not a stream"))
        waiting = await client.start(gate.waits, id="there")
        async with work(gate.app):
            for _ in range(3):
                run = await client.start(gate.waits, id=elsewhere)
                assert await run.result(timeout=DEADLINE) == "attempt 1"
                await client.forget(elsewhere)
            await client.store.one(Call.plain("DEL", stream))
            assert await waiting.result(timeout=DEADLINE) == "attempt 1"
        await queue_is_empty(client)


# --- deaths -----------------------------------------------------------------------------------------------------------


async def test_a_step_of_a_dead_worker_runs_again_with_its_heartbeat_details(serve: Serve, work: Work) -> None:
    gate = Gate()
    async with serve(gate.app) as (client, _):
        run = await client.start(gate.waits, 10)
        async with work(gate.app, crash=True) as dead:
            await gate.attempts(1)
            await dead.claims.extend_once()
        gate.go.set()
        async with work(gate.app):
            assert await run.result(timeout=DEADLINE) == "attempt 2"
        lost = next(event for event in await events_of(run) if isinstance(event, StepRetrying))
        assert lost.failure.kind == "WorkerLost"
        assert dead.name in lost.failure.message
        assert gate.details == [None, {"done": 11}]
        await queue_is_empty(client)


async def test_a_step_that_kills_its_workers_fails_in_the_end(serve: Serve, work: Work) -> None:
    gate = Gate(sf.Retry(attempts=100, initial=0.0))
    async with serve(gate.app) as (client, _):
        run = await client.start(gate.waits)
        for number in (1, 2, 3):
            async with work(gate.app, crash=True):
                await gate.attempts(number)
        async with work(gate.app):
            with pytest.raises(sf.RunFailed, match="WorkerLost"):
                await run.result(timeout=DEADLINE)
        failed = next(event for event in await events_of(run) if isinstance(event, events.StepFailed))
        assert (failed.attempt, failed.failure.kind, len(gate.begun)) == (3, "WorkerLost", 3)


async def test_a_worker_considered_dead_stops_its_step(serve: Serve, work: Work) -> None:
    """Its late outcome is dropped."""
    gate = Gate()
    async with serve(gate.app) as (client, _), work(gate.app, worker_timeout=3600, concurrency=1) as silent:
        run = await client.start(gate.waits)
        await gate.attempts(1)
        # As a worker that was paused sees it: another one gave its attempt up, and the run began a new one.
        meta = await client.store.one(Call.plain("HMGET", client.keys.meta, "shards"))
        kernel, shard = Kernel(client.keys), shard_of(run.id, int(meta[0]), Partition.RUN)
        created = await created_of(run)
        lost = Outcome(1, 1, 0.0, None, sf.Failure("WorkerLost", "given up"))
        await client.store.one(kernel.report_outcome(shard, run.id, created, msgspec.msgpack.encode(lost)))
        await happened(run, StepRetrying)
        late = Outcome(1, 1, 0.0, msgspec.Raw(msgspec.msgpack.encode("late")))

        async def offered() -> bool:
            places = [client.keys.queue("gpu", number).steps for number in range(SHARDS)]
            found = await client.store.send([Call.plain("HVALS", place) for place in places])
            return any(b" 2 wanted" in place for places in found for place in places)

        await until(offered)
        await silent.claims.extend_once()
        await until(lambda: _is(gate.stopped == [1]))
        await client.store.one(kernel.report_outcome(shard, run.id, created, msgspec.msgpack.encode(late)))
        gate.go.set()
        assert await run.result(timeout=DEADLINE) == "attempt 2"
        assert [event.attempt for event in await events_of(run) if isinstance(event, StepCompleted)] == [2]


async def test_a_stopped_worker_returns_steps_that_do_not_finish_in_time(serve: Serve, work: Work) -> None:
    gate = Gate()
    async with serve(gate.app) as (client, _):
        run = await client.start(gate.waits, 10)
        async with work(gate.app, grace=0.0):
            await gate.attempts(1)
        assert gate.stopped == [1]
        gate.go.set()
        async with work(gate.app, worker_timeout=3600):
            assert await run.result(timeout=DEADLINE) == "attempt 1"
        assert gate.details == [None, {"done": 11}]
        assert "StepRetrying" not in await names_of(run)


async def test_a_stopped_worker_lets_its_steps_finish(serve: Serve, work: Work) -> None:
    gate = Gate()
    async with serve(gate.app) as (client, _):
        run = await client.start(gate.waits)
        async with work(gate.app, grace=DEADLINE) as worker:
            await gate.attempts(1)
            worker.stop()
            gate.go.set()
        assert await run.result(timeout=DEADLINE) == "attempt 1"
        assert (gate.begun, gate.stopped) == ([1], [])


async def test_an_outcome_that_is_reported_again_counts_once(
    serve: Serve, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker has not got the answer to its first report."""
    reports: list[str] = []

    def accepted(self: RecentOutcomes, run_id: str, *_: Any) -> None:
        reports.append(run_id)
        raise RuntimeError("the answer is lost")

    monkeypatch.setattr(RecentOutcomes, "accepted", accepted)
    gate = Gate()
    gate.go.set()
    async with serve(gate.app) as (client, _), work(gate.app) as worker:
        run = await client.start(gate.waits)
        assert await run.result(timeout=DEADLINE) == "attempt 1"
        await until(lambda: _is(not worker.claims.unreported))
        await queue_is_empty(client)
        assert (gate.begun, reports) == ([1], [run.id]), "the second report didn't count"
        assert (await names_of(run)).count("StepCompleted") == 1


@pytest.mark.parametrize("moment", ["scheduled", "running", "done"])
async def test_a_daemon_that_dies_loses_no_step_of_a_queue(serve: Serve, work: Work, moment: str) -> None:
    gate = Gate()
    async with serve(gate.app, crash=True) as (client, _):
        run = await client.start(gate.waits)
        await happened(run, StepScheduled)
        if moment != "scheduled":
            async with work(gate.app, worker_timeout=3600, crash=True):
                await gate.attempts(1)
                if moment == "done":
                    gate.go.set()
                    await run.result(timeout=DEADLINE)
    gate.go.set()
    async with serve(gate.app) as (client, _), work(gate.app):
        assert (await run.result(timeout=DEADLINE)).startswith("attempt")
        assert (await names_of(run)).count("StepCompleted") == 1
        await queue_is_empty(client)
