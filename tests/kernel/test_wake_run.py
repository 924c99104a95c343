"""wake_run: put a run that was moved out of memory back, as it was."""

from __future__ import annotations

import msgspec
import pytest

from streamflow.errors import StoreError
from streamflow.machine.lost import is_parent, lost_run
from streamflow.model.attributes import value_text
from streamflow.model.record import ParentLink, decode_header
from streamflow.model.sharding import Partition
from streamflow.model.sleeping import decode_sleeper
from streamflow.store.connection import Call
from streamflow.store.kernel import Reply
from streamflow.store.keys import bucket_of
from tests.kernel.support import NOW, Shard
from tests.kernel.test_hibernate_runs import LATER, moving, waiting

pytestmark = pytest.mark.anyio


async def sleeping(shard: Shard, run_id: str = "r1", due: int | None = LATER) -> list[bytes]:
    """A run that was moved out, and its record."""
    await waiting(shard, run_id, due)
    record = await shard.record(run_id)
    assert await shard.do(await moving(shard, run_id)) == (Reply.OK, [True])
    return record


async def waking(shard: Shard, run_id: str, record: list[bytes], token: str = "") -> Call[tuple[Reply, bytes]]:
    line = await shard.plain("HGET", shard.keys.asleep(run_id), run_id) or b"gone"
    return shard.kernel.wake_run(0, token or shard.token, run_id, line, record, [("progress", b"x")])


async def test_it_is_there_again_with_all_that_it_had(shard: Shard) -> None:
    await waiting(shard)
    await shard.plain("HSET", shard.keys.published("r1"), "progress", b"x")
    before = await shard.dump()
    record = await shard.record("r1")
    await shard.do(await moving(shard, "r1"))
    assert await shard.do(await waking(shard, "r1", record)) == (Reply.OK, b"")
    after = await shard.dump()
    assert after.pop(shard.keys.owner).pop(b"asleep") == b"0"
    before.pop(shard.keys.owner)
    assert after == before


async def test_attributes_and_a_long_history_are_put_back(shard: Shard) -> None:
    await waiting(shard, tenant="")
    header = msgspec.structs.replace(decode_header(await shard.header("r1")), attributes={"customer": "x"})
    await shard.plain("LSET", shard.keys.run("r1"), 0, header.encode())
    record = [header.encode(), b"", *(b"transition %d" % n for n in range(2501))]
    await shard.do(await moving(shard, "r1"))
    assert (await shard.do(await waking(shard, "r1", record)))[0] is Reply.OK
    assert await shard.record("r1") == record
    assert await shard.listed(shard.keys.attribute("customer", value_text("x"))) == {"r1": NOW}
    assert not [name for name in await shard.key_names() if "tenant" in name]


async def test_the_bucket_is_due_when_the_next_of_its_runs_is(shard: Shard) -> None:
    same = [name for name in (f"r{n}" for n in range(2000)) if bucket_of(name) == bucket_of("r1")][:3]
    records = {
        run_id: await sleeping(shard, run_id, due) for run_id, due in zip(same, (LATER, LATER + 9, None), strict=True)
    }
    first, second, third = same
    member = f"-{bucket_of('r1')}"
    await shard.do(await waking(shard, third, records[third]))
    assert await shard.listed(shard.keys.agenda) == {member: LATER}
    await shard.do(await waking(shard, first, records[first]))
    assert await shard.listed(shard.keys.agenda) == {member: LATER + 9, first: LATER}
    await shard.do(await waking(shard, second, records[second]))
    assert await shard.listed(shard.keys.agenda) == {first: LATER, second: LATER + 9}


async def test_runs_of_a_bucket_may_be_due_at_the_same_time(shard: Shard) -> None:
    same = [name for name in (f"r{n}" for n in range(2000)) if bucket_of(name) == bucket_of("r1")][:2]
    records = {run_id: await sleeping(shard, run_id) for run_id in same}
    await shard.do(await waking(shard, same[0], records[same[0]]))
    assert await shard.listed(shard.keys.agenda) == {f"-{bucket_of('r1')}": LATER, same[0]: LATER}
    due = await shard.do(shard.kernel.due_runs(0, shard.token, 10, LATER))
    assert sorted(due.due) == sorted([f"-{bucket_of('r1')}", same[0]])


async def test_a_call_that_comes_again_changes_nothing(shard: Shard) -> None:
    record = await sleeping(shard)
    call = await waking(shard, "r1", record)
    await shard.do(call)
    assert await shard.assert_changes_nothing(call) == (Reply.CONFLICT, b"")


async def test_a_former_owner_wakes_nothing(shard: Shard) -> None:
    record = await sleeping(shard)
    former = shard.token
    await shard.acquire("two", now=NOW + 5)
    answer = await shard.assert_changes_nothing(await waking(shard, "r1", record, former))
    assert answer[0] is Reply.FENCED


async def test_what_was_moved_out_again_since_is_not_put_back_as_it_was(shard: Shard) -> None:
    record = await sleeping(shard)
    late = await waking(shard, "r1", record)
    await shard.do(late)
    await shard.advance("r1", plans=[("r1", LATER)])
    await shard.do(await moving(shard, "r1"))
    code, line = await shard.assert_changes_nothing(late)
    assert code is Reply.CONFLICT
    assert line == await shard.plain("HGET", shard.keys.asleep("r1"), "r1")


async def test_the_record_of_another_state_is_refused(shard: Shard) -> None:
    record = await sleeping(shard)
    header = decode_header(record[0])
    other = msgspec.structs.replace(header, version=header.version + 1).encode()
    answer = await shard.assert_changes_nothing(await waking(shard, "r1", [other, *record[1:]]))
    assert isinstance(answer, StoreError)
    assert "BADHEADER" in str(answer)


async def test_wrong_types_leave_nothing_half_written(shard: Shard) -> None:
    record = await sleeping(shard)
    await shard.assert_wrong_types_leave_nothing_half_written(await waking(shard, "r1", record))


async def test_a_lost_child_is_known_as_its_parents_by_the_digest(shard: Shard) -> None:
    """What is put back of it has only what its line and its id say (`machine/lost.py`)."""
    link = ParentLink("invoice-17", 3, NOW - 5)
    await waiting(shard)
    header = msgspec.structs.replace(decode_header(await shard.header("r1")), parent=str(link))
    await shard.plain("LSET", shard.keys.run("r1"), 0, header.encode())
    await shard.do(await moving(shard, "r1"))
    line = await shard.plain("HGET", shard.keys.asleep("r1"), "r1")
    sleeper = decode_sleeper(line)
    assert is_parent(link, sleeper.parent)
    assert not is_parent(link._replace(created=NOW), sleeper.parent)
    lost = lost_run("r1", sleeper, Partition.RUN, link, "it is gone")
    assert await shard.do(shard.kernel.wake_run(0, shard.token, "r1", line, lost.record, [])) == (Reply.OK, b"")
    assert await shard.record("r1") == lost.record
    assert decode_header(lost.record[0]).parent == str(link)
