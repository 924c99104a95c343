"""Names of objects: each id has a folder of its own, and each state of a run an object of its own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streamflow.archive import layout

ALPHABET = "abzABZ019_.:@=+~/-"
IDS = st.text(ALPHABET, min_size=1, max_size=256).filter(lambda text: text[0].isalnum())


@given(IDS, IDS)
def test_two_ids_have_two_folders(one: str, other: str) -> None:
    folders = {layout.run_folder("ns", one), layout.run_folder("ns", other)}
    assert len(folders) == len({one, other})


@given(IDS)
def test_a_folder_has_four_parts_that_every_file_system_takes(run_id: str) -> None:
    parts = layout.run_folder("my:ns", run_id).split("/")
    assert parts[:2] == ["my=3Ans", "runs"]
    assert len(parts) == 4
    assert all(0 < len(part) <= 150 and not set(part) & set(':@+~/\\*?"<>| %') for part in parts)


def test_the_last_incarnation_and_its_last_state_is_the_largest() -> None:
    headers = [b"completed 3 c 999 9 flow - -", b"failed 12 c 1000 9 flow - -", b"completed 9 c 1000 9 flow - -"]
    names = [layout.run_object(header) for header in headers]
    parsed = [layout.parse_run_object(name) for name in names]
    assert [(found.created, found.version) for found in parsed if found is not None] == [
        (999, 3),
        (1000, 12),
        (1000, 9),
    ]
    assert max(found for found in parsed if found is not None).name == names[1]
    assert layout.parse_run_object("README.md") is None


def test_the_same_state_is_the_same_object_and_another_one_another() -> None:
    header = b"completed 3 c1 999 9 flow - -"
    assert layout.run_object(header) == layout.run_object(header)
    assert layout.run_object(header) != layout.run_object(b"completed 3 c2 999 9 flow - -"), "of another commit"


def test_index_objects_sort_by_time() -> None:
    names = [
        layout.index_object(ms, "0123456789ab") for ms in (1_796_000_000_000, 1_796_000_000_001, 1_796_090_000_000)
    ]
    assert names == sorted(names)
    day, _, name = names[0].partition("/")
    assert (day, layout.is_day(day), layout.is_index_object(name)) == ("2026-11-30", True, True)
    assert not layout.is_day("latest")
    assert not layout.is_index_object(".hidden.idx")


@given(IDS)
def test_a_folder_s_name_tells_the_run_unless_it_is_shortened(run_id: str) -> None:
    folder = layout.run_folder("shop", run_id)
    assert folder.startswith(f"{layout.folder_of_runs('shop', folder.split('/')[2])}/")
    assert layout.run_of_folder(folder.rpartition("/")[2]) in (run_id, "")
    if len(run_id) < 40:
        assert layout.run_of_folder(folder.rpartition("/")[2]) == run_id
