"""The header of each script is held against the method that fills its KEYS and ARGV, name by name.

Every method is called with values that are their own names (`<run_id>`), and the header must have these names in order.
The table of verbs in `lua/README.md` is held against the headers and the callers.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from unittest.mock import ANY

import msgspec
import pytest

import streamflow
from streamflow.model.record import Header
from streamflow.model.sharding import Partition
from streamflow.store.connection import Call
from streamflow.store.kernel import (
    SCHEMA,
    WORKERS,
    Attempt,
    Batch,
    ChunkBatch,
    ClaimRef,
    Delivery,
    Holder,
    Kernel,
    LentStep,
    LogLimits,
    Message,
    OnceMessage,
    Poison,
    Put,
    Reply,
    RunWrite,
    Send,
    Settlement,
    Start,
)
from streamflow.store.keys import NamespaceKeys
from streamflow.store.scripts import load_scripts, lua_directory
from tests.kernel.queue import OF_QUEUES

README = lua_directory() / "README.md"
PACKAGE = Path(streamflow.__file__).parent

KEYS = NamespaceKeys("ns")
SHARD = KEYS.shard(0)
QUEUE = KEYS.queue("gpu", 3)
KERNEL: Any = Kernel(KEYS)
"""Untyped: the tests pass texts where a method wants numbers, to find them again."""

HEADER = Header("completed", 3, "c", 1, 2, "<workflow>", "<tenant>", "", {"name": "value"})
BEFORE, AFTER = SHARD.index("before", "f"), SHARD.index("after", "f")

REPEATED_KEYS = {
    "hash": KEYS.paused,
    "run": SHARD.run("<id>"),
    "index": SHARD.index("running", "<workflow>"),
    "tenant_index": SHARD.tenant("<tenant>"),
    "running_index": SHARD.index("running", "<workflow>"),
    "published": SHARD.published("<id>"),
    "asleep": SHARD.asleep("<id>"),
    "chunks": SHARD.chunks("<id>"),
    "attribute_index": SHARD.attribute("name", "value"),
    "put": SHARD.published("<id>"),
    "record": KEYS.queues,
}
"""The key that a repeated name stands for when the item has the values below; fixed keys are attributes."""


SLEEPER = "run that may sleep"
"""Of a call with the keys of the buckets, for each of its runs."""
OPEN = Header("running", 3, "c", 1, 0, "<workflow>", "<tenant>", "", {"name": "value"})

BATCH: Any = {name: f"<{name}>" for name in ("created", "seq", "attempt", "execution", "step", "count", "missed")}


NOW = 1000
ENDED = Header("failed", 7, "c", 5, 9, "before", "acme", "", {"name": "value"}).encode()


# --- reading the header -----------------------------------------------------------------------------------------------


class Group(msgspec.Struct):
    """Names that come once for each item; `label` is the word behind `for each`, else the only name."""

    label: str
    names: list[str]


class Layout(msgspec.Struct):
    fixed: list[str]
    groups: list[Group]

    def expected(self, items: dict[str, int]) -> list[str]:
        return self.fixed + [name for group in self.groups for name in group.names * items.get(group.label, 0)]


def layout(path: Path, word: str) -> Layout:
    """KEYS or ARGV of a script's header: fixed names, then groups behind `then` and `;`."""
    header = path.read_text().split("\nlocal ")[0]
    match = re.search(rf"^-- {word}\s+(.*(?:\n--\s{{3,}}\S.*)*)", header, re.MULTILINE)
    assert match, f"{path.name} has no {word}"
    text = re.sub(r"\([^()]*\)", "", re.sub(r"\n--\s+", " ", match[1]))
    if not text.strip() or text.strip() == "none":
        return Layout([], [])
    found = Layout([], [])
    for number, part in enumerate(re.split(r"\bthen\b|;", text)):
        group = re.fullmatch(
            r"\s*:?\s*(?:for each (?P<before>[^:]+):)?(?P<names>.*?)(?:for each (?P<behind>.*))?", part
        )
        assert group, part
        names = [name.strip().replace(" ", "_") for name in group["names"].strip().strip(",").split(",")]
        label = group["before"] or group["behind"]
        if number == 0 and label is None:
            found.fixed = names
        else:
            found.groups.append(Group((label or names[0]).strip(), names))
    return found


