"""Who owns which shards: decided from heartbeats, on a monotonic clock that the tests step."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import anyio
import msgspec
import pytest

from streamflow.daemon import membership as module
from streamflow.daemon.membership import Membership
from streamflow.daemon.owner import DEFECT
from streamflow.daemon.shard import CODE, OwnedShard, PutOffRun, RunWork, StepRecord, parked_by
from streamflow.daemon.takeover import NOT_ACQUIRED
from streamflow.errors import StoreError, StoreUnavailable
from streamflow.model.sharding import winner_of
from streamflow.settings import Settings
from streamflow.store.connection import Call
from streamflow.store.kernel import Heartbeats, LentStep, Reply
from streamflow.wire import Heartbeat
from tests.support.fakes import KERNEL, FakeClock, FakeStore, context, owned

pytestmark = pytest.mark.anyio

SHARDS = 16
SETTINGS = Settings(beat=0.5, dead_after=2.0, grace=10.0)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class Parts:
    """Owner, executor, reader, takeover, rollup and step records, as far as membership asks them."""

    def __init__(self) -> None:
        self.shards: dict[int, OwnedShard] = {}
        self.held = False
        self.leading = False
        self.others_folds = 0
        self.running = 0
        self.steps: dict[int, int] = {}
        self.lent: list[int] = []
        self.told: list[int] = []
        """Shards whose release was answered."""
        self.records: dict[str, dict[int, StepRecord]] = {}
        self.acquired: list[dict[int, tuple[str, str]]] = []
        self.stored: list[int] = []
        self.dropped: list[int] = []
        self.retried = 0
        self.looked = 0
        self.changes = 0
        self.looks = 0
        self.live = 0
        self.reported: list[str] = []
        self.given: list[int] = []
        self.forgotten = 0
        """How often it looked for steps of which the server has lost the reports."""

    @property
    def suspects(self) -> Any:
        return self

    def deaths(self, *_: Any) -> int:
        return 2

    @property
    def lost_writes(self) -> Any:
        return self

    # lost writes
    def history_changed(self) -> None:
        self.reported.append("changed")

    def found(self, shard: OwnedShard) -> None:
        pass

    async def compare(self, shards: set[int]) -> None:
        if "changed" in self.reported:
            assert not shards & self.shards.keys(), "nothing may happen in them before"
            self.reported.append(f"compared {len(shards)}")

    async def report(self) -> None:
        if "changed" in self.reported:
            self.reported.append("reported")

    # commits
    @property
    def recent_commits(self) -> Any:
        return self

    def given_up(self, number: int) -> None:
        self.given.append(number)

    # owner
    def add(self, shard: OwnedShard) -> None:
        self.shards[shard.number] = shard

    def touch(self, _: OwnedShard) -> None:
        pass

    @property
    def active(self) -> dict[int, OwnedShard]:
        return self.shards

    def drop(self, *shards: OwnedShard) -> None:
        for shard in shards:
            self.dropped.append(shard.number)
            self.shards.pop(shard.number, None)

    def retry_broken(self) -> None:
        self.retried += 1

    def look_at_clock(self) -> None:
        self.looked += 1

    # step records, and the executor, which is asked once for all
    def lend(self, shard: Any, *of_records: Any) -> Any:
        if not of_records:
            return {}
        self.lent.append(shard)
        return [LentStep(f"r/{seq}", "me", 5, 1) for seq in range(1, self.steps.get(shard, 0) + 1)]

    def look_for_forgotten(self) -> None:
        self.forgotten += 1

    def released(self, shards: Iterable[int]) -> None:
        self.told += shards

    # executor
    def hold(self) -> None:
        self.held = True

    def resume(self) -> None:
        self.held = False

    def by_shard(self) -> Counter[int]:
        return Counter(self.steps)

    # reader, takeover, rollup
    def shards_changed(self) -> None:
        self.changes += 1

    def look_everywhere(self) -> None:
        self.looks += 1

    async def acquire(self, wanted: dict[int, tuple[str, str]]) -> list[OwnedShard]:
        self.acquired.append(wanted)
        shards = [owned(number) for number in wanted]
        for shard in shards:
            shard.records.update(self.records)
        return shards

    def merge_again(self) -> None:
        self.reported.append("merged again")

    async def store_partials(self, shards: Iterable[OwnedShard]) -> None:
        self.stored += [shard.number for shard in shards]


class Bench:
    """A member called `me`, a server's members hash, and the owner record of each shard."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.daemon_clock = FakeClock()
        self.members: dict[str, bytes] = {}
        self.owners: dict[int, tuple[str, str]] = {}
        self.beats = 0
        self.parts = parts = Parts()
        self.paused: dict[bytes, bytes] | None = {}
        self.store = FakeStore(heartbeat=self._beat, HMGET=self._record, release_shard=Reply.OK)
        any_parts: Any = parts
        self.membership = Membership(
            context(self.store, clock=self.daemon_clock, shards=SHARDS, member="me", settings=SETTINGS),
            any_parts,
            any_parts,
            any_parts,
            any_parts,
            any_parts,
            any_parts,
            self._describe,
        )

    def _describe(self) -> Heartbeat:
        self.beats += 1
        shards = sorted(self.parts.shards)
        return Heartbeat(beat=self.beats, name="me", shards=shards, draining=self.membership.draining)

    def _beat(self, call: Call[Any]) -> Any:
        """What `lua/heartbeat.lua` does: a dead member goes if its beat is still the one that was seen."""
        member, beat, joins, _, *dead = call.args
        for name, last in zip(dead[::2], dead[1::2], strict=True):
            if self.members.get(name) == last:
                del self.members[name]
        if not beat:
            self.members.pop(member, None)
        elif joins or member in self.members:
            self.members[member] = beat
        stored: dict[str, dict[bytes, bytes] | None] = {
            KERNEL.keys.meta: {b"identity": b"identity", b"durability": b"server"},
            KERNEL.keys.paused: self.paused,
        }
        return Heartbeats(5_000, dict(self.members), [stored.get(key, {}) for key in call.keys[1:]])

    def _record(self, call: Call[Any]) -> list[bytes | None]:
        number = int(call.args[1].partition("/")[2].partition("}")[0])
        token, holder = self.owners.get(number, ("", ""))
        return [token.encode() or None, holder.encode() or None]

    def other_beats(self, name: str, beat: int, **facts: Any) -> None:
        self.members[name] = msgspec.json.encode(Heartbeat(beat=beat, name=name, **facts))

    async def turn(self, after: float = 0.0) -> None:
        self.clock.now += after
        await self.membership.run_once()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return Bench(clock)


