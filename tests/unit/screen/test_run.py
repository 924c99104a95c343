"""One run as a timeline, the listing of runs, and the lines of `tail`."""

from __future__ import annotations

import io
import itertools
import re
from datetime import UTC, datetime
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from rich.console import Console

from streamflow import errors, events
from streamflow.client.waits import RunOwner
from streamflow.errors import Failure
from streamflow.events import (
    NOTHING,
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
    Transition,
)
from streamflow.model.attributes import Attribute
from streamflow.model.causes import FailedAttempt, cause_of
from streamflow.model.failures import failure_of
from streamflow.model.plain import event_json, plain
from streamflow.model.record import Header
from streamflow.model.waits import QueuePlace, StepHolder, Wait
from streamflow.screen.payload import preview
from streamflow.screen.run import RunDetail, run_lines
from streamflow.screen.spans import MAX_ROWS, fold_spans, spans_of
from streamflow.screen.tables import (
    QuarantineRow,
    RunRow,
    format_log_line,
    print_line,
    quarantine_table,
    reasons_of,
    runs_table,
)
from streamflow.screen.waits import ChildWaits, hibernating_wait, owner_line, wait_lines, wait_text, waits_text

NOW = 1_700_000_000_000
EVIL = "[/] [red]x \x1b[31m \x1b]52;c;aGk=\x07 \x9b2J \u202egnp \n"
HARMFUL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
BOOM = Failure(f"ValueError{EVIL}", f"boom{EVIL}", f"Traceback:\n  line 1{EVIL}\n")


def raw(value: Any) -> Raw:
    return Raw(msgspec.msgpack.encode(value))


ONE_OF_EACH: list[AnyEvent] = [
    RunStarted(f"w{EVIL}", f"t{EVIL}", raw([EVIL])),
    StepScheduled(1, f"s{EVIL}", raw([EVIL])),
    StepRetrying(1, f"s{EVIL}", 1, 3.0, BOOM, NOW + 10),
    StepCompleted(1, f"s{EVIL}", 2, 3.0, raw(EVIL)),
    StepScheduled(2, "other", NOTHING),
    events.StepFailed(2, "other", 1, 3.0, BOOM),
    RunForked(f"w{EVIL}", f"t{EVIL}", f"of{EVIL}", 1, 2, 1, 2, [(2, 1)], by=EVIL, reason=EVIL),
    TimerSet(3, NOW + 1000),
    TimerFired(3),
    SignalReceived(f"go{EVIL}", raw({EVIL: EVIL})),
    SignalSkipped(f"go{EVIL}"),
    SignalSent(4, f"go{EVIL}", f"target{EVIL}", raw(1)),
    ChildStarted(5, f"c{EVIL}", f"child{EVIL}", "", NOTHING),
    ChildCompleted(5, f"c{EVIL}", raw(EVIL)),
    ChildStarted(6, "c", "child-6", "", NOTHING),
    events.ChildFailed(6, "c", BOOM),
    StepScheduled(7, "given up", NOTHING),
    StepCancelled(7, f"given up{EVIL}"),
    ChildStarted(8, "c", "child-8", "", NOTHING),
    ChildCancelled(8, f"c{EVIL}"),
    AskReceived("0" * 32, f"may I{EVIL}", raw(EVIL)),
    AskAnswered("0" * 32, f"may I{EVIL}", raw(EVIL)),
    AskReceived("1" * 32, "may I", NOTHING),
    AskAnswered("1" * 32, "may I", NOTHING, BOOM),
    Patched(f"fix{EVIL}"),
    Recorded(f"w{EVIL}", "t", f"tokens{EVIL}", 12.5, {f"model{EVIL}": EVIL}, f"step{EVIL}", 1, 1),
    HistoryLimitReached(5000),
    StartDelayed(NOW + 1000, 60_000),
    StartDue(3),
    TimeoutSet(60_000, NOW + 60_000),
    TimeoutReached(60_000),
    RunContinued(
        f"w{EVIL}",
        "t",
        raw(EVIL),
        0,
        9,
        NOW,
        1,
        [SignalReceived(f"go{EVIL}", raw(EVIL))],
        [(10, f"c{EVIL}", "child-10")],
    ),
    RunStuck("w", "t", EVIL),
    RunResumed("w", "t"),
    RunPaused(f"w{EVIL}", "t", "run", f"kim{EVIL}", EVIL, NOW),
    PauseEnded(f"w{EVIL}", "t"),
    RunRetried(f"w{EVIL}", "t", 1, 4, [(2, 2)], f"kim{EVIL}", EVIL),
    CancelRequested(EVIL),
    CancelRequested(EVIL, terminate=True),
    events.RunCancelled("w", "t", 5, EVIL),
    RunCompleted("w", "t", 5, raw(EVIL)),
    events.RunFailed("w", "t", 5, BOOM),
    MessageQuarantined(EVIL, EVIL),
]


