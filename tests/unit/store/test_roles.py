"""The table of roles: that it knows all scripts, and that its patterns are those of one namespace."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest

from streamflow.cli.options import ROLES
from streamflow.store.durability import Durability
from streamflow.store.keys import NamespaceKeys
from streamflow.store.roles import ACCESS, Role, commands_in, rights
from streamflow.store.scripts import load_scripts


def test_every_verb_belongs_to_a_role() -> None:
    assert {verb for access in ACCESS.values() for verb in access.verbs} == load_scripts().keys()


def test_the_command_line_has_the_roles_of_the_table() -> None:
    assert list(ROLES) == [role.value for role in Role] == [role.value for role in ACCESS]


def test_every_command_of_a_script_is_read_from_it() -> None:
    for name, script in load_scripts().items():
        known = {command.partition(" ")[0] for command in commands_in(name)}
        for number, line in enumerate(script.source.splitlines(), 1):
            for call in line.partition("--")[0].split("redis.")[1:]:
                if call.startswith(("call(", "pcall(")):
                    command = call.partition("'")[2].partition("'")[0]
                    assert command in known, f"{name}:{number} calls what the table can't read"


READING = {
    *("HGET", "HGETALL", "HMGET", "HSCAN", "LINDEX", "LLEN", "LRANGE", "MEMORY USAGE", "TYPE"),
    *("XINFO GROUPS", "XLEN", "XPENDING", "XRANGE", "XREVRANGE"),
}


def test_a_verb_that_only_reads_has_no_command_that_writes() -> None:
    """Also in what it includes: a viewer would need the permission."""
    only_reading = [name for name, script in load_scripts().items() if "no-writes" in script.source.splitlines()[0]]
    assert "peek_positions" in only_reading
    assert {name: commands_in(name) - READING for name in only_reading} == dict.fromkeys(only_reading, frozenset())


def test_what_is_said_to_be_rare_is_in_the_table() -> None:
    for role, access in ACCESS.items():
        assert access.rare.keys() <= {*access.verbs, *access.commands}, role


@pytest.mark.parametrize("role", Role)
def test_patterns_match_keys_of_their_namespace_only(role: Role) -> None:
    needed = rights(role, "default")
    for name, own in (("default", True), ("default2", False), ("default.x", False), ("a", False)):
        keys = NamespaceKeys(name)
        found = [
            *(keys.meta, keys.members, keys.suspects("x"), keys.shard(3).inbox, keys.shard(3).run("r")),
            *(keys.queue("gpu", 1).stream, keys.shard(3).done),
        ]
        patterns = [*needed.writes, *needed.reads, *needed.channels]
        assert any(fnmatchcase(key, pattern) for key in found for pattern in patterns) is own


@pytest.mark.parametrize("role", Role)
def test_nobody_may_see_the_configuration_or_other_users(role: Role) -> None:
    names = {command.partition("|")[0] for command in rights(role, "default").commands}
    assert not names & {"acl", "config", "debug", "flushall", "flushdb", "keys", "monitor", "scan", "shutdown"}


def test_a_viewer_may_write_nothing() -> None:
    needed = rights(Role.VIEWER, "default")
    assert needed.writes == []
    assert not {"evalsha", "script|load", "spublish"} & set(needed.commands)


def test_a_durability_needs_more_of_who_waits_for_it() -> None:
    waiting = {Role.CLIENT: ("disk", "waitaof"), Role.DAEMON: ("replicas:2", "wait"), Role.WORKER: ("disk", "waitaof")}
    for role, (level, command) in waiting.items():
        usual, more = rights(role, "ns"), rights(role, "ns", Durability.of(level))
        assert command in set(more.commands) - set(usual.commands)
        assert {"set", "hset", "evalsha"} <= set(more.commands), role
        assert any(fnmatchcase("sf:{ns}:fence", pattern) for pattern in more.writes)
    assert rights(Role.VIEWER, "ns", Durability.of("disk")) == rights(Role.VIEWER, "ns")
