"""read_transitions: transitions of runs by the version of the header that they have made."""

from __future__ import annotations

import pytest

from streamflow.store.kernel import FRESH, Batch
from tests.kernel.support import NOW, Shard

pytestmark = pytest.mark.anyio

LIMIT = 1_000_000


async def commit(shard: Shard, run_id: str, transition: bytes, state: bytes = b"", status: str = "running") -> None:
    write = await shard.write_of(run_id, status, state)
    write.transition = transition
    await shard.do(shard.commit(Batch(shard.commit_id(), runs=[write])))


async def read(shard: Shard, *wanted: tuple[str, int, int], limit: int = LIMIT) -> list[bytes | None]:
    return await shard.assert_changes_nothing(shard.kernel.read_transitions(0, wanted, limit))


async def ready(shard: Shard, *run_ids: str) -> None:
    await shard.acquire()
    await shard.start(*run_ids)


async def test_a_transition_is_found_by_its_number(shard: Shard) -> None:
    await ready(shard, "r1", "r2")
    for number in range(1, 4):
        await commit(shard, "r1", b"one-%d" % number)
        await commit(shard, "r2", b"two-%d" % number)
    wanted = [("r2", NOW, 3), ("r1", NOW, 1), ("r1", NOW, 2)]
    assert await read(shard, *wanted) == [b"two-3", b"one-1", b"one-2"]
    assert await read(shard) == []


async def test_what_is_not_there_is_gone(shard: Shard) -> None:
    await ready(shard, "r1")
    await commit(shard, "r1", b"one-1")
    shard.planted.add(shard.keys.run("bad"))
    await shard.plain("SET", shard.keys.run("bad"), "a string")
    gone = [("r1", NOW, 2), ("r1", NOW, 0), ("r1", NOW + 1, 1), ("none", NOW, 1), ("bad", NOW, 1)]
    assert await read(shard, *gone, ("r1", NOW, 1)) == [b"", b"", b"", b"", b"", b"one-1"]


async def test_a_new_generation_has_its_own_transitions_only(shard: Shard) -> None:
    await ready(shard, "r1")
    await commit(shard, "r1", b"one-1")
    await commit(shard, "r1", b"one-2")
    await commit(shard, "r1", b"one-3", FRESH)
    await commit(shard, "r1", b"one-4")
    wanted = [("r1", NOW, number) for number in range(1, 6)]
    assert await read(shard, *wanted) == [b"", b"", b"one-3", b"one-4", b""]


async def test_of_a_reducer_the_newest_are_found(shard: Shard) -> None:
    await ready(shard, "r1")
    for number in range(1, 402):
        await commit(shard, "r1", b"one-%d" % number, b"state")
    kept = len(await shard.record("r1")) - 2
    assert 200 <= kept < 401, "the record was trimmed"
    found = await read(shard, *[("r1", NOW, number) for number in range(1, 402)])
    assert found == [b""] * (401 - kept) + [b"one-%d" % number for number in range(402 - kept, 402)]


@pytest.mark.parametrize(("limit", "fits"), [(1, 1), (150, 2), (200, 2), (201, 3), (10_000, 4)])
async def test_what_does_not_fit_is_for_the_next_call(shard: Shard, limit: int, fits: int) -> None:
    await ready(shard, "r1")
    transitions = [bytes([97 + n]) * 100 for n in range(4)]
    for transition in transitions:
        await commit(shard, "r1", transition)
    found = await read(shard, *[("r1", NOW, number) for number in range(1, 5)], limit=limit)
    assert found == [*transitions[:fits], *[None] * (4 - fits)]
