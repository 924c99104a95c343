"""`streamflow acl`: the line that it prints, and that no password is in it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from click.testing import CliRunner, Result

from streamflow.cli import cli

HASH = hashlib.sha256(b"s3cret").hexdigest()


def acl(*words: str, typed: str | None = None) -> Result:
    return CliRunner().invoke(cli, ["acl", *words], input=typed, env={"STREAMFLOW_NAMESPACE": None})


def test_the_line_replaces_the_user_and_allows_one_namespace() -> None:
    result = acl("--role", "viewer", "--namespace", "shop", "--hash", HASH)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"ACL SETUSER shop-viewer reset on #{HASH} resetchannels %R~sf:{{shop}}:* ")
    assert result.stdout.count("\n") == 1
    assert result.stderr == ""


def test_without_a_password_the_line_is_one_that_the_server_refuses() -> None:
    result = acl("--role", "worker", "--user", "gpu")
    assert result.stdout.startswith("ACL SETUSER gpu reset on #SHA256_OF_PASSWORD resetchannels ")
    assert "replace #SHA256_OF_PASSWORD" in result.stderr


@pytest.mark.parametrize("typed", ["s3cret", "s3cret\n", "s3cret\r\n"])
def test_a_password_on_stdin_is_printed_as_its_hash(typed: str) -> None:
    result = acl("--role", "daemon", "--password-stdin", typed=typed)
    assert f" #{HASH} " in result.stdout
    assert "s3cret" not in result.output


def test_json_has_the_parts_of_the_line_and_one_for_a_file() -> None:
    printed: dict[str, Any] = json.loads(acl("--role", "client", "--hash", HASH, "--json").stdout)
    assert printed["setuser"].removeprefix("ACL SETUSER ") == printed["aclfile"].removeprefix("user ")
    for sign, name in (("+", "commands"), ("~", "writes"), ("%R~", "reads"), ("&", "channels")):
        assert printed[name]
        assert all(f" {sign}{item}" in printed["setuser"] for item in printed[name])


def test_rules_are_added_without_a_password() -> None:
    result = acl("--role", "viewer", "--namespace", "shop", "--add")
    assert result.stdout.startswith("ACL SETUSER shop-viewer %R~sf:{shop}:* ")
    assert "SHA256" not in result.output


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--user", "two words"], "--user must be without spaces"),
        (["--hash", "abc"], "64 hexadecimal digits"),
        (["--hash", HASH, "--password-stdin"], "no --password-stdin beside it"),
        (["--hash", HASH, "--add"], "--add leaves the password as it is"),
        (["--password-stdin"], "the password on stdin is empty"),
        (["--namespace", "a*"], "namespace 'a*' is not allowed"),
    ],
)
def test_what_makes_no_user_is_refused(words: list[str], reason: str) -> None:
    result = acl("--role", "viewer", *words, typed="")
    assert result.exit_code == 2
    assert reason in result.stderr
