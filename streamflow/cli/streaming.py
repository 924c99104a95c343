"""What `tail --stream` prints: what a run's steps emit, as it comes.

Owns: the text and the JSON of it. Must not: connect, find the run. Called by: `tail`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from streamflow.cli.logs import json_line

if TYPE_CHECKING:
    from streamflow.client.client import Client
    from streamflow.client.streams import Chunk


async def print_stream(client: Client, run: str, after: str, as_json: bool) -> None:
    """Returns when the run has ended."""
    is_due: list[object] = []

    def flush() -> None:
        is_due.clear()
        sys.stdout.flush()

    printed = _json if as_json else StreamText(sys.stdout.write)
    async with aclosing(client.run(run).stream(after=after)) as chunks:
        async for chunk in chunks:
            printed(chunk)
            if not is_due:  # once for what has come together: ten thousand a second may
                is_due.append(asyncio.get_running_loop().call_soon(flush))
    if isinstance(printed, StreamText):
        printed.end()
    sys.stdout.flush()


def _json(chunk: Chunk[Any]) -> None:
    sys.stdout.write(json_line(chunk) + "\n")


class StreamText:
    """Texts one behind the other, as they were emitted; any other value on a line of its own, as JSON. Lines
    between them name a call that emits next, and an attempt that begins again."""

    def __init__(self, write: Callable[[str], Any]) -> None:
        self._write = write
        self._last: tuple[int, int] | None = None
        self._in_line = False

    def __call__(self, chunk: Chunk[Any]) -> None:
        if chunk.missed:
            self._note(f"{chunk.missed} chunk{'s are' if chunk.missed > 1 else ' is'} gone")
        call = (chunk.seq, chunk.attempt)
        if chunk.restarted:
            self._note(f"{chunk.step} #{chunk.seq}, attempt {chunk.attempt}: begins again")
        elif self._last is not None and call != self._last:
            self._note(f"{chunk.step} #{chunk.seq}")
        self._last = call
        if isinstance(chunk.value, str):
            self._text(chunk.value)
        else:
            self.end()
            self._write(json_line(chunk.value) + "\n")

    def _text(self, text: str) -> None:
        from streamflow.screen.sanitize import safe

        lines = text.replace("\r\n", "\n").split("\n")
        clean = "\n".join("\t".join(safe(part) for part in line.split("\t")) for line in lines)
        self._write(clean)
        if clean:
            self._in_line = not clean.endswith("\n")

    def _note(self, text: str) -> None:
        from streamflow.screen.sanitize import safe

        self.end()
        self._write(f"-- {safe(text)}\n")

    def end(self) -> None:
        """End the line that is begun."""
        if self._in_line:
            self._write("\n")
        self._in_line = False
