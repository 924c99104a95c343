"""When shards are checked against a daemon's code: after they were acquired, as soon as a heartbeat finds them."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from streamflow.daemon.deploy_check import DeployCheck
from tests.support.fakes import FakeOwner, FakeStore, context, owned
from tests.support.waiting import until

pytestmark = pytest.mark.anyio


async def test_a_heartbeat_has_new_shards_checked_and_wakes_nobody_otherwise() -> None:
    shard = owned(1)
    owner: Any = FakeOwner(shard)
    store = FakeStore()
    check = DeployCheck(context(store, shards=8), owner)
    store.answers["HGET"] = check.fingerprint.encode()

    async def is_checked() -> bool:
        return shard.is_checked

    async with anyio.create_task_group() as loops:
        loops.start_soon(check.run)
        await anyio.wait_all_tasks_blocked()
        assert store.calls == [], "nobody has looked"
        check.look()
        await until(is_checked)
        check.look()
        await anyio.wait_all_tasks_blocked()
        assert len(store.calls) == 1, "there is nothing left to check"
        loops.cancel_scope.cancel()


async def test_a_shard_that_is_handed_over_is_not_checked() -> None:
    shard = owned(1)
    shard.draining = True
    owner: Any = FakeOwner(shard)
    store = FakeStore()
    check = DeployCheck(context(store, shards=8), owner)
    check.look()
    await check.run_once()
    assert store.calls == []
    assert not check._wanted.is_set()  # pyright: ignore[reportPrivateUsage]
