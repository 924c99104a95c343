"""Text of users, made recordable: the one door through which it enters events, messages, headers and logs.

Owns: what becomes of text that can't be encoded, how an exception is shown that can't show itself, and which characters
can't be seen. Must not: raise, whatever it is given. Called by: every layer.
"""

from __future__ import annotations

import re

BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0\U000e0100-\U000e01ef]")
"""Printable by their category, yet invisible: fillers, a joiner, and the variation selectors that can hide text."""

_SELECTORS = re.compile("[\ufe00-\ufe0f]")
"""The other variation selectors, without which a terminal shows many an emoji as a plain character."""

MAX_REASON = 4096
"""Bytes of a reason that is recorded: of a cancel, a refusal, a stuck run."""


def recordable(value: object, limit: int = MAX_REASON) -> str:
    """`value` as text of at most `limit` bytes of UTF-8: half a surrogate pair becomes an escape, the rest `…`.

    What is not a str is shown with `str()`.
    """
    text = value if type(value) is str else _shown(value)
    if len(text) <= limit and text.isascii():
        return text
    data = text[: limit + 1].encode("utf-8", "backslashreplace")
    if len(data) > limit:
        data = data[: max(limit - 3, 0)]
        return data.decode("utf-8", "ignore") + "…"
    return data.decode()


def visible_json(text: str) -> str:
    """JSON with all that can't be seen in it (control, bidi, zero-width and other invisible characters, blanks but the
    space) as `\\u` escapes: they can only be in strings. Line breaks, which can't be in strings, stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join([char if char == "\n" or _is_visible(char) else _escape(char) for char in text])


def _is_visible(char: str) -> bool:
    return char.isprintable() and not BLANK.match(char) and not _SELECTORS.match(char)


def _escape(char: str) -> str:
    pairs = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{pairs[at : at + 2].hex()}" for at in range(0, len(pairs), 2))


def plural(count: int, word: str) -> str:
    """`1 run`, `2,000 runs`."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def duration(ms: float) -> str:
    """`0.37 ms`, `8.2 ms`, `850 ms`, `3.2 s`, `42 s`, `4 m 10 s`, `2 h 05 m`, `3 d 04 h`."""
    if ms < 0:
        return f"-{duration(-ms)}"
    if ms < 999.5:
        return f"{ms:.2f} ms" if 0 < ms < 0.995 else f"{ms:.1f} ms" if 0 < ms < 9.95 else f"{ms:.0f} ms"
    seconds = ms / 1000
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, seconds = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} m {seconds:02} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes:02} m"
    days, hours = divmod(hours, 24)
    return f"{days:,} d {hours:02} h"


def size(count: int) -> str:
    """Bytes: `512 B`, `84 MB`, `1.2 GB` (powers of 1024)."""
    scaled = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if scaled < 1023.5:
            return f"{scaled:.0f} {unit}" if unit == "B" or scaled >= 9.95 else f"{scaled:.1f} {unit}"
        scaled /= 1024
    return f"{scaled:,.1f} TB"


def text_of(error: BaseException) -> str:
    """`str(error)`; for an exception that can't be shown `<TypeError in __str__>`. Never raises."""
    return _shown(error)


def is_a(error: BaseException, kinds: type[BaseException] | tuple[type[BaseException], ...]) -> bool:
    """`isinstance` for exceptions of user code, without running it: for a class that isn't one of `kinds`, that asks
    the exception for its `__class__`, which may be a property, or raise, or loop."""
    return issubclass(type(error), kinds)


def type_name(value: object) -> str:
    """The name of the value's class, whatever its metaclass says. Never raises."""
    name = type.__dict__["__name__"].__get__(type(value))
    return recordable(name, 256)


def _shown(value: object) -> str:
    try:
        if isinstance(value, str):
            return str.__str__(value)
        return str.__str__(str(value))  # a __str__ may return an instance of a subclass of str
    except BaseException as broken:  # also sys.exit(): an error in a __str__ must not stop the run's owner
        return f"<{type.__dict__['__name__'].__get__(type(broken))} in __str__>"
