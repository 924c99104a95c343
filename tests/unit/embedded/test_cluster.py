"""What the nodes of an embedded cluster say, and when they count as one. With real nodes: tests/cluster."""

from __future__ import annotations

from streamflow.embedded.cluster import ClusterNode, _doubt, _owner, _Report, _views
from streamflow.embedded.server import EmbeddedServer

A, B, C = "a" * 40, "b" * 40, "c" * 40

SEEN_BY_A = f"""\
{A} 127.0.0.1:1@11 myself,master - 0 0 1 connected 0-8191 [8192-<-{B}]
{B} 127.0.0.1:2@12,host master - 0 5 2 connected 8192-8193 8195 8197-16383
{C} 127.0.0.1:3@13 slave {A} 0 5 1 connected
"""
SEEN_BY_B = SEEN_BY_A.replace("myself,", "").replace("host master", "host myself,master").replace(f" [8192-<-{B}]", "")


def node(name: str, id_: str) -> ClusterNode:
    made = ClusterNode(name, EmbeddedServer(), 1, 2, "")
    made.id = id_
    return made


NODE_A, NODE_B = node("node-1", A), node("node-2", B)


def report(text: str, state: str = "ok", in_step: bool = True) -> _Report:
    views = _views(text)
    own = next(view for view in views.values() if "myself" in view.flags)
    return _Report(own, views, state, in_step)


def doubt(of_a: _Report, of_b: _Report) -> str:
    return _doubt([NODE_A, NODE_B], {NODE_A: of_a, NODE_B: of_b})


def test_a_node_s_view_has_the_slots_that_are_settled() -> None:
    views = _views(SEEN_BY_A)
    assert views[A].is_master
    assert views[A].slots == (range(8192),)
    assert (views[B].address, views[B].master_id, views[B].epoch) == ("127.0.0.1:2", "", 2)
    assert [views[B].has(slot) for slot in (8191, 8192, 8194, 8195, 16383)] == [False, True, False, True, True]
    assert (views[C].is_master, views[C].master_id, views[C].slots) == (False, A, ())


def test_nodes_that_agree_and_serve_are_not_doubted() -> None:
    assert doubt(report(SEEN_BY_A), report(SEEN_BY_B)) == ""


def test_what_keeps_nodes_from_being_a_cluster_is_named() -> None:
    fine = report(SEEN_BY_B)
    assert doubt(report(SEEN_BY_A, state="fail"), fine) == "node-1 says cluster_state:fail"
    assert doubt(report(SEEN_BY_A, in_step=False), fine) == "node-1 isn't in step with its master"
    assert doubt(report(SEEN_BY_A.splitlines()[0]), fine) == "node-1 doesn't know node-2"
    assert doubt(report(SEEN_BY_A.replace("host master", "host master,fail?")), fine) == "node-1 doubts node-2"
    assert "node-2 in another role or with other slots" in doubt(report(SEEN_BY_A.replace("8195", "8194")), fine)
    assert _doubt([NODE_A, NODE_B], {NODE_B: fine}) == "node-1 doesn't answer"
    assert _doubt([], {}) == "no node is running"


def test_of_two_masters_that_claim_a_slot_the_newer_one_has_it() -> None:
    zombie = report(SEEN_BY_A)
    promoted = report(SEEN_BY_B.replace("2 connected 8192-", "7 connected 0-"))
    assert _owner({NODE_A: zombie, NODE_B: promoted}, 5) is NODE_B
    assert _owner({NODE_B: promoted, NODE_A: zombie}, 5) is NODE_B
    assert _owner({NODE_A: zombie}, 5) is NODE_A
    assert _owner({NODE_A: zombie}, 9000) is None
