"""An order as a saga: reserve, pay, ship; and when one fails, undo what was done, in reverse.

A database transaction can't span a warehouse, a bank and a carrier. A saga is the durable form of "try, and clean up":
for each action the call that undoes it is registered. Because the run itself is durable, a clean-up that a crash
interrupts is continued.

    python examples/saga.py                           everything in this process
    streamflow dev --app examples/saga.py             a server, a daemon and the status screen; then
    streamflow enqueue order --input '{"item": "anvil", "quantity": 1, "card": "4111", "country": "NO"}' --wait
"""

from __future__ import annotations

import asyncio

import streamflow as sf

app = sf.App()

SOMETIMES = sf.Retry(attempts=4, initial=0.1, never=(ValueError,))
"""Retries when the network fails. A `ValueError` is a definite refusal, so it is not retried."""


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
    return f"parcel with {item} to {country}"


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


async def main() -> None:
    async with sf.local(app) as client:
        for country in ("Norway", "Atlantis"):
            print(f"an order to {country}:")
            run = await client.start(order, "anvil", 2, "card 4111", country)
            try:
                for line in await run.result(timeout=60):
                    print(f"    done: {line}")
            except sf.RunFailed as error:
                print(f"    failed: {error.failure.message}")


if __name__ == "__main__":
    asyncio.run(main())
