"""What the server has of a run that was moved out of memory: one short line, from which the rest is found.

Owns: that line (`lua/shared/asleep.lua` writes it), and the header that stands for such a run. Must not: read anything.
Called by: the daemon, the client.
"""

from __future__ import annotations

from typing import NamedTuple

UNKNOWN_WORKFLOW = "-"
"""In the place of a workflow's name that is too long for that line."""
NO_PARENT = "-"
ASLEEP = b"asleep"
"""The third word of the header that stands for such a run, in the place of the last commit's id."""


class Sleeper(NamedTuple):
    """`created`: ms; `due`: ms, 0 for none; `random`: of its object's name; `workflow`: empty if its name is long.
    `line`: the whole, as it is; `parent`: a digest of the parent's link, or `NO_PARENT`."""

    created: int
    version: int
    due: int
    random: str
    workflow: str
    line: bytes
    parent: str = NO_PARENT

    @property
    def header(self) -> bytes:
        """What stands for the run's header: that it is open, and which one it is."""
        return f"running {self.version} asleep {self.created} 0 {self.workflow or UNKNOWN_WORKFLOW} - -".encode()


def decode_sleeper(line: bytes) -> Sleeper:
    """Raises `ValueError` for what somebody else has written there."""
    created, version, due, random, parent, workflow = line.decode().split(" ")
    at = 0 if due == "-" else int(float(due))
    name = "" if workflow == UNKNOWN_WORKFLOW else workflow
    return Sleeper(int(created), int(version), at, random, name, line, parent)


def is_asleep(header: bytes) -> bool:
    """Whether this header stands for a run that was moved out of memory."""
    words = header.split(b" ", 3)
    return len(words) == 4 and words[2] == ASLEEP
