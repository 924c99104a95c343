"""What a type checker sees in user code. No test runs this: pyright checks it with the package, `assert_type` by
`assert_type`; each mistake is marked with the error that it must give (an ignore that isn't needed is an error itself).
"""
# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, assert_type

import streamflow as sf
import streamflow.testing as sft

app = sf.App()


@dataclass
class Page:
    url: str
    size: int


@app.step(retry=sf.Retry(attempts=3), timeout=30)
async def fetch(url: str, depth: int = 1) -> Page:
    return Page(url, depth)


@app.step
def parse(page: Page) -> list[str]:
    return [page.url]


@app.step(queue="gpu")
def embed(text: str) -> list[float]:
    return [float(len(text))]


@app.workflow
async def leaf(n: int) -> str:
    return str(n)


@app.workflow
async def named(*, customer: str, n: int = 1) -> str:
    return customer * n


@app.workflow(version=2)
async def digest(urls: list[str]) -> int:
    page = await fetch(urls[0])
    assert_type(page, Page)
    assert_type(await parse(page), list[str])
    assert_type(await embed.options(timeout=5)("text"), list[float])
    assert_type(await leaf(3), str)
    assert_type(await leaf.options(id="x", on_parent_end="wait")(3), str)
    try:
        await fetch(urls[0])
    except sf.StepFailed as error:
        assert_type(error.failure.data(Page), Page)
        raise sf.Fatal("no", data=page) from error
    if page.size:
        raise sf.RetryLater("busy")  # pyright: ignore[reportCallIssue]
    await fetch(3)  # pyright: ignore[reportArgumentType]
    await fetch(urls[0], "deep")  # pyright: ignore[reportArgumentType]
    await fetch()  # pyright: ignore[reportCallIssue]
    await leaf("3")  # pyright: ignore[reportArgumentType]
    await leaf.options(on_parent_end="keep")(3)  # pyright: ignore[reportArgumentType]

    pair = await sf.gather(fetch(urls[0]), leaf(1))
    assert_type(pair, tuple[Page, str])
    assert_type(await sf.gather(*(fetch(url) for url in urls)), list[Page])
    assert_type(await sf.gather(*(fetch(url) for url in urls), return_exceptions=True), list[Page | BaseException])
    assert_type(await sf.race(fetch(urls[0]), leaf(1)), Page | str)
    assert_type(await sf.map(fetch, urls, concurrency=10), list[Page])
    assert_type(await sf.map(leaf, range(9), concurrency=2, return_exceptions=True), list[str | BaseException])
    await sf.map(leaf, urls, concurrency=2)  # pyright: ignore[reportArgumentType]
    await sf.map(leaf, range(9))  # pyright: ignore[reportCallIssue]

    async with sf.task_group() as group:
        later = group.start_soon(fetch, urls[0], depth=2)
        group.start_soon(leaf, "3")  # pyright: ignore[reportArgumentType]
    assert_type(later, Awaitable[Page])

    with sf.timeout(5) as limit:
        assert_type(await sf.signal("approve", bool), bool)
    assert_type(limit.expired, bool)

    question = await sf.question("raise-limit", int)
    assert_type(question, sf.Question[int])
    assert_type(question.value, int)

    child = await sf.start(leaf, 3, on_parent_end="abandon")
    assert_type(child, sf.Child[str])
    assert_type(await child.result(), str)
    await sf.start(leaf, "3")  # pyright: ignore[reportCallIssue, reportArgumentType]
    assert_type(await sf.start(named, customer="acme"), sf.Child[str])
    await sf.start(named, costumer="acme")  # pyright: ignore[reportCallIssue]

    fetch(urls[0])  # pyright: ignore[reportUnusedCoroutine]
    parse(page)  # pyright: ignore[reportUnusedCoroutine]
    leaf(3)  # pyright: ignore[reportUnusedCoroutine]
    sf.sleep(1)  # pyright: ignore[reportUnusedCoroutine]
    sf.signal("approve", bool)  # pyright: ignore[reportUnusedCoroutine]
    sf.gather(fetch(urls[0]), parse(page))  # pyright: ignore[reportUnusedCoroutine]
    sf.start(leaf, 3)  # pyright: ignore[reportUnusedCoroutine]
    sf.send_signal("other", "go")  # pyright: ignore[reportUnusedCoroutine]
    child.cancel()  # pyright: ignore[reportUnusedCoroutine]

    async with sf.saga() as saga:
        saga.compensate(fetch, urls[0], depth=1)
        saga.compensate(fetch, 1)  # pyright: ignore[reportArgumentType]
    return page.size


