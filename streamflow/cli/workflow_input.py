"""From JSON to the arguments of a workflow, by the parameters that daemons have registered.

Owns: the rule below, and refusing unknown workflows. Must not: know files or options.
Called by: `enqueue`, for its `--input` and for each line of its `--file`.

    no parameters       no input
    one parameter       the JSON is the argument
    several             an array of arguments, or an object of arguments by name
    unknown (--force)   an array of arguments; anything else is the only argument
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from msgspec import UNSET

from streamflow.client.listing import WorkflowInfo
from streamflow.errors import UnknownWorkflow, UsageError
from streamflow.model.json_schema import checker
from streamflow.model.names import check_name
from streamflow.suggestions import did_you_mean

if TYPE_CHECKING:
    from streamflow.client.client import Client

OPEN_RUNS = 5
"""Open runs that are named of a workflow without a daemon."""


def find_workflow(name: str, known: Mapping[str, WorkflowInfo], force: bool) -> WorkflowInfo | None:
    """The workflow that is registered under the name; with `force`, None if there is none.

    Raises `UnknownWorkflow`.
    """
    check_name("workflow", name)
    if name in known or force:
        return known.get(name)
    if not known:
        raise UnknownWorkflow(
            f"no daemon has registered workflow {name}, or any other workflow: start one with `streamflow daemon --app "
            "flows:app`, or add --force to start the run anyway"
        )
    names = ", ".join(sorted(known))
    raise UnknownWorkflow(
        f"no daemon has registered workflow {name}{did_you_mean(name, known) or '.'} Known workflows: {names}. "
        "Add --force to start the run anyway"
    )


async def arguments_of(client: Client, workflow: str, force: bool) -> Arguments:
    """What makes the arguments of a workflow's runs. Raises `UnknownWorkflow` for one that no daemon has, or has any
    more, unless `force` is given."""
    info = find_workflow(workflow, await client.workflows(), force)
    if not force:
        await _check_served(workflow, info, client)
    return Arguments(workflow, info, force)


async def _check_served(name: str, info: WorkflowInfo | None, client: Client) -> None:
    """Refuse a workflow that only earlier daemons had, and name runs of it that are still open. Raises
    `UnknownWorkflow`."""
    if info is None or not info.unserved_ms:
        return
    from streamflow.screen.style import duration

    found: list[str] = []
    for status in ("running", "stuck", "pending"):
        found += [run.id for run in await client.runs(workflow=name, status=status, limit=OPEN_RUNS)]
    still = f"; open runs of it: {', '.join(found[:OPEN_RUNS])}{', …' * (len(found) > OPEN_RUNS)}" if found else ""
    raise UnknownWorkflow(
        f"no daemon has had workflow {name} for {duration(info.unserved_ms)}, while others run{still}. Start a daemon "
        "whose app has it, or add --force to start the run all the same"
    )


class Arguments:
    """`bind` gives the list of arguments for one run; `input` is decoded JSON, or UNSET when there is none. With
    `force` their types aren't checked."""

    def __init__(self, workflow: str, info: WorkflowInfo | None, force: bool = False) -> None:
        self._workflow = workflow
        self._info = info
        self._names = info.params if info is not None else []
        self._required = _required(info)
        self._checks = [checker(schema) for schema in info.inputs] if info is not None and not force else []

    @property
    def is_reducer(self) -> bool:
        """As far as daemons have said it."""
        return self._info is not None and self._info.kind == "reducer"

    def bind(self, input: Any) -> list[Any]:
        """Raises `UsageError`, also for an argument whose type is known and another one."""
        arguments = self._bound(input)
        for value, name, check in zip(arguments, self._names, self._checks, strict=False):
            if reason := check(value, name):
                raise UsageError(
                    f"the input doesn't fit workflow {self._workflow}: {reason}. Add --force to start the run anyway"
                )
        return arguments

    def _bound(self, input: Any) -> list[Any]:
        names = self._names
        if self._info is None:
            return [] if input is UNSET else cast("list[Any]", input) if isinstance(input, list) else [input]
        if input is UNSET:
            if self._required:
                raise UsageError(f"{self._takes()}, but no input was given: {self._expected()}")
            return []
        if not names:
            if input is None:
                return []
            raise UsageError(f"{self._takes()}: leave it out")
        if len(names) == 1:
            return [input]
        if isinstance(input, list):
            return self._positional(cast("list[Any]", input))
        if isinstance(input, dict):
            return self._by_name(cast("dict[str, Any]", input))
        raise UsageError(f"{self._takes()}: {self._expected()}")

    def option(self) -> tuple[str, str]:
        """The option of `enqueue` to fill in, and what goes into it; both empty if a run needs no input."""
        names = self._names[: self._required]
        if not names:
            return "", ""
        if len(self._names) == 1:
            return " --input '…'", f" (the value of {names[0]!r}, as JSON)"
        return f" --input '[{', '.join('…' for _ in names)}]'", f" ({', '.join(names)}, as JSON)"

    def _positional(self, values: list[Any]) -> list[Any]:
        if self._required <= len(values) <= len(self._names):
            return values
        raise UsageError(f"{self._takes()}, got {len(values)} argument{'s' * (len(values) != 1)}: {self._expected()}")

    def _by_name(self, values: dict[str, Any]) -> list[Any]:
        unknown = [name for name in values if name not in self._names]
        if unknown:
            raise UsageError(
                f"{self._takes()}, got an unknown argument {unknown[0]!r}{did_you_mean(unknown[0], self._names)}"
            )
        given = [name for name in self._names if name in values]
        missing = [name for name in self._names[: self._required] if name not in values]
        # The daemon fills in defaults, and only at the end: every parameter before a given one must be given, too.
        missing = missing or [name for name in self._names[: len(given)] if name not in values]
        if missing:
            raise UsageError(f"{self._takes()}, missing: {', '.join(missing)}")
        return [values[name] for name in given]

    def _takes(self) -> str:
        names = ", ".join(f"[{name}]" if at >= self._required else name for at, name in enumerate(self._names))
        return f"workflow {self._workflow} takes {f'({names})' if names else 'no input'}"

    def _expected(self) -> str:
        if len(self._names) == 1:
            return f"the input must be the value of {self._names[0]!r}, as JSON"
        return f"the input must be an array such as [{', '.join('…' for _ in self._names)}], or an object by name"


def _required(info: WorkflowInfo | None) -> int:
    """The number of arguments without a default. A daemon that is too old to say: all, but none of a reducer's."""
    if info is None or info.kind == "reducer":
        return 0
    return len(info.params) if info.required is None else info.required
