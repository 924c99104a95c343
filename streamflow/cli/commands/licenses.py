"""`licenses`: the licenses of everything that is installed with streamflow.

Owns: its options and its two forms of text. Must not: know where licenses are found (installed.py does).
Called by: the group in `cli`.
"""

from __future__ import annotations

import click
import msgspec

from streamflow.cli.options import json_option
from streamflow.cli.output import print_json


@click.command()
@click.option("--full", is_flag=True, help="Print the text of each license, too.")
@json_option
def licenses(full: bool, as_json: bool) -> None:
    """List the licenses of everything that is installed with streamflow.

    In the single binary also those of Python, of the server, and of the libraries that these need.

    \b
    Example:
      streamflow licenses --full > LICENSES.txt
    """
    from streamflow.cli.installed import components
    from streamflow.screen.sanitize import safe

    found = components()
    if as_json:
        rows = [msgspec.to_builtins(component) for component in found]
        print_json(rows if full else [{name: row[name] for name in ("name", "version", "license")} for row in rows])
        return
    names, versions = (max(len(getattr(row, field)) for row in found) for field in ("name", "version"))
    for component in found:
        line = f"{component.name:{names}}  {component.version:{versions}}  {component.license}"
        click.echo(safe(line.rstrip()))
    for component in found if full else ():
        click.echo(safe(f"\n{'=' * 100}\n{component.name} {component.version}: {component.license}\n{'=' * 100}\n"))
        for text in component.texts or ["The package has no text of it."]:
            click.echo("\n".join(safe(row) for row in text.splitlines()))
