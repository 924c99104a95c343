"""Signatures of webhooks: that a body comes from who knows the secret, and how its sender tells deliveries apart.

Owns: GitHub's, Stripe's and Slack's forms, and a plain HMAC. Must not: keep or show a secret. Called by: user code
(makes them), the HTTP application (checks).

Each is HMAC-SHA256 with a shared secret. Forms, from the senders' documentation: GitHub `X-Hub-Signature-256:
sha256=<hex of body>`; Stripe `Stripe-Signature: t=<s>,v1=<hex of "t.body">`; Slack `X-Slack-Signature: v0=<hex of
"v0:time:body">` with `X-Slack-Request-Timestamp`. Those with a time are refused when it is more than five minutes off,
so that what somebody has recorded can't be sent again later.
"""

from __future__ import annotations

import abc
import hashlib
import hmac as hmac_module
from collections.abc import Mapping

import msgspec

from streamflow.errors import UsageError
from streamflow.triggers.secret import Secret

TOLERANCE = 300.0
"""Seconds by which the time of a signature may be off."""


class Refused(Exception):
    """The signature doesn't fit. The text is for the sender: it has nothing of the secret or of what would fit."""


class _Identified(msgspec.Struct):
    id: str = ""
    event_id: str = ""


class Signature(abc.ABC):
    """How deliveries are signed. `headers`: those that are part of it, in lower case, which no function gets."""

    name: str
    headers: tuple[str, ...]

    def __init__(self, *secrets: Secret) -> None:
        if not secrets or not all(isinstance(one, Secret) for one in secrets):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(
                f"{self.name} takes sf.triggers.secret(…), the name of where the secret is; several while it changes"
            )
        self._secrets = secrets

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(map(repr, self._secrets))})"

    def check_secrets(self) -> None:
        """Raises `UsageError` if one is missing."""
        for one in self._secrets:
            one.read()

    @abc.abstractmethod
    def check(self, headers: Mapping[str, str], body: bytes, now: float) -> None:
        """Raises `Refused` unless the body is signed. `now`: s since the epoch."""

    @abc.abstractmethod
    def delivery_id(self, headers: Mapping[str, str], body: bytes) -> str:
        """What is the same when the sender delivers it again; empty if nothing says it."""

    def _fits(self, signed: bytes, given: list[str]) -> bool:
        """Whether one of the given hex digests is that of what is signed. Takes as long whichever fits, or none."""
        fits = False
        for one in self._secrets:
            expected = hmac_module.new(one.read().encode(), signed, hashlib.sha256).hexdigest().encode()
            for text in given:
                fits |= hmac_module.compare_digest(expected, text.encode(errors="replace"))
        return fits


class GitHub(Signature):
    name = "github"
    headers = ("x-hub-signature-256", "x-hub-signature")

    def check(self, headers: Mapping[str, str], body: bytes, now: float) -> None:
        given = headers.get("x-hub-signature-256", "")
        if not given.startswith("sha256=") or not self._fits(body, [given.removeprefix("sha256=")]):
            raise Refused("X-Hub-Signature-256 is missing or doesn't fit the body")

    def delivery_id(self, headers: Mapping[str, str], body: bytes) -> str:
        return headers.get("x-github-delivery", "")


class Stripe(Signature):
    name = "stripe"
    headers = ("stripe-signature",)

    def check(self, headers: Mapping[str, str], body: bytes, now: float) -> None:
        parts = [part.strip().partition("=") for part in headers.get("stripe-signature", "").split(",")[:20]]
        times = [value for name, _, value in parts if name == "t"]
        given = [value for name, _, value in parts if name == "v1"]
        if len(times) != 1 or not self._fits(f"{times[0]}.".encode() + body, given):
            raise Refused("Stripe-Signature is missing or doesn't fit the body")
        _check_time(times[0], now)

    def delivery_id(self, headers: Mapping[str, str], body: bytes) -> str:
        return _identified(body).id


class Slack(Signature):
    name = "slack"
    headers = ("x-slack-signature",)

    def check(self, headers: Mapping[str, str], body: bytes, now: float) -> None:
        at, given = headers.get("x-slack-request-timestamp", ""), headers.get("x-slack-signature", "")
        signed = f"v0:{at}:".encode() + body
        if not given.startswith("v0=") or not self._fits(signed, [given.removeprefix("v0=")]):
            raise Refused("X-Slack-Signature is missing or doesn't fit the body")
        _check_time(at, now)

    def delivery_id(self, headers: Mapping[str, str], body: bytes) -> str:
        # A command or an interaction has no id: its time and body tell it apart, and are the same in no other.
        found = _identified(body).event_id
        return found or headers.get("x-slack-request-timestamp", "") + hashlib.sha256(body).hexdigest()


class Hmac(Signature):
    name = "hmac"

    def __init__(self, *secrets: Secret, header: str, prefix: str) -> None:
        super().__init__(*secrets)
        self._header = header.lower()
        self._prefix = prefix
        self.headers = (self._header,)

    def check(self, headers: Mapping[str, str], body: bytes, now: float) -> None:
        given = headers.get(self._header, "")
        if not given.startswith(self._prefix) or not self._fits(body, [given.removeprefix(self._prefix)]):
            raise Refused(f"{self._header} is missing or doesn't fit the body")

    def delivery_id(self, headers: Mapping[str, str], body: bytes) -> str:
        return ""


def github(*secrets: Secret) -> Signature:
    """GitHub's, and Gitea's: the delivery is known by `X-GitHub-Delivery`."""
    return GitHub(*secrets)


def stripe(*secrets: Secret) -> Signature:
    """Stripe's, at most five minutes old: the delivery is known by the event's `id`."""
    return Stripe(*secrets)


def slack(*secrets: Secret) -> Signature:
    """Slack's, at most five minutes old: the delivery is known by `event_id`, a command by its time and body. The
    challenge with which Slack checks an address is answered."""
    return Slack(*secrets)


def hmac(*secrets: Secret, header: str = "X-Signature", prefix: str = "") -> Signature:
    """The hex HMAC-SHA256 of the body in `header`, behind `prefix`, as many other senders have it."""
    return Hmac(*secrets, header=header, prefix=prefix)


def _check_time(text: str, now: float) -> None:
    if not (text.isascii() and text.isdigit() and len(text) < 12) or abs(now - int(text)) > TOLERANCE:
        raise Refused(f"the time of the signature is more than {TOLERANCE:g} s off")


def _identified(body: bytes) -> _Identified:
    try:
        return msgspec.json.decode(body, type=_Identified)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Identified()