# --- calling the methods ----------------------------------------------------------------------------------------------


class Verb(msgspec.Struct):
    """`call` builds a call from the numbers of items. `items`: which groups of KEYS and ARGV an item adds to.

    `values`: the value of a name, where it isn't `<name>`; it may depend on the numbers of items.
    """

    call: Callable[[dict[str, int]], Call[Any]]
    items: dict[str, tuple[str, ...]] = {}
    values: Callable[[dict[str, int]], dict[str, Any]] = lambda _: {}


def start_runs(n: dict[str, int]) -> Call[Any]:
    starts = [Start("<id>", "<workflow>", "<tenant>", b"<body>", "<trace>")] * n["run"]
    return KERNEL.start_runs(0, starts, "<now>", asleep=True)


def post_messages(n: dict[str, int]) -> Call[Any]:
    return KERNEL.post_messages(0, "<source>", "<number>", [message()] * n["message"], "<now>", asleep=True)


def message() -> Message:
    created: Any = "<created>"
    return Message("<kind>", "<id>", b"<body>", created)


def post_requests(n: dict[str, int]) -> Call[Any]:
    return KERNEL.post_requests(0, "<source>", "<number>", [message()] * n["message"], "<now>", asleep=True)


def deliver_messages(n: dict[str, int]) -> Call[Any]:
    delivery = Delivery("<number>", "<kind>", "<id>", b"<body>", "<workflow>", "<tenant>", "<parent>", "<trace>")
    return KERNEL.deliver_messages(0, 7, [delivery] * n["message"], "<now>", "<after>", asleep=True)


def commit(n: dict[str, int]) -> Call[Any]:
    text: Any = lambda name: f"<{name}>"  # noqa: E731 (outside of tests a number)
    states = [b""] * n["run"] + [b"<state>"] * n["reducer"]
    batch = Batch(
        "<commit>",
        runs=[RunWrite("<id>", b"<expected>", b"<header>", state, b"<transition>") for state in states],
        acks=["<inbox_id>"] * n["ack"],
        plans=[("<id>", text("score"))] * n["plan"],
        moves=[("<id>", BEFORE, AFTER, text("score"))] * n["move"],
        sends=[Send("<number>", b"<messages>")] * n["send"],
        sent=["<outbox_number>"] * n["sent"],
        poisons=[
            Poison("<inbox_id>", "<id>", "<reason>", b"<event>", b"<body>", "<kind>", b"<begun>", b"<sender>"),
        ]
        * n["poison"],
        cuts=[(0, b"<logged>")] * n["cut"],
        puts=[Put(SHARD.published("<id>"), "<field>", b"<value>")] * n["put"],
        attempts=[Attempt("gpu", "<step>", "<attempt>", b"<body>")] * n["attempt"]
        + [Attempt("gpu", "<step>", "<attempt>", b"<body>", b"<details>")] * n["told"],
        notification=b"<notification>",
        repeats=["<identity>"] * n["repeat"],
    )
    return KERNEL.commit(0, "<token>", batch, "<now>")


def commit_values(n: dict[str, int]) -> dict[str, Any]:
    items = ("ack", "plan", "move", "send", "sent", "poison", "cut", "reducer", "told", "put")
    attempts = n["attempt"] + n["told"]
    counts = struct.pack(">13I", 2 if n["move"] else 0, *[n[name] for name in items], 1 if attempts else 0, attempts)
    if n["repeat"]:
        counts += struct.pack(">I", n["repeat"])
    return {"channel": SHARD.done, "from": 1, "to": 2, "position": ANY, "counts": counts, "queue": 1}


def report_outcome(_: dict[str, int]) -> Call[Any]:
    created: Any = "<created>"
    return KERNEL.report_outcome(0, "<id>", created, b"<body>")


def claims(n: dict[str, int]) -> list[ClaimRef]:
    return [ClaimRef("<entry>", "<step>", b"<details>")] * n["claim"]


