"""Workload events: how fast groups of subscribers read, how far behind they are, and what they cost.

Owns: the load, the consumers, and the samples. Must not: print. Called by: the command.

Consumers are processes of their own (`subscriber.py`). What a burst of runs has committed is read by one of them, and
then again by four; bursts with and without a group alternate, so that a slow moment hits both.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import statistics
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable

from streamflow.client.client import Client

from .flows import chain
from .report import Figure, Report
from .rig import Deployment, Options, Rig, deployment

RUNS = 3000
STEPS = 5
EVENTS = 2 + 2 * STEPS
"""Of each run: start and end, and two for each step."""
GROUP = "bench"
SETTLE_SECONDS = 2.0
"""For the daemons' next heartbeats, with which they learn of a group."""
IDLE_SECONDS = 5.0
REST_SECONDS = 6.0
"""Until the daemons have merged the last views."""
SAMPLES = 100
POLL_SECONDS = 0.02


async def bench_events(rig: Rig, options: Options, report: Report) -> None:
    runs = options.scaled(RUNS)
    async with deployment(rig, options.shards, options.daemons) as system:
        await _burst(system, max(runs // 4, 1))
        await _costs(system, options, report, runs)
        await _drains(system, options, report, runs)
        await _lag(system, options, report, runs)
        await _at_rest(rig, system, options, report)


async def _costs(system: Deployment, options: Options, report: Report, runs: int) -> None:
    """Bursts in turns; in those with a group nobody reads it."""
    client = system.client
    rates: dict[bool, list[float]] = {False: [], True: []}
    for number in range(2 * options.repeat):
        with_group = number % 2 == 1
        report.progress(f"events: {runs:,} chains {'with' if with_group else 'without'} a group")
        if with_group:
            async with client.events(GROUP):
                pass
            await asyncio.sleep(SETTLE_SECONDS)
        rates[with_group].append(runs * STEPS / await _burst(system, runs))
        if with_group:
            await client.remove_group(GROUP)
            await asyncio.sleep(SETTLE_SECONDS)
    without, with_one = (statistics.median(rates[key]) for key in (False, True))
    report.add(Figure("events.chain_without", without, "steps/s", "bursts of chains in a namespace without groups"))
    report.add(Figure("events.chain_with", with_one, "steps/s", "the same with a group, in turns"))


async def _drains(system: Deployment, options: Options, report: Report, runs: int) -> None:
    client = system.client
    async with client.events(GROUP):
        pass
    await asyncio.sleep(SETTLE_SECONDS)
    await _burst(system, runs)
    for count in (1, 4):
        rates: list[float] = []
        for _ in range(options.repeat):
            report.progress(f"events: {runs * EVENTS:,} read by {count}")
            await client.reset_group(GROUP, "oldest")
            rates.append(await _drained(system, runs * EVENTS, count))
        what = f"{runs * EVENTS:,} or more events of {options.shards} shards, in batches"
        report.add(Figure(f"events.rate_{count}", statistics.median(rates), "events/s", f"{count} consumers, {what}"))
    await client.remove_group(GROUP)


async def _drained(system: Deployment, events: int, count: int) -> float:
    """Events a second, from the first acknowledgement that is seen to the last."""
    client = system.client
    waiting = (await client.group(GROUP)).waiting
    async with _consumers(system, count, ready=False):
        left, began = waiting, 0.0
        async with asyncio.timeout(120):
            while left:
                now = time.perf_counter()
                left = (await client.group(GROUP)).waiting
                if not began and left < waiting:
                    began, events = now, round(events * left / waiting)
                await asyncio.sleep(POLL_SECONDS)
    return events / (time.perf_counter() - began)


async def _lag(system: Deployment, options: Options, report: Report, runs: int) -> None:
    """While a burst runs, and of single runs."""
    client = system.client
    ages: list[float] = []
    async with client.events(GROUP):
        pass
    async with _consumers(system, 1):
        burst = asyncio.create_task(_burst(system, runs))
        while not burst.done():
            group = await client.group(GROUP)
            ages.append(0.0 if group.oldest is None else max(0.0, 1000 * (time.time() - group.oldest.timestamp())))
            await asyncio.sleep(POLL_SECONDS)
        await burst
        await _until(lambda: _is_read(client))
    await client.remove_group(GROUP)
    ages.sort()
    what = f"age of the oldest event that is not acknowledged, while {runs:,} chains run"
    report.add(Figure("events.lag_p50", ages[len(ages) // 2], "ms", what))
    report.add(Figure("events.lag_max", ages[-1], "ms", "the same at the worst"))
    times: list[float] = []
    async with client.events(GROUP, kinds=["RunCompleted"]) as subscription:
        events = aiter(subscription)
        async with asyncio.timeout(60):
            while len(subscription.shards) < options.shards:  # noqa: ASYNC110
                await asyncio.sleep(POLL_SECONDS)
        for number in range(max(SAMPLES // (10 if options.quick else 1), 5)):
            run = await client.start(chain, 0)
            result = asyncio.create_task(run.result())
            await anext(events)
            seen = time.perf_counter()
            if number:
                ended = (await run.describe()).ended
                assert ended is not None
                times.append(1000 * (time.time() - ended.timestamp() - (time.perf_counter() - seen)))
            await result
            await asyncio.sleep(POLL_SECONDS)
    await client.remove_group(GROUP)
    times.sort()
    report.add(
        Figure("events.latency_p50", times[len(times) // 2], "ms", "from the commit of a single run to its event")
    )
    report.add(Figure("events.latency_max", times[-1], "ms", "the same at the worst", at_most=100.0))


async def _at_rest(rig: Rig, system: Deployment, options: Options, report: Report) -> None:
    """What a consumer costs the server when nothing happens, above what there is without it."""
    spent: list[tuple[float, float]] = []
    await asyncio.sleep(REST_SECONDS)
    for with_one in (False, True):
        async with contextlib.AsyncExitStack() as stack:
            if with_one:
                await stack.enter_async_context(_consumers(system, 1))
            await asyncio.sleep(SETTLE_SECONDS)
            cpu, commands, began = await rig.server_cpu(), sum(await rig.commands()), time.perf_counter()
            await asyncio.sleep(IDLE_SECONDS)
            seconds = time.perf_counter() - began
            spent.append(((await rig.server_cpu() - cpu) / seconds, (sum(await rig.commands()) - commands) / seconds))
    (cpu, commands), (cpu_with, commands_with) = spent
    what = f"of a consumer of {options.shards} shards at rest"
    report.add(Figure("events.idle_commands", commands_with - commands, "commands/s", what))
    report.add(Figure("events.idle_cpu", 100 * (cpu_with - cpu), "%", f"of a core of the server, {what}"))
    await system.client.remove_group(GROUP)


@contextlib.asynccontextmanager
async def _consumers(system: Deployment, count: int, *, ready: bool = True) -> AsyncGenerator[None]:
    """Processes that read the group; `ready`: they have all shards among them."""
    client = system.client
    words = [sys.executable, "-m", "bench.subscriber", system.rig.url, system.namespace, GROUP]
    processes = [await asyncio.create_subprocess_exec(*words) for _ in range(count)]

    async def have_all() -> bool:
        with contextlib.suppress(Exception):
            group = await client.group(GROUP)
            return all(shard.consumer for shard in group.shards) and len(group.consumers) >= count
        return False

    try:
        if ready:
            await _until(have_all)
        yield
    finally:
        for process in processes:
            if process.returncode is None:
                process.send_signal(signal.SIGINT)  # it gives its shards up, so that the next ones have them at once
            await process.wait()


async def _is_read(client: Client) -> bool:
    return (await client.group(GROUP)).waiting == 0


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(120):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(POLL_SECONDS)


async def _burst(system: Deployment, runs: int) -> float:
    """Seconds from the first start to the last result."""
    began = time.perf_counter()
    started = await system.client.start_many(chain, [(STEPS,)] * runs)
    await asyncio.gather(*(run.result() for run in started))
    return time.perf_counter() - began
