"""Serves a trigger that reads from somewhere, and ends its own process, as `kill -9` does, when deliveries are stored
and not acknowledged.

Arguments: server, namespace, kind of the source, where it is, and for the process that ends so `die`, or `die-when` and
a file, from whose existence on it does. `JOURNAL` names a file that gets a line for each delivery: by which process it
is received, its partition, its number.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import anyio

import streamflow as sf
from streamflow import triggers
from streamflow.triggers.pulled import process_at_once
from streamflow.triggers.serving import serve_pulled

url, namespace, kind, place, *words = sys.argv[1:]

NOTICED_SOON = {"session.timeout.ms": "3000", "heartbeat.interval.ms": "500"}
"""That a member is gone."""

app = sf.App()


def source() -> triggers.Source:
    if kind == "list":
        return triggers.list(place, idle=1.0)
    if kind == "postgres":
        return triggers.postgres("orders", url=place)
    topic = "shared" if kind == "shared-topic" else "killed"
    return triggers.kafka(topic, brokers=place, properties=NOTICED_SOON)


@app.trigger(source())
def ordered(delivery: triggers.Delivery[dict[str, int]]) -> triggers.Action:
    if journal := os.environ.get("JOURNAL"):
        line = f"{os.getpid()} {delivery.headers.get('kafka-partition')} {delivery.payload['number']}\n"
        with Path(journal).open("a") as file:
            file.write(line)
    return triggers.start("order", delivery.payload["number"])


async def stored_then_killed(*arguments: Any) -> Any:
    left = await process_at_once(*arguments)
    if words == ["die"] or Path(words[-1]).exists():
        assert left == []
        os.kill(os.getpid(), signal.SIGKILL)
    return left


async def main() -> None:
    async with sf.connect(url, namespace=namespace) as client:
        await serve_pulled(client, [ordered])


if words:
    for name in ("kafka", "postgres", "redis_list"):  # the package has functions of these names
        module: Any = importlib.import_module(f"streamflow.triggers.{name}")
        module.process_at_once = stored_then_killed
anyio.run(main)
