"""The app of the worker tests: steps of a queue that report which process ran them."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from pathlib import Path

import anyio

import streamflow as sf

app = sf.App()


@app.step(queue="gpu")
def whoami() -> int:
    return os.getpid()


@app.step(queue="gpu", process=True)
def compute(numbers: list[int]) -> list[int]:
    return [sum(numbers), os.getpid()]


@app.step(queue="gpu", retry=sf.Retry(attempts=5, initial=0.0))
async def wait_for(file: str) -> list[object]:
    """Says in a file's name which process runs it, and waits until the file `<file>.go` is there."""
    info = sf.step_info()
    Path(f"{file}.{os.getpid()}").touch()
    sf.heartbeat(info.attempt * 10)
    go = anyio.Path(f"{file}.go")
    while not await go.exists():  # noqa: ASYNC110 (the test that lets it go is another process)
        await anyio.sleep(0.02)
    return [os.getpid(), info.attempt, info.details]


@app.step(queue="gpu", retry=sf.Retry(attempts=5, initial=0.0))
async def hold_interpreter(file: str, seconds: int) -> int:
    """As a library in C that keeps the interpreter's lock: no thread of Python runs meanwhile."""
    Path(f"{file}.{os.getpid()}").touch()
    ctypes.PyDLL(None).sleep(seconds)
    return sf.step_info().attempt


@app.workflow
async def holds_interpreter(file: str, seconds: int) -> int:
    return await hold_interpreter(file, seconds)


@app.step(queue="gpu")
def poll(file: str) -> None:
    Path(f"{file}.begun").touch()
    while not sf.cancelled():
        time.sleep(0.02)
    Path(f"{file}.stopped").touch()


@app.step(queue="gpu", timeout=0.2, retry=sf.NO_RETRY)
def never_returns() -> None:
    threading.Event().wait()


@app.workflow
async def hangs() -> None:
    await never_returns()


@app.workflow
async def asks_who() -> int:
    return await whoami()


@app.workflow
async def computes(numbers: list[int]) -> list[int]:
    return await compute(numbers)


@app.workflow
async def waits(file: str) -> list[object]:
    return await wait_for(file)


@app.workflow
async def polls(file: str) -> None:
    await poll(file)