def won_by(member: str, *members: str) -> set[int]:
    return {number for number in range(SHARDS) if winner_of(number, members) == member}


@pytest.mark.parametrize("what", [NOT_ACQUIRED, DEFECT])
async def test_a_shard_that_failed_is_acquired_again_after_its_pause(bench: Bench, what: str) -> None:
    await bench.turn()
    troubles = bench.membership._troubles
    for number in (3, 5):
        bench.parts.drop(bench.parts.shards[number])
    pause = troubles.failed("shard 3", what, StoreError("acquire_shard: WRONGTYPE"), stops=True)
    assert 0.5 < pause <= 1.0
    await bench.turn()
    assert 3 not in bench.parts.shards
    assert 5 in bench.parts.shards, "the other one at once"
    troubles._all["shard 3", what].until -= 1.0
    await bench.turn()
    assert 3 in bench.parts.shards


async def test_a_shard_whose_owner_cannot_be_read_is_named(bench: Bench) -> None:
    bench.store.answers["HMGET"] = lambda call: (
        StoreError("HMGET: WRONGTYPE") if "/3}" in call.args[1] else bench._record(call)
    )
    await bench.turn()
    assert len(bench.parts.shards) == SHARDS - 1
    assert bench.membership._troubles.current(stops=True) == {"shard 3": f"{NOT_ACQUIRED}: HMGET: WRONGTYPE"}


