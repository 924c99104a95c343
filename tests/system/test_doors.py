"""What no run could take is refused by the commands, by what daemons have registered, and reaches no run."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

import streamflow as sf
from streamflow.embedded.server import EmbeddedServer
from streamflow.store.connection import Call
from tests.support.shell import Shell
from tests.support.waiting import DEADLINE, names_of, reduced, until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio

app = sf.App()


class Order(msgspec.Struct):
    item: str
    lines: tuple[int, ...] = ()


approve = sf.SignalDefinition("approve", bool)
reserve = sf.QuestionDefinition("reserve", int, answer=str)


@app.workflow(signals=[approve], questions=[reserve])
async def selling(order: Order) -> bool:
    """Sell something."""
    question = await sf.question(reserve)
    question.answer(order.item * question.value)
    return await sf.signal(approve)


@app.workflow
async def waiting(value: int) -> int:
    return value + await sf.signal("more", int)


async def test_commands_refuse_what_the_workflow_could_not_take(
    serve: Serve, embedded_server: EmbeddedServer, namespace: str
) -> None:
    run = Shell(embedded_server.url, namespace)
    async with serve(app, shards=4) as (client, _):
        wrong = '{"item": 3}'
        assert "doesn't fit workflow selling: order.item must be string" in await run(
            "enqueue", "selling", "--id", "s", "--input", wrong, code=2
        )
        assert await run("enqueue", "selling", "--id", "s", "--input", '{"item": "ab"}') == "started s\n"
        await reduced(client, "s")
        refused = await run("signal", "s", "aprove", "true", code=2)
        assert "workflow selling takes no signal 'aprove'; did you mean approve? It declares: approve" in refused
        refused = await run("signal", "s", "approve", '"yes"', code=2)
        assert "approve of workflow selling is not a bool: value must be boolean. Add --force" in refused
        assert "answers no question 'reserves'" in await run("ask", "s", "reserves", "3", code=2)
        assert "is not a int: value must be integer" in await run("ask", "s", "reserve", '"x"', code=2)
        assert await names_of(client.run("s")) == ["RunStarted"], "nothing has reached the run"

        assert await run("ask", "s", "reserve", "2") == '"abab"\n'
        assert await run("signal", "s", "approve", '"yes"', "--force") == "signal approve sent to s\n"
        await run("signal", "s", "approve", "true")
        assert await client.run("s").result(DEADLINE) is True
        assert "it isn't of the type" in await run("show", "s")


async def test_a_signal_for_many_runs_is_refused_if_one_of_them_can_not_take_it(
    serve: Serve, embedded_server: EmbeddedServer, namespace: str, tmp_path: Path
) -> None:
    """Whichever filters choose them, and before any run gets it."""
    run = Shell(embedded_server.url, namespace)
    targets = tmp_path / "targets.jsonl"
    everybody = ("signal", "--status", "running", "--yes", "--targets", str(targets))
    async with serve(app, shards=4) as (client, _):
        await client.start(selling, Order("ab"), id="s")
        await client.start(waiting, 1, id="w")
        await reduced(client, "s")
        await reduced(client, "w")
        refused = await run(*everybody, "aprove", "true", code=2)
        assert "workflow selling takes no signal 'aprove'; did you mean approve?" in refused
        assert "approve of workflow selling is not a bool" in await run(*everybody, "approve", "3", code=2)
        assert not targets.exists()
        for run_id in ("s", "w"):
            assert "SignalReceived" not in await names_of(client.run(run_id))
        assert "signalled 2 " in await run(*everybody, "approve", "true")
        assert "signalled 2 " in await run(*everybody, "aprove", "--force")


async def test_a_workflow_that_declares_nothing_takes_every_name(
    serve: Serve, embedded_server: EmbeddedServer, namespace: str
) -> None:
    run = Shell(embedded_server.url, namespace)
    async with serve(app, shards=4) as (client, _):
        assert "value must be integer" in await run("enqueue", "waiting", "--input", '"x"', code=2)
        await run("enqueue", "waiting", "--id", "w", "--input", "1")
        await run("signal", "w", "anything", '"x"')
        await run("signal", "w", "more", "2")
        assert await client.run("w").result(DEADLINE) == 3


async def test_a_file_of_inputs_is_checked_line_by_line(
    serve: Serve, embedded_server: EmbeddedServer, namespace: str, tmp_path: Path
) -> None:
    run = Shell(embedded_server.url, namespace)
    file = tmp_path / "runs.jsonl"
    file.write_text('{"id": "a", "input": 1}\n{"id": "b", "input": "x"}\n{"id": "c", "input": 3}\n')
    async with serve(app, shards=4) as (client, _):
        said = await run("enqueue", "waiting", "--file", str(file), code=1)
        assert "runs.jsonl:2: the input doesn't fit workflow waiting: value must be integer" in said
        assert {one.id for one in await client.runs()} == {"a", "c"}


async def until_noted(client: sf.Client, workflow: bytes) -> None:
    async def noted() -> bool:
        return workflow in await client.store.one(Call.plain("HGETALL", client.keys.served))

    await until(noted)


async def test_a_workflow_that_only_earlier_daemons_had_is_refused(
    serve: Serve, embedded_server: EmbeddedServer, namespace: str
) -> None:
    run = Shell(embedded_server.url, namespace)
    earlier = sf.App()
    earlier.workflow(waiting.function)
    async with serve(earlier, shards=4) as (client, _):
        await run("enqueue", "waiting", "--id", "w", "--input", "1")
        await reduced(client, "w")
    later = sf.App()
    later.workflow(selling.function)
    async with serve(later, shards=4) as (client, _):
        await until_noted(client, b"selling")
        assert (await client.workflows())["waiting"].unserved_ms == 0, "its daemon has only just ended"
        times = await client.store.one(Call.plain("HGETALL", client.keys.served))
        before = int(times[b"selling"]) - 3 * 60_000
        await client.store.one(Call.plain("HSET", client.keys.served, "waiting", before))
        refused = await run("enqueue", "waiting", "--id", "x", "--input", "1", code=2)
        # The daemon says every few seconds that it still has the other one: until then, or longer.
        told = r"no daemon has had workflow waiting for 3 m \d\d s, while others run; open runs of it: w\."
        assert re.search(told, refused), refused
        assert re.search(r"no daemon has had it for 3 m \d\d s", await run("workflows"))
        assert "no daemon has had it" in await run("workflows", "waiting")
        assert await run("enqueue", "waiting", "--id", "x", "--input", "1", "--force") == "started x\n"
        assert {one.id for one in await client.runs()} == {"w", "x"}


async def test_open_runs_of_a_workflow_without_a_daemon_are_named_and_ended(
    serve: Serve, embedded_server: EmbeddedServer, namespace: str
) -> None:
    """A cancel would end them without their clean-up code, so it says that, and what would do it knowingly."""
    run = Shell(embedded_server.url, namespace)
    earlier = sf.App()
    earlier.workflow(waiting.function)
    async with serve(earlier, shards=4) as (client, _):
        for name in ("w1", "w2"):
            await run("enqueue", "waiting", "--id", name, "--input", "1")
            await reduced(client, name)
    later = sf.App()
    later.workflow(selling.function)
    async with serve(later, shards=4) as (client, _):
        await until_noted(client, b"selling")
        await run("enqueue", "selling", "--id", "s", "--input", '{"item": "ab"}')
        await reduced(client, "s")
        times = await client.store.one(Call.plain("HGETALL", client.keys.served))
        before = int(times[b"selling"]) - 3 * 60_000
        await client.store.one(Call.plain("HSET", client.keys.served, "waiting", before))

        async def texts() -> list[str]:
            return [one["text"] for one in (await run.data("status"))["health"]]

        async def is_said() -> bool:
            return "waiting: 2 open runs" in "".join(await texts())

        await until(is_said)
        said = await run("status", "--check", code=1)
        assert (
            "warning  workflow waiting: 2 open runs, and no daemon has had it for 3 m 00 s: streamflow runs --workflow "
            f"waiting --namespace {namespace}\n"
        ) in said
        assert {one["run_id"] for one in await run.data("runs", "--workflow", "waiting")} == {"w1", "w2"}
        for words in (("cancel", "w1"), ("cancel", "--workflow", "waiting", "--yes")):
            refused = await run(*words, code=2)
            assert "no daemon has had workflow waiting for 3 m 00 s, while others run: the clean-up code of" in refused
            assert "streamflow terminate" in refused
        assert {one.status for one in await client.runs(workflow="waiting")} <= {"running", "stuck"}
        assert await run("cancel", "s") == "asked s to cancel\n"
        ended = await run("terminate", "--workflow", "waiting", "--yes")
        assert ended.startswith("asked to end 2 · already so or not applicable 0 · failed 0\n")

        async def has_left() -> bool:
            return "waiting" not in "".join(await texts())

        await until(has_left)
        assert {one.status for one in await client.runs(workflow="waiting")} == {"cancelled"}


async def test_a_note_from_a_clock_that_was_ahead_refuses_no_workflow(serve: Serve) -> None:
    """Of a workflow that is gone it stays; those of daemons that run are behind it until the clock gets there."""
    async with serve(app, shards=4) as (client, _):
        await until_noted(client, b"selling")
        now = int((await client.store.one(Call.plain("HGETALL", client.keys.served)))[b"selling"])
        await client.store.one(Call.plain("HSET", client.keys.served, "gone", now + 3_600_000))
        assert {info.unserved_ms for info in (await client.workflows()).values()} == {0}


async def test_what_is_registered_is_listed(serve: Serve, embedded_server: EmbeddedServer, namespace: str) -> None:
    run = Shell(embedded_server.url, namespace)
    async with serve(app, shards=4) as (client, _):
        listed = await run("workflows")
        assert "selling   order  Sell something." in listed
        shown = await run("workflows", "selling")
        assert shown.split("\n") == [
            "workflow selling(order)",
            "  Sell something.",
            "signals:",
            "  approve  bool",
            "questions:",
            "  reserve  int -> str",
            "published: not declared",
            "",
        ]
        assert "did you mean selling?" in await run("workflows", "seling", code=2)
        data = await run.data("workflows", "selling")
        assert (data["name"], data["signals"]["approve"]["schema"]) == ("selling", {"type": "boolean"})
        # as earlier builds have registered them, and later ones may
        await client.store.one(
            Call.plain("HSET", client.keys.workflows, "selling", '{"kind":"workflow","params":["order"]}')
        )
        await client.store.one(Call.plain("HSET", client.keys.workflows, "waiting", '{"signals": 7}'))
        assert "signals: not declared" in await run("workflows", "selling")
        await run("enqueue", "selling", "--id", "old", "--input", '{"item": "a"}')
        await run("signal", "old", "anything")
