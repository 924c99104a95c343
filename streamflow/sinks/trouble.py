"""What is wrong with a target, said once: when it begins, when it is something else, and when it is over.

Owns: when a line is logged about it. Must not: decide when to try again. Called by: `runner.py`, `webhook.py`.
"""

from __future__ import annotations

import logging
import time

from streamflow.text import duration


class Trouble:
    """Of one target. `says` is what is wrong now, empty if nothing is."""

    def __init__(self, log: logging.Logger, name: str) -> None:
        self._log = log
        self._name = name
        self._since = 0.0
        self.says = ""
        self.count = 0
        """Failures since the start."""

    def note(self, text: str) -> None:
        """It failed. Logged unless it is what has been wrong already."""
        self.count += 1
        if not self.says:
            self._since = time.monotonic()
        if text != self.says:
            self._log.warning("%s: %s; will retry", self._name, text)
        self.says = text

    def over(self) -> None:
        """It works. Logged if something was wrong."""
        if self.says:
            ms = (time.monotonic() - self._since) * 1000
            self._log.info("%s works again, after %s: %s", self._name, duration(ms), self.says)
        self.says = ""
