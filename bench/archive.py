"""What an archive costs: runs archived a second, bytes of a run there, the time to read one of many, and of a listing.

    python -m bench.archive [--runs 20000] [--others 980000] [--directory DIRECTORY]

Owns: the load. Must not: need a server: runs are made of one recorded history. Called by: hand; the figures are in
docs/operations.md.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import tempfile
import time
from pathlib import Path

from msgspec import Raw

from streamflow import events
from streamflow.archive import layout
from streamflow.archive.archive import Archive
from streamflow.archive.format import ArchivedRun, pack_run
from streamflow.events import encode_transition
from streamflow.model import codec
from streamflow.model.record import Header

BATCH = 500
AT = 1_796_000_000_000
READS = 200


def one(number: int) -> ArchivedRun:
    """A run of one step, as the server has it."""
    header = Header("completed", 2, f"{number:016x}-7", AT + number, AT + number + 40, "order", "acme", "")
    result = Raw(codec.encode(f"charged order {number}", "result"))
    transitions = [
        encode_transition(
            AT + number,
            [
                events.RunStarted("order", "acme", Raw(codec.encode((f"order-{number}", True), "input"))),
                events.StepScheduled(1, "charge", Raw(codec.encode((f"order-{number}", True), "input"))),
            ],
        ),
        encode_transition(
            AT + number + 40,
            [events.StepCompleted(1, "charge", 1, 12.5, result), events.RunCompleted("order", "acme", 40, result)],
        ),
    ]
    return ArchivedRun(f"order-{number:07d}", header.encode(), b"", transitions)


def sizes_of(directory: Path, kind: str) -> list[int]:
    return [path.stat().st_size for path in directory.rglob(f"*.{kind}")]


def add_others(directory: Path, count: int, others: int) -> None:
    """Runs that are there besides, without waiting for the disk and without an index."""
    for number in range(count, count + others):
        run = one(number)
        folder = directory / layout.run_folder("bench", run.run_id)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / layout.run_object(run.header)).write_bytes(pack_run(run))


async def measure(directory: Path, count: int, others: int) -> None:
    archive = Archive(f"file://{directory}", "bench")
    began = time.perf_counter()
    for first in range(0, count, BATCH):
        await archive.store([one(number) for number in range(first, min(first + BATCH, count))], AT + first)
    took = time.perf_counter() - began
    print(f"archived:  {count / took:,.0f} runs a second ({count:,} runs, {BATCH} together)")
    for kind in ("run", "idx"):
        sizes = sizes_of(directory, kind)
        print(f"{kind}:       {len(sizes):,} objects, {sum(sizes) / count:,.0f} bytes a run")
    if others:
        add_others(directory, count, others)
    times: list[float] = []
    for number in random.sample(range(count + others), READS):
        began = time.perf_counter()
        found = await archive.find(f"order-{number:07d}")
        assert found is not None
        times.append((time.perf_counter() - began) * 1000)
    times.sort()
    middle, slow = times[len(times) // 2], times[len(times) * 99 // 100]
    print(f"find:      {middle:.2f} ms, p99 {slow:.2f} ms, one of {count + others:,}")
    began = time.perf_counter()
    async for _, page in archive.entries():
        print(f"list:      {(time.perf_counter() - began) * 1000:.1f} ms to the first {len(page)}")
        break


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--others", type=int, default=0, help="as many more, before one is looked for")
    parser.add_argument("--directory", type=Path, default=None, help="where; a temporary one, which is removed")
    given = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="archive-", dir=given.directory))
    try:
        asyncio.run(measure(directory, given.runs, given.others))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
