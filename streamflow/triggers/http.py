"""Webhooks: an ASGI application, by itself or mounted in another one.

Owns: the source `webhook`, what is refused before it is read, and the status of each answer. Must not: parse bodies,
map deliveries. Called by: user code (makes sources, mounts the application), `trigger http`.

    POST /path ── length ── body, within its limit and time ── signature ── mapped ── stored ── 202

202 says that the server has what the delivery is for. Until then the sender has it: 503 tells it to send it again.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

import anyio
import msgspec

from streamflow.client.client import Client
from streamflow.errors import PayloadInvalid, StreamflowError, UsageError
from streamflow.triggers.receiver import Receiver, received_now
from streamflow.triggers.signatures import Refused, Signature, Slack
from streamflow.workflow.app import App
from streamflow.workflow.trigger import Source

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_log = logging.getLogger("streamflow.triggers")

MAX_BODY = 1024 * 1024
BODY_SECONDS = 10.0
"""Seconds in which a body has to be there."""
AT_ONCE = 100
"""Requests whose bodies are in memory; others are told to come again."""
RETRY_AFTER = 5
_NEVER = frozenset({"authorization", "cookie", "proxy-authorization"})
"""Headers that no function gets, and no quarantine: they are secrets."""


class Webhook(Source):
    """Made by `webhook`."""

    kind = "http"

    def __init__(self, path: str, signature: Signature | None, id_header: str, max_body: int) -> None:
        self.path = path
        self.signature = signature
        self.id_header = id_header.lower()
        self.max_body = max_body

    @property
    def about(self) -> str:
        signed = "unsigned" if self.signature is None else self.signature.name
        return f"POST {self.path} ({signed})"

    def check_secrets(self) -> None:
        """Raises `UsageError` if one is missing."""
        if self.signature is not None:
            self.signature.check_secrets()


def webhook(
    path: str, /, *, signature: Signature | None = None, id_header: str = "Idempotency-Key", max_body: int = MAX_BODY
) -> Webhook:
    """Deliveries by HTTP POST to `path`.

    `signature`: `sf.triggers.github`, `stripe`, `slack` or `hmac`; without one anybody who reaches the address can
    deliver. `id_header`: the header that has what tells deliveries apart, where the signature's sender doesn't say it;
    without that header it is the body: the same body again is the same delivery. `max_body`: bytes, at most 2 MB.

    Raises `UsageError`.
    """
    if not path.startswith("/") or not path.isascii() or any(sign in path for sign in "?#{} "):
        raise UsageError(f"the path of a webhook begins with a slash, and has no query: {path!r}")
    if signature is not None and not isinstance(signature, Signature):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"signature is one of sf.triggers.github, stripe, slack and hmac, got {signature!r}")
    if not 1 <= max_body <= 2 * MAX_BODY:
        raise UsageError(f"max_body is 1 to {2 * MAX_BODY:,} bytes, got {max_body!r}")
    return Webhook(path, signature, id_header, max_body)


class _Answer(Exception):
    """The status and the body of an answer, and other headers."""

    def __init__(self, status: int, error: str = "", headers: list[tuple[bytes, bytes]] | None = None) -> None:
        super().__init__(status)
        self.status = status
        self.body = msgspec.json.encode({"error": error}) if error else b""
        self.headers = [*(headers or []), *([(b"content-type", b"application/json")] if error else [])]


class Webhooks:
    """The ASGI application for the webhooks of an app, or those of some `names`. It doesn't close the `client`.

    >>> api.mount("/hooks", sf.triggers.Webhooks(flows.app, client))
    """

    def __init__(
        self, app: App, client: Client, *, names: Collection[str] = (), now: Callable[[], float] = time.time
    ) -> None:
        self._now = now
        self._receivers: dict[str, tuple[Webhook, Receiver]] = {}
        self._at_once = 0
        for trigger in app.triggers.values():
            source = trigger.source
            if not isinstance(source, Webhook) or (names and trigger.name not in names):
                continue
            other = self._receivers.get(source.path)
            if other is not None:
                raise UsageError(f"triggers {other[1].trigger.name} and {trigger.name} have one path: {source.path}")
            source.check_secrets()
            self._receivers[source.path] = source, Receiver(client, trigger)

    @property
    def receivers(self) -> list[Receiver]:
        return [receiver for _, receiver in self._receivers.values()]

    @property
    def paths(self) -> list[str]:
        return list(self._receivers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise UsageError(f"webhooks are HTTP, got a connection of type {scope['type']}")
        try:
            answer = await self._answer(scope, receive)
        except _Answer as refusal:
            answer = refusal
        except StreamflowError as error:  # the server, or too many that hang
            _log.warning("a webhook was told to come again: %s", error)
            answer = _again("the delivery can't be stored now: deliver it again")
        except Exception:
            _log.exception("a webhook could not be answered")
            answer = _Answer(500, "internal error")
        if answer is not None:
            headers = [*answer.headers, (b"content-length", str(len(answer.body)).encode())]
            await send({"type": "http.response.start", "status": answer.status, "headers": headers})
            await send({"type": "http.response.body", "body": answer.body})

    async def _answer(self, scope: Scope, receive: Receive) -> _Answer | None:
        path = scope["path"]
        root = scope.get("root_path", "")
        if root and path.startswith(root):
            path = path[len(root) :]
        found = self._receivers.get(path)
        if found is None:
            raise _Answer(404, "there is no webhook at this path")
        if scope["method"] != "POST":
            raise _Answer(405, "deliver by POST", [(b"allow", b"POST")])
        source, receiver = found
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        _check_length(headers.get("content-length", ""), source.max_body)
        if self._at_once >= AT_ONCE:
            raise _again("too many deliveries at once: deliver it again")
        self._at_once += 1
        try:
            body = await _body(receive, source.max_body)
            return None if body is None else await self._received(source, receiver, headers, body)
        finally:
            self._at_once -= 1

    async def _received(
        self, source: Webhook, receiver: Receiver, headers: dict[str, str], body: bytes
    ) -> _Answer | None:
        signature = source.signature
        if signature is not None:
            try:
                signature.check(headers, body, self._now())
            except Refused as refused:
                raise _Answer(401, str(refused)) from None
            if isinstance(signature, Slack) and (challenge := _challenge(body)):
                answer = _Answer(200, headers=[(b"content-type", b"text/plain")])
                answer.body = challenge.encode()
                return answer
        delivery_id = (
            (signature.delivery_id(headers, body) if signature is not None else "")
            or headers.get(source.id_header, "")
            or hashlib.sha256(body).hexdigest()
        )
        hidden = _NEVER | set(signature.headers if signature is not None else ())
        shown = {name: value for name, value in headers.items() if name not in hidden}
        try:
            received = received_now(delivery_id, body, shown)
        except PayloadInvalid as error:
            raise _Answer(400, str(error)) from None
        # Not everybody who reaches the address may fill the quarantine.
        outcome = await receiver.receive(received, keep=signature is not None)
        if outcome.reason:
            kept = " and is kept" if outcome.quarantined else ""
            raise _Answer(422, f"the delivery can't be processed{kept}")
        if not outcome.runs:
            return _Answer(204)
        answer = _Answer(202, headers=[(b"content-type", b"application/json")])
        answer.body = msgspec.json.encode({"runs": outcome.runs})
        return answer


def _check_length(text: str, most: int) -> None:
    """Refuse what says that it is too long, before any of it is read."""
    if not text:
        return
    if not (text.isascii() and text.isdigit()):
        raise _Answer(400, "Content-Length is not a number")
    if len(text) > 12 or int(text) > most:
        raise _too_long(most)


async def _body(receive: Receive, most: int) -> bytes | None:
    """None if the sender has gone away."""
    parts: list[bytes] = []
    size = 0
    with anyio.move_on_after(BODY_SECONDS):
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            if size > most:
                raise _too_long(most)
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)
    raise _Answer(408, f"the body was not there within {BODY_SECONDS:g} s", [(b"connection", b"close")])


def _too_long(most: int) -> _Answer:
    return _Answer(413, f"a body has at most {most} bytes", [(b"connection", b"close")])


def _again(error: str) -> _Answer:
    return _Answer(503, error, [(b"retry-after", str(RETRY_AFTER).encode())])


class _Challenge(msgspec.Struct):
    type: str = ""
    challenge: str = ""


def _challenge(body: bytes) -> str:
    """Slack's, with which it checks an address; empty for anything else."""
    try:
        found = msgspec.json.decode(body, type=_Challenge)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    return found.challenge if found.type == "url_verification" else ""


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            await send({"type": "lifespan.shutdown.complete"})
            return
