"""One run as a picture in text: its facts, its history on a time axis, its children.

Owns: `RunDetail` and how it is drawn. Must not: fetch anything. Called by: `streamflow show`, the demo.

    STEP          0 ms ············ 2.1 s ············ 4.2 s
    fetch         ━━━━✗╌╌╌━━━━━━                              1.6 s  ×2  "<html>…"
    sleep                      ────────────────               1.9 s
    approve                                    ◆              signal     true
"""

from __future__ import annotations

import itertools
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from rich.console import Group, RenderableType
from rich.text import Text

from streamflow import events
from streamflow.client.streams import StreamFacts
from streamflow.client.waits import RunOwner
from streamflow.errors import Failure
from streamflow.events import (
    RunCompleted,
    RunContinued,
    RunStarted,
    TimeoutReached,
    TimeoutSet,
    Transition,
    last_stuck,
    latest_fork,
)
from streamflow.model.causes import Cause, FailedAttempt, cause_of, root_of
from streamflow.model.record import OPEN, Header, Status
from streamflow.model.waits import Wait
from streamflow.screen.columns import Column, fit, table
from streamflow.screen.payload import preview
from streamflow.screen.sanitize import safe, safe_text
from streamflow.screen.spans import MAX_ROWS, Span, fold_spans, forked_text, mark_untaken, spans_of, took_ms
from streamflow.screen.style import (
    BAD,
    BUSY,
    FAINT,
    MUTED,
    OK,
    STATUS,
    TITLE,
    VALUE,
    WARN,
    clock,
    duration,
    moment,
    number,
    plural,
)
from streamflow.screen.tables import attributes_line
from streamflow.screen.waits import ChildWaits, owner_line, wait_lines

MAX_CHILDREN = 20
"""Rows of the list of children."""
TRACEBACK_LINES = 12
"""Last lines of a traceback that are printed."""
CAUSE_LINES = 4
"""The same of a cause or a member."""
MAX_CAUSES = 6
"""How many causes deep a failure is printed."""
MAX_ATTEMPTS = 5
"""Failed attempts before the last one that are listed: the latest."""

_GLYPHS = {
    "signal": "◆",
    "sent": "◇",
    "cancel": "■",
    "patch": "+",
    "record": "#",
    "continued": "↻",
    "retried": "↻",
    "forked": "↻",
    "limit": "!",
}
_STYLES = {
    "step": OK,
    "timer": MUTED,
    "child": "#b48ec9",
    "signal": WARN,
    "sent": BUSY,
    "ask": WARN,
    "patch": MUTED,
    "record": MUTED,
    "continued": BUSY,
    "retried": BUSY,
    "forked": BUSY,
    "limit": WARN,
    "stuck": WARN,
    "paused": WARN,
    "cancel": BAD,
}


class RunDetail(msgspec.Struct, kw_only=True):
    """Everything about one run. `children`: run id -> status, where it is known; `published`: values by key; `cause`,
    `attempts`: of a run that has failed or has a bug, as `run.describe()` has them; and so `waits_for`, `waits_more`
    and `owner` of an open one. `below`: what its children wait for."""

    run_id: str
    header: Header
    transitions: list[Transition]
    children: dict[str, str] = {}
    published: dict[str, Any] = {}
    now_ms: int
    trace_id: str = ""
    cause: Cause | None = None
    attempts: list[FailedAttempt] = []
    waits_for: list[Wait] = []
    waits_more: bool = False
    owner: RunOwner | None = None
    untaken: dict[str, int] = {}
    below: dict[str, ChildWaits] = {}
    forks: list[str] = []
    """Ids of the newest forks of the run."""
    archived: bool = False
    """Whether it is in the archive, and not on the server."""
    hibernating: int = 0
    """Since when (ms) it has been moved out of the server's memory; 0: it is there."""
    out_of_reach: bool = False
    """Whether it hibernates and can't be read now: `waits_for` has the reason."""
    stream: StreamFacts | None = None
    """What its steps have emitted, if there is some of it."""


def render_run(detail: RunDetail, width: int) -> RenderableType:
    """Lines of at most `width` cells."""
    return Group(*run_lines(detail, width))


def run_lines(detail: RunDetail, width: int) -> list[Text]:
    spans = spans_of(detail.transitions)
    mark_untaken(spans, detail.untaken)
    lines = _facts(detail, spans, width)
    if not detail.out_of_reach:
        lines.append(Text())
        lines.extend(_history(detail, spans, width))
    for section in (_published(detail, width), _children(detail, spans, width)):
        if section:
            lines.extend([Text(), *section])
    for line in lines:
        line.end = "\n"
    return lines


