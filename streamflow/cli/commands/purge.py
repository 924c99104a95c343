"""`purge`: move ended runs into the archive before their retention is over: one that is named, or all that match.

Owns: its options. Must not: write or delete anything itself. Called by: the group in `cli`.
"""

from __future__ import annotations

import click

from streamflow.cli.acting import Choice, act, act_in_bulk, acting_options
from streamflow.cli.completing import RUN


@click.command()
@click.argument("run", type=RUN, metavar="[RUN]", required=False)
@acting_options
def purge(run: str | None, choice: Choice) -> int:
    """Move ended runs into the archive now.

    Daemons do that by themselves when a run's retention is over. A run is deleted on the server when the storage has
    confirmed that it has it; `show`, `export`, `replay`, `fork` and `runs --archived` find it there, and
    `streamflow restore` brings it back. Its id is free again. A namespace without an archive is refused:
    `streamflow forget` deletes without a copy. With filters instead of RUN it is for all ended runs that match: their
    number and some of them are shown first, and it asks, unless --yes is given.

    \b
    Examples:
      streamflow purge invoice-17
      streamflow purge --workflow nightly --status completed --until 7d --dry-run
    """
    from streamflow.actions import Purge

    choice.check("purge", (run,) if run else ())
    if run:
        return act(Purge(), run, choice)
    return act_in_bulk(None if choice.resume else Purge(), "purge", choice)
