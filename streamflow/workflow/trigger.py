"""What a trigger is: where deliveries come from, and the function that says what each is for.

Owns: `Delivery`, `Source`, `Trigger`, and how a payload is decoded as the function's annotation says. Must not: receive
or do anything (`streamflow/triggers/` does). Called by: the app, the kinds of triggers, what receives.
"""

from __future__ import annotations

import abc
import inspect
import typing
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar, Generic, TypeVar

import msgspec

from streamflow.errors import PayloadInvalid, UsageError
from streamflow.model.names import check_name

T = TypeVar("T")


class Delivery(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """One thing that came, as the function of a trigger gets it.

    `id`: the same whenever it is delivered again. `payload`: what came, decoded as `Delivery[T]` says; `bytes` is the
    body as it is. `headers`: in lower case; of a stream's entry its other fields, of a file nothing. `at`: when it was
    received first by this process. `trigger`: its name.
    """

    id: str
    payload: T
    headers: Mapping[str, str]
    at: datetime
    trigger: str


class Received(msgspec.Struct, frozen=True, kw_only=True):
    """What a source has received. `body`: JSON or other bytes. `id`: as in `Delivery`. `at`: ms since the epoch.
    `whole_size`: bytes, if `body` is only the beginning of what came; else 0."""

    id: str
    body: bytes
    headers: dict[str, str] = {}
    at: int = 0
    whole_size: int = 0


class Source(abc.ABC):
    """Where deliveries come from. Each kind is a class in a file of its own, `streamflow/triggers/<kind>.py`."""

    kind: ClassVar[str]

    @property
    @abc.abstractmethod
    def about(self) -> str:
        """What it receives from, in a few words, without secrets."""


class Trigger(Generic[T]):
    """A function that maps deliveries of a source to what they are for. Made by `@app.trigger`, called as it was."""

    def __init__(self, source: Source, function: Callable[[Delivery[T]], Any], name: str) -> None:
        self.source = source
        self.function = function
        self.name = check_name("trigger", name)
        self.type: Any = _payload_type(name, function)
        """The payload's."""
        self._decoder: Any = None
        self.__doc__ = function.__doc__

    def __call__(self, delivery: Delivery[T]) -> Any:
        return self.function(delivery)

    def __repr__(self) -> str:
        return f"<trigger {self.name}: {self.source.about}>"

    def delivery(self, received: Received) -> Delivery[T]:
        """What its function gets. Raises `PayloadInvalid`."""
        return Delivery(
            id=received.id,
            payload=self._payload(received.body),
            headers=received.headers,
            at=datetime.fromtimestamp(received.at / 1000, UTC),
            trigger=self.name,
        )

    def _payload(self, body: bytes) -> Any:
        if self.type is bytes:
            return body
        try:
            if self.type is str:
                return body.decode()
            if self._decoder is None:
                self._decoder = msgspec.json.Decoder(self.type)
            return self._decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise PayloadInvalid(f"a delivery to trigger {self.name} can't be decoded: {error}") from None


def _payload_type(name: str, function: Any) -> Any:
    """T of the only parameter, `Delivery[T]`. Raises `UsageError`."""
    wants = f"trigger {name} must be a plain function with one parameter: def {name}(delivery: sf.triggers.Delivery[…])"
    if not callable(function) or inspect.iscoroutinefunction(function):
        raise UsageError(f"{wants}; it says what a delivery is for, and acts on nothing")
    parameters = list(inspect.signature(function).parameters.values())
    if len(parameters) != 1:
        raise UsageError(f"{wants}, got {len(parameters)}")
    try:
        annotation = typing.get_type_hints(function).get(parameters[0].name, Delivery[Any])
    except NameError as error:
        raise UsageError(f"trigger {name}: its annotation can't be resolved: {error}") from None
    if annotation is Delivery:
        return Any
    if typing.get_origin(annotation) is not Delivery:
        raise UsageError(f"{wants}, got {annotation!r}")
    payload = typing.get_args(annotation)[0]
    try:
        msgspec.json.Decoder(payload)
    except (TypeError, NameError) as error:
        raise UsageError(f"trigger {name}: its payload can't be of type {payload!r}: {error}") from None
    return payload
