"""Where a run lives, and who owns a shard."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamflow.model.names import check_run_id
from streamflow.model.sharding import Partition, child_run_id, full_run_id, is_same_child, shard_of, winner_of

ids = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,20}", fullmatch=True)
member_sets = st.sets(ids, min_size=1, max_size=8)


def test_the_hash_never_changes_for_stored_runs_are_found_by_it() -> None:
    assert shard_of("digest-1", 256, Partition.RUN) == 234
    assert shard_of("acme/invoice-17", 256, Partition.RUN) == 144
    assert shard_of("acme/invoice-17", 256, Partition.TENANT) == shard_of("acme", 256, Partition.RUN) == 62
    assert [winner_of(shard, ["a", "b", "c"]) for shard in range(12)] == list("abcbcabbcbca")


@given(ids, st.integers(1, 16384), st.sampled_from(Partition))
def test_a_run_is_on_one_of_the_shards(run_id: str, shards: int, partition: Partition) -> None:
    assert 0 <= shard_of(run_id, shards, partition) < shards


def test_ids_spread_evenly() -> None:
    counts = Counter(shard_of(f"run-{number}", 64, Partition.RUN) for number in range(64_000))
    assert len(counts) == 64
    assert max(counts.values()) < 1.3 * 1000


@given(ids, ids, ids)
def test_runs_of_a_tenant_share_a_shard_where_tenants_are_the_partition(tenant: str, one: str, other: str) -> None:
    shards = {
        shard_of(full_run_id(run_id, Partition.TENANT, tenant, "digest"), 256, Partition.TENANT)
        for run_id in (one, other)
    }
    assert len(shards) == 1


@pytest.mark.parametrize(
    ("partition", "tenant", "full"),
    [
        (Partition.RUN, "acme", "invoice-17"),
        (Partition.TENANT, "acme", "acme/invoice-17"),
        (Partition.TENANT, "", "default/invoice-17"),
        (Partition.WORKFLOW, "acme", "billing/invoice-17"),
    ],
)
def test_the_partition_is_put_before_the_id_once(partition: Partition, tenant: str, full: str) -> None:
    assert full_run_id("invoice-17", partition, tenant, "billing") == full
    assert full_run_id(full, partition, tenant, "billing") == full


CREATED = 1_767_225_600_000


@pytest.mark.parametrize(
    ("partition", "parent", "child"),
    [
        (Partition.RUN, "p-1", "p-1.3"),
        (Partition.RUN, "a/p-1", "a/p-1.3"),
        (Partition.TENANT, "acme/p-1", "acme/p-1.3"),
        (Partition.WORKFLOW, "digest/p-1", "summarise/p-1.3"),
    ],
)
def test_a_child_is_named_after_its_parent_in_its_own_partition(partition: Partition, parent: str, child: str) -> None:
    """One that began under an earlier release goes on with the ids that such a release gives."""
    assert child_run_id(parent, 0, 3, partition, "acme", "summarise") == child
    now = child_run_id(parent, CREATED, 3, partition, "acme", "summarise")
    assert re.fullmatch(re.escape(child) + "~[a-z2-7]{13}", now)
    assert check_run_id(now) == now


@pytest.mark.parametrize("partition", Partition)
@given(st.data())
def test_no_two_runs_have_a_child_of_the_same_id(partition: Partition, data: st.DataObject) -> None:
    """Not lives of an id, nor ids that differ in their prefix only or look like a child's."""
    parts = st.sampled_from(["a", "b", "a/b", "a.1", "a.1.2", "a/a", "a~aaaaaaaaaaaaa"])
    parents = st.tuples(parts, st.sampled_from([CREATED, CREATED + 1]), st.sampled_from([1, 2, 12]))
    one, other = data.draw(parents), data.draw(parents)
    owners = st.sampled_from(["a", "b"])
    first, second = (
        child_run_id(parent, created, seq, partition, data.draw(owners), data.draw(owners))
        for parent, created, seq in (one, other)
    )
    if one != other:
        assert first != second


def test_another_decision_in_the_same_place_has_a_child_of_another_id() -> None:
    """Of the same one, only what stands for the decision may differ: its input may be encoded in another way later."""
    decisions = [("", "w", b"1"), ("", "w", b"2"), ("", "v", b"1"), ("acme", "w", b"1")]
    ids = [child_run_id("p", CREATED, 3, Partition.RUN, *decision) for decision in decisions]
    assert len(set(ids)) == len(ids)
    assert all(is_same_child(ids[0], other) for other in ids)
    others = ["p.3", "p.3~", child_run_id("p", CREATED, 4, Partition.RUN, "", "w", b"1"), "chosen"]
    assert not any(is_same_child(ids[0], other) for other in others[:1] + others[2:])
    assert is_same_child("chosen", "chosen")


def test_the_ids_of_descendants_grow_by_their_numbers_alone() -> None:
    run_id = "nightly"
    for level in range(1, 41):
        run_id = child_run_id(run_id, CREATED + level, 7, Partition.RUN, "", "w")
        assert len(run_id) == len("nightly") + 2 * level + 14
    assert check_run_id(run_id) == run_id


@given(st.integers(0, 16383), member_sets, ids)
def test_a_member_that_joins_takes_shards_and_moves_no_others(shard: int, members: set[str], newcomer: str) -> None:
    assert winner_of(shard, {*members, newcomer}) in (newcomer, winner_of(shard, members))


@given(st.integers(0, 16383), member_sets)
def test_the_order_in_which_members_are_seen_does_not_matter(shard: int, members: set[str]) -> None:
    assert winner_of(shard, sorted(members)) == winner_of(shard, sorted(members, reverse=True)) in members


def test_members_win_about_equally_many_shards() -> None:
    counts = Counter(winner_of(shard, ["a", "b", "c", "d"]) for shard in range(4096))
    assert all(0.9 * 1024 < count < 1.1 * 1024 for count in counts.values())
