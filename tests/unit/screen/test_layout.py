"""The status screen: what it shows, that it fits any terminal, and that no data reaches the terminal as a command."""

from __future__ import annotations

import io
import math
import re
from typing import Any

import anyio
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from streamflow import events
from streamflow.errors import Failure, StoreUnavailable
from streamflow.events import NOTHING, RunResumed, RunStarted, RunStuck, StepCompleted, Transition
from streamflow.model.blocked import BlockedLine
from streamflow.screen.layout import StatusScreen, render_status, status_lines
from streamflow.screen.live import watch
from streamflow.screen.sanitize import safe, safe_text
from streamflow.screen.style import duration, number, size, sparkline
from streamflow.status.model import (
    DaemonRow,
    NamespaceStatus,
    Quarantined,
    QuarantineRow,
    Queue,
    Server,
    Shard,
    SubscriberGroup,
    WorkerRow,
    daemon_from,
    shards_from,
)
from streamflow.views.shard_views import ShardViews
from streamflow.wire import Heartbeat

NOW = 1_700_000_000_000
EVIL = (
    "[/] [red]x \x1b[31m \x1b]52;c;aGk=\x07 \x9b2J \x7f \u202egnp.exe\u2066 a\u200bb\nline \r\u2028 \ud800 \U000e0041"
)
HARMFUL = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e01ef]"
)


def views(evil: str = "") -> dict[str, Any]:
    partial = ShardViews()
    for n in range(30):
        run, at = f"run-{n}{evil}", NOW - n * 1000
        partial.fold(run, Transition(at, [RunStarted(f"w{n % 7}{evil}", f"t{n % 3}{evil}", NOTHING)]))
        partial.fold(run, Transition(at, [StepCompleted(1, f"step{n % 9}{evil}", 1, 1.5 * n, NOTHING)]))
        partial.fold(
            run, Transition(at, [events.RunFailed(f"w{n % 7}{evil}", f"t{n % 3}{evil}", 5, Failure(f"E{evil}", evil))])
        )
    partial.fold("odd", Transition(NOW + 500, [RunStuck(f"w1{evil}", "", f"diverged {evil}")]))
    return partial.render(NOW)


def status(daemons: int = 3, shards: int = 256, evil: str = "", **changes: Any) -> NamespaceStatus:
    default = NamespaceStatus(
        namespace=f"default{evil}",
        as_of=NOW,
        server=Server(version=f"7.0{evil}", memory=120_000_000, maxmemory=1 << 30, aof="everysec", ops_per_s=12_345),
        daemons=[
            DaemonRow(
                id=f"m{n}",
                heartbeat=Heartbeat(name=f"host-{n}{evil}", shards=list(range(n, shards, daemons)), unfolded=n),
                beat_age=0.2,
            )
            for n in range(daemons)
        ],
        shards_total=shards,
        shards_unowned=0 if daemons else shards,
        shards=[Shard(number=n, owner=f"m{n % daemons}" if daemons else "") for n in range(shards)],
        views=views(evil),
        oldest=[(f"old{evil}", f"w{evil}", NOW - 90_000)],
        warnings=[f"careful{evil}"] if evil else [],
    )
    return msgspec.structs.replace(default, **changes)


def text(current: NamespaceStatus, width: int = 80, height: int | None = None, problem: str = "") -> str:
    return "\n".join(line.plain for line in status_lines(current, width, height, problem))


# --- safe -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("plain text, ünïcode, 日本", "plain text, ünïcode, 日本"),
        ("[/] [red]", "[/] [red]"),
        ("\x1b[31m", "␛[31m"),
        ("\x1b]52;c;aGk=\x07", "␛]52;c;aGk=␇"),
        ("\x9b2J", "⟨U+009B⟩2J"),
        ("\u202egnp", "⟨U+202E⟩gnp"),
        ("\u2066x\u2069", "⟨U+2066⟩x⟨U+2069⟩"),
        ("a\u200bb\ufeff", "a⟨U+200B⟩b⟨U+FEFF⟩"),
        ("a\r\n\tb\x7f", "a␍␊␉b␡"),
        ("a\u2028b", "a⟨U+2028⟩b"),
        ("a\u00a0b\u3000c", "a b c"),
        ("\ud800", "⟨U+D800⟩"),
        ("x\U000e0101", "x⟨U+E0101⟩"),
    ],
)
def test_what_a_terminal_would_act_on_is_made_visible(raw: str, expected: str) -> None:
    assert safe(raw) == expected


