"""A run that has failed goes on where it failed, whatever dies meanwhile, and once for each request."""

from __future__ import annotations

import time
from typing import Any

import anyio
import msgspec
import pytest

import streamflow as sf
from streamflow import errors, events
from streamflow.client import retrying
from streamflow.daemon.daemon import Daemon
from streamflow.events import RunRetried, StepCompleted
from streamflow.store.connection import Call
from streamflow.store.kernel import Kernel, Message
from tests.support.serving import view
from tests.support.waiting import events_of, happened, names_of, status_of, until
from tests.system.conftest import Serve, Work

pytestmark = pytest.mark.anyio

QUICK: dict[str, Any] = {"beat": 0.02, "dead_after": 0.1}
calls: list[str] = []
broken = {"bank"}


@pytest.fixture(autouse=True)
def fresh() -> None:
    calls.clear()
    broken.clear()
    broken.add("bank")


app = sf.App()


@app.step(retry=sf.Retry(attempts=2, initial=0.01))
async def act(what: str) -> str:
    calls.append(what)
    if what in broken:
        raise ConnectionError(f"{what} is down")
    return what.upper()


@app.step(queue="bank", retry=sf.NO_RETRY)
async def queued(what: str) -> str:
    return await act.function(what)


@app.workflow
async def order(last: str = "bank") -> list[str]:
    got = [await act("stock")]
    got.append(await act(last))
    got.append(await act("mail"))
    return got


@app.workflow
async def held() -> str:
    await act("bank")
    return await sf.signal("end", str)


@app.workflow
async def far(last: str) -> str:
    return f"{await act('stock')} {await queued(last)}"


@app.workflow
async def parent(goes_on: bool) -> str:
    try:
        return str(await order.options(id="kid")())
    except sf.ChildFailed:
        if not goes_on:
            raise
        return await sf.signal("end", str)


async def failed(client: sf.Client, workflow: Any = order, *args: Any, run_id: str = "order-1") -> sf.Run[Any]:
    run = await client.start(workflow, *args, id=run_id)
    with pytest.raises(sf.RunFailed):
        await run.result(10)
    return run


async def goes_on(run: sf.Run[Any]) -> bool:
    return "RunRetried" in await names_of(run)


async def refused(run: sf.Run[Any], kind: str, **options: Any) -> str:
    with pytest.raises(errors.NotRetried) as found:
        await run.retry(timeout=10, **options)
    assert found.value.failure.kind == kind
    return str(found.value)


async def test_the_run_goes_on_and_who_waits_gets_the_new_end(serve: Serve) -> None:
    async with serve(app) as (client, _):
        run = await failed(client)
        assert calls == ["stock", "bank", "bank"]
        broken.clear()
        retried = await run.retry(by="kim", reason="the bank is back", timeout=10)
        assert retried == retrying.Retried(1, [retrying.RetriedStep("act", 2, 3)])
        assert await run.result(10) == ["STOCK", "BANK", "MAIL"]
        assert calls == ["stock", "bank", "bank", "bank", "mail"]
        description = await run.describe()
        assert (description.status, description.failure) == ("completed", None)
        event = await happened(run, RunRetried)
        assert (event.by, event.reason) == ("kim", "the bank is back")


async def test_listings_and_views_count_it_as_running_again(serve: Serve) -> None:
    async with serve(app) as (client, daemon):
        run = await failed(client)
        broken.clear()
        broken.add("mail")
        await run.retry(timeout=10)
        with pytest.raises(sf.RunFailed, match="mail is down"):
            await run.result(10)
        assert [found.id for found in await client.runs(status="failed")] == [run.id]
        broken.clear()
        await run.retry(timeout=10)
        await run.result(10)
        assert await client.runs(status="failed") == []
        assert [found.id for found in await client.runs(status="completed")] == [run.id]
        await daemon.rollup.run_once()
        counts = (await view(client, "runs"))["workflows"]["order"]
        assert (counts["running"], counts["failed"], counts["completed"], counts["retried"]) == (0, 0, 1, 2)


