"""Payloads: from Python values to opaque bytes and back, by the types that functions declare.

Owns: MessagePack encoding through msgspec, the size and depth limits, and the errors for invalid payloads.
Must not: know events or keys. Called by: definitions, machines, executor, client, CLI.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import logging
import typing
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Raw

from streamflow.errors import PayloadInvalid, PayloadTooLarge, decode_data_with
from streamflow.model.payload_types import (
    SCALARS,
    Declared,
    advice_for,
    decode_unknown,
    encode_unknown,
    examine,
    has_set,
    in_one_order,
    lost,
    scalars_of,
)
from streamflow.text import recordable, text_of

WARN_BYTES = 256 * 1024
MAX_BYTES = 2 * 1024 * 1024
MAX_DEPTH = 64
SMALL = 64
"""Bytes up to which a payload can neither be too large nor nested too deep."""
SIZED = frozenset({str, bytes})
CONTAINERS = frozenset({list, tuple, dict})
LOOKED_AT = 32
"""Parts of a value that are looked at before it is encoded..."""
FAR_TOO_LARGE = 4 * MAX_BYTES
"""...and bytes of them with which it isn't: a value that is hardly too large is encoded, so its error says its size."""

DECODE_ERRORS = (msgspec.DecodeError, msgspec.ValidationError, RecursionError, UnicodeDecodeError, ValueError)
"""Everything that decoding invalid data can raise: not all of it derives from `msgspec.DecodeError`."""

DECLINED = "StepDeclined"
"""Name of a base of failures that don't count as failures of the step: the process that was to begin the attempt has
code that doesn't fit it."""

_encoder = msgspec.msgpack.Encoder(enc_hook=encode_unknown)
_ADVICE = "Use plain types, dataclasses, msgspec Structs, attrs classes or pydantic models"
_log = logging.getLogger("streamflow.codec")


class StepDeclined(Exception):
    """Base of what a process reports instead of beginning an attempt; its name is in the outcome's `kinds`."""


class UnfitArguments(PayloadInvalid, StepDeclined):
    """Recorded arguments don't fit the parameters of today's function."""


def encode(value: object, what: str) -> bytes:
    """MessagePack. `what` names the payload in errors: `result of step fetch`. Equal sets give equal bytes in every
    process; dicts keep the order in which they were filled.

    Raises `PayloadInvalid`, `PayloadTooLarge`.
    """
    kind = type(value)
    if kind not in SCALARS:
        return _encode(value, what, has_set(value))
    if kind not in SIZED or len(value) <= SMALL:  # pyright: ignore[reportArgumentType, reportUnknownArgumentType]
        try:
            data = _encoder.encode(value)
        except Exception:  # it is encoded again, for the message
            data = b""
        if 0 < len(data) <= SMALL:
            return data
    return _encode(value, what, False)


def _encode(value: object, what: str, sets: bool) -> bytes:
    if (size := _least_size(value)) > FAR_TOO_LARGE:
        raise _too_large(what, f"at least {size:,}")
    try:
        data = _encoder.encode(in_one_order(value) if sets else value)
    except RecursionError:
        raise PayloadInvalid(f"the {what} is nested too deep (or contains itself); the limit is {MAX_DEPTH}") from None
    except UnicodeEncodeError as error:
        raise PayloadInvalid(
            f"the {what} can't be encoded: it has text that is not valid Unicode ({error.reason} at {error.start}). "
            "Pass text.encode('utf-8', 'replace').decode(), or bytes."
        ) from error
    except PayloadInvalid:
        raise
    except Exception as error:  # objects are user code
        reason = text_of(error)
        advice = "Pass a larger int as text." if "serialize ints" in reason else f"{_ADVICE}."
        raise PayloadInvalid(f"the {what} can't be encoded: {reason}. {advice}") from error
    if len(data) > SMALL:
        check_payload(data, what)
    return data


def encode_as(value: object, type_: Any, what: str) -> bytes:
    """`encode` of a value that is to be of a type. Raises `PayloadInvalid` also for one that isn't, or that would
    arrive as something else."""
    data = encode(value, what)
    if type_ is not Any:
        decode(data, type_, what)
        is_same = _is_same(value, decoder_for(type_), data)
        if not is_same and (reason := lost(value, declared_as(type_).info, "it")):
            raise PayloadInvalid(f"the {what} would not arrive as it is: {reason}.")
    return data


