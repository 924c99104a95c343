"""PUBLIC: sinks: committed events, written to where others read them.

>>> from streamflow import sinks
>>>
>>> class Lines(sinks.Sink):
...     async def open(self) -> None:
...         self.file = open("events.txt", "a")
...
...     async def write(self, batch: sf.EventBatch) -> None:
...         for event in batch.events:
...             self.file.write(f"{event.id} {event.kind}\\n")
...         self.file.flush()
...
...     async def close(self) -> None:
...         self.file.close()
>>>
>>> async with sf.connect() as client:
...     await sinks.run(client, Lines(), group="lines")

The sinks of `streamflow sink` are classes here: their options are the arguments of the constructor. A new one is a file
in `targets/`, and nothing else.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Collection
from datetime import datetime
from pathlib import Path
from typing import Any

from streamflow.sinks.rows import json_bytes, row_of
from streamflow.sinks.runner import Figures, SinkRunner
from streamflow.sinks.sink import Gone, Sink, Subscribable, TargetError
from streamflow.sinks.targets.jsonl import Jsonl
from streamflow.sinks.targets.kafka import Kafka
from streamflow.sinks.targets.parquet import Parquet
from streamflow.sinks.targets.postgres import Postgres
from streamflow.sinks.targets.webhook import Webhook

__all__ = [
    "Figures",
    "Gone",
    "Jsonl",
    "Kafka",
    "Parquet",
    "Postgres",
    "Sink",
    "TargetError",
    "Webhook",
    "json_bytes",
    "row_of",
    "run",
]


async def run(
    client: Subscribable,
    sink: Sink,
    *,
    group: str,
    workflows: Collection[str] | None = None,
    kinds: Collection[str] | None = None,
    from_: str | datetime = "oldest",
    once: bool = False,
    patience: float = math.inf,
    dead_after: float | None = None,
) -> Figures:
    """Write the events of a group to a sink until this is cancelled; with `once`, until all are written that are there.

    `client` is a client or a sandbox; `group`, `workflows`, `kinds`, `from_` and `dead_after` are those of
    `client.events`.
    A sink that fails is tried again with the same batch, after growing pauses, for at most `patience` seconds; then
    `TargetError` is raised. Raises `Gone` when the sink's target wants no more events.
    """
    runner = SinkRunner(
        client,
        sink,
        group=group,
        workflows=workflows,
        kinds=kinds,
        from_=from_,
        once=once,
        patience=patience,
        dead_after=dead_after,
    )
    return await runner.run()


def names() -> list[str]:
    """The sinks that are commands: the files in `targets/`."""
    return sorted(path.stem for path in (Path(__file__).parent / "targets").glob("[!_]*.py"))


def find(name: str) -> type[Any]:
    """The class of one of them."""
    return getattr(importlib.import_module(f"{__name__}.targets.{name}"), name.capitalize())
