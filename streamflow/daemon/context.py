"""What all loops of a daemon share: its app, its server, its settings, its identity.

Owns: only these references. Must not: change after the daemon has started.
Called by: the daemon creates it, every loop reads it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from streamflow.daemon.clock import DaemonClock
from streamflow.daemon.troubles import Troubles
from streamflow.settings import Settings
from streamflow.store.connection import Store
from streamflow.store.kernel import Kernel
from streamflow.store.namespace import Namespace
from streamflow.workflow.app import App

if TYPE_CHECKING:
    from streamflow.daemon.archive_guard import ArchiveGuard
    from streamflow.tracing.spans import Tracing


@dataclass(frozen=True)
class Context:
    """`member` is this daemon's name among the others; `session` names its commits."""

    app: App
    store: Store
    kernel: Kernel
    clock: DaemonClock
    settings: Settings
    namespace: Namespace
    member: str
    session: str
    tracing: Tracing | None = None
    guard: ArchiveGuard | None = None
    """Whether the archive is the namespace's."""
    troubles: Troubles = field(default_factory=Troubles)
