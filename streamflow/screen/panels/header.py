"""The first two lines of the status screen: the namespace with its health, and facts about the server.

Owns: how the sentences of `status/words.py` stand in a line. Must not: check anything itself.
Called by: `layout.py`.
"""

from __future__ import annotations

from rich.text import Text

from streamflow.screen.columns import fit, join
from streamflow.screen.panels.panel import MAX_NAME
from streamflow.screen.sanitize import safe_text
from streamflow.screen.style import BAD, FAINT, MUTED, OK, TITLE, VALUE, WARN, number, plural, size
from streamflow.status.model import NamespaceStatus
from streamflow.status.words import health

_STYLES = {"error": BAD, "warning": WARN, "note": WARN}


def header_lines(status: NamespaceStatus, width: int, problem: str) -> list[Text]:
    """`problem`, if there is one, stands where the health messages do."""
    name = Text.assemble(("streamflow ", TITLE), end="")
    name.append_text(safe_text(status.namespace, VALUE, MAX_NAME))
    sentences = [(_STYLES[sentence.level], sentence.text) for sentence in health(status)]
    messages = [(BAD, problem)] if problem else sentences or [(OK, "healthy")]
    health_line = Text.assemble(("● ", messages[0][0]), end="")
    for position, (style, message) in enumerate(messages):
        health_line.append(" · " if position else "", style=FAINT)
        health_line.append_text(safe_text(message, style))
    available = max(width - name.cell_len - 2, min(width, 30))
    health_width = min(available, health_line.cell_len)
    first = join([fit(name, max(0, width - health_width - 2)), fit(health_line, health_width)])
    return [fit(first, width), fit(_facts(status), width)]


def _facts(status: NamespaceStatus) -> Text:
    facts: list[str] = []
    server = status.server
    if server is not None:
        limit = f" of {size(server.maxmemory)}" if server.maxmemory else ""
        facts.append(f"{server.product} {server.version}".strip())
        if server.servers > 1:
            facts.append(f"cluster of {server.servers}")
        facts.append(f"{size(server.memory)}{limit}")
        facts.append(f"aof {server.aof or 'off'}")
        facts.append(f"{number(server.ops_per_s)} ops/s")
    if starts := sum(daemon.heartbeat.starts for daemon in status.daemons):
        facts.append(f"{plural(starts, 'start')} waiting")
    lag = sum(daemon.heartbeat.unfolded for daemon in status.daemons)
    facts.append(f"views {f'{number(lag)} behind' if lag else 'up to date'}")
    facts.extend(status.warnings)
    return safe_text(" · ".join(facts), MUTED)
