"""One batch of one shard: from messages and outcomes to a `Batch` for the commit, without any I/O.

Owns: which inputs a run gets, the new header, and what a machine's effects mean for agenda, listings, outbox, queues,
puts and notifications. Must not: talk to the server or start steps. Called by: the owner, between loading and
committing.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from streamflow.daemon.failure_log import Noted
from streamflow.daemon.large_payloads import BODY, EVENT, LargePayloads, StoreFirst
from streamflow.daemon.paused import CHANGES, behind_cancel, keeps_stuck, pause_wanted, paused_text
from streamflow.daemon.put_off import POSTPONED, Need, take_returned
from streamflow.daemon.relay import OutboxEntry
from streamflow.daemon.shard import (
    CODE,
    IN_LOG,
    RUN_BYTES,
    CrowdedInbox,
    LiveRun,
    OwnedShard,
    RunWork,
    StepRecord,
    parked_by,
)
from streamflow.errors import Failure, UsageError
from streamflow.events import (
    NOTHING,
    AskAnswered,
    AskReceived,
    MessageQuarantined,
    RunFailed,
    RunForked,
    RunPaused,
    RunStarted,
    SignalReceived,
    Transition,
    encode_transition,
    last_stuck,
)
from streamflow.machine.coroutines import close_abandoned
from streamflow.machine.factory import new_machine
from streamflow.machine.open_work import MAX_WORKER_LOSSES
from streamflow.machine.retry_point import (
    CannotRetry,
    RetryPoint,
    again_point,
    check_end,
    no_child,
    not_again,
    not_failed,
)
from streamflow.machine.run import RunMachine
from streamflow.machine.sealed import one_seal
from streamflow.machine.transition import (
    NOTHING_BESIDES,
    AgainRequest,
    Besides,
    CompletedChild,
    Effects,
    FailedChild,
    Input,
    Outcome,
    Outgoing,
    Oversize,
    RetryRequest,
)
from streamflow.model.attributes import Attribute, merged, same, value_text
from streamflow.model.codec import DECODE_ERRORS
from streamflow.model.failures import failure_of, line_of_function
from streamflow.model.logged import LARGE, Origin, encode_logged, encode_origin
from streamflow.model.record import STOPPED, Header, Status, decode_header, parent_link
from streamflow.model.references import MARK, MARK_BYTE
from streamflow.store.kernel import FRESH, Attempt, Batch, Poison, Put, RunWrite, Send, listed_under
from streamflow.store.namespace import Namespace
from streamflow.store.pauses import Pause
from streamflow.wire import (
    ABOUT_OTHERS,
    BadMessage,
    InboxMessage,
    OutboxMessage,
    answer_name,
    child_outcome,
    decode_fork,
    decode_message,
    encode_job,
    encode_outbox,
    is_fork,
    notified_ending,
    published_name,
    refused_child,
    stream_order,
    trace_of,
)
from streamflow.workflow.actions import StepJob
from streamflow.workflow.app import App
from streamflow.workflow.awaitable import Bug, Interrupted, ends_process

if TYPE_CHECKING:
    from streamflow.tracing.spans import Tracing
    from streamflow.watch.blocker import RunNote

_log = logging.getLogger("streamflow.owner")
_encoder = msgspec.msgpack.Encoder()

RUNS = 500
INPUTS = 4000
BYTES = 2 * 1024 * 1024
"""Limits of what goes into one commit, so that its script stays short: runs, and what comes for them. Runs whose
transitions would make it write more bytes are reduced for the next one."""
RUN_INPUTS = 256
"""Inputs of one run in a commit: while it takes thousands, others have their turns between them."""
WRITES = 1000
"""Messages, queued attempts and values after which a commit has no more runs."""
LARGEST = 8 * 1024 * 1024
MOST_WRITES = 12_000
"""Bytes, and messages, attempts and values, that one transition of a run may write: it can't be divided."""
MOST_PUBLISHED = 2000
"""Published values among them: each takes the server 10 us; messages are packed. Answers don't count: others ask."""
SMALL = MOST_PUBLISHED
"""Bytes up to which a transition is within these limits for sure: each of its writes has at least one."""
ENTRY = 200
ENTRY_BYTES = 64 * 1024
"""Messages, and bytes of them, after which they are not added to an entry of the outbox."""
SENT = 1000
"""Delivered entries of the outbox that one commit deletes."""
CREATED_AHEAD = 1000
"""Ms by which a run may have been created ahead of its owner's clock and still not begin before that."""
NOTIFICATION_BYTES = 4096
"""Outcomes and answers up to this size are part of the notification; clients that wait for a larger one fetch it."""
NOTHING_REPORTED = bytes(NOTHING)
NEW = b"pending 0 - "
"""How the header of a run begins that no daemon has reduced yet."""
IN_FLIGHT = -1
"""Score on the agenda of a run whose steps run at the owner."""
UNKNOWN = -2
"""Not a score: the plan of a loaded run until it is reduced. The agenda may still have the last owner's score."""


_NO_CROWDS = OrderedDict[str, deque[InboxMessage]]()
"""Of an inbox that has none. Nothing is added to it."""
_RARE = ABOUT_OTHERS | CHANGES
"""Kinds of messages that `_collect_messages` has to tell from others."""


class _TooLarge(Exception):
    """A transition writes more than one commit may; the text says how much, and what to do."""


class _TryAgain(Exception):
    """Somebody has asked for a stuck run to be tried again: it has to be read again, and its code to be run."""


def _order(messages: list[InboxMessage], count: int) -> None:
    """Behind the first `count` others were added: those are older if they were given back by a batch. A start that has
    waited is before what has come meanwhile."""
    if 0 < count < len(messages) and stream_order(messages[count].id) < stream_order(messages[count - 1].id):
        messages.sort(key=lambda message: (message.kind != "start", stream_order(message.id)))


class Reduced(msgspec.Struct):
    """A run that was reduced: what to apply when the commit has been accepted."""

    run_id: str
    live: LiveRun
    effects: Effects
    header: Header
    header_bytes: bytes
    plan: int | None
    size: int
    transition: Transition | None


