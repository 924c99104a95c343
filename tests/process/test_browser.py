"""The page of the example `research.py` in a real browser: tokens as they are made, a reload, and a click."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from anyio.to_thread import run_sync

import streamflow as sf
from examples import research
from tests.support.browser import Browser, browser

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]


async def shows(tab: Browser, text: str) -> None:
    with anyio.fail_after(30):
        while (shown := await run_sync(tab.text, "#text")) != text:
            assert not shown.startswith(text), "it shows what the model has not said yet"
            await anyio.sleep(0.02)


async def test_a_page_shows_tokens_as_they_are_made_and_a_click_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = asyncio.Event()

    async def model(name: str, prompt: str) -> AsyncIterator[str]:
        for word in ("three", "bees"):
            yield f"{word} "
        if name == "large":  # it writes the report
            await go_on.wait()
        yield "sing"

    monkeypatch.setattr(research, "model", model)
    async with sf.local(research.app, directory=tmp_path / "data") as client, research.served(client) as address:
        with browser(tmp_path) as tab:
            run = await client.start(research.research, "bees")
            await run_sync(tab.open, f"{address}/{run.id}")
            await shows(tab, "three bees ")
            await run_sync(tab.open, f"{address}/{run.id}")  # again, from the first one
            await shows(tab, "three bees ")
            go_on.set()
            await shows(tab, "three bees sing")
            await run_sync(tab.click, "button")
            assert await run.result(30) == "three bees sing"
