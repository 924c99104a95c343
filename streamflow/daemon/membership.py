"""Who is alive and who owns what: beats, rendezvous hashing, takeover and hand-over.

Owns: the decision which shards this daemon should hold. Must not: rely on it for safety: two daemons may believe that
they own a shard, and only the token inside every commit decides. Called by: the daemon (runs the loop).

Liveness: each daemon raises a beat in one hash and watches the others' beats change on its own monotonic clock (wall
clocks jump). Every daemon computes the same owner of each shard from the members that are alive, so nobody is asked:

    joins   -> the present owners see it, hand over what it wins (finish steps, release), and it takes what is free
    leaves  -> it drains, releases everything, takes itself off
    dies    -> after `dead_after` without a beat the winners among the others take its shards at once
    pauses  -> like a death; when it wakes, its next commit is refused and it drops what it had

A daemon whose own beats don't get through for two thirds of `dead_after` starts no more steps until they do.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import anyio
import msgspec

from streamflow.daemon.context import Context
from streamflow.daemon.inbox import InboxReader
from streamflow.daemon.owner import Owner
from streamflow.daemon.rollup import Rollup
from streamflow.daemon.shard import OwnedShard
from streamflow.daemon.takeover import Takeover
from streamflow.errors import StoreError, StoreUnavailable
from streamflow.loops import retry_forever
from streamflow.model.sharding import winner_of
from streamflow.steps.executor import StepExecutor
from streamflow.store.connection import Call
from streamflow.store.kernel import Reply
from streamflow.wire import Heartbeat, decode_heartbeat

_log = logging.getLogger("streamflow.membership")


class _Seen(msgspec.Struct):
    raw: bytes
    changed: float
    draining: bool
    folds: int


class Membership:
    """`describe` makes this daemon's heartbeat."""

    def __init__(
        self,
        context: Context,
        owner: Owner,
        executor: StepExecutor,
        reader: InboxReader,
        takeover: Takeover,
        rollup: Rollup,
        describe: Callable[[], Heartbeat],
    ) -> None:
        self.member = context.member
        self.draining = False
        self.owns_something = anyio.Event()
        self._store = context.store
        self._kernel = context.kernel
        self._settings = context.settings
        self._shards = context.namespace.shards
        self._owner = owner
        self._executor = executor
        self._reader = reader
        self._takeover = takeover
        self._rollup = rollup
        self._describe = describe
        self._seen: dict[str, _Seen] = {}
        self._alive: list[str] = []
        self._desired: set[int] = set()
        self._wanted_since: dict[int, float] = {}
        self._draining_since: dict[int, float] = {}
        self._confirmed = time.monotonic()
        self._server_generation = context.store.server_generation
        self._soon = anyio.Event()
        self._beating = anyio.Lock()
        self._settling = anyio.Lock()
        self._left = False

    def look_soon(self) -> None:
        """Something says that a shard was lost or is free: don't wait for the next beat."""
        self._soon.set()

    async def run(self) -> None:
        """Beats, and what follows from them, in loops of their own: taking many shards must not look like a death."""
        async with anyio.create_task_group() as loops:
            loops.start_soon(self._run_beats)
            loops.start_soon(self._run_settling)

    async def run_once(self) -> None:
        """One turn of both loops: a beat, and a move towards the shards that should be ours."""
        await self.beat()
        await self.settle()

    async def _run_beats(self) -> None:
        await retry_forever(self._beat_and_check, _log, "heartbeat failed", every=self._settings.beat, at_once=True)

    async def _beat_and_check(self) -> None:
        try:
            await self.beat()
        finally:
            self.hold_if_unconfirmed()
            self._soon.set()

    async def _run_settling(self) -> None:
        await retry_forever(self._settle_soon, _log, "could not acquire or release shards")

    async def _settle_soon(self) -> None:
        await self._soon.wait()
        await anyio.sleep(0.02)  # many shards may be lost at once
        self._soon = anyio.Event()
        await self.settle()

    async def settle(self) -> None:
        """Give back what should be others', take what should be ours."""
        async with self._settling:
            await self._settle()

    async def _settle(self) -> None:
        if self._server_generation != self._store.server_generation:
            self._start_over()
        self._owner.mend()
        await self._hand_over()
        if not self.draining:
            await self._take()
        await self._reader.shards_changed()

    async def leave(self) -> None:
        """Take this member off, so that the others needn't wait for its death. It beats no more."""
        async with self._beating:
            self._left = True
            await self._store.one(self._kernel.heartbeat(self.member, b""))

    @property
    def alive(self) -> list[str]:
        return self._alive

    # --- beats --------------------------------------------------------------------------------------------------------

    async def beat(self) -> None:
        """Show that we live, and look who else does."""
        async with self._beating:
            if not self._left:
                await self._beat()

    async def _beat(self) -> None:
        now = time.monotonic()
        dead = [
            (name, seen.raw)
            for name, seen in self._seen.items()
            if now - seen.changed > self._settings.dead_after and name != self.member
        ]
        call = self._kernel.heartbeat(self.member, msgspec.json.encode(self._describe()), dead)
        beats: dict[str, bytes] | None = None
        with anyio.move_on_after(self._settings.dead_after / 2):
            beats = await self._store.one(call)
        if beats is None:
            raise StoreUnavailable(f"no answer within {self._settings.dead_after / 2:g} s")
        self._confirmed = now  # when it was sent: what the others count from is later
        if self._executor.held:
            _log.info("beats get through again, steps go on")
            self._executor.resume()
        for name in [name for name in self._seen if name not in beats]:
            del self._seen[name]
        for name, raw in beats.items():
            seen = self._seen.get(name)
            if seen is None or seen.raw != raw:
                beat = decode_heartbeat(raw)
                self._seen[name] = _Seen(raw, time.monotonic(), beat.draining, beat.folds)
        self._rollup.others_folds = sum(seen.folds for name, seen in self._seen.items() if name != self.member)
        for name, _ in dead:
            if name not in beats:
                _log.warning("daemon %s is dead: no beat for %g s", name, self._settings.dead_after)
        # A dead one that can't be taken off (its name is no text) must not own shards all the same.
        fresh = now - self._settings.dead_after
        alive = sorted(
            name
            for name, seen in self._seen.items()
            if not seen.draining and (seen.changed >= fresh or name == self.member)
        )
        if alive != self._alive:
            _log.info("members: %s", ", ".join(alive) or "none")
            self._alive = alive
            self._rollup.leading = bool(alive) and winner_of(-1, alive) == self.member
            self._desired = {n for n in range(self._shards) if alive and winner_of(n, alive) == self.member}

    def hold_if_unconfirmed(self) -> None:
        """Start no more steps when the others may be about to give this daemon up."""
        if not self._executor.held and time.monotonic() - self._confirmed > self._settings.dead_after * 2 / 3:
            _log.warning("no beat gets through; the others may take over, so no more steps are started")
            self._executor.hold()

    def _start_over(self) -> None:
        """The server has another history: what is in memory may never have happened. Take everything anew."""
        self._server_generation = self._store.server_generation
        _log.warning("dropping all %d shards to read them again", len(self._owner.shards))
        for shard in list(self._owner.shards.values()):
            self._owner.drop(shard)

    # --- taking and handing over --------------------------------------------------------------------------------------

    async def _take(self) -> None:
        missing = sorted(self._desired - self._owner.shards.keys())
        self._wanted_since = {n: self._wanted_since.get(n, time.monotonic()) for n in missing}
        if not missing:
            return
        calls = [Call.plain("HMGET", self._kernel.keys.shard(n).owner, "token", "holder") for n in missing]
        records = await self._store.send(calls)
        wanted: dict[int, str] = {}
        patience = self._settings.grace + self._settings.dead_after
        for number, record in zip(missing, records, strict=True):
            if isinstance(record, StoreError):
                _log.error("shard %d can't be looked at: %s", number, record)
                continue
            token, holder = ((part or b"").decode() for part in record)
            waited = time.monotonic() - self._wanted_since[number]
            if not holder or holder == self.member or holder not in self._seen or waited > patience:
                wanted[number] = token
        if not wanted:
            return
        taken = await self._takeover.take(wanted)
        for shard in taken:
            self._owner.add(shard)
        if taken:
            _log.info("took %d shards, now %d of %d", len(taken), len(self._owner.shards), self._shards)
            self.owns_something.set()

    async def _hand_over(self) -> None:
        """Give back what somebody else should have: first let its steps finish, for as long as the grace allows."""
        now = time.monotonic()
        going = [
            shard
            for shard in self._owner.shards.values()
            if (self.draining or shard.number not in self._desired) and not shard.draining
        ]
        for shard in going:
            shard.draining = True
            self._draining_since[shard.number] = now
        if going:
            _log.info("handing over %d shards", len(going))
            await self._reader.shards_changed()  # nothing more is read, so what is in memory becomes less
        done: list[OwnedShard] = []
        for shard in [shard for shard in self._owner.shards.values() if shard.draining]:
            if shard.number in self._desired and not self.draining:
                self._owner.drop(shard)  # it is ours after all: take it anew, so that what was held back starts
                continue
            over = now - self._draining_since[shard.number] > self._settings.grace
            if over or not (shard.busy or shard.has_work or self._executor.of_shard(shard.number)):
                done.append(shard)
        if done:
            await self.release(done)

    async def release(self, shards: list[OwnedShard]) -> None:
        await self._rollup.store_partials(shards)
        calls = [self._kernel.release_shard(shard.number, shard.token) for shard in shards]
        for shard in shards:
            self._owner.drop(shard)
        answers = await self._store.send(calls)
        released = sum(answer is Reply.OK for answer in answers)
        _log.info("released %d shards", released)
