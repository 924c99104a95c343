"""What steps emit, in tests: `emitted` for steps that are called as plain functions, and the streams of a sandbox.

Owns: the chunks of the runs of a world, with the marks that a server gives them. Must not: wait (the sandbox does).
Called by: user tests (`emitted`), the world.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from typing import Any

from msgspec import Raw

from streamflow.client.streams import EmittedChunk
from streamflow.steps.context import Running, collected


@contextlib.contextmanager
def emitted() -> Generator[list[Any]]:
    """Collect what steps emit that are called as plain functions within the block, as the values that they gave.

    >>> with sft.emitted() as chunks:
    ...     await write("a haiku")
    >>> assert chunks == ["old ", "pond"]
    """
    chunks: list[Any] = []
    token = collected.set(chunks)
    try:
        yield chunks
    finally:
        collected.reset(token)


class EmittedChunks:
    """Of all runs of a world, by run. `now` gives the virtual ms; `on_chunk` is called in the thread of the step."""

    def __init__(self, now: Callable[[], int], on_chunk: Callable[[], None]) -> None:
        self._now = now
        self._on_chunk = on_chunk
        self._of: dict[str, list[EmittedChunk]] = {}
        self._last: dict[tuple[str, int], Running] = {}
        """The attempt of each call that has emitted last."""

    def of(self, run_id: str) -> list[EmittedChunk]:
        return self._of.get(run_id, [])

    def emit(self, running: Running, data: bytes, missed: int = 0) -> None:
        """The `on_emit` of attempts."""
        job = running.job
        call = (running.run_id, job.seq)
        before, self._last[call] = self._last.get(call), running
        restarted = before is not running and (before is not None or job.attempt > 1)
        chunks = self._of.setdefault(running.run_id, [])
        number = len(chunks) + 1
        chunks.append(
            EmittedChunk(
                "1", number, number, job.step.name, job.seq, job.attempt, self._now(), Raw(data), restarted, missed
            )
        )
        self._on_chunk()
