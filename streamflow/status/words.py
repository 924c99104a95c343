"""What is wrong with a namespace, in words: one sentence for each kind of problem, the worst first.

Owns: what counts as a problem, how problems are ranked, which of them need a person, and the command that shows more of
each. Must not: read anything or look at a clock; what isn't in the status isn't known here. Called by: the header of
the screen, `status --check`, `status --json`.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import msgspec

from streamflow.settings import Settings
from streamflow.status.model import NamespaceStatus, Queue, UnservedWorkflow
from streamflow.text import duration, plural, size

QUARANTINE_MS = 24 * 3600 * 1000
"""For how long a quarantined message is a problem here, where it isn't known whether it is still there."""

LOST_MS = 24 * 3600 * 1000
"""For how long it is a problem that a group of subscribers has lost events."""
UNREAD_MS = 600_000
"""For how long an event waits for a group without consumers until somebody should start one, or remove the group."""
BLOCKED_MS = 500.0
"""Ms for which a line must have blocked a loop within the last minutes to need a person."""
MOVES = 3
"""How often the shards of a daemon must have come to it on the average: other daemons that start or leave in a rolling
deploy move each about once."""
STORM = 100
"""Retries of a step for one cause within the window of the view, of which none has succeeded, that need a person."""

Level = Literal["error", "warning", "note"]
"""`error`: runs don't go on, or may be lost. `warning`: something waits for a person. `note`: it is so, and needs
nobody."""
_LEVELS: tuple[Level, ...] = ("error", "warning", "note")


class Sentence(msgspec.Struct, frozen=True):
    """One thing that is wrong. `code` stays the same, whatever the `text` says; `command` shows more of it, or mends
    it, and may be empty."""

    level: Level
    code: str
    text: str
    command: str = ""


def health(status: NamespaceStatus) -> list[Sentence]:
    """The worst first; empty when nothing is wrong."""
    found = _Sentences(status.namespace)
    if not status.daemons:
        found.add("error", "no_daemons", "no daemons", "streamflow daemon --app APP")
    elif status.shards_unowned:
        text = f"{plural(status.shards_unowned, 'shard')} without owner"
        found.add("error", "shards_unowned", text, "streamflow status --shards")
    beats = [daemon.heartbeat for daemon in status.daemons]
    if stopped := sum(max(beat.stopped, len(beat.broken)) for beat in beats):
        first = next((subject for beat in beats for subject in beat.broken), "")
        text = f"{first if stopped == 1 and first else plural(stopped, 'shard')} stopped"
        found.add("error", "shards_stopped", text, "streamflow status")
    server = status.server
    if server is not None and server.away:
        found.add(
            "error", "servers_away", f"{server.away} of {plural(server.servers, 'server')} away", "streamflow check"
        )
    if server is not None and server.fullest >= 0.8:
        whose = "" if server.servers == 1 else " of a server"
        text = f"memory{whose} {100 * server.fullest:.0f} % full{_largest(status.view('sizes'))}"
        found.add("error", "memory", text, "streamflow status --json" if status.view("sizes") else "")
    if lost := sum(beat.lost for beat in beats):
        found.add("error", "lost_writes", f"{plural(lost, 'run')} lost or set back by the server")
    if failing := _first_of(loop for beat in beats for loop in beat.failing):
        found.add("error", "loops_failing", f"loop {failing} failing", "streamflow status --json")
    stuck = status.view("runs").get("status", {}).get("stuck", 0)
    if stuck > 0:
        found.add("warning", "runs_stuck", f"{plural(stuck, 'run')} stuck", "streamflow runs --status stuck")
    if ill := _blocked(status):
        found.add("warning", "loop_blocked", *ill)
    if moving := _moving(status):
        found.add("warning", "shards_move", *moving)
    if storms := [row for row in status.view("retries").get("retries", []) if _is_storm(row)]:
        found.add("warning", "retries_fail", *_storm(storms, status.view("retries")["minutes"]))
    if status.silent:
        found.add("warning", "steps_silent", *_silent(status))
    if status.storage_waits:
        found.add("warning", "storage_waits", *_storage_waits(status))
    if status.unserved:
        found.add("warning", "workflow_unserved", *_unserved(status.unserved))
    paused_runs = status.view("runs").get("status", {}).get("paused", 0)
    if status.paused:
        found.add("note", "workflow_paused", *_paused_workflows(status))
    elif paused_runs > 0:
        found.add("note", "runs_paused", f"{plural(paused_runs, 'run')} paused", "streamflow runs --status paused")
    if server is not None and server.aof not in ("everysec", "always", "on"):
        found.add("note", "aof_off", "AOF off", "streamflow check")
    unserved = [queue.name for queue in status.queues if queue.waiting and not queue.workers]
    if named := _first_of(unserved):
        command = f"streamflow worker --app APP --queue {shlex.quote(min(unserved))}"
        found.add("warning", "no_workers", f"no workers for queue {named}", command)
    if paused := [queue for queue in status.queues if queue.paused is not None]:
        found.add("note", "queue_paused", *_paused(paused))
    if impaired := _first_of(subject for beat in (*beats, *status.workers) for subject in beat.impaired):
        found.add("warning", "impaired", f"{impaired} impaired", "streamflow status")
    if hung := sum(beat.hung for beat in beats):
        found.add("warning", "threads_hung", f"{plural(hung, 'thread')} hung", "streamflow health")
    if draining := sum(beat.draining for beat in beats):
        found.add("note", "draining", f"{draining} draining")
    if lost := [group for group in status.groups if group.lost_ms is not None and group.lost_ms < LOST_MS]:
        text = f"group {_first_of(group.name for group in lost)} lost events"
        found.add("warning", "group_lost", text, f"streamflow groups show {shlex.quote(min(one.name for one in lost))}")
    if held_up := [one for one in status.groups if one.trouble]:
        text = f"group {_first_of(one.name for one in held_up)} is held up: {held_up[0].trouble}"
        command = f"streamflow groups show {shlex.quote(held_up[0].name)}"
        found.add("warning", "group_held_up", text, command)
    if unread := [one for one in status.groups if not one.consumers and one.behind_ms > UNREAD_MS]:
        text = f"nobody reads group {_first_of(one.name for one in unread)}"
        command = f"streamflow groups show {shlex.quote(min(one.name for one in unread))}"
        found.add("warning", "group_unread", text, command)
    if quarantined := _quarantined(status):
        text = f"{plural(quarantined, 'message')} quarantined"
        found.add("warning", "quarantined", text, "streamflow quarantine list")
    if status.undelivered:
        text = f"{status.undelivered:,} {'delivery' if status.undelivered == 1 else 'deliveries'} quarantined"
        found.add("warning", "undelivered", text, "streamflow trigger quarantine list")
    if failing := [one for one in status.triggers if one.problem and one.processes]:
        others = f", and {len(failing) - 1} more" if len(failing) > 1 else ""
        text = f"trigger {failing[0].name}: {failing[0].problem}{others}"
        found.add("warning", "trigger_failing", text, "streamflow trigger status")
    if gone := _first_of(one.name for one in status.triggers if not one.processes):
        found.add("warning", "trigger_unserved", f"nobody serves trigger {gone}", "streamflow trigger status")
    return sorted(found.sentences, key=lambda sentence: _LEVELS.index(sentence.level))


