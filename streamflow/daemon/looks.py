"""When the leading daemon looks at something that changes slowly, and what an answer costs that can't be used.

Owns: the turns between two looks. Must not: know what is looked at. Called by: `fleet.py` and `sizes.py`, with
each rollup.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from typing import TypeVar

from streamflow.errors import StoreError, StoreUnavailable

_log = logging.getLogger("streamflow.rollup")

T = TypeVar("T")


class Looks:
    """`what` is unknown after a look that failed; `every`, `rollup`: seconds between two looks, and two rollups."""

    def __init__(self, what: str, every: float, rollup: float, level: int = logging.WARNING) -> None:
        self._what = what
        self._rounds = math.ceil(every / rollup)
        self._level = level
        self._left = 0
        """Rollups until the next look."""

    def forget(self) -> None:
        """Another daemon leads: if this one leads again, it looks at once."""
        self._left = 0

    async def take(self, read: Callable[[], Awaitable[T]]) -> T | None:
        """What is read, if it is time to; None if it isn't, or if somebody has damaged a key: the rest of what is
        merged is as good. Raises `StoreUnavailable`."""
        if self._left > 0:
            self._left -= 1
            return None
        self._left = self._rounds - 1
        try:
            return await read()
        except StoreUnavailable:
            raise
        except StoreError as error:
            _log.log(self._level, "%s unknown, will look again: %s", self._what, error)
            return None