def check_payload(data: bytes | memoryview, what: str) -> None:
    """Raises `PayloadTooLarge` above 2 MB and `PayloadInvalid` beyond 64 levels; warns above 256 KB."""
    size = len(data)
    if size <= MAX_DEPTH:  # each level takes a byte
        return
    if size > MAX_BYTES:
        raise _too_large(what, f"{size:,}")
    if size > WARN_BYTES:
        _log.warning("the %s has %s bytes; above %s it slows its shard down", what, f"{size:,}", f"{WARN_BYTES:,}")
    if depth_exceeds(data, MAX_DEPTH):
        raise PayloadInvalid(f"the {what} is nested more than {MAX_DEPTH} levels deep")


def _too_large(what: str, size: str) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the {what} has {size} bytes; the limit is {MAX_BYTES:,}. Store it elsewhere and pass a reference."
    )


def _least_size(value: Any, within: bool = False) -> int:
    """Bytes that a value takes at least, by a look at its first parts, and at those `within` them: to encode 50 MB only
    to find that they are too many would hold up the event loop. No code of the user's is run."""
    kind = type(value)  # pyright: ignore[reportUnknownVariableType]
    if kind in SIZED:
        return len(value)
    if kind not in CONTAINERS:
        return 0
    size = len(value)
    for part in itertools.islice(value.values() if kind is dict else value, LOOKED_AT):
        kind = type(part)  # pyright: ignore[reportUnknownVariableType]
        if kind in SIZED:
            size += len(part)
        elif kind in CONTAINERS and not within:
            size += _least_size(part, within=True)
    return size


def depth_exceeds(data: bytes | memoryview, limit: int) -> bool:
    """Whether MessagePack `data` nests containers deeper than `limit`. Looks no deeper than that."""
    try:
        level: list[Any] = [msgspec.msgpack.decode(data)]
    except RecursionError:
        return True
    except DECODE_ERRORS:
        return False  # decoding by type reports it, with a better message
    for _ in range(limit + 1):
        containers = typing.cast("list[dict[Any, Any] | list[Any]]", [i for i in level if isinstance(i, dict | list)])
        if not containers:
            return False
        level = []
        for item in containers:
            level.extend(item.values() if isinstance(item, dict) else item)
    return True


def decoder_for(type_: Any) -> Callable[[Any], Any]:
    """A decoder for `type_`, cached. Raises `PayloadInvalid` for a type of which no value can be decoded."""
    try:
        return _decoder_for(type_)[0]
    except TypeError:  # not hashable, as Annotated[int, []]
        return _decoder_for.__wrapped__(type_)[0]


@functools.lru_cache(maxsize=4096)
def _decoder_for(type_: Any) -> tuple[Callable[[Any], Any], Declared]:
    try:
        return msgspec.msgpack.Decoder(type_, dec_hook=decode_unknown).decode, examine(type_)
    except Exception as error:  # also of metaclasses and of annotations that can't be resolved
        raise PayloadInvalid(
            f"{recordable(type_name(type_), 200)} can't be the type of a payload: {advice_for(error)}"
        ) from error


def decode(data: Raw | bytes, type_: Any, what: str) -> Any:
    """The value, checked against `type_`. Raises `PayloadInvalid`, which names the payload as `what`."""
    try:
        return decoder_for(type_)(data)
    except PayloadInvalid:
        raise
    except Exception as error:  # types are user code: a `__post_init__` may raise anything
        raise PayloadInvalid(f"the {what} is not a {type_name(type_)}: {text_of(error)}") from error


def _decode_plain(value: Any, type_: Any, what: str) -> Any:
    """`decode` of plain data, also of what an exported history, which is JSON, has made of it."""
    try:
        return msgspec.convert(value, type_, dec_hook=decode_unknown, str_keys=True)
    except PayloadInvalid:
        raise
    except Exception as error:  # types are user code
        raise PayloadInvalid(f"the {what} is not a {type_name(type_)}: {text_of(error)}") from error


decode_data_with(_decode_plain)


def type_name(type_: Any) -> str:
    return type_.__name__ if isinstance(type_, type) else str(type_)


def declared_as(type_: Any) -> Declared:
    try:
        return _decoder_for(type_)[1]
    except TypeError:
        return _decoder_for.__wrapped__(type_)[1]


def _is_same(value: object, decode: Callable[[Any], Any], data: bytes) -> bool:
    """Whether the decoded value equals the original. Decoding and comparing is C; only a difference is looked into."""
    try:
        return bool(decode(data) == value)
    except Exception:  # of user types: the receiver's decoding reports it
        return False


def is_same_value(before: Raw, now: Raw, value: object) -> bool:
    """Whether a recorded payload is what `value`, of which `now` is the payload, would have been before a deploy added
    fields with defaults to its types."""
    if bytes(before) == bytes(now):
        return True
    try:
        return encode(_like(msgspec.msgpack.decode(before), value), "recorded value") == bytes(now)
    except Exception:  # types are user code
        return False


