"""Text of users, made recordable: the one door through which it enters events, messages, headers and logs.

Owns: what becomes of text that can't be encoded, and how an exception is shown that can't show itself.
Must not: raise, whatever it is given. Called by: every layer.
"""

from __future__ import annotations

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


def text_of(error: BaseException) -> str:
    """`str(error)`; for an exception that can't be shown `<TypeError in __str__>`. Never raises."""
    return _shown(error)


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
