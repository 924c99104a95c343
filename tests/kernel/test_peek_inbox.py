"""peek_inbox: how many messages a shard's inbox has, and which is the first, without reading them."""

from __future__ import annotations

import pytest

from streamflow.store.kernel import Message
from tests.kernel.support import NOW, Shard

pytestmark = pytest.mark.anyio


async def test_the_number_of_messages_and_the_first_are_told_without_them(shard: Shard) -> None:
    await shard.acquire()
    await shard.start("r")
    await shard.advance("r", acks=await shard.read())
    peek = shard.kernel.peek_inbox(0)
    assert await shard.assert_changes_nothing(peek) == (0, "")
    messages = [Message("signal", "r", b"x" * 100_000)] * 3
    await shard.do(shard.kernel.post_messages(0, "client", 1, messages, NOW))
    assert await shard.assert_changes_nothing(peek) == (3, (await shard.read())[0])


async def test_an_inbox_of_another_type_is_named(shard: Shard) -> None:
    await shard.assert_wrong_types_leave_nothing_half_written(shard.kernel.peek_inbox(0))
