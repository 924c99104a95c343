"""What a server and its user must be like for streamflow, found out without changing anything that lasts.

Owns: the demands on a server's version, memory, persistence and role, the trial of a user's permissions, and a sentence
with what to do for each that isn't met. Must not: write what lasts, refuse by itself, or know what a role needs
(`roles.py`). Called by: the check at the start of a daemon or worker (`namespace.py`), `streamflow check`.

Permissions are tried without `ACL DRYRUN`, which such a user may not use, by calls that do nothing: a script that may
only read (`no-writes`) calls each command, and a script that doesn't exist, or does nothing, is called with a key of
each pattern. The server looks at permissions first, so the reason tells whether they were missing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, NamedTuple

import anyio
import msgspec
from redis import exceptions as redis_errors

from streamflow.errors import StoreError, StoreMisconfigured, StoreUnavailable
from streamflow.server_url import cluster_of, sentinels_of
from streamflow.store.connection import LOST, Call, Elsewhere, OtherHistory, Store
from streamflow.store.durability import WAIT_MS, Durability, fence_of_each
from streamflow.store.keys import NamespaceKeys
from streamflow.store.link import Link
from streamflow.store.node import Node
from streamflow.store.roles import IN_CLUSTER, Rights, Role, commands_of, rights, rule_of
from streamflow.store.router import Cluster, servers_of
from streamflow.store.topology import SLOTS, read_servers
from streamflow.store.topology import Server as Described

OLDEST = 7
FEW_RULES = 8
"""A user who lacks more is for something else: that is said once, instead of each rule in a line."""
FULL_SHARE = 0.8
"""Of maxmemory: from here on a server is nearly full."""

_WITHOUT_KEY = frozenset({"PING", "TIME"})
_FORMS = {
    "XREADGROUP": "XREADGROUP GROUP 1 1 STREAMS $KEY >",
    "XREAD": "XREAD STREAMS $KEY 0",
    "SPUBLISH": "SPUBLISH $CHANNEL",
}
"""Those whose key is not the first argument."""
NO_SUCH_SCRIPT = "0" * 40
_OUTSIDE_SCRIPTS: dict[str, tuple[Any, ...]] = {
    "EVALSHA": ("EVALSHA", NO_SUCH_SCRIPT, 0),
    "EVALSHA_RO": ("EVALSHA_RO", NO_SUCH_SCRIPT, 0),
    "EVAL_RO": ("EVAL_RO", "return 1", 0),
    "SCRIPT LOAD": ("SCRIPT", "LOAD", "not a script"),
    "CLUSTER NODES": ("CLUSTER", "NODES"),
    "ASKING": ("ASKING",),
}
"""Commands that scripts can't call, as calls that do nothing."""
_TRIED_ELSEWHERE = frozenset({"INFO", "SELECT", "SSUBSCRIBE", "SUNSUBSCRIBE", "WAIT", "WAITAOF"})
"""INFO may be hidden; SELECT is sent with each connection to a database other than 0."""

_ANSWER_SECONDS = 2.0
"""Within which a server of a cluster has to say what it is."""

_PROBE = """#!lua flags=no-writes
local denied = {}
for _, line in ipairs(ARGV) do
  local words = {}
  for word in string.gmatch(line, '%S+') do words[#words + 1] = word end
  for _ = 1, 6 do
    local reply = redis.pcall(unpack(words))
    local text = type(reply) == 'table' and reply.err and string.lower(reply.err) or ''
    if not string.find(text, 'number of arg') then
      if string.find(text, 'permission') or string.find(text, "can't run") or string.find(text, "can't access")
        or string.find(text, "can't publish") or string.find(text, 'unknown') then
        denied[#denied + 1] = line
        denied[#denied + 1] = text
      end
      break
    end
    words[#words + 1] = '1'
  end
end
return denied
"""


PART_OF_CLUSTER = "the server is part of a cluster: use redis+cluster://HOST:PORT (or rediss+cluster://)"


class Finding(msgspec.Struct, frozen=True):
    """`is_error`: it keeps streamflow from working; else a warning. `about`: settings, app, server, permissions,
    durability or namespace. `message`: a sentence with what to do."""

    is_error: bool
    about: str
    message: str


def version_of(info: Mapping[str, Any]) -> str:
    return str(info.get("valkey_version") or info.get("redis_version") or "0")


def too_old(info: Mapping[str, Any]) -> str | None:
    """What to say of a server of this INFO that is too old."""
    version = version_of(info)
    if int(version.partition(".")[0] or 0) >= OLDEST:
        return None
    return f"the server is version {version}; streamflow needs Redis 7.0 or any Valkey"


