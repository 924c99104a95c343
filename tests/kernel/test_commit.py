"""commit: one batch of transitions, for many runs at once, all or nothing."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from streamflow.errors import StoreError
from streamflow.model.record import decode_header
from streamflow.store.connection import Call
from streamflow.store.kernel import FRESH, Batch, Message, Poison, Put, Reply, RunWrite, Send
from streamflow.store.subscription import NodeSubscription
from tests.kernel.support import FUTURE, NOTE, NOW, Shard, next_header

pytestmark = pytest.mark.anyio


async def full_batch(shard: Shard, commit: str = "full") -> Batch:
    """A batch in which every part has something to do. Needs the runs r1 and r2, and an inbox that was read."""
    (first, _), (second, _), (third, _), *_ = await shard.stream(shard.keys.inbox)
    outbox = await shard.stream(shard.keys.outbox)
    keys = shard.keys
    return Batch(
        commit,
        runs=[await shard.write_of("r1", "running"), await shard.write_of("r2", "completed")],
        acks=[first, second],
        plans=[("r1", NOW + 500), ("r2", None)],
        moves=[("r2", keys.index("running", "flow"), keys.index("completed", "flow"), NOW + 1)],
        sends=[Send("7-1", b"\x00one"), Send("7-4", b"three messages")],
        sent=[entry_id for entry_id, _ in outbox],
        poisons=[Poison(third, "r3", "no such signal", b"event", b"\xffbody", "signal", b"", b"m:client.1.1")],
        cuts=[(1, b"short")],
        puts=[Put(keys.published("r1"), "progress", b"half")],
        notification=b"news",
    )


async def prepared(shard: Shard) -> Batch:
    """A shard with an owner, three runs whose starts have been read, one message in the outbox, and a full batch."""
    await shard.acquire()
    await shard.start("r1", "r2", "r3")
    await shard.read()
    before = Batch("before", plans=[("r2", -1)], sends=[Send("6-1", b"old")])
    assert (await shard.do(shard.commit(before))).code is Reply.OK
    return await full_batch(shard)


# --- what a commit does -----------------------------------------------------------------------------------------------


async def test_every_part_of_a_batch_is_written(shard: Shard) -> None:
    batch = await prepared(shard)
    committed = await shard.do(shard.commit(batch, NOW + 1))
    assert (committed.code, committed.clock) == (Reply.OK, NOW + 1)

    keys = shard.keys
    assert [await shard.record(run) for run in ("r1", "r2")] == [[run.header, b"", NOTE] for run in batch.runs]
    assert len(await shard.record("r3")) == 2
    assert await shard.stream(keys.log) == [
        (committed.entry, {f"-{batch.poisons[0].message_id}": b"event", "r1": NOTE, "r2": b"short"})
    ]
    assert await shard.inbox() == []
    assert (await shard.kept()).startswith("0 ")
    assert await shard.listed(keys.agenda) == {"r1": NOW + 500}
    assert await shard.listed(keys.index("running", "flow")) == {"r1": NOW, "r3": NOW}
    assert await shard.listed(keys.index("completed", "flow")) == {"r2": NOW + 1}
    assert await shard.stream(keys.outbox) == [
        ("7-1", {"messages": b"\x00one"}),
        ("7-4", {"messages": b"three messages"}),
    ]
    ((_, poison),) = await shard.stream(keys.poison)
    assert poison == {
        "run": b"r3",
        "reason": b"no such signal",
        "body": b"\xffbody",
        "message": batch.poisons[0].message_id.encode(),
        "kind": b"signal",
        "header": b"",
        "from": b"m:client.1.1",
    }


async def test_the_owner_record_keeps_the_commits_id_clock_and_log_entry(shard: Shard) -> None:
    batch = await prepared(shard)
    committed = await shard.do(shard.commit(batch, NOW + 1))
    owner = await shard.owner()
    assert (owner["commit"], owner["clock"], owner["log"]) == ("full", str(NOW + 1), committed.entry)
    assert owner["token"] == shard.token


async def test_a_commit_of_many_runs_is_one_log_entry(shard: Shard) -> None:
    await shard.acquire()
    runs = [f"r{number}" for number in range(100)]
    await shard.start(*runs)
    batch = Batch("many", runs=[await shard.write_of(run) for run in runs])
    committed = await shard.do(shard.commit(batch))
    ((entry, transitions),) = await shard.stream(shard.keys.log)
    assert entry == committed.entry
    assert list(transitions) == runs


async def test_a_batch_beyond_what_lua_can_unpack_is_committed_whole(real_shard: Shard) -> None:
    shard = real_shard
    await shard.acquire()
    runs = [f"r{number}" for number in range(4500)]
    await shard.start(*runs)
    headers = [header for header, _ in await shard.do(shard.kernel.peek_runs(0, runs))]
    writes = [RunWrite(r, h, next_header(h, "running", "big"), b"", NOTE) for r, h in zip(runs, headers, strict=True)]
    committed = await shard.do(shard.commit(Batch("big", runs=writes)))
    log = await shard.stream(shard.keys.log)
    assert committed.entry == log[-1][0]
    assert [run for _, transitions in log for run in transitions] == runs


async def test_transitions_of_a_run_add_up_in_its_record(shard: Shard) -> None:
    await shard.acquire()
    await shard.start("r1")
    for _ in range(3):
        await shard.advance("r1")
    header, state, *transitions = await shard.record("r1")
    assert (decode_header(header).version, state, transitions) == (3, b"", [NOTE] * 3)


async def test_a_commit_without_runs_logs_nothing(shard: Shard) -> None:
    await shard.acquire()
    committed = await shard.do(shard.commit(Batch("empty", plans=[("r1", NOW)])))
    assert (committed.code, committed.entry) == (Reply.OK, "")
    assert await shard.stream(shard.keys.log) == []


async def test_a_plan_replaces_the_earlier_one_and_none_removes_the_run(shard: Shard) -> None:
    await shard.acquire()
    steps: list[tuple[list[tuple[str, int | None]], dict[str, int]]] = [
        ([("r1", -1), ("r2", FUTURE)], {"r1": -1, "r2": FUTURE}),
        ([("r1", NOW)], {"r1": NOW, "r2": FUTURE}),
        ([("r1", None), ("never", None)], {"r2": FUTURE}),
    ]
    for plans, agenda in steps:
        await shard.do(shard.commit(Batch(shard.commit_id(), plans=plans)))
        assert await shard.listed(shard.keys.agenda) == agenda


async def test_moves_add_a_run_to_a_listing_remove_it_or_do_both(shard: Shard) -> None:
    await shard.acquire()
    running, stuck, tenant = shard.keys.index("running", "f"), shard.keys.index("stuck", "f"), shard.keys.tenant("acme")
    for moves, listings in (
        ([("r1", "", running, 1), ("r2", "", running, 2), ("r1", "", tenant, 3)], ({"r1": 1, "r2": 2}, {}, {"r1": 3})),
        ([("r1", running, stuck, 4), ("r2", running, running, 5)], ({"r2": 5}, {"r1": 4}, {"r1": 3})),
        ([("r1", stuck, "", 0), ("r1", tenant, "", 0)], ({"r2": 5}, {}, {})),
    ):
        await shard.do(shard.commit(Batch(shard.commit_id(), moves=moves)))
        assert tuple([await shard.listed(key) for key in (running, stuck, tenant)]) == listings


async def test_a_message_that_was_acknowledged_is_not_read_again(shard: Shard) -> None:
    await shard.acquire()
    await shard.start("r1", "r2")
    first, second = await shard.read()
    await shard.do(shard.commit(Batch("c", acks=[first])))
    assert [message["run"] for message in await shard.inbox()] == [b"r2"]
    assert await shard.kept() == f"1 {second}"


async def test_the_quarantine_keeps_about_its_newest_thousand(shard: Shard) -> None:
    await shard.acquire()
    poisons = [Poison("1-1", f"r{number}", "reason", b"event", b"") for number in range(1200)]
    await shard.do(shard.commit(Batch("c", poisons=poisons)))
    kept = await shard.stream(shard.keys.poison)
    assert 1000 <= len(kept) < 1200
    assert kept[-1][1]["run"] == b"r1199"


async def test_the_outcome_notification_is_published_once(real_shard: Shard) -> None:
    shard = real_shard
    await shard.acquire()
    received: list[tuple[bytes, bytes]] = []
    arrived = anyio.Event()

    def on_message(channel: bytes, data: bytes) -> None:
        received.append((channel, data))
        if data == b"last":
            arrived.set()

    subscription = NodeSubscription(shard.store, on_message, lambda: None)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(subscription.run)
            await subscription.add(shard.keys.done)
            first = shard.commit(Batch("one", notification=b"first"))
            await shard.do(first)
            await shard.do(first)
            await shard.do(shard.commit(Batch("quiet")))
            await shard.do(shard.commit(Batch("two", notification=b"last")))
            await arrived.wait()
            tasks.cancel_scope.cancel()
    channel = shard.keys.done.encode()
    assert received == [(channel, b"first"), (channel, b"last")]


# --- reducers ---------------------------------------------------------------------------------------------------------


async def advance_reducer(shard: Shard, count: int) -> list[bytes]:
    """Commit `count` transitions with a state to `r1`; the last one's record."""
    header = await shard.header("r1")
    for number in range(count):
        header, expected = next_header(header, "running", f"r{number}"), header
        write = RunWrite("r1", expected, header, f"state {number}".encode(), f"transition {number}".encode())
        assert (await shard.do(shard.commit(Batch(f"r{number}", runs=[write])))).code is Reply.OK
    return await shard.record("r1")


