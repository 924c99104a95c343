"""The URL of a server: what may be in it, and how it is shown.

Owns: the schemes and options that are allowed, the checks of their values, and leaving out what is secret.
Must not: connect, or put a part of a URL into an error before it is known to be harmless. Called by: settings,
connection, the command line.

redis-py takes every option of a URL as an argument of its connections. Most would break a promise of this package
without a word (`decode_responses`, `protocol`, `retry_on_timeout`, `socket_timeout`), so only these are let through.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

from streamflow.errors import UsageError

USUAL = "redis://127.0.0.1:6379"
FOLDER, SOCKET = ".streamflow", "server.sock"
"""Where `streamflow dev` keeps its data in the working directory, and the socket of its server in there."""
SCHEMES = (
    "redis://",
    "rediss://",
    "unix://",
    "redis+sentinel://",
    "rediss+sentinel://",
    "redis+cluster://",
    "rediss+cluster://",
)
SENTINEL = ("redis+sentinel", "rediss+sentinel")
"""The schemes of URLs that name Sentinels and a service, whose primary is the server; the second one with TLS to all
of them."""
CLUSTER = ("redis+cluster", "rediss+cluster")
"""The schemes of URLs that name some nodes of a cluster; the second one with TLS to all nodes."""
SECURE = ("rediss", "rediss+sentinel", "rediss+cluster")
"""The schemes with TLS."""
SERVER_PORT = 6379
SENTINEL_PORT = 26379

_SHAPE = (
    "it must look like redis://user:password@host:6379/0, with the special characters of user and password "
    "percent-encoded"
)
_SENTINELS = (
    "it must look like redis+sentinel://user:password@host:26379,host:26379/service, with the special characters of "
    "user and password percent-encoded"
)
_NODES = (
    "it must look like redis+cluster://user:password@host:6379,host:6379, with the special characters of user and "
    "password percent-encoded"
)
_ONE_DATABASE = "a cluster has only the database 0, so leave it out"
_ADDRESS = r"(?:[\w.-]+|\[[0-9a-fA-F:.]+\])(?::\d{1,5})?"
_HOST = re.compile(rf"{_ADDRESS}(/\d*)?")
_HOSTS = re.compile(rf"{_ADDRESS}(,{_ADDRESS})*/[\w.-]+")
_CLUSTER_HOSTS = re.compile(rf"{_ADDRESS}(,{_ADDRESS})*(/\d*)?")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,30}://")
_PASSWORD = re.compile(r"://\S*@|[?&](ssl_|sentinel_)?password=")
_SERVER = re.compile(r"\b(?:rediss?(?:\+sentinel|\+cluster)?|unix)://\S*[@?]\S*")


def _number(value: str) -> str:
    return "" if value.isascii() and value.isdigit() and len(value) < 6 else "a number"


def _text(value: str) -> str:
    return "" if value else "a value"


def _file(value: str) -> str:
    return "" if Path(value).is_file() else "a file that exists"


def _directory(value: str) -> str:
    return "" if Path(value).is_dir() else "a directory that exists"


def _certificates(value: str) -> str:
    return "" if value in ("none", "optional", "required") else "none, optional or required"


def _switch(value: str) -> str:
    return "" if value.lower() in ("true", "false", "yes", "no", "1", "0") else "true or false"


_TLS = "ssl_"
_OF_SENTINELS = "sentinel_"
_OPTIONS: dict[str, Callable[[str], str]] = {
    "db": _number,
    "username": _text,
    "password": _text,
    "ssl_ca_certs": _file,
    "ssl_ca_path": _directory,
    "ssl_ca_data": _text,
    "ssl_certfile": _file,
    "ssl_keyfile": _file,
    "ssl_password": _text,
    "ssl_cert_reqs": _certificates,
    "ssl_check_hostname": _switch,
    "sentinel_username": _text,
    "sentinel_password": _text,
}
"""Option -> its check: what the value must be if it isn't, else an empty string."""


class SentinelUrl(NamedTuple):
    """What a URL with Sentinels says. `server`: the URL for the service's primary, with the first Sentinel's address in
    the place of its own. `username` and `password`: those for the Sentinels, empty for none. `is_secure`: with TLS."""

    addresses: tuple[tuple[str, int], ...]
    service: str
    server: str
    username: str
    password: str
    is_secure: bool


