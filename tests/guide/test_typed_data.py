"""Arguments and results have the types that the functions declare, on both sides and in between."""

from __future__ import annotations

import dataclasses
import enum
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, assert_type
from uuid import UUID

import msgspec
import pytest

import streamflow as sf
from tests.guide.conftest import Serve

pytestmark = pytest.mark.anyio


class Order(msgspec.Struct):
    item: str
    price: Decimal
    lines: list[int] = []


@dataclasses.dataclass
class Point:
    x: float
    y: float
    label: str | None = None


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Cat(msgspec.Struct, tag="cat"):
    name: str


class Dog(msgspec.Struct, tag="dog"):
    name: str


app = sf.App()

VALUES: list[tuple[Any, Any]] = [
    (Order, Order("tea", Decimal("3.50"), [1, 2])),
    (Point, Point(1.5, -2.0, "here")),
    (datetime, datetime(2024, 2, 29, 12, 30, 15, 250_000, tzinfo=UTC)),
    (date, date(2024, 2, 29)),
    (timedelta, timedelta(days=1, milliseconds=5)),
    (UUID, UUID("6f1c2a4e-8f8f-4b8e-9f4e-0a5c0b7c1d2e")),
    (Decimal, Decimal("0.1000000000000000000001")),
    (Colour, Colour.BLUE),
    (bytes, b"\x00\xff not utf-8"),
    (int, 2**63 + 1),
    (float, 1e-300),
    (str, "ünïcode \N{SNOWMAN} \x00 \x1b[31m {tag} [/]"),
    (bool, True),
    (None, None),
    (set[int], {1, 2, 3}),
    (dict[str, list[Point]], {"path": [Point(0, 0), Point(1, 1)]}),
    (tuple[int, str], (1, "one")),
    (Cat | Dog, Dog("rex")),
    (list[Order | None], [None, Order("cup", Decimal(2))]),
]


def _echoes(type_: Any) -> tuple[sf.App, Any]:
    """An app whose workflow gives its argument to an async step, a thread and a child, and each gives it back."""
    app = sf.App()

    async def in_loop(value: Any) -> Any:
        return value

    def in_thread(value: Any) -> Any:
        return value

    async def child(value: Any) -> Any:
        return value

    async def flow(value: Any) -> Any:
        through_loop, through_thread = await sf.gather(steps[0](value), steps[1](value))
        through_child = await children[0](value)
        signalled = await sf.signal("value", type_)
        assert value == through_loop == through_thread == through_child == signalled
        return value

    for function in (in_loop, in_thread, child, flow):
        function.__annotations__ = {"value": type_, "return": type_}
    steps, children = (app.step(in_loop), app.step(in_thread)), (app.workflow(child),)
    return app, app.workflow(flow)


@pytest.mark.parametrize(("type_", "value"), VALUES, ids=[str(getattr(t, "__name__", t)) for t, _ in VALUES])
async def test_a_value_comes_back_as_what_it_was(serve: Serve, type_: Any, value: Any) -> None:
    app, flow = _echoes(type_)
    async with serve(app) as client:
        run = await client.start(flow, value)
        await run.signal("value", value)
        result = await run.result(10)
        assert result == value
        assert type(result) is type(value)


@app.workflow
async def total(orders: list[Order], *, discount: Decimal = Decimal(0)) -> Decimal:
    return sum((order.price for order in orders), Decimal(0)) - discount


async def test_the_type_of_a_result_is_known_to_type_checkers(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(total, [Order("tea", Decimal("3.50"))])
        assert_type(run, sf.Run[Decimal])
        assert await run.result(10) == Decimal("3.50")


async def test_plain_data_of_the_right_form_is_accepted_as_an_argument(serve: Serve) -> None:
    async with serve(app) as client:
        run: sf.Run[Any] = await client.start("total", [{"item": "tea", "price": "3.50"}], "1")
        assert await run.result(10) == "2.50"


async def test_an_input_of_another_form_fails_the_run_and_says_where(serve: Serve) -> None:
    async with serve(app) as client:
        run: sf.Run[Any] = await client.start("total", [{"item": "tea", "price": "much"}])
        with pytest.raises(sf.RunFailed, match=r"PayloadInvalid: the input of workflow total .*\$\[0\]\.price"):
            await run.result(10)


async def test_a_result_asked_for_as_another_type_is_refused(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(total, [])
        await run.result(10)
        with pytest.raises(sf.PayloadInvalid, match="is not a int"):
            await client.run(run.id, int).result(10)
