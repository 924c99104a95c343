"""Which ids and names are accepted, and the errors that refuse the others."""

from __future__ import annotations

from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamflow.errors import InvalidName
from streamflow.model import names
from streamflow.model.names import MAX_ID, MAX_NAME, check_name, check_run_id

DANGEROUS = "{}*?[]^#$'\"\\ \t\r\n\0\x1b\x7f\x9b\u202e\u2066"


@pytest.mark.parametrize("run_id", ["a", "7", "acme/invoice-17", "digest-1", "a.b:c@d=e+f~g_h/i-j", "x" * MAX_ID])
def test_a_run_id_in_the_alphabet_is_returned_as_it_is(run_id: str) -> None:
    assert check_run_id(run_id) == run_id


@pytest.mark.parametrize("name", ["a", "_private", "fetch", "module.fetch", "v2:fetch", "x" * MAX_NAME])
def test_a_name_in_the_alphabet_is_returned_as_it_is(name: str) -> None:
    assert check_name("step", name) == name


@pytest.mark.parametrize("run_id", ["", "/a", "-a", ".a", "_a", "é", "١", "a\n"])
def test_a_run_id_outside_the_alphabet_is_refused_with_the_alphabet(run_id: str) -> None:
    with pytest.raises(InvalidName, match="is not allowed: use letters, digits and"):
        check_run_id(run_id)


@pytest.mark.parametrize("name", ["", "-a", "a/b", "é"])
def test_a_name_is_refused_with_what_it_is_of(name: str) -> None:
    with pytest.raises(InvalidName, match=r"^tenant .* is not allowed"):
        check_name("tenant", name)


@pytest.mark.parametrize("character", DANGEROUS)
@pytest.mark.parametrize("place", ["{}", "{}a", "a{}", "a{}b"])
def test_characters_with_a_meaning_in_keys_or_terminals_are_refused(place: str, character: str) -> None:
    """Also in headers and glob patterns."""
    for check in (check_run_id, lambda name: check_name("workflow", name)):
        with pytest.raises(InvalidName):
            check(place.replace("{}", character))


def test_a_name_that_is_too_long_is_refused_with_length_and_limit() -> None:
    """Not repeated whole."""
    with pytest.raises(InvalidName, match="has 257 characters; the limit is 256") as caught:
        check_run_id("x" * 257)
    assert len(str(caught.value)) < 120
    with pytest.raises(InvalidName, match="has 129 characters; the limit is 128"):
        check_name("signal", "x" * 129)


@pytest.mark.parametrize("value", [None, 7, b"a", ["a"]])
def test_a_name_that_is_not_a_string_is_refused_with_its_type(value: object) -> None:
    with pytest.raises(InvalidName, match=f"run id must be a str, got {type(value).__name__}"):
        check_run_id(value)  # type: ignore[arg-type]


@given(st.text(max_size=300))
def test_accepted_names_are_short_printable_ascii(text: str) -> None:
    """Refused ones are shown without control characters."""
    message = refusal(text)
    assert all(character.isprintable() for character in message)
    if not message:
        assert 0 < len(text) <= MAX_ID
        assert text.isascii()
        assert text.isprintable()
        assert not set(text) & set(DANGEROUS)


def refusal(run_id: str) -> str:
    try:
        check_run_id(run_id)
    except InvalidName as error:
        return str(error)
    return ""


def test_what_was_allowed_before_allows_nothing_else() -> None:
    """Names that were checked, and the last run id, aren't checked again."""
    names._last[0] = None  # pyright: ignore[reportPrivateUsage]
    for _ in range(2):
        for wrong in ("", "a b", "/x", 5, None, b"order-7"):
            with pytest.raises(InvalidName):
                check_run_id(cast("str", wrong))
            with pytest.raises(InvalidName):
                check_name("step", cast("str", wrong))
        assert check_run_id("order/7") == "order/7"
        assert check_name("step", "order-7") == "order-7"
    with pytest.raises(InvalidName):
        check_name("step", "order/7")
