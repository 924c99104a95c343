"""A daemon's figures, from the daemon through its heartbeat to `status --json` and the screen."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from rich.text import Text

import streamflow as sf
from streamflow.daemon.daemon import Daemon
from streamflow.daemon.troubles import Troubles
from streamflow.errors import StoreError
from streamflow.screen.columns import Column
from streamflow.screen.layout import status_lines
from streamflow.screen.panels import daemons
from streamflow.settings import Settings
from streamflow.status.model import DaemonRow, NamespaceStatus, status_json
from streamflow.store.durability import Lacking
from streamflow.wire import Heartbeat, StorageWait, decode_heartbeat
from tests.support.fakes import FakeClock

ON_THE_SERVER = {
    *("beat", "name", "started", "shards", "running", "waiting", "live", "inbox", "starts", "unfolded", "folds"),
    *(
        "steps",
        "rss",
        "cpu",
        "version",
        "draining",
        "broken",
        "stopped",
        "impaired",
        "hung",
        "failing",
        "clock",
        "ahead",
        "lost",
        "blocked",
        "moved",
        "silent",
        "silent_steps",
        "storage_waits",
        "put_off",
        "asleep",
    ),
}
PRINTED = [
    *("id", "name", "shards", "running", "waiting", "live", "inbox", "starts", "unfolded", "steps_per_s", "rss"),
    *(
        "cpu_percent",
        "beat_age",
        "draining",
        "version",
        "broken",
        "stopped",
        "impaired",
        "failing",
        "hung",
        "clock",
        "ahead",
        "lost",
        "blocked",
        "moved",
        "silent_steps",
        "put_off",
        "asleep",
    ),
]


class NextHeartbeat(Heartbeat):
    """A heartbeat to which somebody has added a figure."""

    gpus: int = 0


def status_of(heartbeat: Heartbeat) -> NamespaceStatus:
    return NamespaceStatus(namespace="ns", as_of=0, daemons=[DaemonRow(id="m", heartbeat=heartbeat)])


def test_the_daemon_fills_in_every_field(monkeypatch: pytest.MonkeyPatch) -> None:
    fields: dict[str, Any] = {}

    def record(**values: Any) -> Heartbeat:
        fields.update(values)
        return Heartbeat(**values)

    daemon: Any = Daemon(sf.App(), Settings())
    daemon.owner = SimpleNamespace(
        shards={3: SimpleNamespace(asleep=11)},
        live=7,
        lost_writes=SimpleNamespace(recent_count=8),
        let_rest=lambda: None,
        moves=SimpleNamespace(lately=lambda: 2),
        put_off=SimpleNamespace(waits=lambda: (1, [StorageWait(3, "r", "payload", 2.5)])),
    )
    daemon.executor = SimpleNamespace(running=1, waiting=2, started=9, hung=3, reporting=list)
    daemon.reader = SimpleNamespace(buffered=lambda: 4)
    daemon.admission = SimpleNamespace(waiting=lambda: 8)
    daemon.rollup = SimpleNamespace(unfolded=5, folds=6)
    daemon.membership = SimpleNamespace(draining=True)
    daemon.waking = SimpleNamespace(failing=0, waits=list)
    daemon._clock = FakeClock()
    lacking = Lacking("10.0.0.1:6379", "replicas:1", 9.0, 1, "no replica has confirmed it")
    daemon._store = SimpleNamespace(confirmation=SimpleNamespace(lacking=lambda _: [lacking]))
    daemon._troubles = Troubles()
    daemon._troubles.failed("shard 3", "can't be read", StoreError("WRONGTYPE"), stops=True)
    daemon._troubles.failed("shard 4", "can't be relayed", StoreError("full"), stops=False)
    monkeypatch.setattr(inspect.getmodule(Daemon), "Heartbeat", record)
    heartbeat = daemon._beat()
    assert set(fields) == set(Heartbeat.__struct_fields__) - {"beat"}, "its number is given when it is sent"
    assert (heartbeat.shards, heartbeat.stopped, heartbeat.steps) == ([3], 1, 9)
    assert (list(heartbeat.broken), list(heartbeat.impaired)) == (["shard 3"], ["server 10.0.0.1:6379", "shard 4"])
    assert decode_heartbeat(msgspec.json.encode(heartbeat)) == heartbeat


def test_the_names_on_the_server_stay_because_two_versions_read_each_other() -> None:
    """Add to them; never rename or remove one."""
    assert set(msgspec.json.decode(msgspec.json.encode(Heartbeat()))) == ON_THE_SERVER


@pytest.mark.parametrize(
    ("raw", "heartbeat"),
    [
        (b'{"beat":3,"name":"old"}', Heartbeat(beat=3, name="old")),
        (b'{"beat":3,"name":"new","gpus":2}', Heartbeat(beat=3, name="new")),
        (b'{"beat":"three"}', Heartbeat()),
        (b"[1]", Heartbeat()),
        (b"\xff", Heartbeat()),
        (b"", Heartbeat()),
    ],
    ids=["older", "newer", "another type", "another shape", "garbage", "empty"],
)
def test_a_heartbeat_of_another_version_or_garbage_is_a_heartbeat(raw: bytes, heartbeat: Heartbeat) -> None:
    assert decode_heartbeat(raw) == heartbeat


def test_the_json_of_a_daemon_has_the_same_keys_in_the_same_order() -> None:
    [daemon] = status_json(status_of(Heartbeat(shards=[1, 2], steps=5, cpu=1.5)))["daemons"]
    assert list(daemon) == PRINTED
    assert (daemon["id"], daemon["name"], daemon["shards"], daemon["steps_per_s"]) == ("m", "m", 2, None)


def test_a_new_field_is_in_the_json_without_further_work() -> None:
    [daemon] = status_json(status_of(NextHeartbeat(gpus=8)))["daemons"]
    assert daemon["gpus"] == 8


def test_a_new_column_is_one_heading_with_its_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    def cell(daemon: DaemonRow) -> Text:
        assert isinstance(daemon.heartbeat, NextHeartbeat)
        return Text(str(daemon.heartbeat.gpus))

    monkeypatch.setattr(daemons, "COLUMNS", (*daemons.COLUMNS, (Column("gpus"), cell)))
    lines = [line.plain for line in status_lines(status_of(NextHeartbeat(gpus=8)), 100)]
    heading = next(number for number, line in enumerate(lines) if line.startswith("DAEMONS"))
    assert lines[heading].split()[-1] == "gpus"
    assert lines[heading + 1].split()[-1] == "8"
