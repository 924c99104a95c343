"""Files and stdin, as editors and shells write them."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from streamflow.errors import UsageError
from streamflow.input_file import open_input, read_input

TEXT = '{"name": "wért"}\r\n'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_utf_8_is_read_without_its_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "in.json"
    file.write_bytes(TEXT.encode(encoding))
    assert read_input(file, "it") == TEXT.encode()
    with open_input(str(file), "it") as lines:
        assert list(lines) == [TEXT.encode()]


@pytest.mark.parametrize(
    ("encoding", "name"),
    [("utf-16", "UTF-16"), ("utf-16-le", "UTF-16"), ("utf-16-be", "UTF-16"), ("utf-32", "UTF-32")],
)
def test_another_encoding_is_refused_by_its_name(tmp_path: Path, encoding: str, name: str) -> None:
    file = tmp_path / "in.json"
    file.write_bytes(TEXT.encode(encoding))
    with pytest.raises(UsageError, match=f"can't read the input: it .* {name}; save it as UTF-8"):
        read_input(file, "the input")


def test_what_can_t_be_read_is_said_in_a_line(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UsageError, match="can't read the input: "):
            read_input(path, "the input")


@pytest.mark.parametrize("content", [b"", b"\xef", b"1", b"\xef\xbb\xbf"])
def test_short_files_are_whole(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "in"
    file.write_bytes(content)
    assert read_input(file, "it") == content.removeprefix(b"\xef\xbb\xbf")


def test_stdin_is_read_like_a_file_and_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.write(write, b"\xef\xbb\xbf1\n2\n")
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert read_input("-", "stdin") == b"1\n2\n"
        assert os.fstat(read)


def test_stdin_may_be_closed_or_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbf1")))
    assert read_input("-", "stdin") == b"1"
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UsageError, match="stdin is closed"):
        read_input("-", "--input -")
