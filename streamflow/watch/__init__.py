"""Watching over an event loop from a thread: naming and interrupting what blocks it."""
