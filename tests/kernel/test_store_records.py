"""store_records: fields of hashes and strings that only describe, also when memory is short."""

from __future__ import annotations

import pytest

from streamflow.store.kernel import Put
from tests.kernel.support import Shard

pytestmark = pytest.mark.anyio


async def test_fields_and_strings_are_set(shard: Shard) -> None:
    keys = shard.namespace
    records = [Put(keys.queues, "gpu", b"8"), Put(keys.queues, "cpu", b"4"), Put(keys.view("totals"), "", b"{}")]
    await shard.do(shard.kernel.store_records(records))
    assert await shard.plain("HGETALL", keys.queues) == {b"gpu": b"8", b"cpu": b"4"}
    assert await shard.plain("GET", keys.view("totals")) == b"{}"


async def test_sent_again_it_changes_nothing(shard: Shard) -> None:
    call = shard.kernel.store_records([Put(shard.namespace.queues, "gpu", b"8")])
    await shard.do(call)
    await shard.assert_changes_nothing(call)


async def test_wrong_key_types_leave_nothing_half_written(shard: Shard) -> None:
    keys = shard.namespace
    records = [Put(keys.workflows, "flow", b"{}"), Put(keys.queues, "gpu", b"8")]
    await shard.assert_wrong_types_leave_nothing_half_written(shard.kernel.store_records(records))
