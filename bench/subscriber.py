"""A consumer for the workload events, in a process of its own: `python -m bench.subscriber URL NAMESPACE GROUP`.

Owns: nothing but reading batches until it is ended. Must not: print. Called by: `events.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys

from streamflow.client.client import connect


async def consume(url: str, namespace: str, group: str) -> None:
    async with connect(url, namespace=namespace) as client, client.events(group) as subscription:
        async for _ in subscription.batches(max_events=500, max_wait=0.05):
            pass


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(consume(*sys.argv[1:4]))
