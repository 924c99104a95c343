"""The sandbox's limits."""

from __future__ import annotations

import pytest

import streamflow as sf
import streamflow.testing as sft

pytestmark = pytest.mark.anyio

app = sf.App()


@app.workflow
async def monthly(months: int) -> None:
    for _ in range(months):
        await sf.sleep(30 * 86400)


async def test_a_workflow_that_never_ends_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamflow.testing.sandbox.LIMIT", 50)
    async with sft.Sandbox(app) as sandbox:
        endless = await sandbox.start(monthly, 1_000)
        with pytest.raises(sft.Stalled, match="has not ended after 50 transitions, at virtual time 2030-"):
            await endless.result()
