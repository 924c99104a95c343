"""Servers and lines to them that tests control. The line itself is one of the benchmarks' faults, too."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import hiredis

from bench.faults import Line, line_to, listening, port_of

__all__ = ["Line", "line_to", "listening", "port_of", "refusing"]


@contextlib.asynccontextmanager
async def refusing(reply: str) -> AsyncGenerator[str]:
    """A server that answers each command but INFO with the same error, and never closes a connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        commands = hiredis.Reader()
        info = "run_id:refusing\r\nrole:master\r\n"
        while data := await reader.read(65_536):
            commands.feed(data)
            while command := commands.gets():
                is_info = command[0] == b"INFO"
                writer.write(f"${len(info)}\r\n{info}\r\n".encode() if is_info else f"-{reply}\r\n".encode())
        writer.close()

    async with listening(serve) as url:
        yield url
