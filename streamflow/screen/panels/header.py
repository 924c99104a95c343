"""The first two lines of the status screen: the namespace with its health, and facts about the server.

Owns: what counts as a problem, and how problems are ranked. Must not: check anything that isn't in the status.
Called by: `layout.py`.
"""

from __future__ import annotations

from rich.text import Text

from streamflow.screen.columns import fit, join
from streamflow.screen.panels.panel import MAX_NAME
from streamflow.screen.sanitize import safe_text
from streamflow.screen.style import BAD, FAINT, MUTED, OK, TITLE, VALUE, WARN, number, plural, size
from streamflow.status.model import NamespaceStatus

QUARANTINE_MS = 24 * 3600 * 1000
"""For how long a quarantined message is a problem here, where it isn't known whether it is still there."""


def header_lines(status: NamespaceStatus, width: int, problem: str) -> list[Text]:
    """`problem`, if there is one, stands where the health messages do."""
    name = Text.assemble(("streamflow ", TITLE), end="")
    name.append_text(safe_text(status.namespace, VALUE, MAX_NAME))
    messages = [(BAD, problem)] if problem else health(status)
    health_line = Text.assemble(("● ", messages[0][0]), end="")
    for position, (style, message) in enumerate(messages):
        health_line.append(" · " if position else "", style=FAINT)
        health_line.append_text(safe_text(message, style))
    available = max(width - name.cell_len - 2, min(width, 30))
    health_width = min(available, health_line.cell_len)
    first = join([fit(name, max(0, width - health_width - 2)), fit(health_line, health_width)])
    return [fit(first, width), fit(_facts(status), width)]


def health(status: NamespaceStatus) -> list[tuple[str, str]]:
    """(style, message), the worst first; `healthy` when there is no problem."""
    problems: list[tuple[str, str]] = []
    if not status.daemons:
        problems.append((BAD, "no daemons"))
    elif status.shards_unowned:
        problems.append((BAD, f"{plural(status.shards_unowned, 'shard')} without owner"))
    beats = [daemon.heartbeat for daemon in status.daemons]
    if stopped := sum(max(beat.stopped, len(beat.broken)) for beat in beats):
        first = next((subject for beat in beats for subject in beat.broken), "")
        problems.append((BAD, f"{first if stopped == 1 else plural(stopped, 'shard')} stopped"))
    server = status.server
    if server is not None and server.away:
        problems.append((BAD, f"{server.away} of {server.servers} servers away"))
    if server is not None and server.fullest >= 0.8:
        whose = "" if server.servers == 1 else " of a server"
        problems.append((BAD, f"memory{whose} {100 * server.fullest:.0f} % full"))
    if lost := sum(beat.lost for beat in beats):
        problems.append((BAD, f"{plural(lost, 'run')} lost or set back by the server"))
    if failing := sorted({loop for beat in beats for loop in beat.failing}):
        more = f" and {len(failing) - 1} more" if len(failing) > 1 else ""
        problems.append((BAD, f"loop {failing[0]}{more} failing"))
    stuck = status.view("runs").get("status", {}).get("stuck", 0)
    if stuck > 0:
        problems.append((WARN, f"{plural(stuck, 'run')} stuck"))
    if server is not None and server.aof not in ("everysec", "always", "on"):
        problems.append((WARN, "AOF off"))
    if unserved := sorted(queue.name for queue in status.queues if queue.waiting and not queue.workers):
        more = f" and {len(unserved) - 1} more" if len(unserved) > 1 else ""
        problems.append((WARN, f"no workers for queue {unserved[0]}{more}"))
    if impaired := sorted({subject for beat in (*beats, *status.workers) for subject in beat.impaired}):
        more = f" and {len(impaired) - 1} more" if len(impaired) > 1 else ""
        problems.append((WARN, f"{impaired[0]}{more} impaired"))
    if hung := sum(beat.hung for beat in beats):
        problems.append((WARN, f"{plural(hung, 'thread')} hung"))
    draining = sum(beat.draining for beat in beats)
    if draining:
        problems.append((WARN, f"{draining} draining"))
    if quarantined := _quarantined(status):
        problems.append((WARN, f"{plural(quarantined, 'message')} quarantined"))
    return problems or [(OK, "healthy")]


def _quarantined(status: NamespaceStatus) -> int:
    if status.quarantine is not None:
        return status.quarantine.count
    view = status.view("quarantine")
    latest = view.get("latest", [])
    return view.get("count", 0) if latest and latest[0]["at"] > status.as_of - QUARANTINE_MS else 0


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
