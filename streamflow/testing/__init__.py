"""Testing workflows in memory: `import streamflow.testing as sft`.

Owns: the names of the testing kit, each loaded when it is first asked for (the pytest plugin loads this package).
Must not: need pytest, or a server. Called by: user tests.

    sandbox.py    the client's API over a world in memory           (what tests use)
    world.py      records, messages, the virtual clock, crashes      (what server and owner do in production)
    attempts.py   one attempt of a step                              (what the executor does)
    stubs.py      what steps do instead, and what was called
    crashes.py    crash and resume at every transition
    plugin.py     the pytest plugin
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamflow.client.histories import History, load_history, replay, save_history
    from streamflow.testing.crashes import Survived, survives_crashes
    from streamflow.testing.sandbox import Sandbox, SandboxRun, run
    from streamflow.testing.stubs import StubCall
    from streamflow.testing.world import Stalled

_LATER = {
    "StubCall": "streamflow.testing.stubs",
    "History": "streamflow.client.histories",
    "Sandbox": "streamflow.testing.sandbox",
    "SandboxRun": "streamflow.testing.sandbox",
    "Stalled": "streamflow.testing.world",
    "Survived": "streamflow.testing.crashes",
    "load_history": "streamflow.client.histories",
    "replay": "streamflow.client.histories",
    "run": "streamflow.testing.sandbox",
    "save_history": "streamflow.client.histories",
    "survives_crashes": "streamflow.testing.crashes",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'streamflow.testing' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_LATER[name]), name)
    return value


__all__ = [
    "History",
    "Sandbox",
    "SandboxRun",
    "Stalled",
    "StubCall",
    "Survived",
    "load_history",
    "replay",
    "run",
    "save_history",
    "survives_crashes",
]
