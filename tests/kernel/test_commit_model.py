"""The kernel against a model in dictionaries: any sequence of calls, with duplicates at random, keeps the two equal.

The model has the promises, not the scripts: a commit is all or nothing, an answer is the same when a call is sent
again, and only the last owner's token writes.
"""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from typing import Any

import anyio
import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamflow.embedded.server import EmbeddedServer
from streamflow.model.record import decode_header
from streamflow.store.connection import Call
from streamflow.store.kernel import FRESH, Batch, Message, Put, Reply, RunWrite, Send, Start
from streamflow.store.node import Node
from tests.kernel.conftest import fake_store
from tests.kernel.support import NOTE, NOW, Shard, next_header

RUNS = ("a", "b", "c")
NAMES = itertools.count()
OPEN = ("pending", "running", "stuck")


# --- commands ---------------------------------------------------------------------------------------------------------


class Begin(msgspec.Struct, frozen=True):
    """Start runs. `resend`: so many times the same call once more; so in every command."""

    runs: tuple[str, ...]
    resend: int


class Post(msgspec.Struct, frozen=True):
    runs: tuple[str, ...]
    resend: int


class Commit(msgspec.Struct, frozen=True):
    """`stale`: expect a header that a run doesn't have. `late`: with the token of the owner before. `tag`: an attribute
    that the runs get, None for none. `put`: each of the runs publishes. `fresh`: their records begin again."""

    runs: dict[str, str]
    tag: str | None
    put: bool
    fresh: bool
    acks: int
    plans: dict[str, int | None]
    sends: int
    sent: int
    stale: bool
    late: bool
    resend: int


class Fire(msgspec.Struct, frozen=True):
    wait: int
    late: bool


class Forget(msgspec.Struct, frozen=True):
    """`known`: with the header that it has now, else with that of an earlier run of the same id."""

    runs: tuple[str, ...]
    known: bool
    resend: int


class Acquire(msgspec.Struct, frozen=True):
    resend: int


some_runs = st.lists(st.sampled_from(RUNS), min_size=1, max_size=3, unique=True).map(tuple)
resends = st.sampled_from((0, 0, 1, 2))
rarely = st.sampled_from((False, False, False, True))
statuses = st.sampled_from(("running", "running", "stuck", "completed", "failed", "cancelled"))
due = st.one_of(st.none(), st.just(-1), st.integers(0, 50))
commands = st.one_of(
    st.builds(Begin, some_runs, resends),
    st.builds(Post, some_runs, resends),
    st.builds(
        Commit,
        runs=st.dictionaries(st.sampled_from(RUNS), statuses, max_size=3),
        tag=st.sampled_from((None, "x", "y")),
        put=st.booleans(),
        fresh=rarely,
        acks=st.integers(0, 3),
        plans=st.dictionaries(st.sampled_from(RUNS), due, max_size=2),
        sends=st.integers(0, 2),
        sent=st.integers(0, 2),
        stale=rarely,
        late=rarely,
        resend=resends,
    ),
    st.builds(Fire, st.integers(0, 30), rarely),
    st.builds(Forget, some_runs, st.booleans(), resends),
    st.builds(Acquire, resends),
)


# --- the model --------------------------------------------------------------------------------------------------------


class Model(msgspec.Struct):
    """`messages` and `outbox` are in order; `records` are header, then the commits that made the transitions."""

    records: dict[str, list[bytes]] = {}
    running: dict[str, int] = {}
    messages: list[tuple[str, str]] = []
    agenda: dict[str, int] = {}
    outbox: list[str] = []
    log: list[list[str]] = []
    listings: dict[str, dict[str, int]] = {}
    tagged: dict[str, list[str]] = {}
    published: dict[str, dict[bytes, bytes]] = {}
    token: str = ""
    clock: int = 0


