"""Runs a sink that ends its own process, as `kill -9` does, at points that the test names; the test starts it again.

Arguments: server, namespace, sink, target, a file that has a line for each kill, and at which point each process ends.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import anyio

import streamflow as sf
from streamflow import sinks
from streamflow.sinks import folders
from streamflow.sinks.targets import jsonl, postgres

GROUP = "sink"

url, namespace, name, target, journal, *points = sys.argv[1:]
before = len(Path(journal).read_text().splitlines())
point = [*points, ""][before]
"""Where this process ends; empty for the one that doesn't."""


def die() -> None:
    with Path(journal).open("a") as file:
        file.write(f"{point}\n")
    os.kill(os.getpid(), signal.SIGKILL)


def make() -> sinks.Sink:
    if name == "postgres":
        return sinks.Postgres(target)
    if name == "kafka":
        return sinks.Kafka(target, topic="killed")
    if name == "webhook":
        return sinks.Webhook(target, dead_letters=f"{journal}.refused", unsigned=True, concurrency=1)
    return sinks.find(name)(target)


def arm(sink: Any) -> None:
    """At the second batch of this process: the first one is written and acknowledged."""
    write, batches = sink.write, 0

    async def killed(batch: Any) -> None:
        nonlocal batches
        batches += 1
        if batches == 2 and point != "after":
            ARMED[point](sink)
        await write(batch)
        if batches == 2 and point == "after":
            die()

    sink.write = killed


def tear_a_line(_: Any) -> None:
    really = os.write

    def half(file: int, data: Any) -> int:
        really(file, bytes(data[: len(data) * 2 // 3]))
        os.fsync(file)
        die()
        raise AssertionError

    jsonl.os.write = half  # type: ignore[assignment]


def before_the_commit(_: Any) -> None:
    run_rows = postgres.run_rows

    def killed(*arguments: Any) -> Any:
        run_rows(*arguments)
        die()

    postgres.run_rows = killed  # type: ignore[assignment]


def before_the_rename(_: Any) -> None:
    def killed(*_: Any) -> None:
        die()

    folders.Path.replace = killed  # type: ignore[method-assign]


def in_the_middle_of_a_batch(sink: Any) -> None:
    deliver, sent = sink._deliver, 0

    async def killed(event: Any) -> None:
        nonlocal sent
        await deliver(event)
        sent += 1
        if sent == 2:
            die()

    sink._deliver = killed


ARMED = {
    "torn": tear_a_line,
    "uncommitted": before_the_commit,
    "unnamed": before_the_rename,
    "half": in_the_middle_of_a_batch,
}


async def main() -> None:
    sink = make()
    if point:
        arm(sink)
    sink.max_events, sink.max_wait = 8, 0.05
    async with sf.connect(url, namespace=namespace) as client:
        await sinks.run(client, sink, group=GROUP, once=True, dead_after=0.4)


anyio.run(main)
