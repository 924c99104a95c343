"""The app of the benchmarks: steps that do nothing, so that only streamflow is measured."""

from __future__ import annotations

import asyncio
import time

import msgspec

import streamflow as sf

app = sf.App()


@app.step
async def noop(value: int) -> int:
    return value + 1


@app.workflow
async def chain(length: int) -> int:
    """One step after the other."""
    value = 0
    for _ in range(length):
        value = await noop(value)
    return value


@app.step(queue="bench")
async def queued_noop(value: int) -> int:
    return value + 1


@app.workflow
async def queued_chain(length: int) -> int:
    """One step after the other, each through the queue to a worker and back."""
    value = 0
    for _ in range(length):
        value = await queued_noop(value)
    return value


@app.workflow
async def fanout(width: int) -> int:
    """Many steps at the same time, and a join."""
    return sum(await sf.gather(*(noop(number) for number in range(width))))


@app.step
async def report(size: int) -> bytes:
    return bytes(size)


@app.workflow
async def reports(count: int, size: int) -> int:
    """Large results, one after the other."""
    total = 0
    for _ in range(count):
        total += len(await report(size))
    return total


@app.workflow
async def park(number: int) -> int:
    """Waits for a signal."""
    return number + await sf.signal("go", int)


@app.workflow
async def tick(times: int, pause: float) -> int:
    """A timer and a step, again and again."""
    value = 0
    for _ in range(times):
        await sf.sleep(pause)
        value = await noop(value)
    return value


@app.step
async def emit_times(burst: int, bursts: int, pause: float) -> int:
    """Emits the time, so many times at once, at a steady pace."""
    begin = time.perf_counter()
    for number in range(bursts):
        for _ in range(burst):
            sf.emit(time.time())
        await asyncio.sleep(max(0.0, begin + (number + 1) * pause - time.perf_counter()))
    return burst * bursts


@app.workflow
async def chatter(burst: int, bursts: int, pause: float) -> int:
    """One step that emits."""
    return await emit_times(burst, bursts, pause)


class Tally(msgspec.Struct):
    """The count and the sum of the numbers: correct only if each was received exactly once."""

    count: int = 0
    total: int = 0


@app.reducer
def tally(state: Tally, event: sf.Event) -> sf.Decision:
    """Counts and sums numbers until the signal `end`."""
    match event:
        case sf.Signal(name="add", value=number):
            state.count += 1
            state.total += number
            sf.publish("count", state.count)
        case sf.Signal(name="end"):
            return sf.Decision(state, [sf.Complete(state)])
        case _:
            pass
    return sf.Decision(state)
