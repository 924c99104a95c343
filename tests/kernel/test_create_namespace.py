"""create_namespace: who comes first decides what the namespace is."""

from __future__ import annotations

import pytest

from streamflow.model.sharding import Partition
from streamflow.store.kernel import SCHEMA
from tests.kernel.support import Shard

pytestmark = pytest.mark.anyio


async def test_the_first_caller_creates_the_record(shard: Shard) -> None:
    assert await shard.do(shard.kernel.create_namespace(64, Partition.TENANT)) == (64, Partition.TENANT, SCHEMA)
    stored = await shard.plain("HGETALL", shard.namespace.meta)
    assert stored == {b"shards": b"64", b"partition": b"tenant", b"schema": str(SCHEMA).encode()}


async def test_a_later_caller_gets_what_is_stored_and_changes_nothing(shard: Shard) -> None:
    first = shard.kernel.create_namespace(64, Partition.TENANT)
    await shard.do(first)
    for call in (first, shard.kernel.create_namespace(256, Partition.RUN)):
        assert await shard.assert_changes_nothing(call) == (64, Partition.TENANT, SCHEMA)


async def test_wrong_key_types_leave_nothing_half_written(shard: Shard) -> None:
    await shard.assert_wrong_types_leave_nothing_half_written(shard.kernel.create_namespace(64, Partition.RUN))