def needs_a_person(sentences: Iterable[Sentence]) -> bool:
    """Whether something is wrong that won't mend itself."""
    return any(sentence.level != "note" for sentence in sentences)


class _Sentences:
    def __init__(self, namespace: str) -> None:
        self.sentences: list[Sentence] = []
        """In the order in which they were added."""
        self._options = "" if namespace == Settings().namespace else f" --namespace {shlex.quote(namespace)}"

    def add(self, level: Level, code: str, text: str, command: str = "") -> None:
        if command and code != "threads_hung":  # `health` looks at the processes of its machine
            command += self._options
        self.sentences.append(Sentence(level, code, text, command))


def _first_of(names: Iterable[str]) -> str:
    """`first`, or `first and 2 more`; empty if there are none."""
    found = sorted(set(names))
    if not found:
        return ""
    return f"{found[0]} and {len(found) - 1} more" if len(found) > 1 else found[0]


def _paused_workflows(status: NamespaceStatus) -> tuple[str, str]:
    """The text about the one of which most runs are open, and how it is resumed."""
    counts = status.view("runs").get("workflows", {})
    open_runs = {
        name: sum(counts.get(name, {}).get(kind, 0) for kind in ("running", "stuck", "paused"))
        for name in status.paused
    }
    name = min(open_runs, key=lambda name: (-open_runs[name], name))
    others = f", and {len(open_runs) - 1} more" if len(open_runs) > 1 else ""
    text = f"workflow {name} paused {status.paused[name].says()}".rstrip()
    text += f" ({plural(open_runs[name], 'open run')}){others}"
    return text, f"streamflow resume --workflow {shlex.quote(name)}"