def evicting(info: Mapping[str, Any]) -> str | None:
    """What to say of a server that deletes keys when memory is short."""
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if policy == "noeviction":
        return None
    return (
        f"the server has maxmemory-policy {policy}: it would delete runs when memory is short. "
        "Set `CONFIG SET maxmemory-policy noeviction`."
    )


def forgetful(info: Mapping[str, Any]) -> str | None:
    """What to say of a server that keeps nothing over a restart."""
    if _number(info, "aof_enabled"):
        return None
    return "the server has no append-only file: a restart loses runs. `CONFIG SET appendonly yes` keeps them."


def hidden_info(error: object) -> str:
    """What to say of a server that doesn't tell what it is."""
    return (
        f"{error}. So it is not known whether the server keeps its data (maxmemory-policy, appendonly) and whether it "
        "was restarted: allow +info if you can"
    )


class _Server(NamedTuple):
    """`address`: empty for a single one."""

    address: str
    node: Node
    is_replica: bool = False

    @property
    def name(self) -> str:
        return f"the replica {self.address}" if self.is_replica else self.address


@contextlib.asynccontextmanager
async def _all_servers(store: Store) -> AsyncGenerator[list[_Server]]:
    """Those of a store, and of a cluster the replicas, too: one day they are primaries. Raises `StoreUnavailable`."""
    servers = [_Server(address, node) for address, node in await servers_of(store)]
    named, replicas = cluster_of(store.url), list[_Server]()
    try:
        if named is not None:
            for host, port in await _replicas(servers):
                node = Node(named.node(host, port), connections=1)
                replicas.append(_Server(f"{host}:{port}", node, is_replica=True))
        yield [*servers, *replicas]
    finally:
        for server in replicas:
            await server.node.close()


async def _replicas(servers: Sequence[_Server]) -> list[tuple[str, int]]:
    """As the first primary that answers knows them."""
    for server in servers:
        if found := await _told_nodes(server):
            return sorted(one.address for one in found if one.of)
    return []


async def _unserved(servers: Sequence[_Server]) -> int:
    """How many slots no primary says that it has; 0 if not all of them answer. Others go on naming the last one."""
    served = 0
    for server in (one for one in servers if not one.is_replica):
        found = await _told_nodes(server)
        if not found:
            return 0
        own = next((one for one in found if one.address == _address(server)), None)
        served += sum(last + 1 - first for first, last in own.slots) if own is not None else 0
    return max(0, SLOTS - served)


async def _told_nodes(server: _Server) -> list[Described]:
    """What a server answers to CLUSTER NODES; nothing if it doesn't."""
    with contextlib.suppress(*LOST, TimeoutError, ValueError):
        with anyio.fail_after(_ANSWER_SECONDS):
            [text] = await server.node.attempt([Call.plain("CLUSTER", "NODES")])
        if isinstance(text, bytes):
            return read_servers(text.decode(errors="replace"), _address(server))
    return []


def _address(server: _Server) -> tuple[str, int]:
    host, _, port = server.address.rpartition(":")
    return host, int(port)


async def inspect(
    store: Store, keys: NamespaceKeys, role: Role = Role.DAEMON, durability: Durability | None = None
) -> list[Finding]:
    """Everything that is wrong with the server, and with what its user may do in a namespace. `durability`: if writes
    wait there.

    Raises `StoreUnavailable` when the server can't be reached.
    """
    findings: list[Finding] = []
    is_single = not isinstance(store, Cluster)
    async with _all_servers(store) as servers:
        infos: list[dict[str, Any]] = []
        answering: list[_Server] = []
        for server in servers:
            try:
                info = await _info(server)
            except redis_errors.AuthenticationError:
                answering.append(server)  # that is said among the permissions
                continue
            except (*LOST, TimeoutError) as error:
                text = str(error) or f"no answer within {_ANSWER_SECONDS:g} s"
                findings.append(Finding(not server.is_replica, "server", f"{server.name} is away: {text}"))
                continue
            answering.append(server)
            if isinstance(info, StoreError):
                findings.append(Finding(False, "server", about(server.name, hidden_info(info))))
                continue
            infos.append(info)
            found = _server(info, is_single=is_single, is_replica=server.is_replica)
            findings += [Finding(one.is_error, one.about, about(server.name, one.message)) for one in found]
        doubts = await store.doubts()
        if not is_single and (unserved := await _unserved(servers)):
            text = f"{unserved} of the cluster's {SLOTS} slots have no server"
            findings.append(Finding(True, "server", f"{text}: `redis-cli --cluster fix HOST:PORT` mends it"))
            doubts = [doubt for doubt in doubts if "slots have no server" not in doubt]
        if sentinels_of(store.url) is not None and not any("no replica" in doubt for doubt in doubts):
            doubts += [lonely for info in infos if (lonely := _without_replica(info))]
        findings += [Finding(False, "server", text) for text in doubts]
        if any(_number(info, "loading") or too_old(info) for info in infos):
            return [*findings, Finding(False, "permissions", "not checked")]
        lacking, refused = await _lacking(answering, keys.namespace, role, durability)
        findings += [Finding(True, "permissions", _unknown_user(server, refused[server])) for server in refused]
    if len(lacking) > FEW_RULES:
        return [*findings, Finding(True, "permissions", await _other_user(store, keys.namespace, role, [*lacking]))]
    count = len(answering) - len(refused)
    for rule, where in lacking.items():
        at = "" if len(where) == count else f"{', '.join(server.name for server in where)}: "
        findings.append(Finding(True, "permissions", f"{at}{_sentence(rule, keys.namespace)}"))
    return findings