@given(st.text(), st.none() | st.integers(0, 20))
def test_safe_text_has_only_printable_characters_and_keeps_to_its_limit(raw: str, limit: int | None) -> None:
    output = safe(raw, limit)
    assert output.isprintable()
    assert not HARMFUL.search(output)
    assert limit is None or len(output) <= max(limit, 1)


def test_long_text_is_cut_with_an_ellipsis() -> None:
    assert safe("abcdef", 4) == "abc…"
    assert safe("abcd", 4) == "abcd"


def test_markup_in_data_is_only_text() -> None:
    assert safe_text("[bold red]x[/] [/]").plain == "[bold red]x[/] [/]"


# --- formats --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ms", "expected"),
    [
        (0, "0 ms"),
        (0.37, "0.37 ms"),
        (8.24, "8.2 ms"),
        (850, "850 ms"),
        (999.6, "1.0 s"),
        (3_200, "3.2 s"),
        (42_000, "42 s"),
        (59_700, "1 m 00 s"),
        (250_000, "4 m 10 s"),
        (7_500_000, "2 h 05 m"),
        (276_000_000, "3 d 04 h"),
        (-1500, "-1.5 s"),
    ],
)
def test_durations_read_as_people_say_them(ms: float, expected: str) -> None:
    assert duration(ms) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0"), (7, "7"), (0.44, "0.4"), (9.96, "10"), (9_999, "9,999"), (12_345, "12.3k"), (4_560_000, "4.56M")],
)
def test_numbers_are_short(value: float, expected: str) -> None:
    assert number(value) == expected


@given(st.floats(0, 1e12, exclude_max=True))
def test_numbers_never_need_more_than_six_characters(value: float) -> None:
    assert len(number(value)) <= 6 or value >= 999.5e9


def test_sizes_are_in_powers_of_1024() -> None:
    assert [size(512), size(84 << 20), size(int(1.2 * 2**30))] == ["512 B", "84 MB", "1.2 GB"]


def test_a_sparkline_shows_the_newest_values_up_to_the_largest() -> None:
    assert sparkline([0, 1, 4, 8], 4) == "▁▂▅█"
    assert sparkline([9, 9, 0, 0], 2) == "▁▁"
    assert sparkline([], 5) == ""
    assert sparkline([0.001] * 3, 3) == "███"


# --- the model ------------------------------------------------------------------------------------------------------


def test_rates_of_a_daemon_need_two_heartbeats_of_the_same_process() -> None:
    before = Heartbeat(name="h-1", started=1, shards=[1, 2], steps=100, cpu=1.0)
    heartbeat = msgspec.structs.replace(before, steps=300, cpu=1.5)
    restarted = msgspec.structs.replace(heartbeat, started=2)
    daemon = daemon_from("m", heartbeat, before=before, elapsed=2.0)
    assert (daemon.heartbeat, daemon.steps_per_s, daemon.cpu_percent) == (heartbeat, 100.0, 25.0)
    assert daemon_from("m", heartbeat).steps_per_s is None
    assert daemon_from("m", restarted, before=before, elapsed=2.0).steps_per_s is None


def test_shards_of_dead_members_have_no_owner() -> None:
    heartbeats = {"a": Heartbeat(shards=[0, 2]), "b": Heartbeat(shards=[1])}
    assert [shard.owner for shard in shards_from(heartbeats, 4, alive=["a"])] == ["a", "", "a", ""]
    assert [shard.owner for shard in shards_from(heartbeats, 4)] == ["a", "b", "a", ""]


def test_a_status_survives_json() -> None:
    current = status()
    encoded = msgspec.json.encode(msgspec.to_builtins(current))
    assert msgspec.convert(msgspec.json.decode(encoded), NamespaceStatus) == current


# --- the screen -----------------------------------------------------------------------------------------------------


def with_queues(current: NamespaceStatus, *names: str) -> NamespaceStatus:
    current.queues = [Queue(name=name, waiting=12 * n, running=n, workers=n) for n, name in enumerate(names)]
    return current


