"""The app of the test in which daemons die that count a view."""

from __future__ import annotations

import streamflow as sf

app = sf.App()


@app.step
async def ask(number: int) -> int:
    sf.record("tokens", number, model=f"m{number % 3}")
    return number


@app.workflow
async def agent(rounds: int) -> int:
    for number in range(1, rounds + 1):
        await ask(number)
        sf.record("rounds", 1)
    return rounds


app.view(sf.total("tokens"), name="cost", by=["model"], window="minute")
app.view(sf.count(), name="all", kinds=[sf.events.Recorded, sf.events.StepCompleted], by=["kind"])
