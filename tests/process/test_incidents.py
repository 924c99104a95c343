"""`demo --incidents` as people run it: each of the twelve is found and mended by the commands that it prints."""

from __future__ import annotations

import contextlib
import os
import random
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import pytest
from redis.asyncio import Redis

import streamflow as sf
from streamflow.demo.incidents import shop
from streamflow.demo.incidents.report import Facts
from streamflow.demo.incidents.twelve import ILL, Incident
from tests.support.serving import view
from tests.support.shell import Shell

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]

ROOT = Path(__file__).parents[2]
RUNS = 600
SECONDS = 60.0
"""Until a test that waits for something gives up."""
HASHES = """
local found = {}
for i, key in ipairs(KEYS) do
  found[i] = redis.sha1hex(table.concat(redis.call('LRANGE', key, 0, -1), '|'))
end
return found
"""
"""On the server: reading all records would take memory of it, of which it has little left."""
BULK = ("cancel", "forget", "retry", "terminate")
"""Commands that ask, if they are for many runs."""


class Demo:
    """A running `demo --incidents`."""

    def __init__(self, process: subprocess.Popen[bytes], facts: Facts, client: sf.Client, log: Path) -> None:
        self.process = process
        self.facts = facts
        self.client = client
        self.log = log
        self.folder = Path(facts.folder)
        self.shell = Shell(facts.redis, facts.namespace)
        self.shell.environ["COLUMNS"] = "160"  # nothing is cut off, however long it has taken
        self.restless = {*self.incident(8).runs, ILL}
        """Runs that change by themselves, until they are mended."""

    def incident(self, number: int) -> Incident:
        return self.facts.incidents[number - 1]

    async def run(self, command: str, code: int = 0) -> str:
        """As it is printed; where it would ask, the answer is yes."""
        words = shlex.split(command)
        asks = words[0] in BULK and "--workflow" in words
        return await self.shell(*words, *(["--yes"] if asks or "drop" in words else []), code=code)

    async def says(self, incident: Incident) -> None:
        """Wait until its first command shows it: views are a moment behind."""
        command = "status --check" if incident.number == 8 else incident.commands[0]
        code = 1 if command == "status --check" else 0
        await until(f"{command} shows {incident.shows}", lambda: self._contains(command, code, incident.shows))

    async def _contains(self, command: str, code: int, text: str) -> bool:
        return text in await self.run(command, code)

    async def needs_a_person(self, kind: str, name: str) -> bool:
        attention = await view(self.client, "attention")
        return any((row["kind"], row["name"]) == (kind, name) for row in attention["rows"])

    async def needs_nobody(self, kind: str, name: str) -> bool:
        return not await self.needs_a_person(kind, name)

    async def records(self) -> dict[str, str]:
        """A hash of the record of each run."""
        async with Redis.from_url(self.facts.redis) as redis:
            pattern = f"sf:{{{self.facts.namespace}/*}}:run:*"
            keys = [key async for key in redis.scan_iter(match=pattern, count=1000)]
            hashes: Any = await redis.eval(HASHES, len(keys), *keys)  # pyright: ignore[reportUnknownMemberType, reportGeneralTypeIssues]
        return {key.decode().rpartition(":run:")[2]: found.decode() for key, found in zip(keys, hashes, strict=True)}

    async def all_have(self, runs: list[str], status: sf.Status) -> None:
        async def reached() -> bool:
            found = [(await self.client.run(run_id).describe(waits=False)).status for run_id in runs]
            return all(one is status for one in found)

        await until(f"{', '.join(runs[:3])} {status}", reached)


async def until(what: str, condition: Callable[[], Awaitable[bool]]) -> None:
    with anyio.move_on_after(SECONDS):
        while not await condition():  # noqa: ASYNC110 (what is asked is on a server)
            await anyio.sleep(0.02)
        return
    raise AssertionError(f"not so within {SECONDS:g} s: {what}")


@contextlib.asynccontextmanager
async def demo(folder: Path) -> AsyncGenerator[Demo]:
    log = folder / "demo.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "streamflow", "demo", "--incidents", "--json", f"--runs={RUNS}", "--daemons=2"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)},
        )
    try:
        assert process.stdout is not None
        line = await anyio.to_thread.run_sync(process.stdout.readline)
        assert line, log.read_text()
        facts = msgspec.json.decode(line, type=Facts)
        async with sf.connect(facts.redis, namespace=facts.namespace) as client:
            yield Demo(process, facts, client, log)
        process.send_signal(signal.SIGINT)
        assert await anyio.to_thread.run_sync(process.wait) == 0, log.read_text()
        assert not Path(facts.folder).exists()
        for pid in facts.processes:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
    finally:
        process.kill()
        process.communicate()


# --- how each of them is mended, and what is so then ------------------------------------------------------------------


async def deploy(demo: Demo, incident: Incident) -> None:
    assert demo.process.stdin is not None
    demo.process.stdin.write(f"{incident.commands[1]}\n".encode())
    demo.process.stdin.flush()

    async def deployed() -> bool:
        return "release 1.8.3 is deployed" in demo.log.read_text()

    await until("1.8.3 is deployed", deployed)
    await demo.all_have(incident.runs, sf.Status.COMPLETED)