async def test_a_reducers_state_is_replaced_by_each_commit(shard: Shard) -> None:
    await shard.acquire()
    await shard.start("r1")
    _, state, *transitions = await advance_reducer(shard, 3)
    assert state == b"state 2"
    assert transitions == [b"transition 0", b"transition 1", b"transition 2"]


async def test_a_reducers_history_is_cut_to_its_newest_transitions(shard: Shard) -> None:
    """Header and state stay in front of them."""
    await shard.acquire()
    await shard.start("r1")
    assert len(await advance_reducer(shard, 400)) == 402
    expected = await shard.header("r1")
    write = RunWrite("r1", expected, next_header(expected, "running", "cut"), b"state 400", b"transition 400")
    await shard.do(shard.commit(Batch("cut", runs=[write])))
    header, state, *transitions = await shard.record("r1")
    assert (header, state) == (write.header, b"state 400")
    assert decode_header(header).version == 401
    assert transitions == [f"transition {number}".encode() for number in range(201, 401)]
    assert (await shard.advance("r1")).code is Reply.OK


async def test_a_workflows_history_is_never_cut(shard: Shard) -> None:
    await shard.acquire()
    await shard.start("r1")
    calls: list[Call[Any]] = []
    header = await shard.header("r1")
    for number in range(405):
        header, expected = next_header(header, "running", f"w{number}"), header
        calls.append(shard.commit(Batch(f"w{number}", runs=[RunWrite("r1", expected, header, b"", NOTE)])))
    assert {answer.code for answer in await shard.store.send(calls)} == {Reply.OK}
    assert len(await shard.record("r1")) == 407


