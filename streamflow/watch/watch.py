"""The thread that watches over the event loop of a daemon or worker.

Owns: the thread, when it looks, warnings that name who blocks, interrupting, and the decision to give up.
Must not: touch what belongs to the loop, except to ask whether it still runs; know keys, shards or claims.
Called by: daemon and worker (start and stop it), the owner (notes which run's code it executes).

One look answers two questions:

    does the code of one run block?   the owner's note says which run and since when; looked at every `blocking` / 2
                                      while there are such notes, so that even short blocks are named
    does the loop still turn?         it is asked at each look, about twice a second, and each tenth of a second as
                                      long as it doesn't answer. The stack says who blocks it

What happens then depends on how long it takes:

    `blocking` / about half a second  a warning names the run or step, and its line
    about half of dead_after          `on_late`: heartbeats are sent for the loop, claims extended
    `interrupt` (code of a run)       it is interrupted by a signal: the run is parked, the attempt fails. Code that
    `interrupt_steps`, or the step's  catches that is interrupted again at its next line, so also where it catches
    time-out                          everything in a loop
    0.25 s later                      code in C that can't be interrupted, or 1 s (5 s for a step) later code that
                                      could, and goes on: `give_up`. The process hands everything over
                                      and exits, so that it is started again; in a process that isn't its own it only
                                      goes silent, so that others take over

All of this needs the interpreter. Code in C that holds on to it is left to two timers of the operating system, see
`signals.py`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import msgspec

from streamflow.process import RESTART
from streamflow.settings import Settings
from streamflow.steps.context import Running, StepInterrupted
from streamflow.steps.stacks import PACKAGE, frames
from streamflow.watch import signals
from streamflow.watch.blocked import BlockedLines
from streamflow.watch.blocker import (
    UNKNOWN_LINE,
    Blocker,
    RunNote,
    blocker_of,
    is_code_of_a_run,
    is_code_of_a_step,
    line_of,
    running_here,
    workflow_line,
    workflow_name,
)
from streamflow.workflow.awaitable import Interrupted

_log = logging.getLogger("streamflow.watch")

EVERY = 0.5
"""Seconds between two looks while all is well."""
LATE_EVERY = 0.1
"""Seconds between two looks while the loop doesn't answer."""
NAME_AFTER = 0.5
"""Seconds without an answer of the loop after which a warning names what blocks it; the next one when it has lasted
twice as long. Before it is asked, up to `EVERY` may have passed."""
LINGER = 0.5
"""Seconds without the code of any run after which only `EVERY` counts; the owner's next note ends that."""
PAUSED = 0.5
"""A look that comes later than planned by this many seconds: the process itself had no processor time."""
TRIES = 20
PAUSE = 0.002
"""Interruptions in a row, and seconds between two."""
RUN_GIVES_WAY = 1.0
STEP_GIVES_WAY = 5.0
"""Seconds after the first interruption after which code counts as one that can't be interrupted: it may clean up..."""
IN_C = 0.25
"""...but if nothing could be raised in it, it waits in C, and no signal ends that."""
LONGEST = 60.0
"""Seconds for which a loop is spoken for that is blocked by nobody known."""
GIVES_UP = "hands everything over and exits with code"
"""What the log says then."""
EXIT_WITHIN = 5.0
"""Seconds for handing over and for the last lines of the log, then the process ends without them."""


class Culprit(msgspec.Struct, frozen=True):
    """What blocked the loop until the watch gave up on it. `run_id` is empty when it is nobody known, `seq` 0 when it
    is the code of the run itself."""

    run_id: str
    seq: int
    reason: str


class _Block(msgspec.Struct):
    """One thing that blocks, as long as it is the same."""

    since: float
    """Monotonic s; later by the time in which the process itself had no processor time."""
    looks: int = 0
    excused: bool = False
    next_warning: float = 0.0
    line: str = UNKNOWN_LINE
    of: str = "a workflow"
    """The workflow, as `BlockedLine` has it."""
    interrupted: float = 0.0
    """When it was interrupted first (monotonic s)..."""
    raised: int = 0
    """...and how often that has raised something in it."""

    def seen_again(self, now: float, overdue: float) -> float:
        """Seconds for which it has blocked. A pause of the whole process is excused, once: code that holds on to the
        interpreter makes looks late, too."""
        self.looks += 1
        if overdue > PAUSED and not self.excused:
            self.excused = True
            self.since = min(now, self.since + overdue)
        return now - self.since