async def _info(server: _Server) -> dict[str, Any] | StoreError:
    """What the server says of itself. Raises `LOST` or `TimeoutError` for one of a cluster that doesn't answer now, and
    for a single one `StoreUnavailable` when it hasn't for long."""
    call = Call.plain("INFO", "everything")
    if not server.address:
        try:
            return await server.node.one(call)
        except StoreUnavailable:
            raise
        except StoreError as error:
            return error
    with anyio.fail_after(_ANSWER_SECONDS):
        [reply] = await server.node.attempt([call])
    return server.node.parsed(call, reply)


def _without_replica(info: Mapping[str, Any]) -> str | None:
    """What to say of a primary that Sentinels watch, and of which they go on counting a replica that is gone."""
    if info.get("role") != "master" or _number(info, "connected_slaves"):
        return None
    return (
        "no replica is connected to the primary: there is none to go on with when it is lost. Start those that "
        "`SENTINEL REPLICAS SERVICE` names at a Sentinel"
    )


def _unknown_user(server: _Server, error: str) -> str:
    return (
        f"{server.name} refuses the credentials: {error}. A cluster's servers don't tell each other their users: "
        "create them on each server, also on replicas"
    )


async def inspect_durability(
    store: Store, keys: NamespaceKeys, durability: Durability, role: Role = Role.DAEMON
) -> list[Finding]:
    """Whether each server confirms now what this level asks for. What is written for that lasts a millisecond: without
    a write both commands count what was confirmed before.
    """
    fences = [keys.fence] if store.is_single else await fence_of_each(store, keys)
    found = await asyncio.gather(*(_unconfirmed(store, fence, keys.namespace, durability, role) for fence in fences))
    return [finding for finding in found if finding is not None]


async def _unconfirmed(store: Store, fence: str, namespace: str, durability: Durability, role: Role) -> Finding | None:
    """What keeps the server of this key from confirming."""
    calls = [Call.plain("SET", fence, "", "PX", 1), Call.plain(*durability.command)]
    address = store.server_name(store.server_of(fence))  # whether the user may do that is among the permissions
    try:
        sending = store.send(calls) if store.is_single else store.send_to_one(store.server_of(fence), calls)
        written, answer = await sending
    except StoreUnavailable as error:  # it is loading, for example
        return Finding(False, "durability", about(address, f"not checked: {error}"))
    if isinstance(written, Elsewhere | OtherHistory):
        return Finding(False, "durability", about(address, f"not checked: {written}"))
    name = durability.command[0]
    other = "or choose another level with `daemon --durability`"
    if isinstance(answer, StoreMisconfigured):
        text = (
            f"the user may not use {name}: allow +{name.lower()} (`streamflow acl --role {role} --namespace "
            f"{namespace} --durability {durability}` prints all rules), {other}"
        )
    elif isinstance(answer, StoreError):
        text = f"the server can't confirm it: {answer}. `disk` needs Redis 7.2 or Valkey with appendonly yes: {other}"
    elif durability.is_met(answer):
        return None
    elif durability.replicas:
        text = (
            f"within {WAIT_MS / 1000:g} s {answer} of {durability.replicas} replicas confirmed what was sent to them, "
            f"so starts and decisions would wait: attach replicas, see in INFO replication why they lag, {other}"
        )
    else:
        text = (
            f"within {WAIT_MS / 1000:g} s the server's append-only file was not on the disk, so starts and decisions "
            f"would wait: set appendfsync always, look at the disk, {other}"
        )
    return Finding(True, "durability", f"{durability}: {about(address, text)}")


