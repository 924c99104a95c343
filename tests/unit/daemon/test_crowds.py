"""Messages of a run that gets thousands: in order, none twice, none lost, and others before long."""

from __future__ import annotations

from collections import defaultdict, deque
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamflow.daemon import batch as batch_module
from streamflow.daemon.batch import ShardBatch
from streamflow.daemon.shard import CrowdedInbox, OwnedShard
from streamflow.machine.transition import Outcome
from streamflow.store.kernel import Batch
from streamflow.wire import InboxMessage
from tests.support.fakes import owned, put, signal

LIMITS = {"RUN_INPUTS": 4, "INPUTS": 12, "RUNS": 5, "BYTES": 400}


@pytest.fixture(autouse=True, scope="module")
def _small_limits() -> Any:  # pyright: ignore[reportUnusedFunction]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in LIMITS.items():
            patch.setattr(batch_module, name, value)
        yield


def collected(shard: OwnedShard) -> ShardBatch:
    batch = ShardBatch(shard, Batch("c"))
    batch.collect()
    return batch


def crowds(shard: OwnedShard) -> dict[str, deque[InboxMessage]]:
    return shard.inbox.crowds if isinstance(shard.inbox, CrowdedInbox) else {}


def taken(batch: ShardBatch) -> dict[str, list[str]]:
    return {run_id: [message.id for message in work.messages] for run_id, work in batch.work.items()}


def test_messages_of_a_crowd_are_gone_through_once() -> None:
    shard = owned()
    put(shard, *(signal(f"1-{n}", "hot", "item", n) for n in range(40)), signal("2-0", "other", "item"))
    assert taken(collected(shard)) == {"hot": ["1-0", "1-1", "1-2", "1-3"], "other": ["2-0"]}
    crowd = crowds(shard)["hot"]
    for first in range(4, 40, 4):
        assert deque.__len__(shard.inbox) == 0
        assert crowds(shard).get("hot") is crowd, "it stays where it is"
        assert taken(collected(shard)) == {"hot": [f"1-{n}" for n in range(first, first + 4)]}
    assert not shard.has_work
    assert type(shard.inbox) is deque


def test_what_comes_for_a_crowd_waits_behind_it() -> None:
    shard = owned()
    put(shard, *(signal(f"1-{n}", "hot", "item", n) for n in range(10)))
    batches = [collected(shard)]
    put(shard, signal("2-0", "hot", "item"))
    assert len(shard.inbox) == 7
    assert [message.id for message in shard.inbox] == [*(f"1-{n}" for n in range(4, 10)), "2-0"]
    batches += [collected(shard), collected(shard)]
    ids = [message_id for batch in batches for message_id in taken(batch)["hot"]]
    assert ids == [*(f"1-{n}" for n in range(10)), "2-0"]
    assert not shard.inbox


def test_what_a_batch_gives_back_is_before_the_crowd() -> None:
    shard = owned()
    put(shard, *(signal(f"1-{n}", "hot", "item", n) for n in range(10)), InboxMessage("1-99", "taken", "hot", b"", b""))
    batch = collected(shard)
    batch.put_back()
    assert [message.id for message in crowds(shard)["hot"]] == [f"1-{n}" for n in range(10)]
    assert [message.id for message in shard.inbox][10:] == ["1-99"], "it is for the owner, not the run"
    again = collected(shard)
    assert taken(again) == {"hot": ["1-0", "1-1", "1-2", "1-3"]}
    assert [message.id for message in again.child_conflicts] == ["1-99"]


def test_what_is_taken_out_or_thrown_away_is_found_in_a_crowd() -> None:
    shard = owned()
    put(shard, *(signal(f"1-{n}", "hot", "item", n) for n in range(6)), signal("2-0", "other", "item"))
    collected(shard)
    put(shard, signal("3-0", "other", "item"))
    for message in list(shard.inbox):
        shard.inbox.remove(message)
    assert (len(shard.inbox), bool(shard.inbox), crowds(shard)) == (0, False, {})
    put(shard, *(signal(f"1-{n}", "hot", "item", n) for n in range(6)))
    collected(shard)
    shard.inbox.clear()
    assert not shard.has_work


