"""Steps that say by their errors what comes next: a module, because another process imports it."""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import timedelta
from typing import Any

import msgspec

import streamflow as sf

app = sf.App()

LATE = sf.Retry(attempts=3, initial=3600, jitter=0)


class Decline(msgspec.Struct):
    code: str
    limits: dict[str, float] = {}


class Busy(Exception):
    def __init__(self, seconds: float) -> None:
        super().__init__("come back later")
        self.retry_after = timedelta(seconds=seconds)


def decline() -> None:
    raise sf.Fatal("the card was declined", data=Decline("51", {"day": 0.5}))


def wait() -> int:
    attempt = sf.step_info().attempt
    if attempt == 1:
        raise sf.RetryLater("too many requests", retry_after=0.05)
    if attempt == 2:
        raise Busy(0.07)
    return attempt


@app.step(retry=LATE)
async def declined_in_loop() -> None:
    decline()


@app.step(retry=LATE)
def declined_in_thread() -> None:
    decline()


@app.step(retry=LATE, process=True)
def declined_in_process() -> None:
    decline()


@app.step(retry=LATE, queue="bank")
async def declined_at_worker() -> None:
    decline()


@app.step(retry=LATE)
async def waits_in_loop() -> int:
    return wait()


@app.step(retry=LATE)
def waits_in_thread() -> int:
    return wait()


@app.step(retry=LATE, process=True)
def waits_in_process() -> int:
    return wait()


@app.step(retry=LATE, queue="bank", process=True)
def waits_at_worker() -> int:
    return wait()


@app.workflow
async def declines() -> list[Any]:
    calls: list[Awaitable[None]] = [
        declined_in_loop(),
        declined_in_thread(),
        declined_in_process(),
        declined_at_worker(),
    ]
    failures = await sf.gather(*calls, return_exceptions=True)
    found: list[Any] = []
    for failure in failures:
        assert isinstance(failure, sf.StepFailed)
        read = failure.failure.data(Decline)
        found.append([failure.attempt, read.code, read.limits])
    return found


@app.workflow
async def waits() -> list[int]:
    return list(await sf.gather(waits_in_loop(), waits_in_thread(), waits_in_process(), waits_at_worker()))


@app.workflow
async def pays() -> None:
    await declined_in_thread()


@app.workflow
async def orders() -> None:
    await pays()


@app.workflow
async def refuses() -> None:
    raise sf.Fatal("closed", data=["monday", 3])
