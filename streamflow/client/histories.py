"""Recorded histories in files, and their replay against the code of an app.

Owns: the file's format, reading one run's record as a whole, and what a replay checks.
Must not: change anything, or run a step. Called by: the command line (`export`, `replay`), the testing kit.

A file is one JSON document. `record` has the record's elements as the server has them, in base64: nothing is lost, and
nothing else is read back. All beside it is for people, and for the diff of a review.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

from streamflow.client.listing import instant
from streamflow.client.waiting import not_found
from streamflow.errors import PayloadInvalid, UnknownWorkflow, UsageError
from streamflow.events import Transition, decode_history
from streamflow.machine.factory import rehydrate
from streamflow.machine.reducer import ReducerMachine
from streamflow.model import codec
from streamflow.model.names import check_run_id
from streamflow.model.record import Header, Status, decode_header
from streamflow.model.sharding import Partition
from streamflow.store.connection import Call
from streamflow.workflow.app import App

if TYPE_CHECKING:
    from streamflow.client.client import Client

FORMAT = 1
HOW = "make one with: streamflow export RUN --output FILE"


class History(msgspec.Struct, frozen=True, kw_only=True):
    """One run as it was recorded: the elements of its record, and the partition of its namespace.

    `state` is a reducer's snapshot, empty for a workflow. The record of a reducer has its newest transitions only.
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
    """The document. What has a default isn't read back."""

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
    """The history of a run on the server. Raises `RunNotFound`."""
    namespace = await client.read_namespace()
    key = client.keys.shard(namespace.shard_of(run_id)).run(run_id)
    elements = cast("list[bytes]", await client.store.one(Call.plain("LRANGE", key, 0, -1)))  # one read, one picture
    if not elements:
        raise not_found(run_id)
    header, state, *transitions = elements
    return History(run_id=run_id, partition=namespace.partition, header=header, state=state, transitions=transitions)


def dump_history(history: History) -> bytes:
    """The file's bytes."""
    from streamflow.model.plain import event_json

    head = history.head
    events: list[dict[str, Any]] = []
    for transition in history.decoded():
        for event in transition.events:
            shown = event_json(transition.at, history.run_id, event)
            del shown["run_id"]
            events.append({"number": len(events) + 1, **shown, "at": instant(transition.at).isoformat()})
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
    return msgspec.json.format(msgspec.json.encode(file), indent=1) + b"\n"


def parse_history(data: bytes, what: str) -> History:
    """`what` names the file in errors. Raises `UsageError` for anything that isn't a whole history."""
    try:
        written = msgspec.json.decode(data, type=_Format).streamflow_history
    except codec.DECODE_ERRORS:
        raise UsageError(f"{what} is no exported history; {HOW}") from None
    if written != FORMAT:
        raise UsageError(
            f"{what} has format {written} of exported histories, and this version of streamflow reads {FORMAT}: "
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
        raise UsageError(f"{what} is damaged: {error}. Export it again; {HOW}") from None
    if not history.state and version and not history.transitions:
        raise UsageError(f"{what} is damaged: it has no transitions. Export it again; {HOW}")
    return history


def save_history(history: History, path: str | Path) -> None:
    """Write the file that `load_history` and `streamflow replay` read. An existing one is replaced."""
    Path(path).write_bytes(dump_history(history))


def load_history(path: str | Path) -> History:
    """Raises `UsageError` that says what is wrong with the file and what to do."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"can't read the history {path}: {error.strerror}; {HOW}") from None
    return parse_history(data, str(path))


def find_histories(directory: str | Path) -> Sequence[Path]:
    """All `*.json` files in a directory and below, sorted. Raises `UsageError` when there is none."""
    found = sorted(Path(directory).rglob("*.json"))
    if not found:
        raise UsageError(f"there is no history (*.json) in {directory}; {HOW}")
    return found


def replay(app: App, history: History) -> None:
    """Run the code of `app` against a recorded history, without running a step. Returns when it fits.

    Of a workflow every decision is checked; of a reducer that its snapshot can be decoded as its state.
    Raises `Diverged` with the first event at which they part, `UnknownWorkflow`, and `PayloadInvalid` for a snapshot.

    >>> sft.replay(app, sft.load_history("tests/histories/digest-1.json"))
    """
    head = history.head
    if head.workflow not in app.workflows:
        raise UnknownWorkflow(app.unknown_workflow(head.workflow))
    # An ended run needs no machine, so it would get none that is checked: its record is read as an open run's.
    opened = msgspec.structs.replace(head, status=Status.RUNNING, ended=0)
    machine = rehydrate(app, history.partition, history.run_id, opened, history.state, history.decoded())
    machine.close()
    if machine.diverged is not None:
        raise machine.diverged
    if machine.reason and not (isinstance(machine, ReducerMachine) and not head.is_open and head.version == 1):
        # A reducer that ended in its first transition never had a state: nothing is in its snapshot.
        raise PayloadInvalid(machine.reason)
