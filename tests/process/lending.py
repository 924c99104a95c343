"""The attack on lent steps: hand-overs with faults at each moment, and what must be true of every execution afterwards.

A round starts runs with long steps, has a daemon join or leave, and stops one call of the hand-over at the line of the
daemon that makes it (`gates.py`). While it is held, a fault happens; then it goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import time
from collections.abc import AsyncGenerator, Awaitable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

import streamflow as sf
from bench.faults import Backup, port_of
from streamflow.embedded.server import EmbeddedServer
from streamflow.events import StepCompleted, StepFailed
from tests.process import lending_flows as flows
from tests.process.faults import ServingProcess, until
from tests.process.gates import Gate, Phase
from tests.process.lending_flows import TICK, Line, lines_of

SHARDS = 32
BEAT = 0.2
DEAD_AFTER = 1.0
GRACE = 2.0
SECONDS = 3.0
"""How long the steps take: longer than the grace, so that a daemon that leaves returns some."""
EXTRA = 2
MIXED, APART, RACING, DOOMED = 9, 3, 3, 3
"""Runs of a round."""
BODIES = MIXED * 4 + APART + RACING * 2 + DOOMED
WAIT = 45.0
MOMENT = 10.0
"""Seconds within which the moment of a fault comes; if not..."""
TRIES = 3
"""...the round is played again: rounds until it must have come."""
NOTICED = 2.0
"""Seconds until a daemon that was paused, or cut off, has noticed what it has lost; and a host, what nobody needs."""
FORGOTTEN = 0.7
"""Seconds of acknowledged writes that a server loses."""
AWAY = ("stop", "cut off")
"""Faults for which others take a daemon for dead that lives."""
SLACK = 0.15
"""Seconds between a moment and its line, on a busy machine, and between the clocks of server and test."""


@dataclass(frozen=True)
class Scenario:
    """`trigger`: join or leave. `verb`: the call of the hand-over that is held. `fault`: what happens meanwhile, to
    whom of lender, owner, both and server. `late`: the held call goes on, else its connection is closed."""

    trigger: str
    verb: str
    phase: Phase
    fault: str
    victim: str
    late: bool = True

    def __str__(self) -> str:
        words = f"{self.trigger}: {self.verb} {self.phase}, {self.fault} {self.victim}"
        return words if self.late else f"{words}, not sent"


@dataclass
class Fault:
    """What may cost executions: of the daemon `pid`, or of all (0), from `began` to `ended` (monotonic s)."""

    kind: str
    pid: int
    began: float
    ended: float = 0.0


class Member(ServingProcess):
    """A daemon behind a gate."""

    def __init__(self, gate: Gate, namespace: str, log: Path) -> None:
        self.gate = gate
        words = ["daemon", "--app", f"{flows.__file__}:app", "--shards", str(SHARDS), "--beat", str(BEAT)]
        words += ["--dead-after", str(DEAD_AFTER), "--grace", str(GRACE), "--processes", "8", "--threads", "32"]
        super().__init__(*words, url=gate.url, namespace=namespace, log=log)

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None


@dataclass
class Attack:
    server: EmbeddedServer
    namespace: str
    directory: Path
    client: sf.Client
    members: list[Member] = field(default_factory=list[Member])
    faults: list[Fault] = field(default_factory=list[Fault])
    round: int = 0
    lent: int = 0
    """Rounds in which a step was lent, by the logs."""
    _logged: dict[Path, int] = field(default_factory=dict[Path, int])

    @property
    def journal(self) -> Path:
        return self.directory / f"journal-{self.round}"

    @property
    def alive(self) -> list[Member]:
        return [member for member in self.members if member.is_running]

    # --- daemons ------------------------------------------------------------------------------------------------------

    async def start(self, *, waits: bool = False) -> Member:
        """`waits`: it gets no connection until its gate serves."""
        gate = Gate(port_of(self.server.url))
        if waits:
            gate.serves.clear()
        await gate.open()
        member = Member(gate, self.namespace, self.directory / f"daemon-{len(self.members)}.log")
        self.members.append(member)
        return member

    async def settle(self, count: int = 2) -> None:
        """So many daemons own all shards, and no other one is there."""
        staying = [member for member in self.alive if not self._is_leaving(member)]
        for member in staying[count:]:
            self._leaves(member)
        while len(staying) < count:
            staying.append(await self.start())
        expected = {member.pid for member in staying[:count]}

        async def settled() -> bool:
            owners = await self._owners()
            are_alone = {member.pid for member in self.alive} == expected
            return are_alone and set(owners) == expected and sum(owners.values()) == SHARDS

        await until(settled, f"all shards are owned by {expected}", 20)

    async def _owners(self) -> dict[int, int]:
        """Shards by the pid of their owner."""
        count: dict[int, int] = {}
        redis: Any
        async with Redis.from_url(self.server.url, decode_responses=True) as redis:
            pipeline = redis.pipeline(transaction=False)
            for shard in range(SHARDS):
                pipeline.hget(f"sf:{{{self.namespace}/{shard}}}:owner", "holder")
            for holder in await pipeline.execute():
                if holder:
                    pid = int(holder.rsplit("-", 2)[1])
                    count[pid] = count.get(pid, 0) + 1
        return count

    async def end(self) -> None:
        await asyncio.gather(*(member.end() for member in self.members))
        await asyncio.gather(*(member.gate.close() for member in self.members))

    # --- faults -------------------------------------------------------------------------------------------------------

    def _leaves(self, member: Member) -> None:
        now = time.monotonic()
        self.faults.append(Fault("leave", member.pid, now, now + GRACE))  # then it returns what still runs
        member.send(signal.SIGTERM)

    async def _do(self, kind: str, victims: list[Member]) -> None:
        began = time.monotonic()
        faults = [Fault(kind, member.pid, began) for member in victims]
        match kind:
            case "kill":
                for member in victims:
                    member.send(signal.SIGKILL)
            case "kill all of":  # with the process beside it, which would report the death
                for member in victims:
                    member.send_to_all(signal.SIGKILL)
            case "stop for a moment" | "stop":
                for member in victims:
                    member.send(signal.SIGSTOP)
                await asyncio.sleep(DEAD_AFTER * (2.0 if kind == "stop" else 0.4))
                for member in victims:
                    member.send(signal.SIGCONT)
            case "cut":
                await asyncio.gather(*(member.gate.cut() for member in victims))
                faults = []  # costs nothing
            case "cut off":
                await asyncio.gather(*(member.gate.cut(2.0 * DEAD_AFTER) for member in victims))
            case "unreachable":
                await asyncio.gather(*(member.gate.cut(2.0 * DEAD_AFTER) for member in self.alive))
                faults = []
            case "delay":
                await asyncio.sleep(1.5 * DEAD_AFTER)
                faults = []
            case "restart" | "down":
                await self.server.kill()
                if kind == "down":
                    await asyncio.sleep(2.0 * DEAD_AFTER)
                await self.server.start()
                faults = [Fault("restart", 0, began)]
            case "pause":
                os.kill(self.server.pid, signal.SIGSTOP)
                await asyncio.sleep(2.0 * DEAD_AFTER)
                os.kill(self.server.pid, signal.SIGCONT)
                faults = []
            case other:
                raise AssertionError(other)
        for fault in faults:
            fault.ended = time.monotonic()
        self.faults += faults

    async def _forget(self, holder: Member) -> None:
        """The held call takes effect and is acknowledged, and then the server loses that, with what came after it."""
        backup = Backup(self.server)
        began = time.monotonic()
        holder.gate.let_go()
        await asyncio.sleep(FORGOTTEN)
        assert await backup.restore() > 0, "the server has lost something"
        self.faults.append(Fault("forget", 0, began, time.monotonic()))

    # --- a round ------------------------------------------------------------------------------------------------------

    async def play(self, scenario: Scenario) -> None:
        """A round; raises `AssertionError` if anything is wrong afterwards, or the fault didn't take place."""
        for _ in range(TRIES):
            if await self._play(scenario):
                return
        raise AssertionError(f"no daemon has called {scenario.verb}")

    async def _play(self, scenario: Scenario) -> bool:
        """False if the moment didn't come: sometimes a newcomer gets no shard, or none with a step that runs."""
        await self._begin()
        first, second = self.alive
        lenders, owner = [first], second
        if scenario.trigger == "join":
            lenders, owner = [first, second], await self.start(waits=True)
        runs = await self._start_runs()
        if scenario.trigger == "join":
            owner.gate.serves.set()
        else:
            self._leaves(first)
        holders = [owner] if scenario.verb in ("acquire_shard", "commit") else lenders
        if scenario.verb == "commit" and await self._hit(holders, "acquire_shard", Phase.AFTER, ""):  # not one before
            owner.gate.let_go()
        holder = await self._hit(
            holders, scenario.verb, scenario.phase, "" if scenario.verb == "acquire_shard" else self._prefix
        )
        if holder is None:
            await self._talk(runs)
            await self._finish(runs)
            return False
        lender = holder if holder in lenders else first
        victims = {"lender": [lender], "owner": [owner], "both": [lender, owner], "server": []}[scenario.victim]
        if scenario.fault == "forget":
            await self._forget(holder)
            await self._talk(runs)  # not before: what it has acknowledged would be gone
        else:
            talk = asyncio.create_task(self._talk(runs))
            await self._do(scenario.fault, victims)
            holder.gate.let_go(drop=not scenario.late)
            await talk
        await self._finish(runs)
        return True

    async def storm(self, rng: random.Random, events: int = 6) -> None:
        """A round in which daemons join, leave, die and pause one after the other, whatever the others are doing."""
        await self._begin()
        spare = [await self.start(waits=True) for _ in range(events // 2)]
        runs = await self._start_runs()
        talk = asyncio.create_task(self._talk(runs))
        for _ in range(events):
            serving = [member for member in self.alive if member not in spare and not self._is_leaving(member)]
            kind = rng.choice(("join", "leave", "kill", "kill all of", "stop", "stop for a moment", "cut", "cut off"))
            if spare and (kind == "join" or len(serving) == 1):
                spare.pop().gate.serves.set()
            elif kind in ("join", "leave"):
                self._leaves(rng.choice(serving))
            else:
                await self._do(kind, [rng.choice(serving)])
            await asyncio.sleep(rng.uniform(0.1, 0.8))
        for member in spare:
            member.gate.serves.set()
        await talk
        await self._finish(runs)

    async def _begin(self) -> None:
        self.round += 1
        await self.settle()
        self._logged = {member.log: member.log.stat().st_size for member in self.members}

    @property
    def _prefix(self) -> str:
        """Of the ids of the runs of this round."""
        return f"r{self.round}-"

    async def _finish(self, runs: dict[str, sf.Run[Any]]) -> None:
        """All runs end as they should, leave nothing behind, and their steps were executed as they may be."""
        while len([member for member in self.alive if not self._is_leaving(member)]) < 2:
            await self.start()
        await self._check_results(runs)
        deadline = time.monotonic() + 15.0
        while left := await self._left():
            assert time.monotonic() < deadline, f"left behind: {left}"
            await asyncio.sleep(0.1)
        await self._is_quiet()
        said = "".join(
            member.log.read_text(errors="replace")[self._logged.get(member.log, 0) :] for member in self.members
        )
        self.lent += any(f"; {n} steps of theirs go on here" in said for n in range(1, BODIES))
        await judge(self.journal, self.faults, runs)

    def _is_leaving(self, member: Member) -> bool:
        return any(fault.kind == "leave" and fault.pid == member.pid for fault in self.faults)

    async def _hit(self, members: list[Member], verb: str, phase: Phase, text: str) -> Member | None:
        """Wait until one of them makes this call; None if none does."""
        for member in members:
            member.gate.arm(verb, phase, text)
        waiting = {asyncio.create_task(member.gate.hit.wait()): member for member in members}
        done, rest = await asyncio.wait(waiting, timeout=MOMENT, return_when=asyncio.FIRST_COMPLETED)
        for task in rest:
            task.cancel()
        found = waiting[done.pop()] if done else None
        for member in members:
            if member is not found:
                member.gate.let_go()
        return found

    async def _start_runs(self) -> dict[str, sf.Run[Any]]:
        """Start the runs of a round, and wait until all their steps have begun."""
        client, journal, prefix = self.client, str(self.journal), self._prefix

        async def begun(starts: list[Awaitable[sf.Run[Any]]], bodies: int) -> None:
            runs.update({run.id: run for run in await asyncio.gather(*starts)})

            async def all_begun() -> bool:
                return sum(line.what == "begin" for line in lines_of(self.journal)) >= bodies

            await until(all_begun, "all steps have begun", 20)

        runs: dict[str, sf.Run[Any]] = {}
        # Those in processes first: a process takes a while to start.
        apart = [client.start(flows.apart, journal, SECONDS, id=f"{prefix}apart-{n}") for n in range(APART)]
        await begun([*apart], APART)
        mixed = [client.start(flows.mixed, journal, SECONDS, EXTRA, id=f"{prefix}mixed-{n}") for n in range(MIXED)]
        racing = [client.start(flows.racing, journal, SECONDS, id=f"{prefix}racing-{n}") for n in range(RACING)]
        doomed = [client.start(flows.doomed, journal, id=f"{prefix}doomed-{n}") for n in range(DOOMED)]
        await begun([*mixed, *racing, *doomed], BODIES)
        return runs

    async def _talk(self, runs: dict[str, sf.Run[Any]]) -> None:
        """Signals and cancels, while the steps of these runs are lent."""
        for number in range(EXTRA):
            await asyncio.gather(*(run.signal("extra", number) for name, run in runs.items() if "mixed" in name))
        await asyncio.gather(*(run.cancel("not needed") for name, run in runs.items() if "doomed" in name))

    async def _check_results(self, runs: dict[str, sf.Run[Any]]) -> None:
        for run_id, run in runs.items():
            if "doomed" in run_id:
                with contextlib.suppress(sf.RunCancelled):
                    await run.result(timeout=WAIT)
                    raise AssertionError(f"{run_id} was not cancelled")
                continue
            result = await run.result(timeout=WAIT)
            if "mixed" in run_id:
                assert result == flows.result_of_mixed(SECONDS, EXTRA), f"{run_id}: {result}"
            else:
                assert result == ["separate" if "apart" in run_id else "winner", "last"], f"{run_id}: {result}"

    async def _left(self) -> list[str]:
        """What is left of records of steps, their details, messages and due times."""
        redis: Any
        found = list[str]()
        async with Redis.from_url(self.server.url, decode_responses=True) as redis:
            for shard in range(SHARDS):
                prefix = f"sf:{{{self.namespace}/{shard}}}:"
                for name in ("steps", "details"):
                    fields = await redis.hgetall(prefix + name)
                    found += [f"{name} {field}: {value}" for field, value in fields.items()]
                for name in ("inbox", "poison"):
                    found += [f"{name} {fields}" for _, fields in await redis.xrange(prefix + name)]
                found += [f"agenda {run_id}" for run_id in await redis.zrange(f"{prefix}agenda", 0, -1)]
        return [item for item in found if self._prefix in item]

    async def _is_quiet(self) -> None:
        """No body goes on whose outcome nobody needs."""
        deadline = time.monotonic() + NOTICED + 1.0 + SECONDS  # a thread that was cut off ends by itself
        while True:
            size = self.journal.stat().st_size
            await asyncio.sleep(4 * TICK)
            if self.journal.stat().st_size == size:
                return
            if time.monotonic() > deadline:
                line = lines_of(self.journal)[-1]
                raise AssertionError(f"step {line.step} of run {line.run} still runs at daemon {line.daemon}")


@contextlib.asynccontextmanager
async def attack(namespace: str, directory: Path) -> AsyncGenerator[Attack]:
    async with EmbeddedServer(directory / "data") as server, sf.connect(server.url, namespace=namespace) as client:
        made = Attack(server, namespace, directory, client)
        try:
            yield made
        finally:
            await made.end()


# --- the judgement ----------------------------------------------------------------------------------------------------


@dataclass
class Execution:
    """One execution of a step's body, by its lines."""

    run: str
    seq: int
    step: str
    attempt: int
    daemon: int
    lines: list[Line]

    @property
    def began(self) -> float:
        return self.lines[0].at

    @property
    def last(self) -> float:
        """When it said something for the last time."""
        return self.lines[-1].at

    @property
    def end(self) -> str:
        """How it ended; empty if its process has died, or it was killed."""
        return self.lines[-1].what if self.lines[-1].what in ("end", "failed", "stopped") else ""

    @property
    def is_task(self) -> bool:
        return self.step not in ("block", "separate")

    def __str__(self) -> str:
        return (
            f"{self.step} of {self.run} (attempt {self.attempt}, at {self.daemon}) from {self.began:.2f} to "
            f"{self.last:.2f} ({self.end or 'cut off'})"
        )


def executions_of(journal: Path) -> dict[tuple[str, int], list[Execution]]:
    """By run and number, in the order in which they began."""
    by_id: dict[tuple[int, int, str, int], list[Line]] = {}
    for line in lines_of(journal):
        by_id.setdefault((line.pid, line.execution, line.run, line.seq), []).append(line)
    found: dict[tuple[str, int], list[Execution]] = {}
    for lines in sorted(by_id.values(), key=lambda lines: lines[0].at):
        first = lines[0]
        assert first.what == "begin"
        execution = Execution(first.run, first.seq, first.step, first.attempt, first.daemon, lines)
        found.setdefault((first.run, first.seq), []).append(execution)
    return found


async def judge(journal: Path, faults: list[Fault], runs: dict[str, sf.Run[Any]]) -> None:
    """Raises `AssertionError` with all that is wrong."""
    executions = executions_of(journal)
    wrong = list[str]()
    offset = time.time() - time.monotonic()
    for run_id, run in runs.items():
        recorded: dict[int, tuple[float, int]] = {}
        async for at, event in run.events():
            if isinstance(event, StepCompleted | StepFailed):
                assert event.seq not in recorded, f"{run_id}: step {event.seq} was recorded twice"
                recorded[event.seq] = at.timestamp() - offset, event.attempt
        for (of, seq), found in executions.items():
            if of == run_id:
                wrong += judge_call(found, faults, recorded.get(seq))
    assert not wrong, "\n".join(wrong + [str(fault) for fault in faults])


def judge_call(found: list[Execution], faults: list[Fault], recorded: tuple[float, int] | None) -> Iterable[str]:
    if recorded is not None:
        at, attempt = recorded
        for execution in found:
            if execution.began > at + SLACK and not _was_away(execution, faults):
                yield f"begun after its outcome was recorded at {at:.2f}: {execution}"
        if not any(execution.attempt == attempt for execution in found):
            yield f"the recorded attempt {attempt} was not executed: {found[-1]}"
    for before, after in itertools.pairwise(found):
        is_retry = before.end == "failed" and after.attempt == before.attempt + 1
        if _was_away(after, faults):
            continue  # it was due there before, and begins when the daemon wakes
        if not is_retry and not _is_excused(before, after, faults):
            yield f"executed again for no reason:\n  {before}\n  {after}"
        if after.began < before.last - _linger(before) and not _was_away(before, faults):
            yield f"executed twice at the same time:\n  {before}\n  {after}"
        if after.attempt < before.attempt and not _is_forgotten(before, after, faults):
            yield f"an older attempt after a newer one:\n  {before}\n  {after}"
        if before.step == "count":
            kept = max(line.done for line in before.lines)
            if after.lines[0].done > kept:
                yield f"details that were never reported: {after.lines[0].done} > {kept}\n  {before}\n  {after}"


def _is_excused(before: Execution, after: Execution, faults: list[Fault]) -> bool:
    """Something has happened to the daemon that executed it, since it began and before the next execution; or before,
    if it was noticed later. Of an attempt between them that has left no line nobody knows which daemon had it."""
    is_any = after.attempt > before.attempt + 1
    return any(
        (is_any or fault.pid in (0, before.daemon))
        and fault.began <= after.began
        and before.began - SLACK <= max(fault.began, fault.ended + (NOTICED if fault.kind in AWAY else 0.0))
        for fault in faults
        if fault.kind != "stop for a moment"
    )


def _is_forgotten(before: Execution, after: Execution, faults: list[Fault]) -> bool:
    """The server has lost writes in between: attempts begin again under the numbers that it has."""
    return any(fault.kind == "forget" and before.began <= fault.ended <= after.began + SLACK for fault in faults)


def _linger(execution: Execution) -> float:
    """Seconds for which a body may go on that was stopped: a thread until it looks, a process until it is killed."""
    return SLACK if execution.is_task else SLACK + 2 * TICK if execution.step == "block" else 1.5


def _was_away(execution: Execution, faults: list[Fault]) -> bool:
    """Its daemon was paused or cut off at that time: then another one may execute it, and this one learns of it later.
    See docs/guarantees.md."""
    return any(
        fault.pid == execution.daemon
        and fault.kind in (*AWAY, "stop for a moment")
        and fault.began - SLACK <= execution.last
        and execution.began <= fault.ended + NOTICED
        for fault in faults
    )


VERBS = ("release_shard", "acquire_shard", "commit", "extend_steps", "report_step")
FAULTS = [
    *((fault, victim) for fault in ("kill", "kill all of", "stop", "cut") for victim in ("lender", "owner", "both")),
    *((fault, victim) for fault in ("stop for a moment", "cut off") for victim in ("lender", "owner")),
    *((fault, "server") for fault in ("delay", "unreachable", "restart", "down", "pause", "forget")),
]


def scenarios() -> list[Scenario]:
    """All of them."""
    return [
        Scenario(trigger, verb, phase, fault, victim, late)
        for trigger in ("join", "leave")
        for verb in VERBS
        for phase in Phase
        for fault, victim in FAULTS
        for late in (True, False)
        if fault != "forget" or (phase is Phase.BEFORE and late)  # it has a moment of its own
    ]
