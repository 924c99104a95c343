"""The page on web applications: its code, run against a sandbox and against a server."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
import uvicorn

import streamflow as sf
import streamflow.testing as sft
from tests.guide.conftest import Serve
from tests.support.waiting import DEADLINE

pytestmark = pytest.mark.anyio

PAGE = Path(__file__).parents[2] / "docs/guide/web.md"
ORDER = {"id": 7, "customer": "ada", "cents": 990}


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = ModuleType("web_page")
    monkeypatch.setitem(sys.modules, "web_page", module)
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE):
        exec(compile(block, "<web.md>", "exec", dont_inherit=True), vars(module))
    return module


@asynccontextmanager
async def browser_of(app: Any) -> AsyncGenerator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as browser:
        yield browser


def sent(response: httpx.Response) -> list[tuple[int, str]]:
    """Number and kind of each event in a stream."""
    assert response.headers["content-type"].startswith("text/event-stream")
    events: list[tuple[int, str]] = []
    for block in response.text.removesuffix("\n\n").split("\n\n"):
        number, data = block.split("\n")
        events.append((int(number.removeprefix("id: ")), json.loads(data.removeprefix("data: "))["kind"]))
    return events


async def test_the_test_of_the_page_passes(page: Any) -> None:
    await page.check_an_order()


async def test_what_is_not_there_or_over_has_its_own_status(page: Any) -> None:
    async with sft.Sandbox(page.flows) as sandbox, browser_of(page.web(sandbox)) as browser:
        for path in ("/orders/none", "/orders/none/events"):
            response = await browser.get(path)
            assert response.status_code == 404
            assert "none" in response.json()["error"]
        await browser.post("/orders", json=ORDER)
        assert (await browser.post("/orders/checkout-7/shipped")).status_code == 202
        assert (await browser.post("/orders/checkout-7/shipped")).status_code == 409


async def test_a_browser_that_connects_again_gets_what_it_has_not_seen(page: Any, serve: Serve) -> None:
    async with serve(page.flows) as client, browser_of(page.web(client)) as browser:
        assert (await browser.post("/orders", json=ORDER)).status_code == 202
        assert (await browser.get("/orders/checkout-7")).json()["status"] in ("pending", "running")
        await browser.post("/orders/checkout-7/shipped")
        events = sent(await browser.get("/orders/checkout-7/events"))
        assert events[0] == (1, "RunStarted")
        assert events[-1] == (len(events), "RunCompleted")
        for seen in (0, 2, len(events) - 1):
            again = await browser.get("/orders/checkout-7/events", headers={"last-event-id": str(seen)})
            assert sent(again) == events[seen:]
        strange = await browser.get("/orders/checkout-7/events", headers={"last-event-id": "x"})
        assert sent(strange) == events


async def test_events_after_so_many_are_the_others_also_while_they_happen(page: Any, serve: Serve) -> None:
    async with serve(page.flows) as client:
        run = await client.start(page.checkout, "ada", 990, id="o")
        seen: list[str] = []
        async for _, event in run.events(follow=True, after=1):
            if not seen:
                await run.signal("shipped")
            seen.append(type(event).__name__)
        whole = [type(event).__name__ async for _, event in run.events()]
        assert seen == whole[1:]
        assert [event async for _, event in run.events(after=100)] == []
        with pytest.raises(sf.UsageError, match="after"):
            [event async for _, event in run.events(after=-1)]


@asynccontextmanager
async def served(app: Any) -> AsyncGenerator[str]:
    """The application at a port of this machine, as `uvicorn` serves it."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=1))
        serving = asyncio.create_task(server.serve([listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving


async def events_in(response: httpx.Response) -> AsyncGenerator[tuple[str, str]]:
    """Id and data of the server-sent events, as they arrive; the id of `end` is empty."""
    number = ""
    async for line in response.aiter_lines():
        if line.startswith("id: "):
            number = line.removeprefix("id: ")
        elif line.startswith("event: end"):
            yield "", ""
        elif line.startswith("data: {"):
            yield number, json.loads(line.removeprefix("data: "))["text"]


async def test_a_page_shows_tokens_as_they_are_made_and_goes_on_where_it_was(
    page: Any, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = asyncio.Event()

    async def thank(customer: str) -> str:
        sf.emit("Dear ")
        sf.emit(customer)
        await more.wait()  # what is emitted so far is at the browser before the step has ended
        sf.emit("!")
        return ""

    monkeypatch.setattr(page.thank, "function", thank)
    async with (
        serve(page.flows) as client,
        served(page.web(client)) as url,
        httpx.AsyncClient(base_url=url, timeout=DEADLINE) as browser,
    ):
        await browser.post("/orders", json=ORDER)
        assert "EventSource" in (await browser.get("/orders/checkout-7/letter")).text
        seen: list[tuple[str, str]] = []
        async with browser.stream("GET", "/orders/checkout-7/tokens") as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            async with aclosing(events_in(response)) as events:
                while len(seen) < 2:
                    seen.append(await anext(events))
        assert [text for _, text in seen] == ["Dear ", "ada"]
        more.set()
        await browser.post("/orders/checkout-7/shipped")
        for offset, rest in ((seen[0][0], ["ada", "!", ""]), (seen[1][0], ["!", ""])):
            again = {"last-event-id": offset}
            async with browser.stream("GET", "/orders/checkout-7/tokens", headers=again) as response:
                assert [text async for _, text in events_in(response)] == rest
        strange = await browser.get("/orders/checkout-7/tokens", headers={"last-event-id": "x"})
        assert strange.status_code == 400
        assert (await browser.get("/orders/none/tokens")).status_code == 404
