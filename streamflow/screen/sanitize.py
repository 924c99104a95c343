"""Text from outside made harmless for a terminal: every character either prints as itself or is made visible.

Owns: `safe`. Everything that comes from data (ids, names, messages, payloads, tracebacks) passes here before it becomes
a rich `Text`; it never becomes markup. Called by: all of the screen and the command line.

rich doesn't do this: `Text()` and `escape()` let ESC, OSC 52 (write to the clipboard), C1 controls and right-to-left
overrides through, and text with `[/]` used as markup raises.
"""

from __future__ import annotations

import unicodedata

from rich.text import Text

from streamflow.text import BLANK


def safe(text: str, limit: int | None = None) -> str:
    """`text` on one line, without control, bidi, zero-width or otherwise invisible characters.

    C0 controls and DEL become their pictures (␛ ␊ ␡), the others their code (⟨U+202E⟩), all kinds of blanks a space.
    Longer than `limit` characters: cut, with … at the end.
    """
    if limit is not None and len(text) > limit:
        text = text[: limit + 1]
    if not text.isprintable() or BLANK.search(text):
        text = "".join([char if char.isprintable() and not BLANK.match(char) else _visible(char) for char in text])
    if limit is not None and len(text) > limit:
        text = text[: max(limit - 1, 0)] + "…"
    return text


def safe_text(text: str, style: str = "", limit: int | None = None) -> Text:
    """`safe(text)` as a rich `Text` that doesn't wrap."""
    return Text(safe(text, limit), style=style, no_wrap=True, overflow="ellipsis", end="")


def _visible(char: str) -> str:
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    if unicodedata.category(char) == "Zs":
        return " "
    return f"⟨U+{code:04X}⟩"
