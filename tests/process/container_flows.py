"""The app of the container tests, mounted into them: a step that ends when it is told to, and says where it ran."""

from __future__ import annotations

import asyncio
import platform
from pathlib import Path

import streamflow as sf

app = sf.App()

BEGUN = Path("/tmp/begun")
MAY_END = Path("/tmp/may-end")


async def _work(waits: bool) -> list[object]:
    if waits:
        BEGUN.touch()
        while not MAY_END.exists():  # noqa: ASYNC110 - it comes from outside
            await asyncio.sleep(0.05)
    return [platform.node(), sf.step_info().attempt]


@app.step
async def here(waits: bool) -> list[object]:
    return await _work(waits)


@app.step(queue="elsewhere")
async def there(waits: bool) -> list[object]:
    return await _work(waits)


@app.workflow
async def on_daemons() -> list[list[object]]:
    return [await here(True), await here(False)]


@app.workflow
async def on_workers() -> list[list[object]]:
    return [await there(True), await there(False)]
