"""deliver_messages: messages from another shard's outbox, each accepted once."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from streamflow.errors import StoreError
from streamflow.model.record import Status, decode_header
from streamflow.store.kernel import Delivery
from tests.kernel.support import FUTURE, NOW, Shard

pytestmark = pytest.mark.anyio


def signal(number: str, body: bytes = b"") -> Delivery:
    return Delivery(number, "signal", "r1", body, workflow="flow")


def child(number: str, parent: str = "p#1", body: bytes = b"input") -> Delivery:
    return Delivery(number, "start", "child", body, workflow="flow", tenant="acme", parent=parent)


def owners(epoch: int, owner: int, number: int) -> str:
    """A number as `OwnedShard.next_outbox` makes it."""
    return f"{epoch}-{(owner << 32) + number}"


async def bodies(shard: Shard, *numbers: str, source: int = 3) -> list[bytes]:
    """Deliver a signal for each number, with the number as its body; gives the bodies that the inbox has then."""
    for number in numbers:
        await shard.do(shard.kernel.deliver_messages(0, source, [signal(number, number.encode())], NOW))
    return [message["body"] for message in await shard.inbox()]


async def test_messages_reach_the_inbox_in_order_and_the_last_number_is_answered(shard: Shard) -> None:
    deliveries = [signal("5-1", b"one"), signal("5-2", b"two")]
    assert await shard.do(shard.kernel.deliver_messages(0, 3, deliveries, NOW)) == "5-2"
    assert await shard.inbox() == [
        {"kind": b"signal", "run": b"r1", "body": b"one"},
        {"kind": b"signal", "run": b"r1", "body": b"two"},
    ]


async def test_the_start_of_a_child_opens_a_run_that_knows_its_parent(shard: Shard) -> None:
    await shard.do(shard.kernel.deliver_messages(0, 3, [child("5-1")], NOW))
    header = await shard.header("child")
    decoded = decode_header(header)
    assert (decoded.status, decoded.created, decoded.workflow) == (Status.PENDING, NOW, "flow")
    assert (decoded.tenant, decoded.parent) == ("acme", "p#1")
    assert await shard.inbox() == [{"kind": b"start", "run": b"child", "header": header, "body": b"input"}]
    assert await shard.listed(shard.keys.index(Status.RUNNING, "flow")) == {"child": NOW}
    assert await shard.listed(shard.keys.tenant("acme")) == {"child": NOW}


async def test_what_is_delivered_again_changes_nothing(shard: Shard) -> None:
    deliver = shard.kernel.deliver_messages(0, 3, [child("5-1"), signal("5-2")], NOW)
    assert await shard.do(deliver) == "5-2"
    assert await shard.assert_changes_nothing(deliver) == "5-2"


async def test_a_batch_that_is_partly_known_adds_only_what_is_new(shard: Shard) -> None:
    await shard.do(shard.kernel.deliver_messages(0, 3, [signal("5-1", b"one"), signal("5-2", b"two")], NOW))
    again = [signal("5-2", b"two"), signal("5-3", b"three")]
    assert await shard.do(shard.kernel.deliver_messages(0, 3, again, NOW)) == "5-3"
    assert [message["body"] for message in await shard.inbox()] == [b"one", b"two", b"three"]


async def test_a_higher_epoch_is_newer_whatever_the_number_behind_it(shard: Shard) -> None:
    await shard.do(shard.kernel.deliver_messages(0, 3, [signal("5-100", b"old owner")], NOW))
    assert await shard.do(shard.kernel.deliver_messages(0, 3, [signal("6-1", b"new owner")], NOW)) == "6-1"
    assert await shard.do(shard.kernel.deliver_messages(0, 3, [signal("5-101", b"stale owner")], NOW)) == "6-1"
    assert [message["body"] for message in await shard.inbox()] == [b"old owner", b"new owner"]


async def test_an_owner_that_got_a_lower_epoch_after_a_failover_is_heard(shard: Shard) -> None:
    sent = [owners(900, 5, 7), owners(800, 6, 1), owners(800, 6, 2)]
    assert await bodies(shard, *sent) == [number.encode() for number in sent]
    assert len(await bodies(shard, *sent, owners(900, 5, 6))) == 3, "what comes again of either is known"


async def test_an_owner_that_got_the_epoch_of_a_lost_one_is_heard(shard: Shard) -> None:
    lost, new = owners(900, 5, 7), owners(900, 2, 1)
    assert await bodies(shard, lost, new) == [lost.encode(), new.encode()]
    assert await bodies(shard, new, lost, owners(900, 5, 1)) == [lost.encode(), new.encode()]


async def test_what_former_owners_have_sent_is_known_behind_later_ones(shard: Shard) -> None:
    sent = [owners(900 + n, 9 - n, 4) for n in range(4)]
    assert await bodies(shard, *sent) == [number.encode() for number in sent]
    again = [*sent, owners(900, 9, 3), owners(901, 8, 3)]
    assert await bodies(shard, *again) == [number.encode() for number in sent]
    first = owners(901, 8, 5)  # it was left in the outbox
    assert (await bodies(shard, first, first))[4:] == [first.encode()]


async def test_owners_below_the_three_that_are_remembered_are_old(shard: Shard) -> None:
    sent = [owners(900 + n, 1 + n, 1) for n in range(3)]
    assert len(await bodies(shard, *sent, owners(800, 7, 1))) == 3
    assert await shard.plain("HGETALL", shard.keys.seen) == {
        b"shard:3": sent[2].encode(),
        b"shard:3/before": f"{sent[1]} {sent[0]}".encode(),
    }


async def test_beside_an_owner_of_an_earlier_release_only_the_epoch_counts(shard: Shard) -> None:
    """Its scripts keep one number, so what the owners before it have sent isn't known."""
    assert await bodies(shard, "900-5", owners(800, 7, 1), "900-4", "800-9") == [b"900-5"]
    later = owners(901, 7, 1)
    assert await bodies(shard, later, "900-6", owners(800, 7, 1)) == [b"900-5", later.encode()]


