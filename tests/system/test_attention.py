"""What needs a person, by one read: stuck runs, failures that nobody has mended, queues without workers."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

import streamflow as sf
from streamflow.daemon import fleet
from streamflow.events import StepRetrying
from streamflow.status import words
from streamflow.store.connection import Call
from tests.support.shell import Shell
from tests.support.waiting import until
from tests.system.conftest import Serve, Work

pytestmark = pytest.mark.anyio

broken: list[bool] = []


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "LOOK_EVERY", 0.05)
    broken[:] = [True]


def release(step: str) -> sf.App:
    app = sf.App()

    @app.step(name=step)
    async def act() -> None: ...

    @app.step(queue="gpu")
    def train(n: int) -> int:
        return n + 1

    @app.step(retry=sf.NO_RETRY)
    async def charge() -> None:
        if broken:
            raise ConnectionError("api:443")

    @app.workflow
    async def flow() -> None:
        await act()
        await sf.signal("go")

    @app.workflow
    async def training() -> int:
        return await train(1)

    @app.workflow
    async def paying() -> None:
        await charge()

    return app


async def rows(client: sf.Client) -> list[tuple[str, str, int]]:
    import msgspec

    data = await client.store.one(Call.plain("GET", client.keys.view("attention")))
    view: Any = {"rows": []} if data is None else msgspec.json.decode(data)["value"]
    return [(row["kind"], row["name"], row["count"]) for row in view["rows"]]


async def test_what_needs_a_person_is_one_read_and_leaves_when_it_is_mended(serve: Serve, work: Work) -> None:
    async def shown(client: sf.Client, *expected: tuple[str, str, int]) -> None:
        async def is_shown() -> bool:
            return await rows(client) == list(expected)

        await until(is_shown)

    old, new = release("pack"), release("weigh")
    async with serve(old) as (client, _):
        stuck = await client.start("flow", id="r")
        await until(lambda: is_in(stuck, "pack"))
        await shown(client)
    async with serve(new) as (client, _):
        await shown(client, ("stuck", "flow", 1))
        paid = await client.start("paying", id="p")
        with pytest.raises(sf.RunFailed):
            await paid.result(10)
        trained = await client.start("training", id="t")
        await shown(client, ("stuck", "flow", 1), ("queue", "gpu", 1), ("failed", "paying", 1))
        shell = Shell(client.store.url, client.namespace)
        view = (await shell.data("status"))["views"]["attention"]
        assert [(row["kind"], row["name"]) for row in view["rows"]] == [
            ("stuck", "flow"),
            ("queue", "gpu"),
            ("failed", "paying"),
        ]
        assert [row["run_id"] for row in view["rows"]] == ["r", "", "p"]
        assert view["rows"][1]["first"] > 0
        said = await shell("status", "--check", code=1)
        assert "1 run stuck" in said
        assert "no workers for queue gpu" in said
        async with work(new, "gpu"):
            assert await trained.result(10) == 2
            await shown(client, ("stuck", "flow", 1), ("failed", "paying", 1))
        broken.clear()
        await paid.retry()
        await shown(client, ("stuck", "flow", 1))
    async with serve(old) as (client, _):
        await shown(client)
        assert "stuck" not in await Shell(client.store.url, client.namespace)("status", "--check")


async def is_in(run: sf.Run[Any], step: str) -> bool:
    return any(getattr(event, "name", "") == step for t in await run.history() for event in t.events)


async def test_a_damaged_key_leaves_the_rest_of_the_view(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    async with serve(release("pack")) as (client, _):
        await client.store.one(Call.plain("SET", client.keys.queues, "x"))
        with pytest.raises(sf.RunFailed):
            await (await client.start("paying", id="p")).result(10)

        async def is_shown() -> bool:
            said = "queues without workers are unknown" in caplog.text
            return said and await rows(client) == [("failed", "paying", 1)]

        await until(is_shown)


@pytest.mark.parametrize("queue", [None, "gpu"])
async def test_a_step_that_has_become_silent_is_named_and_given_up(serve: Serve, work: Work, queue: str | None) -> None:
    """At its daemon, or at a worker; with heartbeats that have no details."""
    app = sf.App()
    hung = [True]

    @app.step(queue=queue)
    async def model() -> int:
        sf.heartbeat()
        if hung:
            hung.clear()
            await anyio.sleep(3600)
        return 7

    @app.workflow
    async def asking() -> int:
        return await model()

    holder = "daemon" if queue is None else "worker"
    async with serve(app, silent_after=0.2) as (client, _), work(app, "gpu", silent_after=0.2):
        run = await client.start(asking, id="a-1b")
        shell = Shell(client.store.url, client.namespace)

        async def is_said() -> bool:
            found = (await shell.data("status"))["silent"]
            return [(one["name"], one["run_id"], one["attempt"], one["kind"]) for one in found] == [
                ("model", "a-1b", 1, holder)
            ] and await rows(client) == [("silent", "model", 1)]

        await until(is_said)
        assert "step model of a-1b: silent for " in await shell("status", "--check", code=1)
        assert "it may hang: a retry with --step begins its next attempt" in await shell("show", "a-1b")

        async def is_described() -> bool:
            """Its daemon stores when the heartbeat came apart from the note that it is silent."""
            [wait] = (await run.describe()).waits_for
            return wait.silent and wait.reported is not None

        await until(is_described)
        await shell("retry", "a-1b", "--step", "model")
        assert await run.result(10) == 7

        async def has_left() -> bool:
            return not (await shell.data("status"))["silent"] and await rows(client) == []

        await until(has_left)


async def test_a_step_that_is_tried_again_in_vain_is_named_until_it_works(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "STORM", 5)
    app = sf.App()

    @app.step(retry=sf.Retry(attempts=100_000, initial=0.01, factor=1.0))
    async def crawl() -> None:
        if broken:
            raise ConnectionError("429 Too Many Requests")

    @app.workflow
    async def crawling() -> None:
        await crawl()

    async with serve(app) as (client, _):
        shell = Shell(client.store.url, client.namespace)
        run = await client.start(crawling, id="c")

        async def is_said() -> bool:
            return any(one["code"] == "retries_fail" for one in (await shell.data("status"))["health"])

        await until(is_said)
        said = await shell("status", "--check", code=1)
        assert "retries in 10 min, 0 succeeded: ConnectionError: 429 Too Many Requests: streamflow show c" in said
        assert "0 succeeded" in await shell("status")
        broken.clear()
        await run.result(10)

        async def works() -> bool:
            return not await is_said()

        await until(works)
        [row] = (await shell.data("status"))["views"]["retries"]["retries"]
        assert (row["step"], row["succeeded"], row["run_id"]) == ("crawl", 1, "c")
        assert row["retries"] == sum(
            isinstance(event, StepRetrying) for part in await run.history() for event in part.events
        )