async def test_a_server_that_is_away_keeps_no_shard_of_others_from_us(bench: Bench) -> None:
    def number_of(key: str) -> int:
        return int(key.partition("/")[2].partition("}")[0])

    def away(call: Call[Any]) -> list[bytes | None]:
        if call.args[1] != KERNEL.keys.meta and number_of(call.args[1]) % 2 == 0:
            raise StoreUnavailable("no answer")
        return bench._record(call)

    bench.store.server_of = lambda key: number_of(key) % 2  # type: ignore[method-assign]
    bench.store.answers["HMGET"] = away
    with pytest.raises(StoreUnavailable):
        await bench.turn()
    assert sorted(bench.parts.shards) == list(range(1, SHARDS, 2))
    assert bench.parts.changes == 1, "they are read"
    bench.store.answers["HMGET"] = bench._record
    await bench.membership.rebalance()
    assert len(bench.parts.shards) == SHARDS


async def test_a_daemon_is_ready_when_it_has_the_shards_of_all_servers(bench: Bench) -> None:
    ready: list[bool] = []

    def record(call: Call[Any]) -> list[bytes | None]:
        ready.append(bench.membership.has_its_share.is_set())
        return bench._record(call)

    bench.store.server_of = lambda key: int(key.partition("/")[2].partition("}")[0]) % 2  # type: ignore[method-assign]
    bench.store.answers["HMGET"] = record
    await bench.turn()
    assert not any(ready)
    assert bench.membership.has_its_share.is_set()


async def test_shards_are_looked_through_only_when_something_has_changed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def wants_a_look() -> bool:
        bench.clock.now += 0.5
        bench.membership._rebalance_needed = anyio.Event()
        await bench.membership._heartbeat_and_check()
        return bench.membership._rebalance_needed.is_set()

    assert await wants_a_look(), "it owns nothing yet"
    await bench.turn()
    assert not await wants_a_look()
    bench.parts.shards[3].broken = "a key of a wrong type"
    assert await wants_a_look()
    bench.parts.shards[3].broken = ""
    bench.parts.drop(bench.parts.shards[5])
    assert await wants_a_look()
    await bench.turn()
    assert not await wants_a_look()
    bench.other_beats("other", 1)
    assert await wants_a_look(), "half of them are for the other one"
    del bench.members["other"]
    await bench.turn(0.5)
    assert sum([await wants_a_look() for _ in range(2 * module.CHECK_EVERY)]) > 0, "now and then in any case"

    async def fails() -> None:
        raise StoreUnavailable("no answer")

    monkeypatch.setattr(bench.membership, "_hand_over", fails)
    with pytest.raises(StoreUnavailable):
        await bench.turn()
    assert await wants_a_look(), "shards may still have to move"


async def test_the_only_member_takes_every_shard_by_the_token_that_it_saw(bench: Bench) -> None:
    bench.owners[3] = ("5:abc", "")
    await bench.turn()
    assert bench.parts.acquired == [{n: ("5:abc" if n == 3 else "", "") for n in range(SHARDS)}]
    assert set(bench.parts.shards) == set(range(SHARDS))
    assert bench.membership.has_its_share.is_set()
    assert bench.parts.leading


async def test_members_divide_the_shards_without_asking_each_other(bench: Bench) -> None:
    bench.other_beats("other", 1)
    await bench.turn()
    assert bench.membership.alive == ["me", "other"]
    assert set(bench.parts.shards) == won_by("me", "me", "other")
    assert 0 < len(bench.parts.shards) < SHARDS


async def test_one_daemon_too_many_is_ready_as_well(bench: Bench) -> None:
    for number in range(10 * SHARDS):
        bench.other_beats(f"other-{number}", 1)
    await bench.turn()
    assert not won_by("me", *bench.membership.alive)
    assert not bench.parts.shards
    assert bench.membership.has_its_share.is_set()


