"""The app of tests/process/test_triggers.py."""

from __future__ import annotations

import os

import msgspec

import streamflow as sf
from streamflow import triggers

app = sf.App()


class Order(msgspec.Struct):
    number: str


@app.workflow
async def order(number: str) -> str:
    return number


@app.trigger(triggers.webhook("/order", signature=triggers.github(triggers.secret("HOOK_SECRET"))))
def ordered(delivery: triggers.Delivery[Order]) -> triggers.Action:
    return triggers.start(order, delivery.payload.number)


@app.trigger(triggers.stream(os.environ.get("ORDERS", "orders"), idle=0.5))
def queued(delivery: triggers.Delivery[Order]) -> triggers.Action:
    return triggers.start(order, delivery.payload.number)
