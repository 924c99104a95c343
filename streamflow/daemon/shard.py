"""One owned shard in memory: inputs that wait to be reduced, live runs, and its part of the views.

Owns: the state of an `OwnedShard`, and the numbering of its commits and outbox messages. Must not: talk to the server,
reduce, or decide. Called by: owner, inbox reader, membership, relay, rollup.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

import msgspec

from streamflow.errors import Failure
from streamflow.machine.run import RunMachine
from streamflow.machine.transition import Input, Outcome
from streamflow.model.record import Header, Status
from streamflow.steps.suspects import Note
from streamflow.store.keys import ShardKeys
from streamflow.views.shard_views import ShardViews
from streamflow.wire import InboxMessage

RUN_BYTES = 3000
"""What a run with one step takes in memory besides its record."""


class LiveRun:
    """A run in memory: its machine, the header that the server has, and its entry on the agenda."""

    __slots__ = ("header", "header_bytes", "kept_stuck", "machine", "plan", "size", "timer")

    def __init__(self, machine: RunMachine, header: Header, header_bytes: bytes, plan: int | None) -> None:
        self.machine = machine
        self.size = 0
        """Bytes, about, of what is in memory: of its record or a reducer's state, and what every run takes."""
        self.header = header
        self.header_bytes = header_bytes
        self.plan = plan
        """The score on the agenda: -1 while steps run here, a due time in ms, or None."""
        self.timer: int | None = None
        """The due time (ms) that the owner's own timers have for it, while steps run here."""
        self.kept_stuck = False
        """It is stuck, and its code was not tried, because its workflow is paused."""


IN_LOG = 40
"""Bytes that a transition takes in the log besides its own, about: run id, field, and its part of the entry."""
CODE = 0
"""The number, which no step has, of the record that says that a run's own code may end its process: `attempt` is the
number of processes that may have died of it."""
NOBODY = "-"
"""With this begins what such a record has for a host, which a parked run's goes on with (`parked_by`)."""
TRY_AGAIN = 3_600_000
"""Ms after which parked code that has ended processes is tried again, although no other code was deployed."""


def parked_by(code: str, at: int) -> str:
    """The host in the record of a run that is parked because its code ends processes: which code, and since when."""
    return f"{NOBODY}{at}-{code}"


def is_parked_by(host: str, code: str, now: int) -> bool:
    """Whether a run with such a record stays parked: this very code has ended processes a short while ago."""
    at, _, of = host.removeprefix(NOBODY).partition("-")
    return of == code != "" and at.isdigit() and now < int(at) + TRY_AGAIN


OWNER_BITS = 20
NUMBER_BITS = 32
"""Of a number in the outbox: it has to be less than 2^53, because Lua counts in floating point."""
UNKNOWN_ATTEMPT = 0
"""The number, which no attempt has, in a record of which only the details are known."""


class RunWork(msgspec.Struct):
    """The inputs of one run that are reduced together."""

    messages: list[InboxMessage] = []
    inputs: list[Input] = []
    started: bool = False
    """The run starts with these, by its start message, so it doesn't have to be loaded."""
    loaded: bool = False
    """Its record was read: if the run isn't live now, it has ended or doesn't exist."""
    found: dict[Any, Any] = {}
    """What storage has given for it (`put_off.py`)."""
    at: int = 0
    """When its inputs were reduced before (ms), in vain: they are again at that time, so that the code decides the
    same."""
    decided: int = 0
    """How often they were."""


class PutOffRun(msgspec.Struct):
    """A run that waits for storage (`put_off.py`), or has waited. `what`: for what, in words; `since`: monotonic s."""

    work: RunWork
    what: str
    since: float
    later: RunWork = msgspec.field(default_factory=RunWork)
    """What has come for it meanwhile."""
    tries: int = 0
    error: str = ""
    """Why storage hasn't given it."""
    size: int = 0
    """Of its messages in memory."""
    spilled: str = ""
    """The first of the messages behind these that are only in the inbox, because there was no room for them, and..."""
    spilled_to: str = ""
    """...the last."""
    reads_again: bool = False
    """It waits only for these."""
    ends: Callable[[], Awaitable[dict[Any, Any]]] | None = None
    """`put_off.Need.ends`."""
    terminated: bool = False
    """Somebody has terminated it meanwhile, or before."""


