"""When the process beside a daemon says that code in C holds the interpreter, and what it does about it."""

from __future__ import annotations

import json
import os
import signal
import struct
import time
from typing import Any

import pytest
from msgspec import Raw

from streamflow.steps.context import Running
from streamflow.store import heartbeat_child
from streamflow.store.heartbeat_child import Held, Parent, step_line, workflow_line
from streamflow.watch.shared_note import FORMAT, THREAD_FORMAT, SharedNote
from streamflow.workflow.actions import StepJob
from streamflow.workflow.app import Step

PACKAGE = "/lib/streamflow/"
EXECUTOR = f"{PACKAGE}steps/executor.py"


class Daemon:
    """Its main thread, as it is seen in /proc each half a second."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.state, self.used, self.waits = "R", 0.0, 0
        self.threads: dict[int, tuple[str, float, float]] = {}
        """By number: the state, and how much of each second it uses the processor, and how often it waits."""
        self.began = 100.0
        self.note = SharedNote(5.0, 30.0, threads=3)
        self.marks: list[str] = []
        self.signals: list[int] = []
        self.gives_way = False
        self.stack = ""
        self.ended = False
        monkeypatch.setattr(heartbeat_child.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(heartbeat_child.time, "sleep", self._sleep)
        monkeypatch.setattr(heartbeat_child.os, "kill", self._kill)
        monkeypatch.setattr(Parent, "use", lambda _, number=0: self._use(number))
        monkeypatch.setattr(Parent, "threads", lambda _: [os.getpid(), *self.threads])
        monkeypatch.setattr(Parent, "has_ended", lambda _: self.ended)
        settings = {
            "note": self.note.file,
            "stack": self.note.stack,
            "format": FORMAT,
            "thread_format": THREAD_FORMAT,
            "threads": self.note.threads,
            "step_limit": 30.0,
            "after": 0.5,
            "place": "daemon",
            "every": 0.5,
            "script": "",
            "key": "suspects",
            "seconds": 60,
            "body": {"code": {"run_id": "", "shard": 0, "deaths": 2}},
            "body_of_step": {"last": {"run_id": "", "shard": 0, "seq": 1}, "running": [{}]},
            "show": 50,
            "end": int(signal.SIGPROF),
            "package": PACKAGE,
            "machine": f"{PACKAGE}machine/",
            "executor": EXECUTOR,
            "libraries": ["/lib/python/"],
        }
        self._held = Held(settings, Parent(os.getpid()), self)

    def _use(self, number: int) -> tuple[str, float, int]:
        if number in self.threads:
            state, used, waits = self.threads[number]
            passed = self.now - self.began
            return state, used * passed, int(waits * passed)
        return self.state, self.used, self.waits

    def register_script(self, _: str) -> Any:
        return lambda keys, args: self.marks.append(args[1])

    def _sleep(self, seconds: float) -> None:
        self.now += seconds

    def _kill(self, _: int, number: int) -> None:
        self.signals.append(number)
        if number == 50:
            os.write(self.note.stack, self.stack.encode())
        if number == 50 and self.gives_way:
            self.note.code_of("", 0, self.now)
            self.note.looked(self.now)
        self.ended = number == signal.SIGPROF

    def runs(self, seconds: float, used: float = 1.0, waits: float = 0.0) -> None:
        """For so long, `used` of each second on a processor, waiting so many times a second."""
        for _ in range(round(2 * seconds)):
            if self.signals:
                return
            self.now, self.used, self.waits = self.now + 0.5, self.used + used / 2, self.waits + round(waits / 2)
            self._held.look()


def begin_slice(note: SharedNote, timeout: float | None = None) -> None:
    """Step 3 of run bad, of shard 7, has begun and doesn't come back. What it notes in the end is undone."""

    async def held() -> None:
        kept.append(bytes(note.memory))

    kept: list[bytes] = []
    job = StepJob(3, 1, Step(lambda: None, "crunch"), Raw(b"\x90"), timeout=timeout)
    running = Running(7, "bad", job, started=time.perf_counter())
    with pytest.raises(StopIteration):
        note.slices_of(held(), running).send(None)
    note.memory[:] = kept[0]  # the threads, too: there are none yet


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Daemon:
    made = Daemon(monkeypatch)
    made.note.looked(made.now)
    made.note.code_of("bad", 7, made.now)
    return made


