"""Runs that wait for storage: each is put off with all that comes for it, while the other runs of its shard go on.

Owns: what such a run would have been given, how often storage is asked for it, and how much of that is in memory.
Must not: know what is stored, or reduce anything. Called by: the owner (before a run is loaded, and before it is
reduced; before it collects a batch), the daemon (suppliers; what its heartbeat says).

    a supplier says that a run needs something   -> its work leaves the batch, for `OwnedShard.put_off`
    what comes for the run meanwhile             -> waits behind that (`keep_back`)
    storage has given it                         -> the work goes to `OwnedShard.returned`, and into the next batch
    somebody terminates the run                  -> it goes there at once, without what storage hasn't given

Nothing is acknowledged meanwhile: messages are in the inbox, due times on the agenda, running steps in the takeover's
lists. So a shard that is dropped or handed over leaves its put-off runs to the next owner, which asks storage itself.
Outcomes of steps, which are only here, are handed over with all others (`OwnedShard.outcomes`).

Storage that fails is asked again, after pauses that grow, for as long as it takes. What it has and isn't what was
stored (`ArchiveDamaged`) parks the run instead: asking again doesn't help, and a retry tries it again.

A terminate needs no code of the run, so it doesn't wait: the run is parked, as one whose code can't be run, and what
has come for it is recorded as it is, in its order, up to the terminate, which ends it.

Above `MOST_BYTES` messages are forgotten, and read again from the inbox when it is their run's turn.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Collection, Iterator
from functools import partial
from typing import Any, NamedTuple, Protocol

from streamflow.daemon.context import Context
from streamflow.daemon.shard import OwnedShard, PutOffRun, RunWork
from streamflow.errors import ArchiveDamaged, StoreError
from streamflow.machine.sealed import hide, one_seal
from streamflow.machine.transition import Due, Outcome
from streamflow.store.kernel import Kernel, StreamEntry
from streamflow.wire import BadMessage, InboxMessage, StorageWait, decode_message, stream_order

_log = logging.getLogger("streamflow.storage")

AT_ONCE = 16
"""Runs for which storage is asked at the same time."""
FIRST_PAUSE = 0.25
LONGEST_PAUSE = 30.0
"""Seconds between two tries; the pause doubles with each failure in a row..."""
JITTER = 0.75
"""...of which so much at least."""
SAY_AGAIN = 60.0
"""Seconds after which the log says again that storage fails."""
SHOWN_AFTER = 2.0
"""Seconds after which a run that waits is named in the heartbeat, at once if storage has failed."""
MOST_SHOWN = 20
POSTPONED = 60_000
"""Ms by which the due time of a run that waits is put off: else it would be in the way of others that are due."""
MOST_BYTES = 32 * 1024 * 1024
"""Of messages for runs that wait, in memory."""
MESSAGE_BYTES = 300
"""What a message takes besides its body, about."""
PORTION = 1024 * 1024
"""Bytes of the inbox that are read again at once."""
LOOK_FOR_ROOM = 0.02


Fetch = Callable[[], Awaitable[dict[Any, Any]]]


class Need(NamedTuple):
    """What a run waits for. `what`: in words, behind "waits for". `fetch` gives what a supplier finds later in
    `RunWork.found`; it raises `ArchiveDamaged` if asking again doesn't help. `ends`: called in its place when the run
    is terminated; without it the run has a record on the server, and is ended with that alone."""

    what: str
    fetch: Fetch
    ends: Fetch | None = None


class Supplier(Protocol):
    """Says what runs need of storage. Called in the event loop: nothing may take long."""

    @property
    def least(self) -> float:
        """Bytes of a batch's messages and results from which on it may need something for them; for fewer only if one
        of the messages stands for something in storage."""
        ...

    def record(self, shard: OwnedShard, run_id: str, work: RunWork, record: list[bytes]) -> list[bytes] | Need:
        """Of a run that is to be loaded: its record with what storage has of it, or what it has to wait for."""
        ...

    def inputs(self, shard: OwnedShard, run_id: str, work: RunWork) -> Need | None:
        """Of a run that is to be reduced: what it has to wait for. May put what it has found in the place of what
        stands for it."""
        ...


class RunsPutOff:
    """Those of one daemon. `wake(shard)`: it has work again; `drop(shard)`: what is in memory of it isn't right."""

    def __init__(
        self, context: Context, wake: Callable[[OwnedShard], None], drop: Callable[[OwnedShard], None]
    ) -> None:
        self.suppliers: list[Supplier] = []
        self._store = context.store
        self._kernel: Kernel = context.kernel
        self._wake = wake
        self._drop = drop
        self._all: dict[tuple[int, str], tuple[OwnedShard, PutOffRun]] = {}
        self._tasks: dict[asyncio.Task[None], tuple[OwnedShard, PutOffRun]] = {}
        self._unasked: list[tuple[OwnedShard, str, PutOffRun, Fetch | None]] = []
        self._room = asyncio.Semaphore(AT_ONCE)
        self.bytes = 0
        """Of the messages and results of all of them that are in memory."""
        self._said = -SAY_AGAIN
        self._reason = ""

    def __bool__(self) -> bool:
        return bool(self.suppliers)

    # --- what runs need -----------------------------------------------------------------------------------------------

    @property
    def least(self) -> float:
        """That of all suppliers (`Supplier.least`)."""
        return min((supplier.least for supplier in self.suppliers), default=math.inf)

    def whole_record(
        self, shard: OwnedShard, batch: dict[str, RunWork], run_id: str, record: list[bytes]
    ) -> list[bytes] | None:
        """The record of a run that is to be loaded, with what suppliers add to it; None: the run is put off. `batch`:
        the work of its batch, by run."""
        work = batch[run_id]
        for supplier in self.suppliers if run_id not in shard.without_storage else ():
            answer = supplier.record(shard, run_id, work, record)
            if isinstance(answer, Need):
                self.put_off(shard, run_id, batch.pop(run_id), answer)
                return None
            record = answer
        return record

    def look_at_inputs(self, shard: OwnedShard, batch: dict[str, RunWork]) -> list[str]:
        """Put off the runs of a batch that can't be reduced yet. Returns which."""
        found: list[str] = []
        for run_id, work in list(batch.items()):
            for supplier in self.suppliers if run_id not in shard.without_storage else ():
                try:
                    need = supplier.inputs(shard, run_id, work)
                except Exception as error:  # whatever somebody has sent is the trouble of this run
                    need = Need("its turn", partial(_fails, f"what has come for it can't be read: {error!r}"[:500]))
                if need is not None:
                    self.put_off(shard, run_id, batch.pop(run_id), need)
                    found.append(run_id)
                    break
        return found

    def put_off(self, shard: OwnedShard, run_id: str, work: RunWork, need: Need) -> None:
        """Keep the run's work, which is in no batch any more, until storage has what it needs."""
        work.loaded = False
        entry = PutOffRun(work, need.what, time.monotonic(), ends=need.ends)
        entry.terminated = _is_terminated(work.messages)
        self._begin(shard, run_id, entry, need.fetch)

    def _begin(self, shard: OwnedShard, run_id: str, entry: PutOffRun, fetch: Fetch | None) -> None:
        earlier = shard.put_off.get(run_id)
        if earlier is not None:  # what has come behind it since it was returned: see `_return`
            self.bytes -= earlier.size
            entry.terminated = entry.terminated or earlier.terminated
            entry.later.messages = earlier.work.messages + earlier.later.messages
            entry.later.inputs = earlier.work.inputs + earlier.later.inputs
            entry.spilled, entry.spilled_to = earlier.spilled, earlier.spilled_to
            self._count(entry, entry.later.messages)
        shard.put_off[run_id] = entry
        self._all[shard.number, run_id] = shard, entry
        self._count(entry, entry.work.messages)
        results = [one.result for one in entry.work.inputs if isinstance(one, Outcome) and one.result is not None]
        entry.size += sum(map(len, results))
        self.bytes += sum(map(len, results))
        self._unasked.append((shard, run_id, entry, fetch))

    def ask(self) -> None:
        """Ask storage for what runs wait for that were put off since the last call. Not while code of runs is sealed
        off: no task can be made there."""
        unasked, self._unasked = self._unasked, []
        for shard, run_id, entry, fetch in unasked:
            if shard.put_off.get(run_id) is not entry:
                continue
            if entry.terminated and fetch is not None:
                if entry.ends is None:
                    self._end_without(shard, run_id, entry)
                    continue
                fetch = entry.ends
            task = asyncio.create_task(self._wait(shard, run_id, entry, fetch))
            hide(task)
            self._tasks[task] = shard, entry
            task.add_done_callback(self._tasks.pop)

    # --- terminated ---------------------------------------------------------------------------------------------------

    def _terminate(self, shard: OwnedShard, run_id: str, entry: PutOffRun) -> None:
        """Somebody has terminated a run that waits: don't wait for what only its code needs."""
        entry.terminated = True
        if entry.reads_again:  # it has what storage had, and the request has its turn
            return
        for task in [task for task, (_, of) in self._tasks.items() if of is entry]:
            self._tasks.pop(task)
            task.remove_done_callback(self._tasks.pop)
            task.cancel()
        if entry.ends is None:
            self._end_without(shard, run_id, entry)
        else:
            self._unasked.append((shard, run_id, entry, entry.ends))
            self.ask()

    def _end_without(self, shard: OwnedShard, run_id: str, entry: PutOffRun) -> None:
        shard.without_storage.add(run_id)
        if not entry.spilled:  # one transition, so that nobody sees it stuck
            entry.work.messages += entry.later.messages
            entry.work.inputs += entry.later.inputs
            entry.later = RunWork()
        _park(shard, run_id, f"it was terminated while it waited for {entry.what}, and ends without", logging.WARNING)
        self._return(shard, run_id, entry)

    # --- what comes meanwhile -----------------------------------------------------------------------------------------

    def keep_back(self, shard: OwnedShard) -> None:
        """What has come for runs that are put off waits behind what they wait with. Called before each batch."""
        waiting = shard.put_off
        for run_id in [run_id for run_id in shard.inputs if run_id in waiting]:
            entry = waiting[run_id]
            for input_ in shard.inputs.pop(run_id):
                if isinstance(input_, Due):
                    self._put_off_due(shard, run_id)
                    if any(isinstance(other, Due) for other in (*entry.work.inputs, *entry.later.inputs)):
                        continue
                entry.later.inputs.append(input_)
        if not any(message.run_id in waiting for message in shard.inbox):
            return
        kept: list[InboxMessage] = []
        terminated: dict[str, PutOffRun] = {}
        for message in shard.inbox:
            entry = waiting.get(message.run_id) if message.is_for_run else None
            if entry is not None and not entry.terminated and _is_terminate(message):
                terminated[message.run_id] = entry
            if entry is None:
                kept.append(message)
            elif entry.spilled and stream_order(message.id) < stream_order(entry.spilled):  # given back by a batch
                before = shard.returned.get(message.run_id, entry)
                work = before.work if before.reads_again else before.later
                work.messages = sorted([*work.messages, message], key=lambda one: stream_order(one.id))
                if before is entry:
                    self._count(entry, [message])
            elif entry.spilled or (self.bytes > MOST_BYTES and not message.waited):
                entry.spilled, entry.spilled_to = entry.spilled or message.id, message.id
            else:
                entry.later.messages.append(message)
                self._count(entry, [message])
        shard.inbox.clear()
        shard.inbox.extend(kept)
        for run_id, entry in terminated.items():
            self._terminate(shard, run_id, entry)

    @staticmethod
    def _put_off_due(shard: OwnedShard, run_id: str) -> None:
        """Due runs are read in portions: those that wait must not fill them. Not of runs whose steps are in flight,
        which is what the agenda says of them."""
        live, work = shard.live.get(run_id), shard.put_off[run_id].work
        is_new = any(message.kind == "start" for message in work.messages)
        if not is_new and run_id not in shard.orphans and (live is None or live.plan is None or live.plan >= 0):
            shard.postponed.add(run_id)

    def _count(self, entry: PutOffRun, messages: list[InboxMessage]) -> None:
        size = sum(len(message.body) + MESSAGE_BYTES for message in messages)
        entry.size += size
        self.bytes += size

    # --- waiting ------------------------------------------------------------------------------------------------------

    async def _wait(self, shard: OwnedShard, run_id: str, entry: PutOffRun, fetch: Fetch | None) -> None:
        try:
            if fetch is None:
                await self._read_again(shard, run_id, entry)
            else:
                await self._fetch(shard, run_id, entry, fetch)
        except asyncio.CancelledError:  # by `dropped` or `_terminate`, or by user code that cancels all tasks it finds
            if not shard.dropped and asyncio.current_task() in self._tasks:
                self._drop(shard)
            raise
        except Exception:
            _log.exception("run %s of shard %d can't be put off, so the shard is read again", run_id, shard.number)
            self._drop(shard)
        else:
            self._return(shard, run_id, entry)

    async def _fetch(self, shard: OwnedShard, run_id: str, entry: PutOffRun, fetch: Fetch) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                async with self._room:
                    entry.work.found.update(await fetch())
                return
            except ArchiveDamaged as error:
                _park(shard, run_id, str(error))
                return
            except Exception as error:
                entry.tries += 1
                entry.error = str(error) if isinstance(error, StoreError) else f"{type(error).__name__}: {error}"
                self._say(run_id, shard, entry)
            await asyncio.sleep(pause * random.uniform(JITTER, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE)

    def _say(self, run_id: str, shard: OwnedShard, entry: PutOffRun) -> None:
        now = time.monotonic()
        if entry.error != self._reason or now - self._said > SAY_AGAIN:
            self._reason, self._said = entry.error, now
            _log.warning(
                "run %s of shard %d waits for %s, with %d others; it is tried again, and other runs go on: %s",
                run_id,
                shard.number,
                entry.what,
                len(self._all) - 1,
                entry.error,
            )

    async def _read_again(self, shard: OwnedShard, run_id: str, entry: PutOffRun) -> None:
        """Read messages again that were forgotten, when there is room; first those have their turn that were not."""
        while run_id in shard.returned:  # noqa: ASYNC110  # what was before these
            await asyncio.sleep(LOOK_FOR_ROOM)
        if entry.work.messages or entry.work.inputs:
            return
        while self.bytes > MOST_BYTES // 2:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_FOR_ROOM)
        self.keep_back(shard)  # what was read is forgotten, too, so that nothing is there twice
        after, size, upto = _before(entry.spilled), 0, stream_order(entry.spilled_to)
        messages: list[InboxMessage] = []
        while True:
            page: tuple[bool, list[StreamEntry]] = await self._store.one(
                self._kernel.read_stream(shard.keys.inbox, after, PORTION)
            )
            more, entries = page
            for entry_id, fields in entries:
                number = entry_id.decode()
                if stream_order(number) > upto:
                    more = False
                    break
                after = number
                if fields.get(b"run", b"").decode(errors="replace") == run_id:
                    message = _message(number, run_id, fields)
                    if message.is_for_run:
                        messages.append(message)
                        size += len(message.body) + MESSAGE_BYTES
                if size > PORTION:
                    break
            if size > PORTION or not more or not entries:
                break
        self.keep_back(shard)
        if shard.put_off.get(run_id) is not entry:
            return
        is_all = size <= PORTION and stream_order(entry.spilled_to) == upto
        entry.spilled = "" if is_all else _behind(after)
        entry.work.messages += messages
        self._count(entry, messages)

    def _return(self, shard: OwnedShard, run_id: str, entry: PutOffRun) -> None:
        if shard.dropped or shard.put_off.get(run_id) is not entry:
            return
        del shard.put_off[run_id]
        del self._all[shard.number, run_id]
        self.bytes -= entry.size
        if entry.spilled:
            following = PutOffRun(RunWork(), "its turn", time.monotonic())
            following.spilled, following.spilled_to, following.reads_again = entry.spilled, entry.spilled_to, True
            following.work.inputs, entry.later.inputs = entry.later.inputs, []
            following.work.messages, entry.later.messages = entry.later.messages, []
            self._begin(shard, run_id, following, None)
            self.ask()
        if entry.work.messages or entry.work.inputs:
            shard.returned[run_id] = entry
        elif entry.later.messages or entry.later.inputs:
            entry.work, entry.later = entry.later, RunWork()
            shard.returned[run_id] = entry
        self._wake(shard)

    # --- the end ------------------------------------------------------------------------------------------------------

    def dropped(self, shards: Collection[OwnedShard]) -> None:
        """The shards are other daemons', or are read again: what they have put off comes again with all else."""
        going = set(shards)
        for task in [task for task, (of, _) in self._tasks.items() if of in going]:
            task.cancel()
        for shard in shards:
            for run_id, entry in shard.put_off.items():
                self.bytes -= entry.size
                self._all.pop((shard.number, run_id), None)
            shard.put_off.clear()
            shard.returned.clear()

    def waits(self) -> tuple[int, list[StorageWait]]:
        """How many runs wait for storage for long, and some of them, the longest first."""
        now = time.monotonic()
        long = [
            StorageWait(shard.number, run_id, entry.what, round(now - entry.since, 1), entry.error[:300])
            for (_, run_id), (shard, entry) in self._all.items()
            if entry.tries or now - entry.since > SHOWN_AFTER
        ]
        long.sort(key=lambda wait: -wait.seconds)
        return len(long), long[:MOST_SHOWN]


def take_returned(shard: OwnedShard, work: dict[str, RunWork], most: int) -> Iterator[str]:
    """Move work that storage has been asked for into a batch, and what has come behind it to the front of what waits.
    Gives the runs, which get nothing else in this batch: it may need something, too."""
    for run_id in list(shard.returned)[:most]:
        entry = shard.returned.pop(run_id)
        later = entry.later
        if entry.reads_again:  # a batch may have given back what was before
            first = stream_order(entry.work.messages[0].id) if entry.work.messages else (0, 0)
            older = [one for one in shard.inbox if one.run_id == run_id and stream_order(one.id) < first]
            for message in older:
                shard.inbox.remove(message)
            entry.work.messages = older + entry.work.messages
        if later.inputs:
            shard.inputs[run_id] = later.inputs + shard.inputs.get(run_id, [])
        shard.inbox.extendleft(reversed(later.messages))
        if run_id in shard.careful:  # its code has its turn
            aside = shard.aside.pop(run_id, RunWork())
            entry.work.messages += aside.messages
            entry.work.inputs += aside.inputs
            shard.aside[run_id] = entry.work
            continue
        work[run_id] = entry.work
        yield run_id


def _is_terminate(message: InboxMessage) -> bool:
    if message.kind != "terminate":
        return False
    try:
        decode_message(message, None)
    except BadMessage:  # it is quarantined
        return False
    return True


def _is_terminated(messages: list[InboxMessage]) -> bool:
    """Whether these, in their order, terminate the run: not what was for an earlier one of its id."""
    for message in reversed(messages):
        if message.kind == "start":
            return False
        if _is_terminate(message):
            return True
    return False


def _park(shard: OwnedShard, run_id: str, reason: str, level: int = logging.ERROR) -> None:
    """Of one in memory the code isn't run either: it is read again, as every run that is parked."""
    _log.log(level, "run %s of shard %d is parked, without what storage should have: %s", run_id, shard.number, reason)
    shard.parked[run_id] = reason
    live = shard.live.pop(run_id, None)
    if live is not None:
        with one_seal():
            live.machine.close()


async def _fails(reason: str) -> dict[Any, Any]:
    raise ArchiveDamaged(reason)


def _message(number: str, run_id: str, fields: dict[bytes, bytes]) -> InboxMessage:
    kind = fields.get(b"kind", b"").decode(errors="replace")
    header, identity = fields.get(b"header", b""), fields.get(b"from", b"")
    return InboxMessage(number, kind, run_id, fields.get(b"body", b""), header, identity)


def _before(number: str) -> str:
    """The id before which nothing can be that is before `number`."""
    ms, count = stream_order(number)
    return f"{ms}-{count - 1}" if count else f"{ms - 1}-{2**64 - 1}" if ms else "0-0"


def _behind(number: str) -> str:
    ms, count = stream_order(number)
    return f"{ms}-{count + 1}"