EXTREMES = {
    "usual": status(),
    "no daemons": status(daemons=0),
    "nothing at all": NamespaceStatus(namespace="default", as_of=NOW),
    "nothing ran": status(daemons=1, views=ShardViews().render(NOW), oldest=[]),
    "big": status(daemons=20, shards=1000, shards_unowned=3),
    "more daemons than letters": status(daemons=70, shards=140),
    "long names": status(evil="-very-long-name" * 20),
    "evil": status(evil=EVIL),
    "queues": with_queues(status(), "gpu", "cpu"),
    "evil queues": with_queues(status(), EVIL),
    "wide characters": status(evil="日本語" * 40),
}


@pytest.mark.parametrize("name", EXTREMES)
@pytest.mark.parametrize(
    ("width", "height"), [(80, 24), (120, 40), (200, 50), (115, 30), (60, 20), (40, 10), (20, 5), (1, 1), (80, None)]
)
def test_every_status_fits_every_terminal(name: str, width: int, height: int | None) -> None:
    lines = status_lines(EXTREMES[name], width, height)
    assert height is None or len(lines) <= height
    assert {line.cell_len for line in lines} == {width}
    assert not any(HARMFUL.search(line.plain) for line in lines)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (200, 50)])
def test_the_output_has_no_escapes_from_data_and_fits_the_terminal(width: int, height: int) -> None:
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, force_terminal=True, color_system="truecolor")
    console.print(render_status(EXTREMES["evil"], width, height))
    plain = re.sub("\x1b\\[[0-9;]*m", "", out.getvalue())  # rich's own colours
    assert not HARMFUL.search(plain)
    assert plain.count("\n") <= height
    assert "[red]" in plain


def test_at_80_by_24_every_part_is_there() -> None:
    output = text(status(), 80, 24)
    for part in ("THROUGHPUT", "RUNS", "DAEMONS 3", "SHARDS 256", "WORKFLOWS 7", "STEPS 9", "FAILURES", "OLDEST OPEN"):
        assert part in output


def test_groups_are_shown_and_one_that_nobody_reads_stands_out() -> None:
    current = status()
    current.groups = [
        SubscriberGroup(name="billing", waiting=1200, behind_ms=90_000, consumers=2),
        SubscriberGroup(name="search", waiting=3, behind_ms=700_000, lost=5, lost_ms=0),
    ]
    output = text(current, 120, 60)
    assert re.search(r"GROUPS 2 +lag +behind +lost +consumers", output)
    assert re.search(r"search +3 +11 m 40 s +5 +none", output)
    assert re.search(r"billing +1,200 +1 m 30 s +0 +2", output)
    assert "GROUPS" not in text(status(), 120, 60)


def test_queues_are_shown_and_a_missing_worker_stands_out() -> None:
    current = with_queues(status(), "gpu", "cpu")
    current.queues[0].waiting = 3
    for width in (80, 120):
        lines = status_lines(current, width, 40)
        output = "\n".join(line.plain for line in lines)
        assert re.search(r"QUEUES 2 +waiting +running +workers", output)
        assert re.search(r"cpu +12 +1 +1\b", output)
        assert re.search(r"gpu +3 +0 +none\b", output)
        assert "QUEUES" not in "".join(line.plain for line in status_lines(status(), width, 40))


def test_a_larger_terminal_shows_more() -> None:
    output = text(status(), 200, 50)
    assert all(f"step{n}" in output for n in range(9))
    assert "TENANTS" in output
    assert "cached" in output


def test_the_map_has_a_cell_for_each_shard_where_space_allows() -> None:
    lines = text(status(daemons=2, shards=64), 80, 24).splitlines()
    assert next(line for line in lines if line.startswith("SHARDS")).split() == ["SHARDS", "64", "ab" * 32]


def test_one_shard_without_owner_shows_in_its_group() -> None:
    current = status(daemons=1, shards=1000)
    current.shards[500].owner = ""
    line = next(line for line in text(current, 80, 24).splitlines() if line.startswith("SHARDS"))
    assert line.count("·") == 1


