"""The app of the fault tests: chains, fan-outs, children, signals and retries; every execution leaves a byte, and every
run says how far it is: in an attribute, and in a published value."""

from __future__ import annotations

import os

import streamflow as sf

app = sf.App()


def mark(journal: str) -> None:
    """One more execution, counted by the kernel of the operating system: O_APPEND survives any kill."""
    descriptor = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, b".")
    finally:
        os.close(descriptor)


@app.step
async def add(journal: str, value: int) -> int:
    mark(journal)
    return value + 1


@app.step(retry=sf.Retry(attempts=3, initial=0.01))
async def stumble(journal: str, value: int) -> int:
    mark(journal)
    if sf.step_info().attempt == 1:
        raise ConnectionError("the first attempt always fails")
    return value + 1


@app.step
def in_thread(journal: str, value: int) -> int:
    mark(journal)
    return value + 1


def say(value: int) -> None:
    sf.set_attributes(value=value)
    sf.publish("value", value)


@app.workflow
async def leaf(journal: str, value: int) -> int:
    return await in_thread(journal, value)


@app.workflow
async def mixed(journal: str, number: int) -> int:
    """The result is `number + 12` whatever happens; 12 steps are recorded, 2 of them in children."""
    value = number
    for _ in range(5):
        value = await add(journal, value)
        say(value)
    value = await stumble(journal, value)
    await sf.sleep(0.05)
    fanned = await sf.gather(*(add(journal, 0) for _ in range(4)))
    children = await sf.gather(leaf(journal, 0), leaf(journal, 0))
    extra = await sf.signal("extra", int)
    say(value + sum(fanned) + sum(children) + extra)
    return value + sum(fanned) + sum(children) + extra


@app.workflow
async def chain(journal: str, length: int) -> int:
    value = 0
    for _ in range(length):
        value = await add(journal, value)
        say(value)
    return value
