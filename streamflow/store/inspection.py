"""What a server and its user must be like for streamflow, found out without changing anything.

Owns: the demands on a server's version, memory, persistence and role, and on a user's permissions, and a sentence with
what to do for each that isn't met. Must not: write, or refuse anything by itself.
Called by: the check at a daemon's start (`namespace.py`), `streamflow check`.

Permissions are tried by a script that may only read (`no-writes`): the server looks at the permission first, so a
command that would write is refused either way, and the reason tells which it was.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from streamflow.errors import StoreError
from streamflow.store.connection import Call, Store
from streamflow.store.keys import NamespaceKeys
from streamflow.store.scripts import load_scripts

OLDEST = 7
FULL_SHARE = 0.8
"""Of maxmemory: from here on a server is nearly full."""

_CALL = re.compile(r"redis\.p?call\('([A-Z]+)'(?:,\s*'([A-Z]+)')?")
_WITH_SUBCOMMAND = frozenset({"XGROUP", "XINFO"})
_WITHOUT_KEY = frozenset({"TIME"})

_OUTSIDE_SCRIPTS = (
    *(
        "XRANGE $KEY",
        "XREVRANGE $KEY",
        "ZRANGE $KEY",
        "ZREVRANGE $KEY",
        "ZRANGEBYSCORE $KEY",
        "ZSCAN $KEY",
        "ZREM $KEY",
    ),
    *("ZCARD $KEY", "LINDEX $KEY", "LRANGE $KEY", "HGET $KEY", "HMGET $KEY", "HGETALL $KEY", "HKEYS $KEY", "HLEN $KEY"),
    "HSCAN $KEY",
    *("HSET $KEY", "HDEL $KEY", "SET $KEY", "GET $KEY", "MGET $KEY", "XLEN $KEY", "XINFO CONSUMERS $KEY"),
    *("XREADGROUP GROUP 1 1 STREAMS $KEY >", "XREAD STREAMS $KEY 0"),
)
"""What daemons, workers and clients send without a script; `docs/operations.md` lists the same."""

_PROBE = """#!lua flags=no-writes
local denied = {}
for _, line in ipairs(ARGV) do
  local words = {}
  for word in string.gmatch(line, '%S+') do
    words[#words + 1] = word == '$KEY' and KEYS[1] or word
  end
  for _ = 1, 6 do
    local reply = redis.pcall(unpack(words))
    local text = type(reply) == 'table' and reply.err and string.lower(reply.err) or ''
    if not string.find(text, 'number of arg') then
      if string.find(text, 'permission') or string.find(text, "can't run") or string.find(text, "can't access")
        or string.find(text, "can't publish") then
        denied[#denied + 1] = line
      end
      break
    end
    words[#words + 1] = '1'
  end
end
return denied
"""


class Finding(msgspec.Struct, frozen=True):
    """`is_error`: it keeps streamflow from working; else a warning. `about`: settings, app, server, permissions or
    namespace. `message`: a sentence with what to do."""

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


async def inspect(store: Store, keys: NamespaceKeys) -> list[Finding]:
    """Everything that is wrong with the server, and with what its user may do in a namespace.

    Raises `StoreUnavailable` when the server can't be reached.
    """
    info: dict[str, Any] = {}
    findings: list[Finding] = []
    try:
        info = await store.one(Call.plain("INFO", "everything"))
    except StoreError as error:
        findings.append(Finding(True, "permissions", f"{error}. Allow +info"))
    findings += _server(info)
    if _number(info, "loading") or (info and too_old(info)):
        return [*findings, Finding(False, "permissions", "not checked")]
    return findings + await _permissions(store, keys)


def _server(info: Mapping[str, Any]) -> list[Finding]:
    errors = [text for text in (too_old(info), evicting(info)) if text is not None] if info else []
    warnings = [text for text in (forgetful(info),) if text is not None] if info else []
    if info.get("role") == "slave":
        errors.append("the server is a replica and takes no writes: use the address of its primary")
    if _number(info, "loading"):
        errors.append("the server is loading its data: wait until it has finished, then check again")
    for field, what in (("aof_last_write_status", "append-only file"), ("rdb_last_bgsave_status", "snapshot")):
        if info.get(field, "ok") != "ok":
            errors.append(
                f"the server could not write its {what} and may refuse writes: look at its log, and at its disk"
            )
    if _number(info, "cluster_enabled"):
        warnings.append("the server is part of a cluster, which this version doesn't support: use one that is not")
    used, limit = _number(info, "used_memory"), _number(info, "maxmemory")
    if limit and used >= limit:
        errors.append("the server is out of memory and takes no new runs: raise maxmemory, or shorten `retention`")
    elif limit and used >= FULL_SHARE * limit:
        warnings.append(f"the server uses {used / limit:.0%} of maxmemory: raise it, or shorten `retention`")
    return [
        *(Finding(True, "server", text) for text in errors),
        *(Finding(False, "server", text) for text in warnings),
    ]


async def _permissions(store: Store, keys: NamespaceKeys) -> list[Finding]:
    findings: list[Finding] = []
    try:
        sha = await store.one(Call.plain("SCRIPT", "LOAD", _PROBE))
        denied: dict[str, None] = {}
        for prefix, channel in ((keys.prefix, keys.shard(0).done), (keys.shard(0).prefix, keys.shard(0).done)):
            key = f"{prefix}check"
            lines = [*(_commands()), f"SPUBLISH {channel}"]
            reply: list[bytes] = await store.one(Call.plain("EVALSHA", sha, 1, key, *lines))
            denied |= dict.fromkeys(line.decode() for line in reply)
        for line in denied:
            name = line.partition(" $KEY")[0].partition(" GROUP")[0].partition(" STREAMS")[0]
            if name.startswith("SPUBLISH"):
                channels = f"&sf:{{{keys.namespace}/*}}:*"
                text = f"the user may not publish to the channels of the namespace: allow +spublish and {channels}"
            else:
                text = f"the user may not use {name}: allow +{name.lower().replace(' ', '|')} and ~{_pattern(keys)}"
            findings.append(Finding(True, "permissions", text))
    except StoreError as error:
        text = (
            f"the user may not run scripts on the keys of the namespace: allow +script +evalsha and ~{_pattern(keys)}"
        )
        findings.append(Finding(True, "permissions", f"{text} ({error})"))
    for command in (("CLIENT", "ID"), ("TIME",)):
        try:
            await store.one(Call.plain(*command))
        except StoreError:
            name = " ".join(command)
            text = f"the user may not use {name}: allow +{name.lower().replace(' ', '|')}"
            findings.append(Finding(True, "permissions", text))
    return findings


def _commands() -> list[str]:
    """All that the scripts call, and what is sent without one."""
    found: dict[str, None] = {}
    for script in load_scripts().values():
        for command, word in _CALL.findall(script.source):
            if command == "SPUBLISH":
                continue
            name = f"{command} {word}" if command in _WITH_SUBCOMMAND else command
            found[name if command in _WITHOUT_KEY else f"{name} $KEY"] = None
    return [*found, *(line for line in _OUTSIDE_SCRIPTS if line not in found)]


def _pattern(keys: NamespaceKeys) -> str:
    return f"{keys.prefix}* ~sf:{{{keys.namespace}/*}}:*"


def _number(info: Mapping[str, Any], name: str) -> int:
    try:
        return int(info.get(name, 0))
    except (TypeError, ValueError):
        return 0
