"""What a user of the server needs to be a daemon, a worker, a client or a viewer of one namespace.

Owns: the one table of verbs, commands, keys and channels by role, and the rules for `ACL SETUSER` that follow from it.
Must not: talk to a server. Called by: the check of permissions (`inspection.py`), the command `acl`.

A verb is a script, and what it calls needs the permission of its user, too: those commands are read from the scripts,
so that a branch that is rarely taken isn't denied in the middle, which would leave half a write. `EVALSHA` demands that
the user may read and write all keys that a verb declares, also those that it only looks at; `EVALSHA_RO` only reading.

`tests/system/test_roles.py` holds the table against what MONITOR shows of each role.
"""

from __future__ import annotations

import enum
import functools
import re
from collections.abc import Callable

import msgspec

from streamflow.store.durability import Durability
from streamflow.store.keys import NamespaceKeys, ShardKeys, absent_near, fence_near
from streamflow.store.scripts import load_scripts


class Role(enum.StrEnum):
    DAEMON = "daemon"
    WORKER = "worker"
    CLIENT = "client"
    VIEWER = "viewer"


class Access(msgspec.Struct, frozen=True):
    """`verbs`: scripts that it calls. `commands`: what it sends besides. `writes`, `reads`: the keys that it may read
    and write, or only read, as patterns of a namespace. `channels`: those that it publishes or subscribes to."""

    about: str
    verbs: tuple[str, ...]
    commands: tuple[str, ...]
    writes: Callable[[NamespaceKeys], list[str]]
    reads: Callable[[NamespaceKeys], list[str]]
    channels: Callable[[ShardKeys], list[str]]
    rare: dict[str, str] = {}
    """Verbs and commands that a usual flow doesn't show -> when they are used."""


class Rights(msgspec.Struct, frozen=True):
    """What a role needs in one namespace. `writes` and `reads`: patterns of keys that it may read and write, or only
    read. `commands` are written as in `ACL SETUSER`: `xgroup|create`."""

    commands: list[str]
    writes: list[str]
    reads: list[str]
    channels: list[str]

    @property
    def rules(self) -> list[str]:
        """For `ACL SETUSER`, behind what is said of the password."""
        return [
            *(f"~{pattern}" for pattern in self.writes),
            *(f"%R~{pattern}" for pattern in self.reads),
            *(f"&{pattern}" for pattern in self.channels),
            *(f"+{command}" for command in self.commands),
        ]


IN_CLUSTER = ("CLUSTER NODES", "ASKING")
"""What a cluster is asked besides. Also for users of a single server, which may become one of a cluster."""
_LOOKS = (
    *(
        "MGET",
        "HGET",
        "HMGET",
        "HGETALL",
        "HKEYS",
        "HLEN",
        "LINDEX",
        "LRANGE",
        "ZCARD",
        "ZREVRANGE",
        "ZREVRANGEBYSCORE",
    ),
    *("XLEN", "XRANGE", "XREVRANGE", "XREAD"),
    *("INFO", "TIME", "PING", "SSUBSCRIBE", "SUNSUBSCRIBE", "SELECT", *IN_CLUSTER),
)
"""What the client sends to see runs, results, histories, logs and the status. Not CONFIG GET, with which `status` would
learn the policy of the append-only file: it also shows the passwords in the server's configuration."""

_OF_TRIGGERS = ("HEXISTS", "HSCAN", "HDEL")
"""What a client sends besides that serves triggers."""

_READS_OF_DAEMON = (
    *("GET", "HGET", "HMGET", "HGETALL", "HKEYS", "HLEN", "HSCAN", "LINDEX"),
    *("XRANGE", "ZCARD", "ZRANGEBYSCORE", "ZSCAN", "ZSCORE"),
)
_FIGURES = ("MGET", "XLEN")
"""What a daemon with `http` sends when it is asked for metrics, besides what it reads anyway."""


def _everything(keys: NamespaceKeys) -> list[str]:
    return [f"{keys.prefix}*", f"sf:{{{keys.namespace}/*}}:*"]


def _nothing(keys: NamespaceKeys) -> list[str]:
    return []


def _of_all_shards(keys: NamespaceKeys, names: Callable[[ShardKeys], list[str]]) -> list[str]:
    """The keys of shard 0, with a star in the place of its number: no name has a slash."""
    return [key.replace("/0}", "/*}", 1) for key in names(keys.shard(0))]


def _written_by_worker(keys: NamespaceKeys) -> list[str]:
    return [
        keys.queues,
        keys.workers,
        keys.ended,
        keys.suspects("*"),
        *_of_all_shards(
            keys, lambda shard: [shard.inbox, shard.kept, shard.run("*"), shard.chunks("*"), f"{shard.prefix}queue:*"]
        ),
    ]


def _read_by_worker(keys: NamespaceKeys) -> list[str]:
    return [keys.meta, keys.paused]


