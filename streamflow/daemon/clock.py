"""A daemon's clock: moved by its own monotonic clock; what other clocks say is evidence, never an order.

Owns: what the clock begins with, and how it follows the server's. Must not: jump because another clock has jumped.
Called by: the daemon (starts it), owner and batch (stamp transitions, wait for due times), takeover, relay, membership
(measures it with every heartbeat), rollup, retention. Decision 22 in `docs/decisions/` has the reasons.

All times on the server that matter to runs are on the daemons' clocks: `at` of transitions, due times, the shard's
`clock`. So the clocks of a namespace's daemons must agree within a second, and none of them may follow a server whose
wall clock is set to another time. A daemon that starts takes over the time of the daemons that live; alone it believes
its server and its own host if they agree. Afterwards small differences to the server are followed slowly, and large
ones are reported and otherwise ignored.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from streamflow.errors import StoreError
from streamflow.store.connection import Call, Store
from streamflow.store.kernel import Kernel
from streamflow.wire import decode_heartbeat

_log = logging.getLogger("streamflow.clock")

NEAR = 1000.0
"""Ms by which two clocks may differ that count as agreeing."""
SLEW = 0.0005
"""By how much a clock goes faster or slower to follow the server: 0.5 ms per second."""
LONGEST_SLEW = 60.0
"""Seconds after which a pause between two measurements counts no more for that."""
ROUND_TRIP = 0.25
"""Seconds that the answer of a useful measurement may have taken."""
STEADY = 600.0
"""Seconds for which the server's and the host's clock must have agreed on another time before it is believed: this
daemon's clock has stood still then, as in a virtual machine that was paused, or both were set right since it began."""
SOON = 30.0
"""The same, if another daemon goes by that time, too."""


def seconds_since_boot() -> float:
    """Like `time.monotonic`, but time during which the host was suspended counts, too."""
    return time.clock_gettime(_BOOT_CLOCK)


def _boot_clock() -> int:
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # on macOS the latter counts suspended time
    try:
        time.clock_gettime(clock)
    except OSError:
        return time.CLOCK_MONOTONIC
    return clock


_BOOT_CLOCK = _boot_clock()


def wall_ms() -> float:
    return time.time() * 1000


class Claim(NamedTuple):
    """What a daemon has said with a heartbeat: its time (ms) then, and by how many ms that is ahead of the server's."""

    clock: int
    ahead: int


class DaemonClock:
    """Set it once, then `measure` it with every heartbeat."""

    __slots__ = (
        "_doubt",
        "_doubted_since",
        "_is_far",
        "_jumped",
        "_measured",
        "_monotonic",
        "_offset",
        "_wall",
        "ahead",
    )

    def __init__(
        self, now_ms: float, monotonic: Callable[[], float] = seconds_since_boot, wall: Callable[[], float] = wall_ms
    ) -> None:
        self._monotonic = monotonic
        self._wall = wall
        self._measured = monotonic()
        self._offset = now_ms - self._measured * 1000
        self.ahead = 0
        """By how many ms it is ahead of the server's clock, as measured last."""
        self._is_far = False
        self._jumped = -math.inf
        """When the server's clock was last seen to have been set to another time."""
        self._doubt = 0.0
        """By how much server and host disagree with this clock, if they agree with each other,"""
        self._doubted_since = math.inf
        """and since when."""

    def now_ms(self) -> int:
        return int(self._offset + self._monotonic() * 1000)

    def seconds_until(self, due_ms: float) -> float:
        return max(0.0, (due_ms - self._offset) / 1000 - self._monotonic())

    def server_ms(self) -> int:
        """What the server's clock says now, as far as is known."""
        return self.now_ms() - self.ahead

    @property
    def since_jump(self) -> float:
        """Seconds since the server's clock was seen to have been set to another time."""
        return self._monotonic() - self._jumped

    def measure(self, server_ms: int, took: float, others: Iterable[int] = ()) -> None:
        """The server's clock was read, and the answer has just arrived, `took` seconds after the question.

        `others`: by how much the clocks of the other daemons are ahead of the server's.
        """
        now = self._monotonic()
        own = self._offset + now * 1000 - took * 500
        ahead = own - server_ms
        if took > ROUND_TRIP and abs(ahead - self.ahead) <= took * 1000:
            return
        if abs(ahead - self.ahead) > NEAR:
            self._jumped = now
        self.ahead = round(ahead)
        self._report(ahead)
        others = list(others)
        # Far from the server the daemons keep together: the middle of their clocks is where each of them goes.
        error = ahead - statistics.median((ahead, *others)) if self._is_far else ahead
        most = min(now - self._measured, LONGEST_SLEW) * 1000 * SLEW
        self._measured = now
        self._offset -= min(max(error, -most), most)
        if self._is_far and abs(own - self._wall() - ahead) <= NEAR:
            self._doubt_own(now, ahead, SOON if any(abs(other) <= NEAR for other in others) else STEADY)
        else:
            self._doubted_since = math.inf

    def _report(self, ahead: float) -> None:
        is_far = abs(ahead) > NEAR
        if is_far and not self._is_far:
            _log.warning(
                "the server's clock is %.1f s %s this daemon's, which goes on as before: no timer is early or late for "
                "it, but the times at which runs were started may look wrong until the server's clock is set right",
                abs(ahead) / 1000,
                "behind" if ahead > 0 else "ahead of",
            )
        elif self._is_far and not is_far:
            _log.info("the server's clock agrees with this daemon's again")
        self._is_far = is_far

    def _doubt_own(self, now: float, ahead: float, patience: float) -> None:
        if self._doubted_since == math.inf or abs(ahead - self._doubt) > NEAR:
            self._doubt, self._doubted_since = ahead, now
        elif now - self._doubted_since >= patience:
            _log.warning(
                "this daemon's clock is moved by %.1f s, because the server's and the host's have agreed on that for "
                "%.0f s; its timers are early or late by that once",
                -ahead / 1000,
                patience,
            )
            self._offset -= ahead
            self.ahead, self._is_far, self._doubted_since = 0, False, math.inf


