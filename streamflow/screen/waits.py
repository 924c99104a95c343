"""What a run waits for, and who has it, in words: one line for a table, some for the picture of one run.

Owns: these words. Must not: fetch anything, know widths. Called by: `tables.py`, `run.py`, the panel of oldest runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec

from streamflow.client.waits import RunOwner
from streamflow.model.waits import BLOCK, Wait
from streamflow.screen.payload import preview
from streamflow.screen.style import duration, moment, plural

MAX_LINES = 12
"""Things that one run waits for, which are listed."""
MAX_OF_CHILD = 3
"""Of those of a child."""
SOON_MS = 24 * 3600 * 1000
"""What is due later than this has a date."""
DETAILS = 60
"""Characters of what a step has reported."""


class ChildWaits(msgspec.Struct):
    """What a child waits for that an open run waits for: its status, and its own children's."""

    status: str
    waits: list[Wait] = []
    children: dict[str, ChildWaits] = {}


def waits_text(waits: Sequence[Wait], now_ms: int) -> str:
    """In one line: the most telling one, and how many others there are."""
    if not waits:
        return ""
    more = len(waits) - 1
    return wait_text(waits[0], now_ms) + (f" (+{more:,})" if more else "")


def hibernating_wait(due: datetime | None) -> Wait:
    """All that is known without its record: one with a due time may wait for a message, too, with a time-out."""
    return Wait(kind="message", until=due)


def wait_text(wait: Wait, now_ms: int) -> str:
    """As `signal approve: Approval, 2 h 05 m left` or `step charge, attempt 3 in 38 s: ConnectTimeout: api:443`."""
    left = _left(wait.until, now_ms)
    match wait.kind:
        case "signal" | "question":
            typed = f": {wait.type}" if wait.type else ""
            return f"{wait.kind} {wait.name}{typed}" + (f", {_limit(wait, left)}" if wait.until is not None else "")
        case "step":
            return _step(wait, left)
        case "child":
            return f"child {wait.name} {wait.run_id}"
        case "timer":
            name = "end of a timeout() block" if wait.name == BLOCK else "timer"
            return f"{name} {_until(wait, left)}" if wait.until is not None else name
        case "pause":
            what = "the pause of its workflow" if wait.name == "workflow" else "its pause"
            return f"the end of {what} {wait.why}".rstrip()
        case "code":
            return "other code"
        case "storage":
            return f"storage, for {wait.name}" + (f": {wait.why}" if wait.why else "")
        case "start":
            if left is None or left <= 0:
                return "a daemon that begins it"
            return f"its start {_until(wait, left).replace('until', 'at')}"
        case "message" if wait.until is not None:
            return f"a message, or its timer {_until(wait, left)}"
        case _:
            return wait.why or "a signal or question"


def _step(wait: Wait, left: float | None) -> str:
    what = f"step {wait.name}"
    if left is not None and left > 0:
        return f"{what}, attempt {wait.attempt} in {duration(left)}: {wait.why}"
    if wait.queue:
        what += f" in queue {wait.queue}"
    if wait.attempt > 1:
        what += f", attempt {wait.attempt}"
    return what + (f" after {wait.why}" if wait.why else "")


def _until(wait: Wait, left: float | None) -> str:
    if left is None or wait.until is None:
        return ""
    if left <= 0:
        return "due now"
    return f"in {duration(left)}" if left < SOON_MS else f"until {moment(round(wait.until.timestamp() * 1000))[:16]}"


def _limit(wait: Wait, left: float | None) -> str:
    return f"{duration(left)} left" if left is not None and 0 < left < SOON_MS else _until(wait, left)


def _left(until: datetime | None, now_ms: int) -> float | None:
    """Ms; None if there is no such time."""
    return None if until is None else until.timestamp() * 1000 - now_ms


def wait_lines(waits: Sequence[Wait], more: bool, now_ms: int, children: Mapping[str, ChildWaits]) -> list[str]:
    """Each of them, with who has a step, and what a child waits for, further in."""
    lines: list[str] = []
    for wait in waits[:MAX_LINES]:
        lines.append(wait_text(wait, now_ms))
        lines += [f"  {line}" for line in _about_step(wait, now_ms)]
        if (child := children.get(wait.run_id)) is not None:
            lines += [f"  {line}" for line in _about_child(child, now_ms)]
    hidden = len(waits) - MAX_LINES
    if hidden > 0:
        lines.append(f"… {hidden:,} more")
    if more:
        lines.append("… the history is large, and its older part was not read: there may be more")
    return lines


def _about_child(child: ChildWaits, now_ms: int) -> list[str]:
    if not child.waits:
        return [f"is {child.status}"]
    lines = wait_lines(child.waits[:MAX_OF_CHILD], False, now_ms, child.children)
    hidden = len(child.waits) - MAX_OF_CHILD
    return [f"waits for {lines[0]}", *lines[1:], *([f"… {hidden:,} more"] if hidden > 0 else [])]


def _about_step(wait: Wait, now_ms: int) -> list[str]:
    lines: list[str] = []
    if (holder := wait.holder) is not None:
        told = [f"runs at {holder.kind} {holder.name}{_beat(holder.beat_age)}", *_process(holder.host, holder.pid)]
        lines.append(" · ".join(told))
    elif (place := wait.place) is not None:
        before = [] if place.before is None else [f"{place.before:,} before it in its partition"]
        told = [*before, *([] if place.workers is None else [_workers(place.workers, wait.queue)])]
        if place.paused is not None:
            lines.append(f"queue {wait.queue} is paused {place.paused}".rstrip())
        lines.append(f"waits for a worker: {', '.join(told)}" if told else "waits for a worker")
    reported = "" if wait.reported is None else _ago(wait.reported, now_ms)
    if wait.details is not None:
        ago = f" {reported} ago" if reported else ""
        lines.append(f"reported{ago}: {preview(msgspec.msgpack.encode(wait.details), DETAILS)}")
    elif reported:
        lines.append(f"reported {reported} ago")
    if wait.silent:
        lines.append("it may hang: a retry with --step begins its next attempt")
    return lines


def _workers(count: int, queue: str) -> str:
    return f"{plural(count, 'worker')} of queue {queue}" if count else f"no workers take from queue {queue}"


def owner_line(owner: RunOwner) -> str:
    """As `daemon api-2-71-c0ffee, heartbeat 0.3 s ago · shard 17 · process 71 on api-2`."""
    if not owner.daemon:
        return f"no daemon has shard {owner.shard}"
    told = [f"daemon {owner.daemon}{_beat(owner.beat_age)}", f"shard {owner.shard}"]
    return " · ".join([*told, *_process(owner.host, owner.pid)])


def _process(host: str, pid: int) -> list[str]:
    return [f"process {pid} on {host}"] if host and pid else []


def _beat(age: float | None) -> str:
    return ", no heartbeat found" if age is None else f", heartbeat {duration(age * 1000)} ago"


def _ago(at: datetime, now_ms: int) -> str:
    return duration(max(0.0, now_ms - at.timestamp() * 1000))