# --- sent again -------------------------------------------------------------------------------------------------------


async def test_a_commit_that_is_sent_again_answers_the_same_and_changes_nothing(shard: Shard) -> None:
    commit = shard.commit(await prepared(shard), NOW + 1)
    first = await shard.do(commit)
    again = await shard.assert_changes_nothing(commit)
    assert again.code is Reply.DUP
    assert (again.clock, again.entry) == (first.clock, first.entry)


async def test_a_commit_that_arrives_behind_newer_ones_changes_nothing(shard: Shard) -> None:
    """Its connection was given up, and its bytes come late. It may hold no run, whose header would protect it."""
    await shard.acquire()
    first = shard.commit(Batch("session.1", plans=[("r1", -1)]), NOW)
    others = [shard.commit(Batch(f"session.{number}"), NOW) for number in range(2, 9)]
    ninth = shard.commit(Batch("session.9", plans=[("r1", 5000)]), NOW + 1)
    tenth = shard.commit(Batch("session.10", plans=[("r2", 7000)]), NOW + 2)
    for call in (first, *others, ninth, tenth):
        assert (await shard.do(call)).code is Reply.OK
    for late in (first, ninth):
        answer = await shard.assert_changes_nothing(late)
        assert answer.code is Reply.DUP
    assert await shard.plain("ZSCORE", shard.keys.agenda, "r1") == 5000
    other = shard.commit(Batch("other.1", plans=[("r1", 1)]), NOW + 3)
    assert (await shard.do(other)).code is Reply.OK, "numbers of two sessions say nothing"


async def test_a_commit_behind_one_that_the_server_has_lost_changes_nothing(shard: Shard) -> None:
    """The owner knows more than the server: what it decides is not about what is stored."""
    await shard.acquire()
    (_, second) = [shard.commit(Batch(f"session.{number}", plans=[("r1", number)])) for number in (1, 2)]
    answer = await shard.assert_changes_nothing(second)
    assert (answer.code, answer.conflicts) == (Reply.BEHIND, [""])
    await shard.do(shard.commit(Batch("session.1")))
    lost = shard.commit(Batch("session.3", plans=[("r1", 3)]))
    answer = await shard.assert_changes_nothing(lost)
    assert (answer.code, answer.conflicts) == (Reply.BEHIND, ["session.1"])
    await shard.do(second)
    assert (await shard.do(lost)).code is Reply.OK