def test_the_header_lists_problems_the_worst_first() -> None:
    assert "healthy" in text(status(views={}))
    assert "no daemons · " in text(status(daemons=0)).splitlines()[0]
    assert "● 2 shards without owner · 1 run stuck" in text(status(shards_unowned=2))
    full = Server(memory=90, maxmemory=100, fullest=0.9, aof="off")
    assert "memory 90 % full · AOF off" in text(status(views={}, server=full))
    cluster = Server(memory=100, maxmemory=300, fullest=0.9, aof="on", servers=3, away=1)
    first, second = text(status(views={}, server=cluster)).splitlines()[:2]
    assert "1 of 3 servers away · memory of a server 90 % full" in first
    assert "redis · cluster of 3 · 100 B of 300 B" in second


def test_the_header_names_what_a_daemon_reports_about_itself() -> None:
    current = status(daemons=2, views={})
    current.daemons[1].heartbeat.failing = {"relay": "KeyError: 1", "inbox 3": "KeyError: 1"}
    current.daemons[0].heartbeat.hung = 3
    assert "● loop inbox 3 and 1 more failing · 3 threads hung" in text(current)
    current.daemons[0].heartbeat.lost = 7
    assert "● 7 runs lost or set back by the server · loop inbox 3" in text(current, 200)


def test_what_fails_for_single_shards_is_named_with_its_reason() -> None:
    current = status(daemons=2, views={})
    current.daemons[1].heartbeat.broken = {"shard 5": "is stopped: commit: WRONGTYPE sf:{ns/5}:log"}
    current.daemons[1].heartbeat.stopped = 1
    assert "● shard 5 stopped" in text(current)
    assert re.search(r"\nshard 5 +is stopped: commit: WRONGTYPE sf:{ns/5}:log +now", text(current, 200))
    current.daemons[0].heartbeat.stopped = 40
    current.daemons[0].heartbeat.impaired = {"shard 7": "takes no messages: NOPERM", "partition 3 of queue gpu": "x"}
    assert "● 41 shards stopped · partition 3 of queue gpu and 1 more impaired" in text(current, 200)
    assert "takes no messages: NOPERM" in text(current, 200)


def test_what_the_server_refuses_a_worker_is_named_with_its_reason() -> None:
    current = status(daemons=1, views={})
    current.workers = [WorkerRow(name="w1", impaired={"partition 3 of queue gpu": "NOPERM no permission to read"})]
    shown = text(current, 200)
    assert "● partition 3 of queue gpu impaired" in shown
    assert re.search(r"\npartition 3 of queue gpu +NOPERM no permission to read +now", shown)


def test_the_second_line_says_how_many_starts_wait_at_any_width() -> None:
    daemons = [DaemonRow(id=name, heartbeat=Heartbeat(name=name, starts=18_000)) for name in ("a", "b")]
    for width in (60, 80, 200):
        second = status_lines(NamespaceStatus(namespace="ns", as_of=0, daemons=daemons), width)[1].plain
        assert "36,000 starts waiting" in second


def test_failures_are_shown_by_cause_with_the_last_run_of_each() -> None:
    partial = ShardViews()
    trace = '  File "/srv/pay.py", line 48, in charge\n'
    for n in range(1204):
        failure = Failure("ConnectTimeout", f"api.example:{n}", trace)
        partial.fold(f"enrich-{n:04d}", Transition(NOW - 3000 - n, [events.RunFailed("enrich", "", 5, failure)]))
    partial.fold("order-1", Transition(NOW - 60_000, [RunStuck("order", "", "diverged at event 3")]))
    rows = text(status(views=partial.render(NOW)), 110).split("\n")
    [enrich] = [row for row in rows if "ConnectTimeout" in row]
    for part in ("enrich ", "1,204 ✗", "ConnectTimeout: api.example:#  pay.py:48 in charge", "3.0 s", "enrich-0000"):
        assert part in enrich
    [stuck] = [row for row in rows if "diverged" in row]
    assert "1 stuck  diverged at event #" in stuck
    assert "order-1" in stuck
    partial.fold("order-1", Transition(NOW, [RunResumed("order", "", "diverged at event 3", NOW - 60_000)]))
    assert "diverged" not in text(status(views=partial.render(NOW)), 110), "it is stuck no more"