async def _other_user(store: Store, namespace: str, role: Role, missing: Sequence[str]) -> str:
    """What to say of a user who lacks so much that it is not meant for this role, or for this namespace."""
    fitting = [other for other in Role if other is not role and not await missing_permissions(store, namespace, other)]
    if fitting:
        has = (
            f"the user has what a {fitting[0]} needs in namespace {namespace}, and not what a {role} needs. "
            f"`streamflow check --role {fitting[0]}` checks it as that; a {role}"
        )
    else:
        has = (
            f"the user lacks {len(missing)} rules of what a {role} needs in namespace {namespace}. If it is for "
            "another namespace, use its --namespace; a user for this one"
        )
    return (
        f"{has} needs the rules that `streamflow acl --role {role} --namespace {namespace}` prints (`--add` for a user "
        f"that exists).\nmissing: {' '.join(missing)}"
    )


def about(address: str, message: str) -> str:
    """The message, said of one server of several."""
    return f"{address}: {message}" if address else message


def _server(info: Mapping[str, Any], *, is_single: bool = True, is_replica: bool = False) -> list[Finding]:
    """`is_replica`: it is one of a cluster, as it should be."""
    errors = [text for text in (too_old(info), evicting(info)) if text is not None] if info else []
    warnings = [text for text in (forgetful(info),) if text is not None] if info else []
    if info.get("role") == "slave" and not is_replica:
        errors.append("the server is a replica and takes no writes: use the address of its primary")
    if _number(info, "loading"):
        errors.append("the server is loading its data: wait until it has finished, then check again")
    for field, what in (("aof_last_write_status", "append-only file"), ("rdb_last_bgsave_status", "snapshot")):
        if info.get(field, "ok") != "ok":
            errors.append(
                f"the server could not write its {what} and may refuse writes: look at its log, and at its disk"
            )
    if is_single and _number(info, "cluster_enabled"):
        errors.append(PART_OF_CLUSTER)
    used, limit = _number(info, "used_memory"), _number(info, "maxmemory")
    if limit and used >= limit:
        errors.append("the server is out of memory and takes no new runs: raise maxmemory, or shorten `retention`")
    elif limit and used >= FULL_SHARE * limit:
        warnings.append(f"the server uses {used / limit:.0%} of maxmemory: raise it, or shorten `retention`")
    return [
        *(Finding(True, "server", text) for text in errors),
        *(Finding(False, "server", text) for text in warnings),
    ]


async def missing_permissions(
    store: Store, namespace: str, role: Role, durability: Durability | None = None
) -> list[str]:
    """The rules for `ACL SETUSER` that the user of `store` lacks for a role, on any server: `+xadd`, `~sf:{shop}:*`.
    `durability`: if writes wait there; whether the user may use its command is for `inspect_durability`.

    Raises `StoreUnavailable` when no server answers, or when one refuses the credentials.
    """
    async with _all_servers(store) as servers:
        lacking, refused = await _lacking(servers, namespace, role, durability)
    for server, error in refused.items():
        raise StoreUnavailable(_unknown_user(server, error))
    return [*lacking]


async def _lacking(
    servers: Sequence[_Server], namespace: str, role: Role, durability: Durability | None = None
) -> tuple[dict[str, list[_Server]], dict[_Server, str]]:
    """The rules that are missing, each with the servers on which it is, and the servers that refuse the credentials,
    with what they say. Raises `StoreUnavailable` when none answers."""
    needed, commands = rights(role, namespace, durability), commands_of(role, durability)
    if not servers[0].address:
        commands = [command for command in commands if command not in IN_CLUSTER]
    lacking: dict[str, list[_Server]] = {}
    refused: dict[_Server, str] = {}
    lost: Exception | None = None
    answered = False
    for server in servers:
        # Of its own: what a script that doesn't exist gets as an answer would make others load theirs.
        link = server.node.link()
        try:
            missing = await _missing_rules(link, needed, commands)
        except redis_errors.AuthenticationError as error:
            if not server.address:
                raise StoreUnavailable(f"the server refuses the credentials: {error}") from error
            refused[server] = str(error)
            continue
        except LOST as error:
            lost = error
            continue
        finally:
            link.drop()
        answered = True
        for rule in missing:
            lacking.setdefault(rule, []).append(server)
    if lost is not None and not answered:
        raise StoreUnavailable(f"the connection to the server was lost: {lost}") from lost
    return lacking, refused