async def test_a_copy_of_a_refused_commit_is_not_taken_for_the_next_one(shard: Shard) -> None:
    """It arrives late, when what it had been refused for is gone. Its owner has sent another one with its number."""
    await shard.acquire()
    refused = shard.commit(Batch("session.1", plans=[("r1", 1)]))
    following = shard.commit(Batch("session.1.1", plans=[("r1", 2)]))
    await shard.do(refused)
    assert (await shard.assert_changes_nothing(following)).code is Reply.BEHIND, "its owner reads the shard again"
    await shard.acquire("again")
    following = shard.commit(Batch("session.1.1", plans=[("r1", 2)]))
    late = shard.commit(Batch("session.1", plans=[("r1", 1)]))
    await shard.do(following)
    assert (await shard.assert_changes_nothing(late)).code is Reply.BEHIND
    assert (await shard.assert_changes_nothing(following)).code is Reply.DUP
    assert (await shard.do(shard.commit(Batch("session.2")))).code is Reply.OK


async def test_the_facts_stay_the_same_when_the_clock_has_moved_since(shard: Shard) -> None:
    await shard.acquire()
    commit = shard.commit(Batch("c"), NOW + 1)
    assert (await shard.do(commit)).clock == NOW + 1
    await shard.do(shard.kernel.due_runs(0, shard.token, 10, NOW + 1000))
    assert (await shard.do(commit)).clock == NOW + 1


async def test_only_the_last_commit_is_a_duplicate_an_older_one_is_a_conflict(shard: Shard) -> None:
    await shard.acquire()
    await shard.start("r1")
    older = shard.commit(Batch("older", runs=[await shard.write_of("r1")]))
    await shard.do(older)
    await shard.advance("r1")
    answer = await shard.assert_changes_nothing(older)
    assert (answer.code, answer.conflicts) == (Reply.CONFLICT, ["r1"])


# --- refused ----------------------------------------------------------------------------------------------------------


async def test_a_conflict_names_every_run_that_has_changed_and_writes_nothing(shard: Shard) -> None:
    batch = await prepared(shard)
    for run in ("r1", "r2"):
        await shard.advance(run)
    batch.runs.append(await shard.write_of("r3"))
    batch.runs.append(RunWrite("missing", b"pending 0 - 1 0 flow - -", b"header", b"", NOTE))
    answer = await shard.assert_changes_nothing(shard.commit(batch))
    assert (answer.code, answer.conflicts) == (Reply.CONFLICT, ["r1", "r2", "missing"])


async def test_a_header_of_the_same_version_by_another_commit_is_a_conflict(shard: Shard) -> None:
    await shard.acquire()
    await shard.start("r1")
    start = await shard.header("r1")
    await shard.advance("r1")
    lookalike = next_header(start, "running", "another")
    write = RunWrite("r1", lookalike, next_header(lookalike, "running", "next"), b"", NOTE)
    answer = await shard.assert_changes_nothing(shard.commit(Batch("c", runs=[write])))
    assert (answer.code, answer.conflicts) == (Reply.CONFLICT, ["r1"])


async def test_after_a_conflict_the_same_commit_id_can_still_be_used(shard: Shard) -> None:
    await shard.acquire()
    await shard.start("r1")
    write = await shard.write_of("r1")
    wrong = RunWrite("r1", b"wrong", write.header, b"", NOTE)
    assert (await shard.do(shard.commit(Batch("c", runs=[wrong])))).code is Reply.CONFLICT
    assert (await shard.do(shard.commit(Batch("c", runs=[write])))).code is Reply.OK


async def test_an_owner_that_was_paused_during_a_takeover_never_writes(shard: Shard) -> None:
    batch = await prepared(shard)
    paused = shard.commit(batch)
    taken = await shard.acquire("two")
    answer = await shard.assert_changes_nothing(paused)
    assert (answer.code, answer.conflicts) == (Reply.FENCED, [taken.token])


async def test_a_stale_owner_is_fenced_even_with_a_commit_that_it_had_done(shard: Shard) -> None:
    batch = await prepared(shard)
    commit = shard.commit(batch)
    assert (await shard.do(commit)).code is Reply.OK
    await shard.acquire("two")
    assert (await shard.assert_changes_nothing(commit)).code is Reply.FENCED