async def test_what_a_source_decides_again_after_a_failover_is_accepted_once(shard: Shard) -> None:
    def one(number: str, identity: str, body: bytes, kind: str = "signal") -> Delivery:
        return Delivery(number, kind, "r1", body, workflow="flow", identity=identity)

    lost = [one(owners(900, 5, 1), "A", b"a"), one(owners(900, 5, 2), "B", b"b"), one(owners(900, 5, 3), "C", b"c")]
    await shard.do(shard.kernel.deliver_messages(0, 3, lost, NOW))
    again = [
        one(owners(800, 6, 1), "C", b"c"),
        one(owners(800, 6, 2), "D", b"another decision in its place"),
        one(owners(800, 6, 3), "A", b"a"),
        one(owners(800, 6, 4), "E", b"e", "cancel"),
        one(owners(800, 6, 5), "E", b"e", "cancel"),
        one(owners(800, 6, 6), "", b"of an earlier release"),
    ]
    deliver = shard.kernel.deliver_messages(0, 3, again, NOW)
    await shard.do(deliver)
    expected = [b"a", b"b", b"c", b"another decision in its place", b"e", b"of an earlier release"]
    assert [message["body"] for message in await shard.inbox()] == expected
    await shard.assert_changes_nothing(deliver)
    assert await shard.plain("HGET", shard.keys.seen, "m:D") == f"{owners(800, 6, 2)} {NOW} shard:3".encode()


async def test_a_delivery_takes_as_many_commands_as_before_there_were_identities(real_shard: Shard) -> None:
    async def made(identities: list[str]) -> dict[str, int]:
        before = await calls()
        deliveries = [
            Delivery(owners(9, 5, next(number)), "signal", "r1", b"x", workflow="flow", identity=identity)
            for identity in identities
        ]
        await real_shard.do(real_shard.kernel.deliver_messages(0, 3, deliveries, NOW))
        after = await calls()
        return {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}

    async def calls() -> dict[str, int]:
        stats = await real_shard.plain("INFO", "commandstats")
        counts = {name.removeprefix("cmdstat_"): of["calls"] for name, of in stats.items()}
        others = ("info", "evalsha", "ping")  # of the connection
        return {name: count for name, count in counts.items() if "|" not in name and name not in others}

    number = itertools.count(1)
    await made([""])
    plain = await made(["", ""])
    assert await made(["A", "B"]) == plain
    assert plain == {
        "type": 5,
        "xlen": 1,
        "get": 1,
        "zcard": 1,  # checks
        "hmget": 2,
        "hset": 1,  # what was accepted, the clock, what is accepted now
        "xadd": 2,
    }


