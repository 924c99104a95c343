"""What the shell completes from the namespace: runs, workflows, queues, and what the workflow of a run declares."""

from __future__ import annotations

import time

import anyio
import pytest
from click.shell_completion import ShellComplete

import streamflow as sf
from streamflow.cli import cli, completing
from streamflow.embedded.server import EmbeddedServer
from tests.support.waiting import DEADLINE, reduced
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio

app = sf.App()
approve = sf.SignalDefinition("approve", bool)
amend = sf.SignalDefinition("amend", str)
price = sf.QuestionDefinition("price", int, answer=int)
stage = sf.PublishedDefinition("stage", str)


@app.step(queue="gpu")
async def render() -> None: ...


@app.workflow(signals=[approve, amend], questions=[price], published=[stage])
async def selling() -> bool:
    """Sell something."""
    return await sf.signal(approve)


@app.workflow
async def sending() -> None:
    await render()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell gets nothing after a second, which a busy machine may take."""
    monkeypatch.setattr(completing, "SECONDS", DEADLINE)


async def completed(server: EmbeddedServer | str, namespace: str, *words: str) -> list[str]:
    """What may be the last of these words, as a shell asks for it. In a thread, which gets an event loop."""
    url = server if isinstance(server, str) else server.url
    line = [words[0], "--redis", url, "--namespace", namespace, *words[1:-1]]
    completion = ShellComplete(cli, {}, "streamflow", "_STREAMFLOW_COMPLETE")
    return [item.value for item in await anyio.to_thread.run_sync(completion.get_completions, line, words[-1])]


async def test_runs_workflows_and_queues_are_completed(
    serve: Serve, embedded_server: EmbeddedServer, namespace: str
) -> None:
    here = (embedded_server, namespace)
    async with serve(app, shards=4) as (client, _):
        for run_id in ("order-1", "order-2", "job-1"):
            await client.start(selling, id=run_id)
        for command in ("show", "cancel", "signal", "export", "forget"):
            assert sorted(await completed(*here, command, "")) == ["job-1", "order-1", "order-2"], command
            assert sorted(await completed(*here, command, "or")) == ["order-1", "order-2"], command
        assert await completed(*here, "tail", "--run", "j") == ["job-1"]
        for words in (("enqueue",), ("workflows",), ("runs", "--workflow"), ("cancel", "--workflow")):
            assert await completed(*here, *words, "se") == ["selling", "sending"], words
        await client.start(sending, id="uses-a-queue")
        await reduced(client, "uses-a-queue")
        for command in ("worker", "pause", "resume"):
            assert await completed(*here, command, "--queue", "g") == ["gpu"], command


async def test_what_the_workflow_of_a_run_declares_is_completed(
    serve: Serve, embedded_server: EmbeddedServer, namespace: str
) -> None:
    here = (embedded_server, namespace)
    async with serve(app, shards=4) as (client, _):
        await client.start(selling, id="order-1")
        await client.start(sending, id="sent")
        assert await completed(*here, "signal", "order-1", "") == ["amend", "approve"]
        assert await completed(*here, "signal", "ord", "ap") == ["approve"], "a beginning will do"
        assert await completed(*here, "signal", "order-1", "approve", "") == []
        assert await completed(*here, "signal", "--workflow", "selling", "") == ["amend", "approve"]
        assert await completed(*here, "ask", "order-1", "") == ["price"]
        assert await completed(*here, "read", "order-1", "") == ["stage"]
        assert await completed(*here, "signal", "sent", "") == [], "it declares none"
        assert await completed(*here, "signal", "no-such-run", "") == []


async def test_nothing_is_completed_or_said_without_an_answer(
    namespace: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(completing, "SECONDS", 0.2)
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        for url in (f"redis://127.0.0.1:{port}", "redis://127.0.0.1:1", "http://nonsense"):
            begun = time.monotonic()
            assert await completed(url, namespace, "show", "") == []
            assert time.monotonic() - begun < 10, "it isn't the server's patience"
    assert capfd.readouterr() == ("", "")