async def test_an_owner_of_the_same_epoch_with_another_nonce_is_fenced(shard: Shard) -> None:
    batch = await prepared(shard)
    epoch = shard.token.partition(":")[0]
    answer = await shard.assert_changes_nothing(shard.kernel.commit(0, f"{epoch}:zombie", batch, NOW))
    assert answer.code is Reply.FENCED


async def test_a_shard_that_nobody_took_fences_every_commit(shard: Shard) -> None:
    answer = await shard.assert_changes_nothing(shard.kernel.commit(0, "1:x", Batch("c"), NOW))
    assert (answer.code, answer.conflicts) == (Reply.FENCED, [""])


async def test_an_outbox_number_that_is_not_new_refuses_the_commit_whole(shard: Shard) -> None:
    batch = await prepared(shard)
    batch.sends = [Send("6-1", b"again")]
    answer = await shard.assert_changes_nothing(shard.commit(batch))
    assert isinstance(answer, StoreError)


async def test_wrong_key_types_leave_nothing_half_written(shard: Shard) -> None:
    batch = await prepared(shard)
    await shard.assert_wrong_types_leave_nothing_half_written(shard.commit(batch))


async def test_after_a_refusal_the_repaired_shard_takes_the_same_commit(shard: Shard) -> None:
    commit = shard.commit(await prepared(shard))
    await shard.assert_wrong_types_leave_nothing_half_written(commit)
    assert (await shard.do(commit)).code is Reply.OK


# --- the clock --------------------------------------------------------------------------------------------------------


async def test_the_clock_is_the_owners_and_never_goes_back(shard: Shard) -> None:
    await shard.acquire()
    steps = [(NOW + 1, NOW + 1), (FUTURE, FUTURE), (FUTURE + 1, FUTURE + 1), (NOW, FUTURE + 1)]
    for number, (now, clock) in enumerate(steps):
        committed = await shard.do(shard.kernel.commit(0, shard.token, Batch(f"c{number}"), now))
        assert committed.clock == clock
        assert (await shard.owner())["clock"] == str(clock)


# --- puts and fresh records -------------------------------------------------------------------------------------------


async def test_puts_set_fields_of_hashes_and_strings_that_end_by_themselves(shard: Shard) -> None:
    await shard.acquire()
    await shard.start("r1", "r2")
    published, answer = shard.keys.published("r1"), shard.keys.answer("0" * 32)
    puts = [Put(published, "a", b"1"), Put(published, "b", b"2"), Put(answer, "", b"yes"), Put(published, "a", b"3")]
    await shard.advance("r1", puts=puts)
    assert await shard.plain("HGETALL", published) == {b"a": b"3", b"b": b"2"}
    assert await shard.plain("GET", answer) == b"yes"
    assert 0 < await shard.plain("TTL", answer) <= 900
    await shard.advance("r1", puts=[Put(published, "b", b"4")])
    assert await shard.plain("HGETALL", published) == {b"a": b"3", b"b": b"4"}


async def test_a_refused_commit_puts_nothing(shard: Shard) -> None:
    await shard.acquire()
    await shard.start("r1")
    write = await shard.write_of("r1")
    write.expected += b"!"
    batch = Batch("c", runs=[write], puts=[Put(shard.keys.published("r1"), "a", b"1")])
    answer = await shard.assert_changes_nothing(shard.commit(batch))
    assert answer.code is Reply.CONFLICT


async def test_a_string_is_not_put_over_a_key_of_another_type(shard: Shard) -> None:
    await shard.acquire()
    await shard.start("r1")
    answer = shard.keys.answer("0" * 32)
    shard.planted.add(answer)
    await shard.plain("HSET", answer, "a", "hash")
    puts = [Put(shard.keys.published("r1"), "a", b"1"), Put(answer, "", b"yes")]
    batch = Batch("c", runs=[await shard.write_of("r1")], puts=puts)
    assert "WRONGTYPE" in str(await shard.assert_changes_nothing(shard.commit(batch)))
    await shard.plain("DEL", answer)


async def test_a_fresh_record_has_the_new_header_and_this_transition_only(shard: Shard) -> None:
    await shard.acquire()
    await shard.start("r1", "r2")
    for _ in range(3):
        await shard.advance("r1")
    write = await shard.write_of("r1")
    write.state, write.transition = FRESH, b"the new generation"
    other = await shard.write_of("r2")
    await shard.do(shard.commit(Batch("c", runs=[write, other])))
    assert await shard.record("r1") == [write.header, b"", b"the new generation"]
    assert await shard.record("r2") == [other.header, b"", NOTE]
    assert [len(fields) for _, fields in await shard.stream(shard.keys.log)] == [1, 1, 1, 2], "the log has all"
    await shard.advance("r1")
    assert (await shard.record("r1"))[2:] == [b"the new generation", NOTE]


