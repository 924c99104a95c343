"""The loader of the Lua files: includes, headers, and what it says about broken files. And a check of the real ones."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from lupa.lua51 import LuaRuntime

from streamflow.store.scripts import (
    Script,
    ScriptError,
    load_scripts,
    lua_directory,
    plain_source,
    read_script,
    read_scripts,
)

HEADER = """\
#!lua flags=allow-oom
-- verb: does something.
--
-- Prose.
--
-- KEYS   owner, inbox
-- ARGV   token, now
-- RETURNS OK
"""

SCRIPTS = sorted(lua_directory().glob("*.lua"))
FRAGMENTS = sorted(lua_directory().glob("shared/*.lua"))


def write(directory: Path, text: str, name: str = "verb.lua") -> Path:
    path = directory / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def header(keys: str = "owner", argv: str = "token") -> str:
    return f"#!lua\n-- verb: does something.\n--\n-- KEYS   {keys}\n-- ARGV   {argv}\n-- RETURNS OK\n"


# Good files


def test_a_script_has_its_name_its_parameters_and_the_sha_of_its_source(tmp_path: Path) -> None:
    text = HEADER + "return 'OK'\n"
    assert read_script(write(tmp_path, text)) == Script(
        name="verb",
        source=text,
        keys=["owner", "inbox"],
        argv=["token", "now"],
        sha=hashlib.sha1(text.encode()).hexdigest(),
    )


def test_for_fakeredis_the_first_line_is_emptied_and_line_numbers_stay(tmp_path: Path) -> None:
    script = read_script(write(tmp_path, HEADER + "return 'OK'\n"))
    fake = script.for_fake()
    assert fake.source == plain_source(script)
    assert fake.source.splitlines() == ["", *script.source.splitlines()[1:]]
    assert fake.sha == hashlib.sha1(fake.source.encode()).hexdigest() != script.sha
    assert (fake.name, fake.keys, fake.argv) == (script.name, script.keys, script.argv)


def test_what_comes_after_then_or_for_each_may_be_there_many_times(tmp_path: Path) -> None:
    keys = "owner (once), then index (one for each listing, then changed), then: run for each run"
    argv = "token, then\n--        for each run: id, header; for each ack: inbox id;\n--        for each plan: id"
    script = read_script(write(tmp_path, header(keys, argv)))
    assert script.keys == ["owner", "index[]", "run[]"]
    assert script.argv == ["token", "id[]", "header[]", "inbox_id[]", "id[]"]


def test_brackets_mark_repeated_names_too(tmp_path: Path) -> None:
    assert read_script(write(tmp_path, header("owner, run[]", "token, then id[]"))).keys == ["owner", "run[]"]
    assert read_script(write(tmp_path, header("owner, run[]", "token, then id[]"))).argv == ["token", "id[]"]


@pytest.mark.parametrize("nothing", ["none", "(none)"])
def test_none_is_an_empty_list(tmp_path: Path, nothing: str) -> None:
    assert read_script(write(tmp_path, header("for each run: run", nothing))).keys == ["run[]"]
    assert read_script(write(tmp_path, header("for each run: run", nothing))).argv == []


def test_a_list_goes_on_in_indented_lines(tmp_path: Path) -> None:
    assert read_script(write(tmp_path, header(argv="token,\n--        commit,\n--        now"))).argv == [
        "token",
        "commit",
        "now",
    ]


def test_a_file_is_included_once_even_through_other_includes(tmp_path: Path) -> None:
    write(tmp_path, "local a = 1\n", "shared/a.lua")
    write(tmp_path, "-- @include shared/a\nlocal b = a\n", "shared/b.lua")
    path = write(tmp_path, HEADER + "-- @include shared/b\n  -- @include shared/a\nreturn b\n")
    assert read_script(path).source == HEADER + "local a = 1\nlocal b = a\nreturn b\n"


def test_fragments_are_not_verbs(tmp_path: Path) -> None:
    write(tmp_path, "local a = 1\n", "shared/a.lua")
    write(tmp_path, HEADER)
    assert list(read_scripts(tmp_path)) == ["verb"]


# Broken files: every message begins with file and line


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "a script begins with one of: #!lua, "),
        ("-- verb: does something.\n", 1, "a script begins with one of: #!lua, "),
        ("#!lua flags=allow-stale\n", 1, "a script begins with one of: #!lua, "),
        ("#!lua\n", 2, "the second line is `-- verb: ` and one line of promise"),
        ("#!lua\n-- other: does something.\n", 2, "the second line is `-- verb: ` and one line of promise"),
        ("#!lua\n-- verb:\n", 2, "the second line is `-- verb: ` and one line of promise"),
        (HEADER.replace("-- KEYS   owner, inbox\n", ""), 7, "the header ends without a line `-- KEYS …`"),
        (HEADER.replace("-- ARGV   token, now\n", "") + "return 1\n", 8, "the header ends without a line `-- ARGV …`"),
        (HEADER.replace("-- RETURNS OK\n", "\n-- RETURNS OK\n"), 8, "the header ends without a line `-- RETURNS …`"),
        (HEADER.replace("RETURNS OK", "RETURNS"), 8, "RETURNS is empty"),
        (HEADER + "-- KEYS   owner\n", 9, "a second KEYS line"),
        (HEADER.replace("owner, inbox", ""), 6, "'' is not a name"),
        (HEADER.replace("owner, inbox", "owner inbox"), 6, "'owner inbox' is not a name"),
        (HEADER.replace("owner, inbox", "owner, Inbox"), 6, "'Inbox' is not a name"),
        (HEADER.replace("owner, inbox", "owner, inbox,"), 6, "'' is not a name"),
        (HEADER.replace("token, now", "token,\n--        now!"), 8, "'now!' is not a name"),
        (HEADER.replace("token, now", "token, then for each run: id, {}"), 7, "'{}' is not a name"),
        (HEADER.replace("token, now", "token,\n--        now,\n--        token"), 9, "'token' is listed twice"),
        (HEADER + "-- @include shared/none\n", 9, "included file {directory}/shared/none.lua doesn't exist"),
        (HEADER + "-- @include none\n", 9, "write `-- @include shared/name`, not '-- @include none'"),
        (HEADER + "-- @include shared/../verb\n", 9, "write `-- @include shared/name`"),
        (HEADER + "-- @include\n", 9, "write `-- @include shared/name`"),
    ],
)
def test_errors_say_where_a_script_is_broken(tmp_path: Path, text: str, line: int, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ScriptError) as caught:
        read_script(path)
    assert str(caught.value).startswith(f"{path}:{line}: {message.replace('{directory}', str(tmp_path))}")


def test_a_circular_include_is_shown_as_the_circle(tmp_path: Path) -> None:
    write(tmp_path, "-- @include shared/b\n", "shared/a.lua")
    path = write(tmp_path, "-- b\n-- @include shared/a\n", "shared/b.lua")
    with pytest.raises(ScriptError) as caught:
        read_script(write(tmp_path, HEADER + "-- @include shared/a\n"))
    assert str(caught.value) == f"{path}:2: circular include: a -> b -> a"


def test_a_broken_include_in_a_fragment_names_the_fragment(tmp_path: Path) -> None:
    fragment = write(tmp_path, "\n-- @include shared/none\n", "shared/a.lua")
    with pytest.raises(ScriptError, match=f"^{fragment}:2: included file"):
        read_script(write(tmp_path, HEADER + "-- @include shared/a\n"))


def test_a_file_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "verb.lua"
    path.write_bytes(b"#!lua\n\xff\n")
    with pytest.raises(ScriptError, match=f"^{path}:1: can't be read"):
        read_script(path)


# The real files


def test_every_script_loads_and_is_read_once() -> None:
    assert sorted(load_scripts()) == [path.stem for path in SCRIPTS] != []
    assert load_scripts() is load_scripts()


@pytest.mark.parametrize("path", [*SCRIPTS, *FRAGMENTS], ids=lambda path: path.stem)
def test_a_file_of_the_kernel_has_at_most_120_lines_below_its_header(path: Path) -> None:
    assert len([line for line in path.read_text().splitlines() if not line.startswith("--")]) <= 120


@pytest.mark.parametrize("path", FRAGMENTS, ids=lambda path: path.stem)
def test_a_fragment_is_included_somewhere_and_begins_with_its_promise(path: Path) -> None:
    assert path.read_text().startswith(f"-- {path.stem}: ")
    assert any(f"-- @include shared/{path.stem}\n" in other.read_text() for other in [*SCRIPTS, *FRAGMENTS])


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_writes_no_global_and_reads_only_known_ones(path: Path) -> None:
    """A forgotten `local` is an error on a real server, and poisons later scripts on fakeredis.

    Compiled, not run: the byte code shows the branches that no test takes, too.
    """
    source = plain_source(read_script(path))
    assert not {f"{name} = … at: {source.splitlines()[line - 1]}" for name, line in globals_written(source)}
    assert not {name for name, _ in globals_read(source)} - KNOWN_GLOBALS


def test_the_check_of_globals_sees_functions_and_branches_that_never_run() -> None:
    source = "local a = 1\nlocal function f()\n  if a then b = c end\nend\nlocal t = {x = 1}\nt.y = 2\n"
    assert list(globals_written(source)) == [("b", 3)]
    assert list(globals_read(source)) == [("c", 3)]


KNOWN_GLOBALS = {
    *("redis", "KEYS", "ARGV", "math", "string", "table"),
    *("ipairs", "next", "pairs", "select", "tonumber", "tostring", "type", "unpack"),
}
"""What both servers and fakeredis have, as far as the kernel may use it: no cjson, no cmsgpack, no struct."""

_GETGLOBAL, _SETGLOBAL = 5, 7


def globals_written(source: str) -> Iterator[tuple[str, int]]:
    return _globals(source, _SETGLOBAL)


def globals_read(source: str) -> Iterator[tuple[str, int]]:
    return _globals(source, _GETGLOBAL)


def _globals(source: str, wanted: int) -> Iterator[tuple[str, int]]:
    """Names and lines, from Lua 5.1's byte code."""
    runtime: Any = LuaRuntime  # its stubs know no `encoding`
    lua = runtime(encoding=None, unpack_returned_tuples=True)
    dump = lua.execute(b"return function(s) return string.dump(assert(loadstring(s))) end")(source.encode())
    pending = [ByteCode(dump, 12).function()]
    while pending:
        function = pending.pop()
        pending += function.functions
        for position, instruction in enumerate(function.code):
            if instruction & 0x3F == wanted:
                yield str(function.constants[instruction >> 14]), function.lines[position]


