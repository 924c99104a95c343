"""A human in the loop: an expense waits for a decision, with a reminder and a deadline.

The run waits for a signal. That may take weeks: a waiting run is a record of a few hundred bytes on the server, and no
process has to keep it in memory. The decision is typed, so a malformed one never reaches the workflow.

    python examples/approval.py                       everything in this process, with short times
    streamflow dev --app examples/approval.py         a server, a daemon and the status screen; then
    streamflow enqueue expense --id trip-7 --input '["Ada", 420.0, 86400, 259200]'
    streamflow signal trip-7 decision '{"approved": true, "by": "Grace"}'
"""

from __future__ import annotations

import asyncio

import msgspec

import streamflow as sf

app = sf.App()


class Decision(msgspec.Struct):
    """The value of the signal. JSON from the command line is checked against it, as any other value."""

    approved: bool
    by: str
    comment: str = ""


@app.step
async def notify(person: str, text: str) -> None:
    """A placeholder for an e-mail. Side effects are in steps; workflows only make decisions."""
    print(f"  to {person}: {text}")


@app.step(retry=sf.Retry(attempts=5, initial=0.2))
async def pay(person: str, amount: float) -> str:
    """Runs at least once: a real one sends the bank this key, so that a second attempt doesn't pay again."""
    return f"transfer {sf.step_info().key} of {amount:.2f} to {person}"


@app.workflow
async def expense(person: str, amount: float, remind_after: float, give_up_after: float) -> str:
    """Ask, remind once, and expire at the deadline. Times are in seconds."""
    await notify("the manager", f"{person} asks for {amount:.2f}")
    try:
        decision = await wait_for_decision(remind_after, give_up_after)
    except TimeoutError:
        await notify(person, "there was no decision in time; ask again")
        return "expired"
    if not decision.approved:
        await notify(person, f"{decision.by} said no: {decision.comment}")
        return "refused"
    receipt = await pay(person, amount)
    await notify(person, f"{decision.by} said yes")
    return receipt


async def wait_for_decision(remind_after: float, give_up_after: float) -> Decision:
    """A helper is plain code of the workflow. A signal that is received before the wait is not lost."""
    try:
        return await sf.signal("decision", Decision, timeout=remind_after)
    except TimeoutError:
        await notify("the manager", "an expense still waits for you")
    return await sf.signal("decision", Decision, timeout=give_up_after - remind_after)


async def main() -> None:
    async with sf.local(app) as client:
        print("decided immediately:")
        run = await client.start(expense, "Ada", 420.0, 60.0, 120.0, id="trip-7")
        await run.signal("decision", Decision(approved=True, by="Grace"))
        print(" ", await run.result(timeout=30))

        print("decided after a reminder:")
        run = await client.start(expense, "Alan", 99.5, 0.2, 60.0)
        await asyncio.sleep(0.5)
        await run.signal("decision", Decision(approved=False, by="Grace", comment="no receipt"))
        print(" ", await run.result(timeout=30))

        print("never decided:")
        run = await client.start(expense, "Edsger", 12.0, 0.2, 0.4)
        print(" ", await run.result(timeout=30))


if __name__ == "__main__":
    asyncio.run(main())
