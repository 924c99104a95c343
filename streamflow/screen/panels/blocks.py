"""The parts of the status screen: each makes lines of a given width from a `NamespaceStatus`.

Owns: what each part shows and in which order of importance. Must not: arrange them (`layout.py` does), wrap lines, or
put data on the screen that hasn't passed `safe`. Called by: `layout.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from streamflow.screen.columns import Column, fit, join, table
from streamflow.screen.sanitize import safe_text
from streamflow.screen.style import (
    BAD,
    BUSY,
    FAINT,
    LETTERS,
    MUTED,
    OK,
    OWNERS,
    STATUS,
    TITLE,
    VALUE,
    WARN,
    duration,
    number,
    plural,
    size,
    sparkline,
)
from streamflow.status.model import DaemonRow, NamespaceStatus, Shard

MAX_NAME = 128


@dataclass
class Block:
    """Lines with a heading first; `least` rows of them are asked for before others get more than theirs."""

    lines: list[Text]
    least: int = 2

    def cut(self, rows: int, width: int) -> list[Text]:
        if len(self.lines) <= rows:
            return self.lines
        if rows < 4:
            return self.lines[:rows]
        hidden = len(self.lines) - rows + 1
        return [*self.lines[: rows - 1], fit(Text(f"… {hidden:,} more", style=FAINT), width)]


def view(status: NamespaceStatus, name: str) -> dict[str, Any]:
    return status.views.get(name) or {}


# --- header ---------------------------------------------------------------------------------------------------------


def health(status: NamespaceStatus) -> list[tuple[str, str]]:
    """(style, words), the worst first; one friendly word when nothing is wrong."""
    found: list[tuple[str, str]] = []
    if not status.daemons:
        found.append((BAD, "no daemons"))
    elif status.shards_unowned:
        found.append((BAD, f"{plural(status.shards_unowned, 'shard')} without owner"))
    server = status.server
    if server is not None and server.maxmemory and server.memory >= 0.8 * server.maxmemory:
        found.append((BAD, f"memory {100 * server.memory / server.maxmemory:.0f} % full"))
    stuck = view(status, "runs").get("status", {}).get("stuck", 0)
    if stuck > 0:
        found.append((WARN, f"{plural(stuck, 'run')} stuck"))
    if server is not None and server.aof not in ("everysec", "always", "on"):
        found.append((WARN, "AOF off"))
    if unserved := sorted(queue.name for queue in status.queues if queue.waiting and not queue.workers):
        more = f" and {len(unserved) - 1} more" if len(unserved) > 1 else ""
        found.append((WARN, f"no workers for queue {unserved[0]}{more}"))
    draining = sum(daemon.draining for daemon in status.daemons)
    if draining:
        found.append((WARN, f"{draining} draining"))
    quarantined = view(status, "quarantine").get("count", 0)
    if quarantined:
        found.append((WARN, f"{plural(quarantined, 'message')} quarantined"))
    return found or [(OK, "healthy")]


def header(status: NamespaceStatus, width: int, problem: str) -> list[Text]:
    name = Text.assemble(("streamflow ", TITLE), end="")
    name.append_text(safe_text(status.namespace, VALUE, MAX_NAME))
    words = [(BAD, problem)] if problem else health(status)
    health_line = Text.assemble(("● ", words[0][0]), end="")
    for position, (style, word) in enumerate(words):
        health_line.append(" · " if position else "", style=FAINT)
        health_line.append_text(safe_text(word, style))
    room = max(width - name.cell_len - 2, min(width, 30))
    top = join(
        [
            fit(name, max(0, width - min(room, health_line.cell_len) - 2)),
            fit(health_line, min(room, health_line.cell_len)),
        ]
    )
    return [fit(top, width), fit(_facts(status), width)]


def _facts(status: NamespaceStatus) -> Text:
    facts: list[str] = []
    server = status.server
    if server is not None:
        limit = f" of {size(server.maxmemory)}" if server.maxmemory else ""
        facts.append(f"{server.product} {server.version}".strip())
        facts.append(f"{size(server.memory)}{limit}")
        facts.append(f"aof {server.aof or 'off'}")
        facts.append(f"{number(server.ops_per_s)} ops/s")
    lag = sum(daemon.unfolded for daemon in status.daemons)
    facts.append(f"views {f'{number(lag)} behind' if lag else 'up to date'}")
    facts.extend(status.warnings)
    return safe_text(" · ".join(facts), MUTED)


# --- throughput and runs --------------------------------------------------------------------------------------------


def throughput(status: NamespaceStatus, width: int) -> Block:
    rates = view(status, "rates")
    average = rates.get("average", {})
    numbers = {name: number(average.get(name, 0)) for name in ("starts", "completions", "failures", "steps")}
    wide = max(len(text) for text in numbers.values())
    room = min(60, width - 9 - wide - 3)
    lines = [fit(join([Text("THROUGHPUT", style=TITLE), Text("per second, last minute", style=MUTED)]), width)]
    for name, label, style in (
        ("starts", "starts", BUSY),
        ("completions", "done", OK),
        ("failures", "failed", BAD),
        ("steps", "steps", TITLE.removeprefix("bold ")),
    ):
        values = rates.get(name, [])
        line = Text.assemble((f"{label:<7} ", MUTED), end="")
        line.append(f"{numbers[name]:>{wide}}", style=VALUE)
        line.append("/s ", style=MUTED)
        line.append(sparkline(values, room), style=style if any(values[-room:]) else FAINT)
        lines.append(fit(line, width))
    return Block(lines, least=5)


def runs(status: NamespaceStatus, width: int) -> Block:
    counts: dict[str, int] = view(status, "runs").get("status", {})
    shown = {name: counts.get(name, 0) for name in ("running", "stuck", "completed", "failed", "cancelled")}
    numbers = {name: f"{count:,}" for name, count in shown.items()}
    wide = max(len(text) for text in numbers.values())
    top = max(1, *shown.values())
    room = width - 10 - wide - 2
    title = Text.assemble(("RUNS", TITLE), (f"  {sum(shown.values()):,}" if counts else "  none yet", MUTED), end="")
    lines = [fit(title, width)]
    for name, count in shown.items():
        style = STATUS[name] if count else FAINT
        line = Text.assemble((f"{name:<10}", style), end="")
        line.append(f"{numbers[name]:>{wide}}", style=VALUE if count else FAINT)
        if count > 0 and room >= 4:
            line.append("  " + "▇" * max(1, round(room * count / top)), style=style)
        lines.append(fit(line, width))
    return Block(lines, least=5)


# --- daemons and shards ---------------------------------------------------------------------------------------------


def ordered(status: NamespaceStatus) -> list[DaemonRow]:
    """The daemons in the order in which letters and colours are dealt out."""
    return sorted(status.daemons, key=lambda daemon: (daemon.name, daemon.id))


def _letter(position: int) -> str:
    return LETTERS[position] if position < len(LETTERS) else "+"


def daemons(status: NamespaceStatus, width: int) -> Block:
    if not status.daemons:
        hint = Text("none: start one with streamflow daemon --app flows:app", style=MUTED)
        return Block([fit(Text("DAEMONS", style=TITLE), width), fit(hint, width)])
    draining = any(daemon.draining for daemon in status.daemons)
    columns = [
        Column("DAEMONS", right=False, flex=True, least=24 if draining else 12, most=MAX_NAME),
        Column("shards", keep=2),
        Column("running", keep=3),
        Column("waiting", keep=5),
        Column("inbox", keep=4),
        Column("lag", keep=3),
        Column("cached", keep=9),
        Column("steps/s", keep=4),
        Column("cpu", keep=6),
        Column("memory", keep=7),
        Column("beat", keep=8),
    ]
    rows: list[list[Text]] = []
    for position, daemon in enumerate(ordered(status)):
        colour = OWNERS[position % len(OWNERS)]
        name = Text.assemble((f"{_letter(position)} ", f"bold {colour}"), end="")
        name.append_text(safe_text(daemon.name, limit=MAX_NAME))
        if daemon.draining:
            name.append(" draining", style=WARN)
        late = daemon.beat_age is not None and daemon.beat_age > 2
        rows.append(
            [
                name,
                _count(daemon.shards),
                _count(daemon.running),
                _count(daemon.waiting),
                _count(daemon.inbox, WARN if daemon.inbox > 10_000 else ""),
                _count(daemon.unfolded, WARN if daemon.unfolded > 10_000 else ""),
                _count(daemon.live),
                Text("–", style=FAINT) if daemon.steps_per_s is None else _count(daemon.steps_per_s),
                Text("–", style=FAINT) if daemon.cpu_percent is None else Text(f"{daemon.cpu_percent:.0f} %"),
                Text(size(daemon.rss), style=MUTED),
                Text("–", style=FAINT)
                if daemon.beat_age is None
                else Text(duration(daemon.beat_age * 1000), style=BAD if late else MUTED),
            ]
        )
    return Block(table(f"DAEMONS {len(rows)}", columns, rows, width), least=3)


def _count(value: float, style: str = "") -> Text:
    return Text(number(value), style=style if value else FAINT)


def shards(status: NamespaceStatus, width: int, rows: int) -> Block:
    """The map of owners: a cell a shard, or a cell for several neighbours when there are more shards than cells."""
    total = status.shards_total
    title = Text.assemble(("SHARDS", TITLE), end="")
    if not status.shards:
        facts = f"  {total:,}, {status.shards_unowned:,} without owner" if total else "  no namespace yet"
        title.append(facts, style=MUTED)
        return Block([fit(title, width)], least=1)
    title.append(f" {total:,}", style=TITLE)
    room = max(1, width - title.cell_len - 2 if rows == 1 else width)
    group = -(-len(status.shards) // (room * rows))
    if rows > 1:
        title.append(f"  {group} a cell" if group > 1 else "", style=MUTED)
        behind = max(status.shards, key=lambda shard: shard.lag + shard.inbox)
        if behind.lag + behind.inbox:
            words = f"  most behind: {behind.number} (inbox {number(behind.inbox)}, lag {number(behind.lag)})"
            title.append(words, style=MUTED)
    letters = {daemon.id: position for position, daemon in enumerate(ordered(status))}
    cells = [_cell(status.shards[at : at + group], letters) for at in range(0, len(status.shards), group)]
    lines = [join(cells[at : at + room], gap=0) for at in range(0, len(cells), room)]
    if rows == 1:
        return Block([fit(join([title, *lines]), width)], least=1)
    return Block([fit(title, width), *(fit(line, width) for line in lines)], least=2)


def _cell(group: Sequence[Shard], letters: dict[str, int]) -> Text:
    if any(shard.owner not in letters for shard in group):
        return Text("·", style=f"bold white on {BAD}")
    owner, _ = Counter(shard.owner for shard in group).most_common(1)[0]
    position = letters[owner]
    return Text(_letter(position), style=f"#1c2128 on {OWNERS[position % len(OWNERS)]}")


# --- by name --------------------------------------------------------------------------------------------------------


def workflows(status: NamespaceStatus, width: int) -> Block:
    counts = view(status, "runs").get("workflows", {})
    times = view(status, "run_durations")
    columns = [
        Column("WORKFLOWS", right=False, flex=True, least=12, most=MAX_NAME),
        Column("running", keep=1),
        Column("stuck", keep=6),
        Column("done", keep=2),
        Column("failed", keep=3),
        Column("cancelled", keep=7),
        Column("p50", keep=4),
        Column("p95", keep=5),
        Column("p99", keep=8),
    ]
    rows: list[list[Text]] = []
    for name in sorted(counts, key=lambda name: (-counts[name]["running"], -sum(counts[name].values()), name)):
        mine, time = counts[name], times.get(name, {})
        rows.append(
            [
                safe_text(name, limit=MAX_NAME),
                _count(mine["running"]),
                _count(mine["stuck"], WARN),
                _count(mine["completed"]),
                _count(mine["failed"], BAD),
                _count(mine["cancelled"]),
                *(_time(time, share) for share in ("p50", "p95", "p99")),
            ]
        )
    return _named("WORKFLOWS", columns, rows, width, "nothing has run yet: see streamflow enqueue --help")


def steps(status: NamespaceStatus, width: int) -> Block:
    times = view(status, "step_durations")
    columns = [
        Column("STEPS", right=False, flex=True, least=12, most=MAX_NAME),
        Column("count", keep=1),
        Column("p50", keep=2),
        Column("p95", keep=4),
        Column("p99", keep=3),
        Column("max", keep=7),
        Column("retries", keep=6),
        Column("failed", keep=5),
    ]
    rows = [
        [
            safe_text(name, limit=MAX_NAME),
            _count(time["count"]),
            *(_time(time, share) for share in ("p50", "p95", "p99", "max")),
            _count(time["retries"], WARN),
            _count(time["failures"], BAD),
        ]
        for name, time in sorted(times.items(), key=lambda item: (-item[1]["count"], item[0]))
    ]
    return _named("STEPS", columns, rows, width, "no step has run yet")


def tenants(status: NamespaceStatus, width: int) -> Block | None:
    """Only where there is more than one."""
    counts = view(status, "runs").get("tenants", {})
    if len(counts) < 2:
        return None
    columns = [
        Column("TENANTS", right=False, flex=True, least=12, most=MAX_NAME),
        Column("running", keep=1),
        Column("done", keep=2),
        Column("failed", keep=3),
    ]
    rows = [
        [
            safe_text(name, limit=MAX_NAME),
            _count(mine["running"]),
            _count(mine["completed"]),
            _count(mine["failed"], BAD),
        ]
        for name, mine in counts.items()
    ]
    return Block(table(f"TENANTS {len(rows):,}", columns, rows, width))


def _time(times: dict[str, Any], share: str) -> Text:
    return Text(duration(times[share])) if times.get("count") else Text("–", style=FAINT)


def _named(title: str, columns: Sequence[Column], rows: Sequence[Sequence[Text]], width: int, nothing: str) -> Block:
    if not rows:
        return Block([fit(Text(title, style=TITLE), width), fit(Text(nothing, style=MUTED), width)])
    return Block(table(f"{title} {len(rows)}", columns, rows, width), least=3)


# --- single runs ----------------------------------------------------------------------------------------------------


def failures(status: NamespaceStatus, width: int) -> Block:
    """Failed runs, and what got stuck or was quarantined, newest first."""
    failed, stuck, quarantined = (view(status, name).get("latest", []) for name in ("failures", "stuck", "quarantine"))
    found: list[tuple[int, str, str, str, str]] = [
        *((row["at"], BAD, row["run_id"], row["kind"], row["message"]) for row in failed),
        *((row["at"], WARN, row["run_id"], "stuck", row["reason"]) for row in stuck),
        *((row["at"], WARN, f"message {row['message']}", "quarantined", row["reason"]) for row in quarantined),
    ]
    found.sort(key=lambda row: row[0], reverse=True)
    title = "LATEST FAILURES"
    if not found:
        return Block([fit(join([Text(title, style=TITLE), Text("none", style=MUTED)]), width)], least=1)
    columns = [
        Column(title, right=False, most=max(15, width // 4), flex=True, least=15),
        Column("", right=False, flex=True, least=20, most=600),
        Column("ago", keep=1),
    ]
    rows: list[list[Text]] = []
    for at, style, where, kind, message in found:
        what = Text.assemble(safe_text(kind, style, 60), " ", safe_text(message, limit=500), end="")
        rows.append([safe_text(where, limit=256), what, Text(duration(max(0, status.as_of - at)), style=MUTED)])
    return Block(table(title, columns, rows, width), least=2)


def oldest(status: NamespaceStatus, width: int) -> Block:
    title = "OLDEST OPEN RUNS"
    if not status.oldest:
        return Block([fit(join([Text(title, style=TITLE), Text("none", style=MUTED)]), width)], least=1)
    columns = [
        Column(title, right=False, flex=True, least=16, most=256),
        Column("workflow", right=False, keep=2, most=max(8, width // 3)),
        Column("open for", keep=1),
    ]
    rows = [
        [
            safe_text(run_id, limit=256),
            safe_text(workflow, MUTED, MAX_NAME),
            Text(duration(max(0, status.as_of - started))),
        ]
        for run_id, workflow, started in status.oldest
    ]
    return Block(table(title, columns, rows, width), least=2)