class StepRecord:
    """What the server has about one attempt in the shard's keys `steps` and `details`."""

    __slots__ = ("attempt", "created", "details", "host", "lent", "reported", "unread")

    def __init__(self, attempt: int, created: int = 0, host: str = "", *, reported: bool = False) -> None:
        self.attempt = attempt
        self.created = created
        self.host = host
        """The former owner that runs it; empty if it runs here."""
        self.lent = bool(host) and not host.startswith(NOBODY)
        """Another daemon runs or ran it, which may have stored details that this one hasn't read."""
        self.reported = reported
        """Its outcome is in the inbox."""
        self.details = b""
        self.unread = False
        """The server has details of it from the last owner, which are read with the run: not before, because those of
        all steps that ran may be more than this process has room for."""

    def encode(self) -> bytes:
        """As `lua/shared/current_entry.lua` writes it."""
        return f"{self.host} {self.created} {self.attempt} {'reported' if self.reported else 'wanted'}".encode()


def decode_step_record(data: bytes) -> StepRecord:
    """Raises `ValueError` if it is none."""
    host, created, attempt, mark = data.decode().split(" ")
    return StepRecord(int(attempt), int(created), host, reported=mark == "reported")


def run_and_number(field: bytes) -> tuple[str, int]:
    """Of the field `<run id>/<seq>` of a step. Raises `ValueError` if it is something else."""
    run_id, _, seq = field.decode().rpartition("/")
    return run_id, int(seq)


def first_outbox(token: str) -> int:
    """Where an owner's outbox numbers begin: the high bits are its own, from the random part of its token, because a
    failover that has lost an owner may give its epoch to another one. `lua/shared/number.lua` reads them."""
    nonce = token.partition(":")[2]
    owner = int.from_bytes(hashlib.blake2b(nonce.encode(), digest_size=8).digest()) % (1 << OWNER_BITS)
    return (owner or 1) << NUMBER_BITS


class CrowdedInbox(deque[InboxMessage]):
    """Messages that were read, and are in no batch, while some runs have more of them than go into one.

    `crowds`: of those runs, in order, what comes before their messages in the deque itself. So a batch doesn't go
    through thousands of them again to find those of others. The next one is at the beginning. What is defined here is
    about both, all else about the deque itself.
    """

    __slots__ = ("are_first", "crowds")

    def __init__(self, messages: Iterable[InboxMessage], crowds: OrderedDict[str, deque[InboxMessage]]) -> None:
        super().__init__(messages)
        self.crowds = crowds
        self.are_first = True
        """Crowds are collected before others, in every other batch: what comes last may find the commit full."""

    def __len__(self) -> int:
        return super().__len__() + sum(map(len, self.crowds.values()))

    def __bool__(self) -> bool:
        return super().__len__() > 0 or bool(self.crowds)

    def __iter__(self) -> Iterator[InboxMessage]:
        return itertools.chain(*self.crowds.values(), super().__iter__())

    def extendleft(self, iterable: Iterable[InboxMessage]) -> None:
        for message in iterable:
            crowd = self.crowds.get(message.run_id) if message.is_for_run else None
            if crowd is None:
                super().appendleft(message)
            else:
                crowd.appendleft(message)
                self.crowds.move_to_end(message.run_id, last=False)

    def remove(self, value: InboxMessage) -> None:
        crowd = self.crowds.get(value.run_id)
        if crowd is None or value not in crowd:
            super().remove(value)
            return
        crowd.remove(value)
        if not crowd:
            del self.crowds[value.run_id]

    def clear(self) -> None:
        super().clear()
        self.crowds.clear()