@pytest.mark.parametrize("width", [40, 58, 80, 110, 120, 160, 250])
def test_ids_are_whole_at_any_width(width: int) -> None:
    ids = [f"acme/invoice-17.{n}~k2xq5f7ahn4sw" for n in range(3)]
    cause = {"workflow": "invoice" * 3, "kind": "E", "message": "m" * 90, "where": "w.py:1", "failed": 2, "stuck": 0}
    causes = [{**cause, "first": NOW, "last": NOW, "run_id": run_id} for run_id in ids]
    quarantined = QuarantineRow(id="1023:1764361200000-0", run_id="r", kind="signal", at=NOW, reason="can't be decoded")
    shown = text(
        status(
            views={"causes": {"causes": causes, "others": 0}},
            oldest=[("o" * 36, "invoice" * 3, 0), ("x" * 256, "w", 0)],
            quarantine=Quarantined(count=1, latest=[quarantined]),
        ),
        width,
    )
    for run_id in (*ids, "o" * 36, "1023:1764361200000-0"):
        assert run_id in shown
    assert shown.count("x") >= 256, "on as many lines as it needs"


def test_a_daemon_that_was_blocked_has_its_line() -> None:
    lines = [BlockedLine("workflow order", "order.py:61 (total(items))", 900.0, 12, 3.0, "order-7")]
    current = status(daemons=2)
    assert "blocked" not in text(current, 160)
    current.daemons[1].heartbeat.blocked = lines
    assert re.search(r"DAEMONS 2 .* blocked", text(current, 160))
    assert "blocked 900 ms by workflow order at order.py:61 (total(items))" in text(current, 115)


def test_steps_that_are_tried_again_and_again_are_among_the_failures() -> None:
    row = {"kind": "HTTPError", "message": "429 Too Many", "succeeded": 0, "first": NOW - 9_000, "last": NOW}
    rows = [
        {**row, "step": "crawl", "retries": 9_120, "run_id": "c-1"},
        {**row, "step": "mail", "retries": 10, "succeeded": 3, "run_id": "m-1"},
        {**row, "step": "seldom", "retries": 9, "run_id": "s-1"},
    ]
    shown = text(status(views={"retries": {"minutes": 10, "retries": rows, "others": 0}}), 100)
    assert re.search(r"step crawl +9,120 ↻ +HTTPError: 429 Too Many  0 succeeded .* c-1", shown)
    assert re.search(r"step mail +10 ↻ +HTTPError: 429 Too Many  3 succeeded .* m-1", shown)
    assert "seldom" not in shown


def test_causes_that_are_not_listed_are_counted_below() -> None:
    cause = {"workflow": "w", "kind": "E", "message": "m", "where": "", "failed": 2, "stuck": 1, "first": NOW}
    view = {"days": 7, "causes": [{**cause, "last": NOW, "run_id": "r"}], "others": 17}
    shown = text(status(views={"causes": view}), 100)
    assert "2 ✗ 1 stuck  E: m" in shown
    assert "… and 17 runs of other causes" in shown


def test_stuck_runs_that_no_cause_names_are_counted_below_the_others() -> None:
    cause = {"workflow": "w", "kind": "stuck", "message": "m", "where": "", "failed": 0, "stuck": 2, "first": NOW}
    view = {"days": 7, "causes": [{**cause, "last": NOW, "run_id": "r"}], "others": 0}
    runs = {"status": {"stuck": 5}}
    assert "… and 3 runs stuck of other causes, or for longer" in text(status(views={"causes": view, "runs": runs}), 80)
    alone = text(status(views={"causes": {**view, "causes": []}, "runs": runs}), 80)
    assert "FAILURES" in alone
    assert "… and 5 runs stuck" in alone
    assert "runs stuck of" not in text(status(views={"causes": view, "runs": {"status": {"stuck": 2}}}), 80)


def test_a_quarantined_message_is_a_problem_for_a_day() -> None:
    row = {"run_id": "r", "message": "1-0", "reason": "message: not msgpack"}
    for age, said in ((1, "● 2 messages quarantined"), (24 * 3600 * 1000, "● healthy")):
        view = {"count": 2, "latest": [{"at": NOW - age, **row}]}
        assert said in text(status(views={"quarantine": view}))