def test_code_that_computes_is_noted_and_its_process_ended(daemon: Daemon) -> None:
    daemon.runs(5)
    assert daemon.signals == []
    daemon.runs(2)
    assert daemon.signals == [50, signal.SIGPROF]
    [note] = daemon.marks
    code = json.loads(note)["code"]
    assert (code["run_id"], code["shard"], code["deaths"]) == ("bad", 7, 2)
    assert "blocked its daemon for 6" in code["reason"]


def test_code_that_sleeps_in_one_call_is_noted_too(daemon: Daemon) -> None:
    daemon.state = "S"
    daemon.runs(7, used=0.0)
    assert daemon.signals == [50, signal.SIGPROF]


def test_a_daemon_without_processor_time_is_left_alone(daemon: Daemon) -> None:
    daemon.runs(10, used=0.2)
    daemon.state = "D"
    daemon.runs(10, used=0.0)
    daemon.state = "T"
    daemon.runs(10, used=0.0)
    assert daemon.signals == []


def test_one_that_waits_for_another_thread_is_left_alone(daemon: Daemon) -> None:
    """A plain step holds the interpreter: the main thread wakes again and again to ask for it."""
    daemon.state = "S"
    daemon.runs(30, used=0.0, waits=200.0)
    assert daemon.signals == []


def test_one_whose_watch_still_looks_is_left_alone(daemon: Daemon) -> None:
    for _ in range(10):
        daemon.note.looked(daemon.now)
        daemon.runs(4)
    daemon.note.code_of("", 0, 0.0)
    daemon.runs(30)
    assert daemon.signals == []


WATCH, STEP, OTHER, LIBRARY = 2_000_001, 2_000_002, 2_000_003, 2_000_004
Use = tuple[str, float, float]
ASKS: Use = ("S", 0.0, 200.0)
"""Of a thread that waits for the interpreter."""
SLEEPS: Use = ("S", 0.0, 0.0)
COMPUTES: Use = ("R", 1.0, 0.0)


def begin_plain(note: SharedNote, thread: int, run_id: str) -> None:
    running = Running(7, run_id, StepJob(3, 1, Step(lambda: None, "crunch"), Raw(b"\x90")), thread=10 * thread)
    place = note.thread_begins(running)
    struct.pack_into("<q", note.memory, place, thread)


@pytest.fixture
def asking(daemon: Daemon) -> Daemon:
    """Its watch asks for the interpreter; so does the event loop, and one of two plain steps."""
    daemon.note.code_of("", 0, 0.0)
    daemon.note.watched_from_here()
    struct.pack_into("<q", daemon.note.memory, struct.calcsize(FORMAT), WATCH)
    begin_plain(daemon.note, STEP, "bad")
    begin_plain(daemon.note, OTHER, "other")
    daemon.state = "S"
    daemon.threads = {WATCH: ASKS, STEP: COMPUTES, OTHER: ASKS}
    return daemon


def test_a_plain_step_that_computes_in_c_is_noted_and_its_process_ended(asking: Daemon) -> None:
    other, bad = (
        f"Thread 0x{10 * thread:016x} (most recent call first):\n"
        f'  File "/home/me/{name}.py", line 5 in crunch\n  File "{EXECUTOR}", line 7 in _call\n'
        for thread, name in ((OTHER, "other"), (STEP, "flows"))
    )
    asking.stack = f"{other}\n{bad}"
    asking.runs(29, used=0.0, waits=200.0)
    assert asking.signals == []
    asking.runs(2, used=0.0, waits=200.0)
    assert asking.signals == [50, signal.SIGPROF]
    step = json.loads(asking.marks[-1])["last"]
    assert (step["run_id"], step["shard"], step["seq"]) == ("bad", 7, 3)
    assert "step 3 of run bad has blocked its daemon for 30.1 s at /home/me/flows.py:5 ()" in step["reason"]


