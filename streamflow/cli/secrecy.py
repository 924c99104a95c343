"""Passwords that are given on the command line: neither other users nor an error message shows them.

Owns: taking a URL with a password out of the list of processes, and out of errors that quote an argument.
Must not: know what else a command's arguments mean. Called by: `main`, first; the group, for errors.
"""

from __future__ import annotations

import os
import sys

from streamflow.server_url import has_password, masked, redacted

OPTION = "--redis"
VARIABLE = "STREAMFLOW_REDIS"
_OTHERS = ("bench",)
"""Commands whose option has no variable."""


def hide_password() -> None:
    """Start this command once more, in this process, with a URL that has a password in the environment instead.

    Every user of the machine sees the arguments of all processes; the environment only their own user.
    """
    words = sys.argv[1:]
    url, rest = _without_url(words)
    original = sys.orig_argv
    if url is None or os.name != "posix" or words[0] in _OTHERS or original[-len(words) :] != words:
        return
    command = [*original[: -len(words)], *rest]
    os.execve(sys.executable, command, {**os.environ, VARIABLE: url})


def _without_url(words: list[str]) -> tuple[str | None, list[str]]:
    """The last URL, if it has a password, and the words without all of them."""
    url: str | None = None
    rest: list[str] = []
    given = iter(words)
    for word in given:
        if word == "--":
            rest += [word, *given]
        elif word == OPTION:
            url = next(given, None)
        elif word.startswith(f"{OPTION}="):
            url = word.removeprefix(f"{OPTION}=")
        else:
            rest.append(word)
    return (url if url is not None and has_password(url) else None), rest


def masked_arguments(message: str) -> str:
    """A message that may quote arguments of this command, without what is secret in them."""
    for word in sys.argv[1:]:
        name, is_option, value = word.partition("=")
        url = value if is_option and name.startswith("--") else word
        if has_password(url):
            message = message.replace(url, redacted(url))
    return masked(message)
