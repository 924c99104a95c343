"""What no run of a workflow could take or do is refused before it is sent, by what daemons have registered.

Owns: the check for who has no code of the workflow. Handles that know it check by their code (`workflow/messages.py`).
Must not: send anything, or refuse what a daemon could take. Called by: the command line.
"""

# `Client` and its helpers share its private reads.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from streamflow.client.listing import MessageInfo, WorkflowInfo
from streamflow.errors import RunNotFound, UnknownWorkflow, UsageError
from streamflow.model.json_schema import checker
from streamflow.text import duration
from streamflow.workflow.messages import not_declared

if TYPE_CHECKING:
    from streamflow.client.client import Client
    from streamflow.model.record import Header


class Door:
    """Reads what is registered once, and for each run which workflow it has."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._infos: Mapping[str, WorkflowInfo] | None = None

    async def check(self, what: str, run_id: str, name: str, value: Any) -> None:
        """`what`: `signal` or `question`; `value`: as JSON has it.

        Raises `UsageError` for a name that the run's workflow doesn't declare although it declares some, or for a value
        of another type; `RunNotFound`.
        """
        header = await _header_of(self._client, run_id)
        await self.check_workflow(what, header.workflow, name, value)

    async def check_workflow(self, what: str, workflow: str, name: str, value: Any) -> None:
        """As `check`, for all runs of a workflow."""
        if self._infos is None:
            self._infos = await self._client.workflows()
        info = self._infos.get(workflow)
        known = None if info is None else info.signals if what == "signal" else info.questions
        if info is not None and known is not None:
            check_message(f"{info.kind} {workflow}", what, name, value, known)


def check_message(who: str, what: str, name: str, value: Any, known: Mapping[str, MessageInfo]) -> None:
    """Raises `UsageError`, as `Door.check`."""
    found = known.get(name)
    if found is None:
        raise UsageError(f"{not_declared(who, what, name, known)}. Add --force to send it anyway")
    if reason := checker(found.schema)(value, "value"):
        raise UsageError(
            f"the value of {what} {name} of {who} is not a {found.type}: {reason}. Add --force to send it anyway"
        )


async def check_cleanup(client: Client, workflows: Iterable[str], what: str, terminate: str) -> None:
    """Refuse a cancel that would end runs without their clean-up code, because no daemon has their workflow. `what`:
    the runs; `terminate`: the command that ends them so. Raises `UnknownWorkflow`."""
    infos = await client.workflows()
    for name in workflows:
        info = infos.get(name)
        if info is not None and info.unserved_ms:
            raise UnknownWorkflow(
                f"no daemon has had workflow {name} for {duration(info.unserved_ms)}, while others run: the clean-up "
                f"code of {what} can't run. Start a daemon whose app has it and cancel then, or end without clean-up: "
                f"{terminate}"
            )


async def check_cleanup_of(client: Client, run_id: str) -> None:
    """As `check_cleanup`, of one run. Raises `RunNotFound`, too."""
    header = await _header_of(client, run_id)
    if header.is_open:
        await check_cleanup(client, [header.workflow], f"run {run_id}", f"streamflow terminate {run_id}")


async def _header_of(client: Client, run_id: str) -> Header:
    """Raises `RunNotFound`, which names `restore` if the run is in the archive."""
    try:
        header, _ = await client._header(run_id, 0)
    except RunNotFound as missing:
        raise await client._only_archived(run_id, 0, missing) from None
    return header