@pytest.mark.parametrize(
    ("shard", "said"), [("17", "quarantined in shard 17 not msgpack"), ("", "quarantined not msgpack")]
)
def test_a_quarantined_message_is_shown_with_its_shard(shard: str, said: str) -> None:
    row = {"at": NOW, "run_id": "r", "message": "1-0", "reason": "not msgpack", "shard": shard}
    shown = text(status(views={"quarantine": {"count": 1, "latest": [row]}}), 120)
    assert said in shown


def test_what_is_in_the_quarantine_now_counts_and_is_named_by_its_id() -> None:
    row = QuarantineRow(id="17:1764361200000-0", run_id="r\x1b[31m", kind="signal", at=NOW, reason="not msgpack")
    view = {"count": 9, "latest": [{"at": NOW, "run_id": "q", "message": "1-0", "reason": "gone"}]}
    shown = text(status(views={"quarantine": view}, quarantine=Quarantined(count=2, latest=[row])), 160)
    assert "● 2 messages quarantined" in shown
    assert "17:1764361200000-0" in shown
    assert "for run r␛[31m not msgpack" in shown
    assert "gone" not in shown
    assert "● healthy" in text(status(views={"quarantine": view}, quarantine=Quarantined()))


def test_the_header_names_a_queue_in_which_steps_wait_for_no_worker() -> None:
    queues = [Queue(name="idle"), Queue(name="gpu", waiting=3), Queue(name="cpu", waiting=9, workers=1)]
    assert "● no workers for queue gpu\n" in text(status(views={}, queues=queues)) + "\n"
    queues.append(Queue(name="aux", waiting=1))
    assert "no workers for queue aux and 1 more" in text(status(views={}, queues=queues))
    assert "healthy" in text(status(views={}, queues=queues[2:3]))


def test_a_problem_replaces_the_health_messages() -> None:
    first = text(status(), 80, 24, problem="server unreachable, retrying").splitlines()[0]
    assert "server unreachable, retrying" in first
    assert "stuck" not in first


def test_the_oldest_failure_rows_give_way_to_the_newest() -> None:
    output = text(status(), 80, 24)
    assert "odd" in output, "the stuck run is the newest trouble"
    assert "run-29" not in output


def test_the_screen_takes_the_size_of_the_terminal_each_time_it_is_drawn() -> None:
    out = io.StringIO()
    console = Console(file=out, width=80, height=24)
    screen = StatusScreen()
    screen.status = status()
    for width, height in ((80, 24), (120, 40), (60, 12)):
        console.width, console.height = width, height
        out.truncate(0)
        out.seek(0)
        console.print(screen)
        lines = out.getvalue().rstrip("\n").split("\n")
        assert len(lines) <= height
        assert max(len(line) for line in lines) == width


# --- the live screen ------------------------------------------------------------------------------------------------


def terminal() -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=80, height=24, force_terminal=True, color_system=None, _environ={}), out


def test_the_live_screen_goes_on_after_an_error_and_shows_it() -> None:
    console, out = terminal()

    async def main() -> None:
        done, calls = anyio.Event(), 0

        async def fetch() -> NamespaceStatus:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise StoreUnavailable("no connection \x1b]52;c;aGk=\x07")
            if calls == 4:
                done.set()
            return status(namespace=f"call{calls}")

        with anyio.fail_after(10):
            await watch(fetch, console, interval=0.001, until=done)

    anyio.run(main)
    output = out.getvalue()
    assert "call1" in output
    assert "server unreachable, retrying" in output
    assert "\x1b]52" not in output
    assert output.index("server unreachable") < output.index("call3")


def test_the_terminal_gets_its_own_screen_back_when_watching_is_cancelled() -> None:
    console, out = terminal()

    async def main() -> None:
        with anyio.CancelScope() as scope:

            async def fetch() -> NamespaceStatus:
                scope.cancel()
                return status()

            await watch(fetch, console, interval=math.inf)

    anyio.run(main)
    assert out.getvalue().count("\x1b[?1049h") == 1
    assert out.getvalue().rfind("\x1b[?1049l") > out.getvalue().rfind("\x1b[?1049h")
    assert out.getvalue().rfind("\x1b[?25h") > out.getvalue().rfind("\x1b[?25l")
