"""What each action is: to which runs it applies, what it says, and what it does.

Owns: the interface that one file for each action fills in. Must not: send anything, print, know a single action.
Called by: all files of this room.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection
from typing import Any, ClassVar, Protocol

import msgspec

from streamflow.client.listing import RunSummary
from streamflow.client.pipelines import Origin
from streamflow.client.run import Run
from streamflow.errors import RunEnded, RunNotFound
from streamflow.model.record import Header, Status
from streamflow.model.waits import Wait
from streamflow.store.namespace import Namespace


class Runs(Protocol):
    """What actions need of a client. A sandbox has it, too."""

    def run(self, run_id: str, /) -> Run[Any]: ...
    async def read_namespace(self) -> Namespace: ...
    async def _header(self, run_id: str, created: int) -> tuple[Header, bytes]: ...
    async def _storage_wait(self, run_id: str) -> tuple[Wait | None, bool]: ...
    async def _forget(self, run_id: str, created: int) -> bool: ...
    async def _purge(self, run_id: str, created: int) -> bool: ...
    async def _restore(self, run_id: str, created: int) -> Run[Any]: ...
    def _numbered(self, run_id: str, created: int, origin: Origin) -> Run[Any]: ...
    def _every(self, within: Collection[Status], **filters: Any) -> AsyncGenerator[list[RunSummary]]: ...
    def _every_archived(self, **filters: Any) -> AsyncGenerator[list[RunSummary]]: ...
    def _every_hibernating(self, *, workflow: str | None = None) -> AsyncGenerator[list[RunSummary]]: ...


class Action(msgspec.Struct, frozen=True, kw_only=True, tag_field="action"):
    """Something to do to a run. Its fields are the options; they go into the file of a bulk."""

    name: ClassVar[str]
    """That of its command."""
    statuses: ClassVar[frozenset[Status]]
    """Those of the runs that it can be done to."""
    done: ClassVar[str]
    """What is said of the runs that it was done to, in front of their number: `retried`."""
    archived: ClassVar[bool] = False
    """Whether it is for runs in the archive, rather than for those on the server."""
    may_be_delayed: ClassVar[bool] = False
    """Whether storage that a run waits for may delay it: then `delayed` gives the reason."""
    posts: ClassVar[bool] = False
    """Whether all of it is one message to the run, which could come twice."""

    @property
    def why(self) -> str:
        """The reason that was given; empty for an action that has none."""
        return getattr(self, "reason", "")

    def question(self, what: str) -> str:
        """Asks whether to do it to `what` (`run order-7`, `1,204 runs`), and says what comes of it."""
        raise NotImplementedError

    def words(self) -> list[str]:
        """Its command line between the name and the run, as a list of arguments."""
        return ["--reason", self.why] if self.why else []

    def check(self, run: RunSummary) -> str:
        """Why it can't be done to this run; empty if it can."""
        if run.status in self.statuses:
            return ""
        return f"run {run.id} is {run.status}: there is nothing to {self.name}"

    async def do(self, client: Runs, run: Run[Any], by: str) -> Any:
        """Do it, or raise why not. Returns when the server, or the run's owner, has the request."""
        raise NotImplementedError

    def did(self, run_id: str, value: Any) -> str:
        """What has been done, in a sentence, or several lines; `value` is what `do` gave."""
        raise NotImplementedError

    def plain(self, run_id: str, value: Any) -> dict[str, Any]:
        """The same for `--json`."""
        raise NotImplementedError

    def delayed(self, run_id: str, wait: Wait | None, *, hibernates: bool) -> str:
        """Why it takes effect only later, in a sentence; empty if it doesn't. `wait`: what the run waits for in
        storage."""
        return ""

    def is_moot(self, error: Exception) -> bool:
        """Whether `do` was refused because there is nothing to do: it was done before, or the run isn't such a one."""
        return isinstance(error, RunEnded | RunNotFound)

    def took_effect(self, status: Status | None) -> bool:
        """Whether the run's status, as read after it was done (None: there is no run), shows it."""
        return True


def why_of(wait: Wait | None) -> str:
    """Why storage hasn't given it, behind what it is."""
    return "" if wait is None or not wait.why else f" ({wait.why})"


def read_first(wait: Wait | None) -> str:
    """Of a run that hibernates."""
    return f"it hibernates, so it is read from storage first{why_of(wait)}; `streamflow show` says if that doesn't work"
