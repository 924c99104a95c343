"""`streamflow dev` serves the triggers of the app, and what is wrong with one of them ends nothing else."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

import streamflow as sf

pytestmark = pytest.mark.timeout(150)

ROOT = Path(__file__).parents[2]
SECONDS = 40.0
FLOWS = """
import os
import streamflow as sf
from streamflow import triggers

app = sf.App()


@app.workflow
async def say(word: str) -> str:
    return word


@app.trigger(triggers.webhook("/say"))
def said(delivery: triggers.Delivery[str]) -> triggers.Action:
    return triggers.start(say, "first " + delivery.payload, id=delivery.id)


@app.trigger(triggers.webhook("/die"))
def dies(delivery: triggers.Delivery[str]) -> None:
    os._exit(3)


@app.trigger(triggers.webhook("/signed", signature=triggers.github(triggers.secret("MISSING_SECRET"))))
def signed(delivery: triggers.Delivery[str]) -> None: ...


@app.trigger(triggers.list("words"))
def listed(delivery: triggers.Delivery[str]) -> triggers.Action:
    return triggers.start(say, delivery.payload, id=delivery.payload)
"""


class Dev:
    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("STREAMFLOW_")}
        self._environ = {**inherited, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}
        (directory / "flows.py").write_text(FLOWS)
        with (directory / "out").open("wb") as out, (directory / "errors").open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "streamflow", "dev", "--app", "flows.py", *options],
                cwd=directory, env=self._environ, stdout=out, stderr=errors,
            )  # fmt: skip

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        over = time.monotonic() + SECONDS
        while not (found := condition()):
            assert self.process.poll() is None, self.log
            assert time.monotonic() < over, f"{what}: {self.log}"
            time.sleep(0.05)
        return found

    @property
    def log(self) -> str:
        return (self.directory / "errors").read_text()

    def url(self) -> str:
        """Of the webhook `said`, when it answers."""
        shape = re.compile(r"^trigger said: POST (http://127\.0\.0\.1:\d+/say) \(unsigned\)$", re.MULTILINE)
        url = self.until(lambda: shape.search((self.directory / "out").read_text()), "the address is named")[1]
        self.until(lambda: _post(url, "ready", "ready") == 202, "it is served")
        return str(url)

    def result(self, run_id: str) -> Any:
        async def result() -> Any:
            async with sf.connect(f"unix://{self.directory}/.streamflow/server.sock", namespace="default") as client:
                return await client.run(run_id).result(SECONDS)

        return asyncio.run(result())

    def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(SECONDS)


def _post(url: str, body: str, delivery: str) -> int:
    """The status; 0 if nobody answers."""
    try:
        return httpx.post(url, content=body, headers={"Idempotency-Key": delivery}, timeout=10).status_code
    except httpx.HTTPError:
        return 0


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[Callable[..., Dev]]:
    started: list[Dev] = []

    def start(*options: str) -> Dev:
        started.append(Dev(tmp_path, *options))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait(SECONDS)


def test_dev_serves_triggers_and_one_that_fails_ends_nothing_else(dev: Callable[..., Dev]) -> None:
    running = dev("--reload")
    url = running.url()
    assert running.result("ready") == "first ready"
    missing = "trigger signed is not served: a secret is missing: the environment variable MISSING_SECRET"
    assert missing in running.log, "and the others are"
    with Redis(unix_socket_path=str(running.directory / ".streamflow" / "server.sock")) as redis:
        redis.lpush("words", "taken")
    assert running.result("taken") == "taken"
    assert _post(url.replace("/say", "/die"), "x", "d") == 0
    said = "the process that serves triggers exited unexpectedly with code 3; the next change of the code starts it"
    running.until(lambda: said in running.log, "its end is said")
    (running.directory / "flows.py").write_text(FLOWS.replace("first ", "second "))
    running.until(lambda: _post(url, "word", "d") == 202, "the new code is served")
    assert running.result("d") == "second word"
    assert running.end() == 0