def detail(*steps: tuple[int, list[AnyEvent]], ended: int = 0, now: int = 10_000, **changes: Any) -> RunDetail:
    return RunDetail(
        run_id=changes.pop("run_id", "run-1"),
        header=Header("completed" if ended else "running", len(steps), "c", NOW, ended and NOW + ended, "w", "", ""),
        transitions=[Transition(NOW + at, events) for at, events in steps],
        now_ms=NOW + now,
        **changes,
    )


def lines(run: RunDetail, width: int = 120) -> list[str]:
    return [line.plain for line in run_lines(run, width)]


def row(run: RunDetail, name: str, width: int = 120) -> str:
    found = lines(run, width)
    start = next(at for at, line in enumerate(found) if line.startswith("HISTORY"))
    return next(line for line in found[start:] if line.startswith(name))


# --- timeline -------------------------------------------------------------------------------------------------------


def test_a_bar_lies_where_the_step_was_in_the_time_of_the_run() -> None:
    run = detail(
        (0, [StepScheduled(1, "early", NOTHING)]),
        (5_000, [StepCompleted(1, "early", 1, 4_998.0, raw({"ok": True})), StepScheduled(2, "late", NOTHING)]),
        (10_000, [StepCompleted(2, "late", 1, 5_000.0, NOTHING)]),
        ended=10_000,
    )
    early, late = row(run, "early"), row(run, "late")
    assert early.count("━") == pytest.approx(20, abs=1)
    assert late.index("━") == pytest.approx(early.rindex("━"), abs=1)
    assert "5.0 s" in early
    assert '{"ok":true}' in early


def test_failed_attempts_are_marked_and_counted() -> None:
    run = detail(
        (0, [StepScheduled(1, "fetch", NOTHING)]),
        (3_000, [StepRetrying(1, "fetch", 1, 10.0, BOOM, NOW + 4_000)]),
        (6_000, [StepRetrying(1, "fetch", 2, 10.0, BOOM, NOW + 7_000)]),
        (9_000, [StepCompleted(1, "fetch", 3, 10.0, NOTHING)]),
        ended=10_000,
    )
    assert row(run, "fetch").count("✗") == 2
    assert "×3" in row(run, "fetch")
    assert "9.0 s" in row(run, "fetch"), "with retries, the whole time is shown"


def test_what_is_still_open_ends_in_an_arrow() -> None:
    run = detail(
        (0, [StepScheduled(1, "fetch", NOTHING), TimerSet(2, NOW + 99_000), StepScheduled(3, "again", NOTHING)]),
        (100, [StepRetrying(3, "again", 1, 1.0, BOOM, NOW + 60_000)]),
        (200, [ChildStarted(4, "digest", "kid", "", NOTHING)]),
        children={"kid": "stuck"},
    )
    assert "▶" in row(run, "fetch")
    assert "running" in row(run, "fetch")
    assert "sleeping" in row(run, "sleep")
    assert "waiting" in row(run, "again")
    assert "stuck" in row(run, "digest")


def test_an_ask_lasts_until_its_answer_and_shows_both() -> None:
    run = detail(
        (0, [AskReceived("a" * 32, "reserve", raw(2)), AskReceived("b" * 32, "price", raw("x"))]),
        (5_000, [AskAnswered("a" * 32, "reserve", raw({"left": 3}))]),
    )
    assert '2 → {"left":3}' in row(run, "reserve")
    assert "5.0 s" in row(run, "reserve")
    assert "unanswered" in row(run, "price")


def test_what_nobody_waits_for_any_more_is_shown_as_cancelled() -> None:
    run = detail((0, [StepScheduled(1, "fetch", NOTHING)]), (2_000, [StepCancelled(1, "fetch")]))
    assert "cancelled" in row(run, "fetch")
    assert "▶" not in row(run, "fetch")
    cancelled = events.RunCancelled("w", "", 2_000, "enough")
    delayed = detail((0, [StartDelayed(NOW + 5_000)]), (2_000, [cancelled]), ended=2_000)
    assert "cancelled" in row(delayed, "start")
    assert not any(mark in row(delayed, "start") for mark in ("▶", "sleeping"))