async def run_again(demo: Demo, incident: Incident) -> None:
    assert f"retried {len(incident.runs)} " in await demo.run(incident.commands[1])
    await demo.all_have(incident.runs, sf.Status.COMPLETED)


async def complete(demo: Demo, incident: Incident) -> None:
    await demo.run(incident.commands[1])
    await demo.all_have(incident.runs, sf.Status.COMPLETED)


async def start_worker(demo: Demo, incident: Incident) -> None:
    worker = subprocess.Popen(
        [sys.executable, "-m", "streamflow", *shlex.split(incident.commands[1])],
        stderr=subprocess.DEVNULL,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "STREAMFLOW_REDIS": demo.facts.redis,
            "STREAMFLOW_NAMESPACE": demo.facts.namespace,
        },
    )
    try:
        await demo.all_have(incident.runs, sf.Status.COMPLETED)
    finally:
        worker.terminate()
        assert await anyio.to_thread.run_sync(worker.wait) == 0


async def drop(demo: Demo, incident: Incident) -> None:
    await demo.run(incident.commands[1])
    assert incident.shows not in await demo.run(incident.commands[0])


async def pause_and_resume(demo: Demo, incident: Incident) -> None:
    """The site forgives when nobody asks it any more; each run then goes on with its next attempt."""
    await demo.run(incident.commands[0])

    async def is_calm() -> bool:
        waits = [wait for run in incident.runs for wait in (await demo.client.run(run).describe()).waits_for]
        return all(wait.place is not None for wait in waits) and (demo.folder / shop.CALM.name).exists()

    await until("nobody asks the site", is_calm)
    await demo.run(incident.commands[1])
    await demo.all_have(incident.runs, sf.Status.COMPLETED)


async def start_anew(demo: Demo, incident: Incident) -> None:
    await demo.run(incident.commands[1])
    assert "welcome sent" in await demo.client.run(f"{incident.runs[0]}-b", str).result(timeout=SECONDS)


async def end(demo: Demo, incident: Incident) -> None:
    await demo.run(incident.commands[1])
    await demo.all_have(incident.runs, sf.Status.CANCELLED)


async def pause(demo: Demo, incident: Incident) -> None:
    """Its timer still fires, and its code doesn't run."""
    await demo.run(incident.commands[1])
    await demo.all_have(incident.runs, sf.Status.PAUSED)


async def forget(demo: Demo, incident: Incident) -> None:
    assert f"deleted {len(incident.runs)} " in await demo.run(incident.commands[1])

    async def has_room() -> bool:
        status = await demo.shell.data("status")
        return status["server"]["fullest"] < 0.8

    await until("the server has room", has_room)


MENDS = {
    1: deploy,
    2: run_again,
    3: complete,
    4: start_worker,
    5: drop,
    6: complete,
    7: complete,
    8: pause_and_resume,
    9: start_anew,
    10: pause,
    11: forget,
    12: end,
}


ROWS = {
    1: ("stuck", "order"),
    2: ("failed", "enrich"),
    4: ("queue", "gpu"),
    6: ("silent", "model"),
    12: ("stuck", "invoice_v1"),
}
"""Incidents that are in the list of what needs a person, as `kind` and `name`, until they are mended."""


async def test_twelve_incidents_are_mended_by_two_commands_each(tmp_path: Path, monkeypatch: Any) -> None:
    """In any order, and each without touching a run of another."""
    monkeypatch.chdir(tmp_path)
    async with demo(tmp_path) as running:
        before = await running.records()
        for number in random.sample(range(1, 13), 12):
            incident = running.incident(number)
            assert len(incident.commands) <= 2
            if number in ROWS:
                await until(f"{ROWS[number]} needs a person", lambda n=number: running.needs_a_person(*ROWS[n]))
            await running.says(incident)
            await MENDS[number](running, incident)
            if number in ROWS:
                await until(f"{ROWS[number]} needs nobody", lambda n=number: running.needs_nobody(*ROWS[n]))
            after = await running.records()
            own = {*incident.runs, *running.restless}
            started = {f"{incident.runs[0]}-b"} if number == 9 else set[str]()
            gone = set(incident.runs) if number == 11 else set[str]()
            assert (before.keys() - after.keys(), after.keys() - before.keys()) == (gone, started)
            changed = {run for run in before.keys() & after.keys() if before[run] != after[run]}
            assert changed - own == set(), incident.title
            before = after
            running.restless.difference_update(incident.runs)
        await until("nothing is wrong any more", lambda: is_healthy(running))


async def is_healthy(demo: Demo) -> bool:
    """Whether nothing is wrong any more. What has blocked a loop is named for ten minutes more."""
    sentences = (await demo.shell.data("status"))["health"]
    return {sentence["code"] for sentence in sentences} <= {"aof_off", "workflow_paused", "loop_blocked"}
