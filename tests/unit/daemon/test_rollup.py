"""Checkpoints of the views, and merging, against a store that answers from a table."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from streamflow import events
from streamflow.daemon.rollup import TRIM_RETRY, Rollup, merge_views, rebuild_views
from streamflow.daemon.shard import OwnedShard
from streamflow.errors import Failure, StoreError
from streamflow.events import RunCompleted, RunStarted, Transition
from streamflow.store.connection import Call
from streamflow.store.kernel import Checkpointed, Reply
from streamflow.views.shard_views import ShardViews
from tests.support.fakes import KERNEL, FakeClock, FakeOwner, FakeStore, context, owned, pack
from tests.support.machine_driver import raw

pytestmark = pytest.mark.anyio

SHARDS = 4


def rollup(store: FakeStore, *shards: OwnedShard, **settings: Any) -> Rollup:
    return Rollup(context(store, shards=SHARDS, **settings), FakeOwner(*shards))  # type: ignore[arg-type]


def counting(shard: OwnedShard, runs: int, entry: str) -> OwnedShard:
    """A shard that has committed so many completed runs, up to that log entry."""
    for number in range(runs):
        events: list[Any] = [RunStarted("flow", "", raw(())), RunCompleted("flow", "", 5, raw(None))]
        shard.views.fold(f"r{number}", Transition(1_000_000, events))
        shard.unfolded += 1
        shard.logged += 100
    shard.offset = entry
    shard.workflows.add("flow")
    return shard


def completed(views: ShardViews) -> int:
    return views.render(0)["runs"]["status"]["completed"]


def no_parts(call: Call[Any]) -> list[None]:
    return [None, None]


# --- checkpoints ----------------------------------------------------------------------------------------------------


async def test_a_checkpoint_has_what_the_shard_counts_and_up_to_where() -> None:
    store = FakeStore(checkpoint_views=Checkpointed(Reply.OK, 3))
    shard = counting(owned(), 2, "5-0")
    it = rollup(store, shard, log_bytes=SHARDS * 700, log_age=20)
    await it.run_once()
    [call] = store.sent("checkpoint_views")
    token, offset, partial, _, logged, most, age, *_ = call.args
    assert (token, offset, logged, most, age) == ("7:nonce", "5-0", 200, 700, 20_000)
    assert shard.logged == 0
    assert completed(ShardViews.decode(partial)) == 2
    assert KERNEL.keys.shard(0).index("running", "flow") in call.keys
    assert (shard.folded, shard.unfolded, it.unfolded, it.folds) == ("5-0", 0, 0, 1)


async def test_a_shard_without_changes_sends_nothing() -> None:
    store = FakeStore(checkpoint_views=Checkpointed(Reply.OK, 3))
    it = rollup(store, counting(owned(), 2, "5-0"))
    await it.run_once()
    await it.run_once()
    assert len(store.sent("checkpoint_views")) == 1


async def test_what_was_committed_during_a_checkpoint_is_for_the_next_one() -> None:
    shard = counting(owned(), 2, "5-0")

    def meanwhile(call: Call[Any]) -> Checkpointed:
        counting(shard, 1, "6-0")
        return Checkpointed(Reply.OK, 3)

    store = FakeStore(checkpoint_views=meanwhile)
    it = rollup(store, shard)
    await it.run_once()
    assert (shard.folded, shard.unfolded) == ("5-0", 1)
    store.answers["checkpoint_views"] = Checkpointed(Reply.OK, 3)
    await it.run_once()
    assert (shard.folded, shard.unfolded) == ("6-0", 0)


@pytest.mark.parametrize("answer", [StoreError("refused"), Checkpointed(Reply.FENCED, 0)])
async def test_a_checkpoint_that_is_refused_is_tried_again(answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamflow.daemon.troubles.FIRST_PAUSE", 0.0)
    store = FakeStore(checkpoint_views=answer)
    shard = counting(owned(), 2, "5-0")
    it = rollup(store, shard)
    await it.run_once()
    assert (shard.folded, shard.unfolded, it.folds) == ("0-0", 2, 0)
    store.answers["checkpoint_views"] = Checkpointed(Reply.OK, 1)
    await it.run_once()
    assert (shard.folded, shard.unfolded, it.folds) == ("5-0", 0, 1)


async def test_a_stored_part_that_is_ahead_is_reported_and_not_overwritten(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = FakeStore(checkpoint_views=Checkpointed(Reply.STALE, 0))
    it = rollup(store, counting(owned(), 2, "5-0"))
    await it.run_once()
    await it.run_once()
    assert len(store.sent("checkpoint_views")) == 1
    assert "the stored views of shard 0 are ahead of its log" in caplog.text


async def test_a_quiet_shard_is_trimmed_when_its_time_has_come() -> None:
    clock = FakeClock()
    store = FakeStore(checkpoint_views=Checkpointed(Reply.OK, 3, clock.ms + 500))
    shard = counting(owned(), 2, "5-0")
    it = Rollup(context(store, shards=SHARDS, clock=clock), FakeOwner(shard))  # type: ignore[arg-type]
    await it.run_once()
    clock.ms += 499
    await it.run_once()
    assert len(store.sent("checkpoint_views")) == 1
    clock.ms += 1
    store.answers["checkpoint_views"] = Checkpointed(Reply.OK, 0, None)
    await it.run_once()
    clock.ms += 10**9
    await it.run_once()
    first, second = store.sent("checkpoint_views")
    assert (first.args[4], second.args[4]) == (200, 0), "no byte is counted twice"
    assert it.folds == 1, "nothing new was stored"


async def test_a_long_log_is_trimmed_by_as_many_calls_as_it_takes() -> None:
    answers = iter(
        [Checkpointed(Reply.OK, 9000, 0), Checkpointed(Reply.OK, 4000, 0), Checkpointed(Reply.OK, 10, 10**12)]
    )
    store = FakeStore(checkpoint_views=lambda call: next(answers))
    await rollup(store, counting(owned(), 2, "5-0")).run_once()
    assert len(store.sent("checkpoint_views")) == 3


async def test_trimming_that_is_refused_is_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamflow.daemon.troubles.FIRST_PAUSE", 0.0)
    clock = FakeClock()
    store = FakeStore(checkpoint_views=StoreError("refused"))
    shard = owned()
    shard.trim_again = 0
    it = Rollup(context(store, shards=SHARDS, clock=clock), FakeOwner(shard))  # type: ignore[arg-type]
    await it.run_once()
    await it.run_once()
    assert len(store.sent("checkpoint_views")) == 1
    clock.ms += TRIM_RETRY
    await it.run_once()
    assert len(store.sent("checkpoint_views")) == 2


async def test_a_log_at_rest_is_trimmed_when_its_time_has_come() -> None:
    clock = FakeClock()
    store = FakeStore(checkpoint_views=Checkpointed(Reply.OK, 3, clock.ms + 500))
    shard = counting(owned(2), 1, "5-0")
    owner = FakeOwner(shard)
    it = Rollup(context(store, shards=SHARDS, clock=clock), owner)  # type: ignore[arg-type]
    await it.run_once()
    owner.active = {}
    clock.ms += 499
    await it.run_once()
    assert (len(store.sent("checkpoint_views")), owner.touched) == (1, [])
    clock.ms += 1
    await it.run_once()
    assert (len(store.sent("checkpoint_views")), owner.touched) == (2, [2])


async def test_a_part_that_counts_lost_entries_shows_another_history() -> None:
    store = FakeStore(checkpoint_views=Checkpointed(Reply.BEHIND, 0, None))
    shard = counting(owned(), 2, "5-0")
    it = rollup(store, shard)
    found: list[OwnedShard] = []
    it._owner.other_history = found.append  # type: ignore[method-assign]
    await it.run_once()
    assert found == [shard]
    assert shard.folded == "0-0"


async def test_a_lost_shard_stores_nothing() -> None:
    store = FakeStore()
    shard = counting(owned(), 2, "5-0")
    shard.dropped, shard.trim_again = True, 0
    await rollup(store, shard).store_partials([shard])
    assert store.calls == []


# --- merging --------------------------------------------------------------------------------------------------------


def views_in(store: FakeStore) -> dict[str, Any]:
    """The merged views as they were stored last."""
    written = [call for call in store.sent("store_records") if ":view:" in call.keys[0]]
    values = {call.keys[0].rpartition(":")[2]: msgspec.json.decode(call.args[1]) for call in written}
    return {name: value["value"] for name, value in values.items()}


async def test_only_the_leader_merges_its_own_parts_with_those_of_others() -> None:
    theirs = counting(owned(2), 3, "9-0").views.encode()

    def parts(call: Call[Any]) -> list[bytes | None]:
        return [b"r 1000 flow", theirs if "/2}" in call.args[1] else None]

    store = FakeStore(checkpoint_views=Checkpointed(Reply.OK, 1), HMGET=parts, store_records=b"OK")
    it = rollup(store, counting(owned(0), 2, "5-0"))
    await it.run_once()
    assert store.sent("store_records") == []
    it.leading = True
    await it.run_once()
    assert views_in(store)["runs"]["status"]["completed"] == 5
    assert len(views_in(store)["oldest"]) == SHARDS
    asked = {call.args[1]: call.args[2:] for call in store.sent("HMGET")}
    assert asked[KERNEL.keys.shard(0).views] == ["oldest"], "what is in memory isn't read back"


async def test_nothing_is_merged_when_nobody_has_stored_anything_for_long() -> None:
    store = FakeStore(HMGET=no_parts, store_records=b"OK")
    it = rollup(store)
    it.leading = True
    merges = []
    for turn in range(10):
        it.others_folds += turn == 7
        before = len(store.sent("store_records"))
        await it.run_once()
        merges.append(len(store.sent("store_records")) > before)
    assert merges == [True, True, True, True, False, False, False, True, True, True]


async def test_a_part_that_could_not_be_read_is_read_again_until_it_can() -> None:
    answer: Any = StoreError("NOPERM")
    store = FakeStore(HMGET=lambda call: answer, store_records=b"OK")
    it = rollup(store)
    it.leading = True
    for _ in range(10):
        await it.run_once()
    asked = len(store.sent("HMGET"))
    assert asked == 10 * SHARDS
    answer = [None, None]
    for _ in range(10):
        await it.run_once()
    assert len(store.sent("HMGET")) == asked + SHARDS


async def test_after_the_servers_history_has_changed_views_are_merged_again() -> None:
    store = FakeStore(HMGET=no_parts, store_records=b"OK")
    it = rollup(store)
    it.leading = True
    it._still_rounds = 0
    await it.run_once()
    await it.run_once()
    merged = len([call for call in store.sent("store_records") if not call.keys[0].endswith(":sizes")])
    before = len(store.sent("store_records"))
    it.merge_again()
    await it.run_once()
    assert len(store.sent("store_records")) == before + merged


async def test_a_part_that_cannot_be_read_is_left_out_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    good = counting(owned(), 2, "5-0").views.encode()
    answers = iter([[None, b"\xc1"], StoreError("WRONGTYPE"), [b"not a row", None], [None, good]])
    store = FakeStore(HMGET=lambda call: next(answers), store_records=b"OK")
    await merge_views(store, KERNEL, SHARDS, 0)  # type: ignore[arg-type]
    assert views_in(store)["runs"]["status"]["completed"] == 2
    assert views_in(store)["oldest"] == []
    assert "shard 0 has stored views that can't be decoded and are left out; rebuild them" in caplog.text
    assert "shard 1 has stored views that can't be read, will retry" in caplog.text


async def test_a_part_or_list_that_makes_no_sense_is_left_out_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    good = counting(owned(), 2, "5-0").views.encode()
    answers = iter([[b"r inf flow", None], [b"a 1000 flow", good], [None, b"bad"], [None, None]])
    store = FakeStore(HMGET=lambda call: next(answers), store_records=b"OK")
    decode = ShardViews.decode

    def decoded(data: bytes) -> ShardViews:
        if data == b"bad":
            raise IndexError("a histogram that has no slots")
        return decode(data)

    monkeypatch.setattr(ShardViews, "decode", decoded)
    await merge_views(store, KERNEL, SHARDS, 0)  # type: ignore[arg-type]
    assert views_in(store)["runs"]["status"]["completed"] == 2
    assert [row[0] for row in views_in(store)["oldest"]] == ["a"]
    assert "the list of oldest runs of shard 0 can't be decoded" in caplog.text
    assert "shard 2 has stored views that can't be decoded" in caplog.text


async def test_the_oldest_runs_of_all_shards_are_merged_by_age() -> None:
    rows = iter([b"b 2000 flow\nd 4000 flow", b"", b"a 1000 flow", b"c 3000.0 flow"])
    store = FakeStore(HMGET=lambda call: [next(rows), None], store_records=b"OK")
    await merge_views(store, KERNEL, SHARDS, 0)  # type: ignore[arg-type]
    assert [row[0] for row in views_in(store)["oldest"]] == ["a", "b", "c", "d"]


# --- rebuilding -----------------------------------------------------------------------------------------------------


async def test_a_rebuild_is_the_base_and_all_that_the_log_has_behind_it() -> None:
    base = counting(owned(), 3, "5-0").views.encode()
    failed = pack(
        Transition(1000, [RunStarted("flow", "", raw(())), events.RunFailed("flow", "", 1, Failure("E", "no"))])
    )
    entries = [(f"{n}-0".encode(), {b"r": failed}) for n in range(6, 9)]

    def stored(call: Call[Any]) -> list[bytes | None]:
        if call.args[1] != KERNEL.keys.shard(0).views:
            return [None] * len(call.args[2:])
        return [base, b"5-0", b"6-0"] if call.args[2] == "base" else [None, partials[0]]

    def log(call: Call[Any]) -> Any:
        if call.args[1] != KERNEL.keys.shard(0).log:
            return []
        return entries if call.args[2] == "(5-0" else []

    partials: list[bytes] = [b""]

    def write(call: Call[Any]) -> bytes:
        if call.keys[0] == KERNEL.keys.shard(0).views:
            partials[0] = call.args[1]
        return b"OK"

    store = FakeStore(HMGET=stored, XRANGE=log, store_records=write)
    assert await rebuild_views(store, KERNEL, SHARDS, 0) == 3  # type: ignore[arg-type]
    status = views_in(store)["runs"]["status"]
    assert (status["completed"], status["failed"], status["running"]) == (3, 3, 0)
    [call] = [call for call in store.sent("store_records") if call.keys[0] == KERNEL.keys.shard(0).views]
    assert call.args[2:] == ["offset", b"8-0"]


async def test_a_rebuild_leaves_out_what_cannot_be_read(caplog: pytest.LogCaptureFixture) -> None:
    good = counting(owned(), 2, "5-0").views.encode()

    def stored(call: Call[Any]) -> Any:
        bad = {KERNEL.keys.shard(0).views: StoreError("HMGET: WRONGTYPE"), KERNEL.keys.shard(1).views: [b"\xc1"] * 3}
        if call.args[1] in bad and call.args[2] == "base":
            return bad[call.args[1]]
        return [good, b"5-0", b"5-0"] if call.args[2] == "base" else [None, None]

    store = FakeStore(HMGET=stored, XRANGE=[], store_records=b"OK")
    assert await rebuild_views(store, KERNEL, SHARDS, 0) == 0  # type: ignore[arg-type]
    written = [call.keys[0] for call in store.sent("store_records") if ":view:" not in call.keys[0]]
    assert written == [KERNEL.keys.shard(2).views, KERNEL.keys.shard(3).views]
    assert "the views of shard 0 can't be rebuilt and stay as they are: HMGET: WRONGTYPE" in caplog.text
    assert "the views of shard 1 can't be rebuilt" in caplog.text


async def test_before_a_checkpoint_delivered_messages_are_flushed() -> None:
    store = FakeStore()
    it = rollup(store)
    await it.run_once()
    assert it._owner.flushed == 1  # type: ignore[attr-defined]