def test_a_continued_run_shows_its_new_input_and_what_it_carries_over() -> None:
    carried: list[SignalReceived | AskReceived] = [SignalReceived("go", raw(7)), AskReceived("a" * 32, "may I", raw(8))]
    begun = RunContinued("w", "", raw(["next"]), 0, 9, NOW, 2, carried, [(4, "audit", "run-1.4")])
    run = detail((0, [begun]), (3_000, [AskAnswered("a" * 32, "may I", raw(True))]))
    assert any(line.startswith("input") and '["next"]' in line for line in lines(run))
    assert "◆" in row(run, "go")
    assert "3.0 s" in row(run, "may I")
    assert "↻" in row(run, "generation 3")
    assert "▶" in row(run, "audit")
    assert any(line.startswith("CHILDREN 1  1 running") for line in lines(run))
    assert event_json(NOW, "run-1", begun)["children"] == [(4, "audit", "run-1.4")]
    assert "1 message carried over" not in format_log_line(NOW, "run-1", begun).plain
    assert "2 messages carried over" in format_log_line(NOW, "run-1", begun).plain
    assert event_json(NOW, "run-1", begun)["carried"][0] == {"event": "signal", "name": "go", "value": 7}
    less = msgspec.structs.replace(begun, dropped={"go": 2, "may I": 1})
    assert "3 messages dropped that it had never waited for" in format_log_line(NOW, "run-1", less).plain
    assert event_json(NOW, "run-1", less)["dropped"] == {"go": 2, "may I": 1}


def test_attributes_and_published_values_are_shown() -> None:
    run = detail(published={"progress": {"done": 3}})
    run.header = msgspec.structs.replace(run.header, attributes={"priority": 2, "customer": "acme"})
    found = lines(run)
    assert 'attributes customer="acme" priority=2' in [re.sub(" +", " ", line).strip() for line in found]
    at = next(number for number, line in enumerate(found) if line.startswith("PUBLISHED"))
    assert re.sub(" +", " ", found[at + 1]).strip() == 'progress {"done":3}'


def test_a_failed_run_shows_its_error_and_traceback() -> None:
    output = "\n".join(
        lines(detail((5, [events.RunFailed("w", "", 5, Failure("E", "why", "Traceback\n  line 1"))]), ended=5))
    )
    assert "E: why" in output
    assert "  line 1" in output


def test_a_retried_run_shows_its_last_error_only_and_that_it_was_retried() -> None:
    gone, last = Failure("Gone", "at first"), Failure("Last", "in the end")
    ends: list[AnyEvent] = [events.StepFailed(1, "fetch", 1, 3.0, gone), events.RunFailed("w", "", 10, gone)]
    steps: list[tuple[int, list[AnyEvent]]] = [
        (0, [StepScheduled(1, "fetch", NOTHING)]),
        (10, ends),
        (9_000, [RunRetried("w", "", 1, 1, [(1, 2)], "kim@host", "it is back")]),
    ]
    assert "error" not in "\n".join(lines(detail(*steps, now=9_500)))
    assert "kim@host: it is back, after Gone: at first" in row(detail(*steps, now=9_500), "retried", 200)
    assert "running" in row(detail(*steps, now=9_500), "fetch"), "it has begun again"
    at_last: list[AnyEvent] = [events.StepFailed(1, "fetch", 2, 3.0, last), events.RunFailed("w", "", 9_600, last)]
    steps.append((9_600, at_last))
    [error] = [line for line in lines(detail(*steps, ended=9_600)) if line.startswith("error")]
    assert "Last: in the end" in error


def test_children_are_listed_with_their_status_and_counted() -> None:
    starts: list[AnyEvent] = [ChildStarted(n, "digest", f"run-1.{n}", "", NOTHING) for n in range(30)]
    run = detail((0, starts), (5, [ChildCompleted(3, "digest", NOTHING)]), children={"run-1.0": "stuck"})
    listed = "\n".join(lines(run))
    assert "CHILDREN 30  1 completed · 28 running · 1 stuck" in listed
    assert "… 10 more" in listed


def test_the_ids_of_children_are_whole_in_80_columns() -> None:
    child = f"acme/{'order' * 8}-17.3~k2xq5f7ahn4sw"
    run = detail((0, [ChildStarted(1, "digest" * 5, child, "", NOTHING)]))
    assert child in "\n".join(lines(run, 80))


def test_a_long_history_is_folded_by_neighbours_of_one_name() -> None:
    schedule: list[AnyEvent] = [StepScheduled(n, "fetch", NOTHING) for n in range(300)]
    done: list[AnyEvent] = [StepCompleted(n, "fetch", 1, 12.0, NOTHING) for n in range(299)]
    failed: list[AnyEvent] = [events.StepFailed(299, "fetch", 1, 12.0, BOOM), StepScheduled(300, "join", NOTHING)]
    run = detail((0, schedule), (50, [*done, *failed]))
    assert "×300" in row(run, "fetch")
    assert "p50 12 ms" in row(run, "fetch")
    assert "1 failed" in row(run, "fetch")
    assert "▶" in row(run, "join")


def test_a_long_history_that_does_not_fold_shows_both_ends() -> None:
    events: list[AnyEvent] = [StepScheduled(n, f"step{n}", NOTHING) for n in range(1000)]
    found = lines(detail((0, events)))
    assert "… 800 more" in [line.strip() for line in found]
    assert any(line.startswith("step999 ") for line in found)
    assert len(found) < MAX_ROWS + 15