class ShardBatch(msgspec.Struct, eq=False):
    """A batch from its collection to its commit. `work` by run id; `batch` is filled by `reduce`."""

    shard: OwnedShard
    batch: Batch
    tracing: Tracing | None = None
    server: int = 0
    """That of the shard (`Store.server_of`)."""
    paused: Mapping[str, Pause] = {}
    """The workflows that are paused."""
    payloads: LargePayloads | None = None
    """Where large payloads go, if they go to storage."""
    logs_whole: bool = False
    """There are groups of subscribers."""
    identity: str = ""
    """That of the namespace's data."""
    careful: str = ""
    """The run that a former owner had in hand when its process ended: it is alone in this batch."""

    # What it has collected.
    work: dict[str, RunWork] = {}
    collected: int = 0
    """Bytes of the inputs."""
    may_have_references: bool = False
    """False: no message of it stands for something in storage."""
    may_pause: bool = False
    """False: no message of it pauses a run, or ends that."""
    child_conflicts: list[InboxMessage] = []
    """Messages of kind `taken`: the id of a child belongs to another run."""
    hints: list[InboxMessage] = []
    """Messages of kind `waiting`: starts wait on the server, which the reader has noted."""
    sent: int = 0
    """Entries of the outbox that it deletes: they were delivered."""
    divided: set[str] = set()
    """Runs for which more waits than they get now."""
    alone: set[str] = set()
    """Runs that get what they have waited with, and nothing else."""
    absent: set[str] = set()
    """Runs that have no record."""

    # What was decided.
    reduced: list[Reduced] = []
    sends: list[OutboxMessage] = []
    outbox: list[OutboxEntry] = []
    """All of `sends`, as the outbox gets them."""
    poisoned: list[tuple[InboxMessage, str]] = []
    received: list[tuple[str, str, str, str, int]] = []
    """Signals and questions of traced runs: run id, kind, name, trace of the sender, ms of arrival."""
    admitted: set[str] = set()
    """Runs that begin here after their starts have waited."""
    undecided: list[tuple[str, RunWork, Need]] = []
    """Runs whose transitions have payloads that have to be stored first: they aren't in this commit."""
    retried: set[str] = set()
    """Runs that have taken a request to retry them: they refuse others."""
    refused: dict[str, Failure] = {}
    """Ended runs that can't be retried, and why."""
    outcomes: dict[str, list[tuple[AgainRequest, CompletedChild | FailedChild]]] = {}
    """What parents that go on get of their children that have ended: by the child's id."""
    cut_from: int = sys.maxsize
    """Bytes of a transition from which on it may have large payloads."""
    size: int = 0
    """Bytes that the commit writes."""
    logged: int = 0
    """Bytes of run ids and transitions in its log entry."""
    notifications: list[tuple[str, bytes]] = []
    """For waiting clients: answers to asks, and runs that have ended."""
    noted: list[Noted] = []
    """Runs that have failed or got stuck, for the log."""
    is_sent: bool = False
    """The commit is complete, and sent: it may have taken effect."""
    applied: bool = False
    """The commit was accepted, or there was nothing to commit."""

    def collect(self) -> None:
        """Move the shard's waiting inputs into this batch, up to the limits. Messages of a run keep their order."""
        shard = self.shard
        work = self.work
        if shard.returned:
            self.may_have_references = self.may_pause = True
            self.alone.update(take_returned(shard, work, RUNS))
        if shard.careful or shard.aside:
            self._set_aside()
        size = count = 0
        for run_id in list(shard.inputs)[:RUNS]:
            if size >= BYTES or count >= INPUTS:
                break
            if run_id in self.alone:
                continue
            inputs = shard.inputs.pop(run_id)
            run_work = work[run_id] = RunWork([], inputs)
            before = size
            for input_ in inputs:
                if type(input_) is Outcome and input_.result is not None:
                    size += len(input_.result)
            if size > BYTES or len(inputs) > RUN_INPUTS or shard.portions:
                size = self._divide(run_id, run_work, before)
            count += len(run_work.inputs)
        if shard.inbox:
            size = self._collect_messages(size, count)
        self.collected = size
        self._take_sent()

    def _collect_messages(self, size: int, count: int) -> int:
        """Add messages. `size`, `count`: bytes and number of the inputs that are in the batch. Returns the bytes."""
        work, inbox = self.work, self.shard.inbox
        left = len(inbox)
        crowded = inbox if type(inbox) is CrowdedInbox else None
        crowds = _NO_CROWDS
        if crowded is not None:
            crowds = crowded.crowds
            left -= sum(map(len, crowds.values()))
            crowded.are_first = not crowded.are_first
            if crowded.are_first:
                size, count = self._collect_crowds(crowded, size, count)
        may_wait = bool(self.alone or self.shard.portions)
        later: list[InboxMessage] = []
        while left and len(work) < RUNS and size < BYTES and count < INPUTS:
            left -= 1
            message = inbox.popleft()
            kind = message.kind
            if kind in _RARE:
                if kind in ABOUT_OTHERS:
                    self._collect_about_others(message)
                    continue
                self.may_pause = True
            run_work = work.get(message.run_id)
            if crowds and message.run_id in crowds:
                crowds[message.run_id].append(message)
                continue
            if (
                run_work is not None
                and (len(run_work.messages) >= RUN_INPUTS or may_wait)
                and (message.run_id in self.alone or self._has_enough(message.run_id, run_work))
            ):
                if may_wait:
                    later.append(message)
                    continue
                if crowds is _NO_CROWDS:
                    crowds = OrderedDict[str, deque[InboxMessage]]()
                crowds[message.run_id] = deque([message])
                continue
            body = message.body
            size += len(body)
            count += 1
            if MARK_BYTE in body and MARK in body:
                self.may_have_references = True
            if run_work is None or kind == "start":
                self._add(work, message)
            else:
                run_work.messages.append(message)
        if later:
            inbox.extendleft(reversed(later))
        if crowded is not None:
            if not crowded.are_first:
                size, count = self._collect_crowds(crowded, size, count)
            if not crowds:
                self.shard.inbox = deque(inbox)
        elif crowds:
            self.shard.inbox = CrowdedInbox(inbox, crowds)
        self.divided.update([run_id for run_id in crowds if run_id in work])
        return size

    def _collect_crowds(self, inbox: CrowdedInbox, size: int, count: int) -> tuple[int, int]:
        """Add messages of runs that had enough in a batch before. If they are first, others have half of what has room
        in this one. Runs of which messages are left have their next turns behind the other such runs."""
        work, crowds = self.work, inbox.crowds
        most_runs, most_bytes, most = RUNS, BYTES, INPUTS
        if inbox.are_first:
            most_runs, most_bytes, most = (len(work) + RUNS + 1) // 2, (size + BYTES) // 2, (count + INPUTS) // 2
        for run_id in list(crowds):
            if len(work) >= most_runs or size >= most_bytes or count >= most:
                break
            run_work = work.get(run_id) or RunWork()
            room = 0 if run_id in self.alone else self._room(run_id, run_work)
            if room <= 0:
                continue
            work[run_id] = run_work
            crowd = crowds.pop(run_id)
            for _ in range(min(room, len(crowd))):
                message = crowd.popleft()
                body = message.body
                size += len(body)
                count += 1
                if message.kind in CHANGES:
                    self.may_pause = True
                if MARK_BYTE in body and MARK in body:
                    self.may_have_references = True
                if message.kind == "start":
                    self._add(work, message)
                else:
                    run_work.messages.append(message)
                if size >= BYTES:
                    break
            if crowd:
                crowds[run_id] = crowd
        return size, count

    def _collect_about_others(self, message: InboxMessage) -> None:
        """One that isn't for the run whose id it has."""
        if message.kind == "taken":
            self.child_conflicts.append(message)
        else:
            self.hints.append(message)
            self.batch.acks.append(message.id)

    def _divide(self, run_id: str, run_work: RunWork, size: int) -> int:
        """Leave inputs of a run for the next batch, if they are too many or too large. `size`: bytes in the batch
        before. Returns those in the batch."""
        shard, inputs = self.shard, run_work.inputs
        kept = 0
        for input_ in inputs[: shard.portions.get(run_id, RUN_INPUTS)]:
            if type(input_) is Outcome and input_.result is not None:
                size += len(input_.result)
            kept += 1
            if size >= BYTES:
                break
        if kept < len(inputs):
            self.divided.add(run_id)
            run_work.inputs, shard.inputs[run_id] = inputs[:kept], inputs[kept:]
        return size

    def _has_enough(self, run_id: str, run_work: RunWork) -> bool:
        enough = self._room(run_id, run_work) <= 0
        if enough:
            self.divided.add(run_id)
        return enough

    def _room(self, run_id: str, run_work: RunWork) -> int:
        """How many more messages of a run go into this batch."""
        portions = self.shard.portions
        if portions and run_id in portions:
            return portions[run_id] - len(run_work.messages) - len(run_work.inputs)
        return RUN_INPUTS - len(run_work.messages)

    def collect_careful(self, run_id: str) -> None:
        """Move what waits for the turn of this run into this batch, up to the limit."""
        shard = self.shard
        aside = shard.aside.pop(run_id)
        self.may_have_references = self.may_pause = True
        work = self.work[run_id] = RunWork(found=aside.found, at=aside.at, decided=aside.decided)
        work.inputs = aside.inputs
        size = self._divide(run_id, work, 0)
        taken = 0
        for message in aside.messages:
            if size >= BYTES or self._has_enough(run_id, work):
                break
            size += len(message.body)
            taken += 1
            work.messages.append(message)
        del aside.messages[:taken]
        work.started = aside.started and taken > 0
        if aside.messages:
            aside.inputs, aside.started = [], aside.started and not taken
            shard.aside[run_id] = aside
        self.collected = size
        self._take_sent()

    def _set_aside(self) -> None:
        """What the former owner had in hand when its process ended waits for its turn: that code is run one run at a
        time. What comes for a run waits behind what waits of it already."""
        shard = self.shard
        aside = shard.aside
        for run_id in [run_id for run_id in shard.inputs if run_id in shard.careful or run_id in aside]:
            aside.setdefault(run_id, RunWork()).inputs += shard.inputs.pop(run_id)
        before = {run_id: len(work.messages) for run_id, work in aside.items()}
        kept: list[InboxMessage] = []
        for message in shard.inbox:
            if message.is_for_run and (message.run_id in shard.careful or message.run_id in aside):
                self._add(aside, message)
            else:
                kept.append(message)
        shard.inbox.clear()
        shard.inbox.extend(kept)
        for run_id, count in before.items():
            _order(aside[run_id].messages, count)

    def _add(self, work: dict[str, RunWork], message: InboxMessage) -> None:
        run_work = work.get(message.run_id)
        if run_work is None:
            run_work = work[message.run_id] = RunWork()
        if message.kind != "start":
            run_work.messages.append(message)
            return
        # What has come while a start waited is behind it, also if that was read first.
        run_work.messages.insert(0 if message.waited else len(run_work.messages), message)
        if message.header.startswith(NEW) and message.run_id not in self.shard.suspect and not is_fork(message.body):
            run_work.started = True  # a fork is loaded: it has a history to go through

    def _take_sent(self) -> None:
        self.batch.sent = self.shard.sent[:SENT]
        self.sent = len(self.batch.sent)

    def missing(self) -> list[str]:
        """Runs that must be loaded first: not live, and not new."""
        live = self.shard.live
        return [run_id for run_id, run_work in self.work.items() if run_id not in live and not run_work.started]

    def created_of(self, run_id: str) -> int:
        """When a run of this batch was created (ms), which tells it from others of its id; 0 as long as it has to be
        loaded."""
        live, run_work = self.shard.live.get(run_id), self.work[run_id]
        if live is not None:
            return live.header.created
        begun = next((message for message in run_work.messages if message.kind == "start"), None)
        if run_work.started and begun is not None:
            with contextlib.suppress(*DECODE_ERRORS):
                return decode_header(begun.header).created
        return 0

    def put_back(self) -> None:
        """Nothing was committed: put all inputs back where they were, before those that have arrived since."""
        shard = self.shard
        messages = [message for run_work in self.work.values() for message in run_work.messages]
        messages += [message for message, _ in self.poisoned]
        messages += self.child_conflicts + self.hints
        seen: dict[str, InboxMessage] = {message.id: message for message in messages}
        shard.inbox.extendleft(sorted(seen.values(), key=lambda message: stream_order(message.id), reverse=True))
        for run_id, run_work in self.work.items():
            shard.live.pop(run_id, None)
            if run_work.inputs:
                shard.inputs[run_id] = run_work.inputs + shard.inputs.get(run_id, [])

    # --- reducing -----------------------------------------------------------------------------------------------------

    def reduce(self, app: App, namespace: Namespace, at: int, watch: RunNote) -> None:
        """Let every run decide. Each is noted in `watch` before, so that one that blocks can be named."""
        close_abandoned()
        self.identity = namespace.identity
        try:
            with one_seal():
                self._reduce_runs(app, namespace, at, watch)
        finally:
            watch.code_of("", 0)
        if self.shard.postponed:
            self._postpone(at + POSTPONED)
        for message in self.child_conflicts:
            self._refuse_child(message, namespace)
        for message, reason in self.poisoned:
            run_id = message.run_id[:256] or "-"
            shard = self.shard.number
            event = encode_transition(at, [MessageQuarantined(message.id, reason, run_id, shard)])
            _log.error("message %s of shard %d for run %s is quarantined: %s", message.id, shard, run_id[:64], reason)
            self.batch.poisons.append(
                Poison(
                    message.id,
                    run_id,
                    reason,
                    event,
                    message.body,
                    message.kind[:256],
                    message.header,
                    message.identity,
                )
            )
            self.logged += len(event) + IN_LOG

    def _postpone(self, due: int) -> None:
        """Put off the due times of runs that wait for storage."""
        shard = self.shard
        for run_id in shard.postponed & shard.put_off.keys():
            self.batch.plans.append((run_id, due))
            if run_id in shard.live:
                shard.live[run_id].plan = due
        shard.postponed.clear()

    def _reduce_runs(self, app: App, namespace: Namespace, at: int, watch: RunNote) -> None:
        sends, puts, attempts = self.sends, self.batch.puts, self.batch.attempts
        live_runs, oversize, number = self.shard.live, self.shard.oversize, self.shard.number
        if self.payloads is not None and self.payloads.limit:
            self.cut_from = self.payloads.limit
        may_be_paused = self.may_pause or self.paused or self.shard.has_paused
        for run_id, run_work in self.work.items():
            is_full = (sends or puts or attempts) and len(sends) + len(puts) + len(attempts) >= WRITES
            if is_full or self.size >= BYTES:
                self._put_back_from(run_id)
                break
            if may_be_paused and self._is_paused_otherwise(run_id, run_work):
                self._give_back(run_id, run_work)
                continue
            watch.code_of(run_id, number)
            inputs = run_work.inputs
            if run_work.messages or oversize:
                try:
                    inputs = self._inputs(run_id, run_work, app, namespace)
                except _TryAgain:
                    self.shard.try_again(run_id)
                    self._give_back(run_id, run_work)
                    continue
                except Exception as error:  # whatever somebody has written into the inbox is the trouble of this run
                    self.quarantine(run_id, run_work, f"it can't be read: {reason_of(error)}")
                    continue
            live = live_runs.get(run_id)
            if live is None:
                # Ended or forgotten: its messages are acknowledged, and it leaves the agenda.
                self.batch.plans.append((run_id, None))
                self._delete_records(run_id)
                self.shard.forget(run_id)
                continue
            try:
                created = live.header.created  # by the server's clock: if that is far ahead, runs don't follow it
                not_before = created if created - at < CREATED_AHEAD else 0
                effects = live.machine.advance(inputs, run_work.at or at, not_before, in_seal=True)
                self._record(run_id, live, effects, namespace, run_work)
            except StoreFirst as error:
                run_work.at = run_work.at or at
                run_work.messages = self._take_out(run_id, run_work)
                self.undecided.append((run_id, run_work, error.need))
            except _TooLarge as error:
                self._divide_or_fail(run_id, run_work, str(error))
            except BaseException as error:
                if ends_process(error):
                    raise
                self._leave_out(run_id, run_work, error)

    def _is_paused_otherwise(self, run_id: str, run_work: RunWork) -> bool:
        """Whether a run in memory has to be read again, because it, or its workflow, was paused or resumed since. A
        pause that is wanted behind a cancel is left for a later batch."""
        live, messages = self.shard.live.get(run_id), run_work.messages
        if len(messages) > 1 and (end := behind_cancel(messages)) < len(messages):
            self.shard.inbox.extendleft(reversed(messages[end:]))
            del messages[end:]
        if live is None or run_work.loaded or (machine := live.machine).retrying is not None or machine.ended:
            return False
        is_paused = self.paused or machine.pause is not None or live.kept_stuck
        if not is_paused and not any(message.kind in CHANGES for message in messages):
            return False
        wanted = pause_wanted(self.paused, live.header, machine.pause, messages, is_cancelling=machine.is_cancelling)
        if keeps_stuck(live.header, wanted):
            return False
        return wanted != machine.pause or live.kept_stuck

    def _put_back_from(self, run_id: str) -> None:
        """The commit is full: this run and those behind it are reduced in the next batch. They have decided nothing."""
        runs = list(self.work)
        later = {later_id: self.work.pop(later_id) for later_id in runs[runs.index(run_id) :]}
        messages = [message for run_work in later.values() for message in run_work.messages]
        messages.sort(key=lambda message: stream_order(message.id), reverse=True)
        self.shard.inbox.extendleft(messages)
        for later_id, run_work in later.items():
            if run_work.inputs:
                self.shard.inputs[later_id] = run_work.inputs + self.shard.inputs.get(later_id, [])

    def _give_back(self, run_id: str, run_work: RunWork) -> None:
        """Commit the other runs without this one, which has decided something that is not committed: it is read again,
        and comes in the next batch."""
        shard = self.shard
        shard.inbox.extendleft(reversed(self._take_out(run_id, run_work)))
        if run_work.inputs:
            shard.inputs[run_id] = run_work.inputs + shard.inputs.get(run_id, [])

    def _take_out(self, run_id: str, run_work: RunWork) -> list[InboxMessage]:
        """Leave a run that has decided something out of the commit, and memory. Returns its messages but for those that
        the commit quarantines."""
        shard = self.shard
        live = shard.live.pop(run_id)
        own = {message.id for message in run_work.messages}
        quarantined = {message.id for message, _ in self.poisoned}
        self.batch.acks = [ack for ack in self.batch.acks if ack not in own]
        if run_id in self.admitted:
            self.admitted.discard(run_id)
            self.batch.moves = [move for move in self.batch.moves if move[:2] != (run_id, shard.keys.waiting)]
        live.machine.close()
        return [message for message in run_work.messages if message.id not in quarantined]

    def _divide_or_fail(self, run_id: str, run_work: RunWork, reason: str) -> None:
        """The transition is too large for a commit: give the run fewer inputs at once, or have it fail."""
        shard = self.shard
        count = len(run_work.inputs) + len(run_work.messages)
        if count > 1:
            shard.portions[run_id] = max(1, count // 4)
        else:
            shard.oversize[run_id] = reason
            _log.error("run %s of shard %d fails, other runs continue: %s", run_id, shard.number, reason)
        self._give_back(run_id, run_work)

    def _leave_out(self, run_id: str, run_work: RunWork, error: BaseException) -> None:
        """Code of the run, or a defect in this code, raised what no run may: commit the other runs without it.

        It comes back in the next batch, parked: its messages are recorded and none of its code is run. If even that
        fails, its messages are quarantined.
        """
        shard = self.shard
        reason = reason_of(error)
        if run_id in shard.parked:
            shard.live.pop(run_id)
            _log.error(
                "run %s of shard %d can't be recorded even as stuck; its %d messages are quarantined, other runs "
                "continue: %s",
                run_id,
                shard.number,
                len(run_work.messages),
                reason,
                exc_info=error,
            )
            self.quarantine(run_id, run_work, f"reducing failed: {reason}")
            return
        if isinstance(error, Bug):
            shard.bugs[run_id] = error.failure
        else:
            _log.error(
                "run %s of shard %d is parked until its code is mended, other runs continue: %s",
                run_id,
                shard.number,
                reason,
            )
        shard.parked[run_id] = reason
        self._give_back(run_id, run_work)

    def quarantine(self, run_id: str, run_work: RunWork, reason: str) -> None:
        """Quarantine all messages that the run would have got."""
        self.shard.live.pop(run_id, None)
        own = {message.id for message in run_work.messages}
        self.batch.acks = [ack for ack in self.batch.acks if ack not in own]
        quarantined = {message.id for message, _ in self.poisoned}
        self.poisoned += [(message, reason[:500]) for message in run_work.messages if message.id not in quarantined]
        if any(message.waited for message in run_work.messages):
            self._admit(run_id)

    def begin_waiting(self, run_id: str, record: list[bytes]) -> bool:
        """Begin a run whose start waits on the server, because something has come for it. False: it doesn't wait."""
        header, body = (*record, b"")[:2]
        if not (header.startswith(NEW) and body):
            return False
        messages = self.work[run_id].messages
        self.may_have_references = True
        if not any(message.kind == "start" for message in messages):
            messages.insert(0, InboxMessage(self.shard.next_waited(), "start", run_id, body, header))
        return True

    def _admit(self, run_id: str) -> None:
        """The commit takes a start off those that wait."""
        if run_id not in self.admitted:
            self.admitted.add(run_id)
            self.batch.moves.append((run_id, self.shard.keys.waiting, "", 0))

    def has_fork(self, run_id: str) -> bool:
        """Whether a fork's start is among the messages of this run."""
        return any(message.kind == "start" and is_fork(message.body) for message in self.work[run_id].messages)

    def fork_of(self, run_id: str, header: Header) -> RunForked | None:
        """How this run begins, which no daemon has reduced yet, if it is a fork."""
        for message in self.work[run_id].messages:
            if message.kind == "start" and is_fork(message.body):
                try:
                    return decode_fork(message.body, header)
                except DECODE_ERRORS:  # it begins without input, which fails it
                    return None
        return None

    def retry_of(self, run_id: str, header: Header, *, is_reducer: bool) -> RetryRequest | None:
        """The first request to retry this run, which has ended, that is for this very end of it."""
        failure: CannotRetry | None = None
        for message in self.work[run_id].messages:
            if message.kind != "retry":
                continue
            if (pause := self.paused.get(header.workflow)) is not None:
                failure = CannotRetry("Paused", paused_text(run_id, pause, header.workflow))
                break
            try:
                retry = decode_message(message, None)
                if isinstance(retry, RetryRequest):
                    check_end(run_id, header, retry, is_reducer=is_reducer)
                    return retry
            except BadMessage:  # it is quarantined with the others
                continue
            except CannotRetry as error:
                failure = error
        if failure is not None:
            self.refused[run_id] = failure.failure
        return None

    def is_asked_again(self, run_id: str) -> bool:
        """Whether the run's parent goes on."""
        return any(message.kind == "again" for message in self.work[run_id].messages)

    def again_of(
        self, run_id: str, header: Header, history: list[Transition], *, is_reducer: bool
    ) -> RetryPoint | None:
        """Where this run goes on, which has ended, if its parent goes on."""
        for message in self.work[run_id].messages:
            if message.kind != "again":
                continue
            try:
                again = decode_message(message, None)
            except BadMessage:  # it is quarantined with the others
                continue
            if not isinstance(again, AgainRequest):
                continue
            if again.parent != header.parent:
                self.outcomes.setdefault(run_id, []).append((again, no_child(run_id, again)))
                continue
            found = again_point(run_id, header, history, again, is_reducer=is_reducer)
            if isinstance(found, RetryPoint) and (pause := self.paused.get(header.workflow)) is not None:
                why = CannotRetry("Paused", paused_text(run_id, pause, header.workflow))
                found = not_again(run_id, again, why, found.failure)
            if isinstance(found, RetryPoint):
                return found
            self.outcomes.setdefault(run_id, []).append((again, found))
        return None

    def _take_again(
        self, run_id: str, again: AgainRequest, live: LiveRun | None, inputs: list[Input], namespace: Namespace
    ) -> None:
        """For a run that has ended, and is in memory to go on. Its parent gets an outcome if that isn't so; a run
        that is open reports its own."""
        outcome: CompletedChild | FailedChild | None = None
        if run_id in self.absent or (live is not None and live.header.parent != again.parent):
            outcome = no_child(run_id, again)
        elif live is not None:
            if live.machine.retrying is not None:
                self.retried.add(run_id)
                inputs.append(again)
        else:
            outcome = next((one for request, one in self.outcomes.get(run_id, ()) if request == again), None)
        if outcome is not None and (parent := parent_link(again.parent)) is not None:
            self._send(namespace.shard_of(parent.run_id), "child", parent.run_id, child_outcome(outcome))

    def _take_retry(self, run_id: str, retry: RetryRequest, live: LiveRun | None, inputs: list[Input]) -> None:
        """Only a run that has failed, and is in memory for that, takes it, and takes one; others are refused. A request
        for a step is for a run that is open. A stuck run is tried again: raises `_TryAgain` if it isn't loaded for
        that."""
        failure = self.refused.get(run_id)
        if live is not None and (pause := self.paused.get(live.header.workflow)) is not None:
            failure = Failure("Paused", paused_text(run_id, pause, live.header.workflow))
        elif retry.seq and live is not None and live.machine.retrying is None and live.header.created == retry.created:
            inputs.append(retry)
            return
        if (
            failure is None
            and live is not None
            and live.header.status == Status.STUCK
            and live.header.created == retry.created
        ):
            if run_id not in self.shard.again:
                raise _TryAgain
            inputs.append(retry)
            return
        if failure is None and live is not None and live.machine.retrying is not None and run_id not in self.retried:
            try:
                check_end(run_id, live.header, retry, is_reducer=False)
            except CannotRetry as error:
                failure = error.failure
            else:
                self.retried.add(run_id)
                inputs.append(retry)
                return
        if failure is None:
            if live is None:
                text = f"run {run_id} can't be retried: it has ended otherwise, or was forgotten"
            else:
                status = Status.RUNNING if live.machine.retrying is not None else live.header.status
                text = not_failed(run_id, status)
            failure = Failure("NotFailed", text)
        self._answer(AskAnswered(retry.id, "retry", failure=failure))

    def _answer(self, answer: AskAnswered) -> None:
        """To who asked, not from the history of a run."""
        data = _encoder.encode(answer)
        self.batch.puts.append(Put(self.shard.keys.answer(answer.id), "", data))
        self.notifications.append(_notification(answer_name(answer.id), data))

    def _inputs(self, run_id: str, run_work: RunWork, app: App, namespace: Namespace) -> list[Input]:
        """What the run gets. Messages before its start were for an earlier run of its id, or for none: they are checked
        as all are, and acknowledged."""
        inputs = run_work.inputs[:]
        live = self.shard.live.get(run_id)
        has_started = live is not None and live.header.version > 0
        for message in run_work.messages:
            header: Header | None = None
            reason = ""
            try:
                if message.kind == "start":
                    header = self._first_header(run_id, run_work, message)
                input_ = decode_message(message, header)
            except (BadMessage, ValueError) as error:
                reason = str(error)
                if message.waited:
                    self._admit(run_id)
                    if header is None:  # something came for the run while its start waited, so it has begun
                        continue
                self.poisoned.append((message, reason))
                if header is None:
                    continue
                # The run exists, and a client may wait for it: it starts without input, which fails it.
                parent = header.parent
                input_ = RunStarted(header.workflow, header.tenant, NOTHING, parent, created=header.created)
            if header is not None:
                has_started = True
                if live is not None and live.machine.forking is not None:
                    inputs = []
                if run_id not in self.shard.live:
                    inputs = []
                    reason_to_park = parked_reason(self.shard, run_id, header.workflow, app)
                    trace = None
                    if self.tracing is not None:
                        trace, header = self.tracing.begin(run_id, header)
                    pause: RunPaused | None = None
                    if self.paused or len(run_work.messages) > 1:
                        pause = pause_wanted(self.paused, header, None, run_work.messages, is_cancelling=False)
                    machine = new_machine(
                        app, namespace.partition, run_id, header.workflow, reason_to_park, trace, header.start, pause
                    )
                    machine.bug = self.shard.bug_of(run_id) if pause is None else None
                    self.shard.has_paused = self.shard.has_paused or pause is not None
                    self.shard.live[run_id] = LiveRun(machine, header, message.header, None)
            if type(input_) is RetryRequest:
                self._take_retry(run_id, input_, self.shard.live.get(run_id), inputs)
            elif type(input_) is AgainRequest:
                self._take_again(run_id, input_, self.shard.live.get(run_id), inputs, namespace)
            elif has_started:
                inputs.append(input_)
                if self.tracing is not None and isinstance(input_, SignalReceived | AskReceived):
                    arrived = stream_order(message.id)[0]
                    self.received.append((run_id, message.kind, input_.name, trace_of(message), arrived))
            if message.waited:
                self._admit(run_id)
            elif not reason:
                self.batch.acks.append(message.id)
        if self.shard.oversize and run_id in self.shard.oversize:
            inputs = [Oversize(self.shard.oversize[run_id]), *inputs]
        return inputs

    def _first_header(self, run_id: str, run_work: RunWork, message: InboxMessage) -> Header:
        """The header of a start message. Raises `BadMessage` or `ValueError` if the run's record differs from it."""
        live = self.shard.live.get(run_id)
        if (live.header_bytes != message.header) if live is not None else run_work.loaded:
            raise BadMessage("a start message for a run that has already started or no longer exists")
        header = decode_header(message.header)
        if header.version:  # it began between the reads of the starts that wait and of its record (`Admission._fetch`)
            raise BadMessage("a start message for a run that has already started")
        return header

    def _record(self, run_id: str, live: LiveRun, effects: Effects, namespace: Namespace, work: RunWork) -> None:
        shard, batch = self.shard, self.batch
        machine, old = live.machine, live.header
        besides = effects.besides
        is_plain = besides is NOTHING_BESIDES
        # What may fail comes before the first change of the batch: a run that can't be encoded leaves it unchanged.
        size = 0
        attempts: list[tuple[StepJob, bytes]] = []
        for job in effects.jobs:
            if job.step.queue is not None:
                trace = "" if machine.trace is None else machine.trace.text(machine.generation)
                body = encode_job(job, old.created, old.workflow, trace)
                attempts.append((job, body))
                size += len(body) + len(memoryview(job.details))
        outbox: Sequence[Outgoing] = besides.outbox
        if not is_plain:
            for warning in besides.warnings:
                _log.warning("run %s: %s", run_id, warning)
            size += sum([len(message.body) for message in outbox])
        transition: Transition | None = None
        header, header_bytes, memory = old, live.header_bytes, live.size
        if effects.events:
            at = machine.at
            status = effects.status
            transition = Transition(at, effects.events)
            unsaid = besides.unrecorded
            data = _encoder.encode(transition) if unsaid is None else encode_transition(at, effects.events, unsaid)
            whole = len(data)
            state = machine.snapshot()
            written = whole + len(state)
            size += written
            puts: list[Put] = []
            if not is_plain:
                puts = self._puts(run_id, besides)
                size += sum([len(put.value) for put in puts])
            if size > SMALL:
                writes = len(outbox) + len(attempts) + len(puts)
                self._check_size(run_id, size, writes, effects)
            if size >= self.cut_from and run_id not in shard.without_storage:
                data, attempts, outbox, puts = self._cut(work, data, attempts, outbox, puts)
                written = len(data) + len(state)
                size = written + sum(len(body) for _, body in attempts) + sum(len(put.value) for put in puts)
                size += sum(len(message.body) for message in outbox)
            apart = self._logged_apart(transition, data, old) if self.logs_whole or whole > LARGE else b""
            attributes = old.attributes
            if besides.attributes is not None:
                attributes = self._move_attributes(run_id, old, besides.attributes)
            ended = at if effects.ended else 0
            header = Header(
                status,
                old.version + 1,
                batch.commit,
                old.created,
                ended,
                old.workflow,
                old.tenant,
                old.parent,
                attributes,
                old.trace,
                old.start,
            )
            header_bytes = header.encode()
            if state or besides.fresh or memory < RUN_BYTES:  # a reducer keeps its state only
                memory = RUN_BYTES
            memory += written
            if besides.fresh or run_id in self.admitted:  # then the input is in the place of the state
                state = FRESH + state
            if apart:
                batch.cuts.append((len(batch.runs), apart))
                self.logged += len(apart) if self.logs_whole else len(apart) - len(data)
            self.logged += len(data) + IN_LOG
            batch.runs.append(RunWrite(run_id, live.header_bytes, header_bytes, state, data))
            if puts:
                batch.puts += puts
            if status != old.status or old.ended:
                self._move_status(run_id, old, status, machine, effects)
            elif status == Status.STUCK and last_stuck([transition]) is not None:  # other code was tried
                self._note_stuck(run_id, old, machine)
            if ended or not is_plain:
                self._notify(run_id, old.created, effects, data)
        else:
            for answer in besides.answers:  # it has refused to be retried
                self._answer(answer)
        self.size += size
        if shard.again:
            shard.again.discard(run_id)
        if shard.killers and run_id in shard.killers and not effects.ended:
            self._record_killer(run_id, old.created, machine.at)
        if shard.records and run_id in shard.records:
            self._drop_records(run_id, machine, effects)
        if effects.ended:
            plan = None
        elif machine.in_flight:
            plan = IN_FLIGHT
        else:
            plan = machine.next_due
        if plan != live.plan:
            batch.plans.append((run_id, plan))
        if not is_plain:
            for message in outbox:
                target = namespace.shard_of(message.target)
                self._send(target, message.kind, message.target, message.body, message.identity)
        for job, body in attempts:
            batch.attempts.append(_attempt(run_id, old.created, job, body))
        if not is_plain:  # behind the attempts: one may have been decided in this very transition
            batch.attempts += [_attempt(run_id, old.created, job, b"") for job in besides.revoked]
        if shard.portions and run_id not in self.divided:
            shard.portions.pop(run_id, None)
        self.reduced.append(Reduced(run_id, live, effects, header, header_bytes, plan, memory, transition))

    def _logged_apart(self, transition: Transition, data: bytes, old: Header) -> bytes:
        """What the shard's log gets that the run's history (`data`) doesn't have: behind it what groups of subscribers
        need, or in its place the transition without its large parts. Empty if both are the same."""
        if self.logs_whole:
            return encode_origin(
                data, Origin(self.batch.commit, old.version + 1, old.created, old.workflow, old.tenant)
            )
        return encode_logged(transition, old.version + 1, old.created)

    def _cut(
        self,
        work: RunWork,
        data: bytes,
        attempts: list[tuple[StepJob, bytes]],
        outbox: Sequence[Outgoing],
        puts: list[Put],
    ) -> tuple[bytes, list[tuple[StepJob, bytes]], Sequence[Outgoing], list[Put]]:
        """All that one transition writes, with references in the place of its large payloads. Raises `StoreFirst`."""
        assert self.payloads is not None
        pieces = [(data, EVENT)]
        pieces += [(body, BODY) for _, body in attempts]
        pieces += [(message.body, BODY) for message in outbox]
        pieces += [(put.value, 0 if put.field else BODY) for put in puts]
        small = iter(self.payloads.cut(pieces, work))
        data = next(small)
        attempts = [(job, next(small)) for job, _ in attempts]
        outbox = [msgspec.structs.replace(message, body=next(small)) for message in outbox]
        return data, attempts, outbox, [Put(put.key, put.field, next(small)) for put in puts]

    def _puts(self, run_id: str, besides: Besides) -> list[Put]:
        """What the run has published, and its answers to asks."""
        keys = self.shard.keys
        puts = [Put(keys.published(run_id), field, value) for field, value in (besides.published or {}).items()]
        return puts + [Put(keys.answer(answer.id), "", _encoder.encode(answer)) for answer in besides.answers]

    def _check_size(self, run_id: str, size: int, writes: int, effects: Effects) -> None:
        """Raises `_TooLarge`, unless the run fails for that already.

        An end with many messages is never refused: a failure would have the same ones, to children that are cancelled.
        """
        published = len(effects.besides.published or ())
        is_too_large = size > LARGEST or published > MOST_PUBLISHED or (writes > MOST_WRITES and not effects.ended)
        if is_too_large and run_id not in self.shard.oversize:
            raise _TooLarge(_too_large(run_id, size, writes, published))

    def _move_status(self, run_id: str, old: Header, status: Status, machine: RunMachine, effects: Effects) -> None:
        """Add the move between the listings by status to the batch."""
        if status == Status.STUCK:
            self._note_stuck(run_id, old, machine)
        elif status == Status.FAILED:
            ending = next(event for event in reversed(effects.events) if isinstance(event, RunFailed))
            self.noted.append(Noted(run_id, old.workflow, ending.failure))
        source, target = listed_under(old.status), listed_under(status)
        if source != target or old.ended:
            self.shard.workflows.add(old.workflow)
            keys = self.shard.keys
            at = old.created if target == Status.RUNNING else machine.at  # the oldest open runs are by their start
            move = run_id, keys.index(source, old.workflow), keys.index(target, old.workflow), at
            self.batch.moves.append(move)

    def _note_stuck(self, run_id: str, old: Header, machine: RunMachine) -> None:
        self.noted.append(Noted(run_id, old.workflow, self.shard.bugs.get(run_id), machine.reason))

    def _notify(self, run_id: str, created: int, effects: Effects, transition: bytes) -> None:
        if effects.besides.published:
            self.notifications.append((published_name(run_id), b""))
        self.notifications += [
            _notification(answer_name(answer.id), _encoder.encode(answer)) for answer in effects.besides.answers
        ]
        if effects.ended:
            is_small = len(transition) <= NOTIFICATION_BYTES
            ending = notified_ending(transition, created, self.identity) if is_small else b""
            self.notifications.append((run_id, ending))

    def _drop_records(self, run_id: str, machine: RunMachine, effects: Effects) -> None:
        """Delete what the server has about attempts of this run that are not current any more, or start here."""
        keys = self.shard.keys
        records = self.shard.records[run_id]
        starting = {job.seq for job in effects.jobs}
        for seq, record in list(records.items()):
            if seq == CODE:
                is_current = not effects.ended and (effects.status in STOPPED or run_id in self.shard.careful)
            else:
                call = machine.steps.get(seq)
                is_current = call is not None and call.attempt == record.attempt and call.due is None
            if record.host and (not is_current or seq in starting):
                record.host = ""
                self.batch.puts.append(Put(keys.steps, f"{run_id}/{seq}", b""))
            if not is_current:
                if record.details or record.unread or record.lent:
                    self.batch.puts.append(Put(keys.details, f"{run_id}/{seq}", b""))
                del records[seq]
        if not records:
            del self.shard.records[run_id]

    def _delete_records(self, run_id: str) -> None:
        """Delete what the server has about steps of a run that has ended, or doesn't exist."""
        keys = self.shard.keys
        for seq in self.shard.records.pop(run_id, ()):
            self.batch.puts += (Put(key, f"{run_id}/{seq}", b"") for key in (keys.steps, keys.details))

    def _record_killer(self, run_id: str, created: int, at: int) -> None:
        """The run is parked because its code ends its process: the next owner with other code tries it carefully."""
        self.shard.killers.discard(run_id)
        record = StepRecord(MAX_WORKER_LOSSES - 1, created, parked_by(self.shard.code, at))
        self.shard.records.setdefault(run_id, {})[CODE] = record
        self.batch.puts.append(Put(self.shard.keys.steps, f"{run_id}/{CODE}", record.encode()))

    def _send(self, target: int, kind: str, run_id: str, body: bytes, identity: bytes = b"") -> None:
        """Add to the commit's outbox. `target`: a shard."""
        self.sends.append(OutboxMessage(target, kind, run_id, body, identity))

    def _move_attributes(self, run_id: str, old: Header, changes: dict[str, Attribute | None]) -> dict[str, Attribute]:
        """The attributes after the change. Adds the moves between their listings to the batch."""
        before = old.attributes
        try:
            after = merged(before, changes)
        except UsageError as error:
            # The code was not refused: it began again in a new generation, and doesn't know what the last one had set.
            _log.warning("run %s keeps its attributes unchanged: %s", run_id, error)
            return before
        keys = self.shard.keys
        for name in changes:
            was, now = before.get(name), after.get(name)
            if not same(was, now):
                source = "" if was is None else keys.attribute(name, value_text(was))
                target = "" if now is None else keys.attribute(name, value_text(now))
                self.batch.moves.append((run_id, source, target, old.created))
        return after

    def _refuse_child(self, message: InboxMessage, namespace: Namespace) -> None:
        """A child's id belongs to another run: report that to the parent, which is in the message's header."""
        parent = parent_link(message.header.decode(errors="replace"))
        self.batch.acks.append(message.id)
        if parent is not None:
            body = refused_child(message.run_id, parent)
            self._send(namespace.shard_of(parent.run_id), "child", parent.run_id, body)

    def make_spans(self, tracing: Tracing) -> None:
        """The batch is committed: make the spans that end with it."""
        if self.received:
            by_id = {done.run_id: done.live.machine for done in self.reduced}
            for run_id, kind, name, sender, arrived in self.received:
                if run_id in by_id:  # else it comes again with the next batch
                    tracing.received(by_id[run_id], kind, name, sender, arrived)
        for done in self.reduced:
            machine = done.live.machine
            if machine.trace is not None and not machine.trace.dropped:
                tracing.committed(machine, done.header, done.effects.events)

    def finish(self) -> None:
        """Fill in the notifications, and pack the messages for the outbox: its entries cost the server time."""
        if self.notifications:
            self.batch.notification = _encoder.encode(self.notifications)
        first = size = 0
        for count, message in enumerate(self.sends, 1):
            size += len(message.body)
            if count == len(self.sends) or count - first == ENTRY or size >= ENTRY_BYTES:
                messages = self.sends[first:count]
                number = self.shard.next_outbox(len(messages))
                self.outbox.append(OutboxEntry(number, messages))
                self.batch.sends.append(Send(number, encode_outbox(messages)))
                first, size = count, 0

    @property
    def is_empty(self) -> bool:
        batch = self.batch
        return not (
            batch.runs
            or batch.acks
            or batch.plans
            or batch.moves
            or self.sends
            or batch.sent
            or batch.poisons
            or batch.puts
            or batch.attempts
        )


def _too_large(run_id: str, size: int, writes: int, published: int) -> str:
    if size <= LARGEST and published > MOST_PUBLISHED:
        return (
            f"run {run_id} published {published:,} values at once, and the limit is {MOST_PUBLISHED:,}: publish them "
            "under fewer keys (as a dict, say), or in portions with a step or `sf.sleep` in between"
        )
    what = f"{size / 1024 / 1024:.1f} MB" if size > LARGEST else f"{writes:,} messages, queued attempts and values"
    limit = f"{LARGEST // 1024 // 1024} MB" if size > LARGEST else f"{MOST_WRITES:,}"
    return (
        f"run {run_id} decided {what} at once, and the limit is {limit}: start fewer steps or children at the same "
        "time (`sf.map` with `concurrency=`), split the work among child runs, or store large values elsewhere and "
        "pass references"
    )


def _attempt(run_id: str, created: int, job: StepJob, body: bytes) -> Attempt:
    details = bytes(job.details) if body else b""
    if details == NOTHING_REPORTED:
        details = b""
    return Attempt(job.step.queue or "", f"{run_id}/{job.seq}", f"{created} {job.attempt}", body, details)


def _notification(name: str, payload: bytes) -> tuple[str, bytes]:
    return name, payload if len(payload) <= NOTIFICATION_BYTES else b""


def parked_reason(shard: OwnedShard, run_id: str, name: str, app: App) -> str:
    """Why this daemon doesn't run the code of a run; empty if it does. What ends a process leaves no line, so it names
    that of its workflow."""
    reason = shard.parked.get(run_id, "")
    workflow = app.workflows.get(name) if run_id in shard.killers else None
    return reason if workflow is None else f"{reason} (workflow {name} at {line_of_function(workflow.function)})"


def reason_of(error: BaseException) -> str:
    """Why a run is parked, in a line: what its code raised, and where. Never raises."""
    if isinstance(error, Interrupted):  # it names the line itself
        return str(error)
    failure = error.failure if isinstance(error, Bug) else failure_of(error)
    where = next((line.strip() for line in reversed(failure.traceback.splitlines()) if line.startswith("  File ")), "")
    return f"{failure.kind}: {failure.message}{f' ({where})' if where else ''}"[:1000]
