"""The app of the workload isolation: innocent runs, and user code of every kind that could harm them.

Owns: what each poison does; each is bounded in time, count and memory, so that a machine survives all of them.
Must not: say what is right (`kinds.py` does). Called by: daemons (`--app`), `kinds.py` (names).

An innocent run has five steps, one of them plain and one that waits. Each execution of a step adds a line to a journal,
so that none is overlooked: `<key of the step> <pid>`.
"""

# pyright: reportPrivateUsage=false
# ruff: noqa: ASYNC110, ASYNC222, ASYNC251, RSE102, SIM105

from __future__ import annotations

import asyncio
import ctypes
import gc
import itertools
import logging
import os
import re
import resource
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import msgspec

import streamflow as sf

app = sf.App()

JOURNAL = os.environ.get("STREAMFLOW_BENCH_JOURNAL", os.devnull)
"""Read once: a poison empties the environment."""
HARM_SECONDS = float(os.environ.get("STREAMFLOW_BENCH_HARM", "8"))
"""Seconds that something takes that doesn't give way: longer than the limit after which it is interrupted."""

_log = logging.getLogger(__name__)
_kept: list[object] = []
"""What poisons keep alive on purpose."""


# --- innocent runs ----------------------------------------------------------------------------------------------------


def note() -> None:
    # Opened each time: a poison closes all descriptors.
    descriptor = os.open(JOURNAL, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{sf.step_info().key} {os.getpid()}\n".encode())
    finally:
        os.close(descriptor)


@app.step
async def double(value: int) -> int:
    note()
    return 2 * value


@app.step
async def wait(value: int) -> int:
    note()
    await asyncio.sleep(0.01)
    return value + 3


@app.step
def plain(value: int) -> int:
    note()
    return value + 1


@app.workflow
async def innocent(value: int) -> int:
    value = await double(value)
    value = await wait(value)
    value = await plain(value)
    value = await double(value)
    return await double(value)


def right_result(value: int) -> int:
    return 4 * (2 * value + 4)


# --- blocking and looping ---------------------------------------------------------------------------------------------


def spin(seconds: float = 60.0) -> None:
    """Loop without an end that anybody waits for; the bench ends its processes long before."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def spin_and_catch() -> None:
    until = time.monotonic() + 60.0
    while time.monotonic() < until:
        try:
            spin()
        except BaseException:
            pass


def hold_interpreter() -> None:
    """A call into C that doesn't release the interpreter: no other thread of the process runs."""
    ctypes.PyDLL(None).usleep(int(HARM_SECONDS * 1e6))


@app.workflow
async def workflow_sleeps() -> None:
    time.sleep(HARM_SECONDS)


@app.workflow
async def workflow_loops() -> None:
    spin()


@app.workflow
async def workflow_catches() -> None:
    spin_and_catch()


def wait_in_c() -> None:
    """A call into C that waits without end, and that no signal ends, as some drivers have."""
    mutex = ctypes.create_string_buffer(128)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)


@app.workflow
async def workflow_waits_in_c() -> None:
    wait_in_c()


@app.workflow
async def workflow_holds_interpreter() -> None:
    hold_interpreter()


@app.workflow
async def workflow_matches() -> None:
    """A regular expression whose time doubles with each letter: a call into C of six seconds or so."""
    re.match(r"(a+)+$", "a" * 27 + "b")


class LoopsAtItsEnd:
    def __del__(self) -> None:
        spin(HARM_SECONDS)


@app.workflow
async def workflow_loops_in_del() -> str:
    kept = LoopsAtItsEnd()
    await double(1)
    return type(kept).__name__


class Unshowable(Exception):
    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self._act = act

    def __str__(self) -> str:
        self._act()
        return "?"


@app.workflow
async def workflow_error_loops() -> None:
    raise Unshowable(spin)


@app.step(retry=sf.NO_RETRY)
async def sleep_in_async() -> None:
    time.sleep(HARM_SECONDS)


@app.workflow
async def step_sleeps() -> None:
    await sleep_in_async()


@app.step(retry=sf.NO_RETRY)
async def loop_in_async() -> None:
    spin()


@app.workflow
async def step_loops() -> None:
    await loop_in_async()


@app.step(retry=sf.NO_RETRY)
async def catch_in_async() -> None:
    spin_and_catch()


@app.workflow
async def step_catches() -> None:
    await catch_in_async()


@app.step(retry=sf.NO_RETRY)
async def wait_in_async() -> None:
    wait_in_c()


@app.workflow
async def step_waits_in_c() -> None:
    await wait_in_async()


@app.step(retry=sf.NO_RETRY)
async def hold_in_async() -> None:
    hold_interpreter()


@app.workflow
async def step_holds_interpreter() -> None:
    await hold_in_async()


