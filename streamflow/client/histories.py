"""Recorded histories in files, and their replay against the code of an app.

Owns: the file's format, reading one run's whole record, and what a replay checks.
Must not: change anything, or run a step. Called by: the command line (`export`, `replay`), the testing kit.

A file is one JSON document. `record` has the record's elements as the server stores them, in base64: nothing is lost,
and only this is read back. Everything else is for people, and for the diff in a review.
"""

# A record is read through the client, which knows where runs are.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from streamflow.client.listing import instant
from streamflow.errors import PayloadInvalid, UnknownWorkflow, UsageError
from streamflow.events import Transition, decode_history
from streamflow.input_file import read_input
from streamflow.machine.factory import rehydrate
from streamflow.machine.reducer import ReducerMachine
from streamflow.model import codec
from streamflow.model.names import check_run_id
from streamflow.model.record import Header, Status, decode_header
from streamflow.model.sharding import Partition
from streamflow.text import visible_json
from streamflow.tracing.setup import silence
from streamflow.workflow.app import App

if TYPE_CHECKING:
    from streamflow.client.client import Client

FORMAT = 1
EXPORT_HINT = "create one with: streamflow export RUN --output FILE"


class History(msgspec.Struct, frozen=True, kw_only=True):
    """One run as it was recorded: the elements of its record, and the partition of its namespace.

    `state` is a reducer's snapshot, empty for a workflow. The record of a reducer has only its newest transitions.
    """

    run_id: str
    partition: Partition
    header: bytes
    state: bytes
    transitions: list[bytes]

    @property
    def head(self) -> Header:
        return decode_header(self.header)

    def decoded(self) -> list[Transition]:
        return decode_history(self.transitions)


class _Record(msgspec.Struct):
    header: bytes
    state: bytes
    transitions: list[bytes]


class _File(msgspec.Struct, kw_only=True):
    """The document. Fields with a default are not needed to read it back."""

    streamflow_history: int
    run_id: str
    workflow: str = ""
    tenant: str = ""
    status: str = ""
    partition: Partition
    events: list[dict[str, Any]] = []
    record: _Record


class _Format(msgspec.Struct):
    streamflow_history: int


async def read_history(client: Client, run_id: str) -> History:
    """Read a run's history from the server, or from the namespace's archive. Raises `RunNotFound`, `StoreError`."""
    namespace = await client.read_namespace()
    # One read, so that all elements belong together; large payloads are in it.
    elements = await client._all_joined(await client._record_of(run_id, 0))
    header, state, *transitions = elements
    if not transitions:
        state = b""  # of a run that has not begun: its input
    return History(run_id=run_id, partition=namespace.partition, header=header, state=state, transitions=transitions)


def dump_history(history: History) -> bytes:
    """The bytes of the file."""
    from streamflow.model.plain import event_json

    head = history.head
    events: list[dict[str, Any]] = []
    for transition in history.decoded():
        for event in transition.events:
            row = event_json(transition.at, history.run_id, event)
            del row["run_id"]
            events.append({"number": len(events) + 1, **row, "at": instant(transition.at).isoformat()})
    file = _File(
        streamflow_history=FORMAT,
        run_id=history.run_id,
        workflow=head.workflow,
        tenant=head.tenant,
        status=head.status,
        partition=history.partition,
        events=events,
        record=_Record(history.header, history.state, history.transitions),
    )
    text = msgspec.json.format(msgspec.json.encode(file), indent=1).decode()
    return visible_json(text).encode() + b"\n"  # in a review's diff, a direction override shows another text


def parse_history(data: bytes, what: str) -> History:
    """Parse the bytes of a file; `what` names it in errors. Raises `UsageError` when it isn't a complete history."""
    try:
        written = msgspec.json.decode(data, type=_Format).streamflow_history
    except codec.DECODE_ERRORS:
        raise UsageError(f"{what} is not an exported history; {EXPORT_HINT}") from None
    if written != FORMAT:
        raise UsageError(
            f"{what} has format {written} of exported histories, but this version of streamflow reads format {FORMAT}: "
            "export it again, or use the version that wrote it"
        )
    try:
        file = msgspec.json.decode(data, type=_File)
        history = History(
            run_id=check_run_id(file.run_id),
            partition=file.partition,
            header=file.record.header,
            state=file.record.state,
            transitions=file.record.transitions,
        )
        version = history.head.version
        history.decoded()
    except (*codec.DECODE_ERRORS, UsageError) as error:
        raise UsageError(f"{what} is damaged: {error}. Export it again; {EXPORT_HINT}") from None
    if not history.state and version and not history.transitions:
        raise UsageError(f"{what} is damaged: it has no transitions. Export it again; {EXPORT_HINT}")
    return history


def save_history(history: History, path: str | Path) -> None:
    """Write the file that `load_history` and `streamflow replay` read. An existing file is replaced."""
    Path(path).write_bytes(dump_history(history))


def load_history(path: str | Path) -> History:
    """Read a file of `save_history` or `streamflow export`. Raises `UsageError` when it can't be read or is damaged."""
    try:
        data = read_input(path, f"the history {path}")
    except UsageError as error:
        raise UsageError(f"{error}; {EXPORT_HINT}") from None
    return parse_history(data, str(path))


def find_histories(directory: str | Path) -> Sequence[Path]:
    """All `*.json` files in a directory and its subdirectories, sorted. Raises `UsageError` when there are none."""
    found = sorted(Path(directory).rglob("*.json"))
    if not found:
        raise UsageError(f"there is no history (*.json) in {directory}; {EXPORT_HINT}")
    return found


def replay(app: App, history: History) -> None:
    """Run the code of `app` against a recorded history, without running a step. Returns when the two agree.

    For a workflow every decision is checked; for a reducer that its snapshot can be decoded as its state.
    Raises `Diverged` with the first event at which they differ, `UnknownWorkflow`, and `PayloadInvalid` for a snapshot.

    >>> sft.replay(app, sft.load_history("tests/histories/digest-1.json"))
    """
    head = history.head
    if head.workflow not in app.workflows:
        raise UnknownWorkflow(app.unknown_workflow(head.workflow))
    # For an ended run the factory builds no machine that checks anything, so its record is read as that of an open run.
    opened = msgspec.structs.replace(head, status=Status.RUNNING, ended=0)
    machine = rehydrate(
        app, history.partition, history.run_id, opened, history.state, history.decoded(), trace=silence()
    )
    machine.close()
    if machine.diverged is not None:
        raise machine.diverged
    if machine.reason and not (isinstance(machine, ReducerMachine) and not head.is_open and head.version == 1):
        # A reducer that ended in its first transition never had a state: its snapshot is empty.
        raise PayloadInvalid(machine.reason)