# --- facts ----------------------------------------------------------------------------------------------------------


def _facts(detail: RunDetail, spans: Sequence[Span], width: int) -> list[Text]:
    header = detail.header
    ended = header.ended or detail.now_ms
    title = Text.assemble(("RUN  ", TITLE), end="")
    title.append_text(safe_text(detail.run_id, VALUE))
    title.append("  ")
    title.append_text(safe_text(header.status, STATUS.get(header.status, ""), 20))
    if detail.archived:
        title.append("  archived", FAINT)
    if detail.hibernating:
        since = "" if detail.out_of_reach else f" since {moment(detail.hibernating)}"
        title.append(f"  hibernates{since}", FAINT)
    length = sum(len(transition.events) for transition in detail.transitions)
    kinds = Counter(span.kind for span in spans)
    fork = latest_fork(detail.transitions)
    counted = [plural(kinds[kind], kind) for kind in ("step", "timer", "child", "signal", "ask") if kinds[kind]]
    counted = [text.replace("childs", "children") for text in counted]
    size = [plural(length, "event"), plural(len(detail.transitions), "transition"), *counted]
    rows = [
        ("workflow", safe_text(header.workflow)),
        ("tenant", safe_text(header.tenant or "-")),
        ("parent", safe_text(header.parent) if header.parent else None),
        ("fork of", safe_text(forked_text(fork, short=True), limit=500) if fork is not None else None),
        ("forks", safe_text(", ".join(detail.forks), limit=500) if detail.forks else None),
        ("started", Text(moment(header.created))),
        ("ended" if header.ended else "open for", _ended(header, ended)),
        ("time-out", _time_out(detail)),
        ("attributes", safe_text(attributes_line(header.attributes), limit=500) if header.attributes else None),
        ("trace", safe_text(detail.trace_id) if detail.trace_id else None),
        ("history", Text("can't be read now" if detail.out_of_reach else " · ".join(size))),
        ("stream", safe_text(_stream(detail.stream), limit=500) if detail.stream is not None else None),
    ]
    lines = [fit(title, width)]
    lines.extend(_fact(label, value, width) for label, value in rows if value is not None)
    if detail.owner is not None:
        lines.append(_fact("owner", safe_text(owner_line(detail.owner), limit=500), width))
    waits = wait_lines(detail.waits_for, detail.waits_more, detail.now_ms, detail.below)
    labels = itertools.chain(["waits for"], itertools.repeat(""))
    lines.extend(_fact(label, safe_text(line, BUSY, 500), width) for label, line in zip(labels, waits, strict=False))
    for transition in detail.transitions:
        is_last = transition is detail.transitions[-1]
        for event in transition.events:
            if isinstance(event, RunStarted | RunContinued):
                lines.append(_fact("input", Text(preview(event.input, 2 * width)), width))
            elif isinstance(event, RunCompleted):
                lines.append(_fact("result", Text(preview(event.result, 2 * width), style=OK), width))
            elif isinstance(event, events.RunCancelled) and event.reason and is_last:  # else it goes on
                lines.append(_fact("reason", safe_text(event.reason, WARN, 500), width))
            elif isinstance(event, events.RunFailed) and is_last:  # else it was retried, and goes on
                lines.extend(_why(detail, event.failure, width))
    if header.status in OPEN and (pause := next((wait for wait in detail.waits_for if wait.kind == "pause"), None)):
        lines.extend(_paused(detail, pause, width))
    stuck = last_stuck(detail.transitions) if header.status == Status.STUCK else None
    if stuck is not None:
        event, _ = stuck
        if event.failure is not None:
            lines.extend(_why(detail, event.failure, width))
        else:  # whole: how its code and its history differ is nowhere else
            told = textwrap.wrap(safe(event.reason, 1000), max(20, width - 11))
            labels = itertools.chain(["reason"], itertools.repeat(""))
            lines.extend(_fact(label, Text(line, WARN), width) for label, line in zip(labels, told, strict=False))
        how = f"when other code is deployed, or with streamflow retry {detail.run_id}"
        lines.append(_fact("goes on", safe_text(how, WARN, 500), width))
    return lines


def _stream(facts: StreamFacts) -> str:
    kept = "" if facts.kept >= facts.emitted else f", of which {facts.kept:,} are kept"
    last = moment(round(facts.at.timestamp() * 1000))
    return f"{plural(facts.emitted, 'chunk')}{kept}, the last one {last} by {facts.step}"