async def _missing_rules(link: Link, needed: Rights, commands: Sequence[str]) -> list[str]:
    outside = [command for command in commands if command in _OUTSIDE_SCRIPTS]
    answers = await link.exchange([_OUTSIDE_SCRIPTS[command] for command in outside])
    denied = [command for command, answer in zip(outside, answers, strict=True) if _is_denied(answer)]
    missing = [f"+{rule_of(command)}" for command in denied]
    keys = [
        (f"{sign}{pattern}", (verb, script, 1, _example(pattern)))
        for verb, script, sign, patterns in (
            ("EVALSHA", NO_SUCH_SCRIPT, "~", needed.writes),
            ("EVAL_RO", "return 1", "%R~", needed.reads),
        )
        for pattern in patterns
        if verb not in denied
    ]
    answers = await link.exchange([call for _, call in keys]) if keys else []
    closed = [rule for (rule, _), answer in zip(keys, answers, strict=True) if _is_denied(answer)]
    inside = [command for command in commands if command not in {*_OUTSIDE_SCRIPTS, *_TRIED_ELSEWHERE}]
    if not closed:  # else the keys would be the reason for every command
        missing += await _denied_in_script(link, needed, inside, "EVAL_RO" in denied)
    if "SSUBSCRIBE" in commands:
        for pattern in needed.channels:
            missing += await _denied_to_subscriber(link, pattern)
    return [*sorted(dict.fromkeys(missing)), *closed]


def _sentence(rule: str, namespace: str) -> str:
    if rule.startswith("+"):
        return f"the user may not use {rule[1:].upper().replace('|', ' ')}: allow {rule}"
    what = "channels" if rule.startswith("&") else "keys"
    return f"the user may not use these {what} of namespace {namespace}: allow {rule}"


async def _denied_in_script(link: Link, needed: Rights, commands: Sequence[str], load: bool) -> list[str]:
    """Of commands that a script may call, the rules that are missing, for a user who may use the keys."""
    key = _example((*needed.writes, *needed.reads)[0])
    lines: dict[str, tuple[str, str]] = {}  # -> command, pattern of the channel that it names
    for command in commands:
        line = _FORMS.get(command, command if command in _WITHOUT_KEY else f"{command} $KEY")
        for pattern in needed.channels if "$CHANNEL" in line else [""]:
            places = {"$KEY": key, "$CHANNEL": _example(pattern)}
            lines[" ".join(places.get(word, word) for word in line.split())] = command, pattern
    call: tuple[Any, ...] = ("EVAL_RO", _PROBE, 0, *lines)
    if load:
        [sha] = await link.exchange([("SCRIPT", "LOAD", _PROBE)])
        call = ("EVALSHA", sha.decode() if isinstance(sha, bytes) else NO_SUCH_SCRIPT, 0, *lines)
    [reply] = await link.exchange([call])
    if isinstance(reply, Exception):
        return []  # the user may run no script at all: that is said already
    pairs = zip(reply[::2], reply[1::2], strict=True)
    return [
        f"&{lines[line.decode()][1]}" if b"channel" in reason else f"+{rule_of(lines[line.decode()][0])}"
        for line, reason in pairs
    ]


async def _denied_to_subscriber(link: Link, pattern: str) -> list[str]:
    """The rules that are missing for a subscription, after which the connection can do nothing else."""
    verbs = ("SSUBSCRIBE", "SUNSUBSCRIBE")
    replies = await link.exchange([(verb, _example(pattern)) for verb in verbs])
    return [
        f"&{pattern}" if "channel" in str(reply) else f"+{rule_of(verb)}"
        for verb, reply in zip(verbs, replies, strict=True)
        if _is_denied(reply)
    ]


def _is_denied(answer: object) -> bool:
    """By its user's rules, or because the server has no such command: it is renamed, or the service hides it."""
    return isinstance(answer, redis_errors.NoPermissionError) or (
        isinstance(answer, Exception) and "unknown" in str(answer).lower()
    )


def _example(pattern: str) -> str:
    """A key or channel that a pattern of a namespace matches."""
    return pattern.replace("*", "0")


def _number(info: Mapping[str, Any], name: str) -> int:
    try:
        return int(info.get(name, 0))
    except (TypeError, ValueError):
        return 0
