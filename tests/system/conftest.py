"""Fixtures of the tests of daemon, worker and client together."""

from __future__ import annotations

from tests.support.serving import client, no_unknown_keys_are_left, serve, work

__all__ = ["client", "no_unknown_keys_are_left", "serve", "work"]