def test_short_histories_stay_as_they_are() -> None:
    events: list[AnyEvent] = [StepScheduled(n, "fetch", NOTHING) for n in range(MAX_ROWS)]
    assert len(fold_spans(spans_of([Transition(NOW, events)]))) == MAX_ROWS


def test_outcomes_whose_beginning_was_cut_off_are_ignored() -> None:
    assert spans_of([Transition(NOW, [StepCompleted(7, "s", 1, 1.0, NOTHING), TimerFired(8)])]) == []


@pytest.mark.parametrize("width", [200, 120, 80, 50, 20])
@pytest.mark.parametrize(
    "run",
    [
        detail((0, ONE_OF_EACH), children={f"child{EVIL}": EVIL}, published={f"key{EVIL}": EVIL}, run_id=f"r{EVIL}"),
        detail(),
        detail((0, [StepScheduled(1, "日本語" * 30, NOTHING)])),
        detail((0, [StepScheduled(n, "s" * 128, raw("x" * 5000)) for n in range(500)]), run_id="r" * 256),
        detail((99_000, [StepScheduled(1, "after the end", NOTHING)]), ended=5, now=0),
    ],
    ids=["one of each", "nothing yet", "wide characters", "long", "clock went back"],
)
def test_every_run_fits_every_width_and_stays_on_its_lines(run: RunDetail, width: int) -> None:
    for line in run_lines(run, width):
        assert line.cell_len <= width
        assert not HARMFUL.search(line.plain)
        assert "\n" not in line.plain


# --- payloads -------------------------------------------------------------------------------------------------------


def test_payloads_are_shown_as_compact_json() -> None:
    assert preview(raw({"a": [1, None, True], "b": b"\x00"}), 100) == '{"a":[1,null,true],"b":"AA=="}'
    assert preview(raw("x" * 100), 10) == '"xxxxxxxx…'
    assert preview(raw("x" * 100_000), 50) == "⟨98 KB⟩"


@given(st.binary(max_size=64))
def test_any_bytes_have_a_preview_and_a_json_form(data: bytes) -> None:
    assert preview(data, 40).isprintable()
    msgspec.json.encode(plain(data))


def test_deep_nesting_has_a_preview() -> None:
    assert preview(b"\x91" * 10_000 + b"\xc0", 40)


# --- tail and runs --------------------------------------------------------------------------------------------------


def test_every_kind_of_event_is_covered_here() -> None:
    assert {type(event) for event in ONE_OF_EACH} == set(get_args(AnyEvent))


@pytest.mark.parametrize("event", ONE_OF_EACH, ids=lambda event: type(event).__name__)
def test_every_event_has_one_harmless_line_and_a_json_form(event: AnyEvent) -> None:
    line = format_log_line(NOW, f"run{EVIL}", event)
    assert type(event).__name__ in line.plain
    assert not HARMFUL.search(line.plain)
    assert "\n" not in line.plain
    decoded = msgspec.json.decode(msgspec.json.encode(event_json(NOW, "run-1", event)))
    assert (decoded["at"], decoded["run_id"]) == (NOW, "run-1")


def test_a_line_says_how_long_and_how_often() -> None:
    line = format_log_line(NOW, "run-1", StepCompleted(3, "fetch", 2, 12.0, raw([1]))).plain
    assert line.split("  ")[1:] == ["run-1", "StepCompleted", "fetch #3", "12 ms", "attempt 2", "[1]"]


@pytest.mark.parametrize(("terminal", "whole"), [(True, False), (False, True)])
def test_a_line_is_cut_on_a_terminal_and_whole_in_a_pipe(terminal: bool, whole: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, width=60, force_terminal=terminal, color_system=None)
    print_line(console, format_log_line(NOW, "run-1", SignalReceived("go", raw("x" * 100))))
    assert out.getvalue().count("\n") == 1
    assert ("x" * 100 in out.getvalue()) is whole


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_listing_shows_run_ids_whole_and_nothing_harmful(width: int) -> None:
    out = io.StringIO()
    rows = [
        RunRow(
            run_id="r" * 100, workflow=f"w{EVIL}", tenant=f"t{EVIL}", status="failed", started=NOW, ended=NOW + 4200
        ),
        RunRow(
            run_id=f"run{EVIL}", workflow="w", tenant="", status="running", started=NOW, attributes={"customer": EVIL}
        ),
    ]
    Console(file=out, width=width, color_system=None).print(runs_table(rows, NOW + 60_000, width))
    assert sum(len(found) for found in re.findall("r{4,}", out.getvalue())) == 100, "folded, not cut"
    assert "customer" in out.getvalue()
    assert "4.2 s" in out.getvalue()
    assert "1 m 00 s" in out.getvalue()
    assert not HARMFUL.search(out.getvalue())


