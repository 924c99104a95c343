"""What `demo --incidents` prints: what is wrong, and the commands to try.

Owns: the wording around the incidents. Must not: know how one is made. Called by: `run.py`.
"""

from __future__ import annotations

import shlex

import msgspec
from rich.console import Console
from rich.text import Text

from streamflow.demo.incidents.twelve import DEPLOY, Incident
from streamflow.screen.sanitize import safe
from streamflow.screen.style import MUTED, TITLE


class Facts(msgspec.Struct, kw_only=True):
    """What `--json` prints, once everything is wrong."""

    redis: str
    namespace: str
    folder: str
    """Where the app is that the daemons have, and their logs."""
    app: str
    runs: int
    took_s: float
    server_bytes: int
    """The memory that the server uses."""
    processes: list[int]
    """The pids of daemons and workers."""
    incidents: list[Incident]


def print_incidents(facts: Facts, console: Console) -> None:
    megabytes = facts.server_bytes / 1e6
    console.print()
    made = f"{facts.runs:,} runs, made in {facts.took_s:.0f} s; the server has {megabytes:,.0f} MB"
    console.print(Text.assemble(("Twelve things are wrong. ", TITLE), (made, MUTED)))
    console.print("In another terminal:\n")
    for name, value in (("STREAMFLOW_REDIS", facts.redis), ("STREAMFLOW_NAMESPACE", facts.namespace)):
        console.print(Text(f"  export {name}={shlex.quote(value)}"), soft_wrap=True)
    console.print(Text("  streamflow status --watch"))
    for incident in facts.incidents:
        console.print()
        title = (f"{incident.number:2}  {incident.title}: ", TITLE)
        console.print(Text.assemble(title, safe(incident.wrong, 500)))
        for command in incident.commands:
            console.print(_shown(command), soft_wrap=True)
    console.print(Text(f"\nLogs and the app are in {safe(facts.folder)}. Ctrl-C ends the demo, and deletes all of it."))


def _shown(command: str) -> Text:
    if command == DEPLOY:
        return Text(f"      {DEPLOY}").append("   and Enter, in this terminal: deploys release 1.8.3", style=MUTED)
    return Text(f"      streamflow {safe(command, 500)}")
