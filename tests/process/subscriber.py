"""A consumer of a group in a process of its own: prints a JSON line for each event that it gets.

Called by: `test_subscribers.py`, as `python -m tests.process.subscriber URL NAMESPACE DEAD_AFTER PAUSE`. It
acknowledges an event `PAUSE` seconds after it has printed it.
"""

from __future__ import annotations

import asyncio
import json
import sys

import streamflow as sf


async def consume(url: str, namespace: str, dead_after: float, pause: float) -> None:
    async with (
        sf.connect(url, namespace=namespace) as client,
        client.events("billing", from_="oldest", dead_after=dead_after) as subscription,
    ):
        print(json.dumps({"consumer": subscription.consumer}), flush=True)
        async for event in subscription:
            print(json.dumps({"id": event.id, "run": event.run_id, "kind": event.kind}), flush=True)
            await asyncio.sleep(pause)


if __name__ == "__main__":
    asyncio.run(consume(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4])))
