"""A supervisor with child agents: it starts them, signals them, cancels slow ones, and answers questions itself.

It shows what a run can do besides its steps:

- `briefing` sets attributes, so that it is found by customer or phase, and publishes its progress;
- it starts two agents for a topic and takes the first answer (`sf.race`, `sf.timeout`); the other one is cancelled;
- it reads many documents, a few at a time (`sf.map`);
- it starts a desk agent as a child with a handle and signals it what was found; a person may ask the desk at any time;
- it ends only when a person has approved the result; cancelling it cancels its children, each of which cleans up.

    python examples/agents.py                         everything in this process
    streamflow dev --app examples/agents.py           a server, a daemon and the status screen; then
    streamflow enqueue briefing --id b-1 --input '["acme", "honey bees"]'
    streamflow runs --attribute customer=acme
    streamflow read b-1
    streamflow ask b-1.desk how-many
    streamflow ask b-1 approve '{"by": "Grace", "approved": true}'
"""

from __future__ import annotations

import asyncio

import msgspec

import streamflow as sf

app = sf.App()


class Verdict(msgspec.Struct):
    approved: bool
    by: str


# --- steps: placeholders for models and archives, which need no network -----------------------------------------------


@app.step
async def think(model: str, topic: str) -> str:
    """A model call. The large model is slow today."""
    await asyncio.sleep(30 if model == "large" else 0.05)
    return f"{model} outline of {topic}"


@app.step(retry=sf.Retry(attempts=3, initial=0.05))
async def read(document: str) -> int:
    """The number of words. Documents whose number ends with 7 fail at the first attempt."""
    if document.endswith("7") and sf.step_info().attempt == 1:
        raise ConnectionError("the archive is busy")
    return len(document.split())


@app.step
async def archive(what: str) -> None:
    print(f"  archived: {what}")


# --- child agents -----------------------------------------------------------------------------------------------------


@app.workflow
async def outline(model: str, topic: str) -> str:
    """An agent of one model. It may be cancelled in the middle of a thought, and archives that."""
    try:
        return await think(model, topic)
    except sf.Cancelled:
        await archive(f"the unfinished thought of {model}")  # clean-up is as durable as the rest
        raise


@app.workflow
async def desk(topic: str) -> int:
    """An agent that runs as long as its supervisor. It keeps notes and answers questions about them."""
    notes: list[str] = []

    async def take_notes() -> None:
        while True:
            notes.append(await sf.signal("note", str))

    async def answer() -> None:
        while True:
            request = await sf.question("how-many")
            request.answer(len(notes))

    try:
        async with sf.task_group() as group:
            group.start_soon(take_notes)
            group.start_soon(answer)
    finally:
        await archive(f"{len(notes)} notes on {topic}")
    return len(notes)


# --- the supervisor ---------------------------------------------------------------------------------------------------


@app.workflow
async def briefing(customer: str, topic: str) -> str:
    """An outline and a word count of 100 documents, approved by a person."""
    sf.set_attributes(customer=customer, phase="outline")
    helper = await sf.start(desk, topic, id=f"{sf.info().run_id}.desk")
    with sf.timeout(20):
        plan = await sf.race(outline("large", topic), outline("small", topic))
    await helper.signal("note", plan)

    sf.set_attributes(phase="reading")
    words = 0
    for shelf in range(4):
        documents = [f"{topic} document {25 * shelf + number}" for number in range(25)]
        words += sum(await sf.map(read, documents, concurrency=10))
        sf.publish("progress", {"read": 25 * (shelf + 1), "of": 100})
        await helper.signal("note", f"shelf {shelf}")

    sf.set_attributes(phase="approval")
    while True:
        request = await sf.question("approve", Verdict, timeout=24 * 3600)
        if request.value.by != "nobody":
            break
        request.refuse("a person has to approve it")
    request.answer("thank you")
    sf.set_attributes(phase="done")
    if not request.value.approved:
        raise ValueError(f"{request.value.by} did not approve")
    return f"{plan}, {words} words read, approved by {request.value.by}"


async def refused(run: sf.Run[str]) -> str:
    """An ask waits until the run reaches its question: here, until everything is read."""
    try:
        return await run.ask("approve", Verdict(approved=True, by="nobody"), timeout=20)
    except sf.AskRefused as error:
        return error.failure.message


async def main() -> None:
    async with sf.local(app) as client:
        run = await client.start(briefing, "acme", "honey bees", id="b-1")
        print("refused:", await refused(run))
        print("progress:", await run.read("progress"))
        waiting = await client.runs(attributes={"customer": "acme", "phase": "approval"})
        print("waits for acme:", [each.id for each in waiting])
        print("notes on the desk:", await client.run("b-1.desk").ask("how-many", type=int, timeout=20))
        print("approved:", await run.ask("approve", Verdict(approved=True, by="Grace"), timeout=20))
        print("result:", await run.result(timeout=20))

        print("a briefing that is cancelled:")
        run = await client.start(briefing, "acme", "wasps", id="b-2")
        await refused(run)
        await run.cancel("no longer wanted")
        for each in (run, client.run("b-2.desk")):
            try:
                await each.result(timeout=20)
            except sf.RunCancelled as error:
                print(f"  {error}")


if __name__ == "__main__":
    asyncio.run(main())
