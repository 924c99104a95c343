"""Triggers that read from somewhere, served in the process of a test."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio

import streamflow as sf
from streamflow import triggers
from streamflow.triggers.serving import serve_pulled


@asynccontextmanager
async def receiving(client: sf.Client, *found: triggers.Trigger[Any]) -> AsyncGenerator[None, None]:
    """What `streamflow trigger run` does."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve_pulled, client, found)
        yield
        tasks.cancel_scope.cancel()
