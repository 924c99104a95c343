"""`streamflow groups`: list, show, reset and remove, and what `status` says of groups."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import streamflow as sf
from streamflow.embedded.server import EmbeddedServer
from streamflow.status.collector import StatusCollector
from tests.support.shell import Shell
from tests.support.waiting import until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio

app = sf.App()


@app.workflow
async def greet(name: str) -> str:
    return f"hello {name}"


@pytest.fixture
def shell(embedded_server: EmbeddedServer, namespace: str) -> Shell:
    return Shell(embedded_server.url, namespace, "groups")


async def behind(client: sf.Client, group: str, runs: int) -> None:
    """A group for which events of so many runs wait."""
    async with client.events(group):
        pass
    for _ in range(runs):
        await (await client.start(greet, "world")).result()


async def test_groups_are_listed_with_how_far_they_are_behind(serve: Serve, shell: Shell) -> None:
    async with serve(app) as (client, _):
        assert "there are no groups" in await shell("list")
        assert await shell.data("list") == []
        await behind(client, "billing", 3)
        async with client.events("search") as subscription:

            async def reads_all() -> bool:
                return len(subscription.shards) == 8

            await until(reads_all)
            found: dict[str, Any] = {group["name"]: group for group in await shell.data("list")}
            assert found.keys() == {"billing", "search"}
            assert found["billing"]["waiting"] == 3
            assert found["billing"]["oldest"] is not None
            assert found["search"]["waiting"] == 0
            assert [consumer["id"] for consumer in found["search"]["consumers"]] == [subscription.consumer]
            printed = await shell("list")
            assert "billing" in printed
            assert "search" in printed


async def test_what_holds_a_consumer_up_is_shown_where_the_group_is(serve: Serve, shell: Shell) -> None:
    async with serve(app) as (client, _), client.events("billing", dead_after=0.5) as subscription:
        subscription.trouble = "the warehouse is \x1b[31mdown"

        async def is_told() -> bool:
            return any(consumer.trouble for consumer in (await client.group("billing")).consumers)

        await until(is_told)
        assert f"{subscription.consumer}: the warehouse is ␛[31mdown" in await shell("show", "billing")
        status = await StatusCollector(client).collect()
        assert [group.trouble for group in status.groups] == ["the warehouse is \x1b[31mdown"]
        subscription.trouble = ""

        async def is_over() -> bool:
            return not (await client.group("billing")).consumers[0].trouble

        await until(is_over)
        assert "warehouse" not in await shell("show", "billing")


async def test_one_group_is_shown_with_its_shards(serve: Serve, shell: Shell) -> None:
    async with serve(app) as (client, _):
        await behind(client, "billing", 2)
        group = await shell.data("show", "billing")
        assert len(group["shards"]) == 8
        assert sum(shard["waiting"] for shard in group["shards"]) == group["waiting"] == 2
        printed = await shell("show", "billing")
        assert "2 log entries" in printed
        assert "none" in printed
        assert "there is no group 'nobody'" in await shell("show", "nobody", code=2)


async def test_a_reset_skips_or_repeats_and_is_audited(serve: Serve, shell: Shell, tmp_path: Path) -> None:
    async with serve(app) as (client, _):
        await behind(client, "billing", 2)
        audit = tmp_path / "audit"
        assert "add --yes" in await shell("reset", "billing", "--to", "now", code=2)
        words = ("--yes", "--reason", "a bad day", "--audit-log", str(audit))
        assert "goes on from now" in await shell("reset", "billing", "--to", "now", *words)
        assert (await client.group("billing")).waiting == 0
        assert await shell.data("reset", "billing", "--to", "1h", "--yes") == {
            "group": "billing",
            "to": "1h",
            "reset": True,
        }
        assert (await client.group("billing")).waiting == 2
        await shell("reset", "billing", "--to", "oldest", "--yes")
        assert "--to" in await shell("reset", "billing", "--to", "yesterday", "--yes", code=2)
        line = json.loads(audit.read_text())
        assert (line["action"], line["group"], line["reason"], line["outcome"]) == (
            "reset",
            "billing",
            "a bad day",
            "done",
        )


async def test_a_removed_group_is_gone(serve: Serve, shell: Shell) -> None:
    async with serve(app) as (client, _):
        await behind(client, "billing", 1)
        assert "add --yes" in await shell("remove", "billing", code=2)
        assert await shell("remove", "billing", "--yes") == "group billing is removed\n"
        assert "there is no group" in await shell("remove", "billing", "--yes", code=1)
        assert await client.groups() == []


async def test_the_status_has_groups(serve: Serve, shell: Shell) -> None:
    async with serve(app) as (client, _):
        await behind(client, "billing", 2)
        status = await StatusCollector(client).settled()
        assert [(group.name, group.waiting, group.consumers) for group in status.groups] == [("billing", 2, 0)]
        assert status.groups[0].behind_ms >= 0
        shell.before = ("status",)
        [group] = (await shell.data())["groups"]
        assert group["name"] == "billing"