async def test_nothing_behind_a_message_that_was_lost_here_is_accepted(shard: Shard) -> None:
    def deliver(after: str, *numbers: str) -> Any:
        return shard.kernel.deliver_messages(0, 3, [signal(number, number.encode()) for number in numbers], NOW, after)

    one, two, three, other = (owners(9, 5, 1), owners(9, 5, 2), owners(9, 5, 3), owners(8, 6, 1))
    assert await shard.assert_changes_nothing(deliver(one, two, three)) == "GAP"
    await shard.do(deliver("", one))
    assert await shard.assert_changes_nothing(deliver(two, three)) == "GAP"
    assert await shard.assert_changes_nothing(deliver(other, three)) == "GAP"
    assert await shard.do(deliver(one, two)) == two
    assert await shard.do(deliver(one, three)) == three
    assert [message["body"] for message in await shard.inbox()] == [one.encode(), two.encode(), three.encode()]
    answer = await shard.assert_changes_nothing(deliver("nonsense", three))
    assert isinstance(answer, StoreError)


async def test_no_identity_is_kept_of_a_message_of_the_shard_itself(shard: Shard) -> None:
    delivery = Delivery(owners(9, 5, 1), "signal", "r1", b"x", workflow="flow", identity="A")
    await shard.do(shard.kernel.deliver_messages(0, 0, [delivery], NOW))
    assert await shard.plain("HKEYS", shard.keys.seen) == [b"shard:0"]


async def test_messages_carry_the_identities_by_which_they_are_known_later(shard: Shard) -> None:
    for source, identity in ((3, "A"), (0, "B"), (4, "")):
        delivery = Delivery(owners(9, 5, 1), "signal", "r1", b"x", workflow="flow", identity=identity)
        await shard.do(shard.kernel.deliver_messages(0, source, [delivery], NOW))
    assert [message.get("from") for message in await shard.inbox()] == [b"m:A", b"m:B", None]


@pytest.mark.parametrize("source", [0, 3])
async def test_what_a_run_has_taken_is_not_accepted_again(shard: Shard, source: int) -> None:
    """Its owner has noted that, when it committed again what this server had lost."""
    await shard.plain("HSET", shard.keys.seen, "m:A", f"0-0 {NOW} shard:-1")
    deliveries = [
        Delivery(owners(9, 5, number), "signal", "r1", b"x", workflow="flow", identity=identity)
        for number, identity in ((1, "A"), (2, "B"))
    ]
    await shard.do(shard.kernel.deliver_messages(0, source, deliveries, NOW))
    assert [message["from"] for message in await shard.inbox()] == [b"m:B"]


async def test_numbers_are_compared_as_numbers_not_as_text(shard: Shard) -> None:
    await shard.do(shard.kernel.deliver_messages(0, 3, [signal("9-9", b"9")], NOW))
    assert await shard.do(shard.kernel.deliver_messages(0, 3, [signal("9-10", b"10")], NOW)) == "9-10"
    assert await shard.do(shard.kernel.deliver_messages(0, 3, [signal("10-1", b"11")], NOW)) == "10-1"
    assert len(await shard.inbox()) == 3


async def test_epochs_of_a_clock_in_milliseconds_keep_every_digit(shard: Shard) -> None:
    number = f"{FUTURE + 7}-123456789"
    assert await shard.do(shard.kernel.deliver_messages(0, 3, [signal(number)], NOW)) == number
    assert await shard.plain("HGET", shard.keys.seen, "shard:3") == number.encode()


async def test_each_source_has_its_own_last_number(shard: Shard) -> None:
    await shard.do(shard.kernel.deliver_messages(0, 3, [signal("5-9", b"three")], NOW))
    assert await shard.do(shard.kernel.deliver_messages(0, 4, [signal("5-1", b"four")], NOW)) == "5-1"
    assert [message["body"] for message in await shard.inbox()] == [b"three", b"four"]