def lent(n: dict[str, int]) -> list[LentStep]:
    text: Any = lambda name: f"<{name}>"  # noqa: E731
    return [LentStep("<step>", "<host>", text("created"), text("attempt"), b"<details>")] * n["lent"]


def text_limits(most: Any, age: Any, held: Any, held_age: Any) -> LogLimits:
    return LogLimits(most, age, held, held_age)


VERBS: dict[str, Verb] = {
    "start_runs": Verb(start_runs, {"run": ("run", SLEEPER)}),
    "post_messages": Verb(post_messages, {"message": ("message", SLEEPER)}),
    "post_requests": Verb(post_requests, {"message": ("message", SLEEPER)}),
    "report_outcome": Verb(report_outcome),
    "deliver_messages": Verb(deliver_messages, {"message": ("message", SLEEPER)}, lambda _: {"source": "shard:7"}),
    "peek_queues": Verb(
        lambda n: KERNEL.peek_queues(3, ["gpu"] * n["queue"], ["<asked>"] * n["queue"]),
        {"queue": ("queue",)},
        lambda _: {"group": WORKERS},
    ),
    "extend_claims": Verb(
        lambda n: KERNEL.extend_claims("gpu", 3, "<consumer>", claims(n)),
        {"claim": ("claim",)},
        lambda _: {"group": WORKERS},
    ),
    "requeue_attempts": Verb(
        lambda n: KERNEL.requeue_attempts("gpu", 3, "<consumer>", claims(n)),
        {"claim": ("claim",)},
        lambda _: {"group": WORKERS},
    ),
    "settle_attempts": Verb(
        lambda n: KERNEL.settle_attempts("gpu", 0, [Settlement("<entry>", "<step>", b"<body>")] * n["claim"]),
        {"claim": ("claim",)},
        lambda _: {"group": WORKERS},
    ),
    "expired_claims": Verb(
        lambda _: KERNEL.expired_claims("gpu", 3, "<idle>", "<quiet>", "<limit>", "<after>"),
        {},
        lambda _: {"group": WORKERS},
    ),
    "restart_claims": Verb(
        lambda _: KERNEL.restart_claims("gpu", 3, "<limit>", "<after>"), {}, lambda _: {"group": WORKERS}
    ),
    "peek_runs": Verb(
        lambda n: KERNEL.peek_runs(0, ["<id>"] * n["run"], asleep=True),
        {"run": ("run", SLEEPER)},
        lambda _: {"buckets": "1"},
    ),
    "read_runs": Verb(lambda n: KERNEL.read_runs(0, [("<id>", "<first>")] * n["run"], "<limit>"), {"run": ("run",)}),
    "read_hash": Verb(
        lambda n: KERNEL.read_hash(SHARD.steps, [b"<cursor>", *[b"<field>"] * n["left field"]], "<limit>", "<length>"),
        {"left field": ("left field",)},
    ),
    "read_stream": Verb(lambda _: KERNEL.read_stream(KERNEL.keys.shard(0).log, "<after>", "<limit>"), {}),
    "read_quarantine": Verb(lambda _: KERNEL.read_quarantine(0, "<before>", "<count>")),
    "take_quarantined": Verb(
        lambda n: KERNEL.take_quarantined(
            0, "<source>", "<number>", "<action>", [("<entry>", "<id>")] * n["message"], "<now>"
        ),
        {"message": ("message",)},
    ),
    "read_transitions": Verb(
        lambda n: KERNEL.read_transitions(0, [("<id>", "<created>", "<number>")] * n["transition"], "<limit>"),
        {"transition": ("transition",)},
    ),
    "acquire_shard": Verb(lambda _: KERNEL.acquire_shard(0, "<expected>", "<nonce>", "<holder>", "<now>")),
    "release_shard": Verb(
        lambda n: KERNEL.release_shard(0, "<token>", lent(n), delivered="<delivered>"),
        {"lent": ("lent step",)},
        lambda _: {"step": "<step>", "last": "1"},
    ),
    "extend_steps": Verb(lambda n: KERNEL.extend_steps(0, lent(n)), {"lent": ("lent step",)}),
    "report_step": Verb(lambda _: KERNEL.report_step(0, "<id>", "<kind>", lent({"lent": 1})[0], b"<body>")),
    "store_details": Verb(
        lambda n: KERNEL.store_details(0, "<token>", [("<step>", b"<details>")] * n["step"]), {"step": ("step",)}
    ),
    "pause": Verb(lambda _: KERNEL.pause("<what>", b"<note>")),
    "append_chunks": Verb(
        lambda _: KERNEL.append_chunks(
            0,
            ChunkBatch(**BATCH, run_id="<id>", number=cast("int", "<batch>"), body=b"<body>", over=True),
            Holder(SHARD.owner, "<field>", "<expected>"),
            "<limit>",
            "<seconds>",
        ),
        {},
        lambda _: {"over": 1},
    ),
    "read_chunks": Verb(lambda _: KERNEL.read_chunks(0, "<id>", "<made>", "<entry>", "<limit>")),
    "mark_suspects": Verb(lambda _: KERNEL.mark_suspects("<member>", "<seconds>", b"<body>")),
    "due_runs": Verb(lambda _: KERNEL.due_runs(0, "<token>", "<limit>", "<now>")),
    "peek_inbox": Verb(lambda _: KERNEL.peek_inbox(0)),
    "read_inbox": Verb(lambda _: KERNEL.read_inbox(0, "<token>", "<after>", "<count>", "<limit>")),
    "next_starts": Verb(lambda _: KERNEL.next_starts(0, "<token>", "<limit>")),
    "commit": Verb(
        commit,
        {name: (name,) for name in ("run", "ack", "plan", "send", "sent", "poison", "cut", "put", "repeat")}
        | {"move": ("move", "listing"), "reducer": ("run", "state")}
        | {"attempt": ("attempt", "queue"), "told": ("attempt", "report", "queue")},
        commit_values,
    ),
    "replace_run": Verb(
        lambda _: KERNEL.replace_run(
            0, Start("<id>", "<workflow>", "<tenant>", b"<body>", "<trace>", "", ENDED), NOW, asleep=True
        ),
        {"listing": ("listing", SLEEPER)},
        lambda _: {"expected": ENDED, "now": NOW},
    ),
    "post_once": Verb(
        lambda _: KERNEL.post_once(
            0,
            OnceMessage(
                Message("<kind>", "<id>", b"<message>", cast("Any", "<created>")),
                "<digest>",
                cast("Any", "<remember>"),
                Start("<id>", "<workflow>", "<tenant>", b"<body>", "<trace>", "", ENDED),
            ),
            NOW,
            asleep=True,
        ),
        {"listing": ("listing", SLEEPER)},
        lambda _: {"expected": ENDED, "now": NOW, "identity": "m:<digest>"},
    ),
    "forget_runs": Verb(
        lambda n: KERNEL.forget_runs(0, [("<id>", HEADER)] * n["run"]),
        {"run": ("run", "attribute")},
        lambda n: {"header": HEADER.encode(), "runs": n["run"]},
    ),
    "restore_run": Verb(
        lambda n: KERNEL.restore_run(
            0,
            "<id>",
            [ENDED, b"<state>", *[b"<transition>"] * n["transition"]],
            [("<key>", b"<value>")] * n["value"],
            NOW,
        ),
        {"transition": ("transition",), "value": ("value",), "attribute": ("attribute",)},
        lambda n: {"header": ENDED, "now": NOW, "transitions": n["transition"], "values": n["value"]},
    ),
    "hibernate_runs": Verb(
        lambda n: KERNEL.hibernate_runs(0, "<token>", [("<id>", OPEN, "<object>")] * n["run"]),
        {"run": ("run", "attribute")},
        lambda n: {"header": OPEN.encode(), "runs": n["run"]},
    ),
    "wake_run": Verb(
        lambda n: KERNEL.wake_run(
            0,
            "<token>",
            "<id>",
            b"<expected>",
            [OPEN.encode(), b"<state>", *[b"<transition>"] * n["transition"]],
            [("<key>", b"<value>")] * n["value"],
        ),
        {"transition": ("transition",), "value": ("value",), "attribute": ("attribute",)},
        lambda n: {"header": OPEN.encode(), "transitions": n["transition"], "values": n["value"]},
    ),
    "checkpoint_views": Verb(
        lambda n: KERNEL.checkpoint_views(
            0,
            "<token>",
            "<offset>",
            b"<partial>",
            "<now>",
            "<logged>",
            text_limits("<most>", "<age>", "<held>", "<held_age>"),
            ["<workflow>"] * n["workflow"],
            "<oldest>",
        ),
        {"workflow": ("workflow", "running_index")},
    ),
    "note_group": Verb(lambda _: KERNEL.note_group("<group>", b"<expected>", b"<note>")),
    "place_position": Verb(
        lambda _: KERNEL.place_position(0, "<group>", "<identity>", "<to>", over=True), {}, lambda _: {"over": "1"}
    ),
    "claim_position": Verb(
        lambda _: KERNEL.claim_position(0, "<group>", "<identity>", "<expected>", "<nonce>", "<holder>")
    ),
    "acknowledge_events": Verb(
        lambda _: KERNEL.acknowledge_events(0, "<group>", "<token>", "<offset>", "<entries>", release=True),
        {},
        lambda _: {"release": "1"},
    ),
    "peek_positions": Verb(lambda _: KERNEL.peek_positions(0, "<group>")),
    "store_view": Verb(
        lambda n: KERNEL.store_view(
            0,
            "<view>",
            "<token>",
            "<field>",
            "<before>",
            "<after>",
            "<held>",
            "<offset>",
            ["<old>"] * n["removed"],
            [("<field>", b"<cells>")] * n["window"],
        ),
        {"removed": ("removed",), "window": ("window",)},
        lambda n: {"removed": n["removed"]},
    ),
    "heartbeat": Verb(
        lambda n: KERNEL.heartbeat(
            "<member>",
            b"<heartbeat>",
            [("<member>", b"<last_heartbeat>")] * n["dead"],
            hashes=[KEYS.paused] * n["wanted"],
        ),
        {"dead": ("dead member",), "wanted": ("wanted",)},
        lambda _: {"joins": "1", "others": "1"},
    ),
    "open_namespace": Verb(
        lambda n: KERNEL.open_namespace(
            "<shards>", Partition.TENANT, "<identity>", [("<workflow>", b"<description>")] * n["workflow"]
        ),
        {"workflow": ("workflow",)},
        lambda _: {"partition": "tenant", "schema": SCHEMA},
    ),
    "store_records": Verb(
        lambda n: KERNEL.store_records([Put(KEYS.queues, "<field>", b"<value>")] * n["record"]),
        {"record": ("record",)},
    ),
    "create_group": Verb(lambda _: KERNEL.create_group("gpu", 3), {}, lambda _: {"group": WORKERS}),
}


