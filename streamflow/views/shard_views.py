"""Global views of all runs, folded from the shards' logs: the partial of a shard, and how partials are merged.

Owns: `ShardViews` (folding, merging, encoding all views of `registry.py` together) and the oldest open runs.
Must not: know keys, offsets or clocks. A partial is stored together with the log offset that it covers, by its caller.
Called by: the owner (folds what it commits, encodes), the rollup (merges, renders), the rebuild command.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from streamflow.events import Transition
from streamflow.views.registry import JSON, TOGETHER, VIEWS, Fold, View

__all__ = ["JSON", "VIEWS", "ShardViews", "View", "merge_oldest"]

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])
_PRUNES = [(view.name, view.prune) for view in VIEWS if view.prune is not None]
_decoders = {view.name: msgspec.msgpack.Decoder(view.type) for view in VIEWS}


class ShardViews:
    """The partials of one shard (or of several, merged): one for each view."""

    __slots__ = ("_folds", "missing", "partials")

    def __init__(self, partials: dict[str, Any] | None = None) -> None:
        stored = partials or {}
        self.partials: dict[str, Any] = {
            view.name: stored[view.name] if view.name in stored else view.zero() for view in VIEWS
        }
        self.missing: tuple[str, ...] = ()
        """Views that the decoded data didn't have, or not in the current form: they start at zero until a rebuild."""
        self._folds: dict[type, Fold] | None = None
        """Made for the first event: most partials are only merged."""

    def fold(self, run_id: str, transition: Transition) -> None:
        """Add one committed transition. Hot: an event that no view uses costs one dict look-up."""
        at = transition.at
        folds = self._folds
        if folds is None:
            folds = self._folds = self._make_folds()
        for event in transition.events:
            fold = folds.get(type(event))
            if fold is not None:
                fold(run_id, at, event)

    def _make_folds(self) -> dict[type, Fold]:
        users: dict[type, list[tuple[Callable[..., None], Any]]] = {}
        for view in VIEWS:
            for type_, fold in view.folds.items():
                users.setdefault(type_, []).append((fold, self.partials[view.name]))
        folds: dict[type, Fold] = {type_: _one_after_another(some) for type_, some in users.items()}
        for type_, (names, bound_to) in TOGETHER.items():
            folds[type_] = bound_to(*(self.partials[name] for name in names))
        return folds

    def encode(self) -> bytes:
        """The bytes for `decode`. Call `prune` first, or they contain all rates since the start."""
        return _encoder.encode(self.partials)

    @classmethod
    def decode(cls, data: bytes) -> ShardViews:
        """Raises `msgspec.DecodeError` if `data` is not a partial at all; see `missing` for single views."""
        stored = _decoder.decode(data)
        partials: dict[str, Any] = {}
        missing: list[str] = []
        for name, decoder in _decoders.items():
            try:
                partials[name] = decoder.decode(stored[name])
            except (KeyError, msgspec.DecodeError, UnicodeDecodeError):
                missing.append(name)
        views = cls(partials)
        views.missing = tuple(missing)
        return views

    def merge(self, other: ShardViews) -> None:
        """Add another shard's partials; `other` is not changed."""
        for view in VIEWS:
            view.merge(self.partials[view.name], other.partials[view.name])
        self.missing = tuple(name for name in self.partials if name in self.missing or name in other.missing)

    def render(self, now_ms: int) -> dict[str, JSON]:
        """View name -> its part of `status --json`."""
        return {view.name: view.render(self.partials[view.name], now_ms) for view in VIEWS}

    def prune(self, now_ms: int, shards: int = 1) -> None:
        """Drop what is too old to be rendered, or more than one of so many shards has to have."""
        for name, prune in _PRUNES:
            prune(self.partials[name], now_ms, shards)


def _one_after_another(users: list[tuple[Callable[..., None], Any]]) -> Fold:
    def fold(run_id: str, at: int, event: Any) -> None:
        for function, partial in users:
            function(partial, run_id, at, event)

    return fold


def merge_oldest(lists: Iterable[Iterable[Sequence[Any]]], k: int = 10) -> list[list[Any]]:
    """The `k` oldest open runs of all shards: each row is `[run id, workflow, started ms]`, oldest first."""
    rows = (row for rows in lists for row in rows)
    return [list(row) for row in heapq.nsmallest(k, rows, key=lambda row: (row[2], row[0]))]
