"""Commits that a server has acknowledged a short while ago, committed again when it turns out to have lost them.

Owns: what is kept, for how long, which of it is missing, and committing it again. Must not: decide that a server has
another history (the store does), or decide anything for a run. Called by: the owner (keeps what was accepted, and
starts that were read), takeover (mends a shard before anything of it is read), membership (releases).

Replication is asynchronous: a replica that is promoted has a beginning of what its primary has acknowledged, in the
order in which that executed it, and so has a server that lost power. The daemon that owned a shard knows what it had
committed. Acquiring the shard again it learns the token and the last commit that are there, so it knows which of its
commits are missing: those behind that one. It commits them again in their order, under its present token, before it
reads anything of the shard. Nothing is decided again: the transitions are the same bytes, under the same headers.

What has changed meanwhile is not overruled. A transition is stored only behind the header that it was decided from; a
run that has another one is left as it is, with all that was decided for it behind that. If another daemon has acquired
the shard meanwhile, nothing is committed again. What is not mended is counted and named by `lost_writes.py`.

Attempts of queued steps are added again with the commits that had added them, but for those whose outcomes a later one
has taken: these are revoked, if the server still has them, so no worker runs them again.

What a transition has taken must not be taken twice: messages that are still in the inbox are removed in the same
commit, those that come again are known by their identities, or, starts, by their runs. Messages to others get the
numbers that they had, by which their targets know them. Decision 40 says which orders of events are possible.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import msgspec

from streamflow.daemon.paused import CHANGES
from streamflow.daemon.shard import OwnedShard
from streamflow.daemon.starts import HeldStart
from streamflow.errors import StoreError
from streamflow.machine.transition import Outcome
from streamflow.model.codec import DECODE_ERRORS
from streamflow.model.record import Status, decode_header
from streamflow.model.start_word import start_word
from streamflow.store.connection import Call, OtherHistory
from streamflow.store.kernel import FRESH, Attempt, Batch, Committed, Kernel, Put, Reply, RunWrite, Start, StreamEntry
from streamflow.wire import BadMessage, InboxMessage, decode_message

if TYPE_CHECKING:
    from streamflow.daemon.batch import ShardBatch
    from streamflow.daemon.context import Context

_log = logging.getLogger("streamflow.mend")

KEEP_SECONDS = 60.0
"""More than a failover takes: by default a cluster's servers wait for one that is silent for 15 seconds, and Sentinels
for 30. An older commit is forgotten when another one is accepted."""
KEEP_BYTES = 32 * 1024 * 1024
"""Of all shards together; the oldest go first. A replica that is promoted lacks fractions of a second."""
COMMIT_BYTES, RUN_BYTES = 500, 500
"""What a commit, and each of its transitions, take in memory besides their own bytes, about."""
READ_BYTES = 1024 * 1024
"""Of an inbox in one reply."""
HEADERS = 1000
"""Read in one pipeline."""
TOGETHER = 50
TOGETHER_BYTES = 2 * 1024 * 1024
"""Commits of a shard, and their bytes, in one pipeline."""
SHARDS = 16
"""Shards that are mended at the same time."""
ROUNDS = 20
"""After so many refusals a shard is given up for now: each means that a start or message has come in between."""
ACQUISITIONS = 8
"""So many of a shard are remembered."""
IDS = 50
"""Run ids in one line of the log."""
UNREADABLE = b"?"
"""In the place of a header."""
NEW = b"pending 0 - "
"""How the header of a run begins that no daemon has reduced yet."""

_NO_LIST: list[Any] = cast("Any", ())
"""In the place of an empty list. Nobody can add anything to it."""


async def _wake_nothing(shard: OwnedShard, run_ids: Iterable[str]) -> None:
    pass


class _Kept(msgspec.Struct, eq=False, gc=False):
    """A commit that was accepted. `nonce`: of the token under which it is on the server, if it is, and `number`: the
    commit's under that token; `history`: that of the server then. `taken`: the messages that its transitions took.
    `is_gone`: it is in no line any more."""

    shard: int
    nonce: str
    number: int
    history: int
    batch: Batch
    taken: Sequence[InboxMessage]
    size: int
    at: float
    is_gone: bool = False


def to_commit_again(batch: Batch) -> Batch:
    """What `_batch_of` makes another commit of. Thousands are kept: a dozen empty lists in each would be most of what
    the garbage collector has to look through while it stops the event loop."""
    if not batch.runs:  # it has only taken requests
        return Batch("")
    return Batch(
        "",
        batch.runs,
        acks=_NO_LIST,
        plans=batch.plans or _NO_LIST,
        moves=batch.moves or _NO_LIST,
        sends=batch.sends or _NO_LIST,
        sent=_NO_LIST,
        poisons=_NO_LIST,
        cuts=batch.cuts or _NO_LIST,
        puts=batch.puts or _NO_LIST,
        attempts=batch.attempts or _NO_LIST,
        notification=batch.notification,
        repeats=_NO_LIST,
    )


class RecentCommits:
    """Those of one daemon. `held`: the starts in memory that wait for their turn. `on_forgotten(shard)` is called when
    a server has lost more of a shard than was kept."""

    def __init__(
        self, context: Context, held: Mapping[str, HeldStart], on_forgotten: Callable[[int], None] = lambda _: None
    ) -> None:
        self._store = context.store
        self._kernel = context.kernel
        self._clock = context.clock
        self._session = context.session
        self._held = held
        self._on_forgotten = on_forgotten
        self.wake: Callable[[OwnedShard, Iterable[str]], Awaitable[None]] = _wake_nothing
        """Puts those of these runs back that were moved out of memory. The daemon connects it."""
        self._forgotten: dict[int, tuple[str, int]] = {}
        """By shard, the newest commit that was kept and isn't any more: the token's nonce, and its number."""
        self._all: deque[_Kept] = deque()
        self._gone = self._gone_bytes = 0
        """How many of these are in no line any more, and their bytes, which don't count."""
        self._by_shard: dict[int, deque[_Kept]] = {}
        """The same, in the order in which they were accepted."""
        self._bytes = 0
        self._acquisitions: dict[int, list[tuple[str, str]]] = {}
        """By shard, the newest last: the nonce of the token, and the epoch of the one before."""
        self._starts: dict[int, dict[str, InboxMessage]] = {}
        """Of dropped shards: starts that were read, and that no commit has by then."""
        self.transitions = 0
        """Transitions that were committed again since this daemon started, and..."""
        self.runs = 0
        """...of how many runs; starts that were there again without a transition are among these."""

    # --- what is kept -------------------------------------------------------------------------------------------------

    def accepted(self, shard: OwnedShard, number: int, batch: ShardBatch) -> None:
        """The server has accepted this commit, the `number`-th under the shard's token, or may have. One without
        transitions is kept if it has taken requests: after later ones, these would have an effect."""
        if not batch.batch.runs and not _has_requests(batch):
            return
        kept = to_commit_again(batch.batch)
        taken: Sequence[InboxMessage] = ()
        size = batch.size + COMMIT_BYTES + RUN_BYTES * len(kept.runs)
        if batch.batch.acks or batch.admitted:
            acks = set(batch.batch.acks)
            taken = [
                message
                for work in batch.work.values()
                for message in work.messages
                if message.id in acks or message.waited
            ]
            taken += batch.child_conflicts
            for message in taken:
                size += len(message.body) + RUN_BYTES
        now = time.monotonic()
        entry = _Kept(shard.number, _nonce(shard.token), number, shard.history, kept, taken, size, now)
        self._all.append(entry)
        line = self._by_shard.get(entry.shard)
        if line is None:
            line = self._by_shard[entry.shard] = deque()
        line.append(entry)
        self._bytes += size
        while self._all[0].at < now - KEEP_SECONDS or self._bytes > KEEP_BYTES:
            self._drop_oldest()
            if not self._all:
                break

    def _drop_oldest(self) -> None:
        entry = self._all.popleft()
        if entry.is_gone:
            self._gone -= 1
            self._gone_bytes -= entry.size
            return
        entry.is_gone = True
        self._bytes -= entry.size
        self._forgotten[entry.shard] = entry.nonce, entry.number
        line = self._by_shard.get(entry.shard)
        if line and line[0] is entry:
            line.popleft()
            if not line:
                del self._by_shard[entry.shard]

    def dropped(self, shards: Collection[OwnedShard], under_way: Mapping[OwnedShard, ShardBatch]) -> None:
        """The shards are no longer worked for: keep the starts that were read and that no commit has. Commits that are
        under way may have been accepted; nothing has followed from them, but what they were decided from may be
        gone."""
        by_shard: dict[OwnedShard, list[InboxMessage]] = {}
        for held in self._held.values():
            if held.shard.dropped:
                by_shard.setdefault(held.shard, []).append(held.messages[0])
        for shard in shards:
            messages = list(shard.inbox)
            messages += [message for work in shard.aside.values() for message in work.messages]
            batch = under_way.get(shard)
            if batch is not None:
                if batch.is_sent:
                    self.accepted(shard, shard.commits + 1, batch)
                messages += [message for work in batch.work.values() for message in work.messages]
            messages += by_shard.get(shard, ())
            starts = {message.run_id: message for message in messages if message.kind == "start"}
            if starts:
                self._starts[shard.number] = starts

    def given_up(self, number: int) -> None:
        """The shard was given up: whatever the server loses of it from now on, its next owner has decided from it."""
        self._forget(number)

    def forget_all(self) -> None:
        """The data are other ones: nothing of the former ones may come back."""
        for number in [*self._by_shard, *self._starts]:
            self._forget(number)

    def _forget(self, number: int) -> None:
        self._acquisitions.pop(number, None)
        self._forgotten.pop(number, None)
        self._starts.pop(number, None)
        self._remove(self._by_shard.pop(number, ()))

    def _remove(self, entries: Iterable[_Kept]) -> None:
        """Those that are in no line any more. They stay among all until they are half of it, or large: removed one
        shard at a time, all would be gone through as often as there are shards."""
        for entry in entries:
            if not entry.is_gone:
                entry.is_gone = True
                self._gone += 1
                self._gone_bytes += entry.size
                self._bytes -= entry.size
        if self._gone > len(self._all) // 2 or self._gone_bytes > KEEP_BYTES // 8:
            self._all = deque([entry for entry in self._all if not entry.is_gone])
            self._gone = self._gone_bytes = 0

    # --- what is missing ----------------------------------------------------------------------------------------------

    def acquiring(self, number: int, seen: str, nonce: str) -> None:
        """This daemon is about to acquire a shard whose token is `seen`. It may succeed without learning of it."""
        acquisitions = self._acquisitions.setdefault(number, [])
        acquisitions.append((nonce, _epoch(seen)))
        del acquisitions[:-ACQUISITIONS]

    def _missing(self, number: int, seen: str, final: str) -> list[_Kept] | None:
        """Which of a shard's commits a server lacks on which its token was `seen`, and its last commit `final`, before
        this daemon acquired it again. None: another daemon has acquired it, so what there is isn't known."""
        acquisitions = self._acquisitions.get(number, [])
        order = {nonce: position for position, (nonce, _) in enumerate(acquisitions)}
        line = self._by_shard.get(number, ())
        if not seen or any(entry.nonce not in order for entry in line):
            return None
        there = order.get(_nonce(seen), -1), _number(final, self._session)
        if there[0] < 0:
            first = min((order[entry.nonce] for entry in line), default=0)
            if not acquisitions or acquisitions[first][1] != _epoch(seen):
                return None
        nonce, last = self._forgotten.get(number, ("", 0))
        if (order.get(nonce, -1), last) > there:
            self._on_forgotten(number)
        return [entry for entry in line if (order[entry.nonce], entry.number) > there]

    # --- committing it again ------------------------------------------------------------------------------------------

    async def mend(
        self, acquired: Sequence[tuple[OwnedShard, str, str]], failed: Callable[[int, Exception], None]
    ) -> list[OwnedShard]:
        """Commit again what a server has lost of shards that were just acquired: (shard, the token that it had before,
        the last commit that it had). Returns those that are as complete as this daemon can make them; of each other one
        `failed(number, error)` says why. Raises `StoreUnavailable`: then the next acquisition does it."""
        wanted: list[_Mending] = []
        for shard, seen, final in acquired:
            number = shard.number
            shard.history = present = self._store.history_of(shard.keys.owner)
            missing = self._missing(number, seen, final)
            starts = self._starts.pop(number, {})
            if missing is None:
                if any(entry.history != present for entry in self._by_shard.get(number, ())):
                    _log.warning(
                        "shard %d had another owner, or its data are other ones, since a server has lost writes: "
                        "nothing of it is committed again",
                        number,
                    )
                newest = self._acquisitions.get(number, [])[-1:]
                self._forget(number)
                self._acquisitions[number] = newest
                continue
            if missing or starts:
                wanted.append(_Mending(shard, missing, starts, self._by_shard.get(number, ())))
        try:
            for first in range(0, len(wanted), SHARDS):
                await self._mend(wanted[first : first + SHARDS])
        except BaseException:
            for mending in wanted:  # what is committed again by now is there
                if mending.starts:
                    self._starts[mending.shard.number] = mending.starts
            raise
        finally:
            self._report(wanted)
        broken: set[int] = set()
        for mending in wanted:
            number, error = mending.shard.number, mending.error
            self._drop_void(number, mending.void)
            if error is None:
                continue
            broken.add(number)
            if isinstance(error, OtherHistory):
                self._starts[number] = mending.starts
                if mending.is_behind:
                    self._store.history_lost(mending.shard.keys.owner)
            else:
                failed(number, error)  # it is acquired again without this
                self._forget(number)
        return [shard for shard, _, _ in acquired if shard.number not in broken]

    async def _mend(self, mendings: Sequence[_Mending]) -> None:
        unfinished = list(mendings)
        while unfinished:
            await self._read_headers(unfinished)
            await self._read_inboxes(unfinished)
            calls: list[Call[Any]] = []
            parts: list[tuple[_Mending, int]] = []
            for mending in unfinished:
                some = mending.next_calls(self._kernel, self._session, self._clock.now_ms())
                parts.append((mending, len(some)))
                calls += some
            replies = await self._store.send(calls, same_history=True, confirmed=True) if calls else []
            position = 0
            for mending, count in parts:
                mending.take(replies[position : position + count])
                position += count
            unfinished = [mending for mending in unfinished if not mending.is_over]
        for mending in mendings:
            if mending.error is None:
                await self._start_again(mending)

    async def _read_headers(self, mendings: Sequence[_Mending]) -> None:
        wanted = [(mending, run_id) for mending in mendings for run_id in mending.unknown()]
        for mending in mendings:
            if mending.shard.asleep:  # what is lost may be that they were awake
                await self.wake(mending.shard, mending.unknown())
        for first in range(0, len(wanted), HEADERS):
            some = wanted[first : first + HEADERS]
            calls = [Call.plain("LINDEX", mending.shard.keys.run(run_id), 0) for mending, run_id in some]
            for (mending, run_id), header in zip(some, await self._store.send(calls), strict=True):
                mending.headers[run_id] = UNREADABLE if isinstance(header, StoreError) else header or b""

    async def _read_inboxes(self, mendings: Sequence[_Mending]) -> None:
        """What is there of what is to be committed again, after the headers: with a run comes its start."""
        left = list(mendings)
        while left:
            calls = [self._kernel.read_stream(one.shard.keys.inbox, one.looked_up_to, READ_BYTES) for one in left]
            pages = await self._store.send(calls)
            left = [
                mending
                for mending, page in zip(left, pages, strict=True)
                if mending.error is None and mending.look(page)
            ]

    async def _start_again(self, mending: _Mending) -> None:
        """Starts that had been read, and that no commit has: a client sends its own again, if it still lives. Those of
        children come again from their parents' shards."""
        by_time: dict[int, list[Start]] = {}
        for run_id, message in mending.starts.items():
            try:
                header = decode_header(message.header)
            except DECODE_ERRORS:  # not written by streamflow: it was to be quarantined
                continue
            if not header.parent:
                start = Start(run_id, header.workflow, header.tenant, message.body, header.trace, header.start)
                by_time.setdefault(header.created, []).append(start)
        number = mending.shard.number
        for created, starts in by_time.items():
            [reply] = await self._store.send([self._kernel.start_runs(number, starts, created=created, asleep=True)])
            if isinstance(reply, StoreError):
                mending.error = reply
                return
            for start, header in zip(starts, reply, strict=True):
                if header[:1] not in (b"+", b"=") and start_word(start.word).identity:
                    header = await self._replace_again(number, start, created, header)
                if header.startswith(b"+"):
                    mending.started.append(start.run_id)

    async def _replace_again(self, number: int, start: Start, created: int, header: bytes) -> bytes:
        """This start was created later than the ended run that the server has: it had taken its place."""
        try:
            found = decode_header(header)
        except DECODE_ERRORS:  # not written by streamflow
            return header
        if found.is_open or found.created >= created:
            return header
        start.replaces = header
        [reply] = await self._store.send([self._kernel.replace_run(number, start, created=created, asleep=True)])
        return header if isinstance(reply, StoreError) else reply

    def _drop_void(self, number: int, void: Sequence[_Kept]) -> None:
        """Nothing of these commits can be stored any more."""
        line = self._by_shard.get(number)
        if line is not None and void:
            self._remove(void)
            self._by_shard[number] = deque(entry for entry in line if not entry.is_gone)

    def _report(self, mendings: Sequence[_Mending]) -> None:
        runs = [run_id for mending in mendings for run_id in mending.mended]
        started = [run_id for mending in mendings for run_id in mending.started]
        transitions = sum(mending.transitions for mending in mendings)
        self.transitions += transitions
        self.runs += len(runs) + len(started)
        if runs:
            _log.warning(
                "the server had lost %d transitions of %d runs that it had acknowledged, and this daemon has committed "
                "them again: nothing of them is lost, and no step of theirs runs again",
                transitions,
                len(runs),
            )
            for first in range(0, len(runs), IDS):
                _log.info("committed again: %s", ", ".join(runs[first : first + IDS]))
        if started:
            _log.warning(
                "the server had lost %d runs before their first transition, and they were started again: %s%s",
                len(started),
                ", ".join(started[:IDS]),
                ", …" if len(started) > IDS else "",
            )