class _Target(msgspec.Struct):
    """What the next signal is for: code of the run that was noted at `since`, or of a step or task: `call`.
    `raised`: how often something was raised there for it."""

    limit: float
    since: float = 0.0
    call: FrameType | None = None
    running: Running | None = None
    timed_out: bool = False
    raised: int = 0


def _nothing(_: float) -> None:
    pass


def _nobody(_: Culprit | None) -> None:
    pass


class Watch:
    """`place` is "daemon" or "worker". All of these are called in the thread, and may block it for a second at most:

    `on_late(seconds)`  at each look at which the loop has not answered for this long
    `on_answer()`       when it answers again, and at the end
    `give_up(culprit)`  once, before the process exits; never unless it is the daemon's or worker's `own_process`
    `on_look(blocked)`  at each look, with what blocks the loop, or ""
    """

    def __init__(
        self,
        place: str,
        settings: Settings,
        *,
        note: RunNote | None = None,
        every: float = EVERY,
        on_late: Callable[[float], None] = _nothing,
        on_answer: Callable[[], None] = lambda: None,
        give_up: Callable[[Culprit], None] = _nobody,
        on_look: Callable[[str], None] | None = None,
        own_process: bool = False,
        end_process: Callable[[int], object] = os._exit,
    ) -> None:
        self.blocked = BlockedLines()
        """What has blocked lately."""
        self._place = place
        self._note = note or RunNote()
        self._threshold = settings.blocking
        self._limit = settings.interrupt
        self._step_limit = settings.interrupt_steps
        self.patience = min((limit for limit in (self._limit, self._step_limit) if limit), default=3600.0)
        self._every = every
        self._late_every = min(LATE_EVERY, every)
        self._noted_every = min(settings.blocking / 2, every)
        self._on_late = on_late
        self._on_answer = on_answer
        self._give_up_on = give_up
        self._on_look = on_look
        self._own_process = own_process
        self._end_process = end_process
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._task_factory: Any = None
        self._interrupts = False
        self._ends_after = 0.0
        """Seconds of processor time without a look after which the process ends itself; 0: never. Code in C that holds
        the interpreter for so long, and doesn't look for signals, leaves no other way."""
        if self._step_limit:
            self._ends_after = max(self._step_limit + STEP_GIVES_WAY, self._limit + RUN_GIVES_WAY)
        self._ends_process = False
        self._stopped = False
        self._woken = threading.Event()
        self._planned = time.monotonic()
        """When the next look should take place."""
        self._noted = 0.0
        """When code of a run was seen last."""
        self._run: _Block | None = None
        self._run_since = 0.0
        """The note that `_run` is about."""
        self._asked = 0.0
        """When the loop was asked for an answer that it has not given yet; 0: it has."""
        self._last_asked = 0.0
        self._late: _Block | None = None
        self._call: _Block | None = None
        self._blocker: Blocker | None = None
        """What the loop executes while it is late, and for how long that has been the same call."""
        self._target: _Target | None = None
        self._former_trace: Any = None
        self._traces = False
        """The main thread is traced, to raise at its next line, and `_former_trace` has to be put back."""
        self._given_up = False

    def start(self) -> None:
        """Call it in the loop. In another thread than the main one nothing can be interrupted."""
        self._loop = asyncio.get_running_loop()
        self._task_factory = self._loop.get_task_factory()
        self._loop_thread = threading.get_ident()
        self._interrupts = signals.listen(self)
        self._ends_process = self._own_process and self._ends_after > 0 and self._interrupts
        self._ends_process = self._ends_process and signals.may_end_process()
        self._note.wake = self._wake
        threading.Thread(target=self._look_forever, name="streamflow-watch", daemon=True).start()

    def stop(self) -> None:
        self._stopped = True
        self._woken.set()
        signals.ignore(self)
        if self._ends_process:
            signals.never_end_process()

    def _wake(self) -> None:
        """The owner executes code again. Called in the loop."""
        self._note.asleep = False
        self._woken.set()

    def _look_forever(self) -> None:
        if self._note.shared is not None:
            self._note.shared.watched_from_here()
        while not self._stopped:
            try:
                pause = self.look()
            except Exception:
                _log.exception("could not look whether the event loop of this %s is blocked, will retry", self._place)
                pause = self._every
            self._planned = time.monotonic() + pause
            self._woken.wait(pause)
            self._woken.clear()
        self._on_answer()

    def look(self) -> float:
        """Returns the seconds until the next look."""
        now = time.monotonic()
        overdue = now - self._planned
        if self._note.shared is not None:
            self._note.shared.looked(now)
        if self._interrupts:
            signals.arm()
        if self._ends_process:
            signals.end_process_after(self._ends_after)
        noted = self._look_at_run(now, overdue)
        late = self._look_at_loop(now, overdue)
        if self._on_look is not None:
            self._on_look(self._what_blocks(now))
        self._note.asleep = not noted
        noted = noted or bool(self._note.since)  # it may have begun between the look and the line above
        return min(self._every, self._late_every if late else self._every, self._noted_every if noted else self._every)

    def _what_blocks(self, now: float) -> str:
        if self._run is not None and now - self._run.since > NAME_AFTER:
            return f"the code of run {self._note.run_id} for {now - self._run.since:.1f} s at {self._run.line}"
        if self._late is not None and self._late.looks > 1 and now - self._late.since > NAME_AFTER:
            what = "code" if self._blocker is None else _name(self._blocker)
            line = UNKNOWN_LINE if self._blocker is None else self._blocker.line
            return f"{what} for {now - self._late.since:.1f} s at {line}"
        return ""

    # --- the code of one run ------------------------------------------------------------------------------------------

    def _look_at_run(self, now: float, overdue: float) -> bool:
        """Whether there was such code a moment ago."""
        note = self._note
        since, run_id = note.since, note.run_id
        if not since:
            self._run = None
            return now - self._noted < LINGER
        self._noted = now
        run = self._run
        if run is None or self._run_since != since:
            # Also seen by the next look: otherwise the whole process may have been without processor time.
            self._run, self._run_since = _Block(since), since
            return True
        blocked = run.seen_again(now, overdue)
        if note.since != since or blocked < self._threshold:
            return True
        if not run.next_warning:
            run.next_warning = 1.0
            run.line = self._line_of_run(since)
            _log.warning(
                "run %s has blocked its daemon for %.0f ms at %s: a workflow only decides; move I/O and long "
                "computation into a step",
                run_id,
                blocked * 1000,
                run.line,
            )
            run.of = self._workflow()
            self.blocked.saw(run.of, run.line, blocked, run_id)
        else:
            self.blocked.saw(run.of, run.line, blocked, run_id, again=True)
        if not self._limit or blocked < self._limit:
            return True
        if self._interrupts:
            run.interrupted = run.interrupted or now
            run.raised += self._insist(_Target(self._limit, since), TRIES)
        stuck = self._late is not None and self._late.looks > 1  # else the note is an old one
        if stuck and note.since == since and blocked >= self._limit + self._gives_way(run, RUN_GIVES_WAY):
            line = self._line_of_run(since)
            run.line = run.line if line == UNKNOWN_LINE else line
            text = f"its code has blocked its daemon for {blocked:.1f} s at {run.line} and can't be interrupted"
            self._give_up(Culprit(run_id, 0, text), f"run {run_id}: {text}")
        return True

    def _workflow(self) -> str:
        name = workflow_name(self._loop_frame())
        return f"workflow {name}" if name else "a workflow"

    def _line_of_run(self, since: float) -> str:
        """Code that calls streamflow in a loop isn't in its own lines all the time."""
        for _ in range(TRIES):
            line = workflow_line(self._loop_frame())
            if line != UNKNOWN_LINE or self._note.since != since:
                return line
            time.sleep(PAUSE)
        return UNKNOWN_LINE

    # --- the loop -----------------------------------------------------------------------------------------------------

    def _look_at_loop(self, now: float, overdue: float) -> bool:
        """Whether the loop is late."""
        if not self._asked:
            if self._late is not None:
                self._late = self._call = self._blocker = self._target = None
                self._given_up = False
                self._on_answer()
            if now - self._last_asked >= 0.9 * self._every:
                self._asked = self._last_asked = now
                self._ask()
            return False
        if now - self._asked < 0.9 * self._every:
            return False
        if self._late is None:
            self._late = _Block(self._asked, next_warning=NAME_AFTER)
        late = self._late.seen_again(now, overdue)
        if self._late.looks == 1:
            return True  # this process itself may have been paused: the loop gets the time until the next look
        blocker = blocker_of(self._loop_frame(), self._loop)
        if not self._asked:
            return True  # it has answered meanwhile: the stack is of something else
        if self._call is None or self._blocker is None or blocker.frame is not self._blocker.frame:
            self._call = _Block(self._began(blocker) or now)
        self._blocker = blocker
        blocked = self._call.seen_again(now, overdue)
        if late >= self._late.next_warning:
            again = self._late.next_warning > NAME_AFTER
            self._late.next_warning = 2 * late
            self._warn(blocker, late, again)
        if blocker.kind in ("step", "task"):
            self._look_at_step(blocker, self._call, blocked, now)
        elif blocker.kind == "own" and late >= LONGEST:
            text = f"the event loop of this {self._place} has been blocked for {late:.0f} s at {blocker.line}"
            self._give_up(Culprit("", 0, text), text)
        if not self._given_up and self._asked:
            self._on_late(late)
        return True

    def _look_at_step(self, blocker: Blocker, call: _Block, blocked: float, now: float) -> None:
        running = blocker.running
        timeout = None if running is None or running.over else running.job.timeout
        timed_out = running is not None and timeout is not None and time.perf_counter() - running.started >= timeout
        if not timed_out and not (self._step_limit and blocked >= self._step_limit):
            return
        first = not call.interrupted
        call.interrupted = call.interrupted or now
        target = _Target(timeout if timed_out and timeout else self._step_limit, 0.0, blocker.frame, running, timed_out)
        if self._interrupts:
            # Code that cleans up after the first one isn't disturbed in that; code that has caught it is.
            call.raised += self._insist(target, 1 if first else TRIES)
        if self._asked and now - call.interrupted >= self._gives_way(call, STEP_GIVES_WAY):
            running = target.running  # the signal's handler may have found it
            what = _name(Blocker(blocker.kind, None, running))
            text = f"{what} has blocked its {self._place} for {blocked:.1f} s at {blocker.line}"
            text += " and can't be interrupted"
            culprit = ("", 0) if running is None else (running.run_id, running.job.seq)
            self._give_up(Culprit(*culprit, text), text)

    def _began(self, blocker: Blocker) -> float:
        """When the slice of a step began (monotonic s), if that is noted; else 0."""
        if self._note.shared is None or blocker.kind != "step" or blocker.running is None:
            return 0.0
        return self._note.shared.began(blocker.running)

    def _ask(self) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._answer)
        except RuntimeError:  # the loop is closed
            self._stopped = True

    def _answer(self) -> None:
        self._asked = 0.0
        if self._traces:
            self._end_trace()
        if self._interrupts:
            signals.keep_listening()
        if self._own_process:
            self._keep_task_factory()

    def _keep_task_factory(self) -> None:
        """A step may have replaced it by one that raises: then nothing here could begin any more."""
        assert self._loop is not None
        if self._loop.get_task_factory() is not self._task_factory:
            self._loop.set_task_factory(self._task_factory)
            _log.warning(
                "the event loop's task factory was replaced, probably by a step, and is put back: the loop is shared "
                "with everything else in this %s",
                self._place,
            )

    def _loop_frame(self) -> FrameType | None:
        return sys._current_frames().get(self._loop_thread)  # pyright: ignore[reportPrivateUsage]

    def _warn(self, blocker: Blocker, late: float, again: bool) -> None:
        if blocker.kind == "run":
            return  # it has been named
        running = blocker.running
        of = "own" if running is None else f"step {running.job.step.name}"
        self.blocked.saw(of, blocker.line, late, "" if running is None else running.run_id, again=again)
        if blocker.kind == "own" or blocker.running is None:
            _log.warning(
                "the event loop of this %s has been blocked for %.1f s at %s: everything else there waits for it",
                self._place,
                late,
                blocker.line,
            )
            return
        _log.warning(
            "%s has blocked the event loop of its %s for %.1f s at %s: everything else there waits for it; await "
            "something that doesn't block, or make the step a plain function, which runs in a thread",
            _name(blocker),
            self._place,
            late,
            blocker.line,
        )

    # --- interrupting -------------------------------------------------------------------------------------------------

    def _gives_way(self, block: _Block, seconds: float) -> float:
        return seconds if block.raised or not self._interrupts else IN_C

    def _insist(self, target: _Target, tries: int) -> int:
        """Code may catch the interruption and continue its loop: try again until it is raised outside of that. Returns
        how often something was raised."""
        self._target = target
        for _ in range(tries):
            if target.call is None and self._note.since != target.since:
                break
            if target.call is not None and not self._asked:
                break
            signals.send(self._loop_thread)
            time.sleep(PAUSE)
        self._target = None
        return target.raised

    def interrupt(self, frame: FrameType | None) -> None:
        """Raise in the code that blocks. Called in the main thread, by a signal."""
        target = self._target or self._unseen(frame)
        if target is None:
            return
        if target.call is None:
            if self._note.since == target.since and is_code_of_a_run(frame):
                self._raise_again_at_lines(target, frame)
                self._interrupt_run(frame)
            return
        if not is_code_of_a_step(frame, target.call):
            return
        running = target.running = running_here()
        if running is not None:  # else it isn't code of a step
            self._raise_again_at_lines(target, frame)
            self._interrupt_step(frame, target, running)

    def _raise_again_at_lines(self, target: _Target, frame: FrameType | None) -> None:
        """Code that was interrupted before has caught it. What it executes next after this time is its handler, which
        is outside of that `try`: raise at its first line, too. The interpreter ends the trace when that has raised."""
        target.raised += 1
        if target.raised == 1:
            return
        if not self._traces:
            self._former_trace, self._traces = sys.gettrace(), True
        for one in frames(frame):
            if one is target.call or one.f_code.co_filename.startswith(PACKAGE):
                continue
            one.f_trace = self._at_line
        sys.settrace(self._at_line)

    def _at_line(self, frame: FrameType, event: str, _: object) -> Any:
        """Only frames are traced that the first interruption has found: others may be of this module."""
        if event != "line":
            return None if event == "call" else self._at_line
        self.interrupt(frame)
        self._end_trace()
        return None

    def _end_trace(self) -> None:
        """It isn't needed any more. If it has raised, the interpreter has put nothing in its place."""
        self._traces = False
        sys.settrace(self._former_trace)

    def _unseen(self, frame: FrameType | None) -> _Target | None:
        """The signal came from the timer: the thread may have had no turn, because code in C held the interpreter."""
        now = time.monotonic()
        unseen = now - self._planned
        if unseen < PAUSED:
            return None
        since = self._note.since
        if since:
            return _Target(self._limit, since) if self._limit and now - since >= self._limit else None
        blocker = blocker_of(frame)
        running = running_here()
        if running is None or blocker.kind not in ("step", "task"):
            return None
        timeout = None if running.over else running.job.timeout
        if timeout is not None and time.perf_counter() - running.started >= timeout:
            return _Target(timeout, 0.0, blocker.frame, running, True)
        if self._step_limit and unseen >= self._step_limit:
            return _Target(self._step_limit, 0.0, blocker.frame, running)
        return None

    def _interrupt_run(self, frame: FrameType | None) -> None:
        line = workflow_line(frame)
        if line == UNKNOWN_LINE and self._run is not None:
            line = self._run.line
        raise Interrupted(
            f"its code did not give way for {self._limit:g} s at {line}: a workflow only decides; move long "
            "computation into a step, and end a loop that retries"
        )

    def _interrupt_step(self, frame: FrameType | None, target: _Target, running: Running) -> None:
        line = line_of(frame, target.call)
        step = running.job.step.name
        if running.over:
            text = (
                f"code that step {step} of run {running.run_id} has left behind blocked the event loop of its "
                f"{self._place} for {target.limit:g} s at {line}: end its tasks before the step returns"
            )
            _log.error("%s; it was interrupted", text)
            raise StepInterrupted(text, timed_out=False)
        if target.timed_out:
            text = f"step {step} took longer than {target.limit:g} s, and blocked the event loop at {line}: "
        else:
            text = f"step {step} blocked the event loop of its {self._place} for {target.limit:g} s at {line}: "
        text += "await something that doesn't block, or make the step a plain function, which runs in a thread"
        running.interrupted = StepInterrupted(text, timed_out=target.timed_out)
        raise running.interrupted

    # --- giving up ----------------------------------------------------------------------------------------------------

    def _give_up(self, culprit: Culprit, text: str) -> None:
        if self._given_up:
            return
        self._given_up = True
        if not self._own_process:
            _log.error(
                "%s: this %s, which shares its process with others, goes silent until it gives way, so that others "
                "take over",
                text,
                self._place,
            )
            return
        timer = threading.Timer(EXIT_WITHIN, self._end_process, (RESTART,))  # whatever the lines below wait for
        timer.daemon = True
        timer.start()
        _log.error(
            "%s: this %s %s %d, so that it is started again",
            text,
            self._place,
            GIVES_UP,
            RESTART,
        )
        try:
            self._give_up_on(culprit)
        except Exception:
            _log.exception("could not hand over; others take over after a time-out")
        for handler in logging.getLogger().handlers:
            handler.flush()
        self._end_process(RESTART)


def _name(blocker: Blocker) -> str:
    if blocker.kind == "run":
        return "the code of a run"
    if blocker.running is None:
        return "code of no known step" if blocker.kind == "own" else "a task of no known step"
    what = f"step {blocker.running.job.step.name} of run {blocker.running.run_id}"
    return f"a task that {what} has left behind" if blocker.running.over else what
