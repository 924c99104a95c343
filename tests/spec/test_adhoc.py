from __future__ import annotations
from typing import Any
import anyio, pytest
import streamflow as sf
from streamflow.store.connection import Call
from tests.spec.support import Serve, happened, until, view, reduced
pytestmark = pytest.mark.anyio
app = sf.App()

@app.workflow
async def listens() -> Any:
    return await sf.signal("go")

CASES = {
 "del inbox": lambda k: [("DEL", k.shard(0).inbox)],
 "wrong inbox": lambda k: [("SET", k.shard(0).inbox, "x")],
 "wrong agenda": lambda k: [("SET", k.shard(0).agenda, "x")],
 "wrong log": lambda k: [("SET", k.shard(0).log, "x")],
 "wrong views": lambda k: [("SET", k.shard(0).views, "x")],
 "garbage oldest": lambda k: [("HSET", k.shard(0).views, "oldest", "a b")],
 "garbage oldest2": lambda k: [("HSET", k.shard(0).views, "oldest", "a x c")],
 "garbage partial": lambda k: [("HSET", k.shard(0).views, "partial", b"\xc1")],
 "agenda nonexistent": lambda k: [("ZADD", k.shard(0).agenda, 0, "nobody", -1, "nobody2", 0, b"\xff")],
 "members garbage": lambda k: [("HSET", k.members, "x", b"\xff\xff", b"\xff\xfe", "y")],
 "workflows garbage": lambda k: [("HSET", k.workflows, "x", b"\xff\xff")],
 "stuck index garbage": lambda k: [("ZADD", k.shard(0).index("stuck", "listens"), 0, b"\xff")],
 "log garbage": lambda k: [("XADD", k.shard(0).log, "*", b"\xff", b"\xff"), ("XADD", k.shard(0).log, "*", "r", b"\x91"*10000)],
 "completed index garbage": lambda k: [("ZADD", k.shard(0).index("completed", "listens"), 0, b"\xff")],
 "wrong owner": lambda k: [("DEL", k.shard(0).owner), ("SET", k.shard(0).owner, "x")],
 "del owner": lambda k: [("DEL", k.shard(0).owner)],
 "wrong members": lambda k: [("DEL", k.members), ("SET", k.members, "x")],
}

@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("case", CASES)
async def test_x(serve: Serve, case: str, restart: bool) -> None:
    async with serve(app, retention=0.001) as (client, d):
        runs = []
        for i in range(30):
            runs.append(await client.start(listens, id=f"r{i}"))
        for r in runs: await reduced(client, r.id)
        if not restart:
            for c in CASES[case](client.keys):
                await client.store.one(Call.plain(*c))
            await check(client, runs)
            if "completed" in case: await d.rollup.sweep()
            with anyio.move_on_after(0.3): await anyio.sleep_forever()
            return
    for c in CASES[case](client.keys):
        await client.store.one(Call.plain(*c))
    async with serve(app, retention=0.001):
        await check(client, runs)
        with anyio.move_on_after(0.3): await anyio.sleep_forever()

async def check(client, runs):
    shard_of = (await client.space()).shard_of
    bad = []
    for r in runs:
        try:
            await r.signal("go", 1)
            await r.result(1)
        except Exception as e:
            bad.append((shard_of(r.id), repr(e)[:80]))
    assert {b[0] for b in bad} <= {0}, bad
    if bad: print("SHARD0", bad[0])
