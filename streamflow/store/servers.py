"""All servers of a store: reads of which some may stay without an answer, and what the servers say of themselves.

Owns: which call goes to which server, so that one that is away costs only its part. Must not: change anything, or know
what the answers are for. Called by: the status, a daemon's metrics, `queues.py`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import anyio

from streamflow.errors import StoreError, StoreUnavailable
from streamflow.store.connection import Call, Store


async def key_of_each(store: Store, keys: Sequence[str], patience: float) -> list[str]:
    """One of these keys for each server that has some of them. Raises `StoreUnavailable`."""
    if keys and store.server_of(keys[0]) < 0:  # nothing was sent yet
        await store.send([Call.plain("TIME", near=keys[0])], patience)
    found: dict[int, str] = {}
    for key in keys:
        found.setdefault(store.server_of(key), key)
    return [key for number, key in sorted(found.items()) if number >= 0]


async def send_to_each(store: Store, calls: Sequence[tuple[str, Call[Any]]], patience: float) -> list[Any]:
    """Send reads, each with a key of the server that it is for. Returns the replies in the same order.

    The reply of a server that doesn't answer within `patience` seconds is `StoreUnavailable`; when none does, that is
    raised.
    """
    parts: dict[int, list[int]] = {}
    for position, (key, _) in enumerate(calls):
        parts.setdefault(store.server_of(key), []).append(position)

    async def send(part: Sequence[int]) -> list[Any]:
        limit = math.inf if len(parts) == 1 else patience  # one that is silent is waited for longer than that, else
        try:
            with anyio.fail_after(limit):
                return await store.send([calls[position][1] for position in part], patience)
        except TimeoutError:
            return [StoreUnavailable(f"a server has not answered within {patience:g} s")] * len(part)
        except StoreUnavailable as error:
            return [error] * len(part)

    replies: list[Any] = [None] * len(calls)
    for part, answers in zip(parts.values(), await asyncio.gather(*map(send, parts.values())), strict=True):
        for position, reply in zip(part, answers, strict=True):
            replies[position] = reply
    if replies and all(isinstance(reply, StoreUnavailable) for reply in replies):
        raise replies[0]
    return replies


def facts_of(info: Any) -> dict[str, Any]:
    """What INFO has answered, by name; empty for an error."""
    if isinstance(info, StoreError):
        return {}
    if isinstance(info, dict):
        return cast("dict[str, Any]", info)
    lines = (line.partition(":") for line in info.decode(errors="replace").splitlines() if ":" in line)
    return {name: value for name, _, value in lines}


def memory_of(facts: Mapping[str, Any]) -> tuple[int, int]:
    """The bytes that a server uses and its maxmemory; 0: no limit."""
    return int(facts.get("used_memory", 0)), int(facts.get("maxmemory", 0))


def fullness(memory: tuple[int, int]) -> tuple[float, int]:
    """To compare servers by: the share of maxmemory that is used, else what is used."""
    used, limit = memory
    return (used / limit if limit else 0.0), used
