"""The page on web applications: its code, run against a sandbox and against a server."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

import streamflow as sf
import streamflow.testing as sft
from tests.guide.conftest import Serve

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
