"""The URL of an archive: what may be in it, and how it is shown.

Owns: these checks. Must not: connect, import what speaks to a storage, or let a password into an error.
Called by: settings, the archive.

A password in the URL would be in the namespace's record, in logs and in `config`: credentials come from where the
storage's own library looks for them, as the environment or a file of its own.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from streamflow.errors import UsageError

NONE = "none"
"""Instead of a URL: the namespace has no archive any more."""
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_SHAPE = "write file:///var/lib/streamflow/archive, s3://bucket/folder, or another URL that fsspec knows"


def check_archive_url(url: str) -> str:
    """The URL itself, without a slash at its end. Raises `UsageError`."""
    if url in ("", NONE):
        return url
    scheme, separator, rest = url.partition("://")
    if "::" in url:
        raise UsageError(f"archive: a URL of several parts with :: between them is not taken; {_SHAPE}")
    if not separator or not _SCHEME.fullmatch(scheme) or not rest.strip("/"):
        raise UsageError(f"archive={shown_archive(url)!r} is not the URL of a storage: {_SHAPE}")
    if any(character.isspace() or not character.isprintable() for character in url):
        raise UsageError(f"archive: the URL has spaces or control characters; {_SHAPE}")
    if "?" in url or "#" in url:
        raise UsageError(f"archive: no options stand in the URL; {_SHAPE}")
    if _password_of(url):
        raise UsageError(
            f"archive={shown_archive(url)!r} has a password: it would be in the namespace's record and in logs. Give "
            "credentials where the storage's library looks for them, as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if scheme == "file" and not rest.startswith("/"):
        raise UsageError("archive: a directory needs its whole path, as in file:///var/lib/streamflow/archive")
    return url.rstrip("/")


def shown_archive(url: str) -> str:
    """The same without what may be secret, for messages and logs."""
    if url == NONE:
        return NONE
    scheme, separator, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    _, at, host = place.rpartition("@")
    return f"{scheme}{separator}{'***@' * bool(at)}{host}{slash}{path}".partition("?")[0] if separator else "***"


def _password_of(url: str) -> bool:
    try:
        return urlsplit(url).password is not None
    except ValueError:
        return True
