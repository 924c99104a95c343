"""What reports about triggers say together: of processes that live, that have gone, and of other releases."""

from __future__ import annotations

import msgspec

from streamflow.store.served_triggers import GONE_SECONDS, Served, ServedHere, decode_reports, rows_of, together


def row(name: str, *, age: float = 1.0, problem: str = "", pid: int = 1, received: int = 1) -> ServedHere:
    return ServedHere("host", pid, age, Served(name, "list", f"list {name}", received, 1, 0, problem))


def test_a_process_that_has_gone_harms_no_trigger_that_another_serves() -> None:
    [one] = together([row("a", age=60.0, received=7), row("a", pid=2), row("a", pid=3, received=4)])
    assert (one.processes, one.received, one.quarantined, one.problem) == (2, 5, 2, "")


def test_what_one_process_says_is_the_problem_of_its_trigger() -> None:
    [one] = together([row("a"), row("a", pid=2, problem="no brokers"), row("a", pid=3, age=60.0, problem="old")])
    assert (one.processes, one.problem, one.process) == (2, "no brokers", "host-2")


def test_a_trigger_whose_processes_have_all_gone_is_known_for_a_day() -> None:
    [one] = together([row("a", age=90.0), row("a", age=60.0, pid=2), row("b", age=GONE_SECONDS + 1)])
    assert (one.name, one.processes, one.received, one.process) == ("a", 0, 0, "host-2")
    assert one.problem == "no report for 60 s: the process was killed, or hangs"


def test_reports_of_other_releases_are_left_out() -> None:
    good = msgspec.msgpack.encode(
        ["host", 17, 5_000, [["b", "list", "l", 0, 0, 0, ""], ["a", "list", "l", 0, 0, 0, ""]]]
    )
    found = decode_reports([(b"new", b"\xc1"), (b"other", msgspec.msgpack.encode({"at": 1})), (b"good", good)])
    assert [name for name, _ in found] == ["good"]
    assert [(one.served.name, one.age) for one in rows_of(found, 6_000)] == [("a", 1.0), ("b", 1.0)]
