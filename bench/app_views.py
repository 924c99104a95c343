"""What views of an app cost: events folded a second, and a daemon's CPU with and without a view.

    python -m bench.app_views

CPU times, not durations, so that a busy machine changes little. The runs are the same in turns: without a view and
without `sf.record`, with `sf.record`, and with two views.
"""

from __future__ import annotations

import asyncio
import resource
import time

import streamflow as sf
from streamflow.events import Recorded, Transition
from streamflow.views import cells
from streamflow.views.cells import Cells

RUNS, STEPS, TURNS = 600, 5, 2
EVENTS = 200_000


def make_app(*, records: bool, views: bool) -> sf.App:
    app = sf.App()

    @app.step
    async def work(number: int) -> int:
        if records:
            sf.record("tokens", number, model=f"m{number % 4}")
        return number

    @app.workflow
    async def chain(number: int) -> int:
        for _ in range(STEPS):
            number = await work(number)
        return number

    if views:
        app.view(sf.total("tokens"), name="cost", by=["model", "tenant"], window="day")
        app.view(sf.count(), name="steps", kinds=[sf.events.StepCompleted], by=["step"], window="minute")
    return app


def fold_rate() -> float:
    """Events folded in a second of CPU time, of one thread, without reading and decoding."""
    view = make_app(records=True, views=True).views["cost"]
    events = [Recorded("flow", "acme", "tokens", 7, {"model": f"m{number % 4}"}, "ask", 1, 1) for number in range(100)]
    windows: dict[int, Cells] = {}
    began = time.process_time()
    for number in range(EVENTS // len(events)):
        cells.fold(view, windows, "r", ("flow", "acme"), Transition(1_000_000 + number, list(events)))
    return EVENTS / (time.process_time() - began)


async def cpu(*, records: bool, views: bool) -> float:
    """Seconds of CPU time of this process, which is client and daemon, for all runs."""
    app = make_app(records=records, views=views)
    async with sf.local(app) as client:
        await (await client.start("chain", 1)).result()
        before = resource.getrusage(resource.RUSAGE_SELF)
        runs = await asyncio.gather(*(client.start("chain", number) for number in range(RUNS)))
        await asyncio.gather(*(run.result() for run in runs))
        if views:
            while "cost" not in await client.views() or (await client.view("cost")).events < RUNS * STEPS:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


async def main() -> None:
    print(f"folded: {fold_rate():,.0f} events/s of CPU time")
    for _ in range(TURNS):
        for records, views in ((False, False), (True, False), (True, True)):
            spent = await cpu(records=records, views=views)
            print(f"records {records!s:5}  views {views!s:5}  {spent * 1000 / (RUNS * STEPS):.3f} ms CPU a step")


if __name__ == "__main__":
    asyncio.run(main())