def _written_by_client(keys: NamespaceKeys) -> list[str]:
    """By starts, messages, `forget`, `quarantine`, `pause`, and groups of subscribers."""
    return [
        keys.paused,
        keys.groups,
        keys.consumers("*"),
        keys.undelivered,
        keys.files,
        keys.triggers,
        *_of_all_shards(
            keys,
            lambda shard: [
                shard.positions,
                *(shard.owner, shard.inbox, shard.kept, shard.seen, shard.waiting, shard.turns, shard.log, shard.views),
                *(shard.poison, shard.run("*"), shard.published("*"), shard.chunks("*"), shard.known("*")),
                *(f"{shard.prefix}index:*", f"{shard.prefix}asleep:*"),
            ],
        ),
    ]


def _rung_by_worker(shard: ShardKeys) -> list[str]:
    """Who adds messages, attempts or chunks rings; workers hear the rings of queues."""
    return [shard.inbox, shard.chunks("*"), f"{shard.prefix}queue:*"]


def _done(shard: ShardKeys) -> list[str]:
    return [shard.done, shard.chunks("*")]


def _rung_and_done(shard: ShardKeys) -> list[str]:
    return [shard.inbox, *_done(shard)]


def _rung_by_daemon(shard: ShardKeys) -> list[str]:
    return [*_rung_by_worker(shard), shard.done]


_ALWAYS = ("SCRIPT LOAD", "INFO", "SELECT", *IN_CLUSTER)
_RARE_IN_CLUSTER = {
    "CLUSTER NODES": "the URL names a cluster: which server has which slot",
    "ASKING": "the same, and a slot is just being moved to another server",
}
_RARE_ALWAYS = {
    **_RARE_IN_CLUSTER,
    "SELECT": "the URL names another database than 0",
    "SCRIPT LOAD": "the server is new, was restarted, or has replaced another one, and nobody has loaded them yet",
}
_RARE_LOOKS = {
    **_RARE_IN_CLUSTER,
    "SELECT": _RARE_ALWAYS["SELECT"],
    "read_transitions": "a large payload of a run that is followed, or in `tail`",
    "read_quarantine": "messages are quarantined",
    "peek_positions": "there are groups of subscribers",
    "PING": "nothing was published for 15 s",
    "SUNSUBSCRIBE": "no call waits for runs of a shard any more",
    "ZREVRANGEBYSCORE": "the next page of a listing, or one since or until a time",
    "XRANGE": "`status --shards`, while the views of a shard lag behind its log",
}
_SEEN_BY_CLIENTS = (
    *("peek_runs", "peek_queues", "peek_positions", "read_chunks", "read_quarantine", "read_transitions"),
)

