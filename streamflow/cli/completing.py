"""What the shell completes that only the namespace knows: runs, workflows, queues, and what a run's workflow takes.

Owns: these types of arguments and options. Must not: print or raise while the shell waits, whatever is wrong: nothing
is completed then. Called by: commands, as `type=` of what they take.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Literal

import click

from streamflow.model.names import check_run_id

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from streamflow.client.client import Client
    from streamflow.client.listing import MessageInfo, WorkflowInfo

    Found = list[tuple[str, str]]
    """What may stand there, and what a shell can show beside it."""
    TextType = click.ParamType[str]
else:
    TextType = click.ParamType  # no generic class before click 8.4

SECONDS = 1.0
"""How long the namespace may take to answer: somebody waits at a prompt."""
MAX_RUNS = 20
"""Runs that are offered when nothing of an id is typed: the newest."""

Kind = Literal["signals", "questions", "published"]


class RunType(TextType):
    """A run's id, or the beginning of one; checked before a server is asked."""

    name = "run"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return check_run_id(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return _ask(ctx, lambda client: _runs(client, incomplete))


class WorkflowType(TextType):
    """The name of a workflow; whether it is registered is checked where that matters."""

    name = "workflow"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return _ask(ctx, lambda client: _workflows(client, incomplete))


class QueueType(TextType):
    """The name of a queue, which may be new."""

    name = "queue"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return _ask(ctx, lambda client: _queues(client, incomplete))


class GroupType(TextType):
    """The name of a group of subscribers."""

    name = "group"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return _ask(ctx, lambda client: _groups(client, incomplete))


class MessageType(TextType):
    """The name of something that a workflow declares: that of the run which the command's argument `run` names."""

    def __init__(self, kind: Kind) -> None:
        self.name = kind
        self._kind: Kind = kind

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        run = ctx.params.get("run")
        return _ask(ctx, lambda client: _messages(client, self._kind, run, None, incomplete)) if run else []


RUN, WORKFLOW, QUEUE, GROUP = RunType(), WorkflowType(), QueueType(), GroupType()


def complete_signal(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The words of `signal`: a run unless filters choose the runs, and then what its workflow takes."""
    words: tuple[str, ...] = ctx.params.get("arguments") or ()
    workflow = ctx.params.get("workflow")
    if workflow and not words:
        return _ask(ctx, lambda client: _messages(client, "signals", None, workflow, incomplete))
    if not words:
        return RUN.shell_complete(ctx, _, incomplete)
    if len(words) == 1 and not workflow:
        return _ask(ctx, lambda client: _messages(client, "signals", words[0], None, incomplete))
    return []


def _ask(ctx: click.Context, read: Callable[[Client], Awaitable[Found]]) -> list[CompletionItem]:
    """What is read from the namespace that the command line chooses so far; nothing if it doesn't answer in time."""
    import anyio
    from click.shell_completion import CompletionItem

    from streamflow.cli.event_loop import run_async
    from streamflow.client.client import connect

    async def answered() -> list[CompletionItem]:
        with anyio.move_on_after(SECONDS):
            async with connect(ctx.params.get("redis"), namespace=ctx.params.get("namespace")) as client:
                return [CompletionItem(value, help=text or None) for value, text in await read(client)]
        return []

    try:
        return run_async(answered, screen=True)
    except Exception:  # a prompt has no place for it: the command itself says what is wrong
        return []


async def _runs(client: Client, beginning: str) -> Found:
    if beginning:
        return [(run, "") for run in (await client.find(beginning)).ids]
    runs = await client.runs(limit=MAX_RUNS, waits=False)
    return [(run.id, f"{run.workflow}, {run.status}") for run in runs]


async def _workflows(client: Client, beginning: str) -> Found:
    known = await client.workflows()
    return [(name, known[name].doc) for name in sorted(known) if name.startswith(beginning)]


async def _queues(client: Client, beginning: str) -> Found:
    return [(name, "") for name in await client.queues() if name.startswith(beginning)]


async def _groups(client: Client, beginning: str) -> Found:
    return [(group.name, "") for group in await client.groups() if group.name.startswith(beginning)]


async def _messages(client: Client, kind: Kind, run: str | None, workflow: str | None, beginning: str) -> Found:
    if run is not None:
        (found,) = (await client.find(run)).ids  # else nothing is completed
        workflow = (await client.run(found).describe(waits=False)).workflow
    info = (await client.workflows()).get(workflow or "")
    declared = {} if info is None else _declared(info)[kind] or {}
    return [(name, declared[name].type) for name in sorted(declared) if name.startswith(beginning)]


def _declared(info: WorkflowInfo) -> dict[Kind, dict[str, MessageInfo] | None]:
    return {"signals": info.signals, "questions": info.questions, "published": info.published}
