"""The text of cursors, and times as people write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamflow.client.paging import Cursor, Position, cursor_of, cursor_text, instant_ms
from streamflow.errors import UsageError

NOW = 1_764_460_800_000  # 2025-11-30
DAY = 86_400_000


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("90s", NOW - 90_000),
        ("1.5h", NOW - 5_400_000),
        ("7d", NOW - 7 * DAY),
        ("2w", NOW - 14 * DAY),
        ("2025-11-29", NOW - DAY),
        ("2025-11-29T14:02", NOW - DAY + 50_520_000),
        ("2025-11-29T14:02:00+01:00", NOW - DAY + 46_920_000),
        ("2025-11-29T13:02:00Z", NOW - DAY + 46_920_000),
        (datetime(2025, 11, 29, tzinfo=UTC), NOW - DAY),
        (datetime(2025, 11, 29, 1, tzinfo=timezone(timedelta(hours=1))), NOW - DAY),
    ],
)
def test_times_are_ago_dates_or_instants(at: datetime | str, expected: int) -> None:
    assert instant_ms("since", at, NOW) == expected


@pytest.mark.parametrize(
    "at",
    ["", "2", "h", "-2h", "yesterday", "2025-13-01", "2h ago", "1e9d", "٣h", datetime(2025, 11, 29)],  # noqa: DTZ001
)
def test_what_is_no_time_is_refused_with_examples(at: datetime | str) -> None:
    with pytest.raises(UsageError, match=r"^since: "):
        instant_ms("since", at, NOW)


positions = st.builds(
    Position, st.integers(0, 2 * NOW).map(float), st.from_regex("[A-Za-z0-9][a-z0-9.~/-]{0,20}", fullmatch=True)
)
times = st.none() | st.integers(0, 2 * NOW)


@given(st.builds(Cursor, positions, times, times), st.text(max_size=9))
def test_a_cursor_is_read_as_it_was_written(cursor: Cursor, listing: str) -> None:
    assert cursor_of(cursor_text(cursor, listing), listing) == cursor


def test_a_cursor_of_another_listing_and_what_is_none_are_refused() -> None:
    text = cursor_text(Cursor(Position(5.0, "r-1")), "failed")
    with pytest.raises(UsageError, match="another listing"):
        cursor_of(text, "stuck")
    for nothing in ("x", text[1:], text + "\n", "", f"{text}{'x' * 300}"):
        with pytest.raises(UsageError, match="is not a cursor"):
            cursor_of(nothing, "failed")