def cases() -> list[Any]:
    """Each verb with no items, and with one and two of each kind alone, and two of every kind."""
    found: list[Any] = []
    for name, verb in VERBS.items():
        none = dict.fromkeys(verb.items, 0)
        numbers = [none, *({**none, item: n} for item in verb.items for n in (1, 2))]
        if verb.items:
            numbers.append(dict.fromkeys(verb.items, 2))
        found += [pytest.param(name, n, id=f"{name}-{'-'.join(map(str, n.values())) or 'once'}") for n in numbers]
    return found


def path_of(name: str) -> Path:
    return lua_directory() / f"{name}.lua"


@pytest.mark.parametrize(("name", "numbers"), cases())
def test_keys_and_arguments_are_those_of_the_header_in_its_order(name: str, numbers: dict[str, int]) -> None:
    verb = VERBS[name]
    call = verb.call(numbers)
    counts: Counter[str] = Counter()
    for item, n in numbers.items():
        counts.update(dict.fromkeys(verb.items[item], n))
    assert call.script == name

    names = layout(path_of(name), "KEYS").expected(counts)
    if name == "commit":  # each listing is declared once, however many runs move between the two
        of_queue = {key: getattr(KEYS.queue("gpu", 0), key) for key in ("stream", "steps", "details")}
        expected = [getattr(SHARD, key) for key in names if key not in ("index", "put", "run", *of_queue)]
        expected += [BEFORE, AFTER] if numbers["move"] else []
        expected += [REPEATED_KEYS["put"]] * numbers["put"]
        expected += of_queue.values() if numbers["attempt"] + numbers["told"] else []
        assert call.keys == [*expected, *[SHARD.run("<id>")] * (numbers["run"] + numbers["reducer"])]
    else:
        repeated = (
            REPEATED_KEYS
            if name != "forget_runs"
            else {**REPEATED_KEYS, "index": SHARD.index("completed", "<workflow>")}
        )
        fixed = len(layout(path_of(name), "KEYS").fixed)
        if name in ("report_outcome", "report_step"):
            of_steps = [SHARD.steps, SHARD.details] if name == "report_step" else []
            assert call.keys == [SHARD.inbox, SHARD.kept, SHARD.run("<id>"), *of_steps]
        elif name == "pause":
            assert call.keys == [KEYS.paused]
        elif name in ("replace_run", "post_once"):
            door = [SHARD.owner, SHARD.inbox, SHARD.kept, SHARD.waiting, SHARD.turns]
            door += [SHARD.seen, SHARD.known("<digest>")] if name == "post_once" else []
            new = [SHARD.run("<id>"), SHARD.index("running", "<workflow>"), SHARD.tenant("<tenant>")]
            old = [SHARD.index("failed", "before"), SHARD.tenant("acme"), SHARD.attribute("name", "value")]
            assert call.keys == [*door, *new, SHARD.published("<id>"), SHARD.chunks("<id>"), *old, SHARD.asleep("<id>")]
        elif name == "restore_run":
            listings = [SHARD.index("failed", "before"), SHARD.tenant("acme")]
            attribute = SHARD.attribute("name", "value")
            fixed_keys = [SHARD.owner, SHARD.run("<id>"), *listings, SHARD.published("<id>"), SHARD.asleep("<id>")]
            assert call.keys == [*fixed_keys, attribute]
        elif name == "wake_run":
            listings = [SHARD.index("running", "<workflow>"), SHARD.tenant("<tenant>")]
            of_run = [SHARD.run("<id>"), *listings, SHARD.published("<id>"), SHARD.asleep("<id>")]
            assert call.keys == [SHARD.owner, SHARD.agenda, *of_run, SHARD.attribute("name", "value")]
        elif name in ("append_chunks", "read_chunks"):
            holder = [SHARD.owner] if name == "append_chunks" else []
            assert call.keys == [SHARD.run("<id>"), SHARD.chunks("<id>"), *holder]
        elif name == "store_view":
            assert call.keys == [SHARD.owner, SHARD.app_view("<view>"), SHARD.positions, SHARD.log, SHARD.views]
        elif name == "mark_suspects":
            assert call.keys == [KEYS.suspects("<member>")]
        elif name == "settle_attempts":
            queue = KEYS.queue("gpu", 0)
            of_queue = [queue.stream, queue.steps, queue.details]
            assert call.keys == [SHARD.inbox, SHARD.kept, *of_queue]
        elif name in (*OF_QUEUES, "peek_queues"):
            assert call.keys == [getattr(QUEUE, key) for key in names]
        else:
            assert call.keys[:fixed] == [getattr(SHARD, key, None) or getattr(KEYS, key) for key in names[:fixed]]
            assert call.keys[fixed:] == [repeated[key] for key in names[fixed:]]

    values = verb.values(numbers)
    names = layout(path_of(name), "ARGV").expected(counts)
    # `sent` and the like are counts among the fixed arguments; behind them the same word may name a group.
    texts = [arg.decode() if isinstance(arg, bytes) and arg[:1] == b"<" else arg for arg in call.args]
    assert texts == [values.get(arg, f"<{arg}>") for arg in names]


