"""What a daemon does when the record of its namespace has changed, against a store that answers from a table."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import pytest

from streamflow.daemon.registration import Registration
from streamflow.errors import StoreError, StoreMisconfigured, StoreUnavailable
from streamflow.model.sharding import Partition
from streamflow.settings import Settings
from streamflow.store.connection import Call
from streamflow.store.durability import Confirmation
from streamflow.store.kernel import SCHEMA, NamespaceRecord
from tests.support.fakes import FakeStore, context

pytestmark = pytest.mark.anyio


async def away(*_: object, **__: object) -> None:
    raise StoreUnavailable("away")


class Bench:
    def __init__(self, wait: Any = 2) -> None:
        self.record: list[bytes | None] = [b"identity", b"server"]
        self.store = FakeStore(HMGET=lambda _: self.record, store_records=b"OK", WAIT=wait)
        whole = context(self.store, shards=4, settings=Settings(shards=4))
        self.registration = Registration(
            dataclasses.replace(whole, namespace=msgspec.structs.replace(whole.namespace, identity="identity"))
        )

    @property
    def level(self) -> str:
        confirmation: Confirmation | None = self.store.confirmation
        return "server" if confirmation is None else str(confirmation.durability)

    @property
    def is_noticed(self) -> bool:
        self.registration.compare(*self.record)
        return self.registration._differs.is_set()

    async def changed_to(self, level: str) -> str:
        self.record[1] = level.encode()
        assert self.is_noticed
        await self.registration._run_once()
        assert not self.is_noticed
        return self.level


async def test_a_daemon_follows_the_level_of_its_namespace() -> None:
    bench = Bench()
    assert not bench.is_noticed
    bench.record[1] = None  # as an earlier release has created it
    assert not bench.is_noticed
    for level in ("replicas:2", "replicas:1", "disk", "server", "replicas:1"):
        bench.store.answers["WAITAOF"] = [1, 0]
        assert await bench.changed_to(level) == level


async def test_queues_are_put_into_the_list_once_and_nothing_waits_for_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench()
    bench.registration.add_queue("gpu")
    bench.registration.add_queue("cpu")
    send = bench.store.send
    monkeypatch.setattr(bench.store, "send", away)
    with pytest.raises(StoreUnavailable):
        await bench.registration._run_once()
    monkeypatch.setattr(bench.store, "send", send)
    await bench.registration._run_once()
    assert bench.store.sent("store_records")[-1].args == ["cpu", b"1", "gpu", b"1"]
    bench.registration.add_queue("tpu")
    bench.store.answers["store_records"] = StoreError("store_records: WRONGTYPE")
    await bench.registration._run_once()
    assert bench.store.sent("store_records")[-1].args == ["tpu", b"1"]
    assert "tpu can't be registered, so `status` doesn't list them" in caplog.text


async def test_a_level_that_the_server_cannot_give_is_followed_and_said(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(wait=StoreMisconfigured("NOPERM"))
    assert await bench.changed_to("replicas:1") == "replicas:1"
    assert "decisions of this daemon wait, because the server can't confirm them" in caplog.text


async def test_a_level_of_a_later_release_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    await bench.changed_to("replicas:1")
    assert await bench.changed_to("moon") == "replicas:1"
    assert caplog.text.count("which this release can't give") == 1


async def test_data_that_were_deleted_begin_with_the_level_that_was_followed() -> None:
    bench = Bench()
    await bench.changed_to("replicas:1")
    written: list[Call[Any]] = []
    bench.store.answers["store_records"] = lambda call: written.append(call) or b"OK"
    bench.store.answers["open_namespace"] = NamespaceRecord(4, Partition.RUN, SCHEMA, "other")
    found: list[str] = []
    bench.registration.on_other_data = found.append
    bench.record = [None, None]
    assert bench.is_noticed
    await bench.registration._run_once()
    assert found == ["other"]
    assert [part for call in written for part in call.args if part in (b"replicas:1", b"server")] == [b"replicas:1"]
    assert bench.level == "replicas:1"