class Differential:
    """Runs commands on both, compares every answer and then all state."""

    def __init__(self, shard: Shard, answers: Counter[str]) -> None:
        self.shard = shard
        self.model = Model()
        self.answers = answers
        self.now = NOW
        self.numbers = itertools.count(1)
        self.tokens = ["1:nobody"]
        self.forgotten: dict[str, bytes] = {}

    async def send(self, call: Call[Any], resend: int) -> list[Any]:
        """The answers to the call and to its repetitions, one after the other."""
        return [await self.shard.do(call) for _ in range(1 + resend)]

    async def run(self, command: Any) -> None:
        self.now += 1
        await getattr(self, type(command).__name__.lower())(command)
        assert await self.stored() == self.model

    async def begin(self, command: Begin) -> None:
        starts = [Start(run, "flow", "", b"") for run in command.runs]
        answers = await self.send(self.shard.kernel.start_runs(0, starts, self.now), command.resend)
        model = self.model
        clock = max(self.now, model.clock)
        expected: list[bytes] = []
        for run in command.runs:
            if run in model.records:
                expected.append(model.records[run][0])
            else:
                model.records[run] = [f"pending 0 - {clock} 0 flow - -".encode(), b""]
                expected.append(b"+" + model.records[run][0])
                model.listings.setdefault("running", {})[run] = clock
                model.messages.append(("start", run))
        assert answers[0] == expected
        assert all(again == [model.records[run][0] for run in command.runs] for again in answers[1:])
        self.answers.update("created" if header.startswith(b"+") else "known" for header in expected)

    async def post(self, command: Post) -> None:
        messages = [Message("signal", run, b"") for run in command.runs]
        call = self.shard.kernel.post_messages(0, "client", next(self.numbers), messages, self.now)
        answers = await self.send(call, command.resend)
        expected = "".join(map(self.letter, command.runs))
        assert answers == [expected] * len(answers)
        self.model.messages += [
            ("signal", run) for run, letter in zip(command.runs, expected, strict=True) if letter == "a"
        ]
        self.answers.update(expected)

    def letter(self, run: str) -> str:
        record = self.model.records.get(run)
        return "m" if record is None else "a" if decode_header(record[0]).status in OPEN else "e"

    async def commit(self, command: Commit) -> None:
        model, number = self.model, next(self.numbers)
        batch = Batch(f"c{number}")
        conflicts: list[str] = []
        for run, status in command.runs.items():
            known = model.records.get(run, [b"pending 0 - 1 0 flow - -"])[0]
            expected = known + b"!" if command.stale else known
            if command.stale or run not in model.records:
                conflicts.append(run)
            old = decode_header(known)
            tags = {} if command.tag is None else {"tag": command.tag}
            header = msgspec.structs.replace(
                decode_header(next_header(known, status, batch.commit)), attributes=tags
            ).encode()
            batch.runs.append(RunWrite(run, expected, header, FRESH if command.fresh else b"", NOTE))
            if tags != old.attributes:
                batch.moves.append((run, self.place(old.attributes), self.place(tags), self.now))
            if command.put:
                batch.puts.append(Put(self.shard.keys.published(run), "last", batch.commit.encode()))
            source, target = self.listing(old.status), self.listing(status)
            if source != target:
                keys = self.shard.keys
                batch.moves.append((run, keys.index(source, "flow"), keys.index(target, "flow"), self.now))
        entries = await self.shard.stream(self.shard.keys.inbox)
        batch.acks = [entry for entry, _ in entries[: command.acks]]
        batch.plans = [(run, due if due is None or due < 0 else self.now + due) for run, due in command.plans.items()]
        batch.sends = [Send(f"{number}-{n}", b"") for n in range(1, command.sends + 1)]
        batch.sent = model.outbox[: command.sent]
        token = self.tokens[-2] if command.late and len(self.tokens) > 1 else self.tokens[-1]
        call = self.shard.kernel.commit(0, token, batch, self.now)
        first, *again = await self.send(call, command.resend)
        self.answers.update(answer.code for answer in (first, *again))

        if token != model.token:
            assert {answer.code for answer in (first, *again)} == {Reply.FENCED}
            assert first.conflicts == [model.token]
        elif conflicts:
            assert {answer.code for answer in (first, *again)} == {Reply.CONFLICT}
            assert first.conflicts == conflicts
        else:
            assert (first.code, first.clock) == (Reply.OK, max(self.now, model.clock))
            assert {answer.code for answer in again} <= {Reply.DUP}
            assert all((answer.clock, answer.entry) == (first.clock, first.entry) for answer in again)
            self.apply(batch, first.clock)

    def place(self, attributes: dict[str, Any]) -> str:
        return self.shard.keys.attribute("tag", attributes["tag"]) if attributes else ""

    def apply(self, batch: Batch, clock: int) -> None:
        model = self.model
        for write in batch.runs:
            record = model.records[write.run_id]
            record[:] = [write.header, b"", *(() if write.state else record[2:]), write.transition]
        if batch.runs:
            model.log.append([write.run_id for write in batch.runs])
        for run, source, target, score in batch.moves:
            if ":attribute:" in source + target:
                if source:
                    model.tagged[source[-1]].remove(run)
                if target:
                    model.tagged.setdefault(target[-1], []).append(run)
            else:
                model.listings[source.split(":")[-2]].pop(run, None)
                model.listings.setdefault(target.split(":")[-2], {})[run] = score
        for put in batch.puts:
            model.published[put.key.rpartition(":")[2]] = {put.field.encode(): put.value}
        del model.messages[: len(batch.acks)]
        for run, score in batch.plans:
            model.agenda.pop(run, None)
            if score is not None:
                model.agenda[run] = score
        model.outbox = [number for number in model.outbox if number not in batch.sent]
        model.outbox += [send.number for send in batch.sends]
        model.clock = clock

    @staticmethod
    def listing(status: str) -> str:
        return "running" if status == "pending" else status

    async def fire(self, command: Fire) -> None:
        model = self.model
        self.now += command.wait
        token = self.tokens[-2] if command.late and len(self.tokens) > 1 else self.tokens[-1]
        fired = await self.shard.do(self.shard.kernel.due_runs(0, token, 10, self.now))
        self.answers[f"fire {fired.code}"] += 1
        if token != model.token:
            assert fired.code is Reply.FENCED
            return
        waiting = sorted((score, run) for run, score in model.agenda.items() if score >= 0)
        assert fired.code is Reply.OK
        assert fired.due == [run for score, run in waiting if score <= self.now]
        assert fired.next == next((score for score, _ in waiting if score > self.now), None)
        self.answers["fire due" if fired.due else "fire nothing"] += 1

    async def forget(self, command: Forget) -> None:
        model = self.model
        last = f"completed 9 x {NOW} {NOW} flow - -".encode()
        headers = {
            run: model.records[run][0] if command.known and run in model.records else self.forgotten.get(run, last)
            for run in command.runs
        }
        call = self.shard.kernel.forget_runs(0, [(run, decode_header(header)) for run, header in headers.items()])
        first, *again = await self.send(call, command.resend)
        forgotten = [
            run
            for run, header in headers.items()
            if run in model.records and model.records[run][0] == header and decode_header(header).status not in OPEN
        ]
        assert first == len(forgotten)
        assert set(again) <= {0}
        for run in forgotten:
            self.forgotten[run] = model.records.pop(run)[0]
            header = decode_header(self.forgotten[run])
            model.clock = max(model.clock, header.ended + 1)
            model.listings[header.status].pop(run)
            model.published.pop(run, None)
            for tag in header.attributes.values():
                model.tagged[str(tag)].remove(run)
        self.answers["forgotten" if forgotten else "kept"] += 1

    async def acquire(self, command: Acquire) -> None:
        model, nonce = self.model, f"n{next(self.numbers)}"
        call = self.shard.kernel.acquire_shard(0, model.token, nonce, "member", self.now)
        answers = await self.send(call, command.resend)
        epoch = int(model.token.partition(":")[0] or 0)
        model.clock = max(model.clock, self.now)
        model.token = f"{max(epoch + 1, model.clock)}:{nonce}"
        assert {answer.token for answer in answers} == {model.token}
        self.tokens.append(model.token)

    async def stored(self) -> Model:
        """All that the server has, in the model's words."""
        shard, stored = self.shard, Model()
        names = await shard.key_names()
        for key in names:
            if key.startswith(shard.keys.run_prefix):
                stored.records[key.removeprefix(shard.keys.run_prefix)] = await shard.record(
                    key.removeprefix(shard.keys.run_prefix)
                )
            elif ":published:" in key:
                stored.published[key.rpartition(":")[2]] = await shard.plain("HGETALL", key)
            elif ":index:attribute:" in key:
                stored.tagged[key[-1]] = sorted(await shard.listed(key))
            elif ":index:" in key:
                stored.listings[key.split(":")[-2]] = await shard.listed(key)
        stored.messages = [(fields["kind"].decode(), fields["run"].decode()) for fields in await shard.inbox()]
        stored.agenda = await shard.listed(shard.keys.agenda)
        stored.outbox = [number for number, _ in await shard.stream(shard.keys.outbox)]
        stored.log = [list(fields) for _, fields in await shard.stream(shard.keys.log)]
        owner = await shard.owner()
        stored.token, stored.clock = owner.get("token", ""), int(owner.get("clock", 0))
        self.model.tagged = {tag: sorted(runs) for tag, runs in self.model.tagged.items() if runs}
        self.model.listings = {status: runs for status, runs in self.model.listings.items() if runs}
        return stored


