"""One owned shard in memory: what waits to be reduced, which runs are live, and its part of the views.

Owns: the state of an `OwnedShard`, and the numbering of its commits and outbox messages. Must not: talk to the server,
reduce, or decide. Called by: owner, inbox reader, membership, relay, rollup.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from streamflow.machine.run import RunMachine
from streamflow.machine.transition import Input
from streamflow.model.record import Header
from streamflow.store.keys import ShardKeys
from streamflow.views.shard_views import ShardViews
from streamflow.wire import InboxMessage


class LiveRun:
    """A run in memory: its machine, the header that the server has, and what the agenda says of it."""

    __slots__ = ("header", "header_bytes", "machine", "plan", "timer")

    def __init__(self, machine: RunMachine, header: Header, header_bytes: bytes, plan: int | None) -> None:
        self.machine = machine
        self.header = header
        self.header_bytes = header_bytes
        self.plan = plan
        """The score on the agenda: -1 while steps run here, a due time in ms, or None."""
        self.timer: int | None = None
        """The due time that the owner's own timers have of it, while steps run here."""


class OwnedShard:
    """A shard that this daemon holds with `token`. Everything here may be thrown away: the server has the truth."""

    def __init__(self, number: int, keys: ShardKeys, token: str) -> None:
        self.number = number
        self.keys = keys
        self.token = token
        self.epoch = token.partition(":")[0]
        self.inbox: deque[InboxMessage] = deque()
        self.known: set[str] = set()
        """Ids of inbox entries in memory, so that re-reading pending ones brings none twice."""
        self._rereading = False
        self._gone: list[str] = []
        self.suspect: set[str] = set()
        """Runs whose record isn't what their start message says: it is read before another start is believed."""
        self.inputs: dict[str, list[Input]] = {}
        """Step outcomes and due times by run."""
        self.live: dict[str, LiveRun] = {}
        self.busy = False
        """A batch is being loaded, reduced or committed: one at a time, so that commits have an order."""
        self.draining = False
        """To be handed over: nothing new is read or started, outcomes of running steps are still committed."""
        self.dropped = False
        self.next_due: int | None = None
        self.sent: list[str] = []
        """Outbox numbers that their targets have accepted: the next commit deletes them."""
        self.views = ShardViews()
        self.offset = "0-0"
        """The log entry up to which `views` counts."""
        self.folded = "0-0"
        """The offset that the server has."""
        self.unfolded = 0
        self.workflows: set[str] = set()
        """Names of workflows with runs here, for the listings that `checkpoint_views` looks at."""
        self.broken = ""
        """Why the server refuses this shard; it is left alone for a while."""
        self.broken_since = 0.0
        self._commits = 0
        self._outbox = 0

    @property
    def has_work(self) -> bool:
        return bool(self.inbox or self.inputs)

    def acknowledged(self, ids: Iterable[str]) -> None:
        """These entries are not in the inbox any more."""
        if self._rereading:
            self._gone += ids
        else:
            self.known.difference_update(ids)

    def rereading(self, going_on: bool) -> None:
        """Pending entries are being read: what is committed meanwhile stays known, for the answer may still have it."""
        self._rereading = going_on
        if not going_on:
            self.known.difference_update(self._gone)
            self._gone.clear()

    def next_commit(self, session: str) -> str:
        self._commits += 1
        return f"{session}.{self._commits}"

    def next_outbox(self) -> str:
        self._outbox += 1
        return f"{self.epoch}-{self._outbox}"

    def add_input(self, run_id: str, input_: Input) -> None:
        inputs = self.inputs.get(run_id)
        if inputs is None:
            self.inputs[run_id] = [input_]
        else:
            inputs.append(input_)

    def plan_due(self, due: int) -> bool:
        """Note that a run is due at `due`; whether that is the earliest now."""
        if self.next_due is None or due < self.next_due:
            self.next_due = due
            return True
        return False