async def test_shards_of_a_member_that_joined_a_moment_ago_are_left_to_it(bench: Bench) -> None:
    """It has sent its first heartbeat, and acquired, since this daemon has read those of the others."""
    read = bench.store.answers["HMGET"]

    def acquired_meanwhile(call: Call[Any]) -> Any:
        bench.other_beats("other", 1)
        bench.owners = dict.fromkeys(range(SHARDS), ("7:nonce", "other"))
        return read(call)

    bench.store.answers["HMGET"] = acquired_meanwhile
    await bench.turn()
    assert not bench.parts.acquired
    assert bench.membership.alive == ["me", "other"]


async def test_only_one_of_them_leads(bench: Bench) -> None:
    names = ["me", "a", "b", "c"]
    for name in names[1:]:
        bench.other_beats(name, 1)
    await bench.turn()
    assert bench.parts.leading == (winner_of(-1, names) == "me")


async def test_a_member_whose_heartbeat_does_not_change_is_considered_dead(bench: Bench) -> None:
    bench.other_beats("other", 1)
    for _ in range(4):
        await bench.turn(after=0.5)
    assert bench.membership.alive == ["me", "other"]
    await bench.turn(after=0.6)
    assert bench.membership.alive == ["me"]
    assert "other" not in bench.members
    assert set(bench.parts.shards) == set(range(SHARDS))


async def test_a_member_that_sends_heartbeats_stays_whatever_its_clock_says(bench: Bench) -> None:
    for beat in (1, 2, 3, 2, 9, 1):
        bench.other_beats("other", beat)
        await bench.turn(after=1.9)
        assert bench.membership.alive == ["me", "other"]


async def test_a_member_that_resumes_in_time_is_not_removed(bench: Bench) -> None:
    bench.other_beats("other", 1)
    await bench.turn()
    bench.other_beats("other", 2)  # after this daemon saw beat 1, and before it says that beat 1 is dead
    await bench.turn(after=2.5)
    assert bench.membership.alive == ["me", "other"]


async def test_a_dead_member_that_cannot_be_removed_owns_nothing(bench: Bench) -> None:
    bench.other_beats("\ufffd", 1)
    remove = bench.store.answers["heartbeat"]
    bench.store.answers["heartbeat"] = lambda call: remove(Call(call.script, call.keys, call.args[:4]))
    for _ in range(6):
        await bench.turn(after=0.5)
    assert "\ufffd" in bench.members
    assert bench.membership.alive == ["me"]
    assert set(bench.parts.shards) == set(range(SHARDS))


async def test_a_heartbeat_that_cannot_be_read_still_counts(bench: Bench) -> None:
    for number in range(5):
        bench.members["other"] = b"\xff%d" % number
        await bench.turn(after=1.0)
        assert bench.membership.alive == ["me", "other"]


async def test_a_draining_member_gets_nothing_any_more(bench: Bench) -> None:
    bench.other_beats("other", 1, draining=True)
    await bench.turn()
    assert bench.membership.alive == ["me"]
    assert set(bench.parts.shards) == set(range(SHARDS))


async def test_a_shard_that_another_member_holds_is_awaited_but_not_forever(bench: Bench) -> None:
    bench.owners = dict.fromkeys(range(SHARDS), ("5:abc", "other"))
    for beat in range(13):
        bench.other_beats("other", beat)
        await bench.turn(after=0.95)
    assert bench.parts.acquired == []
    bench.other_beats("other", 99)
    await bench.turn(after=0.95)
    assert set(bench.parts.shards) == won_by("me", "me", "other")


async def test_a_pause_while_it_waits_for_a_shard_is_no_reason_to_take_it(bench: Bench) -> None:
    bench.owners = dict.fromkeys(range(SHARDS), ("5:abc", "other"))
    bench.other_beats("other", 1)
    await bench.turn()
    bench.clock.now += 1000.0
    bench.other_beats("other", 2)
    for _ in range(2):
        await bench.membership.rebalance()  # it has lost another shard, and its next heartbeat is not due
    assert bench.parts.acquired == []
    for beat in range(3, 13):
        bench.other_beats("other", beat)
        await bench.turn(after=1.0)
        assert bench.parts.acquired == []
    for beat in range(13, 16):
        bench.other_beats("other", beat)
        await bench.turn(after=1.0)
    assert set(bench.parts.shards) == won_by("me", "me", "other")


