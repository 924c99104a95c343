"""Which starts begin in a round, and which wait: by tenants in turn, beside what is under way."""

from __future__ import annotations

import pytest

from streamflow.daemon import starts as starts_module
from streamflow.daemon.shard import OwnedShard
from streamflow.daemon.starts import ALONE, TOGETHER, HeldStart, Starts
from streamflow.model.record import Header, Status
from streamflow.wire import InboxMessage
from tests.support.fakes import owned

pytestmark = pytest.mark.anyio

SEVERAL = 8


def start(run_id: str, tenant: str = "", workflow: str = "flow") -> InboxMessage:
    header = Header(Status.PENDING, 0, "-", 5, 0, workflow, tenant, "").encode()
    return InboxMessage("5-1", "start", run_id, b"input", header)


def signal(run_id: str) -> InboxMessage:
    return InboxMessage("6-1", "signal", run_id, b"value")


def ids(taken: list[HeldStart]) -> list[str]:
    return [held.messages[0].run_id for held in taken]


def held(starts: Starts, shard: OwnedShard, *messages: InboxMessage) -> None:
    for message in messages:
        starts.hold(shard, message)


async def test_a_start_passes_while_there_is_room_and_waits_when_there_is_none() -> None:
    starts, shard = Starts(SEVERAL), owned()
    offered = [starts.offer(shard, start(f"r{number}")) for number in range(ALONE + 2)]
    assert offered == [False] * ALONE + [True] * 2
    assert starts.used
    assert ids(starts.take(0, is_full=False)) == [f"r{ALONE}", f"r{ALONE + 1}"]
    assert not starts.held


async def test_what_is_under_way_comes_first_and_one_eighth_begins_in_any_case() -> None:
    starts, shard = Starts(SEVERAL), owned()
    held(starts, shard, *(start(f"r{number}") for number in range(500)))
    assert len(starts.take(0, is_full=False)) == ALONE
    assert len(starts.take(ALONE - 10, is_full=False)) == 31, "one of eight, although there is room for ten"
    assert len(starts.take(5000, is_full=False)) == 31


async def test_tenants_take_turns_and_rounds_are_short_while_small_ones_wait() -> None:
    starts, shard = Starts(SEVERAL), owned()
    held(starts, shard, *(start(f"a{number}", "acme") for number in range(50)))
    held(starts, shard, start("b0", "globex"), start("w0", workflow="one"), start("w1", workflow="two"))
    assert ids(starts.take(0, is_full=False)) == ["a0", "b0", "w0", "w1", "a1", "a2", "a3", "a4"]


async def test_starts_of_small_tenants_find_room_in_a_short_round_that_has_none() -> None:
    starts, shard = Starts(SEVERAL), owned()
    held(starts, shard, *(start(f"a{number}", "acme") for number in range(100)))
    held(starts, shard, *(start(f"b{number}", "globex") for number in range(3)), start("c0", "initech"))
    assert ids(starts.take(500, is_full=False)) == ["a0", "b0", "b1", "b2", "c0"]
    assert ids(starts.take(500, is_full=False)) == ["a1"]


async def test_rounds_are_long_if_all_tenants_have_many_or_all_have_few() -> None:
    starts, shard = Starts(SEVERAL), owned()
    for tenant in ("acme", "globex", "initech"):
        held(starts, shard, *(start(f"{tenant}{number}", tenant) for number in range(100)))
    assert len(starts.take(0, is_full=False)) == ALONE
    starts = Starts(SEVERAL)
    held(starts, shard, *(start(f"r{number}", f"t{number}") for number in range(60)))
    held(starts, shard, *(start(f"a{number}", "acme") for number in range(100)))
    assert len(starts.take(0, is_full=False)) == 160
    held(starts, shard, *(start(f"a{number}", "acme") for number in range(100)), start("b0", "globex"))
    assert len(starts.take(0, is_full=False)) == SEVERAL


