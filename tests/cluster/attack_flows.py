"""The app of the attack: each run has children on other servers, steps of a queue, a signal and a question."""

from __future__ import annotations

import streamflow as sf

app = sf.App()

STEPS = 3


@app.step
async def add(value: int, number: int) -> int:
    return value + number


@app.step
def in_thread(value: int) -> int:
    return value + 1


@app.step(queue="far")
async def far(value: int) -> int:
    return value + 10


@app.workflow
async def leaf(number: int) -> int:
    return await in_thread(number) + await far(0)


@app.workflow
async def mixed(number: int) -> int:
    """Ends with `right(number)`, whatever happens, and however often it is signalled and asked."""
    value = number
    for _ in range(STEPS):
        value = await add(value, 1)
    await sf.sleep(0.05)
    value += sum(await sf.gather(leaf(number), leaf(0), far(0)))
    value += await sf.signal("extra", int)
    request = await sf.question("value", int)
    request.answer(value)
    return await add(value, 1)


def right(number: int) -> int:
    """What `mixed` ends with."""
    return asked(number) + 1


def asked(number: int) -> int:
    """What it answers."""
    return number + STEPS + (number + 11) + 11 + 10 + 100


RECORDED = STEPS + 1 + 1 + 2 * 2
"""Steps of a run and of its children."""
