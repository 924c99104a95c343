"""Runs whose steps are long enough to be lent: each body leaves a line when it begins, while it goes on, and when it
ends."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

import streamflow as sf

app = sf.App()

TICK = 0.1
"""Seconds between two lines of a body: where it has none any more, it doesn't run any more."""
LONG = 60.0
"""Seconds of a step that ends only because it is cancelled."""


class Line(msgspec.Struct, array_like=True):
    """What a body says at a moment. `what`: begin, tick, end, stopped (it was cancelled) or failed (on purpose)."""

    what: str
    run: str
    step: str
    attempt: int
    daemon: int
    """The pid of the daemon that runs it..."""
    pid: int
    """...and of the process that the body is in."""
    execution: int
    """Tells one execution in a process from the others."""
    seq: int
    """The number of the call in its run."""
    at: float
    """Monotonic s, which all processes of a machine share."""
    done: int = 0
    """How much of a step that reports its progress is done."""


class Body:
    """One execution of a step; O_APPEND survives any kill."""

    def __init__(self, journal: str, name: str) -> None:
        info = sf.step_info()
        self._journal = journal
        self._run, self._name, self._attempt = info.run_id, name, info.attempt
        self._execution = time.monotonic_ns()
        self._seq = int(info.key.rpartition("/")[2])
        self._separate = name.startswith("separate")
        self.details = info.details

    def say(self, what: str, done: int = 0) -> None:
        pid = os.getpid()
        daemon = os.getppid() if self._separate else pid
        now = time.monotonic()
        line = Line(what, self._run, self._name, self._attempt, daemon, pid, self._execution, self._seq, now, done)
        descriptor = os.open(self._journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(descriptor, msgspec.json.encode(line) + b"\n")
        finally:
            os.close(descriptor)


def lines_of(journal: Path) -> list[Line]:
    if not journal.exists():
        return []
    return [msgspec.json.decode(line, type=Line) for line in journal.read_bytes().splitlines()]


def ticks(seconds: float) -> Iterable[float]:
    """The length of each part of a body."""

    def parts() -> Iterator[float]:
        over = time.monotonic() + seconds
        while (left := over - time.monotonic()) > 0:
            yield min(TICK, left)

    return parts()


async def go_on(body: Body, seconds: float) -> None:
    body.say("begin")
    try:
        for part in ticks(seconds):
            await asyncio.sleep(part)
            body.say("tick")
    except asyncio.CancelledError:
        body.say("stopped")
        raise


@app.step
async def slow(journal: str, name: str, seconds: float) -> str:
    body = Body(journal, name)
    await go_on(body, seconds)
    body.say("end")
    return name


@app.step(retry=sf.Retry(attempts=5, initial=0.05))
async def stumble(journal: str, name: str, seconds: float) -> str:
    """The first attempt fails, when it has run for as long as the others."""
    body = Body(journal, name)
    await go_on(body, seconds)
    if sf.step_info().attempt == 1:
        body.say("failed")
        raise ConnectionError("the first attempt always fails")
    body.say("end")
    return name


@app.step
def block(journal: str, name: str, seconds: float) -> str:
    """In a thread."""
    body = Body(journal, name)
    body.say("begin")
    for part in ticks(seconds):
        time.sleep(part)
        if sf.cancelled():
            body.say("stopped")
            return ""
        body.say("tick")
    body.say("end")
    return name


@app.step(process=True)
def separate(journal: str, name: str, seconds: float) -> str:
    body = Body(journal, name)
    body.say("begin")
    for part in ticks(seconds):
        time.sleep(part)
        body.say("tick")
    body.say("end")
    return name


@app.step
async def count(journal: str, name: str, until: int) -> int:
    """Continues from what it reported last."""
    body = Body(journal, name)
    done: int = body.details or 0
    body.say("begin", done)
    try:
        for number in range(done + 1, until + 1):
            await asyncio.sleep(TICK)
            body.say("tick", number)
            sf.heartbeat(number)
    except asyncio.CancelledError:
        body.say("stopped")
        raise
    body.say("end", until)
    return until


async def signals(count: int) -> list[int]:
    return [await sf.signal("extra", int) for _ in range(count)]


@app.workflow
async def mixed(journal: str, seconds: float, extra: int) -> list[Any]:
    """One step of each kind at the same time, signals meanwhile, and a step afterwards."""
    fanned = await sf.gather(
        slow(journal, "slow", seconds),
        stumble(journal, "stumble", seconds / 2),
        block(journal, "block", seconds),
        count(journal, "count", round(seconds / TICK)),
        signals(extra),
    )
    return [*fanned, await slow(journal, "last", TICK)]


def result_of_mixed(seconds: float, extra: int) -> list[Any]:
    return ["slow", "stumble", "block", round(seconds / TICK), list(range(extra)), "last"]


@app.workflow
async def apart(journal: str, seconds: float) -> list[str]:
    """A step in a process of its own, and one after it."""
    return [await separate(journal, "separate", seconds), await slow(journal, "last", TICK)]


@app.workflow
async def racing(journal: str, seconds: float) -> list[str]:
    """The one that loses is stopped, wherever it runs."""
    winner = await sf.race(slow(journal, "winner", seconds), slow(journal, "loser", LONG))
    return [winner, await slow(journal, "last", TICK)]


@app.workflow
async def doomed(journal: str) -> None:
    """It is cancelled while its step runs."""
    try:
        await slow(journal, "endless", LONG)
    finally:
        with sf.shield():
            await slow(journal, "undo", TICK)
