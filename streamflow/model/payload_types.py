"""Which types a payload may have, and what it takes to bring each back as it was.

Owns: the hooks for types that msgspec doesn't know (paths, deques, counters, pydantic models), which declared types are
refused, the one order of sets, and the search for what a value would lose. `docs/guide/types.md` has the table.
Must not: encode or check sizes (`codec.py` does). Called by: codec.
"""

from __future__ import annotations

import collections
import dataclasses
import sys
import typing
from collections.abc import Callable, Iterable
from pathlib import PurePath
from types import UnionType
from typing import Any, Union, cast, get_args, get_origin

import msgspec
from msgspec import inspect as types

from streamflow.text import recordable, type_name

SCALARS = frozenset({type(None), bool, int, float, str, bytes})
"""Values of these come back as they are, whatever type is declared, or not at all."""
_PLAIN = (dict, list, str, int, float, bool, bytes, type(None))
_ADVICE = "Use plain types, dataclasses, msgspec Structs, attrs classes or pydantic models"


def _pydantic_base() -> Any:
    """`pydantic.BaseModel`, if the app has imported pydantic."""
    return getattr(sys.modules.get("pydantic"), "BaseModel", None)


def is_pydantic(kind: Any) -> bool:
    base = _pydantic_base()
    return base is not None and isinstance(kind, type) and issubclass(kind, base)


# --- hooks ------------------------------------------------------------------------------------------------------------


def encode_unknown(value: Any) -> Any:
    """What msgspec encodes instead of a value that it doesn't know. Raises `TypeError`."""
    kind = cast("type[Any]", type(value))
    if isinstance(value, PurePath):
        return str(value)
    if kind is collections.deque:
        if value.maxlen is not None:
            raise TypeError("a deque's maxlen is not recorded: give it as an argument of its own, and pass list(deque)")
        return in_one_order(list(value))
    if is_pydantic(kind):
        return in_one_order(value.model_dump(mode="python", by_alias=True, round_trip=True))
    if kind.__module__.partition(".")[0] in ("pydantic", "pydantic_core"):
        return sys.modules["pydantic_core"].to_jsonable_python(value)
    if isinstance(value, BaseException):
        raise TypeError(f"an exception can't be a value: raise it, or pass its text (this one is a {type_name(value)})")
    raise TypeError(f"a {type_name(value)} can't be a value")


def decode_unknown(declared: Any, value: Any) -> Any:
    """A value of a declared type that msgspec doesn't know, from plain data. Raises what msgspec makes errors of."""
    kind: Any = typing.get_origin(declared) or declared
    parameters = typing.get_args(declared)
    if is_pydantic(kind):
        return kind.model_validate(value, strict=False)
    if isinstance(kind, type):
        if issubclass(kind, PurePath):
            return kind(msgspec.convert(value, str))
        if kind is collections.deque:
            return collections.deque(_converted(value, list[parameters or (Any,)]))
        if kind is collections.Counter:
            key: Any = parameters[0] if parameters else Any
            return cast("collections.Counter[Any]", collections.Counter(_converted(value, dict[key, int])))
        if kind is collections.OrderedDict:
            return collections.OrderedDict(_converted(value, cast("Any", dict)[parameters or (Any, Any)]))
        if isinstance(value, kind):  # `object`, and abstract classes such as Iterable
            return value
    raise NotImplementedError


def _converted(value: Any, declared: Any) -> Any:
    return msgspec.convert(value, declared, dec_hook=decode_unknown)


# --- declared types ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Declared:
    """What is known of a declared type without a value."""

    info: types.Type
    scalar: bool
    """Only values of `SCALARS`."""
    sets: bool
    """A set may be in it."""