async def test_shards_of_a_member_that_is_gone_are_acquired_at_once(bench: Bench) -> None:
    bench.owners = dict.fromkeys(range(SHARDS), ("5:abc", "gone"))
    await bench.turn()
    assert bench.parts.acquired == [dict.fromkeys(range(SHARDS), ("5:abc", "gone"))]


# --- handing over ---------------------------------------------------------------------------------------------------


async def test_a_newcomer_gets_its_shards_when_nothing_runs_there(bench: Bench) -> None:
    await bench.turn()
    bench.other_beats("new", 1)
    theirs = won_by("new", "me", "new")
    await bench.turn(after=0.5)
    assert set(bench.parts.shards) == set(range(SHARDS)) - theirs
    assert set(bench.parts.stored) == theirs, "what they count was stored before"
    released = bench.store.sent("release_shard")
    assert {call.args[0] for call in released} == {"7:nonce"}
    assert len(released) == len(theirs)


async def test_steps_that_run_go_on_here_and_keep_no_shard(bench: Bench) -> None:
    await bench.turn()
    bench.other_beats("new", 1)
    theirs = won_by("new", "me", "new")
    busy = min(theirs)
    bench.parts.steps[busy] = 1
    await bench.turn(after=0.5)
    assert set(bench.parts.shards) == set(range(SHARDS)) - theirs
    assert set(bench.parts.lent) == theirs
    assert bench.parts.told == bench.parts.lent
    with_steps = [call.args for call in bench.store.sent("release_shard") if len(call.args) > 3]
    assert with_steps == [["7:nonce", "1", "", "r/1", "me", 5, 1]]


