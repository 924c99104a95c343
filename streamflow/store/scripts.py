"""The kernel's scripts, read from `lua/`: one verb per file, checked before it is sent to a server.

Owns: where the files are, the `-- @include` lines, the header that every script begins with, the SHA-1 of the result.
Must not: talk to a server, or know what a verb does. Called by: `Store` (which sends the scripts) and the tests.

A script begins with a header, which is parsed: tests hold it against the methods that fill KEYS and ARGV.

    #!lua flags=allow-oom
    -- commit: one line of promise.
    --
    -- Prose.
    --
    -- KEYS   owner, inbox (remarks are skipped), log, then for each run: run, index
    -- ARGV   token, commit, now, then for each run: id, header; for each ack: inbox id
    -- RETURNS OK clock log / CONFLICT run… / FENCED token

`#!lua` alone lets the server refuse the whole script when memory is short: for verbs that bring new work. With
`flags=allow-oom` it always runs: for verbs that finish work, and so free memory. `flags=no-writes` only reads.
A list may continue in the next line, indented; `none` is an empty list. What comes after `then` or `for each …:` may
occur any number of times, and is called `name[]`.
"""

from __future__ import annotations

import functools
import hashlib
import re
from pathlib import Path

import msgspec

from streamflow.errors import StreamflowError

READS_ONLY = "#!lua flags=no-writes"
SHEBANGS = ("#!lua", "#!lua flags=allow-oom", READS_ONLY)

_INCLUDE = re.compile(r"\s*--\s*@include\b\s*(?P<path>.*?)\s*")
_INCLUDE_PATH = re.compile(r"shared/[a-z][a-z0-9_]*")
_SECTION = re.compile(r"-- (?P<word>KEYS|ARGV|RETURNS)\b\s*(?P<text>.*)")
_CONTINUED = re.compile(r"--\s{3,}(?P<text>\S.*)")
_REMARK = re.compile(r"\([^()]*\)")
_DIVIDER = re.compile(r"\bthen\b|;")
_FOR_EACH = re.compile(r"\s*:?\s*(?P<prefix>for each [^:,;]+:)?(?P<names>.*?)(?P<suffix>\sfor each .*)?", re.DOTALL)
_NAME = re.compile(r"[a-z][a-z0-9_]*(\[\])?")
_REPEATED_NAME = re.compile(r"[a-z][a-z0-9_]*( [a-z0-9_]+)*(\[\])?")


class ScriptError(StreamflowError):
    """A script could not be loaded; the message begins with file and line."""


class Script(msgspec.Struct, frozen=True):
    """One verb. `keys` and `argv` are the names in the header, in order; `sha` is the SHA-1 for EVALSHA."""

    name: str
    source: str
    keys: list[str]
    argv: list[str]
    sha: str

    @property
    def evalsha(self) -> str:
        """The command that calls it: one that only reads is allowed to users who may only read."""
        return "EVALSHA_RO" if self.source.startswith(READS_ONLY) else "EVALSHA"

    def for_fake(self) -> Script:
        """The same script for fakeredis, which can't parse the `#!lua` line. Its `sha` differs."""
        source = plain_source(self)
        return Script(self.name, source, self.keys, self.argv, _sha1(source))


def plain_source(script: Script) -> str:
    """The source without the text of its `#!lua` line, which stays empty, so that line numbers in errors stay right."""
    return script.source[script.source.index("\n") :]


@functools.cache
def load_scripts() -> dict[str, Script]:
    """All verbs by name, read once. Raises `ScriptError`."""
    return read_scripts(lua_directory())


def lua_directory() -> Path:
    """The scripts: inside the package in a wheel, in the checkout for an editable install. Raises `ScriptError`."""
    package = Path(__file__).resolve().parents[1]
    candidates = (package / "lua", package.parent / "lua")
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise ScriptError(
        f"{candidates[0]}:1: the kernel's scripts are missing (also in {candidates[1]}): install streamflowd again"
    )


def read_scripts(directory: Path) -> dict[str, Script]:
    """Read every `*.lua` of `directory`; the files in its folder `shared` are only included by others."""
    return {path.stem: read_script(path) for path in sorted(directory.glob("*.lua"))}


def read_script(path: Path) -> Script:
    """Read one verb. Raises `ScriptError` when its header is wrong or an include can't be resolved."""
    lines = _read(path)
    keys, argv = _parse_header(path, lines)
    source = "\n".join(_expand(path, lines, path.parent, [path], set())) + "\n"
    return Script(path.stem, source, keys, argv, _sha1(source))


