"""hibernate_runs: move open runs that only wait out of memory."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from streamflow.model.attributes import value_text
from streamflow.model.record import decode_header
from streamflow.model.sleeping import decode_sleeper, is_asleep
from streamflow.store.connection import Call
from streamflow.store.kernel import ASLEEP, Delivery, Message, OnceMessage, Reply, Start
from streamflow.store.keys import bucket_of
from tests.kernel.support import NOW, Shard

pytestmark = pytest.mark.anyio

LATER = NOW + 86_400_000


async def waiting(shard: Shard, run_id: str = "r1", due: int | None = LATER, tenant: str = "acme") -> None:
    """A run that has decided something, and waits."""
    if not shard.token:
        await shard.acquire()
    await shard.do(shard.kernel.start_runs(0, [Start(run_id, "flow", tenant, b"x")], NOW, asleep=True))
    await shard.advance(run_id, plans=[(run_id, due)])
    await shard.plain("DEL", shard.keys.inbox)


async def moving(shard: Shard, *run_ids: str, token: str = "") -> Call[tuple[Reply, list[bool]]]:
    runs = [(run_id, decode_header(await shard.header(run_id)), f"{n:08x}") for n, run_id in enumerate(run_ids)]
    return shard.kernel.hibernate_runs(0, token or shard.token, runs)


async def asleep(shard: Shard, run_id: str = "r1", due: int | None = LATER) -> None:
    await waiting(shard, run_id, due)
    assert await shard.do(await moving(shard, run_id)) == (Reply.OK, [True])


async def test_of_a_run_only_one_short_line_stays(shard: Shard) -> None:
    await waiting(shard)
    await shard.plain("HSET", shard.keys.published("r1"), "progress", b"x")
    assert await shard.do(await moving(shard, "r1")) == (Reply.OK, [True])
    keys = shard.keys
    left = await shard.key_names()
    assert not [name for name in left if "r1" in name or "index" in name]
    [(run_id, line)] = (await shard.plain("HGETALL", keys.asleep("r1"))).items()
    sleeper = decode_sleeper(line)
    assert (run_id, sleeper.version, sleeper.due, sleeper.workflow) == (b"r1", 1, LATER, "flow")
    assert sleeper.random == "00000000"
    assert await shard.plain("HGET", keys.owner, "asleep") == b"1"


async def test_the_agenda_has_one_entry_for_a_bucket_that_of_the_run_due_first(shard: Shard) -> None:
    same = [name for name in (f"r{n}" for n in range(2000)) if bucket_of(name) == bucket_of("r1")][:3]
    for run_id, due in zip(same, (LATER + 9, LATER, LATER + 5), strict=True):
        await asleep(shard, run_id, due)
    assert await shard.listed(shard.keys.agenda) == {f"-{bucket_of('r1')}": LATER}


async def test_a_run_that_waits_for_messages_alone_is_not_on_the_agenda(shard: Shard) -> None:
    await asleep(shard, due=None)
    assert not await shard.listed(shard.keys.agenda)
    assert decode_sleeper(await shard.plain("HGET", shard.keys.asleep("r1"), "r1")).due == 0


async def test_attributes_go_with_the_run(shard: Shard) -> None:
    await waiting(shard)
    header = msgspec.structs.replace(decode_header(await shard.header("r1")), attributes={"customer": "x"})
    listing = shard.keys.attribute("customer", value_text("x"))
    await shard.plain("LSET", shard.keys.run("r1"), 0, header.encode())
    await shard.plain("ZADD", listing, NOW, "r1", NOW, "other")
    assert await shard.do(await moving(shard, "r1")) == (Reply.OK, [True])
    assert await shard.listed(listing) == {"other": NOW}


async def test_a_long_name_of_a_workflow_does_not_make_the_line_longer(shard: Shard) -> None:
    await shard.acquire()
    await shard.start("r1", workflow="w" * 60)
    await shard.advance("r1", plans=[("r1", LATER)])
    await shard.do(await moving(shard, "r1"))
    line = await shard.plain("HGET", shard.keys.asleep("r1"), "r1")
    assert len(line) <= 64
    assert decode_sleeper(line).workflow == ""


@pytest.mark.parametrize("status", ["completed", "stuck", "paused"])
async def test_what_does_not_only_wait_stays(shard: Shard, status: str) -> None:
    await waiting(shard)
    await shard.advance("r1", status)
    assert await shard.assert_changes_nothing(await moving(shard, "r1")) == (Reply.OK, [False])


async def test_a_run_whose_steps_are_in_flight_stays(shard: Shard) -> None:
    await waiting(shard, due=-1)
    assert await shard.assert_changes_nothing(await moving(shard, "r1")) == (Reply.OK, [False])


async def test_a_run_that_has_gone_on_meanwhile_stays(shard: Shard) -> None:
    await waiting(shard)
    call = await moving(shard, "r1")
    await shard.advance("r1")
    assert await shard.assert_changes_nothing(call) == (Reply.OK, [False])


async def test_a_former_owner_moves_nothing(shard: Shard) -> None:
    await waiting(shard)
    former = shard.token
    await shard.acquire("two", now=NOW + 5)
    answer = await shard.assert_changes_nothing(await moving(shard, "r1", token=former))
    assert answer[0] is Reply.FENCED


async def test_a_call_that_comes_again_changes_nothing(shard: Shard) -> None:
    await waiting(shard)
    call = await moving(shard, "r1")
    await shard.do(call)
    assert await shard.assert_changes_nothing(call) == (Reply.OK, [False])


async def test_wrong_types_leave_nothing_half_written(shard: Shard) -> None:
    await waiting(shard)
    await shard.assert_wrong_types_leave_nothing_half_written(await moving(shard, "r1"))


async def test_the_next_owner_learns_how_many_sleep(shard: Shard) -> None:
    await asleep(shard)
    assert (await shard.acquire("two", now=NOW + 5)).asleep == 1


# --- what comes for such a run ----------------------------------------------------------------------------------------


async def test_where_some_sleep_a_missing_run_is_looked_for_there(shard: Shard) -> None:
    await asleep(shard)
    kernel = shard.kernel
    calls: list[Call[Any]] = [
        kernel.start_runs(0, [Start("r2", "flow", "", b"")], NOW),
        kernel.post_messages(0, "s", 1, [Message("signal", "r1", b"x")], NOW),
        kernel.post_requests(0, "s", 1, [Message("cancel", "r1", b"x")], NOW),
        kernel.post_once(0, OnceMessage(Message("signal", "r1", b"x"), "0a", 1000), NOW),
        kernel.deliver_messages(0, 3, [Delivery("5-1", "start", "r2", b"", "flow", "", "p#1")], NOW),
    ]
    for call in calls:
        answer = await shard.assert_changes_nothing(call)
        assert answer in (ASLEEP, ASLEEP.encode()), call.script


async def test_its_id_is_in_use(shard: Shard) -> None:
    await asleep(shard)
    start = [Start("r1", "flow", "acme", b""), Start("r2", "flow", "acme", b"")]
    one, other = await shard.do(shard.kernel.start_runs(0, start, NOW, asleep=True))
    assert is_asleep(one)
    assert decode_header(one).workflow == "flow"
    assert other.startswith(b"+pending")
    restored = await shard.do(shard.kernel.restore_run(0, "r1", [ENDED, b"", b"x"], [], NOW))
    assert is_asleep(restored)
    again = Start("r1", "flow", "acme", b"", "", "i0a", ENDED)
    assert is_asleep(await shard.do(shard.kernel.replace_run(0, again, NOW, asleep=True)))


ENDED = b"failed 3 c 1 2 flow acme -"


async def test_a_start_that_a_server_has_lost_finds_the_run_that_it_began(shard: Shard) -> None:
    await asleep(shard)
    starts = [Start("r1", "flow", "acme", b"")]
    [same] = await shard.do(shard.kernel.start_runs(0, starts, created=NOW, asleep=True))
    assert same.startswith(b"=running")
    [another] = await shard.do(shard.kernel.start_runs(0, starts, created=NOW + 1, asleep=True))
    assert another.startswith(b"running")


async def test_messages_join_the_inbox(shard: Shard) -> None:
    await asleep(shard)
    created = decode_sleeper(await shard.plain("HGET", shard.keys.asleep("r1"), "r1")).created
    messages = [Message("signal", name, b"x", at) for name, at in (("r1", 0), ("r1", created), ("r1", 5), ("r9", 0))]
    assert await shard.do(shard.kernel.post_messages(0, "s", 1, messages, NOW, asleep=True)) == "aamm"
    once = OnceMessage(Message("signal", "r1", b"y"), "0a", 1000, Start("r1", "flow", "", b""))
    assert (await shard.do(shard.kernel.post_once(0, once, NOW, asleep=True))).letter == "a"
    assert (await shard.do(shard.kernel.post_once(0, once, NOW, asleep=True))).letter == "d"
    assert [message["body"] for message in await shard.inbox()] == [b"x", b"x", b"y"]


async def test_a_child_that_sleeps_is_known_by_its_parents_link(shard: Shard) -> None:
    await shard.acquire()
    link = "p#1@5"
    begun = Delivery("5-1", "start", "c1", b"", "flow", "", link)
    await shard.do(shard.kernel.deliver_messages(0, 3, [begun], NOW))
    await shard.advance("c1", plans=[("c1", LATER)])
    await shard.plain("DEL", shard.keys.inbox)
    await shard.do(await moving(shard, "c1"))
    again = msgspec.structs.replace(begun, number="5-2")
    await shard.do(shard.kernel.deliver_messages(0, 3, [again], NOW, asleep=True))
    assert not await shard.inbox(), "it has this very parent"
    others = [
        Delivery("5-3", "start", "c1", b"", "flow", "", "other#1@5"),
        Delivery("5-4", "cancel", "c1", b"", parent="other#1@5"),
        Delivery("5-5", "cancel", "c1", b"", parent=link),
    ]
    await shard.do(shard.kernel.deliver_messages(0, 3, others, NOW, asleep=True))
    assert [message["kind"] for message in await shard.inbox()] == [b"taken", b"cancel"]


async def test_a_look_finds_it_and_knows_that_it_sleeps(shard: Shard) -> None:
    await asleep(shard)
    await shard.do(shard.kernel.start_runs(0, [Start("r2", "flow", "", b"")], NOW, asleep=True))
    [(line, last), (other, _), (none, _)] = await shard.do(shard.kernel.peek_runs(0, ["r1", "r2", "r9"], asleep=True))
    assert is_asleep(line)
    assert last == b""
    assert other.startswith(b"pending")
    assert none == b""


async def test_who_does_not_use_it_sends_not_one_command_more(real_shard: Shard) -> None:
    shard = real_shard
    await shard.acquire()
    await shard.start("r0")  # scripts are loaded
    await shard.do(shard.kernel.post_messages(0, "s", 1, [Message("signal", "r0", b"x")], NOW))
    before = await commands(shard)
    await shard.start("r1")
    await shard.do(shard.kernel.post_messages(0, "s", 2, [Message("signal", "r1", b"x")], NOW))
    more = {name: n - before.get(name, 0) for name, n in (await commands(shard)).items() if n > before.get(name, 0)}
    assert more.pop("hmget") == 2, "the clock, and with it whether some sleep"
    assert more == {
        "evalsha": 2,
        "info": 1,
        "lindex": 2,
        "type": 3,
        "zcard": 1,
        "hget": 1,
        "xlen": 2,
        "get": 2,
        "rpush": 1,
        "zadd": 1,
        "xadd": 2,
        "hset": 1,
    }


async def commands(shard: Shard) -> dict[str, int]:
    stats = await shard.plain("INFO", "commandstats")
    return {name.removeprefix("cmdstat_"): int(one["calls"]) for name, one in stats.items()}
