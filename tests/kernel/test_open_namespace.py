"""open_namespace: who comes first decides what the namespace is."""

from __future__ import annotations

import pytest

from streamflow.model.sharding import Partition
from streamflow.store.kernel import SCHEMA
from tests.kernel.support import Shard

pytestmark = pytest.mark.anyio

FLOWS = [("order", b'{"kind": "workflow"}')]


async def test_the_first_caller_creates_the_record(shard: Shard) -> None:
    record = await shard.do(shard.kernel.open_namespace(64, Partition.TENANT, "5eed"))
    assert record == (64, Partition.TENANT, SCHEMA, "5eed")
    stored = await shard.plain("HGETALL", shard.namespace.meta)
    assert stored == {
        b"shards": b"64",
        b"partition": b"tenant",
        b"schema": str(SCHEMA).encode(),
        b"identity": b"5eed",
    }


async def test_a_later_caller_gets_what_is_stored_and_changes_nothing(shard: Shard) -> None:
    first = shard.kernel.open_namespace(64, Partition.TENANT, "5eed", FLOWS)
    await shard.do(first)
    for call in (first, shard.kernel.open_namespace(256, Partition.RUN)):
        assert await shard.assert_changes_nothing(call) == (64, Partition.TENANT, SCHEMA, "5eed")


async def test_workflows_are_registered_beside_those_of_other_apps(shard: Shard) -> None:
    await shard.do(shard.kernel.open_namespace(64, Partition.RUN, workflows=FLOWS))
    await shard.do(shard.kernel.open_namespace(64, Partition.RUN, workflows=[("refund", b"{}")]))
    assert await shard.plain("HGETALL", shard.namespace.workflows) == {b"order": FLOWS[0][1], b"refund": b"{}"}


async def test_data_that_are_created_again_have_another_identity(shard: Shard) -> None:
    before = await shard.do(shard.kernel.open_namespace(64, Partition.RUN))
    await shard.plain("DEL", shard.namespace.meta)
    after = await shard.do(shard.kernel.open_namespace(64, Partition.RUN))
    assert before.identity != after.identity


async def test_a_namespace_from_before_there_were_identities_gets_one(shard: Shard) -> None:
    await shard.plain("HSET", shard.namespace.meta, "shards", 8, "partition", "run", "schema", SCHEMA)
    assert (await shard.do(shard.kernel.open_namespace(64, Partition.TENANT, "5eed"))) == (
        8,
        Partition.RUN,
        SCHEMA,
        "5eed",
    )


async def test_wrong_key_types_leave_nothing_half_written(shard: Shard) -> None:
    call = shard.kernel.open_namespace(64, Partition.RUN, workflows=FLOWS)
    await shard.assert_wrong_types_leave_nothing_half_written(call)
