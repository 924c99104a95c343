"""What a start asks for besides its input: when it begins, how long the run may take, which start it was.

Owns: the text of that, the eleventh word of a header. Most starts ask for nothing, and their headers don't have it.
Must not: know a clock: `lua/shared/open_run.lua` turns a delay into the time at which the run begins.
Called by: the client (encodes), the owner and listings (decode).
"""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_MS = 100 * 366 * 24 * 3600 * 1000
"""The longest delay and time-out."""
_FIELD = re.compile(r"([a-z])([0-9a-f]+)")


class StartWord(NamedTuple):
    """Ms: `begins` on the shard's clock, 0 for at once; `delay` from when the server takes it, which has set `begins`
    in a header; `timeout`, 0 for that of the workflow. `identity`: of the start, in hex, if it may be sent again."""

    begins: int = 0
    timeout: int = 0
    identity: str = ""
    delay: int = 0

    def __str__(self) -> str:
        """Empty if it asks for nothing. The identity is the last field: scripts look for it there."""
        fields = [
            f"d{self.delay}" if self.delay else "",
            f"b{self.begins}" if self.begins else "",
            f"t{self.timeout}" if self.timeout else "",
            f"i{self.identity}" if self.identity else "",
        ]
        return ",".join(field for field in fields if field)


NOTHING = StartWord()


def start_word(text: str) -> StartWord:
    """Fields that this release doesn't know are left out."""
    if not text:
        return NOTHING
    fields = {match[1]: match[2] for field in text.split(",") if (match := _FIELD.fullmatch(field))}
    return StartWord(_ms(fields.get("b", "")), _ms(fields.get("t", "")), fields.get("i", ""), _ms(fields.get("d", "")))


def _ms(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 16 else 0