@app.step(retry=sf.NO_RETRY, timeout=0.5)
def sleep_in_plain() -> None:
    time.sleep(HARM_SECONDS)


@app.workflow
async def plain_step_sleeps() -> None:
    await sleep_in_plain()


@app.step(retry=sf.NO_RETRY, timeout=0.5)
def loop_in_plain() -> None:
    spin(HARM_SECONDS)


@app.workflow
async def plain_step_loops() -> None:
    await loop_in_plain()


@app.step(retry=sf.NO_RETRY)
def hold_in_plain() -> None:
    hold_interpreter()


@app.workflow
async def plain_step_holds_interpreter() -> None:
    await hold_in_plain()


@app.workflow
async def plain_steps_hang(number: int) -> None:
    """Each with a time-out, all at once, more than there are threads."""
    await sf.gather(*(sleep_in_plain() for _ in range(number)))


@app.step(retry=sf.NO_RETRY)
def sleep_without_timeout() -> None:
    time.sleep(HARM_SECONDS)


@app.workflow
async def plain_steps_hang_without_timeout(number: int) -> None:
    await sf.gather(*(sleep_without_timeout() for _ in range(number)))


# --- killing ----------------------------------------------------------------------------------------------------------


def kill() -> None:
    """As the kernel does when memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)


def crash() -> None:
    """As a fault in a library written in C."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.string_at(0)


@app.workflow
async def workflow_exits() -> None:
    os._exit(3)


@app.workflow
async def workflow_crashes() -> None:
    crash()


@app.step(retry=sf.NO_RETRY)
async def exit_in_async() -> None:
    os._exit(3)


@app.workflow
async def step_exits() -> None:
    await exit_in_async()


@app.step(retry=sf.NO_RETRY)
def kill_in_plain() -> None:
    kill()


@app.workflow
async def plain_step_is_killed() -> None:
    await kill_in_plain()


@app.step(retry=sf.NO_RETRY, process=True)
def kill_in_process() -> None:
    kill()


@app.workflow
async def process_step_is_killed() -> None:
    await kill_in_process()


@app.step(retry=sf.NO_RETRY, queue="poison")
async def kill_in_queue() -> None:
    kill()


@app.workflow
async def queue_step_is_killed() -> None:
    await kill_in_queue()


@app.step(retry=sf.NO_RETRY)
async def stop_the_loop() -> None:
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0.1)


@app.workflow
async def step_stops_the_loop() -> None:
    await stop_the_loop()


@app.step(retry=sf.NO_RETRY)
async def close_descriptors() -> None:
    os.closerange(3, 4096)


@app.workflow
async def step_closes_descriptors() -> None:
    await close_descriptors()


# --- raising what ends programs ---------------------------------------------------------------------------------------

ENDINGS: dict[str, Callable[[], BaseException]] = {
    "exit": lambda: SystemExit(3),
    "interrupt": KeyboardInterrupt,
    "generator": GeneratorExit,
    "memory": MemoryError,
    "cancelled": asyncio.CancelledError,
    "stop": StopAsyncIteration,
}


@app.workflow
async def workflow_raises(name: str) -> None:
    raise ENDINGS[name]()


@app.step(retry=sf.NO_RETRY)
async def raise_in_async(name: str) -> None:
    raise ENDINGS[name]()


@app.workflow
async def step_raises(name: str) -> None:
    await raise_in_async(name)


@app.step(retry=sf.NO_RETRY)
def raise_in_plain(name: str) -> None:
    raise ENDINGS[name]()


@app.workflow
async def plain_step_raises(name: str) -> None:
    await raise_in_plain(name)


async def exit_in_task() -> NoReturn:
    sys.exit(3)


@app.step(retry=sf.NO_RETRY)
async def exit_in_a_task() -> None:
    await asyncio.create_task(exit_in_task())


@app.workflow
async def task_of_a_step_exits() -> None:
    await exit_in_a_task()


@app.step(retry=sf.NO_RETRY)
async def exit_in_a_callback() -> None:
    asyncio.get_running_loop().call_soon(sys.exit, 3)
    await asyncio.sleep(0.1)


@app.workflow
async def callback_of_a_step_exits() -> None:
    await exit_in_a_callback()


def recurse(depth: int) -> int:
    return recurse(depth + 1) + 1


@app.workflow
async def workflow_recurses() -> int:
    return recurse(0)


@app.step(retry=sf.NO_RETRY)
async def recurse_in_async() -> int:
    return recurse(0)


@app.workflow
async def step_recurses() -> int:
    return await recurse_in_async()


# --- asyncio ----------------------------------------------------------------------------------------------------------


@app.workflow
async def workflow_opens_a_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(1))


@app.workflow
async def workflow_creates_a_task() -> None:
    _kept.append(asyncio.create_task(asyncio.sleep(1)))
    await double(1)


