"""pause: the notes on what is paused."""

from __future__ import annotations

import pytest

from tests.kernel.support import Shard

pytestmark = pytest.mark.anyio


async def test_the_first_note_stays_until_it_goes_on(shard: Shard) -> None:
    answers = [await shard.do(shard.kernel.pause("queue:gpu", note)) for note in (b"one", b"two", b"", b"")]
    assert answers == [b"", b"one", b"one", b""]
    await shard.do(shard.kernel.pause("queue:gpu", b"three"))
    await shard.do(shard.kernel.pause("queue:cpu", b"four"))
    assert await shard.plain("HGETALL", shard.namespace.paused) == {b"queue:gpu": b"three", b"queue:cpu": b"four"}


async def test_a_key_of_another_type_is_left_alone(shard: Shard) -> None:
    key = shard.namespace.paused
    shard.planted.add(key)
    await shard.plain("SET", key, "x")
    assert "WRONGTYPE" in str(await shard.assert_changes_nothing(shard.kernel.pause("queue:gpu", b"x")))
    await shard.plain("DEL", key)
