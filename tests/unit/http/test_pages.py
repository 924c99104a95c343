"""What is answered at /health, /ready and /metrics."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest

from streamflow.health import Health
from streamflow.http import catalog
from streamflow.http import pages as module
from streamflow.http.figures import Figures
from streamflow.http.pages import Pages, Part

pytestmark = pytest.mark.anyio


class Process:
    """A daemon in the state that a test wants."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.outside: list[str] = []
        self.reasons: list[str] = []
        self.asked = 0

    def part(self) -> Part:
        return Part(self._health, lambda: self.reasons, self._add, self._close)

    def _health(self) -> Health:
        return Health(
            kind="daemon",
            name="host-1-ab",
            namespace="shop",
            pid=7,
            at=time.monotonic(),
            problems=self.problems,
            outside=self.outside,
        )

    async def _add(self, figures: Figures) -> None:
        self.asked += 1
        figures.set(catalog.RUNS_LIVE, self.asked)

    async def _close(self) -> None:
        self.asked = -1


async def answer(pages: Pages, path: str, accept: str = "") -> tuple[int, Any]:
    given = await pages.answer(path, accept)
    return given.status, msgspec.json.decode(given.body) if given.content_type == module.JSON else given.body.decode()


async def test_a_process_that_starts_lives_and_is_not_ready() -> None:
    pages = Pages("daemon", "host-1-ab", "shop")
    status, body = await answer(pages, "/health")
    assert (status, body["healthy"], body["warnings"]) == (200, True, ["it is starting"])
    assert await answer(pages, "/ready") == (503, {"ready": False, "reasons": ["it is starting"]})
    status, text = await answer(pages, "/metrics")
    assert status == 200
    assert 'streamflow_ready{sf_namespace="shop"} 0.0' in text


async def test_problems_and_reasons_decide_the_status() -> None:
    process = Process()
    pages = Pages("daemon", "host-1-ab", "shop")
    pages.part = process.part()
    status, body = await answer(pages, "/health")
    assert (status, body["healthy"], body["kind"], body["name"]) == (200, True, "daemon", "host-1-ab")
    assert await answer(pages, "/ready") == (200, {"ready": True, "reasons": []})
    process.problems, process.reasons = ["the loop 'rollup' fails: boom"], ["it is draining"]
    status, body = await answer(pages, "/health")
    assert (status, body["healthy"], body["problems"]) == (503, False, ["the loop 'rollup' fails: boom"])
    assert await answer(pages, "/ready") == (503, {"ready": False, "reasons": ["it is draining"]})
    assert (await answer(pages, "/"))[0] == 404
    process.problems, process.outside = [], ["the server has confirmed no heartbeat for 3.0 s"]
    status, body = await answer(pages, "/health")
    assert (status, body["healthy"], body["problems"]) == (200, True, []), "a restart would not bring it back"
    assert body["warnings"] == process.outside
    _, text = await answer(pages, "/metrics")
    assert 'streamflow_health_problems{sf_namespace="shop"} 0.0' in text
    assert 'streamflow_health_warnings{sf_namespace="shop"} 1.0' in text


async def test_many_scrapers_cost_as_much_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process()
    pages = Pages("daemon", "host-1-ab", "shop")
    pages.part = process.part()
    monkeypatch.setattr(module, "KEPT", 3600.0)
    texts = {(await answer(pages, "/metrics"))[1] for _ in range(20)}
    assert (len(texts), process.asked) == (1, 1)
    for number in range(50):  # whatever they ask for, no more is kept
        await pages.answer("/metrics", f"application/openmetrics-text; version=1.{number}.0")
    assert process.asked == 1
    assert len(pages._texts) <= module.MOST_TEXTS
    monkeypatch.setattr(module, "KEPT", 0.0)
    await answer(pages, "/metrics")
    assert process.asked == 2
    await pages.close()
    assert process.asked == -1


async def test_without_the_package_metrics_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "can_be_exposed", lambda: False)
    pages = Pages("daemon", "host-1-ab", "shop")
    status, text = await answer(pages, "/metrics")
    assert status == 501
    assert "install streamflowd[metrics]" in text
    assert (await answer(pages, "/health"))[0] == 200
