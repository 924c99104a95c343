"""A research supervisor: child agents, tokens on a web page while they are made, a person who approves, and the costs.

The supervisor starts an agent for each topic; they work at the same time, maybe on different machines. It writes a
report of what they found, waits for a person to approve it, and writes it again if that person wants it otherwise.

    python examples/research.py                       everything in this process, a browser that reads included
    streamflow dev --app examples/research.py         a server, a daemon and the status screen; then
    python examples/research.py --web                 a page at http://127.0.0.1:8000, or by commands alone:
    streamflow enqueue research --id bees --input '"honey bees"'
    streamflow tail --stream bees
    streamflow signal bees verdict '{"approved": true}'
    streamflow view cost

The page needs `pip install starlette uvicorn`. Nothing else needs the network: the model is a placeholder that always
gives the same words. Put your own into `model`.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import urllib.request
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import msgspec

import streamflow as sf

app = sf.App()
app.view(sf.total("cents"), name="cost", by=["model"])
PRICES = {"small": 0.1, "large": 2.0}
"""Cents for a token. What each model costs is a view: `streamflow view cost`."""


class Finding(msgspec.Struct):
    topic: str
    text: str
    source: str


class Verdict(msgspec.Struct):
    """What the person says. JSON from a page or the command line is checked against it."""

    approved: bool
    comment: str = ""


# --- steps: everything with side effects. The result of each is recorded once; a replay doesn't run it again ----------


async def model(name: str, prompt: str) -> AsyncIterator[str]:
    """A placeholder for the network call of a language model."""
    for word in f"{name} model on {prompt}".split():
        await asyncio.sleep(0.02)
        yield f"{word} "


@app.step(retry=sf.Retry(attempts=3, initial=0.1), timeout=60)
async def ask(name: str, prompt: str) -> str:
    """Each token is shown at once to those who watch the run. What counts is the result, and what it has cost."""
    tokens: list[str] = []
    async for token in model(name, prompt):
        sf.emit(token)
        tokens.append(token)
    sf.record("cents", len(tokens) * PRICES[name], model=name)
    return "".join(tokens).strip()


@app.step(retry=sf.Retry(attempts=5, initial=0.05))
async def search(query: str) -> str:
    """A tool that sometimes fails. Retries are recorded too: see them with `streamflow show`."""
    if sf.step_info().attempt == 1 and len(query) % 2:
        raise ConnectionError("the search engine is busy")
    return f"https://example.org/{query.replace(' ', '-')}"


# --- workflows: they only make decisions. A daemon may die at any line: another one continues at that line ------------


@app.workflow
async def investigate(topic: str) -> Finding:
    """An agent: it uses a tool, and has a small model read what that found."""
    source = await search(topic)
    return Finding(topic, await ask("small", f"{topic} by {source}"), source)


@app.workflow
async def research(subject: str) -> str:
    """The supervisor: a child run for each topic, a report, and a person who approves."""
    topics = [f"{subject} {aspect}" for aspect in ("history", "biology", "economy", "future")]
    findings = await sf.gather(*(investigate(topic) for topic in topics))
    prompt = f"{len(findings)} topics of {subject}"
    while True:
        report = await ask("large", prompt)
        sf.publish("draft", report)
        verdict = await sf.signal("verdict", Verdict, timeout=7 * 86400)
        if verdict.approved:
            return report
        prompt = f"{prompt}, {verdict.comment}"


# --- the page: any number of processes may serve it -------------------------------------------------------------------

PAGE = """<!doctype html><title>Research</title><pre id="text"></pre>
<button onclick="say({approved: true})">Approve</button>
<button onclick="say({approved: false, comment: prompt('What is wrong?') || ''})">Write it again</button>
<script>
  const text = document.getElementById("text"), run = location.pathname, source = new EventSource(run + "/tokens")
  let call = 0
  source.onmessage = message => {
    const chunk = JSON.parse(message.data)  // another call is another draft; a retried attempt begins again
    text.textContent = (chunk.restarted || chunk.call != call ? "" : text.textContent) + chunk.token
    call = chunk.call
  }
  source.addEventListener("end", () => source.close())
  const say = verdict => fetch(run + "/verdict", {method: "POST", body: JSON.stringify(verdict)})
