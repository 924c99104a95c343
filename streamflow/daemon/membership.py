"""Which daemons are alive and which shards each should own: heartbeats, rendezvous hashing, takeover and hand-over.

Owns: the decision which shards this daemon should hold. Must not: rely on it for safety: two daemons may believe that
they own a shard, and only the token inside every commit decides. Called by: the daemon (runs the loop).

Liveness: each daemon increases its heartbeat in one hash, and watches on its own monotonic clock (wall clocks jump)
whether those of the others change. Every daemon computes the same owner of each shard from the members that are alive,
so they don't have to agree by messages. When a daemon

    joins   -> the present owners see it and release the shards that it wins; it acquires them at once. Steps that run
               go on where they are, and report to the new owner (`step_records.py`)
    leaves  -> it releases all its shards, gives its steps time to end, and deregisters
    dies    -> the process beside it (`watch/heartbeat_process.py`) sees that and removes it, else the others do after
               `dead_after` without a heartbeat; the winners among them acquire its shards at once
    pauses  -> as if it died; when it wakes, its next commit is refused and it drops the shards

A daemon whose own heartbeats fail for two thirds of `dead_after` starts no more steps until one succeeds. It doesn't
see those of the others meanwhile, so when it does again, each has `dead_after` for the next one: after an outage of the
server the first daemon to be back must not take the others for dead.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Callable
from functools import partial

import anyio
import msgspec

from streamflow.daemon.context import Context
from streamflow.daemon.inbox import InboxReader
from streamflow.daemon.owner import DEFECT, Owner
from streamflow.daemon.rollup import Rollup
from streamflow.daemon.shard import CODE, NOBODY, OwnedShard
from streamflow.daemon.step_records import StepRecords
from streamflow.daemon.takeover import NOT_ACQUIRED, Takeover
from streamflow.daemon.troubles import shard_name
from streamflow.errors import StoreError, StoreUnavailable
from streamflow.loops import HEARTBEATS, TURN, Supervisor, retry_forever, wait_until
from streamflow.machine.sealed import hide
from streamflow.model.sharding import winner_of
from streamflow.steps.executor import StepExecutor
from streamflow.store.connection import Call, Store
from streamflow.store.kernel import Heartbeats, LentStep, Reply
from streamflow.store.pauses import Pause, paused_workflows
from streamflow.wire import Heartbeat, decode_heartbeat

_log = logging.getLogger("streamflow.membership")


POLL = 0.1
"""Seconds between two looks whether shards that this daemon wants are free..."""
IMPATIENT = 3.0
"""...for so many seconds; after that it looks with every heartbeat."""
CHECK_EVERY = 20
"""Heartbeats after which shards are compared with what this daemon should own, also if nothing has changed."""
LENT = 1000
"""Steps that one call records at the release of a shard: 2.5 ms of the server."""
FINISH_BATCH = 1.0
"""Seconds that a batch gets to end before its shard is released..."""
FINISH_RELEASE = 1.0
"""...and that a release gets to be answered before other shards are looked after, if a cluster's server is away."""


class _Seen(msgspec.Struct):
    """The newest heartbeat of a member. `changed`: when it changed last (monotonic s)."""

    raw: bytes
    changed: float
    heartbeat: Heartbeat

    @property
    def draining(self) -> bool:
        return self.heartbeat.draining