@pytest.mark.parametrize("name", VERBS)
def test_every_group_of_the_header_is_filled_by_some_item(name: str) -> None:
    filled = {label for labels in VERBS[name].items.values() for label in labels}
    groups = [*layout(path_of(name), "KEYS").groups, *layout(path_of(name), "ARGV").groups]
    assert {group.label for group in groups} == filled


@pytest.mark.parametrize("name", VERBS)
def test_the_loader_reads_the_same_names_from_the_header(name: str) -> None:
    script = load_scripts()[name]
    for found, word in ((script.keys, "KEYS"), (script.argv, "ARGV")):
        read = layout(path_of(name), word)
        assert found == read.fixed + [f"{part}[]" for group in read.groups for part in group.names]


def test_without_buckets_a_call_has_no_key_more_than_before_there_were_any() -> None:
    assert KERNEL.start_runs(0, [Start("a", "flow", "", b"")]).keys[-3:] == [
        SHARD.run("a"),
        SHARD.index("running", "flow"),
        SHARD.tenant("-"),
    ]
    assert KERNEL.post_messages(0, "s", 1, [Message("signal", "a", b"")]).keys[-1] == SHARD.run("a")
    assert KERNEL.peek_runs(0, ["a", "b"]).keys == [SHARD.run("a"), SHARD.run("b")]
    assert KERNEL.deliver_messages(0, 7, [Delivery("1-1", "signal", "a", b"")], 1).keys[-1] == SHARD.tenant("-")


