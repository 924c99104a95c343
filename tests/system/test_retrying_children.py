"""Children go on with their parent, whatever dies meanwhile, and once for each retry."""

from __future__ import annotations

from typing import Any

import pytest

import streamflow as sf
from streamflow.machine.run import RunMachine
from tests.support.serving import view
from tests.support.waiting import names_of, until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio

QUICK: dict[str, Any] = {"beat": 0.02, "dead_after": 0.1}
calls: list[str] = []
broken = {"bank"}


@pytest.fixture(autouse=True)
def fresh() -> None:
    calls.clear()
    broken.clear()
    broken.add("bank")


app = sf.App()


@app.step(retry=sf.NO_RETRY)
async def act(what: str) -> str:
    calls.append(what)
    if what in broken:
        raise ConnectionError(f"{what} is down")
    return what.upper()


@app.workflow
async def kid(what: str) -> list[str]:
    return [await act(f"{what} stock"), await act(what)]


@app.workflow
async def waits(what: str) -> str:
    return f"{await act(what)} {await sf.signal('end', str)}"


@app.workflow
async def middle(what: str) -> list[str]:
    return await kid.options(id="kid")(what)


@app.workflow
async def parent() -> list[Any]:
    return list(await sf.gather(middle.options(id="middle")("bank"), waits.options(id="waits")("shop")))


RUNS = ("p", "middle", "kid", "waits")


async def failed(client: sf.Client, workflow: Any = parent, *args: Any) -> sf.Run[Any]:
    run = await client.start(workflow, *args, id="p")
    await until(lambda: _acted("shop" if workflow is parent else "bank"))
    with pytest.raises(sf.RunFailed):
        await run.result(10)
    for run_id in RUNS[1:] if workflow is parent else ():
        await until(lambda run_id=run_id: _ended(client, run_id))
    return run


async def _acted(what: str) -> bool:
    return what in calls


async def _ended(client: sf.Client, run_id: str) -> bool:
    return await _status(client, run_id) in ("failed", "cancelled", "completed")


async def _is_running(client: sf.Client, run_id: str) -> bool:
    return await _status(client, run_id) == "running"


async def _status(client: sf.Client, run_id: str) -> str:
    return (await client.run(run_id).describe()).status


async def retries(client: sf.Client) -> dict[str, int]:
    return {run_id: (await names_of(client.run(run_id))).count("RunRetried") for run_id in RUNS}


async def test_all_of_them_go_on_and_are_counted_as_running_again(serve: Serve) -> None:
    async with serve(app) as (client, daemon):
        run = await failed(client)
        broken.clear()
        retried = await run.retry(timeout=10)
        assert sorted(retried.children) == ["middle", "waits"]
        await until(lambda: _is_running(client, "waits"))
        await client.run("waits").signal("end", "on")
        assert await run.result(10) == [["BANK STOCK", "BANK"], "SHOP on"]
        assert await retries(client) == dict.fromkeys(RUNS, 1)
        assert calls.count("bank stock") == 1
        assert await client.runs(status="cancelled") == []
        assert await client.runs(status="failed") == []

        async def counted() -> bool:
            await daemon.rollup.run_once()
            counts = (await view(client, "runs"))["status"]
            return counts["completed"] == 4 and counts["cancelled"] == counts["failed"] == counts["running"] == 0

        await until(counted)


async def test_owners_die_while_all_of_them_go_on(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamflow.machine.run.MAX_WORKER_LOSSES", 1000)
    async with serve(app, crash=True, **QUICK) as (client, _):
        run = await failed(client)
    broken.clear()
    with pytest.raises(TimeoutError):
        await run.retry(timeout=0.1)
    deaths = 0
    while await _status(client, "p") != "completed":
        deaths += 1
        assert deaths < 200
        before = await _versions(client)
        async with serve(app, crash=True, **QUICK) as (client, _):
            if await _status(client, "waits") == "running":
                await client.run("waits").signal("end", "on")
            await until(lambda before=before: _moved(client, before))
    assert (await run.result(10))[0] == ["BANK STOCK", "BANK"]
    assert await retries(client) == dict.fromkeys(RUNS, 1)
    assert deaths > 1
    assert calls.count("bank stock") == 1


async def _moved(client: sf.Client, before: list[int]) -> bool:
    return await _versions(client) != before


async def _versions(client: sf.Client) -> list[int]:
    return [(await client.run(run_id).describe()).version for run_id in RUNS]


async def test_a_message_that_comes_twice_takes_effect_once(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    send = RunMachine.send

    def twice(self: RunMachine, target: str, kind: str, body: object, identity: bytes = b"") -> None:
        send(self, target, kind, body, identity)
        if kind == "again":
            send(self, target, kind, body, identity[::-1])

    monkeypatch.setattr(RunMachine, "send", twice)
    async with serve(app) as (client, _):
        run = await failed(client)
        await run.retry(timeout=10)
        with pytest.raises(sf.RunFailed):
            await run.result(10)
        await until(lambda: _failed_twice(client, "kid"))
        broken.clear()
        await client.run("p").retry(timeout=10)
        await until(lambda: _is_running(client, "waits"))
        await client.run("waits").signal("end", "on")
        assert (await run.result(10))[0] == ["BANK STOCK", "BANK"]
        assert await retries(client) == dict.fromkeys(RUNS, 2)


async def _failed_twice(client: sf.Client, run_id: str) -> bool:
    return (await names_of(client.run(run_id))).count("RunFailed") == 2


@pytest.mark.parametrize("again", [False, True])
async def test_a_child_that_was_forgotten_is_not_found(again: bool, serve: Serve) -> None:
    async with serve(app) as (client, _):
        run = await failed(client, middle, "bank")
        await client.forget("kid")
        broken.clear()
        if again:
            await (await client.start(kid, "other", id="kid")).result(10)
        await run.retry(timeout=10)
        with pytest.raises(sf.RunFailed, match="RunNotFound"):
            await run.result(10)


async def test_a_child_whose_code_does_not_fit_any_more_says_so(serve: Serve) -> None:
    async with serve(app) as (client, _):
        run = await failed(client, middle, "bank")
    broken.clear()
    other = sf.App()
    other.step(retry=sf.NO_RETRY, name="act")(act.function)

    @other.workflow(name="middle")
    async def same(what: str) -> list[str]:
        return await changed.options(id="kid")(what)

    @other.workflow(name="kid")
    async def changed(what: str) -> list[str]:
        await sf.sleep(1)
        return [await other.steps["act"](what)]

    async with serve(other) as (client, _):
        await run.retry(timeout=10)
        with pytest.raises(sf.RunFailed, match="NotRetried: Diverged"):
            await run.result(10)
        assert "RunRetried" not in await names_of(client.run("kid"))
    async with serve(app) as (client, _):
        await run.retry(timeout=10)
        assert await run.result(10) == ["BANK STOCK", "BANK"]
