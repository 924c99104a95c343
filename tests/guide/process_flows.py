"""Steps that run in processes of their own: a module, because another process imports it."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import msgspec

import streamflow as sf

app = sf.App()


class Sum(msgspec.Struct):
    value: int
    pid: int


@app.step(process=True)
def add(numbers: list[int], *, plus: int = 0) -> Sum:
    return Sum(sum(numbers) + plus, os.getpid())


@app.step(process=True, retry=sf.Retry(attempts=9, initial=0.0, never=(LookupError,)))
def refuse(key: str) -> None:
    raise KeyError(key)


@app.step(process=True, retry=sf.Retry(attempts=2, initial=0.0))
def die() -> int:
    if sf.step_info().attempt == 1:
        os._exit(7)
    return sf.step_info().attempt


@app.step(process=True, queue="cpu")
def know() -> list[str]:
    info = sf.step_info()
    print("a step may print: the pipe is not its stdout")
    return [info.run_id, info.step, info.key, str(sf.cancelled())]


@app.step(process=True, retry=sf.NO_RETRY)
def tell() -> None:
    sf.heartbeat(1)


@app.step(process=True, retry=sf.NO_RETRY)
def spin(file: str) -> None:
    Path(file).write_text(str(os.getpid()))
    while True:
        time.sleep(0.01)


@app.workflow
async def sums(numbers: list[int]) -> list[Sum]:
    return list(await sf.gather(add(numbers), add(numbers, plus=1)))


@app.workflow
async def refuses() -> None:
    await refuse("k")


@app.workflow
async def dies() -> int:
    return await die()


@app.workflow
async def knows() -> list[str]:
    return await know()


@app.workflow
async def tells() -> None:
    await tell()


@app.workflow
async def spins(file: str, timeout: float | None) -> None:
    await spin.options(timeout=timeout)(file)


@app.step(process=True, retry=sf.NO_RETRY)
def calls_a_command() -> str:
    os.write(1, b"RETURN 3\n")  # as a C library would
    subprocess.run(["sh", "-c", "cat; echo RETURN 3"], check=True)
    return "called"


@app.workflow
async def commands() -> list[str]:
    return [await calls_a_command() for _ in range(2)]


@app.workflow
async def refused_by_options() -> list[int]:
    again, once = sf.Retry(attempts=3, initial=0.0), sf.Retry(attempts=3, initial=0.0, never="LookupError")
    calls = refuse.options(retry=again)("a"), refuse.options(retry=again).options(retry=once)("b")
    failures = await sf.gather(*calls, return_exceptions=True)
    return [failure.attempt for failure in failures if isinstance(failure, sf.StepFailed)]


@app.step(process=True)
def count(to: int) -> int:
    for number in range(to):
        sf.emit({"done": number, "of": to})
    return to


@app.workflow
async def counting(to: int) -> int:
    return await count(to)
