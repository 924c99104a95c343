"""A process that serves triggers: the loops of those that are read from, and the HTTP server of webhooks.

Owns: which of an app's triggers it serves, and that they end together. Must not: know a kind but webhooks. Called by:
the command `trigger`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Generator, Mapping
from typing import Any

import anyio

from streamflow.client.client import Client
from streamflow.errors import NamespaceMissing, StoreUnavailable, UsageError
from streamflow.triggers.http import Webhook, Webhooks
from streamflow.triggers.pulled import FIRST_PAUSE, LONGEST_PAUSE, PulledSource, keep_serving
from streamflow.triggers.receiver import Receiver
from streamflow.triggers.reports import reporting
from streamflow.workflow.app import App
from streamflow.workflow.trigger import Trigger

_log = logging.getLogger("streamflow.triggers")

CONNECTIONS = 1000
"""Connections of the HTTP server; it closes those that come beyond."""
DRAIN_SECONDS = 15
LOOK_SECONDS = 0.2
"""Seconds between two looks whether the namespace is there."""


def chosen(app: App, names: Collection[str]) -> list[Trigger[Any]]:
    """The triggers of these names, all without names. Raises `UsageError`."""
    unknown = [name for name in names if name not in app.triggers]
    if unknown:
        known = ", ".join(app.triggers) or "none"
        raise UsageError(f"the app has no trigger {unknown[0]!r}; it has: {known}")
    return [trigger for name, trigger in app.triggers.items() if not names or name in names]


async def serve_pulled(client: Client, triggers: Collection[Trigger[Any]]) -> None:
    """Serve those that are read from, until cancelled."""
    served = [
        (trigger.source, Receiver(client, trigger)) for trigger in triggers if isinstance(trigger.source, PulledSource)
    ]
    if not served:
        return
    async with reporting(client, [receiver for _, receiver in served]), anyio.create_task_group() as tasks:
        for source, receiver in served:
            tasks.start_soon(keep_serving, source, receiver)
            _log.info("trigger %s receives from %s", receiver.trigger.name, source.about)


async def serve_all(app: App, client: Client, host: str, port: int) -> None:
    """Serve all triggers of an app until cancelled, once there is a namespace. One that can't begin is named in the
    log and in `trigger status`, and the others are served."""
    await _namespace_is_there(client)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve_pulled, client, app.triggers.values())
        problems = _webhooks_without_secret(app)
        if problems:
            tasks.start_soon(_report_problems, app, client, problems)
        names = [
            name for name, found in app.triggers.items() if isinstance(found.source, Webhook) and name not in problems
        ]
        if names:
            tasks.start_soon(_keep_serving_http, app, client, host, port, names)
        await anyio.sleep_forever()


async def _namespace_is_there(client: Client) -> None:
    said = False
    while True:
        try:
            await client.read_namespace()
            return
        except (NamespaceMissing, StoreUnavailable) as error:
            if not said:
                _log.info("triggers wait for the namespace: %s", error)
            said = True
        await anyio.sleep(LOOK_SECONDS)


def _webhooks_without_secret(app: App) -> dict[str, str]:
    """What is wrong with those that can't be served, by name."""
    found: dict[str, str] = {}
    for name, trigger in app.triggers.items():
        if isinstance(trigger.source, Webhook):
            try:
                trigger.source.check_secrets()
            except UsageError as error:
                _log.error("trigger %s is not served: %s", name, error)
                found[name] = f"not served: {error}"
    return found


async def _report_problems(app: App, client: Client, problems: Mapping[str, str]) -> None:
    """Have `trigger status` show webhooks that are not served, until cancelled."""
    receivers = [Receiver(client, app.triggers[name]) for name in problems]
    for receiver in receivers:
        receiver.problem = problems[receiver.trigger.name]
    async with reporting(client, receivers):
        await anyio.sleep_forever()


async def _keep_serving_http(app: App, client: Client, host: str, port: int, names: Collection[str]) -> None:
    """Until cancelled. What keeps it from beginning is said once."""
    pause, said = FIRST_PAUSE, False
    while True:
        try:
            await serve_http(app, client, host, port, names)
            return
        except UsageError as error:
            if not said:
                _log.error("webhooks are not served, will retry: %s", error)
            said = True
            problem = f"not served, will retry: {error}"
        with anyio.move_on_after(pause):
            await _report_problems(app, client, dict.fromkeys(names, problem))
        pause = min(2 * pause, LONGEST_PAUSE)


async def serve_http(app: App, client: Client, host: str, port: int, names: Collection[str] = ()) -> None:
    """Serve the webhooks of an app, all without names, until cancelled; requests that are under way are answered.
    Raises `UsageError` if there are none, if uvicorn is missing, or if the address can't be used."""
    if not any(isinstance(trigger.source, Webhook) for trigger in app.triggers.values()):
        raise UsageError("the app has no webhook: register one with @app.trigger(sf.triggers.webhook('/path'))")
    try:
        import uvicorn
    except ImportError:
        raise UsageError("webhooks need an HTTP server: pip install 'streamflowd[triggers]'") from None

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Generator[None]:  # the command has its own handlers
            yield

    webhooks = Webhooks(app, client, names=names)
    server = Server(
        uvicorn.Config(
            webhooks,
            host=host,
            port=port,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=DRAIN_SECONDS,
            ws="none",
        )
    )
    for path in webhooks.paths:
        _log.info("webhook http://%s:%d%s", host, port, path)

    async def stop_when_cancelled() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            server.should_exit = True

    listened = True
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stop_when_cancelled)
        with anyio.CancelScope(shield=True):
            async with reporting(client, webhooks.receivers):
                try:
                    await server.serve()
                except SystemExit:
                    listened = False
        tasks.cancel_scope.cancel()
    if not listened:  # not in the group, which would wrap it
        raise UsageError(f"could not listen on {host}:{port}: is it in use?")
