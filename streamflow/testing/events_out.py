"""Groups of subscribers in a sandbox: the same events, filters and acknowledgements, without a server.

Owns: the log of a world, and how far each group is in it. Must not: decide what happens (`world.py` does).
Called by: the sandbox.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from types import TracebackType

from streamflow.client.committed import CommittedEvent, Filter, Part, committed
from streamflow.client.groups import From, start_of
from streamflow.client.subscription import EventBatch
from streamflow.errors import UsageError
from streamflow.events import Transition
from streamflow.model.logged import Origin, SubscribedTransition
from streamflow.model.names import check_name
from streamflow.model.record import Header

SHARD = 0
"""A sandbox has one shard."""


class EventLog:
    """What was committed in a world, in order, and by group how many entries are acknowledged."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, Header, Transition]] = []
        self.positions: dict[str, int] = {}

    def committed(self, run_id: str, header: Header, transition: Transition) -> None:
        self.entries.append((run_id, header, transition))

    def by_run(self) -> list[tuple[str, Header, list[Transition]]]:
        """What each run has ever done, also those that are gone, with its first header."""
        found: dict[tuple[str, int], tuple[str, Header, list[Transition]]] = {}
        for run_id, header, transition in self.entries:
            _, _, log = found.setdefault((run_id, header.created), (run_id, header, []))
            log.append(transition)
        return list(found.values())

    def make(self, group: str, start: str) -> None:
        if group in self.positions:
            return
        if start == "oldest":
            self.positions[group] = 0
        elif start == "now":
            self.positions[group] = len(self.entries)
        else:
            self.positions[group] = sum(transition.at < int(start) for *_, transition in self.entries)

    def events(self, number: int, wanted: Filter) -> list[CommittedEvent]:
        """Those of an entry that are wanted."""
        run_id, header, transition = self.entries[number]
        if not wanted.wants_workflow(header.workflow):
            return []
        origin = Origin(header.commit, header.version, header.created, header.workflow, header.tenant)
        part = Part(run_id, SubscribedTransition(transition.at, transition.events), 0)
        return list(committed(SHARD, f"{transition.at}-{number}", part, transition.events, origin, wanted))


class SandboxSubscription:
    """As `Subscription`. Its iteration ends when all that has happened is delivered: move the clock, and iterate again.

    `settle`: lets happen what can happen at the present virtual time.
    """

    def __init__(
        self,
        log: EventLog,
        settle: Callable[[], Awaitable[None]],
        group: str,
        *,
        workflows: Iterable[object] | None,
        kinds: Iterable[object] | None,
        from_: From,
    ) -> None:
        self.group = check_name("group", group)
        self.trouble = ""
        """As `Subscription.trouble`; nobody reads it."""
        self._log = log
        self._settle = settle
        self._filter = Filter(workflows, kinds)
        self._start = start_of(from_)
        self._is_open = False
        self._handed_out: int | None = None
        """The position that counts when what was handed out is acknowledged."""

    async def __aenter__(self) -> SandboxSubscription:
        self._log.make(self.group, self._start)
        self._is_open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self._acknowledge()
        self._handed_out = None
        self._is_open = False

    def __aiter__(self) -> AsyncIterator[CommittedEvent]:
        return self._events()

    async def _events(self) -> AsyncGenerator[CommittedEvent]:
        async for batch in self.batches(1):
            handed_out, self._handed_out = self._handed_out, None  # an entry counts when all of it is handed out
            for event in batch.events[:-1]:
                yield event
            self._handed_out = handed_out
            yield batch.events[-1]

    async def batches(self, max_events: int = 500, max_wait: float = 1.0) -> AsyncGenerator[EventBatch]:
        """As `Subscription.batches`; nothing is waited for."""
        if max_events < 1:
            raise UsageError(f"max_events must be an integer >= 1, got {max_events}")
        if not self._is_open:
            await self.__aenter__()
        while True:
            self._acknowledge()
            await self._settle()
            number, events = self._log.positions[self.group], list[CommittedEvent]()
            while number < len(self._log.entries) and len(events) < max_events:
                events += self._log.events(number, self._filter)
                number += 1
            self._handed_out = number
            if not events:
                self._acknowledge()
                return
            yield EventBatch(SHARD, events[-1].offset, events, None, self._confirm)

    def _acknowledge(self) -> None:
        if self._handed_out is not None:
            self._log.positions[self.group] = max(self._log.positions[self.group], self._handed_out)
        self._handed_out = None

    async def _confirm(self, batch: EventBatch) -> bool:
        self._acknowledge()
        return True
