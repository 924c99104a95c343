"""One owned shard in memory: inputs that wait to be reduced, live runs, and its part of the views.

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
    """A run in memory: its machine, the header that the server has, and its entry on the agenda."""

    __slots__ = ("header", "header_bytes", "machine", "plan", "timer")

    def __init__(self, machine: RunMachine, header: Header, header_bytes: bytes, plan: int | None) -> None:
        self.machine = machine
        self.header = header
        self.header_bytes = header_bytes
        self.plan = plan
        """The score on the agenda: -1 while steps run here, a due time in ms, or None."""
        self.timer: int | None = None
        """The due time (ms) that the owner's own timers have for it, while steps run here."""


class OwnedShard:
    """A shard that this daemon holds with `token`. Everything here may be thrown away: the server has the truth."""

    def __init__(self, number: int, keys: ShardKeys, token: str) -> None:
        self.number = number
        self.keys = keys
        self.token = token
        self.epoch = token.partition(":")[0]
        self.inbox: deque[InboxMessage] = deque()
        self.known: set[str] = set()
        """Ids of inbox entries in memory, so that reading pending ones again adds none twice."""
        self._rereading = False
        self._acknowledged: list[str] = []
        """Ids that were acknowledged while pending entries are read again."""
        self.suspect: set[str] = set()
        """Runs whose record differs from their start message: it is read before another start message is trusted."""
        self.inputs: dict[str, list[Input]] = {}
        """Step outcomes and due times by run."""
        self.live: dict[str, LiveRun] = {}
        self.busy = False
        """A batch is being loaded, reduced or committed: one at a time, so that commits have an order."""
        self.draining = False
        """To be handed over: nothing new is read or started, outcomes of running steps are still committed."""
        self.dropped = False
        """No longer owned: nothing of it is committed or stored."""
        self.next_due: int | None = None
        self.sent: list[str] = []
        """Outbox numbers that their targets have accepted: the next commit deletes them."""
        self.views = ShardViews()
        self.offset = "0-0"
        """The log entry up to which `views` counts."""
        self.folded = "0-0"
        """The `offset` of the checkpoint that the server has."""
        self.unfolded = 0
        self.parked: dict[str, str] = {}
        """Runs whose code this daemon doesn't run any more, and why: run id -> reason."""
        self.workflows: set[str] = set()
        """Names of workflows with runs here, for the listings that `checkpoint_views` reads."""
        self.broken = ""
        """Why the server refuses this shard; it is left alone for `RETRY_BROKEN` seconds."""
        self.broken_since = 0.0
        self._commits = 0
        self._outbox = 0

    @property
    def has_work(self) -> bool:
        return bool(self.inbox or self.inputs)

    def acknowledged(self, ids: Iterable[str]) -> None:
        """These entries are no longer in the inbox."""
        if self._rereading:
            self._acknowledged += ids
        else:
            self.known.difference_update(ids)

    def rereading(self, active: bool) -> None:
        """Whether pending entries are being read: those that are committed meanwhile stay known until the read ends,
        because its answer may still contain them."""
        self._rereading = active
        if not active:
            self.known.difference_update(self._acknowledged)
            self._acknowledged.clear()

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
        """Note that a run is due at `due` (ms). Returns whether that is now the earliest due time."""
        if self.next_due is None or due < self.next_due:
            self.next_due = due
            return True
        return False
