"""From JSON to the arguments of a workflow, by the parameters that daemons have registered.

Owns: the rule below, and refusing workflows that nobody knows. Must not: know files or options.
Called by: `enqueue`, for its `--input` and for each line of its `--file`.

    no parameters       no input
    one parameter       the JSON is the argument
    several             an array of arguments, or an object of arguments by name
    unknown (--force)   an array of arguments; anything else is the only argument
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from msgspec import UNSET

from streamflow.cli import closest
from streamflow.client.listing import WorkflowInfo
from streamflow.errors import UnknownWorkflow, UsageError
from streamflow.model.names import check_name


def find_workflow(name: str, known: Mapping[str, WorkflowInfo], force: bool) -> WorkflowInfo | None:
    """What is registered under the name; None when nobody knows it and `force` insists. Raises `UnknownWorkflow`."""
    check_name("workflow", name)
    if name in known or force:
        return known.get(name)
    if not known:
        raise UnknownWorkflow(
            f"no daemon has registered workflow {name}, nor any other: start one with streamflow daemon --app "
            "flows:app, or insist with --force"
        )
    names = ", ".join(sorted(known))
    raise UnknownWorkflow(
        f"no daemon has registered workflow {name}{closest(name, known) or '.'} Known: {names}. Insist with --force"
    )


class Arguments:
    """`bind` makes the list of arguments for one run; `input` is decoded JSON, or UNSET when there is none."""

    def __init__(self, workflow: str, info: WorkflowInfo | None) -> None:
        self._workflow = workflow
        self._info = info
        self._names = info.params if info is not None else []
        self._required = _required(info)

    def bind(self, input: Any) -> list[Any]:
        """Raises `UsageError`."""
        names = self._names
        if self._info is None:
            return [] if input is UNSET else cast("list[Any]", input) if isinstance(input, list) else [input]
        if input is UNSET:
            if self._required:
                raise UsageError(f"{self._takes()}, and there is no input{self._hint()}")
            return []
        if not names:
            if input is None:
                return []
            raise UsageError(f"{self._takes()}: leave the input out")
        if len(names) == 1:
            return [input]
        if isinstance(input, list):
            return self._positional(cast("list[Any]", input))
        if isinstance(input, dict):
            return self._by_name(cast("dict[str, Any]", input))
        raise UsageError(f"{self._takes()}: give an array, or an object by name{self._hint()}")

    def _positional(self, values: list[Any]) -> list[Any]:
        if self._required <= len(values) <= len(self._names):
            return values
        raise UsageError(f"{self._takes()}, not {len(values)} arguments{self._hint()}")

    def _by_name(self, values: dict[str, Any]) -> list[Any]:
        unknown = [name for name in values if name not in self._names]
        if unknown:
            raise UsageError(f"{self._takes()}, nothing named {unknown[0]!r}{closest(unknown[0], self._names)}")
        given = [name for name in self._names if name in values]
        missing = [name for name in self._names[: self._required] if name not in values]
        # Defaults are the daemon's to fill in, from the end: what lies before a given argument must be given.
        missing = missing or [name for name in self._names[: len(given)] if name not in values]
        if missing:
            raise UsageError(f"{self._takes()}: {', '.join(missing)} is missing{self._hint()}")
        return [values[name] for name in given]

    def _takes(self) -> str:
        names = ", ".join(f"[{name}]" if at >= self._required else name for at, name in enumerate(self._names))
        return f"workflow {self._workflow} takes {f'({names})' if names else 'no input'}"

    def _hint(self) -> str:
        if len(self._names) == 1:
            return f" (--input JSON is {self._names[0]})"
        return f" (such as --input '[{', '.join('…' for _ in self._names)}]')"


def _required(info: WorkflowInfo | None) -> int:
    """How many arguments have no default. Daemons of before that was registered: all but a reducer's."""
    if info is None or info.kind == "reducer":
        return 0
    return len(info.params) if info.required is None else info.required
