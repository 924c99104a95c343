"""What a start asks for besides, as a word."""

from __future__ import annotations

import pytest

from streamflow.model.start_word import NOTHING, StartWord, start_word


@pytest.mark.parametrize(
    ("word", "text"),
    [
        (NOTHING, ""),
        (StartWord(begins=7), "b7"),
        (StartWord(timeout=60_000, identity="0af"), "t60000,i0af"),
        (StartWord(7, 8, "ab", 9), "d9,b7,t8,iab"),
    ],
)
def test_it_is_read_as_it_was_written(word: StartWord, text: str) -> None:
    assert str(word) == text
    assert start_word(text) == word


@pytest.mark.parametrize("text", ["x9", "b", "7", "b7a", "b9999999999999999999", "t-1", ",,", "b 1"])
def test_what_it_does_not_know_asks_for_nothing(text: str) -> None:
    assert start_word(text) == NOTHING


def test_fields_of_a_later_release_are_left_out() -> None:
    assert start_word("b7,z1f,t5") == StartWord(7, 5)
