"""report_step: the outcome of a step that a former owner has run goes to its run."""

from __future__ import annotations

import pytest

from streamflow.store.kernel import LentStep
from tests.kernel.support import NOW, Shard

pytestmark = pytest.mark.anyio


async def lent(shard: Shard) -> None:
    await shard.acquire("host")
    await shard.start("r1")
    await shard.do(shard.kernel.release_shard(0, shard.token, [LentStep("r1/1", "host", NOW, 2)]))


@pytest.mark.parametrize("kind", ["outcome", "returned"])
async def test_the_run_gets_a_message_and_the_record_says_so(shard: Shard, kind: str) -> None:
    await lent(shard)
    assert await shard.do(shard.kernel.report_step(0, "r1", NOW, kind, "r1/1", b"\x00x")) == "a"
    assert (await shard.inbox())[-1] == {"kind": kind.encode(), "run": b"r1", "body": b"\x00x"}
    assert await shard.plain("HGET", shard.keys.steps, "r1/1") == f"host {NOW} 2 reported".encode()


async def test_without_a_record_it_is_only_a_message(shard: Shard) -> None:
    await shard.start("r1")
    assert await shard.do(shard.kernel.report_step(0, "r1", NOW, "outcome", "r1/1", b"x")) == "a"
    assert not await shard.plain("EXISTS", shard.keys.steps)


async def test_a_run_that_was_started_again_under_the_id_refuses_it(shard: Shard) -> None:
    await lent(shard)
    call = shard.kernel.report_step(0, "r1", NOW + 1, "outcome", "r1/1", b"x")
    assert await shard.assert_changes_nothing(call) == "m"


async def test_a_run_that_does_not_exist_refuses_it(shard: Shard) -> None:
    call = shard.kernel.report_step(0, "r1", NOW, "outcome", "r1/1", b"x")
    assert await shard.assert_changes_nothing(call) == "m"


async def test_a_run_that_has_ended_refuses_it(shard: Shard) -> None:
    await shard.acquire()
    await shard.start("r1")
    await shard.advance("r1", "completed")
    call = shard.kernel.report_step(0, "r1", NOW, "outcome", "r1/1", b"x")
    assert await shard.assert_changes_nothing(call) == "e"


async def test_wrong_key_types_leave_nothing_half_written(shard: Shard) -> None:
    await lent(shard)
    call = shard.kernel.report_step(0, "r1", NOW, "outcome", "r1/1", b"x")
    await shard.assert_wrong_types_leave_nothing_half_written(call)
