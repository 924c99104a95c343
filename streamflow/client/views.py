"""Reading views of apps: those that daemons have merged.

Owns: how one is found and read, and what is said if there is none. Must not: merge anything.
Called by: the client, status.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from datetime import datetime

from streamflow.errors import UnknownView, UsageError
from streamflow.model.codec import DECODE_ERRORS
from streamflow.model.names import check_name
from streamflow.store.connection import Call, Store
from streamflow.store.kernel import Kernel, Put, view_position
from streamflow.store.keys import NamespaceKeys
from streamflow.suggestions import did_you_mean
from streamflow.views.reading import ViewReading, decode_view, reading, rebuild_field
from streamflow.workflow.view import View


def view_name(view: str | View) -> str:
    """Raises `InvalidName`."""
    return check_name("view", view.name if isinstance(view, View) else view)


def wanted_labels(
    labels: Mapping[str, str | int] | None, more: Mapping[str, str | int], since: datetime | None
) -> dict[str, str]:
    """Of the arguments of `view`. Raises `UsageError`."""
    if not (since is None or isinstance(since, datetime)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"since={since!r} must be a datetime; for a label of that name: labels={{'since': {since!r}}}")
    if not (labels is None or isinstance(labels, Mapping)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"labels={labels!r} must have values by name; for a label of that name: {{'labels': …}}")
    return {name: str(value) for name, value in {**(labels or {}), **more}.items()}


async def read_view(
    store: Store, keys: NamespaceKeys, view: str | View, labels: Mapping[str, str], since: datetime | None
) -> ViewReading:
    """Raises `UnknownView`."""
    name = view_name(view)
    data = await store.one(Call.plain("HGET", keys.app_views, name))
    if data is None:
        known = await view_names(store, keys)
        raise UnknownView(unknown_view(name, known))
    try:
        stored = decode_view(data)
    except DECODE_ERRORS as error:
        text = f"the stored view {name} can't be read, and is replaced by the next merge: {error}"
        raise UnknownView(text) from error
    return reading(name, stored, labels, 0 if since is None else round(since.timestamp() * 1000))


async def view_names(store: Store, keys: NamespaceKeys) -> list[str]:
    fields = await store.one(Call.plain("HKEYS", keys.app_views))
    return sorted(field.decode(errors="replace") for field in fields)


def readings(stored: Mapping[bytes, bytes]) -> list[ViewReading]:
    """Of what is stored by name; without those that somebody has damaged."""
    found: list[ViewReading] = []
    for name, data in sorted(stored.items()):
        with contextlib.suppress(*DECODE_ERRORS):
            found.append(reading(name.decode(errors="replace"), decode_view(data), {}))
    return found


async def forget_view(store: Store, kernel: Kernel, shards: int, name: str, now_ms: int, *, merged: bool) -> int:
    """Delete what all shards have counted of a view, and with `merged` what readers get of it. A daemon whose app has
    it counts it again, from what the logs have. Returns of how many shards there was something."""
    keys = kernel.keys
    parts = [keys.shard(number).app_view(check_name("view", name)) for number in range(shards)]
    found = 0
    for key in parts:
        fields = await store.one(Call.plain("HKEYS", key))
        if fields:
            found += 1
            await store.one(Call.plain("HDEL", key, *fields))
    for number in range(shards):  # nothing is kept for it any more
        await store.one(Call.plain("HDEL", keys.shard(number).positions, view_position(name)))
    if merged:
        await store.one(Call.plain("HDEL", keys.app_views, name))
        await store.one(Call.plain("HDEL", keys.app_view_heads, name, rebuild_field(name)))
    if not merged or await store.one(Call.plain("HLEN", keys.members)):  # else it goes on from what it has in memory
        await store.one(kernel.store_records([Put(keys.app_view_heads, rebuild_field(name), str(now_ms).encode())]))
    return found


def unknown_view(name: str, known: list[str]) -> str:
    others = f"; known views: {', '.join(known)}{did_you_mean(name, known)}" if known else ""
    return f"no daemon has counted a view named {name}{others or ': does a daemon run whose app has it?'}"