async def play(store: Node, script: list[Any], answers: Counter[str]) -> None:
    shard = Shard(store, f"model{next(NAMES)}")
    try:
        differential = Differential(shard, answers)
        await differential.run(Begin(RUNS[:2], 0))
        await differential.run(Acquire(0))
        for command in script:
            await differential.run(copy.deepcopy(command))
        await shard.assert_only_known_keys()
    finally:
        await shard.plain("DEL", "-", *await shard.key_names())
        await store.close()


EVERY_ANSWER = {
    *("created", "known"),
    *("a", "e", "m"),
    *("OK", "DUP", "CONFLICT", "FENCED"),
    *("fire OK", "fire FENCED", "fire due", "fire nothing"),
    *("forgotten", "kept"),
}

common = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def test_any_sequence_of_calls_keeps_the_server_equal_to_the_model() -> None:
    answers: Counter[str] = Counter()

    @settings(common, max_examples=120)
    @given(st.lists(commands, min_size=5, max_size=25))
    def examples(script: list[Any]) -> None:
        async def main() -> None:
            await play(fake_store(), script, answers)

        anyio.run(main)

    examples()
    assert set(answers) == EVERY_ANSWER


def test_a_real_server_agrees_with_the_model_too(server: EmbeddedServer) -> None:
    answers: Counter[str] = Counter()

    @settings(common, max_examples=30)
    @given(st.lists(commands, min_size=10, max_size=25))
    def examples(script: list[Any]) -> None:
        async def main() -> None:
            await play(Node(server.url), script, answers)

        anyio.run(main)

    examples()
    assert answers.keys() >= {"OK", "DUP", "CONFLICT", "FENCED"}
