"""Where a thread is: the line of user code in its stack, for messages about steps that block or hang.

Owns: which frames are user code. Must not: log, or keep a frame. Called by: executor, loop watch.
"""

from __future__ import annotations

import os
import sysconfig
import traceback
from pathlib import Path
from types import CodeType, FrameType

PACKAGE = str(Path(__file__).resolve().parents[1]) + os.sep
LIBRARIES = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "purelib", "platlib")})


def frames(frame: FrameType | None) -> list[FrameType]:
    """The frame and its callers, outermost first."""
    found: list[FrameType] = []
    while frame is not None:
        found.append(frame)
        frame = frame.f_back
    return found[::-1]


def user_line(frame: FrameType, executes: CodeType | None = None) -> str:
    """The innermost line of user code; if there is none, the line of the library that `executes`, or else any of
    streamflow's functions, has called first."""
    stack = frames(frame)
    marks = [
        i
        for i, one in enumerate(stack)
        if (one.f_code is executes if executes else one.f_code.co_filename.startswith(PACKAGE))
    ]
    start = marks[-1] + 1 if marks else 0
    inner = [one for one in stack[start:] if not one.f_code.co_filename.startswith(PACKAGE)] or stack
    own = [one for one in inner if not one.f_code.co_filename.startswith((*LIBRARIES, "<"))]
    chosen = own[-1] if own else inner[0] if marks else inner[-1]
    [line] = traceback.extract_stack(chosen, limit=1)
    return f"{line.filename}:{line.lineno} ({line.line})"
