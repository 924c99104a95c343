"""post_requests: requests to cancel or terminate, which are accepted also when memory is short."""

from __future__ import annotations

import pytest

from streamflow.errors import StoreFull
from streamflow.store.kernel import Message
from tests.kernel.support import NOW, Shard

pytestmark = pytest.mark.anyio


async def test_it_shares_the_numbers_of_post_messages(shard: Shard) -> None:
    await shard.start("r1")
    cancel = shard.kernel.post_requests(0, "client", 2, [Message("cancel", "r1", b"why")], NOW)
    assert await shard.do(cancel) == "a"
    assert await shard.assert_changes_nothing(cancel) == "a"
    late = shard.kernel.post_messages(0, "client", 1, [Message("signal", "r1", b"1")], NOW)
    await shard.assert_changes_nothing(late)


async def test_it_is_accepted_when_a_signal_is_refused_for_lack_of_memory(real_shard: Shard) -> None:
    shard = real_shard
    await shard.start("r1")
    await shard.plain("CONFIG", "SET", "maxmemory", "1mb")
    try:
        with pytest.raises(StoreFull):
            await shard.do(shard.kernel.post_messages(0, "client", 1, [Message("signal", "r1", b"1")], NOW))
        request = shard.kernel.post_requests(0, "client", 2, [Message("terminate", "r1", b"why")], NOW)
        assert await shard.do(request) == "a"
    finally:
        await shard.plain("CONFIG", "SET", "maxmemory", "0")


async def test_wrong_key_types_leave_nothing_half_written(shard: Shard) -> None:
    await shard.start("r1")
    await shard.assert_wrong_types_leave_nothing_half_written(
        shard.kernel.post_requests(0, "client", 1, [Message("cancel", "r1", b"why")], NOW)
    )
