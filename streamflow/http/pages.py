"""What a daemon, worker or sink answers at /health, /ready and /metrics.

Owns: status codes, the form of the answers, and that an answer to /metrics is used again for a second, however many
scrapers ask. Must not: judge or measure (they do). Called by: `server.py`, in its thread.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Literal

import msgspec

from streamflow.health import Health
from streamflow.http.catalog import BUILD_INFO, HEALTH_PROBLEMS, HEALTH_WARNINGS, READY
from streamflow.http.exposition import MISSING, can_be_exposed, encoder_for, source_of
from streamflow.http.figures import Figures
from streamflow.http.server import JSON, Answer
from streamflow.version import __version__

_log = logging.getLogger("streamflow.http")

PATHS = ("/health", "/ready", "/metrics")
STARTING = "it is starting"
KEPT = 1.0
"""Seconds for which the same metrics are given again."""
MOST_TEXTS = 8
"""Kept of them: a client may ask for any content type."""


class Part(msgspec.Struct, frozen=True):
    """What a daemon, worker or sink says of itself. All of it is called in the server's thread, while the event loop of
    the process may be blocked."""

    health: Callable[[], Health]
    unready: Callable[[], list[str]]
    """Why it is not ready; empty if it is."""
    add_figures: Callable[[Figures], Awaitable[None]]
    close: Callable[[], Awaitable[None]]


class Pages:
    """`kind` and `name` are those of a process that has not come as far as to have a `part`."""

    def __init__(self, kind: Literal["daemon", "worker", "sink"], name: str, namespace: str) -> None:
        self.part: Part | None = None
        self._starting = Health(kind=kind, name=name, namespace=namespace, pid=os.getpid(), at=0.0, warnings=[STARTING])
        self._namespace = namespace
        self._read_at = -math.inf
        """When the figures of the texts were read (monotonic s)."""
        self._figures = Figures()
        self._texts: dict[str, bytes] = {}
        """By content type."""
        self._making = asyncio.Lock()
        self._can_expose = can_be_exposed()
        if not self._can_expose:
            _log.warning("%s", MISSING)

    async def answer(self, path: str, accept: str) -> Answer:
        if path == "/health":
            health = self._health().judged(live=True)
            return _json(health.healthy, msgspec.to_builtins(health))
        if path == "/ready":
            reasons = self._unready()
            return _json(not reasons, {"ready": not reasons, "reasons": reasons})
        if path == "/metrics":
            return await self._metrics(accept)
        return Answer(HTTPStatus.NOT_FOUND, f"there are: {', '.join(PATHS)}\n".encode())

    async def close(self) -> None:
        if self.part is not None:
            await self.part.close()

    def _health(self) -> Health:
        if self.part is None:
            return msgspec.structs.replace(self._starting, at=time.monotonic())
        return self.part.health()

    def _unready(self) -> list[str]:
        return [STARTING] if self.part is None else self.part.unready()

    async def _metrics(self, accept: str) -> Answer:
        if not self._can_expose:
            return Answer(HTTPStatus.NOT_IMPLEMENTED, f"{MISSING}\n".encode())
        encode, content_type = encoder_for(accept)
        async with self._making:
            now = time.monotonic()
            if now - self._read_at >= KEPT:
                self._figures, self._texts, self._read_at = await self._read(), {}, now
            text = self._texts.get(content_type)
            if text is None:
                text = encode(source_of(self._figures, self._namespace))
                if len(self._texts) < MOST_TEXTS:
                    self._texts[content_type] = text
        return Answer(HTTPStatus.OK, text, content_type)

    async def _read(self) -> Figures:
        figures = Figures()
        health = self._health().judged(live=True)
        figures.set(BUILD_INFO, 1, health.kind, __version__)
        figures.set(HEALTH_PROBLEMS, len(health.problems))
        figures.set(HEALTH_WARNINGS, len(health.warnings))
        figures.set(READY, not self._unready())
        if self.part is not None:
            await self.part.add_figures(figures)
        return figures


def _json(fine: bool, body: dict[str, Any]) -> Answer:
    return Answer(HTTPStatus.OK if fine else HTTPStatus.SERVICE_UNAVAILABLE, msgspec.json.encode(body) + b"\n", JSON)
