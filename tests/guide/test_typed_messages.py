"""Messages that a workflow declares are typed on both sides, and refused at the door if they don't fit."""

from __future__ import annotations

import msgspec
import pytest

import streamflow as sf
import streamflow.testing as sft
from tests.guide.conftest import Serve
from tests.support.waiting import reduced

pytestmark = pytest.mark.anyio

app = sf.App()


class Approval(msgspec.Struct):
    by: str
    limit: int = 100


approve = sf.SignalDefinition("approve", Approval)
stop = sf.SignalDefinition("stop", type(None))
reserve = sf.QuestionDefinition("reserve", int, answer=bool)
progress = sf.PublishedDefinition("progress", int)


@app.workflow(signals=[approve, stop], questions=[reserve], published=[progress])
async def order(seats: int) -> str:
    sf.publish(progress, 1)
    question = await sf.question(reserve)
    question.answer(question.value <= seats)
    approval = await sf.signal(approve)
    return f"{approval.by} up to {approval.limit}"


@app.workflow
async def selling(given: str) -> str:
    """A parent that talks to its child, and doesn't know what it takes."""
    child = await sf.start(order, 5, id="child")
    await child.signal(given, Approval("parent"))
    return "sent"


async def test_definitions_type_both_sides(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(order, 5, id="order-1")
        assert await run.ask(reserve, 3) is True
        assert await run.read(progress) == 1
        assert await run.read(progress, default=0) == 1
        await run.signal(approve, Approval("kim"))
        assert await run.result(10) == "kim up to 100"


async def test_names_do_the_same_as_definitions(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(order, 5, id="order-1")
        assert await run.ask("reserve", 7) is False
        await run.signal("approve", {"by": "kim", "limit": 3})
        assert await run.result(10) == "kim up to 3"


async def test_a_handle_of_an_existing_run_knows_its_workflow(serve: Serve) -> None:
    async with serve(app) as client:
        await client.start(order, 5, id="order-1")
        run = client.run("order-1", order)
        with pytest.raises(sf.UsageError, match="workflow order takes no signal 'aprove'; did you mean approve"):
            await run.signal("aprove", Approval("kim"))
        assert await run.ask(reserve, 3)
        await run.signal(approve, Approval("kim"))
        assert await run.result(10) == "kim up to 100"


async def test_what_no_run_could_take_is_refused_before_it_is_sent(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(order, 5, id="order-1")
        with pytest.raises(sf.UsageError, match=r"takes no signal 'cancel'\. It declares: approve, stop"):
            await run.signal("cancel")
        with pytest.raises(sf.PayloadInvalid, match="the value of signal approve is not a Approval"):
            await run.signal("approve", True)
        with pytest.raises(sf.PayloadInvalid, match="not a Approval"):
            await run.signal(approve, "yes")  # pyright: ignore[reportArgumentType, reportCallIssue]
        with pytest.raises(sf.UsageError, match="answers no question 'reserved'; did you mean reserve"):
            await run.ask("reserved", 3)
        with pytest.raises(sf.PayloadInvalid, match="the value of question reserve is not a int"):
            await run.ask("reserve", "three")
        with pytest.raises(sf.UsageError, match="publishes nothing under 'progres'; did you mean progress"):
            await run.read("progres")
        await reduced(client, "order-1")
        kinds = [event.describe().split("(")[0] for _, event in [pair async for pair in run.events()]]
        assert kinds == ["RunStarted"], "nothing has reached the run"


async def test_a_definition_alone_types_what_any_handle_sends(serve: Serve) -> None:
    async with serve(app) as client:
        await client.start(order, 5, id="order-1")
        run = client.run("order-1")  # whose workflow isn't known: names are taken as they are
        with pytest.raises(sf.PayloadInvalid, match="not a Approval"):
            await run.signal(approve, True)  # pyright: ignore[reportArgumentType, reportCallIssue]
        with pytest.raises(sf.UsageError, match="<signal approve: Approval> is given for a question"):
            await run.ask(approve, 3)  # pyright: ignore[reportArgumentType, reportCallIssue]


async def test_a_parent_is_told_what_its_child_does_not_take() -> None:
    async with sft.Sandbox(app) as sandbox:
        run = await sandbox.start(selling, "approve")
        assert await run.result() == "sent"
        refused = await sandbox.start(selling, "aprove", id="refused")
        with pytest.raises(sft.Stalled, match="workflow order takes no signal 'aprove'; did you mean approve"):
            await refused.result()
        assert (await refused.describe()).status == "stuck", "a bug: it goes on when the code is mended"


async def failure_of(function: object, **declares: object) -> str:
    """The bug of a run of this workflow function, which declares this."""
    own = sf.App()
    workflow = own.workflow(**declares)(function)  # type: ignore
    async with sft.Sandbox(own) as sandbox:
        run = await sandbox.start(workflow, id="r")  # pyright: ignore
        with pytest.raises(sft.Stalled):
            await run.result()
        cause = (await run.describe()).cause
    assert cause is not None
    return cause.message


async def test_code_that_waits_for_what_it_does_not_declare_has_a_bug() -> None:
    async def forgot() -> None:
        await sf.signal("other")

    async def differs() -> None:
        await sf.signal("approve", bool)

    async def says_otherwise() -> None:
        await sf.question("reserve", str)

    async def shows() -> None:
        sf.publish("progress", "half")

    async def hides() -> None:
        sf.publish("hidden", 1)

    assert "takes no signal 'other'. It declares: approve" in await failure_of(forgot, signals=[approve])
    assert await failure_of(differs, signals=[approve]) == "signal approve is declared as Approval, and awaited as bool"
    assert "is declared as int, and awaited as str" in await failure_of(says_otherwise, questions=[reserve])
    assert "published value progress is not a int" in await failure_of(shows, published=[progress])
    assert "publishes nothing under 'hidden'. It declares no published" in await failure_of(hides, published=[])


async def test_an_answer_of_another_type_is_refused_where_it_is_given() -> None:
    own = sf.App()

    @own.workflow
    async def answers() -> str:
        question = await sf.question(reserve)
        try:
            question.answer("yes")
        except sf.PayloadInvalid as error:
            question.answer(True)
            return str(error)
        return ""

    async with sft.Sandbox(own) as sandbox:
        run = await sandbox.start(answers, id="r")
        assert await run.ask(reserve, 3) is True
        assert "the answer to question reserve is not a bool" in await run.result()


async def test_a_reducer_declares_what_it_takes_as_well() -> None:
    own = sf.App()

    @own.reducer(signals=[approve])
    def counting(state: int, event: sf.Event) -> sf.Decision:
        match event:
            case sf.Signal("approve", value):
                return sf.Decision(state, [sf.Complete(value["by"])])
            case _:
                return sf.Decision(state)

    async with sft.Sandbox(own) as sandbox:
        run = await sandbox.start(counting, id="r")
        with pytest.raises(sf.UsageError, match="reducer counting takes no signal 'go'"):
            await run.signal("go")
        await run.signal(approve, Approval("kim"))
        assert await run.result() == "kim"
