"""The views of apps: what is largest in each one's newest window. There is no such panel without views.

Owns: how many it shows. Must not: count. Called by: `layout.py`.
"""

from __future__ import annotations

from streamflow.screen.app_views import list_table
from streamflow.screen.panels.panel import Panel
from streamflow.status.model import NamespaceStatus


def app_views_panel(status: NamespaceStatus, width: int) -> Panel | None:
    return Panel(list_table(status.app_views, width)) if status.app_views else None