def test_a_plain_step_that_sleeps_in_c_is_noted_too(asking: Daemon) -> None:
    asking.threads |= {STEP: SLEEPS, LIBRARY: SLEEPS}
    asking.runs(32, used=0.0, waits=200.0)
    assert asking.signals == [50, signal.SIGPROF]
    assert json.loads(asking.marks[-1])["last"]["run_id"] == "bad"


def test_code_that_computes_without_the_interpreter_is_not_taken_for_it(asking: Daemon) -> None:
    asking.threads |= {LIBRARY: COMPUTES}
    asking.runs(32, used=0.0, waits=200.0)
    assert json.loads(asking.marks[-1])["last"]["run_id"] == "bad"


def test_on_a_busy_machine_it_gets_a_part_of_the_processor_time(asking: Daemon) -> None:
    asking.threads |= {STEP: ("R", 0.1, 5.0), LIBRARY: ("S", 0.02, 5.0)}
    asking.runs(32, used=0.0, waits=200.0)
    assert json.loads(asking.marks[-1])["last"]["run_id"] == "bad"


def test_while_no_thread_looks_like_it_the_process_has_more_time(asking: Daemon) -> None:
    asking.threads |= {STEP: ("D", 0.0, 0.0)}
    asking.runs(34, used=0.0, waits=200.0)
    assert asking.signals == []
    asking.runs(2, used=0.0, waits=200.0)
    assert asking.signals == [signal.SIGPROF]


@pytest.mark.parametrize("other", [SLEEPS, COMPUTES])
def test_if_it_may_be_one_of_two_the_process_ends_and_nobody_is_noted(asking: Daemon, other: Use) -> None:
    asking.threads |= {STEP: other, OTHER: other}
    asking.runs(32, used=0.0, waits=200.0)
    assert asking.signals == [signal.SIGPROF]
    assert asking.marks == []


def test_a_task_that_a_step_has_made_ends_the_process_and_is_not_known(asking: Daemon) -> None:
    """It is executed by the main thread, and nothing is noted of it."""
    asking.state = "R"
    asking.threads |= {STEP: SLEEPS}
    asking.runs(32)
    assert asking.signals == [signal.SIGPROF]
    assert asking.marks == []


def test_a_plain_step_may_hold_it_while_other_code_is_noted(asking: Daemon) -> None:
    """The main thread was in the middle of a run's code when it let go of the interpreter."""
    asking.note.code_of("innocent", 7, asking.now)
    asking.runs(32, used=0.0, waits=200.0)
    assert json.loads(asking.marks[-1])["last"]["run_id"] == "bad"


def test_while_the_main_thread_holds_it_its_own_limit_counts(asking: Daemon) -> None:
    asking.note.code_of("bad", 7, asking.now)
    asking.note.step_limit = SharedNote(5.0, 60.0).step_limit
    begin_slice(asking.note)
    asking.state = "R"
    asking.threads |= {STEP: SLEEPS}
    asking.runs(60)
    assert asking.signals == []


@pytest.mark.parametrize("watch", [("R", 0.0, 0.0), ("T", 0.0, 0.0), ("S", 0.0, 2.0), ("R", 0.3, 10.0)])
def test_a_watch_that_does_not_ask_is_no_reason(asking: Daemon, watch: Use) -> None:
    """The machine has no processor time, the process is stopped, or the watch waits for something else."""
    asking.threads |= {WATCH: watch}
    asking.runs(3600, used=0.0)
    assert asking.signals == []


def test_a_watch_that_gets_its_turn_is_no_reason(asking: Daemon) -> None:
    for _ in range(10):
        asking.runs(20, used=0.0, waits=200.0)
        asking.note.looked(asking.now)
    assert asking.signals == []


def test_a_plain_step_that_gives_way_is_acquitted(asking: Daemon) -> None:
    asking.gives_way = True
    asking.runs(32, used=0.0, waits=200.0)
    assert asking.signals == [50]
    assert asking.marks[1:] == [""]


def test_code_that_gives_way_when_it_is_looked_at_is_acquitted(daemon: Daemon) -> None:
    daemon.gives_way = True
    daemon.runs(7)
    assert daemon.signals == [50]
    assert daemon.marks[1:] == [""]


