"""A view of the app in the sandbox: counted when it is read, from the histories of all runs.

Owns: that each run is a part of its own, which is encoded, decoded and merged as on a server.
Must not: know the world. Called by: the sandbox.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from streamflow.events import Transition
from streamflow.model.record import Header
from streamflow.views import cells
from streamflow.views.cells import Cells
from streamflow.views.reading import EncodedView, StoredView, decode_view, encode_view, encode_window
from streamflow.workflow.view import View


def counted(view: View, logs: Sequence[tuple[str, Header, list[Transition]]], now: int) -> StoredView:
    """`logs`: id, header and transitions of each run. Raises what the view's code raises, and `PayloadInvalid` for a
    state that its own type can't read."""
    newest = max((log[-1].at for *_, log in logs if log), default=now)
    oldest = cells.oldest_window(view, newest)
    parts: dict[int, list[Cells]] = {}
    events = 0
    for run_id, header, log in logs:
        windows: dict[int, Cells] = {}
        for transition in log:
            if not view.width or transition.at >= oldest:
                events += cells.fold(view, windows, run_id, (header.workflow, header.tenant), transition)
        for start, window in windows.items():
            parts.setdefault(start, []).append(cells.decode(view, cells.encode(view, window)))
    merged = [
        msgspec.Raw(encode_window(start, cells.shown(view, cells.merge(view, parts[start]))))
        for start in sorted(parts, reverse=True)
    ]
    found = EncodedView(view.version or "-", now, 0, 0, 0, view.window, list(view.by), events, 1, 1, merged)
    return decode_view(encode_view(found))