async def test_a_child_that_its_own_parent_starts_again_is_left_as_it_is(shard: Shard) -> None:
    await shard.do(shard.kernel.deliver_messages(0, 3, [child("5-1")], NOW))
    before = await shard.record("child")
    assert await shard.do(shard.kernel.deliver_messages(0, 3, [child("6-1")], NOW)) == "6-1"
    assert await shard.record("child") == before
    assert len(await shard.inbox()) == 1


async def test_an_id_of_a_run_of_another_parent_is_reported_as_taken(shard: Shard) -> None:
    await shard.start("child", workflow="other")
    before = await shard.record("child")
    await shard.do(shard.kernel.deliver_messages(0, 3, [child("5-1", body=b"start")], NOW))
    assert await shard.record("child") == before
    assert (await shard.inbox())[-1] == {"kind": b"taken", "run": b"child", "body": b"start", "header": b"p#1"}


async def test_a_parent_whose_name_only_ends_the_same_is_another_parent(shard: Shard) -> None:
    await shard.do(shard.kernel.deliver_messages(0, 3, [child("5-1", parent="xp#1")], NOW))
    await shard.do(shard.kernel.deliver_messages(0, 4, [child("5-1", parent="p#1")], NOW))
    assert [message["kind"] for message in await shard.inbox()] == [b"start", b"taken"]


async def test_another_life_of_the_parent_is_another_parent(shard: Shard) -> None:
    await shard.do(shard.kernel.deliver_messages(0, 3, [child("5-1", parent="p#1@900")], NOW))
    await shard.do(shard.kernel.deliver_messages(0, 3, [child("5-2", parent="p#1@901")], NOW))
    assert [message["kind"] for message in await shard.inbox()] == [b"start", b"taken"]


async def test_a_message_for_a_child_reaches_no_other_run_that_has_its_id(shard: Shard) -> None:
    await shard.do(shard.kernel.deliver_messages(0, 3, [child("5-1", parent="p#1@900")], NOW))

    def cancel(number: str, parent: str, run_id: str = "child") -> Delivery:
        return Delivery(number, "cancel", run_id, number.encode(), parent=parent)

    for_others = [cancel("5-2", "p#1@901"), cancel("5-3", "p#1"), cancel("5-4", "p#1@900", "nobody")]
    assert await shard.do(shard.kernel.deliver_messages(0, 3, for_others, NOW)) == "5-4"
    await shard.do(shard.kernel.deliver_messages(0, 3, [cancel("5-5", "p#1@900"), cancel("5-6", "")], NOW))
    assert [(message["kind"], message["body"]) for message in await shard.inbox()] == [
        (b"start", b"input"),
        (b"cancel", b"5-5"),
        (b"cancel", b"5-6"),
    ]


async def test_the_parent_is_known_also_when_the_child_has_attributes(shard: Shard) -> None:
    await shard.do(shard.kernel.deliver_messages(0, 3, [child("5-1")], NOW))
    tagged = (await shard.header("child")) + b' {"customer":"acme"}'
    await shard.plain("LSET", shard.keys.run("child"), 0, tagged)
    await shard.do(shard.kernel.deliver_messages(0, 3, [child("6-1")], NOW))
    await shard.do(shard.kernel.deliver_messages(0, 4, [child("5-1", parent="q#1")], NOW))
    assert [message["kind"] for message in await shard.inbox()] == [b"start", b"taken"]


async def test_the_clock_of_a_new_run_never_goes_behind_the_shards(shard: Shard) -> None:
    await shard.acquire(now=FUTURE)
    await shard.do(shard.kernel.deliver_messages(0, 3, [child("5-1")], NOW))
    assert decode_header(await shard.header("child")).created == FUTURE


async def test_a_malformed_number_is_refused_before_anything_is_written(shard: Shard) -> None:
    for bad in ("nonsense", "5-2 two identities", " A", "5 A"):
        deliver = shard.kernel.deliver_messages(0, 3, [signal("5-1"), signal(bad)], NOW)
        answer = await shard.assert_changes_nothing(deliver)
        assert isinstance(answer, StoreError)
        assert bad in str(answer)


async def test_wrong_key_types_leave_nothing_half_written(shard: Shard) -> None:
    await shard.acquire()
    deliver = shard.kernel.deliver_messages(0, 3, [signal("5-1"), child("5-2")], NOW)
    await shard.assert_wrong_types_leave_nothing_half_written(deliver)