def _like(plain: Any, value: Any) -> Any:
    """Plain data as the types of `value`, item by item: only objects say what they have been made of."""
    if isinstance(value, list | tuple):
        items = typing.cast("list[Any]", value)
        return [_like(one, like) for one, like in zip(plain, items, strict=True)]
    if isinstance(value, dict):
        likes = typing.cast("dict[Any, Any]", value)
        return {key: _like(one, likes[key]) for key, one in plain.items()}
    return msgspec.convert(plain, typing.cast("Any", type(value)), dec_hook=decode_unknown)


class Parameters:
    """The typed parameters of a step or workflow: turns the arguments of a call into one payload, and back.

    The payload is an array of all arguments in the order of the parameters, defaults filled in; of a call that uses
    keywords it is a map by name. So a parameter with a default may be added at the end later, and what was passed by
    keyword arrives under its name, also when a deploy has moved the parameters meanwhile.
    """

    def __init__(self, function: Callable[..., Any], what: str, *, exact: bool = True) -> None:
        self.what = what
        self._exact = exact
        signature = inspect.signature(function)
        hints = _hints(function)
        self.names: list[str] = []
        self.defaults: list[Any] = []
        types: list[Any] = []
        for parameter in signature.parameters.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise PayloadInvalid(f"{what} declares {parameter}, which can't be recorded: name every parameter")
            self.names.append(parameter.name)
            self.defaults.append(parameter.default)
            types.append(hints.get(parameter.name, Any))
        self.types = tuple(types)
        self.returns = hints.get("return", Any)
        self._signature = signature
        self._keyword_only = [p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]
        self._count = len(types)
        self.signature = ",".join(self.names)
        """The names in order: two processes compare them before one runs what the other has decided."""
        decoder_for(tuple[self.types] if self.types else tuple[()])  # refuses what can't be decoded
        self._decode = self._decoder()
        self._decode_result = decoder_for(self.returns)
        self._declared = [declared_as(type_) for type_ in types]
        self._result = declared_as(self.returns)
        self._fitting = scalars_of(self.returns)
        self._scalar = all(declared.scalar for declared in self._declared)
        self._sets = any(declared.sets for declared in self._declared)
        self._quick = exact and self._scalar and not self._keyword_only

    def _decoder(self) -> Callable[[Any], Any]:
        """Decodes both forms: an array to a tuple, a map to an object with a field for each parameter."""
        fields: list[Any] = []
        for name, type_, default in zip(self.names, self.types, self.defaults, strict=True):
            if default is inspect.Parameter.empty:
                fields.append((name, type_))
            else:
                fields.append((name, type_, msgspec.field(default_factory=functools.partial(_itself, default))))
        by_name = msgspec.defstruct("Arguments", fields, kw_only=True, forbid_unknown_fields=True, gc=False)
        by_position: Any = tuple[self.types] if self.types else tuple[()]
        return msgspec.msgpack.Decoder(by_position | by_name, dec_hook=decode_unknown).decode

    def _values(self, payload: Raw | bytes) -> tuple[Any, ...]:
        values: Any = self._decode(payload)
        return typing.cast("tuple[Any, ...]", values) if type(values) is tuple else msgspec.structs.astuple(values)

    def encode(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> bytes:
        """The payload of a call. Raises `TypeError` as the call itself would, `PayloadInvalid`, `PayloadTooLarge`."""
        if self._quick and not kwargs and len(args) == self._count:
            # Nearly all calls. What is not so simple after all is encoded below, with all checks and messages.
            for value in args:
                kind = type(value)  # pyright: ignore[reportUnknownVariableType]
                if kind not in SCALARS or (kind in SIZED and len(value) > SMALL):
                    break
            else:
                try:
                    data = _encoder.encode(args)
                except Exception:
                    data = b""
                if 0 < len(data) <= SMALL:
                    return data
        kwargs = kwargs or {}
        if kwargs or len(args) != self._count or self._keyword_only:
            try:
                bound = self._signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{self.what} can't be called with these arguments: {error}") from None
            bound.apply_defaults()
            args = tuple(bound.arguments[name] for name in self.names)
        value: Any = dict(zip(self.names, args, strict=True)) if kwargs else args
        if not self._exact:
            return encode(value, f"input of {self.what}")
        data = _encode(value, f"input of {self.what}", self._sets)
        if not self._scalar and not SCALARS.issuperset(map(type, args)):
            self._check(args, data)
        return data

    def _check(self, args: tuple[Any, ...], data: bytes) -> None:
        """Refuse arguments that would arrive as something else."""
        if not _is_same(args, self._values, data):
            for name, value, declared in zip(self.names, args, self._declared, strict=True):
                if reason := lost(value, declared.info, name):
                    raise PayloadInvalid(f"the input of {self.what} would not arrive as it is: {reason}.")

    def encode_result(self, value: object, what: str = "") -> bytes:
        """The payload of a result. Raises `PayloadInvalid`, also if it would arrive as something else or doesn't fit
        the return annotation, and `PayloadTooLarge`."""
        kind = type(value)
        if kind in self._fitting and (kind not in SIZED or len(typing.cast("str", value)) <= SMALL):
            try:
                data = _encoder.encode(value)
            except Exception:
                data = b""
            if 0 < len(data) <= SMALL:
                return data
        what = what or f"result of {self.what}"
        if kind in SCALARS:
            data = _encode(value, what, False)
            if kind not in self._fitting:
                self._check_result(data, what)
            return data
        if not self._exact:
            return encode(value, what)
        data = _encode(value, what, self._result.sets)
        if not _is_same(value, self._decode_result, data):
            reason = lost(value, self._result.info, "it")
            if reason:
                raise PayloadInvalid(f"the {what} would not arrive as it is: {reason}.")
            self._check_result(data, what)
        return data

    def _check_result(self, data: bytes, what: str) -> None:
        """Here, where it was made, and not where it is read."""
        try:
            self._decode_result(data)
        except Exception as error:
            raise PayloadInvalid(f"the {what} is not a {type_name(self.returns)}: {text_of(error)}") from error

    def decode(self, payload: Raw | bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments. Raises `UnfitArguments`."""
        values: tuple[Any, ...]
        try:
            values = self._decode(payload)
        except Exception as error:
            values = self._decode_shorter(payload, error)
        if type(values) is not tuple:  # they were passed by keyword
            values = msgspec.structs.astuple(typing.cast("Any", values))
        if self._keyword_only:
            split = self._count - len(self._keyword_only)
            return values[:split], dict(zip(self._keyword_only, values[split:], strict=True))
        return values, {}

    def _decode_shorter(self, payload: Raw | bytes, error: Exception) -> tuple[Any, ...]:
        """Decode a payload that was recorded before a parameter with a default was added."""
        names = ", ".join(self.names) or "no parameters"
        invalid = UnfitArguments(f"the input of {self.what} does not match its parameters ({names}): {text_of(error)}")
        try:
            arguments = msgspec.msgpack.decode(payload, type=list[Raw])
        except DECODE_ERRORS:
            raise invalid from error
        missing = self.defaults[len(arguments) :]
        if len(arguments) >= self._count or any(default is inspect.Parameter.empty for default in missing):
            raise invalid from error
        try:
            values = [
                decode(raw, type_, f"input of {self.what}") for raw, type_ in zip(arguments, self.types, strict=False)
            ]
        except PayloadInvalid as older:
            raise UnfitArguments(str(older)) from older
        return (*values, *missing)

    def is_same_call(self, one: Raw | bytes, other: Raw | bytes) -> bool:
        """Whether two payloads are the same arguments for today's function: what a deploy has added with a default
        doesn't count, nor whether they were passed by position or by keyword. Types are user code, so a payload that
        can't be decoded is another one."""
        try:
            return self._canonical(one) == self._canonical(other)
        except Exception:
            return False

    def _canonical(self, payload: Raw | bytes) -> bytes:
        args, kwargs = self.decode(payload)
        return _encode((*args, *kwargs.values()), f"input of {self.what}", self._sets)

    def takes(self, payload: Raw | bytes, signature: str) -> bool:
        """Whether arguments that a process with this `signature` has encoded mean the same here. By keyword they do, if
        they can be decoded; by position only when the names are the same, apart from new ones at the end."""
        if not signature or signature == self.signature or self.signature.startswith(f"{signature},"):
            return True
        return bytes(memoryview(payload)[:1]) in _MAPS

    def decode_result(self, payload: Raw | bytes) -> Any:
        """The result, checked against the return annotation. Raises `PayloadInvalid`."""
        try:
            return self._decode_result(payload)
        except Exception as error:
            raise PayloadInvalid(
                f"the result of {self.what} is not a {type_name(self.returns)}: {text_of(error)}"
            ) from error


_MAPS = frozenset(bytes([first]) for first in (*range(0x80, 0x90), 0xDE, 0xDF))
"""First bytes of a map in MessagePack."""


def _itself(value: Any) -> Any:
    return value


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    while isinstance(function, functools.partial):
        function = function.func
    if not inspect.isroutine(function) and not inspect.isclass(function) and not hasattr(function, "__wrapped__"):
        function = type(function).__call__  # an object that can be called
    try:
        return typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise PayloadInvalid(
            f"the annotations of {getattr(function, '__qualname__', function)} can't be resolved: {error}. "
            "Import the types at the top of the module, outside `if TYPE_CHECKING`."
        ) from error
