"""Published values on the server: written with the transition, and never by a replay."""

from __future__ import annotations

import msgspec
import pytest

import streamflow as sf
from streamflow.events import SignalReceived
from streamflow.store.connection import Call
from tests.support.waiting import happened, reduced
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio


app = sf.App()


class Progress(msgspec.Struct):
    done: int
    of: int


@app.step
async def load(part: int) -> int:
    return part


@app.workflow
async def importing(parts: int) -> int:
    sf.publish("progress", Progress(0, parts))
    for part in range(parts):
        await sf.signal("next")
        await load(part)
        sf.publish("progress", Progress(part + 1, parts))
        sf.publish("last", f"part {part}")
    return parts


async def test_a_replay_publishes_nothing_again(serve: Serve) -> None:
    async with serve(app, crash=True) as (client, _):
        run = await client.start(importing, 2, id="i")
        await reduced(client, "i")
    shard = (await client.read_namespace()).shard_of("i")
    await client.store.one(Call.plain("DEL", client.keys.shard(shard).published("i")))
    async with serve(app):
        await run.signal("next")
        await happened(run, SignalReceived)
        assert (await run.read("progress", Progress, Progress(-1, -1))).done != 0