async def test_a_server_that_is_away_holds_up_no_other_shards(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until this daemon ends: then nobody else could send them."""
    monkeypatch.setattr(module, "FINISH_RELEASE", 0.01)
    await bench.turn()
    bench.other_beats("new", 1)
    theirs = sorted(won_by("new", "me", "new"))
    away, back = theirs[0], anyio.Event()
    bench.store.is_single = False
    bench.store.server_of = lambda key: int(key == KERNEL.keys.shard(away).owner)
    send = bench.store.send

    async def send_to_servers(calls: Sequence[Call[Any]], **options: Any) -> list[Any]:
        if any(call.script == "release_shard" and call.keys[0] == KERNEL.keys.shard(away).owner for call in calls):
            await back.wait()
        return await send(calls, **options)

    monkeypatch.setattr(bench.store, "send", send_to_servers)
    with anyio.fail_after(5):
        await bench.turn(after=0.5)
    assert set(bench.parts.told) == set(theirs) - {away}
    bench.membership.draining = True
    leaving = asyncio.create_task(bench.turn(after=0.5))
    await asyncio.sleep(0.05)
    assert not leaving.done()
    back.set()
    await leaving
    assert set(bench.parts.told) >= set(theirs)


async def test_a_shard_that_is_being_reduced_is_released_afterwards(bench: Bench) -> None:
    await bench.turn()
    bench.other_beats("new", 1)
    busy = min(won_by("new", "me", "new"))
    bench.parts.shards[busy].busy = True
    await bench.turn(after=0.5)
    assert bench.parts.shards[busy].leaving
    bench.parts.shards[busy].busy = False
    bench.other_beats("new", 2)
    await bench.turn(after=0.5)
    assert busy not in bench.parts.shards


async def test_a_shard_is_kept_while_only_this_daemon_knows_what_it_lost(bench: Bench) -> None:
    await bench.turn()
    bench.other_beats("new", 1)
    number = min(won_by("new", "me", "new"))
    bench.parts.shards[number].orphans.add("r")
    await bench.turn(after=0.5)
    assert not bench.parts.shards[number].draining
    bench.parts.shards[number].orphans.clear()
    bench.other_beats("new", 2)
    await bench.turn(after=0.5)
    assert number not in bench.parts.shards


async def test_a_shard_is_not_kept_for_runs_for_which_storage_has_failed(bench: Bench) -> None:
    await bench.turn()
    bench.other_beats("new", 1)
    number = min(won_by("new", "me", "new"))
    shard = bench.parts.shards[number]
    shard.orphans.add("r")
    shard.put_off["r"] = PutOffRun(RunWork(), "its history", 0.0)
    await bench.turn(after=0.5)
    assert not shard.draining
    shard.put_off["r"].tries = 1
    bench.other_beats("new", 2)
    await bench.turn(after=0.5)
    assert number not in bench.parts.shards


async def test_runs_to_be_careful_with_are_named_in_the_release(bench: Bench) -> None:
    await bench.turn()
    bench.other_beats("new", 1)
    number = min(won_by("new", "me", "new"))
    shard = bench.parts.shards[number]
    shard.careful.update(r=set(), parked={1})
    shard.records["parked"] = {CODE: StepRecord(2, 900, parked_by("code", 1000))}  # has its record already
    await bench.turn(after=0.5)
    named = [call.args for call in bench.store.sent("release_shard") if len(call.args) > 3]
    assert named == [["7:nonce", "1", "", "r/0", "-", 0, 2]]


@pytest.mark.parametrize(
    ("suspects", "delivered", "waits", "checked", "told"),
    [
        (True, (5, 2), False, True, "5-2"),  # the inbox was not read so far
        (True, None, True, True, "0-0"),
        (True, None, False, False, "0-0"),
        (True, None, False, True, ""),  # it is through
        (False, None, True, False, ""),  # the owner before has released it
    ],
)
async def test_what_is_still_suspect_is_told_to_the_next_owner(
    bench: Bench, suspects: bool, delivered: tuple[int, int] | None, waits: bool, checked: bool, told: str
) -> None:
    await bench.turn()
    bench.other_beats("new", 1)
    number = min(won_by("new", "me", "new"))
    shard = bench.parts.shards[number]
    shard.has_suspects, shard.delivered, shard.waits, shard.is_checked = suspects, delivered, waits, checked
    await bench.turn(after=0.5)
    calls = {call.keys[0]: call.args for call in bench.store.sent("release_shard")}
    assert calls[shard.keys.owner] == ["7:nonce", "1", told]


async def test_thousands_of_steps_are_recorded_before_the_release_in_portions(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LENT", 2)
    await bench.turn()
    bench.other_beats("new", 1)
    number = min(won_by("new", "me", "new"))
    bench.parts.steps[number] = 5
    await bench.turn(after=0.5)
    calls = [call.args for call in bench.store.sent("release_shard") if len(call.args) > 3]
    assert [(call[1], call[3::4]) for call in calls] == [("", ["r/1", "r/2"]), ("", ["r/3", "r/4"]), ("1", ["r/5"])]


async def test_a_shard_that_is_wanted_back_is_acquired_again(bench: Bench) -> None:
    await bench.turn()
    bench.other_beats("new", 1)
    busy = min(won_by("new", "me", "new"))
    bench.parts.shards[busy].busy = True
    await bench.turn(after=0.5)
    bench.parts.shards[busy].busy = False
    del bench.members["new"]
    await bench.turn(after=0.5)  # the newcomer is gone
    assert busy in bench.parts.dropped
    assert not bench.parts.shards[busy].draining


async def test_the_last_member_gives_steps_time_before_it_releases(bench: Bench) -> None:
    await bench.turn()
    bench.membership.draining = True
    bench.parts.steps[4] = 1
    await bench.turn()
    assert list(bench.parts.shards) == [4], "nobody else could record their outcomes"
    bench.parts.steps.clear()
    await bench.turn()
    assert not bench.parts.shards
    await bench.membership.leave()
    await bench.membership.heartbeat()
    assert bench.members == {}, "no later heartbeat puts it back"


async def test_a_heartbeat_that_arrives_after_the_good_bye_changes_nothing(bench: Bench) -> None:
    """It was sent over a connection that was given up, or by the thread for a blocked loop."""
    await bench.turn()
    await bench.turn()
    late = bench.store.sent("heartbeat")[-1]
    await bench.membership.leave()
    bench.store.answers["heartbeat"](late)
    assert bench.members == {}


async def test_a_member_that_the_others_have_removed_joins_again_at_once(bench: Bench) -> None:
    await bench.turn()
    bench.members.clear()
    bench.other_beats("other", 1)
    await bench.turn()
    assert bench.members.keys() == {"me", "other"}
    assert bench.membership.alive == ["me", "other"]
    assert [call.args[2] for call in bench.store.sent("heartbeat")][-2:] == ["", "1"]


async def test_a_member_that_was_removed_looks_which_shards_others_have(bench: Bench) -> None:
    """At once, and again when they must have acquired what they want: its reads of those shards are refused."""
    await bench.turn()
    await bench.turn()
    assert bench.parts.looks == 0
    bench.members.clear()
    await bench.turn()
    assert bench.parts.looks == 1
    await bench.turn(SETTINGS.dead_after / 2)
    assert bench.parts.looks == 1
    await bench.turn(SETTINGS.dead_after)
    assert bench.parts.looks == 2
    await bench.turn(SETTINGS.dead_after * 2)
    assert bench.parts.looks == 2


async def test_a_last_member_keeps_no_shard_longer_than_the_grace(bench: Bench) -> None:
    await bench.turn()
    bench.membership.draining = True
    bench.parts.steps[4] = 1
    await bench.turn(after=0.5)
    await bench.turn(after=9.0)
    assert list(bench.parts.shards) == [4]
    await bench.turn(after=1.5)
    assert not bench.parts.shards


async def test_a_host_that_has_joined_since_the_last_heartbeat_is_alive(bench: Bench) -> None:
    """It has acquired and released a shard within one: its steps, which go on there, must not be lost."""
    bench.parts.records["r"] = {1: StepRecord(1, 900, "quick")}
    acquire = bench.parts.acquire

    async def joins(wanted: dict[int, tuple[str, str]]) -> list[OwnedShard]:
        bench.other_beats("quick", 1, draining=True)
        return await acquire(wanted)

    bench.parts.acquire = joins
    await bench.turn()
    assert bench.parts.shards
    assert bench.membership.is_alive("quick")


async def test_a_member_counts_as_alive_while_its_heartbeats_change(bench: Bench) -> None:
    bench.other_beats("other", 1)
    await bench.turn()
    assert bench.membership.is_alive("other")
    assert not bench.membership.is_alive("gone")
    for _ in range(2):
        await bench.turn(after=0.9)
    assert bench.membership.is_alive("other")
    bench.clock.now += 0.3
    assert not bench.membership.is_alive("other")
    assert bench.membership.is_alive("me")


async def test_each_heartbeat_measures_the_clock_by_server_and_other_daemons(bench: Bench) -> None:
    bench.other_beats("other", 1, clock=7_000, ahead=-300)
    bench.other_beats("old", 1)
    await bench.turn()
    await bench.turn()
    assert bench.daemon_clock.measured == [(5_000, []), (5_000, [-300])]
    assert bench.parts.looked == 2


# --- when the server is away ----------------------------------------------------------------------------------------


async def test_without_confirmed_heartbeats_no_more_steps_start(bench: Bench) -> None:
    await bench.turn()
    answers = bench.store.answers
    bench.store.answers = {**answers, "heartbeat": StoreUnavailable("away")}
    for seconds, held in ((1.0, False), (0.3, False), (0.1, True)):
        with pytest.raises(StoreUnavailable):
            await bench.turn(after=seconds)
        bench.membership.hold_if_unconfirmed()
        assert bench.parts.held is held
    bench.store.answers = answers
    await bench.turn(after=5.0)
    assert not bench.parts.held


async def test_after_an_outage_the_first_to_be_back_takes_nobody_for_dead(bench: Bench) -> None:
    """The heartbeats of the others have failed as its own: each has `dead_after` from then on."""
    bench.other_beats("other", 1)
    await bench.turn()
    answers = bench.store.answers
    bench.store.answers = {**answers, "heartbeat": StoreUnavailable("away")}
    for _ in range(20):
        with pytest.raises(StoreUnavailable):
            await bench.turn(after=0.5)
    assert bench.membership.is_alive("other"), "steps that it has kept are not lost"
    bench.store.answers = answers
    for _ in range(4):
        await bench.turn(after=0.5)
        assert bench.membership.alive == ["me", "other"]
    assert "other" in bench.members
    await bench.turn(after=0.6)
    assert bench.membership.alive == ["me"], "it has not come back"


async def test_after_a_restart_of_the_server_all_shards_are_acquired_again(bench: Bench) -> None:
    await bench.turn()
    bench.owners = dict.fromkeys(range(SHARDS), ("7:nonce", "me"))
    bench.store.server_generation += 1
    await bench.turn(after=0.5)
    assert sorted(bench.parts.dropped) == list(range(SHARDS))
    assert bench.parts.acquired[-1] == dict.fromkeys(range(SHARDS), ("7:nonce", "me"))
    assert bench.parts.reported == ["changed", "merged again", f"compared {SHARDS}", "reported"], (
        "when what was lost is there again, and before they change"
    )
    assert bench.parts.forgotten == 1
    await bench.turn(after=0.5)
    assert len(bench.parts.acquired) == 2


async def test_shards_whose_state_was_read_across_a_restart_are_not_served(bench: Bench) -> None:
    acquire = bench.parts.acquire

    async def acquire_meanwhile(wanted: dict[int, tuple[str, str]]) -> list[OwnedShard]:
        bench.store.server_generation += 1
        return await acquire(wanted)

    bench.parts.acquire = acquire_meanwhile  # type: ignore[method-assign]
    await bench.turn()
    assert bench.parts.shards == {}
    bench.parts.acquire = acquire  # type: ignore[method-assign]
    await bench.turn(after=0.5)
    assert sorted(bench.parts.shards) == list(range(SHARDS))


async def test_the_leader_learns_when_others_have_stored_something(bench: Bench) -> None:
    bench.other_beats("a", 1, folds=3)
    bench.other_beats("b", 1, folds=4)
    await bench.turn()
    assert bench.parts.others_folds == 7


async def test_what_is_paused_is_told_when_it_changes(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    told: list[list[str]] = []
    bench.membership.on_pauses = lambda paused: told.append(list(paused))
    paused = {b"workflow:pay": b"{}"}
    for bench.paused in ({}, paused, dict(paused), None, None, dict(paused), {}):
        await bench.membership.heartbeat()
    assert told == [["pay"], ["pay"], []], "once more when it could not be read"
    assert caplog.text.count("it can't be read which workflows are paused") == 1


async def test_each_turn_is_told_also_when_no_heartbeat_succeeds(bench: Bench) -> None:
    turns: list[int] = []
    bench.membership.on_turn = lambda: turns.append(1)
    await bench.membership._heartbeat_and_check()
    bench.store.answers["heartbeat"] = StoreUnavailable("away")
    with pytest.raises(StoreUnavailable):
        await bench.membership._heartbeat_and_check()
    assert len(turns) == 2


async def test_the_newest_heartbeat_of_each_daemon_is_known(bench: Bench) -> None:
    bench.other_beats("other", 1, folds=3)
    await bench.membership.heartbeat()
    bench.other_beats("other", 2, folds=4)
    await bench.membership.heartbeat()
    assert {one.name: one.folds for one in bench.membership.heartbeats()} == {"me": 0, "other": 4}
    assert bench.parts.others_folds == 4