async def test_a_run_that_fails_again_at_once_is_kept_from_its_new_end_on(serve: Serve) -> None:
    """Its place in the listing of failed runs, by which retention goes, is that of its last end."""
    buggy = sf.App()

    @buggy.workflow(name="buggy")
    async def flow() -> None:
        raise ValueError("broken")

    async with serve(buggy) as (client, _):
        run = await failed(client, flow)
        shard = (await client.read_namespace()).shard_of(run.id)
        listing = client.keys.shard(shard).index(sf.Status.FAILED, "buggy")
        await anyio.sleep(0.05)
        await run.retry(timeout=10)
        assert (await names_of(run)) == ["RunStarted", "RunFailed", "RunRetried", "RunFailed"]
        score = await client._batcher.call(Call.plain("ZSCORE", listing, run.id))  # pyright: ignore[reportPrivateUsage]
        header, _ = await client._header(run.id, 0)  # pyright: ignore[reportPrivateUsage]
        assert float(score) == header.ended > header.created + 40


async def test_a_second_request_changes_nothing(serve: Serve) -> None:
    """Whether it is another one, or the same one that comes again: also after the run has failed again."""
    async with serve(app) as (client, _):
        run = await failed(client)
        header, _ = await client._header(run.id, 0)  # pyright: ignore[reportPrivateUsage]
        body = retrying.request(run.id, header, "e" * 32, "", "", False)
        await run.retry(timeout=10)
        with pytest.raises(sf.RunFailed):
            await run.result(10)
        before = await names_of(run)
        answer = await client._requested("retry", run.id, header.created, "e" * 32, body)  # pyright: ignore[reportPrivateUsage]
        with pytest.raises(errors.NotRetried, match="was retried already"):
            retrying.retried(run.id, answer, None)
        assert await names_of(run) == before
        broken.clear()
        await run.retry(timeout=10)
        await run.result(10)
        assert "has completed" in await refused(run, "NotFailed")


async def test_two_at_once_have_it_go_on_once(serve: Serve) -> None:
    async with serve(app) as (client, _):
        run = await failed(client, order, "bank")
        broken.clear()
        outcomes: list[object] = []

        async def retry() -> None:
            try:
                outcomes.append(await run.retry(timeout=10))
            except errors.NotRetried as error:
                outcomes.append(error.failure.kind)

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(retry)
        assert sorted(map(str, outcomes))[:4] == ["NotFailed"] * 4
        await run.result(10)
        assert (await names_of(run)).count("RunRetried") == 1


async def test_the_owner_dies_before_it_takes_the_request(serve: Serve) -> None:
    async with serve(app, crash=True, **QUICK) as (client, _):
        run = await failed(client)
    broken.clear()
    with pytest.raises(TimeoutError, match="it is kept, and may take effect later"):
        await run.retry(timeout=0.2)
    async with serve(app, **QUICK) as (client, _):
        await until(lambda: goes_on(run))
        assert await run.result(10) == ["STOCK", "BANK", "MAIL"]
    assert (await names_of(run)).count("RunRetried") == 1