def _paused(queues: Sequence[Queue]) -> tuple[str, str]:
    """The text about the one in which most waits, and how it is resumed."""
    queue = min(queues, key=lambda queue: (-queue.waiting, queue.name))
    who = "" if queue.paused is None else queue.paused.says()
    others = f", and {len(queues) - 1} more" if len(queues) > 1 else ""
    waiting = plural(queue.waiting, "step") + " waiting" + ("" if queue.workers else ", no workers")
    text = f"queue {queue.name} paused {who}".rstrip() + f" ({waiting}){others}"
    return text, f"streamflow resume --queue {shlex.quote(queue.name)}"


def _blocked(status: NamespaceStatus) -> tuple[str, str] | None:
    """The text about the process that was blocked longest by one line, and where all of them are."""
    told = [(row.name, row.heartbeat.blocked) for row in status.daemons]
    told += [(worker.name, worker.blocked) for worker in status.workers]
    found = [(line.ms, name, line) for name, lines in told for line in lines if line.ms >= BLOCKED_MS]
    if not found:
        return None
    ms, name, line = max(found, key=lambda one: one[:2])
    others = len({name for _, name, _ in found}) - 1
    times = f" {line.count:,} times" if line.count > 1 else ""
    what = "by " + (line.of if line.of != "own" else "other code")
    text = f"{name}: blocked {duration(ms)}{times} {what} at {line.line}"
    return text + (f", and {others} more" if others else ""), "streamflow status --json"


def _moving(status: NamespaceStatus) -> tuple[str, str] | None:
    """The text about the daemon to which shards have come most often, for those it has."""
    found = [
        (beat.moved / len(beat.shards), row.name, beat.moved, len(beat.shards))
        for row in status.daemons
        if (beat := row.heartbeat).shards and beat.moved >= MOVES * len(beat.shards)
    ]
    if not found:
        return None
    _, name, moved, shards = max(found)
    return f"{name}: {plural(shards, 'shard')}, moved {moved:,} times in 10 min", "streamflow status --shards"


def _largest(sizes: dict[str, Any]) -> str:
    """The workflow whose ended runs take most, and how much of that ended longer ago than a day."""
    row = next((row for row in sizes.get("workflows", []) if row["bytes"]), None)
    if row is None:
        return ""
    old = sum(age["bytes"] for name, age in row["ages"].items() if name != "day")
    text = f" · {plural(row['runs'], 'ended run')} of {row['workflow']} take about {size(row['bytes'])}"
    return text + (f", {100 * old / row['bytes']:.0f} % of it for over a day" if old else "")


def _is_storm(row: dict[str, Any]) -> bool:
    return row["retries"] >= STORM and not row["succeeded"]


def _storm(rows: Sequence[dict[str, Any]], minutes: int) -> tuple[str, str]:
    """The text about the cause with the most retries, and what shows a run that it holds up."""
    first = rows[0]
    why = f"{first['kind']}: {first['message']}" if first["message"] else first["kind"]
    others = f", and {len(rows) - 1} more" if len(rows) > 1 else ""
    text = f"step {first['step']}: {first['retries']:,} retries in {minutes} min, 0 succeeded: {why}{others}"
    return text, f"streamflow show {shlex.quote(first['run_id'])}"


def _silent(status: NamespaceStatus) -> tuple[str, str]:
    """The text about the one that has been silent longest, and what shows its run."""
    first = status.silent[0]
    more = status.silent_steps - 1
    text = f"step {first.name} of {first.run_id}: silent for {duration(1000 * first.seconds)} ({first.kind} "
    text += f"{first.holder} lives)" + (f", and {more:,} more" if more > 0 else "")
    return text, f"streamflow show {shlex.quote(first.run_id)}"


def _storage_waits(status: NamespaceStatus) -> tuple[str, str]:
    """How many runs wait for storage, why the one that has waited longest does, and what shows it."""
    first = status.storage_waits[0]
    count = sum(row.heartbeat.put_off for row in status.daemons)
    text = f"{plural(max(1, count), 'run')} waiting for storage for {duration(1000 * first.seconds)}"
    return text + (f": {first.error}" if first.error else ""), f"streamflow show {shlex.quote(first.run_id)}"


def _unserved(workflows: Sequence[UnservedWorkflow]) -> tuple[str, str]:
    """The text about the one with the most open runs, and how these are listed."""
    first = workflows[0]
    others = f", and {len(workflows) - 1} more" if len(workflows) > 1 else ""
    text = f"workflow {first.name}: {plural(first.open, 'open run')}, and no daemon has had it for {duration(first.ms)}"
    return text + others, f"streamflow runs --workflow {shlex.quote(first.name)}"


def _quarantined(status: NamespaceStatus) -> int:
    if status.quarantine is not None:
        return status.quarantine.count
    view = status.view("quarantine")
    latest = view.get("latest", [])
    return view.get("count", 0) if latest and latest[0]["at"] > status.as_of - QUARANTINE_MS else 0