class OwnedShard:
    """A shard that this daemon holds with `token`. Everything here may be thrown away: the server has the truth."""

    def __init__(self, number: int, keys: ShardKeys, token: str) -> None:
        self.number = number
        self.keys = keys
        self.token = token
        self.epoch = token.partition(":")[0]
        self.inbox: deque[InboxMessage] = deque()
        """What was read, and is in no batch; that of each run is in order. Another object while runs have crowds."""
        self.position = "0-0"
        """The last message of the inbox that was read."""
        self.suspect: set[str] = set()
        """Runs whose record differs from their start message: it is read before another start message is trusted."""
        self.inputs: dict[str, list[Input]] = {}
        """Step outcomes and due times by run."""
        self.live: dict[str, LiveRun] = {}
        self.portions: dict[str, int] = {}
        """Runs that get only so many inputs at once, because more made a transition that was too large for a commit;
        until no more than that wait."""
        self.oversize: dict[str, str] = {}
        """Runs that fail with their next transition, because a single input made one that was too large, and why."""
        self.busy = False
        """A batch is being loaded, reduced or committed: one at a time, so that commits have an order."""
        self.draining = False
        """To be handed over: nothing new is read or started, outcomes of running steps are still committed."""
        self.history = 0
        """`Store.history_of` its keys: what is in memory is of that history."""
        self.dropped = False
        """No longer owned: nothing of it is committed or stored."""
        self.next_due: int | None = None
        self.sent: list[str] = []
        """Numbers of outbox entries whose targets have accepted all messages: the next commit deletes them."""
        self.views = ShardViews()
        self.offset = "0-0"
        """The log entry up to which `views` counts."""
        self.folded = "0-0"
        """The `offset` of the checkpoint that the server has."""
        self.unfolded = 0
        """Entries between the two, and..."""
        self.logged = 0
        """...their bytes, about."""
        self.trim_again = math.inf
        """When its log is to be trimmed again, though nothing is committed (ms); 0: at once."""
        self.records: dict[str, dict[int, StepRecord]] = {}
        """By run and number: the steps about which the server has more than the run's history."""
        self.lost_with = ""
        """The former owner, if it ended without a release: the steps that it ran are lost."""
        self.has_suspects = False
        """It did, or one before it whose successors haven't been through all that it had in hand: that may have been
        the reason. `suspect_until` tells whether this owner has been."""
        self.forget_at = 0.0
        """When the retention of its oldest ended run is over (ms); infinite if it has none, 0 if that isn't known."""
        self.asleep = 0
        """How many of its runs were moved out of memory, and..."""
        self.hibernate_at = 0.0
        """...when another one may have waited for long enough (ms); infinite if none waits, 0 if that isn't known."""
        self.is_checked = False
        """Its runs were checked against this daemon's code, or need not be (`deploy_check.py`)."""
        self.acquired = 0
        """When it was taken over, ms on the daemon's clock."""
        self.code = ""
        """What identifies the code of this daemon (`code_fingerprint.py`)."""
        self.delivered: tuple[int, int] | None = None
        """The last message of those that it had read, until the reader has got there."""
        self.stuck: dict[tuple[Status, str], int] = {}
        """Workflows of which not all stuck or paused runs were read, and the cursor from which to read on
        (`stuck_runs.py`)."""
        self.has_paused = False
        """Runs in memory may be paused, or kept stuck by a pause."""
        self.unread_while_paused: set[str] = set()
        """Workflows that were paused when it was taken over: none of the listings of their stuck and paused runs was
        read."""
        self.careful: dict[str, set[int]] = {}
        """The runs that it, or owners before it, had in hand: their code is run one run at a time (`Owner`), until the
        steps with these numbers have ended, too."""
        self.was_due = False
        """Runs that are due were due when it ended, and have not been read."""
        self.note = Note()
        """What it has left about that."""
        self.killers: set[str] = set()
        """Runs that are parked because their code has ended several processes, and that is not recorded yet."""
        self.orphans: set[str] = set()
        """Those of them whose steps it ran, and that have not been loaded yet."""
        self.put_off: dict[str, PutOffRun] = {}
        """Runs that wait for storage (`put_off.py`), and..."""
        self.returned: dict[str, PutOffRun] = {}
        """...those that it has answered, until the next batch."""
        self.without_storage: set[str] = set()
        """Runs that were terminated while they waited for it: nothing is fetched or stored for them any more."""
        self.postponed: set[str] = set()
        """Runs that wait for storage, and whose due times the next commit puts off."""
        self.aside: dict[str, RunWork] = {}
        """Inputs of such runs, until it is their turn."""
        self.leaving = False
        """To be handed over at once: nothing of it is reduced any more."""
        self.waits = True
        """Starts may wait on the server (`admission.py`)."""
        self.left = 0
        """How many did when that was read last; those in memory included, until their commits."""
        self.fetched: set[str] = set()
        """The runs of those that were read, until their commits."""
        self.reached: int | None = None
        """The turn up to which the former owner had read them."""
        self._waited = 0
        self.parked: dict[str, str] = {}
        """Runs whose code this daemon doesn't run any more, and why: run id -> reason."""
        self.bugs: dict[str, Failure] = {}
        """What the code of some of them has raised, until that is recorded: then they are in neither of the two."""
        self.again: set[str] = set()
        """Stuck runs whose code is tried once more, although it is the same, because somebody has asked for it."""
        self.workflows: set[str] = set()
        """Names of workflows with runs here, for the listings that `checkpoint_views` reads."""
        self.broken = ""
        """Why the server refuses this shard; it is left alone until..."""
        self.retry_at = 0.0
        """...this moment (monotonic s)."""
        self._commits = 0
        self._tried = 0
        self._outbox = first_outbox(token)

    @property
    def has_work(self) -> bool:
        return bool(self.inbox or self.inputs or self.aside or self.returned or self.postponed)

    @property
    def has_orphans(self) -> bool:
        """There are orphans, besides those for which storage has failed: for how long they wait, nobody knows."""
        return any(run_id not in self.put_off or not self.put_off[run_id].tries for run_id in self.orphans)

    @property
    def is_at_rest(self) -> bool:
        """Nothing of it is in memory that a loop has to look at, or a heartbeat to count, until something happens.
        Code that makes this false calls `Owner.touch`."""
        return not (
            self.live
            or self.has_work
            or self.put_off
            or self.busy
            or self.sent
            or self.offset != self.folded
            or self.trim_again == 0
            or self.records
            or self.stuck
            or self.left
            or self.fetched
            or self.broken
            or self.draining
            or not self.is_checked
        )

    @property
    def suspect_until(self) -> str:
        """What the next owner has to know if this one releases the shard now: the last message that is suspect and has
        not been read, 0-0 if something else is (starts that wait, runs that are due, a check of the code). Empty: the
        rest of what is suspect is in `careful`."""
        if not self.has_suspects:
            return ""
        if self.delivered is not None:
            return "{}-{}".format(*self.delivered)
        return "0-0" if self.was_due or self.waits or not self.is_checked else ""

    def forget(self, run_id: str) -> None:
        """The run has ended, or doesn't exist: nothing that is known of it has a meaning any more."""
        self.parked.pop(run_id, None)
        self.bugs.pop(run_id, None)
        self.again.discard(run_id)
        self.portions.pop(run_id, None)
        self.oversize.pop(run_id, None)
        self.killers.discard(run_id)
        self.suspect.discard(run_id)
        self.orphans.discard(run_id)
        self.without_storage.discard(run_id)

    @property
    def is_going(self) -> bool:
        """Nothing new begins here: it was lost, or is to be handed over."""
        return self.dropped or self.draining or self.leaving

    def bug_of(self, run_id: str) -> tuple[Failure, str] | None:
        """What to record of a run that is parked for a bug: `RunMachine.bug`."""
        failure = self.bugs.get(run_id) if self.bugs else None
        return None if failure is None else (failure, self.code)

    def bug_recorded(self, run_id: str) -> None:
        """The run's history says that this code isn't to be tried again, so memory needs not."""
        if self.bugs.pop(run_id, None) is not None and self.code:
            self.parked.pop(run_id, None)

    def try_again(self, run_id: str) -> None:
        """Run the code of a stuck run once more. Not one that has ended processes: that waits for other code."""
        self.again.add(run_id)
        if run_id not in self.killers and CODE not in self.records.get(run_id, ()):
            self.parked.pop(run_id, None)
            self.bugs.pop(run_id, None)

    def resume_workflow(self, name: str) -> None:
        """Have all runs of a workflow read that is paused no more, and that were paused or stuck meanwhile."""
        self.stuck[Status.PAUSED, name] = self.stuck[Status.STUCK, name] = 0

    def next_waited(self) -> str:
        """The id of a message that was not in the inbox: the start of a run that has waited (`InboxMessage.waited`)."""
        self._waited += 1
        return f"0-{self._waited}"

    def admitted(self, run_ids: Iterable[str]) -> None:
        """Starts that have waited are committed: they wait no more on the server either."""
        for run_id in run_ids:
            self.left -= 1
            self.fetched.discard(run_id)

    def next_commit(self, session: str) -> str:
        """The id of the commit behind those that were accepted: the server refuses one that leaves a gap. No two have
        the same id, also not when one was refused: a copy of it may still arrive."""
        number, tried = self._commits + 1, self._tried
        self._tried += 1
        return f"{session}.{number}.{tried}" if tried else f"{session}.{number}"

    @property
    def commits(self) -> int:
        """The number of the last commit that was accepted under this token."""
        return self._commits

    def commit_accepted(self) -> None:
        self._commits += 1
        self._tried = 0

    def next_outbox(self, messages: int) -> str:
        """The number of the last of so many messages: that of their entry."""
        self._outbox += messages
        return f"{self.epoch}-{self._outbox}"

    def has_closed(self, run_id: str, created: int, seq: int, attempt: int) -> bool | None:
        """Whether the run has recorded an outcome of this attempt, or is about to; None if it isn't in memory."""
        live = self.live.get(run_id)
        if live is None:
            return None
        call = live.machine.steps.get(seq)
        return live.header.created != created or call is None or call.attempt != attempt or call.due is not None

    def record_of(self, run_id: str, created: int, seq: int, attempt: int) -> StepRecord:
        """The record of an attempt; a new one if there is none, or one of an earlier attempt or run."""
        records = self.records.setdefault(run_id, {})
        record = records.get(seq)
        if record is None or (record.created or created, record.attempt) != (created, attempt):
            record = records[seq] = StepRecord(attempt, created)
        return record

    def add_input(self, run_id: str, input_: Input) -> None:
        inputs = self.inputs.get(run_id)
        if inputs is None:
            self.inputs[run_id] = [input_]
        else:
            inputs.append(input_)

    def outcomes(self) -> dict[str, list[Outcome]]:
        """Outcomes by run that no commit has recorded yet."""
        waiting = [*self.inputs.items(), *((run_id, work.inputs) for run_id, work in self.aside.items())]
        for run_id, entry in (*self.returned.items(), *self.put_off.items()):
            waiting += [(run_id, entry.work.inputs), (run_id, entry.later.inputs)]
        found: dict[str, list[Outcome]] = {}
        for run_id, inputs in waiting:
            found.setdefault(run_id, []).extend(item for item in inputs if isinstance(item, Outcome))
        return found

    def outcomes_of(self, run_id: str) -> set[tuple[int, int]]:
        """The attempts of a run, by number and attempt, whose outcomes no commit has recorded yet."""
        aside = self.aside.get(run_id)
        waiting = [*self.inputs.get(run_id, ()), *(aside.inputs if aside else ())]
        for entry in (self.returned.get(run_id), self.put_off.get(run_id)):
            waiting += (*entry.work.inputs, *entry.later.inputs) if entry else ()
        return {(item.seq, item.attempt) for item in waiting if isinstance(item, Outcome)}

    def plan_due(self, due: int) -> bool:
        """Note that a run is due at `due` (ms). Returns whether that is now the earliest due time."""
        if self.next_due is None or due < self.next_due:
            self.next_due = due
            return True
        return False