class _Mending:
    """One shard that lacks commits, while these are made again. `starts`: those that no commit has."""

    def __init__(
        self,
        shard: OwnedShard,
        missing: Sequence[_Kept],
        starts: dict[str, InboxMessage],
        kept: Iterable[_Kept] = (),
    ) -> None:
        self.shard = shard
        self.starts = starts
        self.headers: dict[str, bytes] = {}
        """What the server has, of runs that are concerned; empty for none."""
        self.looked_up_to = "0-0"
        self.error: Exception | None = None
        self.is_behind = False
        self.mended: dict[str, None] = {}
        self.started: list[str] = []
        self.transitions = 0
        self.void: list[_Kept] = []
        """Commits of which nothing is left."""
        self._left = deque(missing)
        self._sent: list[Batch] = []
        self._refused: set[str] = set()
        """Runs that are not what these commits were decided from."""
        self._round = 0
        self._made = {
            (write.run_id, write.header): position
            for position, entry in enumerate(missing)
            for write in entry.batch.runs
        }
        """Which of these commits makes a header. A server that knows another past may have some of them."""
        self._positions = {id(entry): position for position, entry in enumerate(missing)}
        self._messages = {message.id: message for entry in missing for message in entry.taken}
        self._present: set[str] = set()
        """Of these, those that are there."""
        self._queued = {_attempt_of(one): one for entry in kept for one in entry.batch.attempts if one.body}
        """By step and attempt: what was added to queues, also by commits that are not missing..."""
        self._ended = {one for message in self._messages.values() if (one := _outcome_of(message)) is not None}
        """...and whose outcomes missing ones have taken."""
        self._again: dict[bytes, list[str]] = {}
        self._starts_again: dict[str, list[str]] = {}
        """Messages with identities, and starts, that are there: their ids."""

    @property
    def is_over(self) -> bool:
        return self.error is not None or not self._left

    def unknown(self) -> list[str]:
        """The runs whose headers have to be read."""
        runs = {write.run_id for entry in self._left for write in entry.batch.runs}
        return [run_id for run_id in runs if run_id not in self.headers]

    def look(self, page: tuple[bool, list[StreamEntry]] | StoreError) -> bool:
        """A part of the inbox. Returns whether there may be more."""
        if isinstance(page, StoreError):
            self.error = page
            return False
        more, entries = page
        for entry_id, fields in entries:
            self.looked_up_to = found = entry_id.decode()
            run_id = fields.get(b"run", b"").decode(errors="replace")
            known = self._messages.get(found)
            # On a server with another clock a new message may get the id of a lost one.
            if known is not None and known.run_id == run_id and known.body == fields.get(b"body", b""):
                self._present.add(found)
            if identity := fields.get(b"from"):
                self._again.setdefault(identity, []).append(found)
            if fields.get(b"kind") == b"start":
                self._starts_again.setdefault(run_id, []).append(found)
        return more

    def next_calls(self, kernel: Kernel, session: str, now: int) -> list[Call[Committed]]:
        """The next commits, in their order: each expects what the ones before have made."""
        self._round += 1
        self._sent = []
        calls: list[Call[Committed]] = []
        if self.error is not None:
            return calls
        size = 0
        number = self.shard.commits
        for entry in list(self._left):
            if len(calls) == TOGETHER or size >= TOGETHER_BYTES:
                break
            commit = f"{session}.{number + 1}.{self._round}"
            batch = self._batch_of(entry, commit, now)
            if batch is None:
                if self._sent:
                    break  # what is before it may still be refused, and this be stored after all
                self._left.popleft()
                if any(write.run_id in self._refused for write in entry.batch.runs):
                    self.void.append(entry)
                else:
                    entry.history = self.shard.history
                continue
            number += 1
            size += entry.size
            entry.nonce, entry.number = _nonce(self.shard.token), number  # it may get there without an answer
            self._sent.append(batch)
            calls.append(kernel.commit(self.shard.number, self.shard.token, batch, now))
        return calls

    def take(self, replies: Sequence[Committed | StoreError]) -> None:
        for batch, reply in zip(self._sent, replies, strict=True):
            if not isinstance(reply, StoreError) and reply.code in (Reply.OK, Reply.DUP):
                self.shard.commit_accepted()
                self._left.popleft().history = self.shard.history
                self.transitions += len(batch.runs)
                self.mended.update((write.run_id, None) for write in batch.runs)
                continue
            if isinstance(reply, StoreError):
                self.error = reply
            elif reply.code is Reply.CONFLICT and self._round < ROUNDS:
                self.headers.clear()  # a start or a message has come meanwhile
            elif reply.code is Reply.BEHIND:
                self.error, self.is_behind = OtherHistory(), True  # what was committed again a moment ago is missing
            else:
                self.error = StoreError(f"what a server had lost could not be committed again: {reply.code}")
            return

    def _batch_of(self, entry: _Kept, commit: str, now: int) -> Batch | None:
        """A commit as it is made again, without the runs that have other headers, or have this already. None if no run
        is left."""
        kept, keys = entry.batch, self.shard.keys
        # What had been delivered stays in the outbox: its target may have lost it, too, before it took it.
        batch = Batch(commit, sends=kept.sends, notification=kept.notification)
        cuts = dict(kept.cuts)
        for position, write in enumerate(kept.runs):
            run_id = write.run_id
            if self._made.get((run_id, self.headers[run_id]), -1) >= self._positions[id(entry)]:
                continue  # it is there
            expected = self._expected(run_id, write.expected)
            if expected is None:
                self._refused.add(run_id)
                continue
            self.headers[run_id] = write.header
            if position in cuts:
                batch.cuts.append((len(batch.runs), cuts[position]))
            state = write.state
            if write.expected.startswith(NEW):
                state = state if state.startswith(FRESH) else FRESH + state  # there may be no record
                batch.moves.append((run_id, keys.waiting, "", 0))
                header = decode_header(write.expected)
                batch.moves.append((run_id, "", keys.index(Status.RUNNING, header.workflow), header.created))
                if header.tenant:
                    batch.moves.append((run_id, "", keys.tenant(header.tenant), header.created))
                batch.acks += self._starts_again.get(run_id, ())
            batch.runs.append(RunWrite(run_id, expected, write.header, state, write.transition))
        if kept.runs and not batch.runs:
            return None
        refused = self._refused
        batch.moves += [move for move in kept.moves if move[0] not in refused]
        batch.plans += [plan for plan in kept.plans if plan[0] not in refused]
        batch.puts += [put for put in kept.puts if not self._is_of_refused(put)]
        self._add_attempts(entry, batch)
        self._take_messages(entry, batch, now)
        return batch if batch.runs or batch.acks or batch.puts else None

    def _add_attempts(self, entry: _Kept, batch: Batch) -> None:
        written = {write.run_id for write in batch.runs}
        batch.attempts += [
            attempt
            for attempt in entry.batch.attempts
            if _run_of(attempt.step) in written and not (attempt.body and _attempt_of(attempt) in self._ended)
        ]
        for message in entry.taken:
            one = _outcome_of(message) if message.run_id in written else None
            queued = None if one is None else self._queued.get(one)
            if queued is not None:
                batch.attempts.append(Attempt(queued.queue, queued.step, queued.attempt, b""))

    def _take_messages(self, entry: _Kept, batch: Batch, now: int) -> None:
        """What the transitions have taken must not be taken again: what of it is there is removed, and what comes later
        is known by its identity."""
        acks = set(batch.acks)
        identities: list[str] = []
        for message in entry.taken:
            if message.run_id in self._refused:
                continue
            if message.id in self._present:
                acks.add(message.id)
            if message.identity:
                acks.update(self._again.get(message.identity, ()))
                identities.append(message.identity.decode(errors="replace"))
        batch.acks = sorted(acks)
        if identities:
            batch.repeats = [self.looked_up_to, *identities]
            accepted = f"0-0 {now} shard:-1".encode()
            batch.puts += [Put(self.shard.keys.seen, identity, accepted) for identity in identities]

    def _expected(self, run_id: str, expected: bytes) -> bytes | None:
        """The header that the server must have, '' for none, for a transition that was decided from `expected`; None if
        it must not be stored."""
        stored = self.headers[run_id]
        if run_id in self._refused:
            return None
        if stored == expected or (not stored and expected.startswith(NEW)):
            return stored
        if stored.startswith(NEW) and expected.startswith(NEW) and _is_same_child(stored, expected):
            return stored
        return None

    def _is_of_refused(self, put: Put) -> bool:
        if not self._refused:
            return False
        keys = self.shard.keys
        if put.key in (keys.steps, keys.details):
            return put.field.rpartition("/")[0] in self._refused
        return put.key.removeprefix(keys.published("")) in self._refused


