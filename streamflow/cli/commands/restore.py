"""`restore`: put runs back from the archive onto the server: one that is named, or all that match filters.

Owns: its options. Must not: read or write anything itself. Called by: the group in `cli`.
"""

from __future__ import annotations

import click

from streamflow.cli.acting import Choice, act, act_in_bulk, acting_options
from streamflow.cli.completing import RUN


@click.command()
@click.argument("run", type=RUN, metavar="[RUN]", required=False)
@acting_options
def restore(run: str | None, choice: Choice) -> int:
    """Put runs back from the archive.

    Then they can be retried, and are listed as any ended run; their retention begins again. They stay in the archive,
    too. RUN is a whole id; of several runs that had it the last one is put back. It is refused if another run has the
    id by now. With filters instead of RUN it is for all archived runs that match: their number and some of them are
    shown first, and it asks, unless --yes is given.

    \b
    Examples:
      streamflow restore invoice-17
      streamflow restore --workflow invoice --status failed --since 2026-11-01
    """
    from streamflow.actions import Restore

    choice.check("restore", (run,) if run else ())
    if run:
        return act(Restore(), run, choice)
    return act_in_bulk(None if choice.resume else Restore(), "restore", choice)