</script>"""


def web(client: sf.Client) -> Any:
    """An ASGI application. Its imports are here because a daemon that serves this file needs no web server."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
    from starlette.routing import Route

    async def start(request: Request) -> Response:
        run = await client.start(research, request.query_params.get("about", "honey bees"))
        return RedirectResponse(f"/{run.id}", status_code=303)

    async def page(request: Request) -> Response:
        return HTMLResponse(PAGE)

    async def verdict(request: Request) -> Response:
        said = msgspec.json.decode(await request.body(), type=Verdict)
        await client.run(request.path_params["run"]).signal("verdict", said)
        return Response(status_code=202)

    async def tokens(request: Request) -> Response:
        """Server-sent events. A browser that connects again sends the last id that it has seen."""
        run = client.run(request.path_params["run"])
        await run.describe()  # RunNotFound here, and not when the response has begun
        chunks = run.stream(str, after=request.headers.get("last-event-id", ""))

        async def lines() -> AsyncIterator[str]:
            async with aclosing(chunks):
                async for chunk in chunks:
                    data = {"token": chunk.value, "call": chunk.seq, "restarted": chunk.restarted}
                    yield f"id: {chunk.offset}\ndata: {json.dumps(data)}\n\n"
            yield "event: end\ndata:\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    async def refuse(request: Request, error: Exception) -> Response:
        return PlainTextResponse(str(error), status_code=404 if isinstance(error, sf.RunNotFound) else 400)

    return Starlette(
        routes=[
            Route("/", start),
            Route("/{run}", page),
            Route("/{run}/tokens", tokens),
            Route("/{run}/verdict", verdict, methods=["POST"]),
        ],
        exception_handlers={sf.RunNotFound: refuse, sf.RunEnded: refuse, msgspec.DecodeError: refuse},
    )


@asynccontextmanager
async def served(client: sf.Client, port: int = 0) -> AsyncGenerator[str]:
    import uvicorn

    with socket.create_server(("127.0.0.1", port)) as listening:
        server = uvicorn.Server(uvicorn.Config(web(client), log_level="warning", lifespan="off"))
        serving = asyncio.create_task(server.serve([listening]))
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        await serving


# --- the same as a script: a browser reads, and a person first wants it shorter ---------------------------------------


def read_page(address: str) -> None:
    """What a browser does with the page."""
    with urllib.request.urlopen(f"{address}/tokens", timeout=60) as events:
        for line in events:
            if line.startswith(b"data: "):
                print(json.loads(line[6:])["token"], end="", flush=True)
    print()


def post(address: str, verdict: dict[str, Any]) -> None:
    urllib.request.urlopen(f"{address}/verdict", json.dumps(verdict).encode(), timeout=60).close()


async def main() -> None:
    async with sf.local(app) as client, served(client) as address:
        run = await client.start(research, "honey bees", id="bees")
        browser = asyncio.create_task(asyncio.to_thread(read_page, f"{address}/{run.id}"))
        verdicts = [{"approved": False, "comment": "but shorter"}, {"approved": True}]
        async for _ in run.watch("draft", str):
            await asyncio.to_thread(post, f"{address}/{run.id}", verdicts.pop(0))
        await browser
        print("approved:", await run.result(timeout=60))
        reading = await counted(client, calls=6)
        for row in reading.rows:
            print(f"the {row.key['model']} model cost {row.value:.1f} cents")


async def counted(client: sf.Client, calls: int) -> sf.ViewReading:
    """A view is about a second behind."""
    while True:
        try:
            reading = await client.view("cost")
            if reading.events == calls:
                return reading
        except sf.UnknownView:
            pass  # nothing is counted yet
        await asyncio.sleep(0.2)


async def serve_page() -> None:
    async with sf.connect() as client, served(client, 8000) as address:
        print(f"{address}/?about=honey+bees")
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve_page() if "--web" in sys.argv else main())
