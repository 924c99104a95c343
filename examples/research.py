"""A research supervisor with child agents.

The supervisor splits a question into topics and starts a child agent for each. The agents work at the same time, maybe
on different machines; each asks a model which tool to use next, uses it, and continues until the model gives an answer.
The supervisor merges the findings into a report.

    python examples/research.py                       everything in this process
    streamflow dev --app examples/research.py         a server, a daemon and the status screen; then
    streamflow enqueue research --input '"honey bees"' --wait

Nothing here needs the network: the model is a placeholder that always gives the same answers. Put your own call into
`think`.
"""

from __future__ import annotations

import asyncio
import sys

import msgspec

import streamflow as sf

app = sf.App()

# --- arguments and results of workflows and steps: plain typed data ---------------------------------------------------


class Thought(msgspec.Struct):
    """The model's output: the tool to use next, or the answer."""

    tool: str = ""
    argument: str = ""
    answer: str = ""


class Finding(msgspec.Struct):
    topic: str
    text: str
    sources: list[str]


class Report(msgspec.Struct):
    question: str
    findings: list[Finding]
    summary: str


# --- steps: everything with side effects. The result of each is recorded once; a replay doesn't run it again ----------


@app.step(retry=sf.Retry(attempts=3, initial=0.1), timeout=30)
async def think(topic: str, notes: list[str]) -> Thought:
    """One call of a language model. This placeholder searches, then reads, then answers."""
    if not notes:
        return Thought(tool="search", argument=topic)
    if len(notes) == 1:
        return Thought(tool="read", argument=notes[0])
    return Thought(answer=f"{topic}: {notes[-1]}")


@app.step(retry=sf.Retry(attempts=5, initial=0.05))
async def search(query: str) -> str:
    """A tool that sometimes fails. Retries are recorded too: see them with `streamflow show`."""
    if sf.step_info().attempt == 1 and len(query) % 2:
        raise ConnectionError("the search engine is busy")
    return f"https://example.org/{query.replace(' ', '-')}"


@app.step
def read(address: str) -> str:
    """A plain function runs in a thread, so it may block."""
    return f"what {address} says"


@app.step
async def summarise(findings: list[Finding]) -> str:
    return f"{len(findings)} topics, {sum(len(finding.sources) for finding in findings)} sources"


# --- workflows: they only make decisions. A daemon may die at any line: another one continues at that line ------------

TOOLS = {"search": search, "read": read}


@app.workflow
async def investigate(topic: str) -> Finding:
    """An agent: think and act, until there is an answer."""
    notes: list[str] = []
    while True:
        thought = await think(topic, notes)
        if thought.answer:
            return Finding(topic, thought.answer, notes[:1])
        notes.append(await TOOLS[thought.tool](thought.argument))


@app.workflow
async def research(subject: str) -> Report:
    """The supervisor: a child run for each topic, all at the same time, and a merge."""
    topics = [f"{subject} {aspect}" for aspect in ("history", "biology", "economy", "future")]
    findings = await sf.gather(*(investigate(topic) for topic in topics))
    return Report(subject, findings, await summarise(findings))


async def main(subject: str = "honey bees") -> None:
    async with sf.local(app) as client:
        run = await client.start(research, subject, id="research-1")
        report = await run.result(timeout=60)
        print(f"{report.question}: {report.summary}")
        for finding in report.findings:
            print(f"  {finding.text}  [{', '.join(finding.sources)}]")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:2]))
