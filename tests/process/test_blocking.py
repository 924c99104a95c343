"""A daemon whose event loop is blocked is not dead: it keeps its shards, and no step runs a second time."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import streamflow as sf
from streamflow.embedded.server import EmbeddedServer
from streamflow.store.connection import Call
from tests.process.blocking_flows import blocks, holds_interpreter, holds_interpreter_itself, innocent, spins
from tests.process.faults import ServingProcess, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

FLOWS = Path(__file__).with_name("blocking_flows.py")
SHARDS = 64
"""So many that each of two daemons wins some of them, whatever their names are."""
DEAD_AFTER = 2.0


@pytest.fixture
async def daemons(
    embedded_server: EmbeddedServer, namespace: str, tmp_path: Path, client: sf.Client
) -> AsyncIterator[list[ServingProcess]]:
    """Two of them that share the shards."""
    options = ["--app", f"{FLOWS}:app", "--shards", f"{SHARDS}", "--beat", "0.2", "--dead-after", f"{DEAD_AFTER}"]
    options += ["--interrupt", "2"]
    both = [
        ServingProcess("daemon", *options, url=embedded_server.url, namespace=namespace, log=tmp_path / f"{n}.log")
        for n in range(2)
    ]
    try:

        async def shared() -> bool:
            keys = client.keys
            calls = [Call.plain("HGET", keys.shard(number).owner, "holder") for number in range(SHARDS)]
            holders = await client.store.send(calls)
            return None not in holders and len(set(holders)) == 2

        await until(shared, "both daemons own shards")
        yield both
    finally:
        for daemon in both:
            await daemon.end()


async def test_a_step_that_blocks_longer_than_dead_after_runs_once(
    daemons: list[ServingProcess], client: sf.Client, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    run = await client.start(blocks, str(journal), 3 * DEAD_AFTER)
    assert await run.result(timeout=30) == "done"
    assert any(daemon.logged("its heartbeats are sent from a thread") for daemon in daemons), "the loop was blocked"
    assert not any(daemon.logged("is considered dead") for daemon in daemons)
    assert not any(daemon.logged("has another owner") for daemon in daemons)
    assert journal.read_text() == "begun\n"


async def test_code_that_holds_the_interpreter_makes_no_daemon_look_dead(
    daemons: list[ServingProcess], client: sf.Client, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    run = await client.start(holds_interpreter, str(journal), 6)
    beats: set[int] = set()

    async def ended() -> bool:
        members: Any = await client.store.one(Call.plain("HVALS", client.keys.members))
        beats.update(msgspec.json.decode(member)["beat"] for member in members)
        return (await run.describe()).ended is not None

    await until(ended, "the run has ended")
    assert min(beats) < 0, "another process has sent heartbeats"
    assert not any(daemon.logged("is considered dead") for daemon in daemons)
    assert not any(daemon.logged("has another owner") for daemon in daemons)
    assert journal.read_text() == "begun\n"


@pytest.mark.parametrize("computes", [False, True])
async def test_a_workflow_that_holds_the_interpreter_is_parked_by_one_death(
    daemons: list[ServingProcess], client: sf.Client, computes: bool
) -> None:
    runs = await asyncio.gather(*(client.start(innocent, number) for number in range(32)))
    bad = await client.start(holds_interpreter_itself, computes, id="bad")
    more = await asyncio.gather(*(client.start(innocent, number) for number in range(32)))
    results = await asyncio.gather(*(run.result(timeout=15) for run in (*runs, *more)))
    assert results == [*range(32), *range(32)]

    async def is_stuck() -> bool:
        return (await bad.describe()).status == "stuck"

    await until(is_stuck, "the run is parked by the first death", 15)
    reason = (await bad.describe()).reason
    assert "blocking_flows.py:" in reason, reason
    assert "in C, and can't be interrupted" in reason
    ended = [daemon for daemon in daemons if daemon.process.poll() is not None]
    assert [daemon.process.returncode for daemon in ended] == [-signal.SIGPROF]
    assert ended[0].logged("holds_interpreter_itself"), "the traceback"
    await bad.terminate()


async def test_a_workflow_that_loops_harms_no_run_for_longer_than_the_limit(
    daemons: list[ServingProcess], client: sf.Client
) -> None:
    bad = await client.start(spins, id="bad")
    runs = await asyncio.gather(*(client.start(innocent, number) for number in range(32)))
    assert await asyncio.gather(*(run.result(timeout=10) for run in runs)) == list(range(32))

    async def is_stuck() -> bool:
        return (await bad.describe()).status == "stuck"

    await until(is_stuck, "the run is parked")
    assert not any(daemon.logged("is considered dead") for daemon in daemons)
    assert sum(daemon.logged("run bad of shard") for daemon in daemons) == 1
    await bad.terminate()
    with pytest.raises(sf.RunCancelled):
        await bad.result(timeout=10)
