"""The merged view of an app: all shards' parts together, in one field that readers get.

Owns: which windows have changed and are merged again, when a new version takes the place of the old one, and what is
stored. Must not: run the view's code in the event loop. Called by: `view_folder.py`, of the leading daemon.

Only windows that have changed since the last merge are read again. The version that is read stays until all shards have
counted everything in the new one.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, TypeVar

import msgspec

from streamflow.daemon.context import Context
from streamflow.daemon.rollup import Rollup
from streamflow.daemon.view_parts import Part, PartState, decode_state, state_field, window_field
from streamflow.errors import StoreError
from streamflow.model.codec import DECODE_ERRORS
from streamflow.store.connection import Call
from streamflow.store.kernel import Put
from streamflow.views import cells
from streamflow.views.reading import (
    EncodedView,
    StoredView,
    ViewFilling,
    decode_view,
    encode_view,
    encode_window,
)
from streamflow.workflow.view import View

_log = logging.getLogger("streamflow.views")

T = TypeVar("T")

CHUNK = 32
"""Reads in one pipeline."""
STILL_ROUNDS = 10
"""Rounds after the last change in which it is looked again: other daemons store a little later."""
SHORT_ROWS = 5
"""Of the newest window, for the status."""


class InThread(Protocol):
    def __call__(self, function: Callable[[], T], /) -> Awaitable[T]: ...


class ViewMerge:
    def __init__(self, context: Context, rollup: Rollup, view: View, version: str, in_thread: InThread) -> None:
        self.is_current = False
        """This version is the one that is read, as far as it is known here."""
        self._view = view
        self._version = version
        self._store = context.store
        self._kernel = context.kernel
        self._clock = context.clock
        self._shards = context.namespace.shards
        self._rollup = rollup
        self._in_thread = in_thread
        self._merged: dict[int, msgspec.Raw] = {}
        """By start, encoded."""
        self._seen: list[dict[int, int]] = [{} for _ in range(self._shards)]
        """By shard, when each of its windows had changed at the last merge."""
        self._is_whole = True
        """No shard was behind or unfilled at the last merge; another daemon may fill one while nothing else happens."""
        self._looked_at: tuple[int, int] | None = None
        self._rounds = 0

    async def run_once(self, own: Mapping[int, Part]) -> None:
        """`own`: the parts of the shards that this daemon has."""
        if not self._rollup.leading:
            self._looked_at = None
            if not self.is_current and self._rounds % STILL_ROUNDS == 0:
                self.is_current = (await self._stored()).version == self._version
            self._rounds += 1
            return
        changed = self._rollup.folds + self._rollup.others_folds, sum(part.state.events for part in own.values())
        if changed != self._looked_at:
            if self._looked_at is None:
                self._merged.clear()
                self._seen = [{} for _ in range(self._shards)]
            self._looked_at, self._rounds = changed, 0
        self._rounds += 1
        if self._rounds <= STILL_ROUNDS or (not self._is_whole and self._rounds % STILL_ROUNDS == 0):
            await self._merge()

    async def _merge(self) -> None:
        states = await self._states()
        changed = {
            start
            for number, state in enumerate(states)
            for start, at in state.windows.items()
            if self._seen[number].get(start) != at
        }
        for seen, state in zip(self._seen, states, strict=True):
            changed |= seen.keys() - state.windows.keys()
        oldest = cells.oldest_window(self._view, max(state.newest for state in states))
        for start in sorted(changed, reverse=True):
            holders = [number for number, state in enumerate(states) if start in state.windows]
            if holders and start >= oldest:
                self._merged[start] = msgspec.Raw(await self._merge_window(start, holders))
            else:
                self._merged.pop(start, None)
        for start in [start for start in self._merged if start < oldest]:
            del self._merged[start]
        self._seen = [dict(state.windows) for state in states]
        await self._put(states, bool(changed))

    async def _states(self) -> list[PartState]:
        keys, field = self._kernel.keys, state_field(self._version)
        found: list[PartState] = []
        for first in range(0, self._shards, CHUNK):
            chunk = range(first, min(first + CHUNK, self._shards))
            calls = [Call.plain("HGET", keys.shard(n).app_view(self._view.name), field) for n in chunk]
            for data in await self._store.send(calls):
                if isinstance(data, StoreError):
                    raise data
                try:
                    found.append(PartState() if data is None else decode_state(data))
                except DECODE_ERRORS:
                    found.append(PartState())
        return found

    async def _merge_window(self, start: int, holders: list[int]) -> bytes:
        keys, field, view = self._kernel.keys, window_field(self._version, start), self._view
        parts: list[bytes] = []
        for first in range(0, len(holders), CHUNK):
            chunk = holders[first : first + CHUNK]
            calls = [Call.plain("HGET", keys.shard(n).app_view(view.name), field) for n in chunk]
            for data in await self._store.send(calls):
                if isinstance(data, StoreError):
                    raise data
                if data is not None:
                    parts.append(data)

        def merge() -> bytes:
            merged = cells.merge(view, (cells.decode(view, data) for data in parts))
            return encode_window(start, cells.shown(view, merged))

        return await self._in_thread(merge)

    async def _stored(self) -> StoredView:
        data = await self._store.one(Call.plain("HGET", self._kernel.keys.app_views, self._view.name))
        try:
            return StoredView("") if data is None else decode_view(data)
        except DECODE_ERRORS as error:
            _log.error("the merged view %s can't be read, and is replaced: %s", self._view.name, error)
            return StoredView("")

    async def _put(self, states: list[PartState], has_changed: bool) -> None:
        view, now = self._view, self._clock.now_ms()
        ready = sum(state.ready and state.is_filled for state in states)
        missed = [state for state in states if state.missed_to]
        found = EncodedView(
            self._version,
            now,
            max(state.counts_from for state in states),
            min((state.missed_from for state in missed), default=0),
            max((state.missed_to for state in missed), default=0),
            view.window,
            list(view.by),
            sum(state.events for state in states),
            ready,
            self._shards,
            [self._merged[start] for start in sorted(self._merged, reverse=True)],
            earlier=sum(state.filled for state in states),
            unfilled=sum(not state.is_filled for state in states),
        )
        self._is_whole = found.is_complete
        if not (found.is_complete and self.is_current):
            stored = await self._stored()
            self.is_current = stored.version in ("", self._version) or found.is_complete
            if not self.is_current:  # the old one is read until then
                filling = ViewFilling(self._version, ready, self._shards)
                if stored.filling != filling:
                    stored.filling = filling
                    await self._write(encode_view(stored), stored)
                return
        short = msgspec.structs.replace(found, windows=found.windows[:1])
        await self._write(encode_view(found), decode_view(encode_view(short)))

    async def _write(self, whole: bytes, short: StoredView) -> None:
        name, keys = self._view.name, self._kernel.keys
        for window in short.windows[:1]:
            window.rows = window.rows[:SHORT_ROWS]
        short.windows = short.windows[:1]
        puts = [Put(keys.app_views, name, whole), Put(keys.app_view_heads, name, encode_view(short))]
        await self._store.one(self._kernel.store_records(puts))
