"""JSON Schema of declared types, for who has JSON and not the code: the command line, and later forms on a page.

Owns: the schema of a type, and what is wrong with a value. It refuses only what no daemon could decode: of a type that
says nothing (pydantic models, paths), or says it in too many words, everything is accepted.
Must not: know what the value is for. Called by: the daemon's registration, the client's door.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import msgspec

_LEFT_OUT = {"default", "uniqueItems"}

MAX_BYTES = 16 * 1024
"""Larger schemas aren't registered: clients read all of them at once."""


def schema_of(type_: Any) -> dict[str, Any]:
    """The schema of a declared type, draft 7; empty, which fits everything, if there is none or it is too large."""
    try:
        schema = _older(msgspec.json.schema(type_, schema_hook=lambda _: {}))
        return schema if len(msgspec.json.encode(schema)) <= MAX_BYTES else {}
    except Exception:  # of types of user code, and of those that JSON doesn't have
        return {}


def _older(schema: Any) -> Any:
    """As draft 7 says it, and no stricter than a daemon: a Decimal may be a number, a set may have a value twice."""
    if isinstance(schema, list):
        return [_older(one) for one in cast("list[Any]", schema)]
    if not isinstance(schema, dict):
        return schema
    found = {key: _older(value) for key, value in cast("dict[str, Any]", schema).items() if key not in _LEFT_OUT}
    if found.get("format") == "decimal":
        return {"type": ["string", "number"]}
    if "prefixItems" in found:
        found["additionalItems"], found["items"] = found.pop("items", True), found.pop("prefixItems")
    return found


def checker(schema: dict[str, Any]) -> Callable[[Any, str], str]:
    """A check of values from JSON: `check(value, name)` says why one doesn't fit, as `amount must be integer`, and
    nothing if it does. `name` is the value's."""
    if not schema:
        return _fits
    import fastjsonschema  # only what a person gives is checked so

    try:
        validate: Any = fastjsonschema.compile(schema, use_default=False, use_formats=False)
    except Exception:  # registered by a newer release, or by hand
        return _fits

    def check(value: Any, name: str) -> str:
        try:
            validate(value)
        except fastjsonschema.JsonSchemaValueException as error:
            text = str(error.message)
            return name + text.removeprefix("data") if text.startswith("data") else text
        return ""

    return check


def _fits(value: Any, name: str) -> str:
    return ""
