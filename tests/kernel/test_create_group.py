"""create_group: the workers' consumer group of a queue partition."""

from __future__ import annotations

import pytest

from streamflow.store.kernel import WORKERS
from tests.kernel.queue import QueuePartition
from tests.kernel.support import Shard

pytestmark = pytest.mark.anyio


async def test_a_missing_group_is_created_with_its_stream(shard: Shard) -> None:
    await shard.do(shard.kernel.create_group("gpu", 0))
    stream = shard.namespace.queue("gpu", 0).stream
    await shard.plain("XADD", stream, "1-1", "run", "r1")
    assert await shard.plain("XREADGROUP", "GROUP", WORKERS, "one", "STREAMS", stream, ">")


async def test_an_existing_group_keeps_its_position(shard: Shard) -> None:
    stream = shard.namespace.queue("gpu", 0).stream
    queue = QueuePartition(shard)
    await queue.enqueue(queue.step())
    await shard.plain("XREADGROUP", "GROUP", WORKERS, "one", "STREAMS", stream, ">")
    await shard.assert_changes_nothing(shard.kernel.create_group("gpu", 0))
    assert not await shard.plain("XREADGROUP", "GROUP", WORKERS, "two", "STREAMS", stream, ">")


async def test_wrong_key_types_leave_nothing_half_written(shard: Shard) -> None:
    await shard.assert_wrong_types_leave_nothing_half_written(shard.kernel.create_group("gpu", 0))
