"""An order as a saga: reserve, pay, ship; and when one fails, undo what was done, in reverse.

A database transaction can't span a warehouse, a bank and a carrier. A saga is the durable form of "try, and clean up":
for each action the call that undoes it is registered. Because the run itself is durable, a clean-up that a crash
interrupts is continued. Orders come by a signed webhook. When a bug is mended, a fork of an order that it spoiled makes
the last part again, and nothing is paid twice. What happened is written to a database, for who analyses it.

    python examples/saga.py                           everything in this process; events go to a file
    python examples/saga.py postgresql:///warehouse   events go to PostgreSQL; or by commands alone:
    streamflow dev --app examples/saga.py             a server, a daemon and the status screen
    SHOP_SECRET=… streamflow trigger http --app examples/saga.py
    streamflow enqueue order --id anvil --input '{"item": "anvil", "quantity": 1, "card": "4111", "country": "NO"}'
    streamflow fork anvil --at 8 --reason mended      from an event that `streamflow show anvil` has
    streamflow sink postgres postgresql:///warehouse

Webhooks need `pip install 'streamflowd[triggers]'`, and PostgreSQL `streamflowd[postgres]`.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import socket
import sys
import tempfile
import urllib.request
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import msgspec

import streamflow as sf
from streamflow import sinks, triggers
from streamflow.events import StepCompleted

app = sf.App()

SOMETIMES = sf.Retry(attempts=4, initial=0.1, never=(ValueError,))
"""Retries when the network fails. A `ValueError` is a definite refusal, so it is not retried."""

ZONES: dict[str, str] = {}
"""With a bug: what is missing goes north, and Italy is missing. `main` mends that; elsewhere it is a deploy."""


@app.step(retry=SOMETIMES)
async def reserve(item: str, quantity: int) -> str:
    if quantity > 10:
        raise ValueError(f"only 10 of {item} are left")
    return f"reservation of {quantity} × {item}"


@app.step(retry=SOMETIMES)
async def pay(card: str, amount: float) -> str:
    if sf.step_info().attempt == 1:
        raise ConnectionError("the bank did not answer")  # the retry succeeds
    return f"payment of {amount:.2f} by {card}"


@app.step(retry=SOMETIMES)
async def ship(item: str, country: str) -> str:
    if country == "Atlantis":
        raise ValueError("nobody delivers to Atlantis")
    return f"parcel with {item} to {country}, zone {ZONES.get(country, 'north')}"


@app.step(retry=sf.Retry(attempts=100, maximum=3600.0))
async def undo(what: str, of: str) -> None:
    """A compensation must succeed in the end, so it is retried for a long time."""
    print(f"    undone: {what} of {of}")


@app.workflow
async def order(item: str, quantity: int, card: str, country: str) -> list[str]:
    """The actions, as a list. When one fails, or the run is cancelled, all before it are undone.

    The compensation of an action is registered *before* it: a payment whose answer was lost may have been made. So
    `undo` must do no harm when there is nothing to undo.
    """
    async with sf.saga() as saga:
        saga.compensate(undo, "reservation", item)
        reserved = await reserve(item, quantity)
        saga.compensate(undo, "payment", card)
        paid = await pay(card, 19.9 * quantity)
        parcel = await ship(item, country)
    return [reserved, paid, parcel]


# --- orders come in: the sender signs each with a secret that both have -----------------------------------------------


class Order(msgspec.Struct):
    """What the shop sends. A delivery that is something else is put aside, in `streamflow trigger quarantine list`."""

    number: int
    item: str
    quantity: int
    card: str
    country: str


@app.trigger(triggers.webhook("/orders", signature=triggers.hmac(triggers.secret("SHOP_SECRET"))))
def ordered(delivery: triggers.Delivery[Order]) -> triggers.Action:
    """The id is made from the order: one that is sent twice is made once."""
    new = delivery.payload
    return triggers.start(order, new.item, new.quantity, new.card, new.country, id=f"order-{new.number}")


@asynccontextmanager
async def served(client: sf.Client) -> AsyncGenerator[str]:
    """What `streamflow trigger http` does. In an application with a web server, mount `triggers.Webhooks` there."""
    import uvicorn

    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(triggers.Webhooks(app, client), log_level="warning", lifespan="off")
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve([listening]))
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/orders"
        server.should_exit = True
        await serving


def post(address: str, number: int, country: str) -> str:
    """What the shop does. Returns the id of the run."""
    body = msgspec.json.encode(Order(number, "anvil", 2, "card 4111", country))
    signature = hmac.new(os.environ["SHOP_SECRET"].encode(), body, hashlib.sha256).hexdigest()
    request = urllib.request.Request(address, body, {"X-Signature": signature})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["runs"][0]


async def show(run: sf.Run[list[str]]) -> None:
    try:
        for line in await run.result(timeout=60):
            print(f"    done: {line}")
    except sf.RunFailed as error:
        print(f"    failed: {error.failure.message}")


async def ship_again(run: sf.Run[list[str]]) -> sf.Run[list[str]]:
    """From the outcome of `ship`: what is before it is shared, so the fork pays nothing."""
    numbered = enumerate([event async for _, event in run.events()], 1)
    [shipped] = [number for number, event in numbered if isinstance(event, StepCompleted) and event.name == "ship"]
    return await run.fork(shipped, reason="Italy is in the south")


async def main(target: str = "") -> None:
    os.environ.setdefault("SHOP_SECRET", "known to the shop, too")
    async with sf.local(app) as client, served(client) as address:
        for number, country in enumerate(("Norway", "Atlantis", "Italy"), 1):
            print(f"an order to {country}:")
            await show(client.run(await asyncio.to_thread(post, address, number, country), order))

        ZONES["Italy"] = "south"
        print("the bug is mended:")
        await show(await ship_again(client.run("order-3", order)))

        with tempfile.TemporaryDirectory() as folder:
            sink = sinks.Postgres(target) if target else sinks.Jsonl(f"{folder}/events.jsonl")
            figures = await sinks.run(client, sink, group="warehouse", once=True)
        print(f"{figures.events} events of 4 orders are in {'PostgreSQL' if target else 'a file of JSON lines'}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:2]))