def test_crowds_leave_half_of_a_batch_to_others_and_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_module, "INPUTS", 60)
    shard = owned()
    hot = [f"h{number}" for number in range(6)]
    for run_id in hot:
        put(shard, *(signal(f"{n}-{run_id[1:]}", run_id, "item") for n in range(1, 100)))
    for _ in range(10):
        collected(shard)
    assert set(crowds(shard)) == set(hot)
    served: set[str] = set()
    for number in range(6):
        put(shard, signal(f"99-{number}", f"s{number}", "item"))
        batch = collected(shard)
        assert f"s{number}" in batch.work, "it doesn't wait for them"
        served |= set(batch.work)
    assert served >= set(hot), "none of them waits for the same others"


def test_nobody_waits_for_good_if_each_commit_is_full_after_one_run() -> None:
    """By what it writes, not by what was collected. More comes for the crowds all the time."""
    shard = owned()
    hot = ["h0", "h1", "h2"]
    number = 0
    served: list[str] = []
    for turn in range(24):
        for run_id in hot:
            for _ in range(4 if turn else 40):
                number += 1
                put(shard, signal(f"{number}-0", run_id, "item"))
        if turn == 2:
            put(shard, signal(f"{number}-1", "other", "item"))
        batch = collected(shard)
        first, *others = batch.work
        served.append(first)
        if others:
            batch._put_back_from(others[0])  # pyright: ignore[reportPrivateUsage]
    assert "other" in served[:6]
    assert min(served.count(run_id) for run_id in hot) >= 5


def test_a_run_of_which_outcomes_fill_its_portion_stays_divided() -> None:
    shard = owned()
    put(shard, *(signal(f"1-{n}", "hot", "item", n) for n in range(10)))
    collected(shard)
    shard.portions = {"hot": 3}
    for seq in range(3):
        shard.add_input("hot", Outcome(seq, 1, 0.0))
    batch = collected(shard)
    assert taken(batch) == {"hot": []}
    assert batch.divided == {"hot"}, "its portion is kept for the next one"


runs = st.sampled_from(["a", "b", "c"])
happenings = st.lists(
    st.one_of(
        st.tuples(st.just("come"), runs, st.integers(1, 15)),
        st.tuples(st.just("outcome"), runs, st.integers(1, 6)),
        st.tuples(st.sampled_from(["commit", "put back", "full"]), runs, st.integers(1, 3)),
    ),
    max_size=30,
)


@given(happenings, st.dictionaries(runs, st.integers(1, 3), max_size=1))
def test_whatever_happens_messages_of_a_run_are_in_order(
    what: list[tuple[str, str, int]], portions: dict[str, int]
) -> None:
    shard = owned()
    shard.portions = portions
    came: dict[str, list[str]] = defaultdict(list)
    done: dict[str, list[str]] = defaultdict(list)
    number = 0

    def commit(batch: ShardBatch) -> None:
        for run_id, ids in taken(batch).items():
            done[run_id] += ids

    for happens, run_id, count in what:
        if happens == "come":
            for _ in range(count):
                number += 1
                came[run_id].append(f"{number}-0")
                put(shard, signal(f"{number}-0", run_id, "item", number))
        elif happens == "outcome":
            for _ in range(count):
                shard.add_input(run_id, Outcome(1, 1, 0.0))
        elif happens == "commit":
            commit(collected(shard))
        elif happens == "put back":
            collected(shard).put_back()
        else:  # the commit is full before some of its runs
            batch = collected(shard)
            if len(batch.work) >= count:
                batch._put_back_from(list(batch.work)[-count])  # pyright: ignore[reportPrivateUsage]
            commit(batch)
        waiting = len(came["a"] + came["b"] + came["c"]) - sum(map(len, done.values()))
        assert len(shard.inbox) == len(list(shard.inbox)) == waiting
        assert bool(shard.inbox) == (waiting > 0)
        assert all(crowds(shard).values()), "no empty ones are left"
    for _ in range(400):
        if not shard.has_work:
            break
        commit(collected(shard))
    assert not shard.has_work
    assert all(done[run_id] == came[run_id] for run_id in "abc")
