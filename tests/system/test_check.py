"""`streamflow check` and `daemon --check`: findings about settings, app, server, permissions, namespace."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from redis import Redis

from streamflow.cli import cli
from streamflow.embedded.server import EmbeddedServer
from streamflow.http import exposition
from streamflow.store.roles import Role, rights
from tests.conftest import REDIS_SERVER, clean_keys

KINDS = ["embedded_server", *(["redis_server"] if REDIS_SERVER else [])]
FLOWS = "import streamflow as sf\napp = sf.App()\n@app.workflow\nasync def echo(x: int) -> int: return x\n"


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest) -> EmbeddedServer:
    return request.getfixturevalue(request.param)


@pytest.fixture
def admin(server: EmbeddedServer, namespace: str) -> Iterator[Redis]:
    with Redis.from_url(server.url, decode_responses=True) as redis:
        yield redis
        redis.acl_deluser(f"u{namespace}")
    assert asyncio.run(clean_keys(server.url, namespace)) == [], "a check writes nothing"


def allow(admin: Redis, server: EmbeddedServer, namespace: str, *rules: str) -> str:
    """The URL of a user with all permissions on the namespace, changed by these rules."""
    own = (f"~sf:{{{namespace}}}:*", f"~sf:{{{namespace}/*}}:*", f"&sf:{{{namespace}/*}}:*", "+@all")
    admin.execute_command("ACL", "SETUSER", f"u{namespace}", "reset", "on", ">s3cret", *own, *rules)
    return server.url.replace("://", f"://u{namespace}:s3cret@")


def invoke(*words: str, **environ: str) -> Result:
    return CliRunner().invoke(cli, words, env={"STREAMFLOW_APP": None, "STREAMFLOW_REDIS": None, **environ})


def findings(result: Result, level: str = "error") -> list[tuple[str, str]]:
    report: dict[str, Any] = json.loads(result.stdout)
    assert report["ok"] is (result.exit_code == 0)
    assert "s3cret" not in result.output
    return [(one["about"], one["message"]) for one in report["findings"] if one["level"] == level]


def test_a_user_with_exactly_the_needed_keys_passes(admin: Redis, server: EmbeddedServer, namespace: str) -> None:
    url = allow(admin, server, namespace)
    result = invoke("check", "--redis", url, "--namespace", namespace, "--json")
    assert (result.exit_code, findings(result)) == (0, [])
    assert json.loads(result.stdout)["checked"] == ["settings", "server", "permissions", "namespace"]
    shown = invoke("check", "--redis", url, "--namespace", namespace)
    assert shown.exit_code == 0
    assert "ok       permissions\nok       namespace\n" in shown.stdout


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (["-xadd"], ["may not use XADD: allow +xadd"]),
        (["-xgroup|create"], ["may not use XGROUP CREATE: allow +xgroup|create"]),
        (["-hset", "-zrem"], ["HSET", "ZREM"]),
        (["-xrange"], ["may not use XRANGE"]),
        (["-ssubscribe"], ["may not use SSUBSCRIBE: allow +ssubscribe"]),
        (["-spublish"], ["may not use SPUBLISH: allow +spublish"]),
        (["resetchannels"], [":inbox", ":chunks:", ":queue:", ":done"]),
        (["resetchannels", "&sf:{*}:done"], ["may not use these channels", ":chunks:", ":queue:"]),
        (["resetkeys", "~other*"], ["may not use these keys", "may not use these keys"]),
        (["-evalsha"], ["may not use EVALSHA: allow +evalsha"]),
        (["-eval_ro", "-xadd"], ["may not use EVAL_RO", "may not use XADD"]),
    ],
)
def test_each_permission_that_is_missing_is_named(
    admin: Redis, server: EmbeddedServer, namespace: str, rules: list[str], expected: list[str]
) -> None:
    url = allow(admin, server, namespace, *rules)
    found = findings(invoke("check", "--redis", url, "--namespace", namespace, "--json"))
    assert [about for about, _ in found] == ["permissions"] * len(expected)
    for part in expected:
        assert any(part in message for _, message in found), found


def test_what_only_a_worker_needs_is_asked_of_a_worker(admin: Redis, server: EmbeddedServer, namespace: str) -> None:
    url = allow(admin, server, namespace, "-xreadgroup")
    words = ("check", "--redis", url, "--namespace", namespace, "--json")
    assert findings(invoke(*words)) == []
    expected = [("permissions", "the user may not use XREADGROUP: allow +xreadgroup")]
    assert findings(invoke(*words, "--role", "worker")) == expected


def test_the_user_of_another_role_is_told_in_one_line(admin: Redis, server: EmbeddedServer, namespace: str) -> None:
    admin.execute_command(
        "ACL", "SETUSER", f"u{namespace}", "reset", "on", ">s3cret", *rights(Role.VIEWER, namespace).rules
    )
    url = server.url.replace("://", f"://u{namespace}:s3cret@")
    [(about, message)] = findings(invoke("check", "--redis", url, "--namespace", namespace, "--json"))
    assert about == "permissions"
    assert f"has what a viewer needs in namespace {namespace}, and not what a daemon needs" in message
    assert "`streamflow check --role viewer`" in message
    assert f"`streamflow acl --role daemon --namespace {namespace}`" in message
    assert {"+xadd", "+evalsha"} <= set(message.rpartition("missing: ")[2].split())
    other = f"{namespace}x"
    [(about, message)] = findings(invoke("check", "--redis", url, "--namespace", other, "--json"))
    assert about == "permissions"
    assert f"what a daemon needs in namespace {other}. If it is for another namespace" in message


def test_the_namespace_must_fit(admin: Redis, server: EmbeddedServer, namespace: str) -> None:
    key = f"sf:{{{namespace}}}:meta"
    admin.hset(key, mapping={"shards": 4, "partition": "run", "schema": 0})
    words = ("check", "--redis", server.url, "--namespace", namespace, "--json", "--shards")
    [(about, message)] = findings(invoke(*words, "4"))
    assert (about, "schema 0" in message) == ("namespace", True)
    from streamflow.store.kernel import SCHEMA

    admin.hset(key, "schema", SCHEMA)
    assert findings(invoke(*words, "4")) == []
    [(about, message)] = findings(invoke(*words, "8"))
    assert (about, "use --shards 4" in message) == ("namespace", True)
    admin.delete(key)


def test_every_wrong_setting_is_named_and_nothing_is_asked_then() -> None:
    result = invoke(
        "check",
        "--json",
        STREAMFLOW_BEAT="soon",
        STREAMFLOW_SHARDS="0",
        STREAMFLOW_REDIS="redis://:s3cret@host?x=1",
        STREAMFLOW_CONCURENCY="7",
    )
    found = findings(result)
    assert [about for about, _ in found] == ["settings"] * 3
    for part in ("the option x is not allowed", "STREAMFLOW_SHARDS='0'", "STREAMFLOW_BEAT='soon'"):
        assert any(part in message for _, message in found)
    warnings = findings(result, "warning")
    assert ("server", "not checked, because the settings are wrong") in warnings
    assert any("did you mean STREAMFLOW_CONCURRENCY?" in message for _, message in warnings)


def test_a_server_that_does_not_answer_is_a_finding() -> None:
    result = invoke("check", "--redis", "redis://:s3cret@127.0.0.1:1", "--json")
    [(about, message)] = findings(result)
    assert (about, "no answer from redis://***@127.0.0.1:1" in message) == ("server", True)
    assert json.loads(result.stdout)["checked"] == ["settings", "server"]


def test_a_daemon_checks_its_app_too(
    admin: Redis, server: EmbeddedServer, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "checked_flows.py").write_text(FLOWS)
    words = ("daemon", "--check", "--redis", server.url, "--namespace", namespace, "--log-format", "json")
    assert findings(invoke(*words, "--app", "checked_flows.py:app")) == []
    for wrong, reason in (((), "missing --app"), (("--app", "checked_flows.py:nothing"), "no such attribute")):
        [(about, message)] = findings(invoke(*words, *wrong))
        assert (about, reason in message) == ("app", True)


def test_a_package_that_metrics_need_and_is_not_there_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "can_be_exposed", lambda: False)
    words = ("check", "--redis", "redis://127.0.0.1:1", "--json")
    assert findings(invoke(*words), "warning") == []
    [(about, message)] = findings(invoke(*words, STREAMFLOW_HTTP="127.0.0.1:9464"), "warning")
    assert (about, "install streamflowd[metrics]" in message) == ("settings", True)