async def test_the_owner_dies_right_after_the_commit(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it starts a step: the next one finds that in the history, with the same attempts."""
    async with serve(app, crash=True, **QUICK) as (client, daemon):
        run = await failed(client)
        monkeypatch.setattr(daemon.owner, "_apply_run", lambda *_: None)
        broken.clear()
        await run.retry(timeout=10)
        assert (await names_of(run))[-1] == "RunRetried"
    monkeypatch.undo()
    async with serve(app, **QUICK) as (client, _):
        assert await run.result(10) == ["STOCK", "BANK", "MAIL"]
    assert (await names_of(run)).count("RunRetried") == 1
    assert calls.count("stock") == 1


async def test_owners_die_while_a_retried_run_goes_on(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each as soon as one of its commits is seen; it may have made more by then."""
    monkeypatch.setattr("streamflow.machine.run.MAX_WORKER_LOSSES", 1000)
    async with serve(app, crash=True, **QUICK) as (client, _):
        run = await failed(client)
    broken.clear()
    with pytest.raises(TimeoutError):
        await run.retry(timeout=0.1)
    deaths = 0
    while (await run.describe()).status != "completed":
        deaths += 1
        assert deaths < 100
        async with serve(app, crash=True, **QUICK) as (client, daemon):
            await one_commit(daemon, run)
    assert await run.result(10) == ["STOCK", "BANK", "MAIL"]
    names = await names_of(run)
    assert names.count("RunRetried") == 1
    assert deaths
    assert [e.name for e in await events_of(run) if isinstance(e, StepCompleted)] == ["act", "act", "act"]


async def one_commit(daemon: Daemon, run: sf.Run[Any]) -> None:
    version = (await run.describe()).version

    async def moved() -> bool:
        return (await run.describe()).version > version

    await until(moved)


async def test_mended_code_goes_on_and_code_that_does_not_fit_is_refused(serve: Serve) -> None:
    buggy, other, mended = sf.App(), sf.App(), sf.App()
    for each in (buggy, other, mended):
        each.steps.update(app.steps)

    @buggy.workflow(name="flow")
    async def bug() -> str:
        got = await act("stock")
        raise KeyError(got)

    @other.workflow(name="flow")
    async def different() -> None:
        await sf.sleep(1)

    @mended.workflow(name="flow")
    async def right() -> str:
        got = await act("stock")
        return got + await act("mail")

    async with serve(buggy) as (client, _):
        run = await failed(client, bug)
    async with serve(other) as (client, _):
        text = await refused(run, "Diverged")
        assert "can't go on with today's code" in text
        assert (await run.describe()).status == "failed"
    async with serve(mended) as (client, _):
        await run.retry(timeout=10)
        assert await run.result(10) == "STOCKMAIL"
    assert calls == ["stock", "mail"]


async def test_a_run_that_was_forgotten_or_started_again_is_not_retried(serve: Serve) -> None:
    async with serve(app, crash=True, **QUICK) as (client, _):
        run = await failed(client)
    with pytest.raises(TimeoutError):
        await run.retry(timeout=0.1)
    assert await client.forget(run.id)
    again = await client.start(order, id=run.id)
    async with serve(app, **QUICK) as (client, _):
        with pytest.raises(sf.RunFailed):
            await again.result(10)
        assert "RunRetried" not in await names_of(again)
        with pytest.raises(sf.RunNotFound):
            await run.retry(timeout=10)
        broken.clear()
        await again.retry(timeout=10)
        await again.result(10)


async def test_a_request_for_an_earlier_run_of_the_id_changes_nothing(serve: Serve) -> None:
    """It comes late, and in a form that the server lets through: the run's owner looks at it, too."""
    async with serve(app) as (client, _):
        run = await failed(client)
        header, _ = await client._header(run.id, 0)  # pyright: ignore[reportPrivateUsage]
        body = retrying.request(run.id, header, "e" * 32, "", "", False)
        assert await client.forget(run.id)
        again = await failed(client)
        answer = await client._requested("retry", run.id, 0, "e" * 32, body)  # pyright: ignore[reportPrivateUsage]
        with pytest.raises(errors.NotRetried, match="another run has its id"):
            retrying.retried(run.id, answer, None)
        assert "RunRetried" not in await names_of(again)


async def test_retention_does_not_forget_a_run_that_goes_on(serve: Serve) -> None:
    """Nor does it when it has listed the run before, as one that has ended long ago."""
    async with serve(app, retention=1) as (client, daemon):
        run = await failed(client, held)
        kernel, shard = Kernel(client.keys), (await client.read_namespace()).shard_of(run.id)
        listed, _ = await client._header(run.id, 0)  # pyright: ignore[reportPrivateUsage]
        broken.clear()
        await run.retry(timeout=10)
        forget = kernel.forget_runs(shard, [(run.id, listed)])
        assert await client._batcher.call(forget) == 0  # pyright: ignore[reportPrivateUsage]
        await anyio.sleep(1)
        await daemon.retention.forget_once()
        assert (await run.describe()).status == "running"
        await run.signal("end", "well")
        assert await run.result(10) == "well"


async def test_a_step_of_a_queue_is_tried_again(serve: Serve, work: Work) -> None:
    async with serve(app) as (client, _), work(app, "bank"):
        run = await failed(client, far, "bank")
        broken.clear()
        assert (await run.retry(timeout=10)).steps == [retrying.RetriedStep("queued", 2, 2)]
        assert await run.result(10) == "STOCK BANK"


@app.step(retry=sf.NO_RETRY)
async def hang(key: str) -> str:
    """Only its first attempt."""
    calls.append(f"{key} {sf.step_info().attempt}")
    if sf.step_info().attempt == 1:
        await anyio.sleep(3600)
    return key


@app.step(retry=sf.NO_RETRY)
def hang_in_a_thread(key: str) -> str:
    calls.append(f"{key} {sf.step_info().attempt}")
    while sf.step_info().attempt == 1 and not sf.cancelled():
        time.sleep(0.01)
    return f"{key} {sf.step_info().attempt}"


@app.workflow
async def hangs(how: str) -> str:
    await act("stock")
    if how == "thread":
        return await hang_in_a_thread(how)
    return await hang.options(queue="bank" if how == "queue" else None)(how)


async def begun(text: str) -> None:
    async def has_begun() -> bool:
        return text in calls

    await until(has_begun)


@pytest.mark.parametrize("how", ["here", "thread", "queue"])
async def test_a_step_that_hangs_gives_its_attempt_up(how: str, serve: Serve, work: Work) -> None:
    async with serve(app) as (client, _), work(app, "bank"):
        run = await client.start(hangs, how)
        await begun(f"{how} 1")
        name = "hang_in_a_thread" if how == "thread" else "hang"
        retried = await run.retry(step=name, by="kim", timeout=10)
        assert retried == retrying.Retried(1, [retrying.RetriedStep(name, 2, 2)])
        assert await run.result(10) == ("thread 2" if how == "thread" else how)
        event = await happened(run, events.StepRetrying)
        assert str(event.failure) == "GivenUp: given up by kim"


async def test_a_step_that_another_daemon_runs_gives_its_attempt_up(serve: Serve) -> None:
    async with serve(app, grace=30, **QUICK) as (client, first):
        run = await client.start(hangs, "here")
        await begun("here 1")
        async with serve(app, **QUICK) as (_, second):
            shard = (await client.read_namespace()).shard_of(run.id)

            async def first_has_let_go() -> bool:
                first.stop()
                return shard in second.owner.shards

            await until(first_has_let_go)
            await run.retry(step=2, timeout=10)
            assert await run.result(10) == "here"
            assert calls == ["stock", "here 1", "here 2"]


async def test_the_same_request_for_a_step_comes_again(serve: Serve) -> None:
    """The second time its attempt is over, and the next one goes on."""
    both = sf.App()
    both.steps.update(app.steps)

    @both.workflow(name="both")
    async def flow() -> str:
        got = await hang("a")
        await sf.signal("end")
        return got

    async with serve(both) as (client, _):
        run = await client.start(flow)
        await begun("a 1")
        header, _ = await client._header(run.id, 0)  # pyright: ignore[reportPrivateUsage]
        body = retrying.step_request(run.id, header, await run.history(), "hang", "e" * 32, "", "")
        answer = client.keys.shard((await client.read_namespace()).shard_of(run.id)).answer("e" * 32)
        for kind in (None, "NotOpen"):
            found = await client._requested("retry", run.id, header.created, "e" * 32, body)  # pyright: ignore[reportPrivateUsage]
            failure = msgspec.msgpack.decode(found, type=events.AskAnswered).failure
            assert (failure and failure.kind) == kind
            await client._batcher.call(Call.plain("DEL", answer))  # pyright: ignore[reportPrivateUsage]
        await run.signal("end")
        assert await run.result(10) == "a"
        assert calls == ["a 1", "a 2"]
        assert "has ended: none of its steps runs" in await refused(run, "NotOpen", step="hang")


async def test_which_step_is_meant_has_to_be_clear(serve: Serve) -> None:
    both = sf.App()
    both.steps.update(app.steps)

    @both.workflow(name="both")
    async def flow() -> list[str]:
        return [*await sf.gather(hang("a"), hang("b"))]

    async with serve(both) as (client, _):
        run = await client.start(flow)
        await begun("b 1")
        assert "2 open calls of step hang: name one by its number: 1 (hang), 2 (hang)" in await refused(
            run, "SeveralOpen", step="hang"
        )
        assert "no open step other; open are: 1 (hang), 2 (hang)" in await refused(run, "NotOpen", step="other")
        await run.retry(step="1", timeout=10)
        await run.retry(step=2, timeout=10)
        assert await run.result(10) == ["a", "b"]


async def test_events_are_followed_through_an_end_that_was_retried(serve: Serve) -> None:
    async with serve(app) as (client, _):
        run = await failed(client)
        broken.clear()
        await run.retry(timeout=10)
        names = [type(event).__name__ async for _, event in run.events(follow=True)]
        assert names.count("RunFailed") == names.count("RunRetried") == 1
        assert names[-1] == "RunCompleted"
        assert names == await names_of(run)


async def test_a_child_whose_parent_failed_of_it_is_retried_alone_only(serve: Serve) -> None:
    async with serve(app) as (client, _):
        await failed(client, parent, False, run_id="p")
        kid = client.run("kid")
        text = await refused(kid, "ParentFailed")
        assert "child of p, which failed because of it" in text
        broken.clear()
        assert (await kid.retry(alone=True, timeout=10)).parent == "p"
        await kid.result(10)
        assert (await client.run("p").describe()).status == "failed"
        await client.run("p").retry(timeout=10)  # its child has completed meanwhile
        assert await client.run("p").result(10) == "['STOCK', 'BANK', 'MAIL']"


async def test_a_parent_that_went_on_drops_the_new_outcome(serve: Serve) -> None:
    async with serve(app) as (client, _):
        run = await client.start(parent, True, id="p")
        await happened(run, events.ChildFailed)
        broken.clear()
        kid = client.run("kid")
        assert (await kid.retry(timeout=10)).parent == "p"
        await kid.result(10)
        await run.signal("end", "went on")
        assert await run.result(10) == "went on"
        assert (await names_of(run)).count("ChildCompleted") == 0


async def test_what_is_no_request_is_quarantined(serve: Serve) -> None:
    async with serve(app) as (client, daemon):
        run = await failed(client)
        shard = (await client.read_namespace()).shard_of(run.id)
        post = client._batcher.post  # pyright: ignore[reportPrivateUsage]
        for body in (b"", b"\xc1", b"\x93\xa1x\x01\x01", b"\x90"):
            assert await post(shard, Message("retry", run.id, body, 0)) == "a"

        async def quarantined() -> bool:
            await daemon.rollup.run_once()
            return (await view(client, "quarantine"))["count"] == 4

        await until(quarantined)
        assert (await run.describe()).status == "failed"
        broken.clear()
        await run.retry(timeout=10)
        await run.result(10)


async def test_many_runs_go_on_together(serve: Serve) -> None:
    async with serve(app) as (client, _):
        runs = await client.start_many(order, [("bank",)] * 100)
        for run in runs:
            await status_of(run, sf.Status.FAILED)
        broken.clear()
        async with anyio.create_task_group() as group:
            for run in runs:
                group.start_soon(run.retry)
        assert [await run.result(10) for run in runs] == [["STOCK", "BANK", "MAIL"]] * 100