def test_every_verb_has_one_file_one_method_and_one_test_file_of_its_name() -> None:
    here = Path(__file__).parent
    others = {"headers", "keys_touched", "commit_attempts", "commit_model", "connection", "link", "sentinels"}
    methods = {name for name in vars(Kernel) if not name.startswith("_")}
    tests = {path.stem.removeprefix("test_") for path in here.glob("test_*.py")} - others
    files = {path.stem for path in lua_directory().glob("*.lua")}
    assert methods == files == tests == set(VERBS)


def test_the_table_of_verbs_has_each_headers_promise_and_its_callers() -> None:
    table = re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \|$", README.read_text(), re.MULTILINE)
    rows = {verb: (promise, re.findall(r"`([\w/]+\.py)`", callers)) for verb, promise, callers in table}
    assert len(table) == len(rows) == len(VERBS)
    for verb in VERBS:
        promise = re.match(rf"#!lua.*\n-- {verb}: (.*)\.\n", path_of(verb).read_text())
        assert promise, f"{verb}.lua does not begin with a promise of one line"
        assert rows[verb] == (promise[1], callers_of(verb))


def test_every_reply_code_is_explained() -> None:
    assert set(re.findall(r"^\| `([A-Z]+)` \|", README.read_text(), re.MULTILINE)) >= set(Reply)


