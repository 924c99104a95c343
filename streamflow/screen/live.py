"""The live screen: fetches and draws a status repeatedly, in the terminal's alternate screen.

Owns: the loop. Must not: know how a status is fetched. Called by: `status --watch`, `dev`, `demo`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
from rich.console import Console
from rich.live import Live

from streamflow.errors import StoreError
from streamflow.screen.layout import StatusScreen
from streamflow.screen.style import duration
from streamflow.status.model import NamespaceStatus

RESIZE_S = 0.1
"""Seconds between two checks of the terminal's size."""


async def watch(
    fetch: Callable[[], Awaitable[NamespaceStatus]],
    console: Console,
    interval: float = 1.0,
    until: anyio.Event | None = None,
    notice: Callable[[], str] = str,
) -> None:
    """Show what `fetch` returns, every `interval` seconds, until the event is set or the caller is cancelled.

    `notice`: what the header shows instead of the health, if it isn't empty. When `fetch` raises, the header shows the
    error and the last status stays on the screen. However this ends (Ctrl-C cancels it), the terminal's own screen and
    cursor are restored.
    """
    screen = StatusScreen()
    with Live(screen, console=console, screen=True, auto_refresh=False, transient=True) as live:
        live.refresh()
        async with anyio.create_task_group() as group:
            group.start_soon(_poll, fetch, screen, live, interval, notice)
            group.start_soon(_follow_size, console, live)
            await (until or anyio.Event()).wait()
            group.cancel_scope.cancel()


async def _poll(
    fetch: Callable[[], Awaitable[NamespaceStatus]],
    screen: StatusScreen,
    live: Live,
    interval: float,
    notice: Callable[[], str],
) -> None:
    answered = anyio.current_time()
    while True:
        try:
            screen.status = await fetch()
            screen.problem = notice()
            answered = anyio.current_time()
        except Exception as error:  # any error: the screen shows it and keeps trying
            what = "server unreachable" if isinstance(error, StoreError | OSError) else "status not available"
            since = duration(1000 * (anyio.current_time() - answered))
            screen.problem = f"{what}, retrying (last answer {since} ago): {type(error).__name__} {error}"
        live.refresh()
        await anyio.sleep(interval)


async def _follow_size(console: Console, live: Live) -> None:
    size = console.size
    while True:
        await anyio.sleep(RESIZE_S)
        if console.size != size:
            size = console.size
            live.refresh()
