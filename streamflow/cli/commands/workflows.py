"""`workflows`: what daemons have registered, and what one of them takes.

Owns: its arguments and output. Must not: need the code of an app. Called by: the group in `cli`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from streamflow.cli.completing import WORKFLOW
from streamflow.cli.connection import open_client
from streamflow.cli.event_loop import run_async
from streamflow.cli.options import json_option, server_options
from streamflow.cli.output import make_console, print_drawn, print_json
from streamflow.errors import UnknownWorkflow
from streamflow.suggestions import did_you_mean

if TYPE_CHECKING:
    from streamflow.client.listing import MessageInfo, WorkflowInfo


@click.command()
@click.argument("name", type=WORKFLOW, metavar="[NAME]", required=False)
@server_options
@json_option
def workflows(name: str | None, redis: str | None, namespace: str | None, as_json: bool) -> None:
    """List the workflows that daemons have registered.

    With NAME, shows one of them: its parameters, and the signals, questions and published values that it declares,
    with their types.

    \b
    Example:
      streamflow workflows order
    """

    async def read() -> dict[str, WorkflowInfo]:
        async with open_client(redis, namespace) as client:
            await client.read_namespace()
            return await client.workflows()

    known = run_async(read)
    if name is None:
        _list(known, as_json)
        return
    info = known.get(name)
    if info is None:
        raise UnknownWorkflow(f"no daemon has registered workflow {name}{did_you_mean(name, known)}")
    if as_json:
        print_json({"name": name, **_plain(info)})
        return
    _show(name, info)


def _plain(info: WorkflowInfo) -> dict[str, object]:
    import msgspec

    found: dict[str, object] = msgspec.to_builtins(info)
    return {"kind": "workflow", "params": [], "doc": "", "required": None, **found}


def _list(known: Mapping[str, WorkflowInfo], as_json: bool) -> None:
    if as_json:
        print_json([{"name": name, **_plain(info)} for name, info in known.items()])
        return
    if not known:
        click.echo("no daemon has registered a workflow", err=True)
        return
    from rich.table import Table

    from streamflow.screen.sanitize import safe

    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("WORKFLOW", "TAKES", ""):
        table.add_column(heading, no_wrap=not heading)
    for name, info in known.items():
        table.add_row(safe(name), safe(signature(info)), _unserved(info) or safe(info.doc))
    print_drawn(make_console(), table)


def signature(info: WorkflowInfo) -> str:
    """Its parameters, those with a default in brackets."""
    required = len(info.params) if info.required is None else info.required
    return ", ".join(name if at < required else f"[{name}]" for at, name in enumerate(info.params))


def _show(name: str, info: WorkflowInfo) -> None:
    from streamflow.screen.sanitize import safe

    click.echo(safe(f"{info.kind} {name}({signature(info)})"))
    for line in (info.doc, _unserved(info)):
        if line:
            click.echo(f"  {safe(line)}")
    for heading, known in (("signals", info.signals), ("questions", info.questions), ("published", info.published)):
        for line in _messages(heading, known):
            click.echo(safe(line))


def _unserved(info: WorkflowInfo) -> str:
    from streamflow.screen.style import duration

    return f"no daemon has had it for {duration(info.unserved_ms)}" if info.unserved_ms else ""


def _messages(heading: str, known: Mapping[str, MessageInfo] | None) -> list[str]:
    if known is None:
        return [f"{heading}: not declared"]
    if not known:
        return [f"{heading}: none"]
    width = max(map(len, known))
    lines = [f"  {name:{width}}  {one.type}" + f" -> {one.answer}" * bool(one.answer) for name, one in known.items()]
    return [f"{heading}:", *lines]
