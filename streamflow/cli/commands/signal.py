"""`signal`: send a signal to a run, or to all that match filters.

Owns: its arguments. Must not: know what the value means. Called by: the group in `cli`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from streamflow.cli.acting import Choice, act, act_in_bulk, acting_options
from streamflow.cli.completing import complete_signal
from streamflow.cli.options import checked_id, parse_json
from streamflow.errors import UsageError
from streamflow.text import plural

if TYPE_CHECKING:
    from streamflow.client.client import Client


@click.command()
@click.argument("arguments", nargs=-1, metavar="[RUN] NAME [VALUE_JSON]", shell_complete=complete_signal)
@click.option("--force", is_flag=True, help="Send it even if the workflow declares no such signal, or another type.")
@acting_options
def signal(arguments: tuple[str, ...], force: bool, choice: Choice) -> int:
    """Send a signal to a run.

    A signal that arrives before the run waits for it is kept until then. Without VALUE_JSON its value is null. If the
    run's workflow declares its signals, others are refused, and so are values of another type.

    With filters instead of RUN it is for all open runs that match: their number and some of them are shown first, and
    it asks, unless --yes is given. Each gets the signal once, also if the command is killed and resumed. If a workflow
    among them can't take it, none gets it.

    \b
    Examples:
      streamflow signal invoice-17 approve true
      streamflow signal --workflow invoice --attribute customer=acme approve true
    """
    from streamflow.actions import Signal
    from streamflow.client.door import Door

    words = list(arguments)
    runs = [checked_id(words.pop(0))] if words and (not choice.is_bulk or len(words) > 2) else []
    choice.check("signal", tuple(runs), own=bool(words))
    if choice.resume:
        return act_in_bulk(None, "signal", choice)
    if not words:
        raise UsageError("missing NAME: which signal?")
    if len(words) > 2:
        raise UsageError(f"signal got {plural(len(words) - 2, 'argument')} too many: {' '.join(words[2:])}")
    name = words[0]
    from streamflow.model.names import check_name

    check_name("signal", name)
    value: Any = parse_json(words[1], "VALUE_JSON") if len(words) > 1 else None
    action = Signal.of(name, value)

    async def check(client: Client, run: str) -> None:
        if not force:
            await Door(client).check("signal", run, name, value)

    async def check_workflows(client: Client, workflows: list[str]) -> None:
        door, named = Door(client), choice.filters.get("workflow")
        for workflow in [*workflows, *([named] if named else [])]:  # also if no run of it is chosen
            await door.check_workflow("signal", workflow, name, value)

    if not choice.is_bulk:
        return act(action, runs[0], choice, check)
    return act_in_bulk(action, "signal", choice, None if force else check_workflows)
