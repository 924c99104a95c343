"""How many batches are under way to each server, and whose end is waited for."""

from __future__ import annotations

import anyio
import pytest

from streamflow.daemon import slots as module
from streamflow.daemon.slots import Slots

pytestmark = pytest.mark.anyio


async def test_each_server_has_its_own_slots() -> None:
    slots = Slots(2)
    for _ in range(2):
        slots.take(1)
    assert not slots.is_free(1)
    assert slots.is_free(2)
    assert slots.all_taken()
    slots.free(1)
    assert slots.is_free(1)


async def test_all_are_free_but_those_that_are_ignored_from_now_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY", 0.01)
    slots, ignored = Slots(2), set[int]()
    slots.take(1)
    slots.take(2)
    is_over = anyio.Event()

    async def wait() -> None:
        await slots.all_free(ignored.__contains__)
        is_over.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        slots.free(1)
        await anyio.wait_all_tasks_blocked()
        assert not is_over.is_set()
        ignored.add(2)
        with anyio.fail_after(5):
            await is_over.wait()