def _paused(detail: RunDetail, pause: Wait, width: int) -> list[Text]:
    """Who has paused it, or its workflow, why, since when, and how it goes on."""
    what = "the run" if pause.name == "run" else f"workflow {detail.header.workflow}"
    since = "" if pause.since is None else f", since {moment(round(pause.since.timestamp() * 1000))}"
    target = detail.run_id if pause.name == "run" else f"--workflow {detail.header.workflow}"
    return [
        _fact("paused", safe_text(f"{what} {pause.why}".rstrip() + since, WARN, 500), width),
        _fact("goes on", safe_text(f"with streamflow resume {target}", WARN, 500), width),
    ]


def _why(detail: RunDetail, failure: Failure, width: int) -> list[Text]:
    """The error; then, if another one is its root, that one: which step of which run raised it, its last frames, and
    the attempts before it; then what is between the two."""
    root = root_of(failure)
    if root is failure:
        return _failure(failure, "error", width)
    cause = detail.cause or cause_of(detail.run_id, detail.header.workflow, failure)
    lines = [_fact("error", safe_text(str(failure), BAD, 500), width), *_details(failure, width)]
    lines += _failure(root, "because of", width, 1, source=_source(cause, detail.run_id), frames=TRACEBACK_LINES)
    for attempt in reversed(detail.attempts[-MAX_ATTEMPTS:]):
        ago = duration(max(0, detail.now_ms - attempt.at.timestamp() * 1000))
        text = Text.assemble((f"{ago} ago  ", MUTED), safe_text(str(attempt.failure), WARN, 500), end="")
        lines.append(_fact(f"attempt {attempt.attempt}", text, width))
    if len(detail.attempts) > MAX_ATTEMPTS:
        lines.append(_fact("", Text(f"… {len(detail.attempts) - MAX_ATTEMPTS:,} more before", style=FAINT), width))
    return lines + _below(failure, width, 0, shown=root)


def _source(cause: Cause, run_id: str) -> str:
    """`step charge of run order-7 (workflow order), attempt 5`: empty if the code of this run's workflow raised it."""
    parts = [f"step {cause.step}"] if cause.step else []
    parts += [f"run {cause.run_id} (workflow {cause.workflow})"] if cause.run_id != run_id else []
    source = " of ".join(parts)
    return f"{source}, attempt {cause.attempt}" if cause.step else source


def _failure(
    failure: Failure,
    label: str,
    width: int,
    depth: int = 0,
    *,
    source: str = "",
    frames: int = CAUSE_LINES,
    shown: Failure | None = None,
) -> list[Text]:
    """What failed, its notes and fields, its last frames; then the same of what caused it, and of a group's members.
    `source` stands before it."""
    what = f"{source}: {failure}" if source else str(failure)
    lines = [_fact(label, safe_text(what, BAD, 500), width), *_details(failure, width)]
    chained = failure.cause is not None or failure.context is not None or failure.members or failure.notes
    if not chained or depth:  # else the traceback repeats what follows
        trace = failure.traceback.rstrip().split("\n")[-frames if depth else -TRACEBACK_LINES :]
        lines += [_fact("", safe_text(line, FAINT, 500), width) for line in trace if line.strip()]
    return lines + _below(failure, width, depth, shown)


def _details(failure: Failure, width: int) -> list[Text]:
    lines = [_fact("  note", safe_text(note, WARN, 500), width) for note in failure.notes]
    if failure.fields:
        lines.append(_fact("  fields", Text(preview(msgspec.msgpack.encode(failure.fields), 2 * width)), width))
    return lines


def _below(failure: Failure, width: int, depth: int, shown: Failure | None) -> list[Text]:
    """What caused it, and a group's members, but for the one that is `shown` already."""
    if depth >= MAX_CAUSES:
        return []
    below = [("because of" if shown is None else "through", failure.cause), ("while in", failure.context)]
    below += [(f"  member {number}", member) for number, member in enumerate(failure.members, 1)]
    others = [(label, other) for label, other in below if other is not None and other is not shown]
    return [line for label, other in others for line in _failure(other, label, width, depth + 1, shown=shown)]


def _fact(label: str, value: Text, width: int) -> Text:
    line = Text.assemble((f"{label:<11}", MUTED), value, end="")
    return fit(line, width)