def agreed_time(server: float, wall: float, claims: Sequence[Claim], fresh: float) -> float | None:
    """The time (ms) to begin with: that of the daemons that live, or what the server and this host agree on.

    `claims`: of all members; a daemon counts as living if it was heard within `fresh` ms. None if there is no living
    one, and the two disagree.
    """

    def fits(now: float, claim: Claim) -> bool:
        return -NEAR <= now - claim.clock <= fresh

    # A claim that doesn't fit itself is an old one, or the server's clock was set since.
    living = [server + claim.ahead for claim in claims if fits(server + claim.ahead, claim)]
    if living:
        return statistics.median(living)
    if abs(server - wall) <= NEAR:
        return server
    for candidate in (wall, server):
        if any(fits(candidate, claim) for claim in claims):
            return candidate
    # A daemon that died had found the server as wrong as this host does.
    return wall if any(abs(server + claim.ahead - wall) <= NEAR for claim in claims) else None


def earliest_time(server: float, wall: float, known: Iterable[float]) -> float:
    """The time (ms) to begin with when server and host disagree and nobody else knows: timers had better be late than
    early, but it isn't behind the times in `known`, which have been; but for those that both call the future."""
    later = max(server, wall)
    latest = max((time for time in known if time <= later + NEAR), default=0)
    return min(time for time in (server, wall) if time >= latest - NEAR)


async def start_clock(store: Store, kernel: Kernel, shards: int, beat: float) -> DaemonClock:
    """A clock for a daemon that starts. `beat`: seconds between two heartbeats. Raises `StoreError`."""
    answer, members, took = await _ask(store, kernel)
    for _ in range(2):
        if took > ROUND_TRIP:
            answer, members, took = await _ask(store, kernel)
    if isinstance(answer, StoreError):
        raise answer
    server, wall = _server_ms(answer) + took * 500, wall_ms()
    heard = [] if isinstance(members, StoreError) else [decode_heartbeat(raw) for raw in members.values()]
    claims = [Claim(heartbeat.clock, heartbeat.ahead) for heartbeat in heard if heartbeat.clock]
    now = agreed_time(server, wall, claims, fresh=2000 * beat + NEAR)
    if now is None:
        known = [claim.clock for claim in claims] + await _clocks(store, kernel, shards)
        now = earliest_time(server, wall, known)
        _log.warning(
            "the clocks of the server and of this host differ by %.1f s, and no other daemon runs: this daemon goes by "
            "%s. Set the wrong one right",
            abs(server - wall) / 1000,
            "the server's" if now == server else "the host's",
        )
    clock = DaemonClock(now + wall_ms() - wall)
    clock.ahead = round(now - server)
    return clock


async def _ask(store: Store, kernel: Kernel) -> tuple[Any, Any, float]:
    """The server's time, all heartbeats, and how many seconds the answer took."""
    asked = time.monotonic()
    answer, members = await store.send(
        [Call.plain("TIME", near=kernel.keys.members), Call.plain("HGETALL", kernel.keys.members)]
    )
    return answer, members, time.monotonic() - asked


async def _clocks(store: Store, kernel: Kernel, shards: int) -> list[int]:
    """What the owners' clocks were when they wrote last (ms)."""
    answers = await store.send([Call.plain("HGET", kernel.keys.shard(n).owner, "clock") for n in range(shards)])
    return [int(answer) for answer in answers if isinstance(answer, bytes) and answer.isdigit() and len(answer) < 16]


def _server_ms(answer: Sequence[bytes]) -> float:
    seconds, micros = answer
    return int(seconds) * 1000 + int(micros) / 1000
