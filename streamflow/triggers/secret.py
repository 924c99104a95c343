"""Secrets by name: where each is, never what it is.

Owns: reading one. Must not: show one, also not in an error. Called by: user code (names them), signatures, sources.
"""

from __future__ import annotations

import os
from pathlib import Path

from streamflow.errors import UsageError


class Secret:
    """Made by `secret`. It is read each time it is needed, so that a file may be replaced."""

    __slots__ = ("_file", "_variable")

    def __init__(self, variable: str, file: str) -> None:
        self._variable = variable
        self._file = file

    def __repr__(self) -> str:
        return f"secret(file={self._file!r})" if self._file else f"secret({self._variable!r})"

    def read(self) -> str:
        """Raises `UsageError` if it is missing or empty."""
        if self._file:
            try:
                found = Path(self._file).read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
                raise UsageError(f"the secret in {self._file} can't be read: {reason}") from None
            where = f"the file {self._file}"
        else:
            found = os.environ.get(self._variable, "").strip()
            where = f"the environment variable {self._variable}"
        if not found:
            raise UsageError(f"a secret is missing: {where} is empty or not set")
        return found


def secret(variable: str = "", *, file: str = "") -> Secret:
    """A secret by the name of the environment variable, or of the file, that has it. The secret itself is never given
    in code, and never shown. Raises `UsageError` unless one of the two is given.

    >>> sf.triggers.github(sf.triggers.secret("GITHUB_WEBHOOK_SECRET"))
    >>> sf.triggers.stripe(sf.triggers.secret(file="/run/secrets/stripe"))
    """
    if bool(variable) == bool(file):
        raise UsageError("secret(…) takes the name of an environment variable, or file=, the name of a file")
    return Secret(variable, file)