def test_quarantined_messages_are_listed_with_whole_ids_and_reasons() -> None:
    long = "the record can't be read: " + "x" * 100 + " its end"
    rows = [
        QuarantineRow("17:1764361200000-0", "r" * 60, "signal", NOW, long),
        QuarantineRow("2:1-0", EVIL, "", 0, EVIL),
    ]
    out = io.StringIO()
    Console(file=out, width=80, color_system=None).print(quarantine_table(rows, NOW + 60_000))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].startswith("17:1764361200000-0 ")
    shown = out.getvalue().replace("\n", "")
    assert shown.count("r" * 8) >= 6
    assert shown.count("x" * 16) >= 5
    assert "\x1b" not in shown


def test_the_reasons_of_stuck_runs_stand_below_the_listing() -> None:
    rows = [
        RunRow(run_id=run_id, workflow="w", tenant="", status="stuck", started=NOW, reason=reason)
        for run_id, reason in (("s-1", ""), ("s-2", f"it diverged{EVIL}"))
    ]
    out = io.StringIO()
    Console(file=out, width=200, color_system=None).print(reasons_of(rows))
    assert out.getvalue().startswith("s-2 is stuck: it diverged")
    assert out.getvalue().count("\n") == 1
    assert not HARMFUL.search(out.getvalue())


def test_a_run_that_is_stuck_for_a_bug_shows_the_error_with_its_lines() -> None:
    bug = Failure("KeyError", "'amont'", '  File "/app/shop.py", line 48, in order\n    return got["amont"]\n')
    started: list[AnyEvent] = [RunStarted("w", "", NOTHING), RunStuck("w", "", "KeyError: 'amont'", bug, "code")]
    stuck = detail((0, started))
    stuck.header = msgspec.structs.replace(stuck.header, status="stuck")
    shown = "\n".join(lines(stuck))
    assert "KeyError: 'amont'" in shown
    assert 'return got["amont"]' in shown
    assert "when other code is deployed" in shown
    resumed = detail((0, started), (5, [RunResumed("w", "")]))
    assert "when other code is deployed" not in "\n".join(lines(resumed))


def test_attributes_get_the_width_that_the_other_columns_leave() -> None:
    attributes: dict[str, Attribute] = {"phase": "review", "subject": "honey bees"}
    row = RunRow(run_id="s-1", workflow="w", tenant="", status="running", started=NOW, attributes=attributes)
    out = io.StringIO()
    Console(file=out, width=130, color_system=None).print(runs_table([row], NOW, 130))
    assert 'phase="review" subject="honey bees"' in out.getvalue()


def test_an_open_step_of_a_queue_says_where_it_is() -> None:
    scheduled: list[AnyEvent] = [
        StepScheduled(1, "embed", Raw(b"\x90"), queue="gpu"),
        StepScheduled(2, "fetch", Raw(b"\x90")),
    ]
    found = lines(detail((0, scheduled)))
    assert any(re.search(r"embed .* queue gpu\b", line) for line in found)
    assert any(re.search(r"fetch .* running\b", line) for line in found)


def test_a_child_that_lost_a_race_is_over_for_its_parent() -> None:
    started = ChildStarted(1, "agent", "run-1.1", "", NOTHING)
    [span] = spans_of([Transition(NOW, [started]), Transition(NOW + 50, [ChildCancelled(1, "agent")])])
    assert (span.end, span.note) == (NOW + 50, "run-1.1 asked to cancel")


def test_a_failure_is_shown_with_its_notes_fields_and_cause() -> None:
    cause = Failure("KeyError", "'token'", '  File "pay.py", line 3, in pay\n')
    failure = Failure("Declined", "no", "whole text\n", ("order 17",), {"code": "card_declined"}, cause)
    group = Failure("ExceptionGroup", "two", "", members=(failure,))
    ended = events.RunFailed("flow", "", 1, group)
    detail = RunDetail(
        run_id="run-1",
        header=Header("failed", 1, "c", 1, 2, "flow", "", ""),
        transitions=[events.Transition(1, [ended])],
        now_ms=3,
    )
    text = "\n".join(line.plain for line in run_lines(detail, 100))
    for part in (
        "ExceptionGroup: two",
        "member 1",
        "Declined: no",
        "order 17",
        "card_declined",
        "because of",
        "KeyError",
    ):
        assert part in text
    assert 'File "pay.py", line 3' in text


# --- why it failed --------------------------------------------------------------------------------------------------


def why(failure: Failure, attempts: list[FailedAttempt], width: int = 100) -> list[str]:
    cause = cause_of("top-1", "top", failure)
    detail = RunDetail(
        run_id="top-1",
        header=Header("failed", 1, "c", 1, 2, "top", "", ""),
        transitions=[events.Transition(1, [events.RunFailed("top", "", 1, failure)])],
        now_ms=NOW,
        cause=cause,
        attempts=attempts,
    )
    return [line.plain.rstrip() for line in run_lines(detail, width)]


