"""The runs that a bulk is for: chosen once by filters, and from then on those in a file.

Owns: the filters, the file's format, where in it a bulk was when it stopped. Must not: act on a run, print.
Called by: many.

The file has one JSON object a line, is only added to, and is never held in memory:

    {"streamflow_bulk": 1, "id": …, "namespace": …, "identity": …, "action": {…}, "filters": {…}, "by": …, "at": …}
    {"run_id": "order-7", "created": 1764457200000}      for each run; its number is its place, from 1
    {"targets": 1204}                                     they are complete
    {"run_id": "order-9", "outcome": "failed", "reason": …}   of those that weren't done
    {"next": 340, "done": 331, "already": 7, "failed": 1, "reasons": …}       from time to time, and when it stops
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal, TypedDict

import msgspec

from streamflow.actions.cancel import Cancel
from streamflow.actions.forget import Forget
from streamflow.actions.fork import Fork
from streamflow.actions.pause import Pause
from streamflow.actions.purge import Purge
from streamflow.actions.restore import Restore
from streamflow.actions.resume import Resume
from streamflow.actions.retry import Retry
from streamflow.actions.signal import Signal
from streamflow.actions.terminate import Terminate
from streamflow.errors import UsageError
from streamflow.model.attributes import Attribute
from streamflow.model.record import Status

AnyAction = Cancel | Terminate | Signal | Retry | Forget | Fork | Pause | Resume | Purge | Restore
"""By the name under which they stand in a file."""

FORMAT = 1
MAX_REASONS = 20
"""Different reasons that are counted; any others are added up."""
OTHER = "other reasons"


class RunFilters(TypedDict, total=False):
    """Those of `Client.runs`, under the same names. `hibernating`: runs that were moved out of the server's memory
    instead, which the others leave out; only `workflow` goes with it."""

    status: Status | str | None
    workflow: str | None
    tenant: str | None
    attributes: dict[str, Attribute] | None
    error: str | None
    since: datetime | str | None
    until: datetime | str | None
    roots: bool
    hibernating: bool


class Head(msgspec.Struct):
    """The first line. `id`: a random one, under which its messages are posted; `identity`: of the namespace's data."""

    streamflow_bulk: int
    id: str
    namespace: str
    identity: str
    action: AnyAction
    filters: dict[str, Any]
    by: str
    at: datetime


class Target(msgspec.Struct):
    run_id: str
    created: int


class Tally(msgspec.Struct):
    """How far a bulk has come. `next`: as many targets, from the first on, are done with; the three numbers and the
    reasons, with how many had them, are of these."""

    next: int = 0
    done: int = 0
    already: int = 0
    failed: int = 0
    reasons: dict[str, int] = {}

    def add(self, run_id: str, outcome: Literal["done", "already", "failed"], reason: str) -> None:
        self.next += 1
        setattr(self, outcome, getattr(self, outcome) + 1)
        if reason:
            text = f"{outcome}: {reason.replace(run_id, '…')}"
            known = text in self.reasons or len(self.reasons) < MAX_REASONS
            text = text if known else f"{outcome}: {OTHER}"
            self.reasons[text] = self.reasons.get(text, 0) + 1


class _Targets(msgspec.Struct):
    targets: int


_head = msgspec.json.Decoder(Head)
_target = msgspec.json.Decoder(Target)
_targets = msgspec.json.Decoder(_Targets)
_tally = msgspec.json.Decoder(Tally)


class TargetFile:
    """A file of this kind. One process has it open at a time."""

    def __init__(self, path: Path, file: IO[bytes], head: Head) -> None:
        self.path = path
        self.head = head
        self.count = 0
        self.tally = Tally()
        self._file = file

    @classmethod
    def create(
        cls, path: Path, action: AnyAction, filters: Mapping[str, Any], namespace: str, identity: str, by: str
    ) -> TargetFile:
        """Raises `UsageError` when there is such a file, or it can't be written."""
        try:
            file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        except OSError as error:
            raise UsageError(f"can't write the list of runs to {path}: {error.strerror}; name another file") from None
        at = datetime.now(UTC).replace(microsecond=0)
        given = {name: value for name, value in filters.items() if value}
        head = Head(FORMAT, os.urandom(16).hex(), namespace, identity, action, given, by, at)
        found = cls(path, file, head)
        found._lock()
        found._write(head)
        return found

    @classmethod
    def open(cls, path: Path) -> TargetFile:
        """One that was complete. Raises `UsageError`."""
        try:
            file = path.open("r+b")
        except OSError as error:
            raise UsageError(f"can't read {path}: {error.strerror}") from None
        try:
            found = cls(path, file, _read_head(path, file))
            found._lock()
            found._read()
        except BaseException:
            file.close()
            raise
        return found

    def add(self, targets: Iterable[Target]) -> None:
        lines = [msgspec.json.encode(target) for target in targets]
        self._file.write(b"".join([line + b"\n" for line in lines]))
        self.count += len(lines)

    def complete(self) -> None:
        self._write(_Targets(self.count))

    def note(self, run_id: str, outcome: str, reason: str) -> None:
        """One that wasn't done, for people."""
        self._file.write(msgspec.json.encode({"run_id": run_id, "outcome": outcome, "reason": reason}) + b"\n")

    def save(self) -> None:
        """From here on it can be resumed. What is killed before loses nothing but the count."""
        self._write(self.tally)

    def targets(self, skip: int = 0) -> Generator[tuple[int, Target]]:
        """Those behind the first `skip`, with their numbers."""
        with self.path.open("rb") as lines:
            lines.readline()
            for number in range(1, self.count + 1):
                line = lines.readline()
                if number > skip:
                    yield number, _target.decode(line)

    def close(self) -> None:
        self._file.close()

    def delete(self) -> None:
        self.close()
        self.path.unlink(missing_ok=True)

    def _write(self, line: msgspec.Struct) -> None:
        self._file.write(msgspec.json.encode(line) + b"\n")
        self._file.flush()

    def _lock(self) -> None:
        with contextlib.suppress(ImportError):  # Windows
            import fcntl

            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(f"another process is working on {self.path}") from None
            except OSError:  # a file system that has no locks
                pass

    def _read(self) -> None:
        """Behind the head: how many targets there are, and the last tally. A line that a kill has cut is cut off."""
        end = self._file.tell()
        complete = False
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            end += len(line)
            try:
                if not complete and line.startswith(b'{"run_id"'):
                    self.count += 1
                elif not complete:
                    complete = _targets.decode(line).targets == self.count
                elif line.startswith(b'{"next"'):
                    self.tally = _tally.decode(line)
            except (msgspec.MsgspecError, ValueError) as error:
                raise UsageError(f"{self.path} is damaged: {error}") from None
        if not complete:
            raise UsageError(f"{self.path} isn't complete, and nothing was done to any run: begin again without it")
        self._file.seek(end)
        self._file.truncate()


def _read_head(path: Path, file: IO[bytes]) -> Head:
    try:
        head = _head.decode(file.readline())
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise UsageError(f"{path} is not a list of runs that a bulk command has written") from None
    if head.streamflow_bulk != FORMAT:
        raise UsageError(f"{path} is of another version of streamflow")
    return head
