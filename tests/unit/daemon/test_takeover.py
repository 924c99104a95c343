"""What a takeover reads comes in portions of bounded size, and what needn't be in memory stays on the server."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from typing import Any

import pytest

from streamflow.daemon import takeover as module
from streamflow.daemon.relay import OVERHEAD, Relay
from streamflow.daemon.shard import OwnedShard
from streamflow.daemon.takeover import Takeover
from streamflow.errors import StoreError
from streamflow.model.record import Status
from streamflow.store.connection import Call
from streamflow.wire import OutboxMessage, encode_outbox
from tests.support.fakes import KERNEL, FakeClock, FakeStore, context, owned

pytestmark = pytest.mark.anyio

SHARDS = 64


class Bench:
    def __init__(self, most: int = 10_000_000, **answers: Any) -> None:
        self.store = FakeStore(**answers)
        self.relay = Relay(self.store, KERNEL, FakeClock(), most)  # type: ignore[arg-type]
        nothing: Any = None
        self.takeover = Takeover(context(self.store, shards=SHARDS), self.relay, nothing, nothing)
        self.shards = [owned(number) for number in range(SHARDS)]

    def largest(self) -> int:
        """Ids that one pipeline may have got."""
        return max(sum(_limit(call) for call in calls) for calls in self.store.calls)


def _limit(call: Call[Any]) -> int:
    return int(call.args[-1])


def _page(call: Call[Any], ids: list[bytes]) -> list[bytes]:
    first = int(call.args[-2])
    return ids[first : first + _limit(call)]


def _scanned(call: Call[Any], ids: list[bytes]) -> tuple[bytes, list[tuple[bytes, float]]]:
    first, count = int(call.args[2]), _limit(call)
    following = first + count if first + count < len(ids) else 0
    return b"%d" % following, [(run_id, 1.0) for run_id in ids[first : first + count]]


@pytest.mark.parametrize("many", [1, SHARDS])
async def test_listings_of_runs_are_read_in_pipelines_of_bounded_size(many: int) -> None:
    """Of one shard with very many stuck runs, and of many shards with some."""
    stuck = [b"stuck%d" % n for n in range(100_000 // many)]
    in_flight = [b"flying%d" % n for n in range(30_000 // many)]
    bench = Bench(
        ZSCAN=lambda call: _scanned(call, stuck if "stuck:flow1" in call.args[1] else []),
        ZRANGEBYSCORE=lambda call: _page(call, in_flight),
    )
    shards = bench.shards[:many]
    shards[0].lost_with = "dead"
    assert await bench.takeover._read_listings(shards, [f"flow{n}" for n in range(5)]) == shards
    assert bench.largest() * module.ID_BYTES <= module.BYTES + module.ID_BYTES
    for shard in shards:
        first = stuck[: module.STUCK_IDS]
        assert shard.inputs.keys() == {run_id.decode() for run_id in (*first, *in_flight)}
        assert shard.stuck == {(Status.STUCK, "flow1"): module.STUCK_IDS}, "the others are read when these are through"
    assert shards[0].orphans == shards[0].careful.keys() == {run_id.decode() for run_id in in_flight}


async def test_what_raises_for_one_shard_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever it is: what somebody else has written may raise anything where it is read."""
    bench = Bench(read_hash=([], [(b"r/1", b"host 900 1 wanted")]))
    seen: list[int] = []

    def restore(shard: OwnedShard, _: Any) -> None:
        if shard.number == 3:
            raise ZeroDivisionError("a defect")
        seen.append(shard.number)

    found = await bench.takeover._read_hashes(bench.shards[:5], lambda shard: shard.keys.steps, restore)
    assert [shard.number for shard in found] == seen == [0, 1, 2, 4]
    assert "shard 3 could not be acquired" in caplog.text
    assert "ZeroDivisionError: a defect" in caplog.text


async def test_a_shard_whose_listing_cannot_be_read_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    def answer(call: Call[Any]) -> Any:
        if "/3}" in call.args[1]:
            return StoreError("WRONGTYPE")
        return (b"0", []) if call.args[0] == "ZSCAN" else []

    bench = Bench(ZSCAN=answer, ZRANGEBYSCORE=answer)
    found = await bench.takeover._read_listings(bench.shards[:5], ["one", "two"])
    assert [shard.number for shard in found] == [0, 1, 2, 4]
    assert caplog.text.count("shard 3 could not be acquired") == 1


async def test_details_of_steps_stay_on_the_server_at_a_takeover() -> None:
    """Those of lent ones are read when the host dies, those of steps that are to run here with their runs."""
    bench = Bench()
    shard = bench.shards[0]
    bench.takeover._restore_steps(shard, [(b"lent/1", b"host 900 1 wanted")])
    bench.takeover._restore_details(shard, [(b"lent/1", b"900 " + b"x" * 1000), (b"own/1", b"900 half")])
    lent, own = shard.records["lent"][1], shard.records["own"][1]
    assert (lent.details, lent.unread) == (own.details, not own.unread) == (b"", False)


async def test_of_a_long_outbox_only_the_beginning_is_read() -> None:
    """The relay reads on when it has delivered some."""
    body = encode_outbox([OutboxMessage(1, "signal", "r", b"x" * 1000)])
    bench = Bench(
        20 * (1000 + OVERHEAD), read_stream=lambda _: (True, [(b"7-%d" % n, {b"messages": body}) for n in range(1, 9)])
    )
    found: list[OwnedShard] = await bench.takeover._relay_outboxes(bench.shards)
    assert found == bench.shards
    assert [call.args[0] for call in bench.store.sent("read_stream")] == ["0-0"] * SHARDS, "once"
    assert bench.relay.waiting == 3 * 8
    positions = [bench.relay._unread[shard.number].rest for shard in bench.shards]
    assert positions == [(7, 9)] * 3 + [(0, 1)] * (SHARDS - 3)