def test_a_step_has_its_own_limit_and_is_noted_as_the_step_that_blocked(daemon: Daemon) -> None:
    daemon.stack = f'  File "/home/me/flows.py", line 5 in crunch\n  File "{EXECUTOR}", line 7 in _run\n'
    begin_slice(daemon.note)
    daemon.runs(30)
    assert daemon.signals == []
    daemon.runs(2)
    assert daemon.signals == [50, signal.SIGPROF]
    note = json.loads(daemon.marks[-1])
    assert "code" not in note
    assert note["running"] == [note["last"]]
    step = note["last"]
    assert (step["run_id"], step["shard"], step["seq"]) == ("bad", 7, 3)
    assert "step 3 of run bad has blocked its daemon for 31.1 s at /home/me/flows.py:5 ()" in step["reason"]


def test_a_step_past_its_time_out_has_five_seconds(daemon: Daemon) -> None:
    begin_slice(daemon.note, timeout=2.0)
    daemon.runs(7)
    assert daemon.signals == []
    daemon.runs(2)
    assert daemon.signals == [50, signal.SIGPROF]


def test_steps_are_left_alone_that_may_block_for_ever(daemon: Daemon) -> None:
    daemon.note.step_limit = SharedNote(5.0, 0.0).step_limit
    begin_slice(daemon.note)
    daemon.runs(3600)
    assert daemon.signals == []


def test_a_step_that_is_suspended_is_not_noted(daemon: Daemon) -> None:
    begin_slice(daemon.note)
    daemon.note.code_of("", 0, 0.0)
    daemon.runs(60)
    assert daemon.signals == []


def test_the_line_of_a_step_is_the_innermost_one_of_the_user() -> None:
    stacks = (
        'Thread 0x1 (most recent call first):\n  File "/home/me/other.py", line 1 in plain\n'
        f'  File "{EXECUTOR}", line 3 in _call\n\n'
        "Current thread 0x2 (most recent call first):\n"
        '  File "/lib/python/re.py", line 3 in match\n'
        '  File "/home/me/deep.py", line 4 in helper\n'
        '  File "/home/me/flows.py", line 5 in my step\n'
        f'  File "{EXECUTOR}", line 7 in _run\n'
        f'  File "{PACKAGE}steps/slices.py", line 8 in send\n'
        '  File "/lib/python/asyncio/runners.py", line 9 in run\n'
    )
    settings = {"package": PACKAGE, "executor": EXECUTOR, "libraries": ["/lib/python/"]}
    assert step_line(stacks, settings) == "/home/me/deep.py:4 ()"
    decodes = f'  File "/lib/python/json.py", line 3 in loads\n  File "{EXECUTOR}", line 7 in _run\n'
    assert step_line(decodes, settings) == "/lib/python/json.py:3 ()"
    assert step_line("", settings) == "an unknown line"


def test_the_line_is_that_of_the_last_look(daemon: Daemon) -> None:
    frames = '  File "{}", line 1 in flow\n' + f'  File "{PACKAGE}machine/run.py", line 7 in _advance\n'
    daemon.gives_way, daemon.stack = True, frames.format("/a much longer name/first.py")
    daemon.runs(7)
    daemon.signals.clear()
    daemon.gives_way, daemon.stack = False, frames.format("/second.py")
    daemon.note.code_of("bad", 7, daemon.now)
    daemon.runs(7)
    assert "at /second.py:1 (), in C" in json.loads(daemon.marks[-1])["code"]["reason"]


def test_the_line_is_the_first_one_of_the_workflow() -> None:
    stacks = (
        'Thread 0x1 (most recent call first):\n  File "/lib/python/threading.py", line 1 in wait\n\n'
        "Current thread 0x2 (most recent call first):\n"
        '  File "/home/me/deep.py", line 3 in helper\n'
        '  File "/home/me/flows.py", line 5 in my flow\n'
        f'  File "{PACKAGE}machine/run.py", line 7 in _advance\n'
        '  File "/lib/python/asyncio/runners.py", line 9 in run\n'
    )
    settings = {"package": PACKAGE, "machine": f"{PACKAGE}machine/"}
    assert workflow_line(stacks, settings) == "/home/me/flows.py:5 ()"
    assert workflow_line("", settings) == "an unknown line"
