"""Reads from several servers, of which some don't answer, and what servers say of themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest

from streamflow.errors import StoreError, StoreUnavailable
from streamflow.store.connection import Call, Store
from streamflow.store.servers import facts_of, fullness, key_of_each, memory_of, send_to_each

pytestmark = pytest.mark.anyio


class Servers:
    """A key's first digit is the number of its server. `away`: those that don't answer."""

    def __init__(self, away: str = "", known: bool = True) -> None:
        self.away = away
        self.known = known
        self.sent: list[list[str]] = []

    def server_of(self, key: str) -> int:
        return int(key[0]) if self.known else -1

    async def send(self, calls: Sequence[Call[Any]], patience: float) -> list[Any]:
        self.known = True
        keys = [call.near or call.args[1] for call in calls]
        assert len({key[0] for key in keys}) == 1, "of one server"
        if keys[0][0] in self.away:
            raise StoreUnavailable(f"no answer for {patience:g} s")
        self.sent.append(keys)
        return [f"value of {key}" for key in keys]


async def read(servers: Servers, *keys: str) -> list[Any]:
    calls = [(key, Call.plain("GET", key)) for key in keys]
    return await send_to_each(cast("Store", servers), calls, 2.0)


async def test_each_server_gets_one_pipeline_and_replies_keep_their_order() -> None:
    servers = Servers()
    assert await read(servers, "1a", "0a", "1b", "2a") == ["value of 1a", "value of 0a", "value of 1b", "value of 2a"]
    assert sorted(servers.sent) == [["0a"], ["1a", "1b"], ["2a"]]


async def test_a_server_that_is_away_costs_only_its_replies() -> None:
    first, lost, other = await read(Servers(away="1"), "0a", "1a", "0b")
    assert (first, other) == ("value of 0a", "value of 0b")
    assert isinstance(lost, StoreUnavailable)
    with pytest.raises(StoreUnavailable, match="no answer for 2 s"):
        await read(Servers(away="01"), "0a", "1a")
    assert await read(Servers()) == []


async def test_one_key_of_each_server_is_found_also_before_anything_was_sent() -> None:
    for known in (True, False):
        servers = Servers(known=known)
        assert await key_of_each(cast("Store", servers), ["1a", "0a", "1b"], 2.0) == ["0a", "1a"]


def test_the_fullest_server_is_the_one_nearest_to_its_limit_or_the_largest() -> None:
    infos = [{"used_memory": 50, "maxmemory": 100}, {"used_memory": 900, "maxmemory": 10_000}, {"used_memory": 70}]
    assert max(map(memory_of, infos), key=fullness) == (50, 100)
    assert max(map(memory_of, infos[2:]), key=fullness) == (70, 0)
    assert facts_of(b"# Memory\r\nused_memory:7\r\n") == {"used_memory": "7"}
    assert facts_of(StoreError("not allowed")) == {}
