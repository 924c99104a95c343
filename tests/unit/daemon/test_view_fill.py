"""Which runs of a fill are counted already, and where in an archive it goes on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streamflow.daemon.view_fill import Place, digest_of, has, joined, portions, read_upto
from streamflow.daemon.view_parts import EarlierRun
from streamflow.events import Transition

RUNS = st.lists(st.tuples(st.text("abc", min_size=1, max_size=3), st.integers(1, 9)), max_size=20)


@given(RUNS, RUNS)
def test_what_was_counted_is_known_and_nothing_else(
    first: list[tuple[str, int]], second: list[tuple[str, int]]
) -> None:
    folded = joined(joined(b"", [digest_of(*run) for run in first]), [digest_of(*run) for run in second])
    assert len(folded) == 8 * len({*first, *second})
    assert all(has(folded, digest_of(*run)) for run in first + second)
    assert not has(folded, digest_of("other", 1))
    assert not has(None, digest_of("other", 1))


def test_a_shard_that_is_further_behind_is_not_skipped() -> None:
    """Shards of another daemon come to this one in the middle of its way through the archive."""
    here, behind = Place("80", "m"), Place("7f", "z")
    assert read_upto("80", [here]) == "m"
    assert read_upto("80", [here, Place("80", "c")]) == "c"
    assert read_upto("80", [here, behind]) == ""
    assert read_upto("81", [here, behind]) == ""
    assert read_upto("7f", [here, behind]) == "z"


def test_runs_of_one_folder_are_stored_together() -> None:
    many = [Transition(1, [])] * 300
    runs = [EarlierRun(f"r{number}", 1, ("", ""), many) for number in range(4)]
    assert [len(some) for some in portions(runs)] == [1, 1, 1, 1]
    assert [len(some) for some in portions(runs, ["a", "b", "b", "c"])] == [1, 2, 1]
    assert portions([]) == []