@app.workflow
async def workflow_uses_timeout() -> None:
    async with asyncio.timeout(0):
        await double(1)


@app.step(retry=sf.NO_RETRY)
async def leak() -> None:
    """Tasks that are left behind, and wait."""
    _kept.extend(asyncio.create_task(asyncio.sleep(HARM_SECONDS)) for _ in range(5000))


@app.workflow
async def step_leaks_tasks() -> None:
    await leak()


async def busy(until: float) -> None:
    while time.monotonic() < until:
        await asyncio.sleep(0)


@app.step(retry=sf.NO_RETRY)
async def leak_busy() -> None:
    """Tasks that are left behind, and never rest, though each gives way."""
    until = time.monotonic() + HARM_SECONDS / 2
    _kept.extend(asyncio.create_task(busy(until)) for _ in range(100))


@app.workflow
async def step_leaks_busy_tasks() -> None:
    await leak_busy()


@app.step(retry=sf.NO_RETRY)
async def cancel_all() -> None:
    for task in asyncio.all_tasks():
        if task is not asyncio.current_task():
            task.cancel()


@app.workflow
async def step_cancels_all_tasks() -> None:
    await cancel_all()


# --- payloads ---------------------------------------------------------------------------------------------------------


@app.step(retry=sf.NO_RETRY)
async def give_much() -> str:
    return "x" * 50_000_000


@app.workflow
async def result_is_huge() -> str:
    return await give_much()


@app.step(retry=sf.NO_RETRY)
async def take(value: Any) -> int:
    return len(value)


@app.workflow
async def argument_is_huge() -> int:
    return await take("x" * 50_000_000)


class Never(msgspec.Struct):
    """A type that can be made, and never read."""

    value: int

    def __post_init__(self) -> None:
        assert self.value < 0, "never right"


@app.step(retry=sf.NO_RETRY)
async def give_never() -> Never:
    never = Never(-1)
    never.value = 1
    return never


@app.workflow
async def result_is_undecodable() -> int:
    return (await give_never()).value


@app.workflow
async def signal_is_undecodable() -> int:
    await sf.send_signal(sf.info().run_id, "never", {"value": 1})
    return (await sf.signal("never", Never, timeout=1.0)).value


class AssertsWhenRead:
    def __init__(self) -> None:
        self.value = 1

    def __str__(self) -> str:
        raise RuntimeError("can't be shown")

    __repr__ = __str__


UNENCODABLE: dict[str, Callable[[], object]] = {
    "nan": lambda: float("nan"),
    "half": lambda: "\ud83d",
    "object": AssertsWhenRead,
    "integer": lambda: 2**70,
    "lambda": lambda: lambda: 0,
    "circle": lambda: _circle(),
}


def _circle() -> list[object]:
    circle: list[object] = []
    circle.append(circle)
    return circle


@app.workflow
async def result_is_unencodable(name: str) -> Any:
    return UNENCODABLE[name]()


@app.step(retry=sf.NO_RETRY)
async def give_unencodable(name: str) -> Any:
    return UNENCODABLE[name]()


@app.workflow
async def step_result_is_unencodable(name: str) -> Any:
    return await give_unencodable(name)


def fail_to_show() -> None:
    raise SystemExit("can't be shown")


@app.step(retry=sf.NO_RETRY)
async def raise_unshowable() -> None:
    raise Unshowable(fail_to_show)


@app.workflow
async def error_is_unshowable() -> None:
    await raise_unshowable()


# --- divergence, depth, width -----------------------------------------------------------------------------------------

_numbers = itertools.count()


@app.workflow
async def diverges() -> int:
    """Another argument at each replay. It waits, so that it is evicted and replayed: the bench's cache is small."""
    value = await double(next(_numbers))
    await sf.sleep(3.0)
    return await double(value)


async def deeper(depth: int) -> int:
    return await deeper(depth + 1) + await double(depth)


@app.workflow
async def nests_calls() -> int:
    return await deeper(0)


@app.workflow
async def nests_values() -> Any:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return value


@app.workflow
async def nests_children(depth: int) -> int:
    return 1 + await nests_children(depth - 1) if depth else 0


