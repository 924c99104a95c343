"""What `dir` and `help` show of the package and of what users register."""

from __future__ import annotations

import asyncio
import pydoc
from typing import Any

import streamflow as sf
import streamflow.testing as sft
from streamflow.workflow.app import Reducer, Step, Workflow

app = sf.App()


@app.step(timeout=30, queue="gpu", retry=sf.Retry(attempts=3))
def render(scene: str, frames: int = 1) -> bytes:
    """Render a scene.

    Takes minutes.
    """
    return b""


@app.step(process=True)
def crunch() -> None: ...


@app.workflow(version=2)
async def film(*, title: str) -> int:
    """Make a film."""
    return 0


@app.reducer
def total(state: int, event: sf.Event) -> sf.Decision: ...


def shown(thing: Any) -> str:
    return pydoc.plain(pydoc.render_doc(thing))


def test_dir_of_the_package_has_its_public_names_only() -> None:
    assert {name for name in dir(sf) if not name.startswith("__")} == set(sf.__all__) - {"__version__"}
    for name in dir(sf):
        getattr(sf, name)


def test_help_of_the_package_begins_with_what_one_needs() -> None:
    text = shown(sf)
    for name in ("App", "gather", "heartbeat", "connect", "streamflow.testing"):
        assert name in text.split("PACKAGE CONTENTS")[0]


def test_help_of_a_step_is_about_the_function_and_its_settings() -> None:
    text = shown(render)
    assert "render(scene: str, frames: int = 1) -> bytes" in text
    assert "Render a scene." in text
    assert "    Takes minutes." in text
    assert "in workers of queue gpu, in a thread, with a time-out of 30 s for each attempt and Retry(attempts=3" in text
    assert "__call__" not in text
    assert "queue cpu" in shown(render.options(queue="cpu"))


def test_help_of_a_step_without_a_docstring_still_has_the_rest() -> None:
    text = shown(crunch)
    assert "crunch() -> None" in text
    assert "at the daemon, in a process of its own, with no time-out and Retry(" in text


def test_help_of_workflows_and_reducers_says_how_they_are_started() -> None:
    text = shown(film)
    assert "film(*, title: str) -> int" in text
    assert "Make a film." in text
    assert "A workflow, version 2. A run of it is started by `await client.start(film, …)`" in text
    assert "A reducer. A run of it is started by `await client.start(total, …)`" in shown(total)


def test_help_of_the_classes_themselves_is_what_they_are() -> None:
    for kind, words in ((Step, "A function with side effects"), (Workflow, "A durable function"), (Reducer, "A state")):
        assert (kind.__doc__ or "").startswith(words)


def test_a_sandbox_is_an_any_client() -> None:
    async def start(client: sf.AnyClient) -> sf.Run[int]:
        return await client.start(film.options(id="f1"), title="M")

    async def main() -> None:
        async with sft.Sandbox(app) as sandbox:
            run = await start(sandbox)
            assert (run.id, await run.result()) == ("f1", 0)

    asyncio.run(main())