async def test_a_fresh_record_of_a_reducer_keeps_its_state(shard: Shard) -> None:
    await shard.acquire()
    await shard.start("r1")
    for state in (b"one", FRESH + b"two"):
        write = await shard.write_of("r1", state=state)
        await shard.do(shard.commit(Batch(shard.commit_id(), runs=[write])))
    assert await shard.record("r1") == [write.header, b"two", NOTE]


async def test_a_transition_of_many_messages_takes_them_all_out_of_the_inbox(shard: Shard) -> None:
    await shard.acquire()
    await shard.start("r1")
    posts = [Message("signal", "r1", b"x")] * 2500
    await shard.do(shard.kernel.post_messages(0, "client", 1, posts, NOW))
    acks = await shard.read(count=3000)
    assert len(acks) == 2501
    await shard.advance("r1", acks=acks[:2400])
    assert [entry for entry, _ in await shard.stream(shard.keys.inbox)] == acks[2400:]
    assert (await shard.kept()).startswith("101 ")


# --- what a server had lost is committed again ------------------------------------------------------------------------


async def test_a_run_that_does_not_exist_is_created_by_its_transition(shard: Shard) -> None:
    await shard.acquire()
    header = next_header(b"pending 0 - 1700000000000 0 flow - -", "running", "c1")
    batch = Batch("c1", runs=[RunWrite("r1", b"", header, FRESH, NOTE)])
    assert (await shard.do(shard.commit(batch))).code is Reply.OK
    assert await shard.record("r1") == [header, b"", NOTE]
    other = Batch("c2", runs=[RunWrite("r1", b"", header, FRESH, NOTE)])
    refused = await shard.assert_changes_nothing(shard.commit(other))
    assert (refused.code, refused.conflicts) == (Reply.CONFLICT, ["r1"]), "it exists now"


async def test_messages_that_come_again_behind_the_last_look_are_removed(shard: Shard) -> None:
    await shard.acquire()
    await shard.start("r1")
    (start, _), *_ = await shard.stream(shard.keys.inbox)
    posts = [Message("signal", "r1", body) for body in (b"taken", b"new", b"taken, too")]
    await shard.do(shard.kernel.post_messages(0, "client", 1, posts, NOW))
    batch = Batch(
        "c1",
        runs=[await shard.write_of("r1")],
        repeats=[start, "m:client.1.1", "m:client.1.3"],
        puts=[Put(shard.keys.seen, "m:client.1.1", b"0-0 1 shard:-1")],
    )
    assert (await shard.do(shard.commit(batch))).code is Reply.OK
    assert [message["body"] for message in await shard.inbox()] == [b"input of r1", b"new"]
    assert await shard.kept() == "", "nothing was read"
    assert await shard.plain("HGET", shard.keys.seen, "m:client.1.1") == b"0-0 1 shard:-1"
    assert (await shard.assert_changes_nothing(shard.commit(batch))).code is Reply.DUP


async def test_what_the_last_look_has_seen_stays(shard: Shard) -> None:
    await shard.acquire()
    await shard.start("r1")
    await shard.do(shard.kernel.post_messages(0, "client", 1, [Message("signal", "r1", b"x")], NOW))
    *_, (last, _) = await shard.stream(shard.keys.inbox)
    batch = Batch("c1", runs=[await shard.write_of("r1")], repeats=[last, "m:client.1.1"])
    assert (await shard.do(shard.commit(batch))).code is Reply.OK
    assert len(await shard.inbox()) == 2


async def test_too_many_new_messages_have_to_be_looked_at_first(shard: Shard) -> None:
    await shard.acquire()
    await shard.start("r1")
    (start, _), *_ = await shard.stream(shard.keys.inbox)
    for number in range(1, 4):
        posts = [Message("signal", "r1", b"x")] * 2000
        await shard.do(shard.kernel.post_messages(0, "client", number, posts, NOW))
    batch = Batch("c1", runs=[await shard.write_of("r1")], repeats=[start, "m:client.1.1"])
    refused = await shard.assert_changes_nothing(shard.commit(batch))
    assert (refused.code, refused.conflicts) == (Reply.CONFLICT, [])
