"""Steps on workers: the daemons decide, and processes of their own do the heavy work.

The steps of queue `embed` run only where a worker serves that queue: on a machine with a GPU, say. Add workers, and the
waiting documents spread over them; stop one, and what it had in hand goes back to the queue.

    python examples/indexing.py                       everything in this process, a worker included
    streamflow dev --app examples/indexing.py         a server, a daemon and the status screen; then
    streamflow worker --app examples/indexing.py --queue embed
    streamflow enqueue index --input '["ants", "bees", "wasps"]' --wait

Nothing here needs the network or a GPU: the model is a placeholder.
"""

from __future__ import annotations

import asyncio

import streamflow as sf

app = sf.App()


# --- steps ------------------------------------------------------------------------------------------------------------


@app.step
async def fetch(document: str) -> str:
    """Input and output, which a daemon does beside its other work."""
    return f"what is known of {document}"


@app.step(queue="embed", timeout=60, retry=sf.Retry(attempts=5))
def embed(text: str) -> list[float]:
    """Computing, which would be in a daemon's way. A plain function runs in a thread of the worker."""
    return [float(len(word)) for word in text.split()]


# --- workflows --------------------------------------------------------------------------------------------------------


@app.workflow
async def index(documents: list[str]) -> dict[str, int]:
    """Fetch and embed all documents, some of them at the same time."""

    async def one(document: str) -> int:
        return len(await embed(await fetch(document)))

    sizes = await sf.gather(*(one(document) for document in documents))
    return dict(zip(documents, sizes, strict=True))


async def main() -> None:
    async with sf.local(app) as client:
        run = await client.start(index, ["ants", "honey bees", "wasps"], id="index-1")
        for document, size in (await run.result(timeout=60)).items():
            print(f"{document}: {size} numbers")


if __name__ == "__main__":
    asyncio.run(main())
