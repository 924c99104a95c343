"""What `tail --stream` prints of chunks: texts one behind the other, and a line where something else begins."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from streamflow.cli.streaming import StreamText
from streamflow.client.streams import Chunk


def chunk(value: Any, *, seq: int = 1, attempt: int = 1, restarted: bool = False, missed: int = 0) -> Chunk[Any]:
    return Chunk(
        value=value, offset="1-1-1", step="write", seq=seq, attempt=attempt, at=datetime.now(UTC), restarted=restarted,
        missed=missed,
    )  # fmt: skip


def printed(*chunks: Chunk[Any]) -> str:
    parts: list[str] = []
    text = StreamText(parts.append)
    for one in chunks:
        text(one)
    text.end()
    return "".join(parts)


def test_texts_are_printed_as_they_were_emitted_and_the_last_line_is_ended() -> None:
    assert printed(chunk("An "), chunk("old\r\n\tsilent"), chunk(""), chunk(" pond")) == "An old\n\tsilent pond\n"
    assert printed(chunk("line\n")) == "line\n"
    assert printed() == ""


def test_other_values_are_json_on_lines_of_their_own() -> None:
    assert printed(chunk("a"), chunk({"done": 1}), chunk(7), chunk("b")) == 'a\n{"done":1}\n7\nb\n'


def test_what_a_terminal_would_obey_is_made_visible() -> None:
    assert printed(chunk("\x1b[31m\x07 \u202e")) == "␛[31m␇ ⟨U+202E⟩\n"


def test_lines_name_another_call_a_new_attempt_and_what_is_gone() -> None:
    text = printed(
        chunk("a"), chunk("b", seq=2), chunk("c", seq=2), chunk("a", attempt=2, restarted=True), chunk("d", missed=3)
    )
    assert text == (
        "a\n-- write #2\nbc\n-- write #1, attempt 2: begins again\na\n-- 3 chunks are gone\n-- write #1\nd\n"
    )