def attempt(number: int, seconds_ago: float, text: str = "slow") -> FailedAttempt:
    return FailedAttempt(number, datetime.fromtimestamp(NOW / 1000 - seconds_ago, UTC), 5.0, Failure("Timeout", text))


FRAMES = "".join(f'  File "pay.py", line {n}, in charge\n' for n in range(30))
OF_STEP = failure_of(errors.StepFailed("charge", 9, Failure("Timeout", "api", FRAMES)))


def test_the_root_of_a_failure_comes_first_with_the_attempts_before() -> None:
    failure = failure_of(errors.ChildFailed("pay-1", "payment", OF_STEP))
    found = why(failure, [attempt(n, 100 - 10 * n) for n in range(1, 9)])
    first = next(number for number, line in enumerate(found) if line.startswith("error"))
    assert found[first].startswith("error      ChildFailed: child run pay-1 (payment) failed: StepFailed: ")
    root = next(number for number, line in enumerate(found) if line.startswith("because of"))
    assert found[root] == "because of step charge of run pay-1 (workflow payment), attempt 9: Timeout: api"
    assert found[root + 1 : root + 13] == [f'             File "pay.py", line {n}, in charge' for n in range(18, 30)], (
        "its last frames, more than of the others"
    )
    assert found[root + 13] == "attempt 8  20 s ago  Timeout: slow"
    assert found[root + 17] == "attempt 4  1 m 00 s ago  Timeout: slow"
    assert found[root + 18].strip() == "… 3 more before"
    between = [line for line in found[root + 19 :] if line.startswith(("through", "because of"))]
    assert len(between) == 1
    assert between[0].startswith("through    StepFailed: step charge failed after 9 attempts")
    assert sum("Timeout: api" in line and line.startswith("because") for line in found) == 1, "the root only once"


def test_a_step_of_the_run_itself_is_named_without_the_run() -> None:
    found = why(OF_STEP, [])
    assert "because of step charge, attempt 9: Timeout: api" in found
    assert not any(line.startswith("through") for line in found)


def test_an_error_of_the_workflow_itself_is_shown_as_it_is() -> None:
    found = why(Failure("ValueError", "boom", FRAMES), [])
    assert "error      ValueError: boom" in found
    assert not any(line.startswith("because of") for line in found)


@pytest.mark.parametrize("width", [40, 80])
def test_why_a_run_failed_is_harmless_and_fits(width: int) -> None:
    root = Failure(f"E{EVIL}", EVIL, f'  File "{EVIL}", line 1, in f\n')
    failure = Failure("ChildFailed", EVIL, fields={"run_id": EVIL, "workflow": EVIL}, cause=root)
    found = why(failure, [attempt(1, 1, EVIL)], width)
    assert max(map(len, found)) <= width
    assert not HARMFUL.search("\n".join(found).replace("\n", ""))


@pytest.mark.parametrize("width", [80, 120])
def test_the_listing_says_in_one_line_a_run_why_it_failed(width: int) -> None:
    whys = [
        ("enrich-44d0", "failed", f"ConnectTimeout: api:443 {'and so on ' * 30}{EVIL}", ""),
        ("enrich-44d1", "stuck", "", "diverged at event 3"),
        ("enrich-44d2", "completed", "", ""),
    ]
    rows = [
        RunRow(run_id=run_id, workflow="enrich", tenant="", status=status, started=NOW, error=error, reason=reason)
        for run_id, status, error, reason in whys
    ]
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(runs_table(rows, NOW + 60_000, width))
    lines = out.getvalue().rstrip("\n").split("\n")
    assert len(lines) == 4, "a line each"
    assert lines[0].rstrip().endswith("WHY")
    assert re.search(r"enrich-44d0 +enrich .*failed .* ConnectTimeout: api", lines[1])
    assert "diverged at event 3" in lines[2]
    assert not HARMFUL.search(out.getvalue())
    without = io.StringIO()
    Console(file=without, width=width, color_system=None).print(runs_table(rows[2:], NOW, width))
    assert "WHY" not in without.getvalue()


