"""The guide's table of types, row by row: through a step's argument and result, a signal, and a run's result."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import decimal
import enum
import os
import pathlib
import re
import subprocess
import sys
import typing
import uuid
import zoneinfo
from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any, Generic, NamedTuple, TypedDict, TypeVar

import msgspec
import pytest

import streamflow as sf
import streamflow.testing as sft

T = TypeVar("T")
PAGE = pathlib.Path(__file__).parents[2] / "docs" / "guide" / "types.md"


class Color(enum.Enum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Pair(NamedTuple):
    a: int
    b: int = 2


class Options(TypedDict, total=False):
    a: int


class Point(msgspec.Struct):
    x: int


@dataclasses.dataclass
class Base:
    id: int


@dataclasses.dataclass
class Derived(Base):
    secret: str = ""


@dataclasses.dataclass
class Other:
    id: int


@dataclasses.dataclass(frozen=True)
class Key:
    a: int


class Circle(msgspec.Struct, tag=True):
    r: int


class Square(msgspec.Struct, tag=True):
    a: int


@dataclasses.dataclass
class Computed:
    a: int
    b: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.b = self.a + 1


@dataclasses.dataclass
class WithInitVar:
    a: int
    k: dataclasses.InitVar[int] = 3


@dataclasses.dataclass
class Box(Generic[T]):
    value: T


@dataclasses.dataclass
class Sets:
    a: set[str]
    b: dict[str, set[int]]


class Plain: ...


NAMES: dict[str, Any] = {
    **globals(),
    "Any": Any,
    "Counter": Counter,
    "Decimal": decimal.Decimal,
    "Iterator": typing.Iterator,
    "OrderedDict": OrderedDict,
    "Path": pathlib.Path,
    "UTC": dt.UTC,
    "UUID": uuid.UUID,
    "Union": typing.Union,
    "ZoneInfo": zoneinfo.ZoneInfo,
    "date": dt.date,
    "datetime": dt.datetime,
    "defaultdict": defaultdict,
    "deque": deque,
    "time": dt.time,
    "timedelta": dt.timedelta,
}

try:
    import pydantic
except ImportError:
    has_pydantic = False
else:
    has_pydantic = True

    class Model(pydantic.BaseModel):
        item: str
        tags: set[str] = set()
        at: dt.datetime | None = dt.datetime(2024, 7, 1, tzinfo=dt.UTC)
        price: decimal.Decimal = decimal.Decimal("1.10")

    class SubModel(Model):
        extra: int

    NAMES.update(Model=Model, SubModel=SubModel)


def rows() -> list[Any]:
    found: list[Any] = []
    for line in PAGE.read_text().splitlines():
        match = re.fullmatch(r"\| `(.*?)` \| `(.*?)` \| (.*) \|", line)
        if match:
            needs = [pytest.mark.skipif(not has_pydantic, reason="no pydantic")] if "Model" in match[1] else []
            found.append(pytest.param(*match.groups(), id=f"{match[1]} {match[2]}"[:60], marks=needs))
    return found


def value_of(text: str) -> Any:
    return eval(text, dict(NAMES))


def same(got: Any, wanted: Any) -> bool:
    zones = [getattr(value, "tzinfo", None) for value in (got, wanted)]
    return type(got) is type(wanted) and (got == wanted or wanted != wanted) and zones[0] == zones[1]


def app_for(type_: Any, value: Any, received: list[Any]) -> sf.App:
    app = sf.App(parks=())  # what is refused in a workflow fails the run, so that its result says it

    async def take(value: Any) -> None:
        received.append(value)

    async def give() -> Any:
        return value

    take.__annotations__["value"] = type_
    give.__annotations__["return"] = type_
    taken, given = app.step(retry=sf.NO_RETRY)(take), app.step(retry=sf.NO_RETRY)(give)

    @app.workflow
    async def argument() -> None:
        await taken(value)

    @app.workflow
    async def result() -> None:
        received.append(await given())

    @app.workflow
    async def signal() -> None:
        received.append(await sf.signal("value", type_))

    async def ending() -> Any:
        return value

    ending.__annotations__["return"] = type_
    app.workflow(ending)
    return app


WAYS = ("argument", "result", "signal", "ending")


async def through(app: sf.App, way: str, value: Any, received: list[Any]) -> None:
    async with sft.Sandbox(app) as sandbox:
        run = await sandbox.start(app.workflows[way])
        if way == "signal":
            await run.signal("value", value)
        got = await run.result(timeout=10)
        if way == "ending":
            received.append(got)


def test_the_table_has_rows_of_each_kind() -> None:
    table = "\n".join(str(row.values) for row in rows())
    assert len(rows()) >= 60
    for kind in ("works", "arrives as", "refused at the call", "refused when it is registered"):
        assert kind in table


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("declared", "written", "happens"), rows())
def test_a_row_of_the_table(declared: str, written: str, happens: str, way: str) -> None:
    type_, value = value_of(declared), value_of(written)
    received: list[Any] = []
    if happens.startswith("refused when it is registered"):
        with pytest.raises(sf.PayloadInvalid, match="can't be the type of a payload: "):
            app_for(type_, value, received)
        return
    app = app_for(type_, value, received)
    if happens.startswith("refused at the call"):
        refused = False
        try:
            asyncio.run(through(app, way, value, received))
        except sf.PayloadInvalid:
            refused = True
        except sf.RunFailed as error:
            causes = [error.failure, error.failure.cause]
            refused = any(cause is not None and cause.kind == "PayloadInvalid" for cause in causes)
        assert refused or way == "signal", received
        return
    asyncio.run(through(app, way, value, received))
    arrives = re.match(r"arrives as `(.*?)`", happens)
    wanted = value_of(arrives[1]) if arrives else value
    assert arrives or happens.startswith("works")
    assert same(received[0], wanted), received


PRINT = """
import dataclasses, hashlib
from collections import deque
from streamflow.model.codec import Parameters, encode
@dataclasses.dataclass
class Sets:
    a: set[str]
    b: dict[str, frozenset[str]]
