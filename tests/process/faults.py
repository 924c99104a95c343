"""Tools of the fault tests: daemon processes, a proxy that misbehaves on demand, and the audit of what is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from redis.asyncio import Redis, RedisCluster

import streamflow as sf
from bench.faults import Listening
from streamflow.daemon.takeover import fold_entry
from streamflow.events import StepCompleted, decode_history
from streamflow.machine.factory import rehydrate
from streamflow.model.attributes import value_text
from streamflow.model.record import Header, decode_header
from streamflow.model.reports import decode_details
from streamflow.model.sharding import Partition
from streamflow.store.connection import Call
from streamflow.store.keys import NamespaceKeys
from streamflow.views.shard_views import ShardViews
from tests.process import chaos_flows

ROOT = Path(__file__).parents[2]
FLOWS = Path(__file__).with_name("chaos_flows.py")


async def until(condition: Callable[[], Awaitable[bool]], what: str, seconds: float = 30.0) -> float:
    """Wait for a condition of other processes; gives the seconds that it took."""
    started = time.monotonic()
    while not await condition():
        assert time.monotonic() - started < seconds, f"not within {seconds:g} s: {what}"
        await asyncio.sleep(0.02)
    return time.monotonic() - started


async def has_reported(client: sf.Client, number: int) -> bool:
    """Whether a step's heartbeat with this number, or a larger one, is on the server."""
    keys = [client.keys.shard(shard).details for shard in range((await client.read_namespace()).shards)]
    stored = await client.store.send([Call.plain("HVALS", key) for key in keys])
    return any(msgspec.msgpack.decode(decode_details(one)[1]) >= number for found in stored for one in found)


