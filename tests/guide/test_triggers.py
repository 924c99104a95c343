"""Triggers: what comes from outside starts runs and signals them, each delivery once."""

from __future__ import annotations

import hashlib
import hmac

import httpx
import msgspec
import pytest

import streamflow as sf
import streamflow.testing as sft
from tests.guide.conftest import Serve

pytestmark = pytest.mark.anyio

SECRET = "s3cret-of-the-tests"

app = sf.App()


class Item(msgspec.Struct):
    customer: str
    name: str


@app.workflow
async def cart(customer: str) -> list[str]:
    items: list[str] = []
    while "check out" not in items:
        items.append(await sf.signal("add", str))
    return items[:-1]


@app.trigger(sf.triggers.webhook("/items", signature=sf.triggers.github(sf.triggers.secret("SHOP_SECRET"))))
def added(delivery: sf.triggers.Delivery[Item]) -> sf.triggers.Action | None:
    item = delivery.payload
    if not item.name:
        return None
    cart_id = f"cart-{item.customer}"
    return sf.triggers.signal_with_start(cart, item.customer, id=cart_id, signal="add", value=item.name)


def signed(body: bytes, delivery: str) -> dict[str, str]:
    signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    return {"X-Hub-Signature-256": f"sha256={signature}", "X-GitHub-Delivery": delivery}


async def test_a_webhook_starts_a_run_or_signals_it_and_counts_once(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_SECRET", SECRET)
    async with serve(app) as client:
        hooks = httpx.ASGITransport(sf.triggers.Webhooks(app, client))
        async with httpx.AsyncClient(transport=hooks, base_url="http://shop") as http:
            for delivery, name in (("1", "shoes"), ("2", "socks"), ("1", "shoes"), ("3", "check out")):
                body = msgspec.json.encode(Item("kim", name))
                answer = await http.post("/items", content=body, headers=signed(body, delivery))
                assert (answer.status_code, answer.json()) == (202, {"runs": ["cart-kim"]})
            unsigned = await http.post("/items", content=body)
            assert unsigned.status_code == 401
        assert await client.run("cart-kim").result(10) == ["shoes", "socks"]


async def test_a_test_delivers_to_the_sandbox() -> None:
    async with sft.Sandbox(app) as sandbox:
        assert await sandbox.deliver(added, Item("kim", "")) == []
        for _ in range(2):
            await sandbox.deliver(added, Item("kim", "shoes"), id="click-1")
        [run] = await sandbox.deliver(added, Item("kim", "check out"))
        assert await run.result() == ["shoes"]
        with pytest.raises(sf.PayloadInvalid, match="can't be decoded"):
            await sandbox.deliver(added, b"no JSON")