def examine(declared: Any) -> Declared:
    """Raises `TypeError` with what to do for a type of which no value can ever be decoded."""
    info = types.type_info(declared)
    seen: dict[int, types.Type] = {}
    sets = False
    for one in _inside(info, seen):
        sets = sets or isinstance(one, types.SetType | types.FrozenSetType)
        if isinstance(one, types.CustomType):
            reason = _refusal(one.cls)
            if reason:
                raise TypeError(reason)
    scalar = (types.NoneType, types.BoolType, types.IntType, types.FloatType, types.StrType, types.BytesType)
    return Declared(info, all(isinstance(one, (*scalar, types.UnionType)) for one in seen.values()), sets)


def _inside(info: types.Type, seen: dict[int, types.Type]) -> Iterable[types.Type]:
    """A type and all types in it, each once: they may be recursive."""
    waiting: list[Any] = [info]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen[id(one)] = one
        yield one
        waiting += [getattr(one, name, None) for name in ("item_type", "key_type", "value_type", "type")]
        waiting += getattr(one, "item_types", ())
        waiting += getattr(one, "types", ())
        waiting += [field.type for field in getattr(one, "fields", ())]


def _refusal(kind: type[Any]) -> str:
    if is_pydantic(kind) or kind in (collections.deque, collections.Counter, collections.OrderedDict):
        return ""
    if issubclass(kind, PurePath):
        return ""
    if kind is collections.defaultdict:
        return "the factory of a defaultdict is not recorded: declare a dict, and make the defaultdict of it"
    if issubclass(kind, BaseException):
        return f"{type_name_of(kind)} is an exception, which can't be a value: raise it, or pass its text"
    try:
        if any(issubclass(plain, kind) for plain in _PLAIN):  # `object`, abstract classes
            return ""
    except TypeError:  # a protocol
        pass
    return f"nothing can be decoded as a {type_name_of(kind)}. {_ADVICE}"


def type_name_of(kind: Any) -> str:
    return recordable(getattr(kind, "__qualname__", None) or str(kind), 200)


def type_text(kind: Any) -> str:
    """A declared type for people, as `Approval` or `list[int]`, at most 60 characters; empty if it allows anything.
    Never raises."""
    if kind is Any:
        return ""
    try:
        is_class = isinstance(kind, type) and typing.get_origin(kind) is None
        text = kind.__qualname__.rpartition("<locals>.")[2] if is_class else str(kind)
    except Exception:  # a metaclass of user code
        return ""
    return recordable(text.replace("typing.", ""), 60)


def advice_for(error: Exception) -> str:
    """What to do about a type that msgspec refuses."""
    text = recordable(error, 400)
    if "InitVar" in text:
        return f"{text}. Keep what __post_init__ computes in a field instead"
    if "more than one" in text:
        return f"{text}. Make them msgspec Structs with tag=True, or one class with optional fields"
    if isinstance(error, NameError):
        return f"{text}. Import the types at the top of the module, outside `if TYPE_CHECKING`"
    return text if _ADVICE in text or ": " in text else f"{text}. {_ADVICE}"


# --- sets -------------------------------------------------------------------------------------------------------------


def has_set(value: Any) -> bool:
    """Whether a set with more than one element is in a value: its order differs from process to process."""
    # Signals of any size come here, so there is no `cast` and no union of types in this loop.
    waiting: list[Any] = [value]
    limit = 100_000
    for one in waiting:
        kind: Any = type(one)  # pyright: ignore[reportUnknownVariableType]
        if kind in SCALARS:
            continue
        names = getattr(kind, "__struct_fields__", None)
        if names is not None:
            waiting.extend([getattr(one, name, None) for name in names])
        elif issubclass(kind, _SETS):
            if len(one) > 1:
                return True
            waiting.extend(one)
        elif issubclass(kind, _LISTS):
            if not SCALARS.issuperset(map(type, one)):
                waiting.extend(one)
        elif issubclass(kind, dict):
            if not SCALARS.issuperset(map(type, one)):
                waiting.extend(one)
            if not SCALARS.issuperset(map(type, one.values())):
                waiting.extend(one.values())
        else:
            waiting.extend([getattr(one, name, None) for name in _field_names(kind)])
        if len(waiting) > limit:
            if limit > 100_000 or _is_endless(value):
                return False  # encoding it fails
            limit = 10_000_000
    return False