def sentinels_of(url: str) -> SentinelUrl | None:
    """Of a URL that `check_url` has accepted; None when it isn't one with Sentinels."""
    parts = urlsplit(url)
    if parts.scheme not in SENTINEL:
        return None
    credentials, at, hosts = parts.netloc.rpartition("@")
    addresses = tuple(_address(host, SENTINEL_PORT) for host in hosts.split(","))
    options = dict(parse_qsl(parts.query))
    username, password = (options.pop(f"{_OF_SENTINELS}{name}", "") for name in ("username", "password"))
    server = (
        f"{parts.scheme.partition('+')[0]}://{credentials}{at}{hosts.partition(',')[0]}?{urlencode(options)}".rstrip(
            "?"
        )
    )
    return SentinelUrl(addresses, unquote(parts.path)[1:], server, username, password, is_secure(url))


class ClusterUrl(NamedTuple):
    """What a URL with nodes of a cluster says. `addresses`: the nodes that are asked which others there are. `before`
    and `after`: what is around the address in the URL of one node: scheme and credentials, options."""

    addresses: tuple[tuple[str, int], ...]
    before: str
    after: str
    is_secure: bool

    def node(self, host: str, port: int) -> str:
        """The URL of one node, with the credentials and options of this one."""
        return f"{self.before}{f'[{host}]' if ':' in host else host}:{port}{self.after}"


def cluster_of(url: str) -> ClusterUrl | None:
    """Of a URL that `check_url` has accepted; None when it isn't one with nodes of a cluster."""
    parts = urlsplit(url)
    if parts.scheme not in CLUSTER:
        return None
    credentials, at, hosts = parts.netloc.rpartition("@")
    addresses = tuple(_address(host, SERVER_PORT) for host in hosts.split(","))
    options = [(name, value) for name, value in parse_qsl(parts.query) if name != "db"]  # 0, the only one
    after = f"?{urlencode(options)}" if options else ""
    return ClusterUrl(addresses, f"{parts.scheme.partition('+')[0]}://{credentials}{at}", after, is_secure(url))


def is_secure(url: str) -> bool:
    """Whether it is a URL with TLS."""
    return url.partition("://")[0] in SECURE


def _address(host: str, usual_port: int) -> tuple[str, int]:
    """Raises `ValueError`."""
    parts = urlsplit(f"//{host}")
    return parts.hostname or "", parts.port or usual_port


def default_url() -> str:
    """The server of this user's `streamflow dev` in the working directory, if there is one, else `USUAL`."""
    link = Path(FOLDER, SOCKET)
    try:
        path = link.resolve()
        is_own = link.lstat().st_uid == path.stat().st_uid == os.geteuid() and path.is_socket()
    except (OSError, AttributeError):  # there is none; no users on this system
        return USUAL
    return f"unix://{quote(str(path))}" if is_own else USUAL


def check_url(url: str) -> None:
    """Raises `UsageError` for a URL that can't be used: its scheme, its shape, or the name of the option is named."""
    if not url.startswith(SCHEMES):
        raise UsageError(f"can't use the server URL {redacted(url)!r}: it must start with one of {', '.join(SCHEMES)}")
    try:
        parts = urlsplit(url)
        _check_addresses(parts)
        options = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        # Without the reason, which can quote a part of the password (one with a `/` is parsed as host:port).
        raise UsageError(f"can't use the server URL {redacted(url)!r}: {_shape(url)}") from None
    database = unquote(parts.path).removeprefix("/")
    if parts.fragment or (parts.scheme != "unix" and "@" in parts.path):
        raise UsageError(
            f"can't use the server URL {redacted(url)!r}: {_shape(url)}"
        )  # a password with a `#`, `/` or `?`
    if parts.scheme not in ("unix", *SENTINEL) and database and _number(database):
        raise UsageError(f"can't use the server URL {redacted(url)!r}: behind the host stands the database, a number")
    if parts.scheme in CLUSTER and database.strip("0"):
        raise UsageError(f"can't use the server URL {redacted(url)!r}: {_ONE_DATABASE}")
    seen: set[str] = set()
    for name, value in options:
        _check_option(url, parts.scheme, name, value)
        if name in seen:
            raise UsageError(f"can't use the server URL {redacted(url)!r}: the option {name} is given twice")
        seen.add(name)
    if "ssl_keyfile" in seen and "ssl_certfile" not in seen:
        raise UsageError(f"can't use the server URL {redacted(url)!r}: the option ssl_keyfile needs ssl_certfile")