def _time_out(detail: RunDetail) -> Text | None:
    """How much of its time an open run has left."""
    found: TimeoutSet | TimeoutReached | None = None
    for transition in detail.transitions:
        for event in transition.events:
            if isinstance(event, TimeoutSet | TimeoutReached):
                found = event
    if found is None or detail.header.ended:
        return None
    limit = f"of {duration(found.ms)}"
    if isinstance(found, TimeoutReached):
        return Text(f"its time {limit} is over, it cleans up", WARN)
    if detail.header.status == Status.STUCK:
        return Text(f"{limit}: stands still while it is stuck", WARN)
    if detail.header.status == Status.PAUSED or any(wait.kind == "pause" for wait in detail.waits_for):
        return Text(f"{limit}: stands still while it is paused", WARN)
    return Text(f"{duration(max(0, found.due - detail.now_ms))} left {limit}")


def _ended(header: Header, ended: int) -> Text:
    took = duration(ended - header.created)
    return Text(f"{moment(header.ended)}, after {took}" if header.ended else took)


# --- history --------------------------------------------------------------------------------------------------------


def _history(detail: RunDetail, spans: Sequence[Span], width: int) -> list[Text]:
    if not spans:
        return [fit(Text.assemble(("HISTORY", TITLE), ("  no steps, timers, children or signals", MUTED)), width)]
    rows = fold_spans(spans)
    hidden = len(rows) - MAX_ROWS
    head, tail = (rows[: MAX_ROWS // 2], rows[-MAX_ROWS // 2 :]) if hidden > 0 else (rows, [])
    axis = _Axis(detail, spans, max(12, min(70, width // 3)))
    columns = [
        Column("HISTORY", right=False, flexible=True, min_width=10, max_width=max(12, width // 5)),
        Column("#", drop_order=2),
        Column(axis.heading, right=False, drop_order=0),
        Column("took", drop_order=1),
        Column("", drop_order=4),
        Column("", right=False, flexible=True, min_width=max(6, width // 6), max_width=600, drop_order=3),
    ]
    visible = [*head, *tail]
    lines = table("HISTORY", columns, [_row(span, axis, detail.children) for span in visible], width)
    if hidden > 0:
        note = fit(Text(f"… {hidden:,} more", style=FAINT), width)
        lines[1 + len(head) : 1 + len(head)] = [note]
    return lines


class _Axis:
    """Time to cells: the start of the run is cell 0, its end (or now) the last one."""

    def __init__(self, detail: RunDetail, spans: Sequence[Span], cells: int) -> None:
        self.start = min(detail.header.created or spans[0].start, min(span.start for span in spans))
        latest = max(span.end or span.start for span in spans)
        self.end = max(detail.header.ended or detail.now_ms, latest, self.start + 1)
        self.cells = cells

    def cell(self, at: int) -> int:
        share = (at - self.start) / (self.end - self.start)
        return max(0, min(self.cells - 1, int(share * self.cells)))

    @property
    def heading(self) -> str:
        middle, last = duration((self.end - self.start) / 2), duration(self.end - self.start)
        dots = self.cells - len("0") - len(middle) - len(last) - 4
        if dots < 4:
            return f"0 {'·' * max(0, self.cells - len(last) - 3)} {last}"
        return f"0 {'·' * (dots // 2)} {middle} {'·' * (dots - dots // 2)} {last}"


def _row(span: Span, axis: _Axis, children: Mapping[str, str]) -> list[Text]:
    name = safe_text(span.name, limit=128)
    if span.count > 1:
        name.append(f" ×{number(span.count)}", style=VALUE)
    note = safe_text(span.note, BAD if span.failed else MUTED, 500)
    if span.count > 1:
        note = _summary(span)
    tries = Text(f"×{span.attempts}", style=WARN) if span.attempts > 1 and span.count == 1 else Text("")
    event = Text(str(span.number), style=FAINT)
    return [name, event, _bar(span, axis), _took(span, axis, children), tries, note]


def _took(span: Span, axis: _Axis, children: Mapping[str, str]) -> Text:
    if span.kind in _GLYPHS:
        return Text(span.kind, style=MUTED)
    if span.end is not None:
        return Text(duration(took_ms(span)) if span.count == 1 else duration(span.end - span.start))
    if span.kind == "child" and children.get(span.child):
        status = children[span.child]
        return safe_text(status, STATUS.get(status, ""), 12)
    waiting = {"timer": "sleeping", "stuck": "stuck", "paused": "paused", "ask": "unanswered"}.get(span.kind)
    retrying = span.marks and span.due > axis.end
    if span.queue and not retrying:  # the history doesn't say whether it waits there or a worker runs it
        return safe_text(f"queue {span.queue}", BUSY, 24)
    return Text(waiting or ("waiting" if retrying else "running"), style=WARN if retrying else BUSY)


def _summary(span: Span) -> Text:
    parts: list[tuple[str, str]] = []
    if span.failures:
        parts.append((f"{number(span.failures)} failed", BAD))
    if (retries := len(span.marks) - span.failures) > 0:
        parts.append((f"{number(retries)} retr{'y' if retries == 1 else 'ies'}", WARN))
    if span.open:
        parts.append((f"{number(span.open)} open", BUSY))
    if span.times:
        times = sorted(span.times)
        parts.append((f"p50 {duration(times[(len(times) - 1) // 2])}", MUTED))
        parts.append((f"max {duration(times[-1])}", MUTED))
    return Text(" · ", style=FAINT, end="").join([Text(*part) for part in parts])


def _bar(span: Span, axis: _Axis) -> Text:
    style = BAD if span.failed else _STYLES.get(span.kind, OK)
    first = axis.cell(span.start)
    bar = Text(" " * first, end="")
    if span.kind in _GLYPHS:
        bar.append(_GLYPHS[span.kind], style=style)
        return fit(bar, axis.cells)
    last = max(first, axis.cell(span.end if span.end is not None else axis.end))
    cells = ["─" if span.kind in ("timer", "stuck", "paused") else "━"] * (last - first + 1)
    styles = [style if span.end is not None else BUSY] * len(cells)
    marks = [axis.cell(mark) - first for mark in span.marks]
    for mark in marks if span.count == 1 else []:
        # The history has no exact length of the pauses before the last one: a few cells stand for each.
        for cell in range(mark + 1, min(mark + 3, len(cells) - 1)):
            cells[cell], styles[cell] = "╌", FAINT
    if span.marks and span.end is None and span.count == 1:
        for cell in range(marks[-1] + 1, min(axis.cell(min(span.due, axis.end)) - first, len(cells) - 1)):
            cells[cell], styles[cell] = "╌", FAINT
    if span.end is None:
        cells[-1], styles[-1] = "▶", BUSY
    for mark in marks:
        if 0 <= mark < len(cells):
            cells[mark], styles[mark] = "✗", BAD
    for cell, cell_style in zip(cells, styles, strict=True):
        bar.append(cell, style=cell_style)
    return fit(bar, axis.cells)


# --- published values -----------------------------------------------------------------------------------------------


def _published(detail: RunDetail, width: int) -> list[Text]:
    columns = [
        Column("PUBLISHED", right=False, flexible=True, min_width=10, max_width=max(12, width // 4)),
        Column("", right=False, flexible=True, min_width=max(6, width // 3), max_width=600),
    ]
    rows = [
        [safe_text(key, limit=128), Text(preview(msgspec.msgpack.encode(value), 2 * width), style=MUTED)]
        for key, value in detail.published.items()
    ]
    return table("PUBLISHED", columns, rows[:MAX_ROWS], width) if rows else []


# --- children -------------------------------------------------------------------------------------------------------


def _children(detail: RunDetail, spans: Sequence[Span], width: int) -> list[Text]:
    children = [span for span in spans if span.kind == "child"]
    if not children:
        return []
    statuses = [detail.children.get(span.child) or _status_from_history(span) for span in children]
    counts = " · ".join(f"{count:,} {safe(status, 20)}" for status, count in sorted(Counter(statuses).items()))
    columns = [
        Column("CHILDREN", right=False, flexible=True, max_width=256, whole=True),
        Column("workflow", right=False, max_width=max(8, width // 4), drop_order=2),
        Column("status", right=False, drop_order=1),
        Column("started", drop_order=3),
    ]
    rows = [
        [
            safe_text(span.child, limit=256),
            safe_text(span.name, MUTED, 128),
            safe_text(status, STATUS.get(status, ""), 20),
            Text(clock(span.start), style=MUTED),
        ]
        for span, status in list(zip(children, statuses, strict=True))[:MAX_CHILDREN]
    ]
    lines = table(f"CHILDREN {len(children):,}  {counts}"[: max(16, width // 2)], columns, rows, width)
    if len(children) > MAX_CHILDREN:
        lines.append(fit(Text(f"… {len(children) - MAX_CHILDREN:,} more", style=FAINT), width))
    return lines


def _status_from_history(span: Span) -> str:
    return "running" if span.end is None else "failed" if span.failed else "completed"