def _is_endless(value: Any) -> bool:
    """Whether a value contains itself, as encoding finds out within microseconds."""
    try:
        _bytes(value)
    except RecursionError:
        return True
    except Exception:  # it is reported where the value is encoded
        return False
    return False


_SETS = (set, frozenset)
_LISTS = (list, tuple)


def in_one_order(value: Any) -> Any:
    """What is encoded instead of `value`, so that its sets have one order in every process: that of their elements'
    bytes. Dicts keep theirs, in which they were filled."""
    kind = cast("type[Any]", type(value))
    if kind in SCALARS:
        return value
    if isinstance(value, set | frozenset):
        items = [in_one_order(item) for item in cast("set[Any]", value)]
        return sorted(items, key=lambda item: _bytes(item))
    if isinstance(value, list | tuple):
        return [in_one_order(item) for item in cast("list[Any]", value)]
    if isinstance(value, dict):
        return {_key(key): in_one_order(item) for key, item in cast("dict[Any, Any]", value).items()}
    if issubclass(kind, msgspec.Struct):
        other: Any = cast("Any", msgspec.Struct).__copy__(value)
        for name in kind.__struct_fields__:
            msgspec.structs.force_setattr(other, name, in_one_order(getattr(value, name)))
        return other
    names = _field_names(kind)
    if names:
        return {name: in_one_order(getattr(value, name)) for name in names if hasattr(value, name)}
    return value


def _key(key: Any) -> Any:
    if isinstance(key, frozenset):
        return tuple(sorted((_key(item) for item in cast("frozenset[Any]", key)), key=_bytes))
    return tuple(map(_key, cast("tuple[Any, ...]", key))) if isinstance(key, tuple) else key


_bytes = msgspec.msgpack.Encoder(enc_hook=encode_unknown).encode


def _field_names(kind: type[Any]) -> Iterable[str]:
    for attribute in ("__struct_fields__", "__dataclass_fields__"):
        names = getattr(kind, attribute, None)
        if names is not None:
            return cast("Iterable[str]", names)
    attrs = getattr(kind, "__attrs_attrs__", None)
    return [field.name for field in attrs if not field.name.startswith("_")] if attrs is not None else ()


# --- what would be lost -----------------------------------------------------------------------------------------------


def scalars_of(type_: Any) -> frozenset[type]:
    """Those types of `SCALARS` of which each value fits the declared type; of other scalars some may, too."""
    if type_ is Any:
        return SCALARS
    if get_origin(type_) in (Union, UnionType):
        return frozenset(kind for one in get_args(type_) for kind in scalars_of(one))
    return SCALARS & {type_} if isinstance(type_, type) else frozenset()


def lost(value: Any, info: Any, at: str) -> str:
    """As `loss`, and empty if code of the value's own raises: the receiver's decoding reports it."""
    try:
        return loss(value, info, at)
    except Exception:
        return ""


