"""What is said where a filter names a workflow that nobody knows, and so nothing was found.

Owns: these words. Must not: refuse it, since runs of any name may be started. Called by: `runs`, `tail`,
actions in bulk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from streamflow.suggestions import did_you_mean

if TYPE_CHECKING:
    from streamflow.client.client import Client


async def warn_of_unknown_workflow(client: Client, name: str | None) -> None:
    """On stderr, with those that exist; nothing without a name, and for one that a daemon has, or once had."""
    if not name or name in (known := await client.workflows()):
        return
    from streamflow.screen.sanitize import safe

    names = ", ".join(sorted(known)) or "none"
    text = f"no daemon has registered workflow {name}{did_you_mean(name, known) or '.'} Known workflows: {names}"
    click.echo(safe(text, 2000), err=True)