def _has_requests(batch: ShardBatch) -> bool:
    """Whether it has acknowledged messages that would change something later: a second pause, behind the resume."""
    acks = batch.batch.acks
    return bool(acks) and any(
        message.kind in CHANGES and message.id in acks for work in batch.work.values() for message in work.messages
    )


def _run_of(step: str) -> str:
    return step.rpartition("/")[0]


def _attempt_of(attempt: Attempt) -> tuple[str, int]:
    return attempt.step, int(attempt.attempt.partition(" ")[2])


def _outcome_of(message: InboxMessage) -> tuple[str, int] | None:
    """Step and attempt of an outcome that a transition has taken; None for another message."""
    if message.kind != "outcome":
        return None
    try:
        outcome = decode_message(message, None)
    except BadMessage:
        return None
    return (f"{message.run_id}/{outcome.seq}", outcome.attempt) if isinstance(outcome, Outcome) else None


def _is_same_child(one: bytes, other: bytes) -> bool:
    """Whether both are headers of a child that its parent has started once: its start came again, at another time."""
    try:
        a, b = decode_header(one), decode_header(other)
    except DECODE_ERRORS:
        return False
    return bool(a.parent) and (a.workflow, a.tenant, a.parent) == (b.workflow, b.tenant, b.parent)


def _nonce(token: str) -> str:
    return token.partition(":")[2]


def _epoch(token: str) -> str:
    return token.partition(":")[0]


def _number(commit: str, session: str) -> int:
    """That of a commit id of this session, else 0."""
    of, number, *_ = [*commit.split("."), ""]
    return int(number) if of == session and number.isdigit() else 0
