"""Large payloads in a storage that is slow."""

from __future__ import annotations

import threading
import time

import pytest

from streamflow.archive import storage as module
from streamflow.archive.payloads import Payloads
from streamflow.errors import ArchiveError
from streamflow.model.references import Reference, reference_to

pytestmark = pytest.mark.anyio

WEEK = 2900


class Slow:
    """Each call takes `seconds`; behind `fails_after` calls they fail."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.fails_after = 10**9
        self.calls = 0
        self.objects: dict[str, bytes] = {}
        self.lock = threading.Lock()

    def _call(self) -> None:
        time.sleep(self.seconds)
        with self.lock:
            self.calls += 1
            if self.calls > self.fails_after:
                raise OSError("is away")

    def put(self, name: str, data: bytes) -> None:
        self._call()
        self.objects[name] = data

    def get(self, name: str) -> bytes | None:
        self._call()
        return self.objects.get(name)

    def names(self, folder: str) -> list[str]:
        return []

    def remove(self, name: str) -> None:
        del self.objects[name]


def many(count: int) -> dict[Reference, bytes]:
    return {reference_to(data, WEEK): data for data in (b"%d" % n * 2000 for n in range(count))}


async def test_many_payloads_take_longer_together_than_one_call_may() -> None:
    storage, wanted = Slow(0.02), many(10 * module.AT_ONCE)
    await Payloads("memory://x", "ns", timeout=0.15, storage=storage).store(wanted)
    assert len(storage.objects) == len(wanted)
    assert await Payloads("memory://x", "ns", timeout=0.15, storage=storage).fetch(wanted) == wanted


async def test_when_one_fails_the_others_are_left_and_what_was_read_stays() -> None:
    storage, wanted = Slow(0.0), many(100)
    payloads = Payloads("memory://x", "ns", storage=storage)
    storage.fails_after = 50
    with pytest.raises(ArchiveError, match="is away"):
        await payloads.store(wanted)
    assert storage.calls < 80
    assert 40 < len(payloads.recent(wanted)) <= 50
    storage.fails_after = 10**9
    await payloads.store(wanted)
    assert len(storage.objects) == 100
