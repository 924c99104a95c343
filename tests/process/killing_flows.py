"""Flows whose code ends its own process, beside innocent ones. Each execution of a step is noted in a journal."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from pathlib import Path

import streamflow as sf

app = sf.App()


def note(journal: str, text: str) -> None:
    with Path(journal).open("a") as file:
        file.write(f"{text}\n")


def executions(journal: Path) -> Counter[str]:
    """How often each text was noted."""
    return Counter(journal.read_text().split("\n")[:-1])


@app.step
async def kill(journal: str, after: float) -> None:
    """As the kernel does when memory is short."""
    note(journal, "kill")
    await asyncio.sleep(after)
    os.kill(os.getpid(), signal.SIGKILL)


@app.step(queue="killers")
async def kill_worker(journal: str, after: float) -> None:
    note(journal, "kill")
    await asyncio.sleep(after)
    os.kill(os.getpid(), signal.SIGKILL)


@app.step
async def work(journal: str, name: str, seconds: float) -> str:
    note(journal, name)
    await asyncio.sleep(seconds)
    return name


@app.step(queue="killers")
async def work_in_queue(journal: str, name: str, seconds: float) -> str:
    note(journal, name)
    await asyncio.sleep(seconds)
    return name


@app.workflow
async def killer(journal: str, after: float) -> None:
    await kill(journal, after)


@app.workflow
async def killer_of_workers(journal: str, after: float) -> None:
    await kill_worker(journal, after)


@app.workflow
async def killing_code(journal: str, step_first: bool) -> None:
    """The code of the run itself ends the process: at its start, or after a step."""
    if step_first:
        await work(journal, "before", 0.1)
    note(journal, "kill")
    os.kill(os.getpid(), signal.SIGKILL)


@app.workflow
async def innocent(journal: str, name: str, seconds: float) -> str:
    return await work(journal, name, seconds)


@app.workflow
async def innocent_of_queue(journal: str, name: str, seconds: float) -> str:
    return await work_in_queue(journal, name, seconds)


@app.step
async def fork_and_return(journal: str) -> int:
    """The copy of the daemon comes back from the step, too."""
    child = os.fork()
    if child == 0:
        note(journal, "child")
        return -1
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])  # noqa: ASYNC222


@app.step
def fork_and_raise(journal: str) -> int:
    child = os.fork()
    if child == 0:
        note(journal, "child")
        raise ValueError("in the child")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@app.workflow
async def forks(journal: str) -> list[int]:
    return [await fork_and_return(journal), await fork_and_raise(journal)]


@app.step
async def count(journal: str, until: int) -> int:
    """Continues from what it reported last. Ends when it is released, too."""
    began: int = sf.step_info().details or 0
    note(journal, f"from {began}")
    for number in range(began, until):
        if released(journal).exists():
            break
        await asyncio.sleep(0.1)
        sf.heartbeat(number + 1)
    return began


@app.workflow
async def counting(journal: str, until: int) -> int:
    return await count(journal, until)


def released(journal: str | Path) -> Path:
    """The file whose creation ends the steps below."""
    return Path(f"{journal}.released")


@app.step
async def wait(journal: str, name: str) -> str:
    note(journal, name)
    while not released(journal).exists():  # noqa: ASYNC110 - another process makes it
        await asyncio.sleep(0.05)
    return name


@app.workflow
async def waiting(journal: str, name: str) -> str:
    return await wait(journal, name)


@app.step
def hold(journal: str, name: str) -> str:
    """In a thread."""
    note(journal, name)
    while not released(journal).exists():
        time.sleep(0.05)
    return name


@app.workflow
async def holding(journal: str, name: str) -> str:
    return await hold(journal, name)
