"""A human in the loop: an expense waits for somebody's decision, with a reminder and a deadline.

The run waits for a signal. That may take weeks: a waiting run is a record of a few hundred bytes on the server, and no
process holds it. The decision is typed, so a malformed one never reaches the workflow.

    python examples/approval.py                       everything in this process, with impatient people
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
    """What the person sends. JSON from the command line is checked against it like anything else."""

    approved: bool
    by: str
    comment: str = ""


@app.step
async def notify(person: str, text: str) -> None:
    """Stands for an e-mail. Steps are where the world is touched; workflows only decide."""
    print(f"  to {person}: {text}")


@app.step(retry=sf.Retry(attempts=5, initial=0.2))
async def pay(person: str, amount: float) -> str:
    """At least once: a real one gives the bank this key, so that a second try pays nothing twice."""
    return f"transfer {sf.step_info().key} of {amount:.2f} to {person}"


@app.workflow
async def expense(person: str, amount: float, remind_after: float, give_up_after: float) -> str:
    """Ask, remind once, give up at the deadline. Times in seconds."""
    await notify("the manager", f"{person} asks for {amount:.2f}")
    try:
        decision = await wait_for_decision(remind_after, give_up_after)
    except TimeoutError:
        await notify(person, "nobody decided in time; ask again")
        return "expired"
    if not decision.approved:
        await notify(person, f"{decision.by} said no: {decision.comment}")
        return "refused"
    receipt = await pay(person, amount)
    await notify(person, f"{decision.by} said yes")
    return receipt


async def wait_for_decision(remind_after: float, give_up_after: float) -> Decision:
    """A helper is plain code of the workflow. A signal that came before the wait began is not lost."""
    try:
        return await sf.signal("decision", Decision, timeout=remind_after)
    except TimeoutError:
        await notify("the manager", "an expense still waits for you")
    return await sf.signal("decision", Decision, timeout=give_up_after - remind_after)


async def main() -> None:
    async with sf.local(app) as client:
        print("decided at once:")
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
