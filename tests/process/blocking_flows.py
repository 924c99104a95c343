"""Flows whose code blocks its daemon."""

from __future__ import annotations

import time
from pathlib import Path

import streamflow as sf

app = sf.App()


def note(journal: str) -> None:
    with Path(journal).open("a") as file:
        file.write("begun\n")


@app.step(retry=sf.NO_RETRY)
async def block(journal: str, seconds: float) -> str:
    """As a blocking client of some service does in an `async def`."""
    note(journal)
    time.sleep(seconds)  # noqa: ASYNC251
    return "done"


@app.workflow
async def blocks(journal: str, seconds: float) -> str:
    return await block(journal, seconds)


@app.step
async def work(number: int) -> int:
    return number


@app.workflow
async def innocent(number: int) -> int:
    return await work(number)


@app.workflow
async def spins() -> None:
    while True:
        pass
