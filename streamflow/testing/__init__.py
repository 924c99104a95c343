"""Testing workflows in memory: `import streamflow.testing as sft`.

Owns: the names of the testing kit, each imported at its first use (the pytest plugin loads this package).
Must not: need pytest, or a server. Called by: user tests.

A `Sandbox` runs workflows without a server, with a virtual clock that skips waiting:

>>> async def test_digest() -> None:
...     async with sft.Sandbox(app) as sandbox:
...         sandbox.stub(fetch, returns="<p>")
...         run = await sandbox.start(digest, ["https://example.org"])
...         assert await run.result() == 3

`run` is a sandbox in one line, `emitted` collects what steps emit that are called as functions, `survives_crashes`
crashes at every transition, and `replay` checks recorded histories against changed code.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamflow.client.histories import History, load_history, replay, save_history
    from streamflow.testing.crashes import Survived, survives_crashes
    from streamflow.testing.emitting import emitted
    from streamflow.testing.sandbox import Sandbox, SandboxRun, run
    from streamflow.testing.stubs import StubCall
    from streamflow.testing.world import Stalled

_LAZY = {
    "StubCall": "streamflow.testing.stubs",
    "History": "streamflow.client.histories",
    "Sandbox": "streamflow.testing.sandbox",
    "SandboxRun": "streamflow.testing.sandbox",
    "Stalled": "streamflow.testing.world",
    "Survived": "streamflow.testing.crashes",
    "emitted": "streamflow.testing.emitting",
    "load_history": "streamflow.client.histories",
    "replay": "streamflow.client.histories",
    "run": "streamflow.testing.sandbox",
    "save_history": "streamflow.client.histories",
    "survives_crashes": "streamflow.testing.crashes",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'streamflow.testing' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_LAZY[name]), name)
    return value


__all__ = [
    "History",
    "Sandbox",
    "SandboxRun",
    "Stalled",
    "StubCall",
    "Survived",
    "emitted",
    "load_history",
    "replay",
    "run",
    "save_history",
    "survives_crashes",
]
