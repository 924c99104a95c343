"""The map of a cluster from what its servers say: whom to believe, and what a change of it means."""

from __future__ import annotations

import pytest

from streamflow.store.topology import SLOTS, Server, Topology, read_servers, slot_of

ASKED = ("10.0.0.9", 7000)
NODES = """\
aaa 10.0.0.1:7001@17001,host-a myself,master - 0 0 3 connected 0-5460 7000 [8000->-bbb]
bbb 10.0.0.2:7002@17002 master,fail? - 0 1 2 connected 5461-6999 7001-10922
ccc 10.0.0.3:7003@17003 slave bbb 0 1 2 connected
ddd :0@0 master,noaddr - 0 1 1 disconnected
eee 10.0.0.5:7005@17005 handshake - 0 0 0 connected
fff ::1:7006@17006 master - 0 0 4 connected 10923-16383
"""


def primary(name: str, epoch: int, *slots: tuple[int, int], port: int = 0) -> Server:
    return Server(name, (name, port), "", epoch, slots)


def replica(name: str, of: str, epoch: int) -> Server:
    return Server(name, (name, 0), of, epoch)


def test_each_line_is_a_server() -> None:
    assert read_servers(NODES, ASKED) == [
        Server("aaa", ("10.0.0.1", 7001), "", 3, ((0, 5460), (7000, 7000))),
        Server("bbb", ("10.0.0.2", 7002), "", 2, ((5461, 6999), (7001, 10922)), True),
        Server("ccc", ("10.0.0.3", 7003), "bbb", 2),
        Server("fff", ("::1", 7006), "", 4, ((10923, 16383),)),
    ]


def test_a_server_that_does_not_know_its_address_is_the_one_that_was_asked() -> None:
    assert read_servers("aaa :7001@17001 myself,master - 0 0 0 connected", ASKED)[0].address == ("10.0.0.9", 7001)


@pytest.mark.parametrize("text", ["aaa", "aaa 10.0.0.1:x@1 master - 0 0 0 connected", "ERR unknown"])
def test_what_is_no_map_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        read_servers(text, ASKED)


def test_the_newest_claim_to_a_slot_counts_in_whatever_order_answers_come() -> None:
    old = [primary("a", 1, (0, 99)), replica("b", "a", 1)]
    new = [primary("b", 4, (0, 99)), replica("a", "b", 4)]
    for answers in ([old, new], [new, old]):
        found = Topology.merged(answers)
        assert found.primary_of(50) == new[0]
        assert found.primaries == [new[0]]
        assert found.unserved == SLOTS - 100


def test_a_server_that_was_cut_off_does_not_undo_what_is_known() -> None:
    old = [primary("a", 1, (0, 99)), replica("b", "a", 1)]
    new = [primary("b", 4, (0, 99)), replica("a", "b", 4)]
    known = Topology.merged([new])
    found = Topology.merged([old], known)
    assert found.primary_of(50) == new[0]
    assert list(found.changed_since(known)) == []
    given_up = [primary("b", 4), primary("a", 1, (0, 99))]
    assert [one.id for one in Topology.merged([given_up], known).primaries] == ["a"], "by one that knows as much"


def test_a_former_primary_that_does_not_know_it_yet_is_still_a_replica() -> None:
    known = Topology.merged([[primary("b", 4, (0, 99)), replica("a", "b", 4)]])
    found = Topology.merged([[primary("a", 1, (0, 99)), replica("b", "a", 1)]], known)
    assert found.servers["a"].of == "b"
    back = Topology.merged([[primary("a", 5, (0, 99)), primary("b", 4)]], found)
    assert all(may_lack for _, may_lack in back.changed_since(found))
    assert back.servers["a"].of == ""


@pytest.mark.parametrize("former", [[primary("a", 1)._replace(failing=True)], []], ids=["fails", "is gone"])
def test_the_slot_of_a_lost_server_may_have_been_its_replicas_before(former: list[Server]) -> None:
    before = Topology.merged([[primary("a", 1, (0, 9)), primary("b", 2, (10, 19)), replica("c", "a", 1)]])
    moved_on = Topology.merged([[*former, primary("b", 5, (0, 19)), primary("c", 4)]])
    assert list(moved_on.changed_since(before)) == [(slot, True) for slot in range(10)]


def test_a_slot_that_nobody_had_for_a_while_is_not_taken_for_a_new_one() -> None:
    before = Topology.merged([[primary("a", 1, (0, 9)), primary("b", 2, (10, 19)), replica("c", "a", 1)]])
    assert list(before.changed_since(Topology())) == []
    nobodys = Topology.merged([[primary("b", 2, (10, 19)), replica("c", "a", 1)]], before)
    assert list(nobodys.changed_since(before)) == []
    promoted = Topology.merged([[primary("b", 2, (10, 19)), primary("c", 3, (0, 9))]], nobodys)
    assert list(promoted.changed_since(nobodys)) == [(slot, True) for slot in range(10)]
    back = Topology.merged([[primary("a", 1, (0, 9)), primary("b", 2, (10, 19)), replica("c", "a", 1)]], nobodys)
    assert list(back.changed_since(nobodys)) == []


def test_a_moved_slot_has_its_data_and_that_of_a_replica_may_not() -> None:
    before = Topology.merged([[primary("a", 1, (0, 9)), primary("b", 2, (10, 19)), replica("c", "a", 1)]])
    moved = Topology.merged([[primary("a", 1, (0, 4)), primary("b", 3, (5, 19)), replica("c", "a", 1)]])
    assert list(moved.changed_since(before)) == [(slot, False) for slot in range(5, 10)]
    promoted = Topology.merged([[primary("c", 4, (0, 9)), primary("b", 2, (10, 19))]])
    assert list(promoted.changed_since(before)) == [(slot, True) for slot in range(10)]
    stranger = Topology.merged([[primary("a", 1), primary("b", 2, (10, 19)), primary("d", 4, (0, 9))]])
    assert all(may_lack for _, may_lack in stranger.changed_since(before)), "for all that is known it was a replica"
    empty = Topology.merged([[primary("a", 1, (0, 9)), primary("b", 2, (10, 19)), primary("d", 0)]])
    assert not any(may_lack for _, may_lack in stranger.changed_since(empty))


def test_the_same_server_at_another_address_was_started_again() -> None:
    before, after = (Topology.merged([[primary("a", 1, (0, 9), port=port)]]) for port in (1, 2))
    assert list(after.changed_since(before)) == [(slot, True) for slot in range(10)]


def test_a_slot_is_that_of_what_is_between_the_first_braces() -> None:
    assert slot_of("123456789") == 0x31C3
    assert slot_of("sf:{ns/7}:log") == slot_of("{ns/7}") == slot_of("ns/7")
    assert slot_of("{}a") != slot_of("a")
