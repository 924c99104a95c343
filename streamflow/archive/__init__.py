"""Ended runs in storage of the user's choice: where they are, what stands there, and the way to it."""