words = {f"word{n}" for n in range(50)}
value = Sets(words, {"z": frozenset(words), "a": frozenset()})
def typed(a: Sets, b: set[str], c: deque[set[str]]) -> set[str]: ...
parameters = Parameters(typed, "step typed")
mixed = {1, "a", None, (1, 2), frozenset(words)}
parts = [
    parameters.encode((value, words, deque([words])), {}),
    parameters.encode_result(words),
    encode({"signal": [value, mixed], "keys": {frozenset(words): 1}}, "value"),
]
try:
    import pydantic
except ImportError:
    pass
else:
    class Model(pydantic.BaseModel):
        tags: set[str]
    parts.append(encode(Model(tags=words), "value"))
print(hashlib.sha256(b"".join(parts)).hexdigest())
"""


def test_sets_are_recorded_in_one_order_in_every_process() -> None:
    found: set[bytes] = set()
    for seed in ("0", "1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        found.add(
            subprocess.run([sys.executable, "-c", PRINT], env=environment, capture_output=True, check=True).stdout
        )
    assert len(found) == 1


def test_a_dict_keeps_the_order_in_which_it_was_filled() -> None:
    app = sf.App()

    @app.step
    async def order(value: dict[str, set[int]]) -> list[str]:
        return list(value)

    @app.workflow
    async def flow() -> list[str]:
        return await order({"b": {2, 1}, "a": set(), "c": {3}})

    assert sft.run(flow, app=app) == ["b", "a", "c"]


def test_a_class_that_is_no_data_is_refused_wherever_it_is_declared() -> None:
    app = sf.App()

    @app.workflow
    async def waits() -> None:
        await sf.signal("order", Plain)

    with pytest.raises(sft.Stalled, match="nothing can be decoded as a Plain"):
        sft.run(waits, app=app)
    with pytest.raises(sf.PayloadInvalid, match="nothing can be decoded as a Plain"):

        @app.step
        async def nested(orders: list[dict[str, Plain | None]]) -> None: ...