@app.step(process=True, retry=sf.NO_RETRY)
def send_many(url: str, namespace: str, run_id: str, number: int) -> None:
    async def send() -> None:
        async with sf.connect(url, namespace=namespace) as client:
            run = client.run(run_id)
            for _ in range(number // 500):
                await asyncio.gather(*(run.signal("swarm", 1) for _ in range(500)))

    asyncio.run(send())


@app.workflow
async def is_swarmed(url: str, namespace: str, number: int) -> int:
    received = 0
    async with sf.task_group() as group:
        group.start_soon(send_many, url, namespace, sf.info().run_id, number)
        while received < number:
            received += await sf.signal("swarm", int)
    return received


@app.step
async def work(value: int) -> int:
    return value


@app.workflow
async def fans_out(number: int) -> int:
    return len(await sf.gather(*(work(value) for value in range(number))))


@app.step
async def work_slowly(value: int) -> int:
    await asyncio.sleep(2.0)
    return value


@app.workflow
async def fans_out_slowly(number: int) -> int:
    """More than a daemon runs at once, and each takes a while."""
    return len(await sf.gather(*(work_slowly(value) for value in range(number))))


@app.workflow
async def child(value: int) -> int:
    return await work(value)


@app.workflow
async def starts_children(number: int) -> int:
    return len(await sf.gather(*(child(value) for value in range(number))))


@app.workflow
async def sets_timers(number: int) -> int:
    return len(await sf.gather(*(sf.sleep(1.0) for _ in range(number))))


@app.workflow
async def has_a_long_history(batches: int, width: int) -> int:
    """It waits at the end, so that it is evicted, and replayed whole."""
    total = 0
    for _ in range(batches):
        total += len(await sf.gather(*(work(value) for value in range(width))))
    await sf.sleep(1.0)
    return total + await work(0)


@app.workflow
async def publishes_much(number: int) -> int:
    for value in range(number):
        sf.publish(f"key-{value % 200}", "x" * 5000)
    return await work(number)


# --- the process, the machine -----------------------------------------------------------------------------------------


@app.step(retry=sf.NO_RETRY)
def hoard() -> int:
    memory = [b"x" * 1_000_000 for _ in range(200)]
    time.sleep(2.0)
    return len(memory)


@app.workflow
async def step_hoards_memory() -> int:
    return await hoard()


@app.step(retry=sf.NO_RETRY)
async def change_directory() -> None:
    os.chdir("/")
    os.umask(0o777)


@app.workflow
async def step_changes_directory() -> None:
    await change_directory()


@app.step(retry=sf.NO_RETRY)
async def change_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGURG, signal.SIGCHLD, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


@app.workflow
async def step_changes_signals_and_loops() -> None:
    """The daemon interrupts code by a signal."""
    await sf.gather(*(change_signals() for _ in range(4)))
    spin()


@app.step(retry=sf.NO_RETRY)
async def fork_and_exit() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pid = os.fork()
    if pid == 0:
        os._exit(0)
    return os.waitpid(pid, 0)[1]


@app.workflow
async def step_forks() -> int:
    return await fork_and_exit()


@app.step(retry=sf.NO_RETRY)
async def fork_and_return() -> int:
    """The child returns into a copy of the daemon, with the connections of the daemon. It ends by itself."""
    pid = os.fork()
    if pid == 0:
        signal.setitimer(signal.ITIMER_REAL, 5.0)
    return 0


@app.workflow
async def step_forks_and_returns() -> int:
    return await fork_and_return()


@app.step(retry=sf.NO_RETRY)
async def start_threads() -> None:
    """Each of them waits and ends by itself."""
    gate = threading.Event()
    for _ in range(500):
        threading.Thread(target=gate.wait, args=(HARM_SECONDS,), daemon=True).start()


@app.workflow
async def step_starts_threads() -> None:
    await start_threads()


@app.step(retry=sf.NO_RETRY)
async def change_interpreter() -> None:
    gc.disable()
    sys.setswitchinterval(1.0)
    warnings.simplefilter("error")
    logging.disable(logging.CRITICAL)
    os.environ.clear()


@app.workflow
async def step_changes_the_interpreter() -> None:
    await change_interpreter()


@app.step(retry=sf.NO_RETRY)
def log_much() -> None:
    for number in range(20_000):
        _log.warning("%d %s", number, "x" * 1000)


@app.workflow
async def step_logs_much() -> None:
    await log_much()


@app.workflow
async def workflow_logs_much() -> None:
    for number in range(2000):
        _log.warning("%d %s", number, "x" * 1000)
    await work(1)


def line_is_in(text: str) -> bool:
    """Whether a text names a line of this file."""
    return re.search(rf"{re.escape(Path(__file__).name)}\W+(?:line )?\d+", text) is not None


# --- for hostile surroundings: nothing of this harms by itself --------------------------------------------------------


@app.workflow
async def naps(seconds: float) -> None:
    await sf.sleep(seconds)


@app.workflow
async def parks() -> None:
    await sf.signal("go", Any)


@app.step
async def give_bytes(size: int) -> bytes:
    return bytes(size)


@app.workflow
async def keeps_bytes(steps: int, size: int, waits: bool) -> int:
    """A history of so many results of that size, which is replayed for a signal if it `waits`."""
    total = 0
    for _ in range(steps):
        total += len(await give_bytes(size))
    if waits:
        await sf.signal("go", Any)
    return total