def loss(value: Any, info: Any, at: str) -> str:
    """What `value` would lose as the declared type, and what to do; empty if nothing. `at` says where the value is.

    Called only when the decoded value differs: then it is the value's own `==`, a NaN, or a loss.
    """
    kind = cast("type[Any]", type(value))
    if kind in SCALARS:
        return ""
    check = _CHECKS.get(cast("type[Any]", type(info)))
    if check is not None:
        return check(value, info, at)
    if isinstance(info, types.UnionType):
        found = [loss(value, one, at) for one in info.types]
        return "" if "" in found and not _is_of_a_class(value, info) else next(filter(None, found), "")
    if isinstance(info, types.TypedDictType) and isinstance(value, dict):
        known = {field.name: field.type for field in info.fields}
        for key, item in cast("dict[str, Any]", value).items():
            if key not in known:
                return f"{at}[{key!r}] is not a key of {type_name_of(info.cls)} and would be lost. Declare it"
            if found := loss(item, known[key], f"{at}[{key!r}]"):
                return found
        return ""
    cls = getattr(info, "cls", None)
    if isinstance(cls, type) and isinstance(value, cls) and kind is not cls:
        name, declared = type_name(value), type_name_of(cls)
        return f"{at} is a {name}, declared as {declared}: what {name} adds would be lost. Declare {name}"
    if isinstance(cls, type) and kind is cls:
        if is_pydantic(cls):
            return f"{at} is a {type_name_of(cls)} that differs after model_dump and model_validate: check its fields"
        for field in getattr(info, "fields", ()):
            name = field.name
            if name.startswith("_") and hasattr(kind, "__attrs_attrs__"):
                return f"{at}.{name} is not recorded: the names of an attrs class's fields must not begin with _"
            if hasattr(value, name) and (found := loss(getattr(value, name), field.type, f"{at}.{name}")):
                return found
    return ""


def _is_of_a_class(value: Any, info: types.UnionType) -> bool:
    return any(isinstance(getattr(one, "cls", None), type) and isinstance(value, one.cls) for one in info.types)  # type: ignore[attr-defined]


def _loss_as_any(value: Any, info: Any, at: str) -> str:
    if isinstance(value, list):
        pairs: Any = enumerate(cast("list[Any]", value))
    elif isinstance(value, dict):
        items = cast("dict[Any, Any]", value)
        for key in items:
            if type(key) not in SCALARS and not isinstance(key, str | int):
                return f"{at} has a key of type {type_name(key)}, and its type is not declared. {_DECLARE}"
        pairs = items.items()
    elif isinstance(value, str | int | float | bytes | bytearray | memoryview):
        return ""
    else:
        return f"{at} is a {type_name(value)}, and its type is not declared: it would arrive as plain data. {_DECLARE}"
    for key, item in pairs:
        if type(item) not in SCALARS and (found := _loss_as_any(item, info, f"{at}[{recordable(repr(key), 60)}]")):
            return found
    return ""


_DECLARE = "Annotate the parameter or the result, or pass plain data"


def _loss_as_items(value: Any, info: Any, at: str) -> str:
    if isinstance(value, set | frozenset):
        return f"{at} is a set, declared as a list or tuple, and a set has no order: declare a set, or pass sorted(…)"
    if not isinstance(value, list | tuple):
        return ""
    items = cast("list[Any]", value)
    fixed: Any = getattr(info, "item_types", None)
    for number, item in enumerate(items):
        inner = fixed[number] if fixed is not None and number < len(fixed) else getattr(info, "item_type", None)
        if inner is not None and (found := loss(item, inner, f"{at}[{number}]")):
            return found
    return ""


def _loss_as_set(value: Any, info: Any, at: str) -> str:
    items = cast("Iterable[Any]", value) if isinstance(value, set | frozenset) else ()
    return next((found for item in items if (found := loss(item, info.item_type, f"an element of {at}"))), "")


def _loss_as_dict(value: Any, info: Any, at: str) -> str:
    if isinstance(value, dict):
        for key, item in cast("dict[Any, Any]", value).items():
            where = f"{at}[{recordable(repr(key), 60)}]"
            if found := loss(key, info.key_type, f"a key of {at}") or loss(item, info.value_type, where):
                return found
    return ""


_CHECKS: dict[type[Any], Callable[[Any, Any, str], str]] = {
    types.AnyType: _loss_as_any,
    types.ListType: _loss_as_items,
    types.VarTupleType: _loss_as_items,
    types.TupleType: _loss_as_items,
    types.SetType: _loss_as_set,
    types.FrozenSetType: _loss_as_set,
    types.DictType: _loss_as_dict,
}