ACCESS: dict[Role, Access] = {
    Role.DAEMON: Access(
        about="`daemon`, `views rebuild`, and whatever a viewer does",
        verbs=(
            *("open_namespace", "store_records", "heartbeat", "acquire_shard", "release_shard", "mark_suspects"),
            *(
                "peek_inbox",
                "read_inbox",
                "read_runs",
                "read_stream",
                "read_hash",
                "deliver_messages",
                "due_runs",
                "next_starts",
            ),
            *("commit", "checkpoint_views", "store_view", "forget_runs", "report_step", "extend_steps"),
            *("store_details", "append_chunks", "start_runs", "replace_run", "hibernate_runs", "wake_run"),
            *_SEEN_BY_CLIENTS,
        ),
        commands=(*_ALWAYS, *_READS_OF_DAEMON, *_FIGURES, "HDEL", "ZREM", "ZCOUNT", "ZUNION", "MEMORY USAGE", *_LOOKS),
        writes=_everything,
        reads=_nothing,
        channels=_rung_by_daemon,
        rare={
            **_RARE_ALWAYS,
            **_RARE_LOOKS,
            "mark_suspects": "a step may have ended its process: it is noted before it is tried again",
            "store_view": "the app has a view of its own (`app.view`)",
            "GET": "the note of a daemon that has died",
            "HSCAN": "a shard knows many clients: those that are gone are dropped",
            "HLEN": "the same, and whether keys have their types, in a sweep every minute; `views rebuild`; in a "
            "cluster whether a server that has messages goes on",
            "ZCARD": "how many starts wait, whether a workflow that the app doesn't have has runs, and types of keys",
            "ZCOUNT": "how many ended runs of a workflow there are by age, once a minute",
            "MEMORY USAGE": "what some of them take",
            "ZUNION": "a new version of a view begins behind trimmed logs: which runs the server has",
            "start_runs": "a server has lost starts that this daemon had read",
            "replace_run": "the same of those that had taken the places of ended runs",
            **dict.fromkeys(("hibernate_runs", "ZSCORE"), "runs have waited for longer than `hibernate_after`"),
            "wake_run": "something is there for a run that hibernates",
            "ZREM": "a listing that lost writes have left wrong",
        },
    ),
    Role.WORKER: Access(
        about="`worker`",
        verbs=(
            *("store_records", "mark_suspects", "create_group", "extend_claims", "expired_claims", "restart_claims"),
            *("report_outcome", "settle_attempts", "requeue_attempts", "peek_queues", "append_chunks", "heartbeat"),
        ),
        commands=(
            *(*_ALWAYS, "HGET", "HMGET", "HGETALL", "XINFO CONSUMERS", "GET", "PING"),
            *("XREADGROUP", "SSUBSCRIBE", "SUNSUBSCRIBE"),
        ),
        writes=_written_by_worker,
        reads=_read_by_worker,
        channels=_rung_by_worker,
        rare={
            **_RARE_ALWAYS,
            "PING": "nothing has rung for some seconds",
            "XINFO CONSUMERS": "another worker has died, or an answer was lost: which partitions it had claims in",
            "report_outcome": "a server may have lost outcomes: those of the last minute are reported again",
            "create_group": "keys of a queue were deleted",
            "restart_claims": "the server was away, or its clock has jumped",
            "mark_suspects": "a step may have ended its process: it is noted before it is tried again",
        },
    ),
    Role.CLIENT: Access(
        about="starts runs, sends signals, asks, cancels, forgets, purges and restores, redrives and drops quarantined "
        "messages, pauses queues and workflows, subscribes to events in groups, and whatever a viewer does",
        verbs=(
            "start_runs",
            "replace_run",
            "post_once",
            "post_messages",
            "post_requests",
            "forget_runs",
            "restore_run",
            "take_quarantined",
            "store_records",
            "pause",
            "note_group",
            "place_position",
            "claim_position",
            "acknowledge_events",
            "heartbeat",
            "read_stream",
            *_SEEN_BY_CLIENTS,
        ),
        commands=("SCRIPT LOAD", "GET", "ZSCAN", *_OF_TRIGGERS, *_LOOKS),
        writes=_written_by_client,
        reads=_everything,
        channels=_rung_and_done,
        rare={
            **_RARE_ALWAYS,
            **_RARE_LOOKS,
            "GET": "an answer to an ask whose notification was lost",
            "take_quarantined": "messages are quarantined",
            "restore_run": "a run is brought back from the archive",
            "replace_run": "a start with on_existing='new' has found an ended run",
            "pause": "a queue or a workflow is paused, or goes on",
            **dict.fromkeys(("note_group", "place_position"), "a group of subscribers is made, reset or removed"),
            **dict.fromkeys(
                ("claim_position", "acknowledge_events", "heartbeat", "read_stream"), "it subscribes to events"
            ),
            "store_records": "a trigger keeps what it could not process, notes files, or reports",
            **dict.fromkeys(_OF_TRIGGERS, "the same"),
        },
    ),
    Role.VIEWER: Access(
        about="`status`, `runs`, `show`, `tail`, `read`, `export`, and results; changes nothing",
        verbs=_SEEN_BY_CLIENTS,
        commands=_LOOKS,
        writes=_nothing,
        reads=_everything,
        channels=_done,
        rare=_RARE_LOOKS,
    ),
}
"""The table. A change of it is a change of the users of a release: `docs/operations.md`, Users and permissions."""

_CALL = re.compile(r"redis\.p?call\('([A-Z]+)'(?:,\s*'([A-Z]+)')?")
_WITH_SUBCOMMAND = frozenset({"MEMORY", "XGROUP", "XINFO"})


@functools.cache
def commands_in(verb: str) -> frozenset[str]:
    """The commands that a verb's script calls, as `XADD` or `XGROUP CREATE`."""
    found = _CALL.findall(load_scripts()[verb].source)
    return frozenset(f"{name} {word}" if name in _WITH_SUBCOMMAND else name for name, word in found)


def commands_of(role: Role, durability: Durability | None = None) -> list[str]:
    """All commands that a role needs, sorted, as `XADD` or `XGROUP CREATE`. `durability`: as for `rights`."""
    access = ACCESS[role]
    callers = {load_scripts()[verb].evalsha for verb in access.verbs} | {"EVAL_RO"}
    commands = callers.union(access.commands, *(commands_in(verb) for verb in access.verbs))
    if durability is not None and role is not Role.VIEWER:
        commands |= {*commands_in("store_records"), durability.command[0]}
    return sorted(commands)


def rule_of(command: str) -> str:
    """A command as `ACL SETUSER` wants it: `xgroup|create`."""
    return command.lower().replace(" ", "|")


def rights(role: Role, namespace: str, durability: Durability | None = None) -> Rights:
    """`durability`: of the namespace, for who waits for it. A server that is older than WAITAOF refuses that rule."""
    access, keys = ACCESS[role], NamespaceKeys(namespace)
    commands, writes = commands_of(role, durability), access.writes(keys)
    if durability is not None and role in (Role.CLIENT, Role.WORKER):
        writes = [*writes, keys.fence, *_of_all_shards(keys, lambda shard: [fence_near(shard.owner)])]
    reads = access.reads(keys)
    if durability is not None and role is Role.WORKER:
        reads = [*reads, *_of_all_shards(keys, lambda shard: [absent_near(shard.owner)])]
    return Rights(
        commands=[rule_of(command) for command in commands],
        writes=writes,
        reads=reads,
        channels=_of_all_shards(keys, access.channels),
    )
