"""Fixtures of the manual."""

from __future__ import annotations

from tests.support.serving import client, no_unknown_keys_are_left, serve, work

__all__ = ["client", "no_unknown_keys_are_left", "serve", "work"]