@dataclass
class Function:
    code: list[int] = field(default_factory=list)
    constants: list[object] = field(default_factory=list)
    functions: list[Function] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)


@dataclass
class ByteCode:
    """Reads what `string.dump` of Lua 5.1 (64 bits, little endian) wrote: `ldump.c` is the description."""

    data: bytes
    offset: int

    def take(self, form: str) -> int:
        (value,) = struct.unpack_from(f"<{form}", self.data, self.offset)
        self.offset += struct.calcsize(f"<{form}")
        return value

    def integers(self) -> list[int]:
        return [self.take("I") for _ in range(self.take("I"))]

    def string(self) -> str:
        size = self.take("Q")
        self.offset += size
        return self.data[self.offset - size : self.offset].rstrip(b"\0").decode(errors="replace")

    def constant(self) -> object:
        kind = self.take("B")
        return {0: lambda: None, 1: lambda: self.take("B"), 3: lambda: self.take("d"), 4: self.string}[kind]()

    def function(self) -> Function:
        self.string()  # name of the chunk
        self.offset += 4 + 4 + 1 + 1 + 1 + 1  # first line, last line, upvalues, parameters, variadic, stack
        code = self.integers()
        constants = [self.constant() for _ in range(self.take("I"))]
        functions = [self.function() for _ in range(self.take("I"))]
        lines = self.integers()
        for _ in range(self.take("I")):  # locals
            self.string()
            self.offset += 8
        for _ in range(self.take("I")):  # upvalues
            self.string()
        return Function(code, constants, functions, lines)
