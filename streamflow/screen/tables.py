"""Listings: the table of `runs`, and the lines of `tail`.

Owns: their columns. Must not: fetch or page. Called by: the command line.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from streamflow import events
from streamflow.errors import Failure
from streamflow.events import (
    AnyEvent,
    AskAnswered,
    AskReceived,
    CancelRequested,
    ChildCancelled,
    ChildCompleted,
    ChildStarted,
    HistoryLimitReached,
    MessageQuarantined,
    Patched,
    PauseEnded,
    Recorded,
    RunCompleted,
    RunContinued,
    RunForked,
    RunPaused,
    RunResumed,
    RunRetried,
    RunStarted,
    RunStuck,
    SignalReceived,
    SignalSent,
    SignalSkipped,
    StartDelayed,
    StartDue,
    StepCancelled,
    StepCompleted,
    StepRetrying,
    StepScheduled,
    TimeoutReached,
    TimeoutSet,
    TimerFired,
    TimerSet,
)
from streamflow.model.attributes import Attribute
from streamflow.model.record import Status
from streamflow.model.waits import Wait
from streamflow.screen.payload import preview
from streamflow.screen.sanitize import safe, safe_text
from streamflow.screen.spans import forked_text, recorded_text, retried_text
from streamflow.screen.style import BAD, BUSY, FAINT, MUTED, OK, STATUS, WARN, clock, duration, moment, plural
from streamflow.screen.waits import waits_text

PREVIEW = 120
"""Characters of a payload in a line."""
WAITS_WIDTH = 30
"""Cells for what a run waits for, at least: ids take several lines where there is no room for both."""
ATTRIBUTES_FROM = 130
"""Width from which a listing has a column for attributes."""

_STYLES: dict[type, str] = {
    RunStarted: BUSY,
    RunCompleted: OK,
    events.RunFailed: BAD,
    events.RunCancelled: MUTED,
    RunStuck: WARN,
    RunResumed: BUSY,
    RunForked: BUSY,
    RunPaused: WARN,
    PauseEnded: BUSY,
    RunRetried: BUSY,
    RunContinued: BUSY,
    CancelRequested: WARN,
    StartDue: BUSY,
    TimeoutReached: WARN,
    HistoryLimitReached: WARN,
    StepCancelled: MUTED,
    StepCompleted: OK,
    StepRetrying: WARN,
    events.StepFailed: BAD,
    ChildCompleted: OK,
    events.ChildFailed: BAD,
    ChildCancelled: MUTED,
    MessageQuarantined: WARN,
}


class RunRow(msgspec.Struct, kw_only=True):
    """One run in a listing. Times in ms; `ended` 0: still open. `reason`: why it is stuck; `error`: why it failed, or
    what the bug is for which it is stuck; `waits`: what it waits for."""

    run_id: str
    workflow: str
    tenant: str
    status: str
    started: int
    ended: int = 0
    attributes: dict[str, Attribute] = {}
    reason: str = ""
    error: str = ""
    waits: list[Wait] = []


class QuarantineRow(msgspec.Struct):
    """A quarantined message in a listing. `at`: since when, ms."""

    id: str
    run_id: str
    kind: str
    at: int
    reason: str


def attributes_line(attributes: Mapping[str, Attribute]) -> str:
    """`customer="acme" priority=2`: names with their values as JSON, in the order of the names."""
    return " ".join(f"{name}={msgspec.json.encode(value).decode()}" for name, value in sorted(attributes.items()))


def runs_table(rows: list[RunRow], now_ms: int, width: int = 100) -> Table:
    """Run ids are shown whole (on several lines if necessary), so that they can be copied; the rest is cut to `width`.

    One column says what open runs wait for, and why others have failed or are stuck, if any is or has; in a narrow
    terminal it takes the place of the start. If any run has attributes, they are a column in a wide terminal, and stand
    below the run's id in a narrow one.
    """
    narrow = width < 100
    tenants = any(row.tenant for row in rows)
    whys = any(row.error or row.reason for row in rows)
    waits = any(row.waits and not row.reason for row in rows)
    started = not (narrow and waits)
    attributes = any(row.attributes for row in rows) and width >= ATTRIBUTES_FROM
    workflow_width, tenant_width = (16, 12) if narrow else (24, 16)
    table = Table(box=None, pad_edge=False, header_style=MUTED, padding=(0, 2, 0, 0))
    table.add_column("RUN", overflow="fold", min_width=12)
    table.add_column("WORKFLOW", no_wrap=True, overflow="ellipsis", max_width=workflow_width)
    if tenants:
        table.add_column("TENANT", no_wrap=True, overflow="ellipsis", max_width=tenant_width)
    table.add_column("STATUS", no_wrap=True)
    if started:
        table.add_column("STARTED", no_wrap=True)
    table.add_column("TOOK", no_wrap=True, justify="right")
    # The width without all of these at their widest, and without the gaps.
    remaining = width - min(36, max([12, *(len(row.run_id) for row in rows)])) - 2
    remaining -= min(workflow_width, max([8, *(len(row.workflow) for row in rows)])) + 2
    remaining -= min(tenant_width, max([6, *(len(row.tenant) for row in rows)])) + 2 if tenants else 0
    tooks = [duration(max(0, (row.ended or now_ms) - row.started)) for row in rows]
    remaining -= max([6, *(len(row.status) for row in rows)]) + 2 + max([8, *map(len, tooks)]) + 2
    remaining -= (11 if narrow else 19) + 2 if started else 0
    if whys or waits:
        share = remaining // 2 if attributes else remaining
        heading = "WAITS FOR / WHY" if whys and waits else "WAITS FOR" if waits else "WHY"
        texts = [waits_text(row.waits, now_ms) for row in rows]
        least = min(WAITS_WIDTH, max(map(len, texts))) if waits else 0
        table.add_column(heading, min_width=least, no_wrap=True, overflow="ellipsis", max_width=max(14, least, share))
        remaining -= share + 2
    if attributes:
        table.add_column("ATTRIBUTES", no_wrap=True, overflow="ellipsis", max_width=max(20, remaining))
    for row, took in zip(rows, tooks, strict=True):
        cells = [Text(safe(row.run_id)), safe_text(row.workflow)]
        if tenants:
            cells.append(safe_text(row.tenant or "-", MUTED))
        cells.append(safe_text(row.status, STATUS.get(row.status, "")))
        if started:
            cells.append(Text(moment(row.started)[5:16] if narrow else moment(row.started), style=MUTED))
        cells.append(Text(took, style="" if row.ended else BUSY))
        if whys or waits:
            why = row.reason or row.error
            style = WARN if row.reason else BAD if row.error else MUTED
            cells.append(safe_text(why or waits_text(row.waits, now_ms), style, 500))
        if attributes:
            cells.append(safe_text(attributes_line(row.attributes), MUTED))
        elif row.attributes:
            cells[0] = Text("\n").join([cells[0], safe_text(attributes_line(row.attributes), MUTED)])
        table.add_row(*cells)
    return table


def quarantine_table(rows: list[QuarantineRow], now_ms: int) -> Table:
    """Ids are shown whole, so that they can be copied, and the reason on as many lines as it needs."""
    table = Table(box=None, pad_edge=False, header_style=MUTED, padding=(0, 2, 0, 0))
    table.add_column("ID", no_wrap=True)
    table.add_column("RUN", overflow="fold", min_width=8)
    table.add_column("KIND", no_wrap=True, overflow="ellipsis", max_width=12)
    table.add_column("AGO", no_wrap=True, justify="right")
    table.add_column("REASON", overflow="fold", min_width=16)
    for row in rows:
        table.add_row(
            safe_text(row.id),
            Text(safe(row.run_id, 256)),
            safe_text(row.kind or "?", limit=60),
            Text(duration(max(0, now_ms - row.at)), style=MUTED),
            Text(safe(row.reason, 500), style=WARN),
        )
    return table


def reasons_of(rows: list[RunRow]) -> Text:
    """Why runs of a listing are stuck, for below the table: one line each, or as many as its reason needs. Why others
    are paused is in the table."""
    lines = [
        Text.assemble(safe_text(row.run_id, limit=256), (" is stuck: ", MUTED), safe_text(row.reason, WARN, 1000))
        for row in rows
        if row.reason and row.status != Status.PAUSED
    ]
    return Text("\n").join(lines)


def format_log_line(at: int, run_id: str, event: AnyEvent) -> Text:
    """One event on one line: time of day, run, what happened, and the facts that matter. See `print_line`."""
    line = Text.assemble((clock(at, with_ms=True), FAINT), "  ", no_wrap=True, overflow="ellipsis")
    line.append_text(safe_text(run_id, MUTED, 256))
    line.append("  ")
    kind = type(event)
    line.append(kind.__name__, style=_STYLES.get(kind, ""))
    for fact, style in _facts(event, at):
        line.append("  ")
        line.append_text(safe_text(fact, style, 500))
    return line


def print_line(console: Console, line: Text) -> None:
    """On a terminal cut to its width, in a pipe whole. (`Console.print` alone wraps, whatever the text says.)"""
    if console.is_terminal:
        console.print(line, no_wrap=True, overflow="ellipsis")
    else:
        console.print(line, soft_wrap=True)


def _facts(event: AnyEvent, at: int) -> list[tuple[str, str]]:
    match event:
        case RunStarted():
            tenant = [(f"tenant {event.tenant}", MUTED)] if event.tenant else []
            return [(event.workflow, "bold"), *tenant, (preview(event.input, PREVIEW), MUTED)]
        case RunCompleted():
            return [(event.workflow, "bold"), (duration(event.ms), ""), (preview(event.result, PREVIEW), MUTED)]
        case events.RunFailed():
            return [(event.workflow, "bold"), (duration(event.ms), ""), (_failure_text(event.failure), BAD)]
        case events.RunCancelled():
            return [(event.workflow, "bold"), (duration(event.ms), ""), (event.reason, MUTED)]
        case RunStuck():
            return [(event.workflow, "bold"), (event.reason, WARN)]
        case RunResumed() | PauseEnded():
            return [(event.workflow, "bold")]
        case RunForked():
            return [(event.workflow, "bold"), (forked_text(event), MUTED)]
        case RunPaused():
            return [(event.workflow, "bold"), (event.says(), WARN)]
        case RunRetried():
            return [(event.workflow, "bold"), (retried_text(event), MUTED)]
        case RunContinued():
            generation = [(f"generation {event.generation + 1}", ""), *_carried(event)]
            return [(event.workflow, "bold"), *generation, (preview(event.input, PREVIEW), MUTED)]
        case CancelRequested():
            return [*([("terminate", "bold")] if event.terminate else []), (event.reason, MUTED)]
        case StartDelayed():
            return [(f"begins in {duration(max(0, event.due - at))}", MUTED)]
        case StartDue():
            return []
        case TimeoutSet():
            return [(f"{duration(event.due - at)} left", MUTED)]
        case TimeoutReached():
            return [(f"not ended within {duration(event.ms)}", WARN)]
        case HistoryLimitReached():
            return [(plural(event.count, "event"), "bold")]
        case Patched():
            return [(event.name, "bold")]
        case Recorded():
            return [(event.name, "bold"), (recorded_text(event), MUTED)]
        case StepScheduled():
            return [(f"{event.name} #{event.seq}", "bold"), (preview(event.args, PREVIEW), MUTED)]
        case StepCompleted():
            tries = [(f"attempt {event.attempt}", WARN)] if event.attempt > 1 else []
            took = [(duration(event.ms), "")]
            return [(f"{event.name} #{event.seq}", "bold"), *took, *tries, (preview(event.result, PREVIEW), MUTED)]
        case StepRetrying():
            when = f"next in {duration(max(0, event.due - at))}" if event.due else "next when the run resumes"
            given_up = event.failure.kind == events.GIVEN_UP
            how = "was given up" if given_up else "was declined" if event.declined else "failed"
            retry = f"attempt {event.attempt} {how}, {when}"
            return [(f"{event.name} #{event.seq}", "bold"), (retry, WARN), (_failure_text(event.failure), BAD)]
        case events.StepFailed():
            tries = f"after {event.attempt} attempt{'s' * (event.attempt != 1)}"
            return [(f"{event.name} #{event.seq}", "bold"), (tries, WARN), (_failure_text(event.failure), BAD)]
        case StepCancelled() | ChildCancelled():
            return [(f"{event.name} #{event.seq}", "bold")]
        case TimerSet():
            return [(f"#{event.seq}", "bold"), (f"due in {duration(max(0, event.due - at))}", MUTED)]
        case TimerFired():
            return [(f"#{event.seq}", "bold")]
        case SignalReceived():
            return [(event.name, "bold"), (preview(event.value, PREVIEW), MUTED)]
        case SignalSkipped():
            return [(event.name, "bold"), ("dropped: it isn't of the type that the code asked for", WARN)]
        case SignalSent():
            return [(event.name, "bold"), (f"to {event.target}", ""), (preview(event.value, PREVIEW), MUTED)]
        case AskReceived():
            return [(event.name, "bold"), (preview(event.value, PREVIEW), MUTED)]
        case AskAnswered():
            if event.failure is not None:
                return [(event.name, "bold"), (_failure_text(event.failure), BAD)]
            return [(event.name, "bold"), (preview(event.result, PREVIEW), MUTED)]
        case ChildStarted():
            return [(f"{event.name} #{event.seq}", "bold"), (event.run_id, ""), (preview(event.input, PREVIEW), MUTED)]
        case ChildCompleted():
            return [(f"{event.name} #{event.seq}", "bold"), (preview(event.result, PREVIEW), MUTED)]
        case events.ChildFailed():
            return [(f"{event.name} #{event.seq}", "bold"), (_failure_text(event.failure), BAD)]
        case MessageQuarantined():
            return [(f"message {event.message}", "bold"), (event.reason, WARN)]


def _carried(event: RunContinued) -> list[tuple[str, str]]:
    carried, dropped = len(event.carried), sum(event.dropped.values())
    return [
        *([(f"{plural(carried, 'message')} carried over", MUTED)] if carried else []),
        *([(f"{plural(dropped, 'message')} dropped that it had never waited for", WARN)] if dropped else []),
    ]


def _failure_text(failure: Failure) -> str:
    return f"{failure.kind}: {failure.message}"
