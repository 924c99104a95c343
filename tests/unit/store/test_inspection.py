"""What is said of a server, by its INFO."""

from __future__ import annotations

from typing import Any

import pytest

from streamflow.store.inspection import _server

GOOD: dict[str, Any] = {"redis_version": "7.2.0", "aof_enabled": 1, "role": "master", "maxmemory": 0}


@pytest.mark.parametrize(
    ("info", "is_error", "reason"),
    [
        ({"redis_version": "6.2.7"}, True, "needs Redis 7.0"),
        ({"maxmemory_policy": "allkeys-lru"}, True, "noeviction"),
        ({"role": "slave"}, True, "use the address of its primary"),
        ({"loading": 1}, True, "loading its data"),
        ({"aof_last_write_status": "err"}, True, "append-only file and may refuse writes"),
        ({"rdb_last_bgsave_status": "err"}, True, "snapshot and may refuse writes"),
        ({"maxmemory": 100, "used_memory": 100}, True, "raise maxmemory"),
        ({"maxmemory": 100, "used_memory": 85}, False, "85% of maxmemory"),
        ({"aof_enabled": 0}, False, "appendonly yes"),
        ({"cluster_enabled": 1}, True, "redis+cluster"),
    ],
)
def test_each_trouble_of_a_server_is_said_with_what_to_do(info: dict[str, Any], is_error: bool, reason: str) -> None:
    (finding,) = _server({**GOOD, **info})
    assert (finding.is_error, finding.about) == (is_error, "server")
    assert reason in finding.message


def test_nothing_is_said_of_a_good_server() -> None:
    assert _server(GOOD) == []
    assert _server({**GOOD, "valkey_version": "8.0.0", "maxmemory": 100, "used_memory": 50}) == []
    assert _server({}) == [], "INFO may be forbidden, which is a finding of its own"