class Membership:
    """`describe` makes this daemon's heartbeat. `on_beat(heartbeat)` is called when one is confirmed, `on_leave()`
    before this daemon deregisters, `on_record(record)` with what the namespace's record says,
    `on_pauses(workflows)` with what is paused, and `on_groups(groups)` with how many groups of subscribers there are:
    they are read with each heartbeat, because a turn of the event loop costs an idle daemon more than a command."""

    def __init__(
        self,
        context: Context,
        owner: Owner,
        executor: StepExecutor,
        reader: InboxReader,
        takeover: Takeover,
        rollup: Rollup,
        records: StepRecords,
        describe: Callable[[], Heartbeat],
    ) -> None:
        self.member = context.member
        self.draining = False
        self.on_beat: Callable[[bytes], None] = lambda _: None
        self.on_leave: Callable[[], None] = lambda: None
        self.on_pauses: Callable[[dict[str, Pause]], None] = lambda paused: None
        self.on_groups: Callable[[int], None] = lambda groups: None
        self.on_record: Callable[[dict[bytes, bytes]], None] = lambda _: None
        self.has_its_share = anyio.Event()
        """Set as soon as it owns a shard, or none is for it: there may be as many daemons as shards."""
        self.on_turn: Callable[[], None] = lambda: None
        """Called with each turn of the loop of heartbeats, whether one succeeds or not."""
        self._can_read_pauses = True
        self._pauses: dict[bytes, bytes] = {}
        """What is noted as paused, as it was read last."""
        self._store = context.store
        self._kernel = context.kernel
        self._settings = context.settings
        self._clock = context.clock
        self._shards = context.namespace.shards
        self._troubles = context.troubles
        self._owner = owner
        self._executor = executor
        self._reader = reader
        self._takeover = takeover
        self._rollup = rollup
        self._records = records
        self._describe = describe
        self._seen: dict[str, _Seen] = {}
        self._alive: list[str] = []
        self._desired: set[int] = set()
        self._wanted_since: dict[int, float] = {}
        self._draining_since: dict[int, float] = {}
        self._confirmed = self._looked = time.monotonic()
        self.turned = self._confirmed
        """When the loop of heartbeats had its last turn (monotonic s): `stand_in.py` notices that it is late."""
        self._numbers = itertools.count(1)
        self._last: Heartbeat | None = None
        self._server_generation = context.store.server_generation
        self._rebalance_needed = anyio.Event()
        self._unchecked = 0
        """Heartbeats since shards were last compared with what this daemon should own, without an error."""
        self._is_losing = False
        self._heartbeat_lock = anyio.Lock(fast_acquire=True)
        self._rebalance_lock = anyio.Lock()
        self._releasing: set[asyncio.Task[None]] = set()
        """Releases that are not answered, of a cluster's servers."""
        self._left = False
        self._has_joined = False
        self._looks: list[float] = []
        """When to look whether others have acquired shards of this daemon: it was removed (monotonic s)."""

    def rebalance_soon(self) -> None:
        """A shard was lost or may be free: don't wait for the next heartbeat."""
        self._is_losing = True
        self._rebalance_needed.set()

    async def run(self, supervisor: Supervisor) -> None:
        """Heartbeats and rebalancing have separate loops: a daemon that acquires many shards must not look dead."""
        async with anyio.create_task_group() as loops:
            supervise = supervisor.run
            loops.start_soon(partial(supervise, longest=self._settings.beat), HEARTBEATS, self._run_heartbeats)
            loops.start_soon(supervise, "rebalancing", self._run_rebalancing)

    async def run_once(self) -> None:
        """One turn of both loops: a heartbeat, and a step towards the shards that this daemon should own."""
        await self.heartbeat()
        await self.rebalance()

    async def _run_heartbeats(self) -> None:
        await retry_forever(
            self._heartbeat_and_check, _log, "heartbeat failed", every=self._settings.beat, at_once=True, within=TURN
        )

    async def _heartbeat_and_check(self) -> None:
        self.turned = time.monotonic()
        try:
            await self.heartbeat()
        finally:
            self.turned = time.monotonic()
            self.hold_if_unconfirmed()
            self.on_turn()
            self._unchecked += 1
            if self._unchecked >= CHECK_EVERY or not self._is_settled():
                self._rebalance_needed.set()

    def _is_settled(self) -> bool:
        """Whether this daemon has just the shards that it should have, and can work for all."""
        shards = self._owner.shards
        return (
            not self.draining
            and self._server_generation == self._store.server_generation
            and self._desired == shards.keys()
            and not any(shard.broken or shard.draining for shard in self._owner.active.values())
        )

    async def _run_rebalancing(self) -> None:
        await retry_forever(self._rebalance_when_needed, _log, "could not acquire or release shards")

    async def _rebalance_when_needed(self) -> None:
        # Shards that another daemon is about to release are waited for impatiently, but not forever.
        soon = any(time.monotonic() - since < IMPATIENT for since in self._wanted_since.values())
        with anyio.move_on_after(POLL if soon and not self.draining else math.inf):
            await self._rebalance_needed.wait()
        if self._is_losing:
            await anyio.sleep(0.02)  # many shards may be lost at once
        self._is_losing = False
        self._rebalance_needed = anyio.Event()
        await self.rebalance()

    async def rebalance(self) -> None:
        """Release shards that other daemons should own, acquire those that this one should own."""
        async with self._rebalance_lock:
            await self._rebalance()

    async def _rebalance(self) -> None:
        self._unchecked = CHECK_EVERY  # if this fails, the next heartbeat leads here again
        if self._server_generation != self._store.server_generation:
            _log.warning("the server restarted or was replaced")
            self.start_over()
        self._owner.retry_broken()
        await self._hand_over()
        try:
            if not self.draining:
                await self._acquire()
        finally:
            self._reader.shards_changed()
        await self._owner.lost_writes.report()
        self._unchecked = 0

    async def leave(self) -> None:
        """Deregister this member, so that the others don't have to wait for `dead_after`. Ends its heartbeats."""
        async with self._heartbeat_lock:
            self._left = True
            self.on_leave()
            await self._store.one(self._kernel.heartbeat(self.member, b""))

    @property
    def last(self) -> Heartbeat | None:
        """The heartbeat that was sent last, or is being sent."""
        return self._last

    @property
    def missing(self) -> list[int] | None:
        """The shards that this daemon should own and doesn't; None as long as it isn't a member."""
        return sorted(self._desired - self._owner.shards.keys()) if self._has_joined else None

    @property
    def alive(self) -> list[str]:
        return self._alive

    def heartbeats(self) -> list[Heartbeat]:
        """The newest heartbeat of each daemon that the server lists."""
        return [seen.heartbeat for seen in self._seen.values()]

    def is_alive(self, member: str) -> bool:
        """Whether a daemon still sends heartbeats, be it draining."""
        seen = self._seen.get(member)
        return member == self.member or (seen is not None and self._silence(seen) <= self._settings.dead_after)

    def _silence(self, seen: _Seen) -> float:
        """Seconds for which a member has sent no heartbeat that this daemon could see."""
        since = min(time.monotonic() - self._looked, self._settings.dead_after / 2)
        return self._looked - seen.changed + since

    @property
    def _is_blind(self) -> bool:
        """Whether this daemon has not seen for long how the others are: it was paused, or cut off."""
        return time.monotonic() - self._looked > self._settings.dead_after / 2

    def _look(self) -> None:
        """The heartbeats of all members are known now. If this daemon was blind before, others may have been, too, and
        that it has waited for their shards says nothing about them."""
        now = time.monotonic()
        if self._is_blind:
            for seen in self._seen.values():
                seen.changed = now
            self._wanted_since = dict.fromkeys(self._wanted_since, now)
        self._looked = now

    @property
    def unconfirmed(self) -> float:
        """Seconds since the last heartbeat that the server has confirmed was sent."""
        return time.monotonic() - self._confirmed

    @property
    def desired(self) -> int:
        """Number of shards that this daemon should own."""
        return len(self._desired)

    # --- heartbeats ---------------------------------------------------------------------------------------------------

    async def heartbeat(self) -> None:
        """Send a heartbeat, and read those of the other members."""
        async with self._heartbeat_lock:
            if not self._left:
                await self._heartbeat()

    async def heartbeat_for_blocked_loop(self, store: Store) -> None:
        """Repeat the last heartbeat with a new number, over another connection: `stand_in.py`, in a thread."""
        last = self._last
        if last is None or self._left:
            return
        now = time.monotonic()
        raw = msgspec.json.encode(msgspec.structs.replace(last, beat=next(self._numbers)))
        await store.one(self._kernel.heartbeat(self.member, raw, joins=False))
        self._confirmed = now

    async def _heartbeat(self) -> None:
        now = time.monotonic()
        dead = [
            (name, seen.raw)
            for name, seen in self._seen.items()
            if self._silence(seen) > self._settings.dead_after and name != self.member
        ]
        last = self._last = msgspec.structs.replace(self._describe(), beat=next(self._numbers))
        data = msgspec.json.encode(last)
        answer: Heartbeats | None = None
        with anyio.move_on_after(self._settings.dead_after / 2):
            keys = self._kernel.keys
            hashes = (keys.meta, keys.paused, keys.groups)  # in the same reply: each read costs an idle daemon 3 %
            call = self._kernel.heartbeat(self.member, data, dead, joins=not self._has_joined, hashes=hashes)
            answer = await self._store.one(call, urgent=True)
            record, pauses, groups = answer.hashes
            if record is not None:
                self.on_record(record)
            if pauses != self._pauses or not self._can_read_pauses:
                self._take_pauses(pauses)
            if groups is not None:
                self.on_groups(len(groups))
            if self.member not in answer.members:  # the others have removed it, or the data were deleted
                self._has_joined = False
                self._looks = [now, now + self._settings.dead_after]
                answer = None
                answer = await self._store.one(self._kernel.heartbeat(self.member, data), urgent=True)
        if answer is None:
            raise StoreUnavailable(f"no answer within {self._settings.dead_after / 2:g} s")
        self._has_joined = True
        while self._looks and self._looks[0] <= now:
            self._looks.pop(0)
            self._reader.look_everywhere()
        self._confirmed = now  # when it was sent: the others count from a later moment
        self._look()
        heartbeats = answer.members
        others = [one.heartbeat for name, one in self._seen.items() if name != self.member]
        self._clock.measure(answer.clock, time.monotonic() - now, [other.ahead for other in others if other.clock])
        self._owner.look_at_clock()
        self.on_beat(data)
        if self._executor.held:
            _log.info("heartbeats succeed again, so steps are started again")
            self._executor.resume()
        dead_names = {name for name, _ in dead}
        for name in [name for name in self._seen if name not in heartbeats]:
            gone = self._seen.pop(name)
            if not gone.draining and name not in dead_names:
                # It has ended, as the process beside it says, or has left so soon that it wasn't seen draining.
                _log.info("daemon %s is gone", name)
        for name, raw in heartbeats.items():
            seen = self._seen.get(name)
            if seen is None or seen.raw != raw:
                self._seen[name] = _Seen(raw, time.monotonic(), last if raw == data else decode_heartbeat(raw))
        self._rollup.others_folds = sum(one.heartbeat.folds for name, one in self._seen.items() if name != self.member)
        for name, _ in dead:
            if name not in heartbeats:
                _log.warning(
                    "daemon %s is considered dead: no heartbeat for %g s; its shards are taken over",
                    name,
                    self._settings.dead_after,
                )
        # A dead member that can't be deregistered (its name is not valid text) must not own shards either.
        alive = sorted(name for name, seen in self._seen.items() if not seen.draining and self.is_alive(name))
        if alive != self._alive:
            _log.info("daemons that share the shards: %s", ", ".join(alive) or "none")
            self._alive = alive
            self._rollup.leading = bool(alive) and winner_of(-1, alive) == self.member
            self._desired = {n for n in range(self._shards) if alive and winner_of(n, alive) == self.member}
            if self.member in alive and not self._desired:
                self.has_its_share.set()

    def _take_pauses(self, notes: dict[bytes, bytes] | None) -> None:
        """What can't be read stays as it is."""
        if notes is not None:
            self._pauses = notes
            self.on_pauses(paused_workflows(notes))
        elif self._can_read_pauses:
            key = self._kernel.keys.paused
            _log.error("it can't be read which workflows are paused, so nothing changes about that: %s", key)
        self._can_read_pauses = notes is not None

    def hold_if_unconfirmed(self) -> None:
        """Start no more steps when the others may soon consider this daemon dead."""
        unconfirmed = time.monotonic() - self._confirmed
        if not self._executor.held and unconfirmed > self._settings.dead_after * 2 / 3:
            _log.warning(
                "no heartbeat has succeeded for %.1f s: other daemons may take over, so no more steps are started "
                "until one succeeds",
                unconfirmed,
            )
            self._executor.hold()

    def start_over(self, *, everywhere: bool = False) -> None:
        """A server has another history: it may never have had the state in memory. Acquire its shards again, or all.
        Nothing is awaited: when this returns, nothing can be decided from what was in memory."""
        self._server_generation = self._store.server_generation
        shards = [
            shard
            for shard in self._owner.shards.values()
            if everywhere or shard.history != self._store.history_of(shard.keys.owner)
        ]
        _log.warning(
            "dropping %d of %d shards with %d runs in memory, to acquire and read them again",
            len(shards),
            len(self._owner.shards),
            sum(len(shard.live) for shard in shards),
        )
        self._owner.drop(*shards)
        self._owner.lost_writes.history_changed()
        self._records.look_for_forgotten()
        self._rollup.merge_again()
        self._rebalance_needed.set()

    # --- acquiring and handing over -----------------------------------------------------------------------------------

    async def _acquire(self) -> None:
        if self._is_blind:
            await self.heartbeat()  # what it knows of the others is old
        missing = sorted(self._desired - self._owner.shards.keys())
        self._wanted_since = {n: self._wanted_since.get(n, time.monotonic()) for n in missing}
        if self._troubles:
            missing = [n for n in missing if not self._is_paused(n)]
        if not missing:
            return
        by_server: dict[int, list[int]] = {}
        for number in missing:
            by_server.setdefault(self._store.server_of(self._kernel.keys.shard(number).owner), []).append(number)
        problem: StoreError | None = None
        waits = self._store.confirmation
        for _, numbers in sorted(by_server.items(), key=lambda part: waits is not None and waits.is_late(part[0])):
            try:
                await self._acquire_from_one(numbers)
            except StoreUnavailable as error:  # of its server: those on others have to go on
                problem = error
        if self._owner.shards:
            self.has_its_share.set()
        if problem is not None:
            raise problem

    async def _acquire_from_one(self, missing: list[int]) -> None:
        """Shards that are on one server."""
        calls = [Call.plain("HMGET", self._kernel.keys.shard(n).owner, "token", "holder") for n in missing]
        owners: dict[int, tuple[str, str]] = {}
        for number, record in zip(missing, await self._store.send(calls), strict=True):
            if isinstance(record, StoreError):
                self._troubles.failed(shard_name(number), NOT_ACQUIRED, record, stops=True)
                continue
            token, holder = ((part or b"").decode(errors="replace") for part in record)
            owners[number] = token, holder
        if {holder for _, holder in owners.values()} - self._seen.keys() - {"", self.member}:
            await self.heartbeat()  # it has died, or it has joined since the last one: an owner has sent one before
        wanted: dict[int, tuple[str, str]] = {}
        patience = self._settings.grace + self._settings.dead_after
        for number, (token, holder) in owners.items():
            if number not in self._desired:
                continue
            waited = time.monotonic() - self._wanted_since[number]
            if not holder or holder == self.member or holder not in self._seen or waited > patience:
                wanted[number] = (token, holder)
        if not wanted:
            return
        histories = {number: self._history_of(number) for number in wanted}
        acquired = await self._takeover.acquire(wanted)
        if self._hosts_of(acquired) - self._seen.keys():
            await self.heartbeat()  # a daemon may have joined since the last one, and have lent steps: it isn't gone
        await self._owner.lost_writes.compare({shard.number for shard in acquired})  # before anything happens in them
        if any(self._history_of(shard.number) != histories[shard.number] for shard in acquired):
            self._rebalance_needed.set()  # what was read of some is of two histories
            acquired = [shard for shard in acquired if self._history_of(shard.number) == histories[shard.number]]
        for shard in acquired:
            shard.history = histories[shard.number]
            self._owner.lost_writes.found(shard)
            self._owner.add(shard)
        if acquired:
            _log.info("acquired %d shards, now %d of %d", len(acquired), len(self._owner.shards), self._shards)

    def _history_of(self, number: int) -> int:
        return self._store.history_of(self._kernel.keys.shard(number).owner)

    def _is_paused(self, number: int) -> bool:
        """Whether it failed a short while ago to acquire this shard, or to work for it."""
        return any(self._troubles.waits(shard_name(number), what) for what in (NOT_ACQUIRED, DEFECT))

    @staticmethod
    def _hosts_of(shards: list[OwnedShard]) -> set[str]:
        """Daemons that still run steps of these shards."""
        records = (record for shard in shards for steps in shard.records.values() for record in steps.values())
        return {record.host for record in records if record.lent and not record.reported}

    async def _hand_over(self) -> None:
        """Release shards that another daemon should own. Steps that run go on here; without another daemon they get
        `grace` seconds first, so that their outcomes are recorded."""
        now = time.monotonic()
        has_heir = any(name != self.member for name in self._alive)
        leaving = [
            shard
            for shard in self._owner.shards.values()
            if (self.draining or shard.number not in self._desired)
            and not shard.draining
            and not shard.has_orphans  # only this daemon knows that these runs lost their steps: it records that first
        ]
        for shard in leaving:
            shard.draining = True
            self._owner.touch(shard)
            self._draining_since[shard.number] = now
        if leaving:
            _log.info("handing over %d shards%s", len(leaving), "" if has_heir else ", as soon as their steps end")
            self._reader.shards_changed()  # no more messages are read, so those in memory get fewer
        if has_heir:
            for shard in self._owner.active.values():
                shard.leaving = shard.draining
            with anyio.move_on_after(FINISH_BATCH):
                await wait_until(lambda: not any(shard.busy for shard in leaving), 0.005)
        steps = self._executor.by_shard()
        done: list[OwnedShard] = []
        for shard in [shard for shard in self._owner.active.values() if shard.draining]:
            if shard.number in self._desired and not self.draining:
                done.append(shard)  # it stays here: acquire it again, so that steps that were held back start
                continue
            overdue = time.monotonic() - self._draining_since[shard.number] > self._settings.grace
            has_work = shard.has_work or shard.number in steps
            if overdue or (not shard.busy and (shard.leaving or not has_work)):
                done.append(shard)
        if done:
            await self.release(done)

    async def release(self, shards: list[OwnedShard]) -> None:
        await self._rollup.store_partials(shards)
        shards = [shard for shard in shards if not shard.dropped]
        releases: list[tuple[OwnedShard, list[Call[Reply]]]] = []
        running = self._executor.lend({shard.number for shard in shards})
        for shard in shards:
            headers = {run_id: live.header for run_id, live in shard.live.items()}
            lent = self._records.lend(shard.number, running.get(shard.number, ()), headers, shard.outcomes())
            for run_id in shard.careful:
                record = shard.records.get(run_id, {}).get(CODE)
                if record is not None and record.host not in ("", NOBODY):
                    continue  # it is parked, and its record says for which code
                created = headers[run_id].created if run_id in headers else 0
                deaths = max(1, self._owner.suspects.deaths(shard.number, run_id))
                lent.append(LentStep(f"{run_id}/{CODE}", NOBODY, created, deaths))
            calls: list[Call[Reply]] = []
            while len(lent) > LENT:
                calls.append(self._kernel.release_shard(shard.number, shard.token, lent[:LENT], last=False))
                del lent[:LENT]
            calls.append(self._kernel.release_shard(shard.number, shard.token, lent, delivered=shard.suspect_until))
            releases.append((shard, calls))
        self._owner.drop(*shards)
        for shard in shards:
            self._owner.recent_commits.given_up(shard.number)
        if self._store.is_single:
            await self._send_releases(releases)
            return
        by_server: dict[int, list[tuple[OwnedShard, list[Call[Reply]]]]] = {}
        for release in releases:
            by_server.setdefault(self._store.server_of(release[0].keys.owner), []).append(release)
        sending = [asyncio.create_task(self._send_releases(some)) for some in by_server.values()]
        for task in sending:
            hide(task)
            self._releasing.add(task)
            task.add_done_callback(self._releasing.discard)
        # One that is away holds up nothing else, unless this daemon ends: then nobody could send them any more.
        waited_for = self._releasing if self.draining else sending
        if waited_for:
            done, _ = await asyncio.wait(waited_for, timeout=None if self.draining else FINISH_RELEASE)
            for task in done:
                task.result()

    async def _send_releases(self, releases: list[tuple[OwnedShard, list[Call[Reply]]]]) -> None:
        """Of shards that are on one server. However long that is away: it still has this daemon as their owner, which
        has dropped them."""
        calls = [call for _, some in releases for call in some]
        try:
            answers = await self._store.send(calls, patience=math.inf)
        finally:
            self._records.released(shard.number for shard, _ in releases)
        released = position = 0
        for shard, some in releases:
            position += len(some)
            answer = answers[position - 1]
            released += answer is Reply.OK
            if isinstance(answer, StoreError):
                _log.error(
                    "shard %d could not be released, so its next owner waits up to %g s for it: %s",
                    shard.number,
                    self._settings.grace + self._settings.dead_after,
                    answer,
                )
        _log.info(
            "released %d of %d shards; %d steps of theirs go on here", released, len(releases), self._records.running
        )

    async def end_steps(self, over: float) -> None:
        """This daemon has released all shards: give steps that it still runs for others time until `over` (monotonic
        s), then return them."""
        with anyio.move_on_after(max(0.0, over - time.monotonic())):
            await wait_until(lambda: not self._records.running, 0.02)
        await self._records.return_rest()