def _shape(url: str) -> str:
    """What such a URL must look like."""
    scheme = url.partition("://")[0]
    return _SENTINELS if scheme in SENTINEL else _NODES if scheme in CLUSTER else _SHAPE


def _check_addresses(parts: SplitResult) -> None:
    """Raises `ValueError`."""
    if parts.scheme not in (*SENTINEL, *CLUSTER):
        _ = parts.port
        return
    hosts = parts.netloc.rpartition("@")[2]
    if not (_HOSTS if parts.scheme in SENTINEL else _CLUSTER_HOSTS).fullmatch(f"{hosts}{parts.path}"):
        raise ValueError("not addresses, and a service or the database")
    for host in hosts.split(","):
        _address(host, SERVER_PORT)


def _check_option(url: str, scheme: str, name: str, value: str) -> None:
    check = _OPTIONS.get(name)
    head = f"can't use the server URL {redacted(url)!r}"
    if check is None:
        # An unknown name may be a part of a password with a `?` or `&` in it.
        shown = (
            f"the option {name}"
            if re.fullmatch(r"[a-z][a-z_]{0,39}", name) and "@" not in url.partition("?")[2]
            else "an option"
        )
        others = tuple(prefix for prefix, of in ((_TLS, SECURE), (_OF_SENTINELS, SENTINEL)) if scheme not in of)
        allowed = ", ".join(known for known in _OPTIONS if not known.startswith(others))
        raise UsageError(f"{head}: {shown} is not allowed; allowed are {allowed}")
    if name.startswith(_TLS) and scheme not in SECURE:
        raise UsageError(
            f"{head}: the option {name} needs TLS: use rediss{scheme.removeprefix('redis').removeprefix('unix')}://"
        )
    if name.startswith(_OF_SENTINELS) and scheme not in SENTINEL:
        raise UsageError(
            f"{head}: the option {name} needs Sentinels: use {'rediss' if scheme in SECURE else 'redis'}+sentinel://"
        )
    if wanted := check(value):
        raise UsageError(f"{head}: the option {name} must be {wanted}")
    if name == "db" and scheme in CLUSTER and value.strip("0"):
        raise UsageError(f"{head}: {_ONE_DATABASE}")


def redacted(url: str) -> str:
    """The URL without user, password and options: scheme, host, port and database, or the path of a socket,
    or the addresses of Sentinels and the service, or those of a cluster's nodes.

    What could be a part of a password, because the URL is not well formed, is left out, too.
    """
    match = _SCHEME.match(url)
    scheme, rest = (match[0], url[match.end() :]) if match else ("", url)
    address, _, options = rest.partition("?")
    user, at, host = address.rpartition("@")
    if "@" in options and not at:
        return f"{scheme}***"  # a `?` in the password, or an `@` in an option: which part is the host isn't clear
    mark = "***@" if at else ""
    if scheme == "unix://" and "@" not in options and not user.count("/"):
        return f"{scheme}{mark}{host}"
    kind = scheme.removesuffix("://")
    shape = _HOSTS if kind in SENTINEL else _CLUSTER_HOSTS if kind in CLUSTER else _HOST
    return f"{scheme}{mark}{host if shape.fullmatch(host) and '@' not in options else '***'}"


def masked(text: str) -> str:
    """`text` without what is secret in the URLs of servers in it."""
    return _SERVER.sub(lambda match: _shown(match[0]), text) if "://" in text else text


def _shown(word: str) -> str:
    url = word.rstrip(".,:;!'\")]}>")
    return redacted(url) + word[len(url) :]


def has_password(text: str) -> bool:
    """Whether a text looks like a URL with a password in it."""
    return _PASSWORD.search(text) is not None
