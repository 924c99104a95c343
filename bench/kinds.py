"""The kinds of poison of the workload isolation, and what is right for each.

Owns: the table, and the limits. Must not: run anything. Called by: `isolation.py`, tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from .poisons import ENDINGS, UNENCODABLE


class Harm(StrEnum):
    """What a poison does to the process that it is in; the limits follow from it."""

    NONE = "gives way"
    BLOCKS = "blocks"
    KILLS = "kills"


COMPLETED = frozenset({"completed"})
STOPPED = frozenset({"failed", "stuck"})
ANY = COMPLETED | STOPPED

Start = tuple[str, tuple[Any, ...]]
"""Name and arguments of a workflow."""
Place = tuple[str, str]
"""URL and namespace of the server."""


@dataclass(frozen=True)
class Kind:
    """One poison. Several `starts`: several runs at once, each of which must end as one of `ends`.

    `soils`: it leaves something in the processes of its daemons, so that the next poison gets new ones. `queue`: a
    worker has to be there. `takes`: seconds that it takes in any case. `beside`: for so many seconds other processes
    compute on all processors, which have nothing to do with streamflow.
    """

    name: str
    what: str
    starts: Callable[[Place], list[Start]]
    ends: frozenset[str] = STOPPED
    harm: Harm = Harm.NONE
    soils: bool = False
    queue: str | None = None
    takes: float = 0.0
    beside: float = 0.0


def _one(workflow: str, *args: Any) -> Callable[[Place], list[Start]]:
    return lambda place: [(workflow, args)]


def _each(workflow: str, names: list[str]) -> Callable[[Place], list[Start]]:
    return lambda place: [(workflow, (name,)) for name in names]


_RAISED = list(ENDINGS)
_RAISED_IN_TASKS = [name for name in ENDINGS if name != "interrupt"]
"""Ctrl-C in the main thread ends an event loop, so that has a kind of its own."""
_VALUES = list(UNENCODABLE)
_BLOCKS, _KILLS = Harm.BLOCKS, Harm.KILLS

KINDS: tuple[Kind, ...] = (
    # Code that blocks or loops.
    Kind("workflow-sleeps", "time.sleep(8) in a workflow", _one("workflow_sleeps"), harm=_BLOCKS),
    Kind("workflow-loops", "while True in a workflow", _one("workflow_loops"), harm=_BLOCKS),
    Kind("workflow-catches", "the same, catching BaseException", _one("workflow_catches"), harm=_BLOCKS),
    Kind("workflow-del", "a __del__ that loops, in a workflow", _one("workflow_loops_in_del"), ANY, _BLOCKS),
    Kind("workflow-error", "an error whose __str__ loops", _one("workflow_error_loops"), harm=_BLOCKS),
    Kind("workflow-waits", "C code that waits without end", _one("workflow_waits_in_c"), harm=_BLOCKS, soils=True),
    Kind(
        "workflow-c",
        "C code that holds the interpreter, in a workflow",
        _one("workflow_holds_interpreter"),
        ANY,
        _BLOCKS,
        soils=True,
    ),
    Kind(
        "workflow-regex",
        "a regular expression of 6 s, in a workflow",
        _one("workflow_matches"),
        ANY,
        _BLOCKS,
        soils=True,
    ),
    Kind("async-sleeps", "time.sleep(8) in an async step", _one("step_sleeps"), ANY, _BLOCKS),
    Kind("async-loops", "while True in an async step", _one("step_loops"), harm=_BLOCKS, soils=True),
    Kind("async-catches", "the same, catching BaseException", _one("step_catches"), harm=_BLOCKS, soils=True),
    Kind("async-waits", "the same in an async step", _one("step_waits_in_c"), harm=_BLOCKS, soils=True),
    Kind(
        "async-c",
        "C code that holds the interpreter, in an async step",
        _one("step_holds_interpreter"),
        ANY,
        _BLOCKS,
        soils=True,
    ),
    Kind("plain-sleeps", "time.sleep(8) in a plain step with a time-out", _one("plain_step_sleeps")),
    Kind("plain-loops", "a loop of 8 s in a plain step with a time-out", _one("plain_step_loops"), soils=True),
    Kind(
        "plain-c",
        "C code that holds the interpreter, in a plain step",
        _one("plain_step_holds_interpreter"),
        ANY,
        _BLOCKS,
        soils=True,
    ),
    Kind(
        "plain-hangs",
        "64 hanging plain steps, each with a time-out",
        _one("plain_steps_hang", 64),
        harm=_BLOCKS,
        soils=True,
    ),
    Kind(
        "plain-hangs-long",
        "16 plain steps of 8 s, no time-out",
        _one("plain_steps_hang_without_timeout", 16),
        COMPLETED,
        soils=True,
        takes=24.0,
    ),
    # Code that ends its process.
    Kind("workflow-exits", "os._exit in a workflow", _one("workflow_exits"), harm=_KILLS),
    Kind("workflow-segfault", "a segmentation fault in a workflow", _one("workflow_crashes"), harm=_KILLS),
    Kind("async-exits", "os._exit in an async step", _one("step_exits"), harm=_KILLS),
    Kind("plain-killed", "SIGKILL in a plain step, as by the OOM killer", _one("plain_step_is_killed"), harm=_KILLS),
    Kind("process-killed", "the same in a step with process=True", _one("process_step_is_killed")),
    Kind("queue-killed", "the same in a queue's step", _one("queue_step_is_killed"), queue="poison"),
    Kind("async-stops-loop", "an async step stops the event loop", _one("step_stops_the_loop"), ANY, _KILLS),
    Kind(
        "async-closes-files", "an async step closes all file descriptors", _one("step_closes_descriptors"), ANY, _KILLS
    ),
    Kind("async-interrupts", "KeyboardInterrupt in an async step", _one("step_raises", "interrupt"), harm=_KILLS),
    Kind("task-exits", "SystemExit in a task of an async step", _one("task_of_a_step_exits"), ANY, _KILLS),
    Kind("callback-exits", "SystemExit in a callback of an async step", _one("callback_of_a_step_exits"), ANY, _KILLS),
    # Code that raises.
    Kind(
        "workflow-raises",
        "SystemExit, KeyboardInterrupt, GeneratorExit … in workflows",
        _each("workflow_raises", _RAISED),
    ),
    Kind("async-raises", "the same in async steps", _each("step_raises", _RAISED_IN_TASKS)),
    Kind("plain-raises", "the same in plain steps", _each("plain_step_raises", _RAISED)),
    Kind("workflow-recurses", "a recursion without end in a workflow", _one("workflow_recurses")),
    Kind("async-recurses", "the same in an async step", _one("step_recurses")),
    # Event loops, tasks, threads.
    Kind("workflow-group", "asyncio.TaskGroup in a workflow", _one("workflow_opens_a_group")),
    Kind("workflow-task", "asyncio.create_task in a workflow", _one("workflow_creates_a_task")),
    Kind("workflow-timeout", "asyncio.timeout in a workflow", _one("workflow_uses_timeout")),
    Kind(
        "async-leaks", "5,000 tasks that an async step leaves behind", _one("step_leaks_tasks"), COMPLETED, soils=True
    ),
    Kind(
        "async-leaks-busy",
        "100 tasks that never rest, left for 4 s",
        _one("step_leaks_busy_tasks"),
        COMPLETED,
        soils=True,
    ),
    Kind("async-cancels", "an async step cancels all tasks that it finds", _one("step_cancels_all_tasks"), COMPLETED),
    Kind(
        "async-threads",
        "500 threads that an async step leaves behind",
        _one("step_starts_threads"),
        COMPLETED,
        _BLOCKS,
        soils=True,
    ),
    # Payloads.
    Kind("result-huge", "a step's result of 50 MB", _one("result_is_huge")),
    Kind("argument-huge", "an argument of 50 MB", _one("argument_is_huge")),
    Kind("result-undecodable", "a result whose __post_init__ asserts", _one("result_is_undecodable")),
    Kind("signal-undecodable", "a signal whose __post_init__ asserts", _one("signal_is_undecodable")),
    Kind(
        "workflow-unencodable",
        "NaN, half an emoji, no __str__ … as results",
        _each("result_is_unencodable", _VALUES),
        ANY,
    ),
    Kind(
        "async-unencodable",
        "the same as results of async steps",
        _each("step_result_is_unencodable", _VALUES),
        ANY,
    ),
    Kind("error-unshowable", "an error whose __str__ raises SystemExit", _one("error_is_unshowable")),
    # Divergence, depth, width.
    Kind(
        "diverges",
        "200 runs with another argument at each replay",
        lambda place: [("diverges", ())] * 200,
        ANY,
    ),
    Kind("nests-calls", "awaits that nest without end", _one("nests_calls")),
    Kind("nests-values", "a result that nests 100,000 deep", _one("nests_values")),
    Kind("nests-children", "children of children, 100 deep", _one("nests_children", 100), COMPLETED),
    Kind("swarms", "10,000 signals to one run", lambda place: [("is_swarmed", (*place, 10_000))], COMPLETED),
    Kind("fans-out", "10,000 steps at once", _one("fans_out", 10_000), COMPLETED),
    Kind("fans-out-slow", "4,000 steps of 2 s at once", _one("fans_out_slowly", 4000), COMPLETED),
    Kind("children", "2,000 children at once", _one("starts_children", 2000), COMPLETED),
    Kind("timers", "10,000 timers at once", _one("sets_timers", 10_000), COMPLETED),
    Kind("history", "a history of 20,000 events, replayed", _one("has_a_long_history", 20, 500), COMPLETED),
    Kind("publishes", "5,000 published values of 5 KB", _one("publishes_much", 5000), COMPLETED),
    # The process and the machine.
    Kind("control", "no poison: other processes compute for 2 s", lambda _: [], COMPLETED, beside=2.0),
    Kind("memory", "200 MB in a plain step", _one("step_hoards_memory"), COMPLETED),
    Kind("directory", "os.chdir and umask in a step", _one("step_changes_directory"), COMPLETED, soils=True),
    Kind(
        "signals",
        "signal handlers replaced; then a loop in the workflow",
        _one("step_changes_signals_and_loops"),
        STOPPED,
        _BLOCKS,
        soils=True,
    ),
    Kind("forks", "os.fork in an async step", _one("step_forks"), COMPLETED),
    Kind(
        "forks-returns",
        "the same; the child returns into the event loop",
        _one("step_forks_and_returns"),
        ANY,
        soils=True,
    ),
    Kind(
        "interpreter",
        "gc, warnings, logging off; os.environ emptied",
        _one("step_changes_the_interpreter"),
        COMPLETED,
        soils=True,
    ),
    Kind("plain-logs", "20 MB of log lines from a plain step", _one("step_logs_much"), COMPLETED),
    Kind("workflow-logs", "2 MB of log lines from a workflow", _one("workflow_logs_much"), COMPLETED),
)

BY_NAME = {kind.name: kind for kind in KINDS}
