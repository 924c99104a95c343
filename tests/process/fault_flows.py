"""The app of the tests in which steps kill, hang or block: what each began is in a file."""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
from pathlib import Path
from typing import Any

import streamflow as sf
from streamflow.steps import executor
from streamflow.worker import worker

if "HUNG_THREADS" in os.environ:  # as many as a test can wait for
    executor.LEAST_HUNG, executor.HUNG_PER_THREAD = int(os.environ["HUNG_THREADS"]), 1
    executor.REPLACE_AFTER = worker.REPLACE_AFTER = 0.05

app = sf.App()


def began(file: str) -> None:
    """One more line with this process's number: O_APPEND survives any kill."""
    with Path(file).open("ab", buffering=0) as journal:
        journal.write(f"{os.getpid()}\n".encode())


def begun(file: Path) -> list[int]:
    """The processes that began the step, in order."""
    return [int(line) for line in file.read_text().splitlines()] if file.exists() else []


def compute(file: str) -> str:
    began(file)
    while not Path(f"{file}.go").exists():
        time.sleep(0.02)
    return "computed"


def compute_in_c(file: str) -> None:
    """Never gives way to another thread of its process."""
    began(file)
    re.match(r"(a+)+b", "a" * 60)


def end_process(file: str) -> None:
    began(file)
    os._exit(7)


def hang(file: str) -> None:
    began(file)
    threading.Event().wait()


async def block(file: str, seconds: float) -> str:
    began(file)
    time.sleep(seconds)  # noqa: ASYNC251 (what this is about)
    return "gave way"


async def wait(file: str, seconds: float) -> str:
    began(file)
    await asyncio.sleep(seconds)
    return "waited"


def quick(number: int) -> int:
    return number


STEPS = {
    name: app.step(name=name, process=process, queue=queue, retry=sf.NO_RETRY, timeout=timeout)(function)
    for base, function, process, timeout in [
        ("compute", compute, True, None),
        ("compute-in-c", compute_in_c, True, None),
        ("end-process", end_process, True, None),
        ("hang", hang, False, 0.2),
        ("block", block, False, None),
        ("wait", wait, False, None),
        ("quick", quick, False, None),
    ]
    for queue, name in [(None, base), ("cpu", f"{base}-queued")]
}


@app.workflow
async def act(name: str, arguments: list[object]) -> object:
    step: Any = STEPS[name]
    return await step(*arguments)