async def with_both(client: sf.Client, sandbox: sft.Sandbox) -> None:
    await with_either(client)
    await with_either(sandbox)


async def with_either(client: sf.AnyClient) -> None:
    run = await client.start(digest, ["https://example.org"], id="digest-1")
    assert_type(await run.result(timeout=30), int)
    assert_type(client.run("digest-1", int), sf.Run[int])
    page = await client.runs(status="failed", since="2h", roots=True, waits=True)
    assert_type(page, sf.RunPage)
    assert_type([run.id for run in await client.runs(after=page.after)], list[str])
    assert_type(client.run("digest-1", digest), sf.Run[int])
    assert_type(await run.describe(), sf.RunDescription)
    run.signal("go")  # pyright: ignore[reportUnusedCoroutine]
    client.start(leaf, 3)  # pyright: ignore[reportUnusedCoroutine]
    await client.start(leaf, "3")  # pyright: ignore[reportCallIssue, reportArgumentType]


async def use(client: sf.Client) -> None:
    run = await client.start(digest, ["https://example.org"], id="digest-1")
    assert_type(run, sf.Run[int])
    assert_type(await run.result(timeout=30), int)
    await client.start(digest, "https://example.org")  # pyright: ignore[reportCallIssue, reportArgumentType]
    assert_type(await client.start(named.options(id="acme-1"), customer="acme", n=2), sf.Run[str])
    await client.start(named, costumer="acme")  # pyright: ignore[reportCallIssue]

    sf.no_such_thing()  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    assert_type(await client.start("digest", ["https://example.org"]), sf.Run[Any])
    assert_type(client.run("digest-1", int), sf.Run[int])
    assert_type(await client.start_many(leaf, [(1,), (2,)]), list[sf.Run[str]])


# --- messages that a workflow declares --------------------------------------------------------------------------------

approve = sf.SignalDefinition("approve", bool)
stop = sf.SignalDefinition("stop", type(None))
reserve = sf.QuestionDefinition("reserve", int, answer=str)
progress = sf.PublishedDefinition("progress", float)
maybe: sf.SignalDefinition[int | None] = sf.SignalDefinition("maybe", int | None)


@app.workflow(signals=[approve, stop, maybe], questions=[reserve], published=[progress])
async def declaring(n: int) -> bool:
    assert_type(await sf.signal(approve, timeout=3), bool)
    assert_type(await sf.signal(maybe), int | None)
    question = await sf.question(reserve)
    assert_type(question.value, int)
    sf.publish(progress, 0.5)
    sf.publish(progress, "half")  # pyright: ignore[reportArgumentType, reportCallIssue]
    await sf.send_signal("other", approve, True)
    await sf.send_signal("other", approve, "yes")  # pyright: ignore[reportArgumentType, reportCallIssue]
    await sf.send_signal("other", stop)
    child = await sf.start(declaring, 3)
    await child.signal(approve, False)
    await child.signal(stop)
    await child.signal(approve, 3)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return True


async def talks(client: sf.Client) -> None:
    run = client.run("r", declaring)
    assert_type(run, sf.Run[bool])
    await run.signal(approve, True)
    await run.signal(stop)
    await run.signal(approve, "yes")  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert_type(await run.ask(reserve, 3, timeout=5), str)
    await run.ask(reserve, "three")  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert_type(await run.read(progress), float | None)
    assert_type(await run.read(progress, default="none"), float | str)
