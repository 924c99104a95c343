"""TLS to the server: the certificates that a URL names, and what to do about an error.

Owns: reading the files, again when they were renewed, and a sentence of advice for each way in which a connection
fails. Must not: connect, or put a password into an error. Called by: `connection.py`, the command line.

redis-py reads the files once for each connection, and OpenSSL asks on the terminal for the password of a key that is
encrypted. Here one context serves all connections of a store, and no process waits for somebody to type.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from redis import exceptions as redis_errors
from redis.asyncio.connection import RedisSSLContext

from streamflow.errors import UsageError
from streamflow.server_url import is_secure, redacted

_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_EXPIRED, _NOT_YET, _OTHER_NAME, _OTHER_ADDRESS = 10, 9, 62, 64
"""OpenSSL's verification codes that have an advice of their own: with all others the CA isn't the one."""
_NOT_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNEXPECTED_MESSAGE", "UNKNOWN_PROTOCOL", "HTTP_REQUEST")
_DENIED = "no permissions"
IS_SENTINEL = "it is a Sentinel, not a server"


class TlsContext:
    """In the place of redis-py's `RedisSSLContext`: made by a function of that class's arguments, and made again when a
    file has changed, so that renewed certificates are used from the next connection on."""

    def __init__(self, url: str) -> None:
        options = dict(parse_qsl(urlsplit(url).query))
        self._url = url
        self._files = [options[name] for name in _FILES if name in options]
        maker: Any = RedisSSLContext  # its `get` has no types
        self._make: Callable[[], ssl.SSLContext] = lambda: maker(
            keyfile=options.get("ssl_keyfile"),
            certfile=options.get("ssl_certfile"),
            cert_reqs=options.get("ssl_cert_reqs", "required"),
            ca_certs=options.get("ssl_ca_certs"),
            ca_data=options.get("ssl_ca_data"),
            ca_path=options.get("ssl_ca_path"),
            check_hostname=options.get("ssl_check_hostname", "true").lower() in ("true", "yes", "1"),
            password=options.get("ssl_password", ""),  # None would let OpenSSL ask for it
        ).get()
        self._stamps: list[tuple[int, int]] = []
        self._context: ssl.SSLContext | None = None
        try:
            self.get()
        except redis_errors.ConnectionError as error:
            raise UsageError(f"can't use the server URL {redacted(url)!r}: {error}") from None

    def get(self) -> ssl.SSLContext:
        """Raises redis-py's `ConnectionError` when the files can't be used, as while they are being renewed."""
        try:
            stamps = [(file.st_mtime_ns, file.st_size) for file in map(Path.stat, map(Path, self._files))]
            if self._context is None or stamps != self._stamps:
                self._context, self._stamps = self._make(), stamps
        except (OSError, ValueError) as error:  # SSLError is an OSError
            raise redis_errors.ConnectionError(_about_files(error)) from error
        return self._context


def _about_files(error: OSError | ValueError) -> str:
    reason = getattr(error, "reason", None) or ""
    if reason == "KEY_VALUES_MISMATCH":
        return "the key in ssl_keyfile doesn't belong to the certificate in ssl_certfile"
    if reason == "NO_CERTIFICATE_OR_CRL_FOUND":
        return "there is no certificate in what ssl_ca_certs names: it must be a PEM file"
    if isinstance(error, ssl.SSLError) or getattr(error, "errno", None) == 22:
        return (
            "the files of ssl_certfile and ssl_keyfile can't be read: they must be PEM files, with ssl_password if the "
            "key is encrypted"
        )
    return f"the files for TLS can't be read: {error}"


def advice(
    url: str, error: BaseException | None, otherwise: str = "Is the server running? `streamflow dev` starts one"
) -> str:
    """What to do about a connection that failed; `error` None: nothing was answered in time. Begins with a capital.

    `otherwise`: what to say where the error doesn't tell more."""
    causes = list(_chain(error))
    is_tls = is_secure(url)
    kind = next((kind for kind in ("+sentinel", "+cluster") if f"{kind}://" in url), "")
    plain, secure = f"redis{kind}://", f"rediss{kind}://"
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _about_certificate(cause)
        if isinstance(cause, ssl.SSLError) and str(cause.reason).startswith(_NOT_TLS):
            return f"This port doesn't speak TLS: use the server's TLS port, or {plain}"
    text = str(error)
    if _DENIED in text:
        return "`streamflow acl` prints the rules that the user needs"
    if IS_SENTINEL in text:
        return f"Use {'rediss' if is_tls else 'redis'}+sentinel://HOST:PORT/SERVICE"
    if is_tls and (error is None or "in time" in text or "imeout" in text):
        return f"Is it the server's TLS port? If it is the plain one, use {plain}"
    if any(word in text for word in ("reset by peer", "closed", "EOF", "alert", "ALERT", "Broken pipe")):
        if not is_tls:
            return f"Is the server running? If this is its TLS port, use {secure}"
        if "ssl_certfile=" in url:
            return (
                "Is the server running? It may refuse the client certificate: that must be signed by a CA in the "
                "server's tls-ca-cert-file, and not have expired"
            )
        return (
            "Is the server running? It may demand a client certificate: add ssl_certfile=FILE and ssl_keyfile=FILE to "
            "the URL"
        )
    return otherwise


def _about_certificate(error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code == _EXPIRED:
        return "The server's certificate, or that of its CA, has expired: renew it"
    if error.verify_code == _NOT_YET:
        return "The server's certificate isn't valid yet: compare the clocks of this machine and of its CA"
    if error.verify_code in (_OTHER_NAME, _OTHER_ADDRESS):
        return (
            "Use a host name in the URL that the server's certificate has (ssl_check_hostname=false accepts every "
            "certificate of its CA)"
        )
    return (
        "This machine doesn't trust the CA of the server's certificate: add ssl_ca_certs=FILE to the URL, with the PEM "
        "file of that CA"
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
