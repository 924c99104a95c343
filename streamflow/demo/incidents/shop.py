"""The app of `demo --incidents`, release 1.8.2: each of its workflows is part of an incident, but `invoice`.

Owns: what goes wrong, and how it goes on when somebody has mended it.
Must not: import anything of the demo: it is copied into the demo's directory, as a user's code is somewhere else than
streamflow. What its outside world is like stands in files beside that copy. Called by: the daemons and workers of the
demo.

Release 1.8.3 is the same file with the line mended that `fixed` names in `twelve.py`.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import msgspec

import streamflow as sf

RELEASE = "1.8.2"
HERE = Path(__file__).parent
API = HERE / "api.example.is-up"
"""There while the service answers that `fetch` calls."""
CALM = HERE / "crawled.example.is-calm"
"""There when the site that `get_page` crawls has forgiven us."""

app = sf.App()


# --- 1: a bug after a deploy. 7: a signal of the wrong type -----------------------------------------------------------


class Approval(msgspec.Struct):
    ok: bool
    by: str = ""


approve = sf.SignalDefinition("approve", Approval)


@app.step
async def reserve(items: int) -> str:
    return f"{items} reserved"


def total(items: list[dict[str, int]]) -> int:
    result = 0
    for item in items:
        result += item["a"] + item["b"]
    return result


@app.workflow(signals=[approve])
async def order(items: list[dict[str, int]]) -> str:
    """Reserve what was ordered; orders of more than 1,000 need an approval."""
    reserved = await reserve(len(items))
    if total(items) <= 1_000:
        return reserved
    approval = await sf.signal(approve)
    return f"{reserved}, approved by {approval.by}" if approval.ok else "declined"


# --- 2: a service was down --------------------------------------------------------------------------------------------


class ConnectTimeout(Exception):
    pass


@app.step(retry=sf.Retry(attempts=2, initial=0.05))
async def fetch(item: int) -> str:
    if not API.exists():
        raise ConnectTimeout("api.example:443")
    return f"<html>{item}</html>"


@app.workflow
async def enrich(item: int) -> int:
    """Fetch what is known of an item from another service."""
    return len(await fetch(item))


# --- 3: a child that is stuck -----------------------------------------------------------------------------------------


@app.workflow
async def supplier(name: str) -> str:
    """Wait until a supplier says that it goes on."""
    await sf.signal("go")
    return f"{name} goes on"


@app.workflow
async def part(name: str) -> str:
    return await supplier.options(id=f"enrich-{name}")(name)


@app.workflow
async def batch(names: list[str]) -> list[str]:
    """Wait for a child for each name, which waits for one of its own."""
    return await sf.gather(*(part.options(id=f"part-{name}")(name) for name in names))


# --- 4: a queue without workers. 6: a step that hangs -----------------------------------------------------------------


@app.step(queue="gpu")
async def embed(text: str) -> int:
    return len(text)


@app.step(queue="models")
async def model(prompt: str) -> str:
    sf.heartbeat("asked")
    if sf.step_info().attempt == 1:
        await asyncio.Event().wait()  # a connection that nobody has closed, and no time-out
    return f"answer to {prompt}"


@app.workflow
async def agent_loop(tool: str, prompt: str) -> str:
    """Use one tool: `embed`, on a GPU, or `model`, in a worker of its own."""
    return await model(prompt) if tool == "model" else f"{await embed(prompt)} tokens"


# --- 8: a storm of retries --------------------------------------------------------------------------------------------


class TooManyRequests(Exception):
    pass


@app.step(queue="crawl", retry=sf.Retry(attempts=40_000, initial=1.0, factor=1.0))
async def get_page(page: int) -> int:
    if not CALM.exists():
        raise TooManyRequests("429 Too Many Requests: crawled.example")
    return page


@app.workflow
async def crawl(page: int) -> int:
    """Get one page of a site that bans those who ask too often, for as long as they ask."""
    return await get_page(page)


# --- 9: one bad input among good ones ---------------------------------------------------------------------------------


class InvalidEmail(sf.Fatal):
    pass


@app.step
async def create_account(name: str) -> str:
    return f"account of {name}"


@app.step
async def send_welcome(account: str, email: str) -> str:
    if "." not in email.partition("@")[2]:
        raise InvalidEmail(email)
    return f"{account}: welcome sent to {email}"


@app.workflow
async def onboard(name: str, email: str) -> str:
    """Create an account, and greet its owner."""
    account = await create_account(name)
    return await send_welcome(account, email)


# --- 10: a daemon that is ill -----------------------------------------------------------------------------------------

EVERY_SECONDS = 3.0
BLOCKS_SECONDS = 0.9


def add_up(month: int) -> int:
    time.sleep(BLOCKS_SECONDS)  # what should be in a step: nothing else goes on in this daemon
    return month + 1


@app.workflow
async def statement(month: int) -> int:
    """Add up one month after the other, in the code of the workflow."""
    await sf.sleep(EVERY_SECONDS)
    raise sf.ContinueAs(add_up(month))


# --- 11: a server that is nearly full. And runs to which nothing happens ----------------------------------------------


@app.workflow
async def nightly(size: int) -> str:
    """A report of so many bytes, which is kept for as long as ended runs are."""
    return "=" * size


@app.workflow
async def invoice(number: int) -> int:
    """Wait for the end of the month."""
    await sf.sleep(30 * 24 * 3600)
    return number