class ServingProcess:
    """A `streamflow` command that serves until it is ended, with its log in a file."""

    def __init__(self, *words: str, url: str, namespace: str, log: Path, **environ: str) -> None:
        self.log = log
        command = [sys.executable, "-m", "streamflow", *words, "--redis", url, "--namespace", namespace]
        command += ["--log-format", "json"]
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                stdout=output,
                stderr=output,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def send_to_all(self, number: signal.Signals, *others: int) -> None:
        """To the process's whole group, and to others: as service managers do with all that they know of."""
        os.killpg(self.pid, number)
        for pid in others:
            os.kill(pid, number)

    def logged(self, text: str) -> bool:
        return text in self.log.read_text(errors="replace")

    async def wait(self, seconds: float = 20.0) -> int:
        return await asyncio.to_thread(self.process.wait, seconds)

    async def end(self) -> None:
        """With what its steps have forked: a pool that hangs would stay."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            await self.wait()


class DaemonProcess(ServingProcess):
    """A `streamflow daemon` with the chaos flows."""

    def __init__(self, url: str, namespace: str, log: Path, *, shards: int = 32, **environ: str) -> None:
        words = ("daemon", "--app", f"{FLOWS}:app", "--shards", str(shards))
        super().__init__(*words, url=url, namespace=namespace, log=log, **environ)


@dataclass
class Cluster:
    """The daemons of one test."""

    url: str
    namespace: str
    directory: Path
    shards: int = 32
    daemons: list[DaemonProcess] = field(default_factory=list)

    def start(self, url: str | None = None, **environ: str) -> DaemonProcess:
        log = self.directory / f"daemon-{len(self.daemons)}.log"
        daemon = DaemonProcess(url or self.url, self.namespace, log, shards=self.shards, **environ)
        self.daemons.append(daemon)
        return daemon

    async def owned(self) -> dict[int, int]:
        """Shards by the pid of the owner that their tokens name."""
        count: dict[int, int] = {}
        async with Redis.from_url(self.url, decode_responses=True) as redis:
            for shard in range(self.shards):
                holder: Any = await redis.hget(f"sf:{{{self.namespace}/{shard}}}:owner", "holder")
                if holder:
                    pid = int(holder.rsplit("-", 2)[1])
                    count[pid] = count.get(pid, 0) + 1
        return count

    async def shared_by(self, *daemons: DaemonProcess, seconds: float = 20.0) -> float:
        """Wait until exactly these daemons own all shards."""

        async def settled() -> bool:
            owned = await self.owned()
            return set(owned) == {daemon.pid for daemon in daemons} and sum(owned.values()) == self.shards

        return await until(settled, f"all shards owned by {[d.pid for d in daemons]}", seconds)


@contextlib.asynccontextmanager
async def cluster(url: str, namespace: str, directory: Path, shards: int = 32) -> AsyncGenerator[Cluster]:
    made = Cluster(url, namespace, directory, shards)
    try:
        yield made
    finally:
        for daemon in made.daemons:
            await daemon.end()


class Proxy:
    """A TCP proxy before the server. Faults are one-shot and counted, so that a test can prove that they took place.

    `drop_replies(n)`: the next n commits reach the server, and the connection is cut before the answer.
    `hold()`: the next commit is kept back until `let_go()`.
    """

    def __init__(self, target_port: int, commit_sha: str) -> None:
        self._target = target_port
        self._mark = commit_sha.encode()
        self._listening = Listening(self._serve)
        self._drop = 0
        self._hold = False
        self._released = asyncio.Event()
        self.dropped = 0
        self.holding = asyncio.Event()
        self.held_answers = bytearray()

    async def start(self) -> str:
        return f"redis://127.0.0.1:{await self._listening.start()}"

    async def stop(self) -> None:
        await self._listening.stop()

    def drop_replies(self, count: int) -> None:
        self._drop += count

    def hold(self) -> None:
        self._hold = True

    def let_go(self) -> None:
        self._released.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target)
        cut = asyncio.Event()
        watch: dict[str, bool] = {"held": False}
        up = asyncio.create_task(self._upstream(reader, server_writer, cut, watch))
        down = asyncio.create_task(self._downstream(server_reader, writer, cut, watch))
        try:
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            server_writer.transport.abort()  # first: `stop` may cancel this while it waits
            for one in (up, down):
                one.cancel()
            await asyncio.gather(up, down, return_exceptions=True)

    async def _upstream(
        self, reader: asyncio.StreamReader, server: asyncio.StreamWriter, cut: asyncio.Event, watch: dict[str, bool]
    ) -> None:
        while data := await reader.read(1 << 20):
            if self._mark in data and self._hold:
                self._hold = False
                watch["held"] = True
                self.holding.set()
                await self._released.wait()
            elif self._mark in data and self._drop:
                self._drop -= 1
                cut.set()
            server.write(data)
            await server.drain()

    async def _downstream(
        self, server: asyncio.StreamReader, writer: asyncio.StreamWriter, cut: asyncio.Event, watch: dict[str, bool]
    ) -> None:
        while data := await server.read(1 << 20):
            if cut.is_set():
                # The answer of a commit is here, so the commit has been executed; nobody gets to know.
                self.dropped += 1
                return
            if watch["held"]:
                self.held_answers += data
            writer.write(data)
            await writer.drain()


@dataclass
class Audit:
    """What is left on the server, checked against itself."""

    runs: dict[str, Header] = field(default_factory=dict)
    recorded_steps: int = 0
    poison: int = 0


async def audit(server: str | RedisCluster, namespace: str, shards: int, app: sf.App = chaos_flows.app) -> Audit:
    """No transition is lost, twice or out of order; listings by attribute have what the headers say, published values
    are the last ones; views equal a fold of the logs. Asserts; gives what it saw.

    Only for namespaces whose logs were never trimmed, when all runs have ended and the views have come to rest.
    """
    result = Audit()
    merged = ShardViews()
    redis: Any  # its answers are typed as bytes or text
    async with Redis.from_url(server) if isinstance(server, str) else server as redis:
        for shard in range(shards):
            prefix = f"sf:{{{namespace}/{shard}}}:"
            logged: dict[str, list[bytes]] = {}
            for _, fields in await redis.xrange(f"{prefix}log"):
                fold_entry(merged, fields)
                for run_id, data in fields.items():
                    logged.setdefault(run_id.decode(), []).append(data)
            result.poison += await redis.xlen(f"{prefix}poison")
            assert await redis.xlen(f"{prefix}inbox") == 0, f"shard {shard} has unreduced messages"
            assert await redis.zcard(f"{prefix}agenda") == 0, f"shard {shard} has runs on its agenda"
            listed: dict[str, set[str]] = {}
            keys = NamespaceKeys(namespace).shard(shard)
            pattern = prefix.replace("{", chr(92) + "{")
            async for key in redis.scan_iter(match=f"{pattern}index:attribute:*", count=1000):
                for member in await redis.zrange(key, 0, -1):
                    listed.setdefault(member.decode(), set()).add(key.decode())
            async for key in redis.scan_iter(match=f"{pattern}run:*", count=1000):
                run_id = key.decode().removeprefix(f"{prefix}run:")
                record = await redis.lrange(key, 0, -1)
                header = decode_header(record[0])
                transitions = record[2:]
                assert header.version == len(transitions), f"{run_id}: {header.version} != {len(transitions)}"
                assert logged.pop(run_id, []) == transitions, f"{run_id}: log and history differ"
                history = decode_history(transitions)
                machine = rehydrate(app, Partition.RUN, run_id, header, record[1], history)
                assert machine.diverged is None, str(machine.diverged)
                done = [
                    (event.seq, event.attempt)
                    for transition in history
                    for event in transition.events
                    if isinstance(event, StepCompleted)
                ]
                assert len(done) == len({seq for seq, _ in done}), f"{run_id}: a step completed twice"
                result.recorded_steps += len(done)
                result.runs[run_id] = header
                places = {keys.attribute(name, value_text(value)) for name, value in header.attributes.items()}
                assert listed.pop(run_id, set()) == places, f"{run_id}: attributes and listings differ"
                published = await redis.hgetall(keys.published(run_id))
                values = {name.decode(): msgspec.msgpack.decode(data) for name, data in published.items()}
                assert values == header.attributes, f"{run_id}: the chaos flows publish what they set as attributes"
            assert not listed, f"shard {shard}: listings by attribute have unknown runs: {sorted(listed)[:5]}"
            assert not logged, f"shard {shard}: the log has runs without a record: {sorted(logged)[:5]}"

        async def views_agree() -> bool:
            now = int(time.time() * 1000)
            expected = merged.render(now)
            for name in ("runs", "run_durations", "step_durations", "failures", "stuck", "causes", "quarantine"):
                stored = await redis.get(f"sf:{{{namespace}}}:view:{name}")
                if stored is None or msgspec.json.decode(stored)["value"] != msgspec.to_builtins(expected[name]):
                    return False
            return True

        await until(views_agree, "the stored views equal a fold of the logs", 15)
    return result
