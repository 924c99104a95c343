"""Forms of functions as steps and workflows: each works, or is refused where it is written."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

import streamflow.testing as sft
from streamflow.errors import UsageError
from streamflow.workflow.app import App

pytestmark = pytest.mark.anyio


class Service:
    async def fetch(self, n: int) -> int:
        return n

    def parse(self, n: int) -> int:
        return n

    @staticmethod
    async def static(n: int) -> int:
        return n

    async def __call__(self, n: int) -> int:
        return n


class Plain:
    def __call__(self, n: int) -> int:
        return n


async def add(n: int, m: int = 0) -> int:
    return n + m


def plainly(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def well(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await function(*args, **kwargs)

    return wrapper


def numbers(n: int) -> Any:
    yield n


async def slow_numbers(n: int) -> Any:
    yield n


WORKS: dict[str, Any] = {
    "bound async method": Service().fetch,
    "bound plain method": Service().parse,
    "static method": Service.__dict__["static"],
    "object with async __call__": Service(),
    "object with plain __call__": Plain(),
    "partial of async": functools.partial(add, m=0),
    "partial of plain": functools.partial(Service().parse),
    "partial of an object": functools.partial(Service()),
    "lambda": lambda n: n,
    "lru_cache": functools.lru_cache(Service().parse),
    "plain under a decorator": plainly(Service().parse),
    "async under an async decorator": well(add),
    "a decorator that lists what a generator gives": functools.wraps(numbers)(lambda n: next(numbers(n))),
}


@pytest.mark.parametrize("form", WORKS)
async def test_these_forms_are_steps(form: str) -> None:
    app = App()
    step = app.step(name="form")(WORKS[form])

    @app.workflow
    async def flow(n: int) -> Any:
        return await step(n)

    async with sft.Sandbox(app) as sandbox:
        assert await (await sandbox.start(flow, 5)).result() == 5


REFUSED: dict[str, tuple[Any, str]] = {
    "async under a plain decorator": (plainly(add), "make the decorator's function an `async def` too"),
    "lru_cache of async": (functools.lru_cache(add), "make the decorator's function an `async def` too"),
    "generator": (numbers, "return a list instead"),
    "async generator": (slow_numbers, "return a list instead"),
    "method": (Service.fetch, "make it a function or a static method"),
    "class method": (classmethod(cast("Any", add)), "must be a function, got a classmethod"),
    "a value": (5, "must be a function, got a int"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_these_forms_are_refused_where_they_are_written(form: str) -> None:
    function, advice = REFUSED[form]
    with pytest.raises(UsageError, match=re.escape(advice)):
        App().step(name="form")(function)
    with pytest.raises(UsageError, match=re.escape(advice)):
        App().workflow(name="form")(function)


@pytest.mark.parametrize("function", [lambda n: n, functools.partial(add, 1), Service()])
def test_what_has_no_name_says_where_to_give_one(function: Any) -> None:
    with pytest.raises(UsageError, match=r"has no name of its own, .* give it with name="):
        App().step(function)


SCRIPT = """
import streamflow as sf
app = sf.App()
if __name__ != "flows":
    import flows, others
@app.step
async def plus(n: int) -> int:
    return n + 1
@app.workflow
async def flow(n: int) -> int:
    return await plus(n)
"""
OTHERS = """
import flows
@flows.app.step
async def times(n: int) -> int:
    return 10 * n
@flows.app.workflow
async def other(n: int) -> int:
    return await flows.plus(await times(n)) + await flows.flow(n)
"""


@pytest.mark.parametrize("main", ["__main__", "__mp_main__"])
async def test_a_file_that_is_script_and_module_makes_one_app(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, main: str
) -> None:
    (tmp_path / "flows.py").write_text(SCRIPT)
    (tmp_path / "others.py").write_text(OTHERS)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("flows", "others"):
        monkeypatch.setitem(sys.modules, name, None)  # so that what the script imports goes with this test
        del sys.modules[name]
    file = str(tmp_path / "flows.py")
    script: dict[str, Any] = {"__name__": main, "__file__": file}
    exec(compile(SCRIPT, file, "exec"), script)
    import flows  # type: ignore[import-not-found]
    import others  # type: ignore[import-not-found]

    assert flows.app is not script["app"]
    assert set(script["app"].steps) == set(flows.app.steps) == {"plus", "times"}
    for app in (flows.app, script["app"]):
        async with sft.Sandbox(app) as sandbox:
            assert await (await sandbox.start(script["flow"], 3)).result() == 4
            assert await (await sandbox.start(flows.flow, 3)).result() == 4
            assert await (await sandbox.start(others.other, 3)).result() == 35


def test_other_apps_are_apart_though_their_code_is_the_same() -> None:
    def make() -> tuple[App, Any]:
        app = App()

        @app.step
        async def plus(n: int) -> int:
            return n + 1

        return app, plus

    (one, _), (_, plus) = make(), make()
    assert not one.has_copy_of(plus)
    with pytest.raises(UsageError, match="two steps are named plus"):
        one.step(name="plus")(plus.function)
