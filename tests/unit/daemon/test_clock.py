"""A daemon's clock: what it begins with, and what it makes of a server whose clock jumps or drifts."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from streamflow.daemon.clock import (
    SLEW,
    SOON,
    STEADY,
    Claim,
    DaemonClock,
    agreed_time,
    earliest_time,
    start_clock,
    wall_ms,
)
from streamflow.errors import StoreError
from streamflow.wire import Heartbeat
from tests.support.fakes import KERNEL, FakeStore

NOW = 1_700_000_000_000.0
HOUR = 3_600_000.0
FRESH = 2000.0


class Time:
    """True time in seconds, and clocks that are wrong by `server` and `wall` ms."""

    def __init__(self) -> None:
        self.seconds = 50.0
        self.server = 0.0
        self.wall = 0.0
        self.clock = DaemonClock(self.true_ms, lambda: self.seconds, lambda: self.true_ms + self.wall)

    @property
    def true_ms(self) -> float:
        return NOW + self.seconds * 1000

    @property
    def error(self) -> float:
        """By how many ms the clock is wrong."""
        return self.clock.now_ms() - self.true_ms

    def beat(self, seconds: float, others: Sequence[int] = (), took: float = 0.0, server_drift: float = 0.0) -> None:
        """Heartbeats for so long, one each half second."""
        for _ in range(round(seconds * 2)):
            self.seconds += 0.5
            self.server += 0.5 * server_drift
            self.clock.measure(int(self.true_ms + self.server - took * 500), took, others)


@pytest.fixture
def time() -> Time:
    return Time()


# --- while it runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [HOUR, -HOUR, 40_000.0, -40_000.0])
def test_a_jump_of_the_servers_clock_and_back_moves_nothing(time: Time, jump: float) -> None:
    time.beat(10)
    time.server = jump
    time.beat(STEADY / 2)
    assert abs(time.error) <= 1
    assert time.clock.server_ms() == pytest.approx(time.true_ms + jump, abs=2)
    time.server = 0
    time.beat(60)
    assert abs(time.error) <= 1
    assert time.clock.server_ms() == pytest.approx(time.true_ms, abs=2)


def test_a_server_that_stays_wrong_moves_nothing_while_the_host_is_right(time: Time) -> None:
    time.server = HOUR
    time.beat(10 * STEADY)
    assert abs(time.error) <= 1


def test_a_drift_is_followed_by_half_a_ms_per_second(time: Time) -> None:
    time.server = 400.0
    before = time.error
    for _ in range(1000):
        time.beat(1)
        assert abs(time.error - before) <= 1000 * SLEW + 1
        before = time.error
    assert time.error == pytest.approx(400, abs=1)
    time.beat(2000, server_drift=0.1)  # 100 ppm: a crystal
    assert time.error == pytest.approx(600, abs=1)


def test_a_clock_that_cannot_be_followed_is_left(time: Time) -> None:
    time.beat(200, server_drift=10.0)  # ten times as fast as the clock follows: soon it is far
    assert time.error < 120
    error = time.error
    time.beat(200, server_drift=10.0)
    assert time.error == pytest.approx(error, abs=1)


def test_daemons_keep_together_while_the_servers_clock_is_wrong(time: Time) -> None:
    """Two others are 300 ms ahead of this one, as far as they are from a server that is an hour behind."""
    time.server = -HOUR
    ahead = round(HOUR + 300)
    time.beat(100, others=[ahead, ahead])
    assert 40 < time.error < 60
    time.beat(900, others=[ahead, ahead])
    assert time.error == pytest.approx(300, abs=2)


def test_the_way_of_an_answer_is_no_difference(time: Time) -> None:
    time.beat(100, took=0.2)
    assert abs(time.error) <= 1
    time.seconds += 0.5
    time.clock.measure(int(time.true_ms - 900), 1.0)  # one way took almost all of it
    assert (abs(time.error) <= 1, abs(time.clock.ahead) <= 1) == (True, True)
    time.clock.measure(int(time.true_ms + HOUR), 1.0)  # but this can't be the way
    assert time.clock.ahead == pytest.approx(-HOUR, abs=1000)


def test_a_host_that_stood_still_is_right_again_after_ten_minutes(time: Time) -> None:
    """A virtual machine that was paused: no monotonic clock of its own knows."""
    time.server = time.wall = 90_000.0
    time.beat(STEADY - 1)
    assert abs(time.error) <= 1
    time.beat(2)
    assert time.error == pytest.approx(90_000, abs=2)
    assert abs(time.clock.ahead) <= 1


def test_it_is_right_again_sooner_if_other_daemons_are(time: Time) -> None:
    time.server = time.wall = 90_000.0
    time.beat(SOON - 1, others=[5, -90_000])
    assert abs(time.error) <= SLEW * 1000 * SOON
    time.beat(2, others=[5, -90_000])
    assert time.error == pytest.approx(90_000, abs=2)


def test_a_jump_of_the_whole_machines_wall_clock_and_back_moves_nothing(time: Time) -> None:
    for _ in range(5):
        time.server = time.wall = HOUR
        time.beat(STEADY - 60)
        time.server = time.wall = 0.0
        time.beat(60)
        assert abs(time.error) <= 1


def test_how_long_ago_the_servers_clock_jumped(time: Time) -> None:
    time.beat(10)
    assert time.clock.since_jump > 1e9
    time.server = -HOUR
    time.beat(10)
    assert time.clock.since_jump == pytest.approx(9.5)
    time.server = 0
    time.beat(1)
    assert time.clock.since_jump == pytest.approx(0.5)


def test_a_wait_ends_when_the_clock_says_so(time: Time) -> None:
    due = time.clock.now_ms() + 1500
    assert time.clock.seconds_until(due) == pytest.approx(1.5)
    time.seconds += 1.5
    assert time.clock.seconds_until(due) == 0
    assert time.clock.now_ms() >= due


@pytest.mark.parametrize(("jump", "words"), [(HOUR, "3600.0 s ahead of"), (-HOUR, "3600.0 s behind")])
def test_a_wrong_server_is_said_once(time: Time, jump: float, words: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "streamflow.clock")
    time.server = jump
    time.beat(100)
    time.server = 0
    time.beat(100)
    wrong, right = [record.getMessage() for record in caplog.records]
    assert f"the server's clock is {words} this daemon's" in wrong
    assert "agrees with this daemon's again" in right


# --- what it begins with ----------------------------------------------------------------------------------------------


def test_server_and_host_that_agree_are_believed() -> None:
    assert agreed_time(NOW, NOW + 300, [], FRESH) == NOW


@pytest.mark.parametrize("jump", [HOUR, -HOUR, 40_000.0, -40_000.0])
def test_a_daemon_that_starts_takes_over_the_time_of_those_that_live(jump: float) -> None:
    living = [Claim(round(NOW - 400), round(-jump)), Claim(round(NOW - 100), round(-jump + 20))]
    assert agreed_time(NOW + jump, NOW, living, FRESH) == pytest.approx(NOW + 10)
    assert agreed_time(NOW + jump, NOW + jump, living, FRESH) == pytest.approx(NOW + 10), "the host is wrong as well"


@pytest.mark.parametrize("jump", [HOUR, -HOUR, 40_000.0, -40_000.0])
def test_what_a_daemon_measured_before_the_jump_is_not_believed(jump: float) -> None:
    """It has not beaten since: its clock tells which of server and host is right."""
    before = [Claim(round(NOW - 400), 0)]
    assert agreed_time(NOW + jump, NOW, before, FRESH) == NOW
    assert agreed_time(NOW, NOW + jump, before, FRESH) == NOW


def test_a_dead_daemon_that_had_found_the_server_wrong_counts() -> None:
    dead = [Claim(round(NOW - HOUR), 40_000)]
    assert agreed_time(NOW - 40_000, NOW, dead, FRESH) == NOW
    assert agreed_time(NOW, NOW, dead, FRESH) == NOW, "the server was set right since"


def test_in_doubt_the_earlier_clock_counts_that_is_not_behind_what_was() -> None:
    assert agreed_time(NOW, NOW + HOUR, [], FRESH) is None
    assert earliest_time(NOW, NOW + HOUR, []) == NOW
    for known in ([NOW - 5000], [NOW - 2 * HOUR, NOW - 5000], [NOW - 5000, NOW + 2 * HOUR]):
        assert earliest_time(NOW + HOUR, NOW, known) == NOW
        assert earliest_time(NOW - HOUR, NOW, known) == NOW
        assert earliest_time(NOW, NOW - HOUR, known) == NOW


def server(ms: float, members: dict[bytes, bytes], stored: bytes | None = None) -> FakeStore:
    return FakeStore(TIME=(int(ms // 1000), int(ms % 1000) * 1000), HGETALL=members, HGET=stored)


@pytest.mark.anyio
async def test_the_clock_of_a_daemon_that_starts_alone() -> None:
    clock = await start_clock(server(wall_ms(), {}), KERNEL, 2, 0.5)  # type: ignore[arg-type]
    assert clock.now_ms() == pytest.approx(wall_ms(), abs=100)
    assert abs(clock.ahead) <= 100


@pytest.mark.anyio
async def test_the_clock_of_a_daemon_that_starts_while_the_server_is_wrong() -> None:
    old = msgspec.json.encode(Heartbeat(name="of a version without a clock"))
    living = msgspec.json.encode(Heartbeat(clock=round(wall_ms()), ahead=round(HOUR)))
    store = server(wall_ms() - HOUR, {b"a": living, b"b": old})
    clock = await start_clock(store, KERNEL, 2, 0.5)  # type: ignore[arg-type]
    assert clock.now_ms() == pytest.approx(wall_ms(), abs=100)
    assert clock.ahead == pytest.approx(HOUR, abs=100)


@pytest.mark.anyio
@pytest.mark.parametrize(("jump", "whose"), [(HOUR, "the host's"), (-HOUR, "the host's")])
async def test_the_clock_of_a_daemon_alone_with_a_wrong_server(
    jump: float, whose: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = server(wall_ms() + jump, {}, stored=b"%d" % (wall_ms() - 5000))
    clock = await start_clock(store, KERNEL, 2, 0.5)  # type: ignore[arg-type]
    assert clock.now_ms() == pytest.approx(wall_ms(), abs=100)
    [said] = caplog.records
    assert f"differ by 3600.0 s, and no other daemon runs: this daemon goes by {whose}" in said.getMessage()


@pytest.mark.anyio
async def test_a_server_that_does_not_tell_the_time_is_an_error() -> None:
    with pytest.raises(StoreError, match="TIME is renamed"):
        await start_clock(FakeStore(TIME=StoreError("TIME is renamed"), HGETALL={}), KERNEL, 2, 0.5)  # type: ignore[arg-type]
