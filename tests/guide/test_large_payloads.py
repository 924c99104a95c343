"""Large payloads are in the storage of the archive: each once, however often it is handed on."""

from __future__ import annotations

from pathlib import Path

import pytest

import streamflow as sf
import streamflow.testing as sft
from tests.guide.conftest import Serve

pytestmark = pytest.mark.anyio

app = sf.App()
PAGE = "All work and no play. " * 1000


@app.step
async def scan(folder: str) -> dict[str, str]:
    return {"folder": folder, "text": PAGE}


@app.step
async def count(text: str, word: str) -> int:
    return text.count(word)


@app.workflow
async def report(folder: str) -> str:
    found = await scan(folder)
    work = await count(found["text"], "work")
    play = await count(found["text"], "play")
    return f"{work + play} words in {folder}"


def stored(directory: Path) -> list[Path]:
    return list(directory.rglob("*.pay"))


async def test_a_part_of_a_result_that_is_handed_on_is_stored_once(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, archive=f"file://{tmp_path}", large_payload=16_384) as client:
        first = await client.start(report, "a")
        second = await client.start(report, "b")
        assert await first.result(10) == "2000 words in a"
        assert await second.result(10) == "2000 words in b"
        [text] = stored(tmp_path)
        assert text.stat().st_size < len(PAGE), "it is compressed"


async def test_who_reads_gets_the_payload(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, archive=f"file://{tmp_path}", large_payload=16_384) as client:
        run = await client.start(count_in, PAGE)
        assert await run.result(10) == 1000
        assert await run.read("text") == PAGE
        started = (await run.history())[0].events[0]
        assert isinstance(started, sf.events.RunStarted)
        assert len(bytes(started.input)) > len(PAGE)


async def test_subscribers_get_the_payload(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, archive=f"file://{tmp_path}", large_payload=16_384) as client:
        async with client.events("audit", kinds=[sf.events.RunStarted]) as subscription:
            run = await client.start(count_in, PAGE)
            async for event in subscription:
                assert isinstance(event.event, sf.events.RunStarted)
                assert len(bytes(event.event.input)) > len(PAGE)
                break
        assert await run.result(10) == 1000


@app.workflow
async def count_in(text: str) -> int:
    sf.publish("text", text)
    return await count(text, "play")


async def test_in_a_sandbox_payloads_are_in_memory() -> None:
    async with sft.Sandbox(app) as sandbox:
        run = await sandbox.start(count_in, PAGE)
        assert await run.result() == 1000