def callers_of(verb: str) -> list[str]:
    """Files of the package that call the verb's method."""
    call = re.compile(rf"kernel\.{verb}\(")
    files = (file for file in PACKAGE.rglob("*.py") if file.stem != "kernel")
    return sorted(str(file.relative_to(PACKAGE)) for file in files if call.search(file.read_text()))


def test_only_verbs_that_bring_new_work_are_refused_when_memory_is_short() -> None:
    first_lines = {name: path_of(name).read_text().split("\n", 1)[0] for name in VERBS}
    assert {name for name, line in first_lines.items() if line == "#!lua"} == {
        "start_runs",
        "replace_run",
        "restore_run",
        "post_once",
        "post_messages",
        "append_chunks",
        "wake_run",
    }
    assert {name for name, line in first_lines.items() if line == "#!lua flags=no-writes"} == {
        "peek_inbox",
        "peek_positions",
        "peek_queues",
        "peek_runs",
        "read_chunks",
        "read_hash",
        "read_quarantine",
        "read_runs",
        "read_stream",
        "read_transitions",
    }


def test_a_header_that_lost_a_name_would_be_noticed(tmp_path: Path) -> None:
    text = path_of("start_runs").read_text().replace("workflow, tenant, trace, body", "workflow, trace, body")
    (tmp_path / "start_runs.lua").write_text(text)
    names = layout(tmp_path / "start_runs.lua", "ARGV").expected({"run": 1})
    assert len(names) == len(start_runs({"run": 1}).args) - 1
