"""Flows whose code blocks its daemon."""

from __future__ import annotations

import asyncio
import ctypes
import re
import time
from pathlib import Path

import streamflow as sf

app = sf.App()


def note(journal: str) -> None:
    with Path(journal).open("a") as file:
        file.write("begun\n")


@app.step(retry=sf.NO_RETRY)
async def block(journal: str, seconds: float) -> str:
    """As a blocking client of some service does in an `async def`."""
    note(journal)
    time.sleep(seconds)  # noqa: ASYNC251
    return "done"


@app.step(retry=sf.NO_RETRY)
async def hold_interpreter(journal: str, seconds: int) -> str:
    """As a library in C that keeps the interpreter's lock: no thread of Python runs meanwhile."""
    note(journal)
    ctypes.PyDLL(None).sleep(seconds)
    return "done"


@app.workflow
async def holds_interpreter_itself(computes: bool) -> None:
    """Without a look for signals: for about a minute, or for ever."""
    if computes:
        sum(range(3_000_000_000))
    else:
        mutex = ctypes.create_string_buffer(256)
        for _ in range(2):
            ctypes.PyDLL(None).pthread_mutex_lock(mutex)


@app.workflow
async def holds_interpreter(journal: str, seconds: int) -> str:
    return await hold_interpreter(journal, seconds)


@app.workflow
async def blocks(journal: str, seconds: float) -> str:
    return await block(journal, seconds)


@app.step
async def work(number: int) -> int:
    return number


@app.workflow
async def innocent(number: int) -> int:
    return await work(number)


@app.workflow
async def spins() -> None:
    while True:
        pass


def deadlock() -> None:
    """Waits in C for ever, and no signal ends that: as some drivers do."""
    mutex = ctypes.create_string_buffer(128)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)


def backtrack() -> None:
    """Holds on to the interpreter: no other thread of the process runs meanwhile."""
    re.match(r"(a+)+$", "a" * 60 + "b")


@app.step
async def add_up_in_step() -> None:
    """Holds on to the interpreter, and never looks for signals."""
    sum(range(10**15))


@app.step
async def lock_up_in_step() -> None:
    """The same without using the processor, and not in its first moment."""
    await asyncio.sleep(0.05)
    mutex = ctypes.create_string_buffer(256)
    for _ in range(2):
        ctypes.PyDLL(None).pthread_mutex_lock(mutex)


@app.step
def add_up_in_plain() -> None:
    sum(range(10**15))


@app.step
def lock_up_in_plain() -> None:
    mutex = ctypes.create_string_buffer(256)
    for _ in range(2):
        ctypes.PyDLL(None).pthread_mutex_lock(mutex)


@app.step
async def add_up_in_task() -> None:
    """The task is the step's own: nobody notes its slices."""
    await asyncio.create_task(add_up())


async def add_up() -> None:
    sum(range(10**15))


@app.step(queue="gpu")
async def add_up_queued() -> None:
    sum(range(10**15))


@app.workflow
async def adds_up_queued() -> None:
    await add_up_queued()


@app.workflow
async def deadlocks() -> None:
    deadlock()


@app.workflow
async def backtracks() -> None:
    backtrack()


@app.step
async def spin() -> None:
    while True:
        pass


@app.step
async def deadlock_in_step() -> None:
    deadlock()


@app.step
async def backtrack_in_step() -> None:
    backtrack()


@app.step(queue="gpu")
async def deadlock_queued(journal: str) -> None:
    note(journal)
    deadlock()


@app.step(queue="gpu")
async def wait_queued(journal: str) -> None:
    """Ends only if it is begun again."""
    note(journal)
    while Path(journal).read_text() == "begun\n":  # noqa: ASYNC110 - another process writes it
        await asyncio.sleep(0.1)


@app.step(queue="gpu")
async def spin_queued() -> None:
    while True:
        pass


_kept: list[object] = []


async def spin_later() -> None:
    await asyncio.sleep(0.1)
    loop_forever()


def loop_forever() -> None:
    while True:
        pass


@app.step(retry=sf.NO_RETRY)
async def leaves(what: str) -> None:
    """Something that loops when the step has ended."""
    loop = asyncio.get_running_loop()
    if what == "task":
        _kept.append(loop.create_task(spin_later()))
    elif what == "callback":
        loop.call_later(0.1, loop_forever)


@app.workflow
async def leaves_behind(what: str) -> None:
    await leaves(what)


STEPS = {
    step.name: step
    for step in (
        spin,
        add_up_in_step,
        lock_up_in_step,
        add_up_in_plain,
        lock_up_in_plain,
        add_up_in_task,
        deadlock_in_step,
        backtrack_in_step,
        spin_queued,
    )
}


@app.workflow
async def calls(step: str) -> None:
    await STEPS[step]()


@app.workflow
async def deadlocks_queued(journal: str) -> None:
    await deadlock_queued(journal)


@app.workflow
async def waits_queued(journal: str) -> str:
    await wait_queued(journal)
    return "waited"


@app.workflow
async def retries_at_once() -> None:
    """Most of the time streamflow's own code is executed: the user's line is seen in few looks."""
    while True:
        try:
            await work(object())  # type: ignore[arg-type]
        except Exception:
            continue


@app.step(retry=sf.NO_RETRY)
async def wait_for_file(journal: str) -> None:
    note(journal)
    while not Path(f"{journal}.go").exists():  # noqa: ASYNC110
        await asyncio.sleep(0.05)


@app.workflow
async def waits(journal: str) -> None:
    await wait_for_file(journal)
