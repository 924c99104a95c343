"""Actions in bulk on runs that hibernate: they wake for the message, and only those that were meant."""

from __future__ import annotations

from pathlib import Path

import pytest

import streamflow as sf
from streamflow import actions
from streamflow.embedded.server import EmbeddedServer
from tests.support.shell import Shell
from tests.support.waiting import DEADLINE, status_of
from tests.system.conftest import Serve
from tests.system.test_hibernation import AFTER, app, moved_out, order, sleeping, url, waits

pytestmark = pytest.mark.anyio

LONG = "a_workflow_whose_name_the_server_does_not_keep"


@app.workflow(name=LONG)
async def long_name() -> str:
    return await sf.signal("approve", str)


@app.workflow(name=f"{LONG}_either")
async def other_long_name() -> str:
    return await sf.signal("approve", str)


async def test_those_that_hibernate_are_signalled_and_no_others(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, hibernate_after=AFTER, archive=url(tmp_path)) as (client, daemon):
        asleep = [await client.start(order, n, id=f"asleep-{n}") for n in range(3)]
        others = [await client.start(long_name, id="long"), await client.start(other_long_name, id="other")]
        for run in (*asleep, *others):
            await waits(client, run)
        await moved_out(daemon, 5)
        awake = await client.start(order, 9, id="awake")
        await waits(client, awake)

        approve = actions.Signal.of("approve", "ann")
        frozen = await actions.freeze(client, approve, tmp_path / "list.jsonl", hibernating=True, workflow="order")
        assert frozen.file.count == 3
        assert await sleeping(daemon) == 5, "choosing them wakes none"
        frozen.close()
        again = await actions.open_file(client, tmp_path / "list.jsonl")
        done = await again.run(rate=0)
        again.close()
        assert (done.targets, done.done, done.failed) == (3, 3, 0)
        assert [await run.result(DEADLINE) for run in asleep] == [f"{n} approved by ann" for n in range(3)]
        assert (await awake.describe()).status == sf.Status.RUNNING
        assert await sleeping(daemon) == 2

        done = await actions.bulk(client, actions.Cancel(), file=tmp_path / "f", hibernating=True, workflow=LONG)
        assert (done.targets, done.done) == (1, 1), "the name is in storage"
        await status_of(others[0], sf.Status.CANCELLED)
        assert await sleeping(daemon) == 1
        fork = actions.Fork(at=1)
        done = await actions.bulk(client, fork, file=tmp_path / "g", hibernating=True)
        assert (done.targets, done.done) == (1, 1)
        assert await sleeping(daemon) == 1, "it is read where it is"
        done = await actions.bulk(client, actions.Pause(), file=tmp_path / "h", hibernating=True)
        assert (done.targets, done.done) == (1, 1)
        await status_of(others[1], sf.Status.PAUSED)
        with pytest.raises(sf.UsageError, match="forget is not for runs that hibernate"):
            await actions.bulk(client, actions.Forget(), hibernating=True)
        with pytest.raises(sf.UsageError, match="hibernating goes with workflow only, and not with tenant"):
            await actions.bulk(client, actions.Cancel(), hibernating=True, tenant="acme")


async def test_commands_say_who_is_left_out_and_reach_them(
    serve: Serve, embedded_server: EmbeddedServer, namespace: str, tmp_path: Path
) -> None:
    shell = Shell(embedded_server.url, namespace)
    async with serve(app, hibernate_after=AFTER, archive=url(tmp_path)) as (client, daemon):
        run = await client.start(order, 1, id="o1")
        await waits(client, run)
        await moved_out(daemon)
        said = await shell("cancel", "--workflow", "order", "--yes", "--targets", str(tmp_path / "a"))
        assert said == ("not among them: 1 hibernating run (--hibernating is for those)\nno runs to cancel match\n")
        words = ("cancel", "--hibernating", "--workflow", "order")
        shown = await shell(*words, "--dry-run")
        assert shown.startswith("Cancel 1 hibernating run of workflow order?")
        assert await sleeping(daemon) == 1
        printed = await shell(*words, "--yes", "--targets", str(tmp_path / "b"))
        assert printed.startswith("asked to cancel 1 ")
        await status_of(run, sf.Status.CANCELLED)
        assert "name a RUN, or say with filters" in await shell("cancel", "o1", "--hibernating", code=2)
