"""The known name that is most like a mistyped one.

Owns: `did_you_mean`. Must not: load `difflib` before something was mistyped.
Called by: settings, the group, `--app`, `worker`, `enqueue`.
"""

from __future__ import annotations

from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean …?` with the closest known name, or an empty string."""
    import difflib

    closest = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {closest[0]}?" if closest else ""