def instant(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


STEP = Wait(kind="step", name="charge", seq=1, attempt=3, why="ConnectTimeout: api:443", until=instant(NOW + 38_000))
QUEUED = Wait(kind="step", name="render", seq=2, attempt=1, queue="gpu", place=QueuePlace(before=3, workers=0))


@pytest.mark.parametrize(
    ("wait", "text"),
    [
        (Wait(kind="signal", name="approve", type="Approval"), "signal approve: Approval"),
        (Wait(kind="signal", name="go", until=instant(NOW + 7_500_000)), "signal go, 2 h 05 m left"),
        (Wait(kind="question", name="quote", type="int"), "question quote: int"),
        (STEP, "step charge, attempt 3 in 38 s: ConnectTimeout: api:443"),
        (msgspec.structs.replace(STEP, until=instant(NOW)), "step charge, attempt 3 after ConnectTimeout: api:443"),
        (Wait(kind="step", name="charge", attempt=1), "step charge"),
        (QUEUED, "step render in queue gpu"),
        (Wait(kind="child", name="pay", run_id="pay-7"), "child pay pay-7"),
        (Wait(kind="timer", until=instant(NOW + 90_000)), "timer in 1 m 30 s"),
        (Wait(kind="timer", until=instant(NOW - 1)), "timer due now"),
        (Wait(kind="timer", name="timeout()", until=instant(NOW + 1000)), "end of a timeout() block in 1.0 s"),
        (Wait(kind="code", why="it diverged"), "other code"),
        (Wait(kind="start"), "a daemon that begins it"),
        (Wait(kind="message"), "a signal or question"),
        (hibernating_wait(None), "a signal or question"),
        (hibernating_wait(instant(NOW + 90_000)), "a message, or its timer in 1 m 30 s"),
        (Wait(kind="message", why="17 more"), "17 more"),
    ],
)
def test_each_kind_of_wait_is_a_short_line(wait: Wait, text: str) -> None:
    assert wait_text(wait, NOW) == text
    assert waits_text([wait, STEP, QUEUED], NOW) == f"{text} (+2)"
    assert waits_text([], NOW) == ""


def test_a_timer_of_another_day_has_its_date() -> None:
    text = wait_text(Wait(kind="timer", until=instant(NOW + 30 * 86_400_000)), NOW)
    assert re.fullmatch(r"timer until \d{4}-\d\d-\d\d \d\d:\d\d", text)


@pytest.mark.parametrize("width", [80, 120])
def test_the_listing_says_what_runs_wait_for_readably(width: int) -> None:
    approve = Wait(kind="signal", name="approve", type="Approval")
    rows = [
        RunRow(run_id="order-7c1e.4.1~hqal5n2oyg6r4", workflow="order", tenant="", status="running", started=NOW,
               waits=[approve, STEP]),
        RunRow(run_id="order-7c1f", workflow="order", tenant="", status="running", started=NOW, waits=[QUEUED]),
        RunRow(run_id="evil", workflow="order", tenant="", status="running", started=NOW,
               waits=[Wait(kind="signal", name=EVIL, type=EVIL)]),
        RunRow(run_id="order-7c1g", workflow="order", tenant="", status="failed", started=NOW, ended=NOW + 1,
               error="ValueError: no"),
    ]  # fmt: skip
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(runs_table(rows, NOW + 60_000, width))
    lines = out.getvalue().rstrip("\n").split("\n")
    assert max(map(len, lines)) <= width
    assert lines[0].rstrip().endswith("WAITS FOR / WHY")
    assert "signal approve: Approval (+1" in out.getvalue()
    assert "step render in queue gpu" in out.getvalue()
    assert "ValueError: no" in out.getvalue()
    assert not HARMFUL.search(out.getvalue())
    shown = io.StringIO()
    Console(file=shown, width=width, color_system=None).print(runs_table(rows[:3], NOW, width))
    assert shown.getvalue().split("\n")[0].rstrip().endswith("WAITS FOR")


def test_one_run_says_who_has_its_steps_and_what_its_children_wait_for() -> None:
    holder = StepHolder(kind="worker", name="gpu-7", host="box", pid=88, beat_age=0.4)
    claimed = msgspec.structs.replace(
        QUEUED, place=None, holder=holder, details={"page": 7}, reported=instant(NOW - 9000)
    )
    child = Wait(kind="child", name="pay", run_id="pay-7", seq=3)
    detail = RunDetail(
        run_id="r",
        header=Header("running", 2, "c", NOW - 1000, 0, "w", "", ""),
        transitions=[Transition(NOW - 1000, [RunStarted("w", "", NOTHING)])],
        now_ms=NOW,
        waits_for=[claimed, QUEUED, child, Wait(kind="signal", name=EVIL)],
        waits_more=True,
        owner=RunOwner(shard=17, daemon="api-2-71-c0ffee", host="api-2", pid=71, beat_age=0.3),
        below={"pay-7": ChildWaits("running", [STEP, QUEUED])},
    )
    text = "\n".join(line.plain.rstrip() for line in run_lines(detail, 120))
    assert "owner      daemon api-2-71-c0ffee, heartbeat 300 ms ago · shard 17 · process 71 on api-2" in text
    assert "waits for  step render in queue gpu\n" in text
    assert "             runs at worker gpu-7, heartbeat 400 ms ago · process 88 on box\n" in text
    assert "             reported 9.0 s ago: {" in text
    assert "waits for a worker: 3 before it in its partition, no workers take from queue gpu" in text
    assert "child pay pay-7\n             waits for step charge, attempt 3 in 38 s" in text
    assert "older part was not read" in text
    assert not HARMFUL.search(text)


def test_a_run_that_is_stuck_without_a_bug_shows_the_whole_reason() -> None:
    reason = "history and code differ at event 17: the code wants step ship, and the history has step charge, the first"
    detail = RunDetail(
        run_id="s-1",
        header=Header("stuck", 2, "c", NOW - 1000, 0, "w", "", ""),
        transitions=[Transition(NOW - 1000, [RunStarted("w", "", NOTHING), RunStuck("w", "", reason)])],
        now_ms=NOW,
    )
    text = " ".join(" ".join(line.plain for line in run_lines(detail, 80)).split())
    assert f"reason {reason} goes on when other code is deployed, or with streamflow retry s-1" in text


def test_a_cancel_without_a_reason_has_no_line_for_it() -> None:
    for reason in ("", "too late"):
        cancelled = events.RunCancelled("w", "", 5, reason)
        detail = RunDetail(
            run_id="c-1",
            header=Header("cancelled", 2, "c", NOW - 1000, NOW, "w", "", ""),
            transitions=[Transition(NOW - 1000, [RunStarted("w", "", NOTHING), cancelled])],
            now_ms=NOW,
        )
        lines = [line.plain.rstrip() for line in run_lines(detail, 80)]
        assert [line for line in lines if line.startswith("reason")] == ([f"reason     {reason}"] if reason else [])


@pytest.mark.parametrize("run_id", ["r", "r" * 11, "r" * 12, "r" * 20])
@pytest.mark.parametrize("took", [100, 18 * 60_000 + 49_000, 400 * 24 * 3_600_000])
def test_what_is_cut_in_a_listing_ends_with_an_ellipsis(run_id: str, took: int) -> None:
    row = RunRow(
        run_id=run_id, workflow="pic", tenant="", status="stuck", started=NOW, reason="TypeError: " + "x" * 200
    )
    for width in (80, 100, 120):
        out = io.StringIO()
        Console(file=out, width=width, color_system=None).print(runs_table([row], NOW + took, width))
        assert out.getvalue().splitlines()[1].rstrip().endswith("x…")


def test_a_step_that_waits_in_a_paused_queue_says_who_has_paused_it() -> None:
    paused = msgspec.structs.replace(QUEUED, place=QueuePlace(before=0, workers=1, paused="by kim@box: new driver"))
    assert wait_lines([paused], False, NOW, {})[1:] == [
        "  queue gpu is paused by kim@box: new driver",
        "  waits for a worker: 0 before it in its partition, 1 worker of queue gpu",
    ]
    assert not any("paused" in line for line in wait_lines([QUEUED], False, NOW, {}))


def test_a_run_of_a_shard_without_an_owner_says_so() -> None:
    assert owner_line(RunOwner(shard=3)) == "no daemon has shard 3"
    assert owner_line(RunOwner(shard=3, daemon="gone")) == "daemon gone, no heartbeat found · shard 3"


def time_out(run: RunDetail) -> list[str]:
    facts = itertools.takewhile(lambda line: not line.startswith("HISTORY"), lines(run))
    return [" ".join(line.split()) for line in facts if line.startswith("time-out ")]


def test_an_open_run_says_how_much_of_its_time_is_left() -> None:
    limit = TimeoutSet(60_000, NOW + 60_000)
    assert time_out(detail((0, [limit]))) == ["time-out 50 s left of 1 m 00 s"]
    over = detail((0, [limit]), (60_000, [TimeoutReached(60_000)]), now=61_000)
    assert time_out(over) == ["time-out its time of 1 m 00 s is over, it cleans up"]
    stuck = detail((0, [limit, RunStuck("w", "t", "diverged")]))
    stuck.header = msgspec.structs.replace(stuck.header, status="stuck")
    assert time_out(stuck) == ["time-out of 1 m 00 s: stands still while it is stuck"]
    paused = detail((0, [limit]), now=70_000)
    paused.header = msgspec.structs.replace(paused.header, status="paused")
    assert time_out(paused) == ["time-out of 1 m 00 s: stands still while it is paused"]
    workflow = detail((0, [limit]), now=70_000, waits_for=[Wait(kind="pause", name="workflow")])
    assert time_out(workflow) == ["time-out of 1 m 00 s: stands still while it is paused"]
    assert time_out(detail((0, [limit]), (9_000, []), ended=9_000)) == []
    assert time_out(detail((0, []))) == []


def test_a_delayed_start_is_a_bar_up_to_when_it_was_due() -> None:
    run = detail((0, [StartDelayed(NOW + 5_000)]), (5_000, [StartDue()]), (10_000, []), ended=10_000)
    assert "5.0 s" in row(run, "start")