def _sha1(source: str) -> str:
    return hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


def _read(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ScriptError(f"{path}:1: can't be read: {error}") from error


def _expand(path: Path, lines: list[str], root: Path, open_files: list[Path], done: set[Path]) -> list[str]:
    """`lines` with every include replaced by its file, at its first mention only: fragments define locals once."""
    expanded: list[str] = []
    for number, line in enumerate(lines, 1):
        include = _INCLUDE.fullmatch(line)
        if include is None:
            expanded.append(line)
            continue
        if not _INCLUDE_PATH.fullmatch(include["path"]):
            raise ScriptError(f"{path}:{number}: write `-- @include shared/name`, not {line.strip()!r}")
        fragment = root / f"{include['path']}.lua"
        if fragment in open_files:
            circle = " -> ".join(file.stem for file in [*open_files[open_files.index(fragment) :], fragment])
            raise ScriptError(f"{path}:{number}: circular include: {circle}")
        if fragment in done:
            continue
        if not fragment.is_file():
            raise ScriptError(f"{path}:{number}: included file {fragment} doesn't exist")
        done.add(fragment)
        expanded += _expand(fragment, _read(fragment), root, [*open_files, fragment], done)
    return expanded


def _parse_header(path: Path, lines: list[str]) -> tuple[list[str], list[str]]:
    if not lines or lines[0] not in SHEBANGS:
        raise ScriptError(f"{path}:1: a script begins with one of: {', '.join(SHEBANGS)}")
    if len(lines) < 2 or not re.fullmatch(rf"-- {re.escape(path.stem)}: \S.*", lines[1]):
        raise ScriptError(f"{path}:2: the second line is `-- {path.stem}: ` and one line of promise")
    sections: dict[str, list[tuple[int, str]]] = {}
    current: list[tuple[int, str]] | None = None
    number = 2
    for number, line in enumerate(lines[2:], 3):
        if not line.startswith("--") or _INCLUDE.fullmatch(line):
            break
        if match := _SECTION.fullmatch(line):
            if match["word"] in sections:
                raise ScriptError(f"{path}:{number}: a second {match['word']} line")
            current = sections[match["word"]] = [(number, match["text"])]
        elif (match := _CONTINUED.fullmatch(line)) and current is not None:
            current.append((number, match["text"]))
        else:
            current = None
    for word in ("KEYS", "ARGV", "RETURNS"):
        if word not in sections:
            raise ScriptError(f"{path}:{number}: the header ends without a line `-- {word} …`")
    if not any(text.strip() for _, text in sections["RETURNS"]):
        raise ScriptError(f"{path}:{sections['RETURNS'][0][0]}: RETURNS is empty")
    return _names(path, sections["KEYS"]), _names(path, sections["ARGV"])


def _names(path: Path, section: list[tuple[int, str]]) -> list[str]:
    """The names of a KEYS or ARGV list; those that may occur many times end with `[]`, their spaces become `_`."""
    first = section[0][0]
    text = "\n".join(text for _, text in section)
    if text.strip() in ("none", "(none)"):
        return []
    text = _REMARK.sub(lambda remark: re.sub(r"[^\n]", " ", remark[0]), text)
    dividers = list(_DIVIDER.finditer(text))
    starts = [0, *(divider.end() for divider in dividers)]
    ends = [*(divider.start() for divider in dividers), len(text)]
    names: list[str] = []
    for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
        group = _FOR_EACH.fullmatch(text, start, end)
        assert group is not None  # every part of it may be empty
        repeated = index > 0 or bool(group["prefix"] or group["suffix"])
        names += _group(path, first, text, group.span("names"), repeated, ends_list=end == len(text))
    return names


def _group(path: Path, first: int, text: str, span: tuple[int, int], repeated: bool, ends_list: bool) -> list[str]:
    """The names between two dividers. `first` is the number of the line in which `text` begins."""
    names: list[str] = []
    start, end = span
    group = text[start:end].rstrip()
    for part in (group if ends_list else group.removesuffix(",")).split(","):
        name = part.strip()
        number = first + text.count("\n", 0, start + len(part) - len(part.lstrip()))
        start += len(part) + 1
        if not (_REPEATED_NAME if repeated else _NAME).fullmatch(name):
            raise ScriptError(f"{path}:{number}: {name!r} is not a name: use lower-case words, commas, or `none`")
        if name in names:
            raise ScriptError(f"{path}:{number}: {name!r} is listed twice")
        names.append(name)
    return [name.removesuffix("[]").replace(" ", "_") + "[]" for name in names] if repeated else names
