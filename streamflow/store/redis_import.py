"""The first import of redis-py, without OpenTelemetry's SDK for metrics.

Owns: that loading the server's client doesn't load a package that it doesn't use. Must not: change what redis-py does,
or what other threads import. Called by: the package, before any of its modules imports redis.

Where the SDK is installed, redis-py imports it for the annotation of one method, which takes a quarter of the processor
time of `streamflow runs`, and is part of the start of each daemon and worker. Metrics of redis-py, for applications
that switch them on, import what they need when they begin.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import threading
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_UNUSED = "opentelemetry.sdk.metrics"
_THE_ONE_WITH_THE_ANNOTATION = "redis.observability.providers"


class _NotForThisThread(MetaPathFinder):
    """Other threads find the SDK as always: the application may be importing it just now."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == _UNUSED and threading.get_ident() == self._thread:
            raise ModuleNotFoundError(f"not needed for the import of redis: {fullname}", name=fullname)
        return None


def import_redis() -> None:
    """Import redis-py, if nobody has yet."""
    finder = _NotForThisThread()
    sys.meta_path = [finder, *sys.meta_path]  # another list, because other threads may be going through this one
    try:
        with contextlib.suppress(ModuleNotFoundError):  # a redis-py that has no such module doesn't need this
            importlib.import_module(_THE_ONE_WITH_THE_ANNOTATION)
    finally:
        sys.meta_path = [other for other in sys.meta_path if other is not finder]
