"""Reads the records of many runs of one shard, some at a time, each whole.

Owns: going on where a reply was full, and putting the parts of a record together. Must not: decide what a run without a
record, or one that can't be read, means to its caller. Called by: the loops that look at many runs (`archiving.py`,
`deploy_check.py`, `hibernation.py`, `payload_sweep.py`, `view_fill.py`). The owner and admission, which read records of
many shards in one pipeline, don't need it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable

from streamflow.daemon.context import Context
from streamflow.errors import StoreError

Record = tuple[str, list[bytes] | StoreError]
"""A run's id, and the elements of its record: none if there is no such run, an error if the key isn't a record's."""


async def whole_records(
    context: Context, shard: int, run_ids: Iterable[str], portion: int
) -> AsyncGenerator[list[Record]]:
    """Each run once: with each reply of about `portion` bytes those that it has made whole, maybe none, in the order of
    `run_ids`; only those without a record come out with the first reply. A record that is larger takes several replies,
    and its own size in memory. Raises `StoreError` if the server doesn't answer."""
    left: list[str] = list(run_ids)
    parts: dict[str, list[bytes]] = {run_id: [] for run_id in left}
    while left:
        asked = [(run_id, len(parts[run_id])) for run_id in left]
        answers = await context.store.one(context.kernel.read_runs(shard, asked, portion))
        whole: list[Record] = []
        left = []
        for (run_id, _), answer in zip(asked, answers, strict=True):
            if isinstance(answer, StoreError):
                whole.append((run_id, answer))
                continue
            following, elements = answer
            parts[run_id] += elements
            if following is None:
                whole.append((run_id, parts.pop(run_id)))
            else:
                left.append(run_id)
        yield whole