async def test_rounds_are_long_again_some_time_after_the_last_other_tenant(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(starts_module.time, "monotonic", lambda: now)
    starts, shard = Starts(SEVERAL), owned()
    held(starts, shard, start("b0", "globex"), *(start(f"a{number}", "acme") for number in range(600)))
    assert len(starts.take(0, is_full=False)) == SEVERAL
    now += starts_module.SEVERAL_SECONDS - 1
    assert len(starts.take(0, is_full=False)) == SEVERAL
    now += 2
    assert len(starts.take(0, is_full=False)) == ALONE


async def test_while_the_daemon_is_full_each_tenant_gets_one_start_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(starts_module.time, "monotonic", lambda: now)
    starts, shard = Starts(SEVERAL), owned()
    held(starts, shard, *(start(f"a{number}", "acme") for number in range(9)), start("b0", "globex"))
    assert ids(starts.take(0, is_full=True)) == ["a0", "b0"]
    assert ids(starts.take(0, is_full=True)) == []
    assert starts.offer(shard, start("c0", "initech")), "nothing passes"
    now += starts_module.TRICKLE
    assert ids(starts.take(0, is_full=True)) == ["a1", "c0"]


async def test_only_starts_of_tenants_whose_runs_crowd_the_slots_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(starts_module.time, "monotonic", lambda: now)
    starts, shard = Starts(SEVERAL), owned()
    held(starts, shard, *(start(f"a{n}", "acme") for n in range(9)), *(start(f"b{n}", "globex") for n in range(3)))
    assert ids(starts.take(0, is_full=False, crowding={b"t/acme"})) == ["a0", "b0", "b1", "b2"]
    assert starts.offer(shard, start("a9", "acme")), "it waits for a round that knows whose it is"
    assert starts.offer(shard, start("c0", "initech"))
    assert ids(starts.take(0, is_full=False, crowding={b"t/acme"})) == ["c0"]
    now += starts_module.TRICKLE
    assert ids(starts.take(0, is_full=False, crowding={b"t/acme", b"t/gone"})) == ["a1"]
    assert ids(starts.take(0, is_full=False)) == [f"a{number}" for number in range(2, 10)]


async def test_the_tenants_that_are_remembered_for_that_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(starts_module.time, "monotonic", lambda: now)
    starts, shard = Starts(SEVERAL), owned()
    held(starts, shard, *(start(f"r{number}", f"t{number}") for number in range(3 * starts_module.TRICKLED)))
    assert len(starts.take(0, is_full=True)) == starts_module.TRICKLED + 1
    now += starts_module.TRICKLE
    assert len(starts.take(0, is_full=True)) == starts_module.TRICKLED + 1


async def test_messages_for_a_run_wait_behind_its_start() -> None:
    starts, shard = Starts(SEVERAL), owned()
    held(starts, shard, start("r1"))
    assert starts.offer(shard, signal("r1"))
    assert not starts.offer(shard, signal("r2"))
    [taken] = starts.take(0, is_full=False)
    assert [message.kind for message in taken.messages] == ["start", "signal"]


async def test_a_shard_that_is_leaving_begins_nothing() -> None:
    starts, leaving, staying = Starts(SEVERAL), owned(1), owned(2)
    held(starts, leaving, start("r1"))
    held(starts, staying, start("r2"))
    leaving.draining = True
    assert ids(starts.take(0, is_full=False)) == ["r2"]
    assert not starts.held, "its next owner reads them"


async def test_a_shard_that_was_acquired_again_is_the_one_that_begins_them() -> None:
    starts, before, now = Starts(SEVERAL), owned(1), owned(1)
    held(starts, before, start("r1"))
    starts.offer(before, signal("r1"))
    before.dropped = True
    assert starts.offer(now, start("r1"))
    [taken] = starts.take(0, is_full=False)
    assert (taken.shard, len(taken.messages)) == (now, 1)


async def test_a_header_that_is_none_takes_a_turn_too() -> None:
    starts, shard = Starts(SEVERAL), owned()
    held(starts, shard, InboxMessage("0-1", "start", "r1", b"", b""))
    assert ids(starts.take(0, is_full=False)) == ["r1"]


async def test_starts_of_one_shard_begin_together() -> None:
    starts, one, two = Starts(SEVERAL), owned(1), owned(2)
    held(starts, one, start("a1"), start("a2"))
    held(starts, two, start("b1"))
    held(starts, one, start("a3"))
    held(starts, two, start("b2"))
    assert ids(starts.take(0, is_full=False)) == ["a1", "a2", "a3", "b1", "b2"], "one commit for each shard"


async def test_a_shard_with_many_starts_lets_others_begin_after_some() -> None:
    starts, many, few = Starts(SEVERAL), owned(1), owned(2)
    held(starts, many, *(start(f"a{number}") for number in range(ALONE)))
    held(starts, few, start("b0"), start("b1"))
    taken = ids(starts.take(0, is_full=False))
    assert taken[TOGETHER : TOGETHER + 2] == ["b0", "b1"]
    assert taken[:TOGETHER] + taken[TOGETHER + 2 :] == [f"a{number}" for number in range(ALONE - 2)]
    assert ids(starts.take(0, is_full=False)) == [f"a{ALONE - 2}", f"a{ALONE - 1}"]


async def test_a_tenant_with_starts_in_many_shards_has_one_turn() -> None:
    starts, one, two = Starts(SEVERAL), owned(1), owned(2)
    held(starts, one, start("a1", "acme"), start("a2", "acme"), start("b1", "globex"))
    held(starts, two, start("a3", "acme"))
    assert ids(starts.take(0, is_full=False)) == ["a1", "b1", "a2", "a3"]
