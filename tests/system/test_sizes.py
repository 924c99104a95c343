"""What the ended runs of each workflow take, by age, as the leading daemon samples it."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import pytest

import streamflow as sf
from streamflow.daemon import sizes
from streamflow.daemon.sizes import DAY_MS, Sizes
from streamflow.errors import StoreError
from streamflow.store.connection import Call
from tests.support.shell import Shell
from tests.support.waiting import until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio

app = sf.App()


@app.workflow
async def nightly(text: str) -> str:
    return text


@app.workflow
async def hourly() -> None: ...


@app.workflow
async def waiting() -> None:
    await sf.signal("go")


async def test_ended_runs_are_counted_by_workflow_and_age(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(sizes, "SHARDS", 3)
    async with serve(app, shards=8, rollup=0.05) as (client, _):
        for n in range(12):
            await (await client.start(nightly, "x" * 20_000, id=f"n{n}")).result(10)
        await (await client.start(hourly, id="h")).result(10)
        await client.start(waiting, id="w")
        shell = Shell(client.store.url, client.namespace)
        namespace = await client.read_namespace()

        async def age(run_id: str, days: float) -> None:
            key = client.keys.shard(namespace.shard_of(run_id)).index("completed", "nightly")
            score = float(await client.store.one(Call.plain("ZSCORE", key, run_id)))
            await client.store.one(Call.plain("ZADD", key, score - days * DAY_MS, run_id))

        for n in range(3):
            await age(f"n{n}", 2)
        await age("n3", 30)
        found: dict[str, Any] = {}
        aged = {"nightly": {"day": 8, "week": 3, "older": 1}, "hourly": {"day": 1}}

        async def is_known() -> bool:
            found.update((await shell.data("status"))["views"].get("sizes", {}))
            ages = {
                row["workflow"]: {name: of["runs"] for name, of in row["ages"].items() if of["runs"]}
                for row in found.get("workflows", [])
            }
            return found.get("shards") == 8 and ages == aged  # all were looked at since their runs have these ages

        await until(is_known)
        assert found["of"] == 8
        first, second = found["workflows"]
        assert (first["runs"], second["runs"]) == (12, 1)
        assert first["bytes"] == pytest.approx(12 * 40_000, rel=0.5), "its input and its result"
        assert 0 < second["bytes"] < 5_000
        await shell("forget", "--workflow", "nightly", "--yes")

        async def is_gone() -> bool:
            rows = (await shell.data("status"))["views"]["sizes"]["workflows"]
            return [row["workflow"] for row in rows] == ["hourly"]

        await until(is_gone)


async def test_a_damaged_key_leaves_out_the_sizes_and_nothing_else(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizes, "LOOK_EVERY", 0.01)
    read, damaged, refusals = Sizes._read, anyio.Event(), list[StoreError]()

    async def read_damaged(self: Sizes, numbers: Sequence[int]) -> Any:
        await damaged.wait()
        try:
            return await read(self, numbers)
        except StoreError as error:
            refusals.append(error)
            raise

    monkeypatch.setattr(Sizes, "_read", read_damaged)
    async with serve(app, shards=2, rollup=0.05) as (client, _):
        await client.store.one(Call.plain("SET", client.keys.workflows, "x"))
        damaged.set()
        await (await client.start(hourly, id="h")).result(10)
        shell = Shell(client.store.url, client.namespace)

        async def is_merged() -> bool:
            return (await shell.data("status"))["views"].get("runs", {}).get("status", {}).get("completed") == 1

        await until(is_merged)
        assert refusals
        assert "sizes" not in (await shell.data("status"))["views"]
