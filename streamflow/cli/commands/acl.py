"""`acl`: the rules for the server's user of a daemon, worker, client or viewer.

Owns: its options, the password's hash, and how the rules are printed. Must not: know what a role needs
(`store/roles.py` does), or talk to a server. Called by: the group in `cli`.
"""

from __future__ import annotations

import hashlib
import re
import sys

import click

from streamflow.cli.options import ROLES, json_option, settings_options
from streamflow.cli.output import print_json
from streamflow.errors import UsageError
from streamflow.settings import load_settings

PLACEHOLDER = "#SHA256_OF_PASSWORD"
"""Refused by the server, so that no user with a known password comes from a line that was pasted as it is."""


@click.command()
@click.option("--role", type=click.Choice(ROLES), required=True, help="What the user is for.")
@settings_options("namespace")
@click.option(
    "--durability", metavar="LEVEL", default="server", help="That of the namespace: server, disk or replicas:N."
)
@click.option("--user", metavar="NAME", help="Name of the user.  [default: NAMESPACE-ROLE]")
@click.option("--hash", "hashed", metavar="HEX", help="SHA-256 of the password, in hexadecimal.")
@click.option(
    "--password-stdin", "reads", is_flag=True, help="Read the password from stdin (asked for on a terminal), hash it."
)
@click.option("--add", "only_add", is_flag=True, help="Only add the rules to a user that exists.")
@json_option
def acl(
    role: str,
    namespace: str | None,
    durability: str,
    user: str | None,
    hashed: str | None,
    reads: bool,
    only_add: bool,
    as_json: bool,
) -> None:
    """Print the server's user for a role: exactly what it needs in one namespace.

    The line is a command for redis-cli or valkey-cli. It replaces a user of that name at once; with --add it adds what
    another release of streamflow needs, and leaves the password as it is. The password stands in it as a hash; without
    --hash or --password-stdin, as a placeholder that the server refuses.

    \b
    Roles:
      daemon   runs daemons, `views rebuild`, and whatever a viewer does
      worker   runs workers
      client   starts runs, sends signals, asks, cancels and forgets, and whatever a viewer does
      viewer   status, runs, show, tail, read, export; changes nothing

    \b
    Example:
      streamflow acl --role worker --namespace shop --password-stdin | redis-cli --askpass
    """
    from streamflow.store.durability import Durability
    from streamflow.store.roles import ACCESS, Role, rights

    space = load_settings({"namespace": namespace}).namespace
    name = user or f"{space}-{role}"
    if not re.fullmatch(r"[^\s\x00\"'\\]+", name):
        raise UsageError(f"--user must be without spaces, quotes and backslashes, got {name!r}")
    if only_add and (reads or hashed is not None):
        raise UsageError("--add leaves the password as it is: use it without --hash and --password-stdin")
    secret = PLACEHOLDER
    if hashed is not None:
        if reads or not re.fullmatch(r"[0-9a-f]{64}", hashed.lower()):
            raise UsageError("--hash takes the 64 hexadecimal digits of a SHA-256, and no --password-stdin beside it")
        secret = f"#{hashed.lower()}"
    elif reads:
        secret = f"#{hashlib.sha256(_password().encode()).hexdigest()}"
    needed = rights(Role(role), space, Durability.of(durability))
    words = [name, *(() if only_add else ("reset", "on", secret, "resetchannels")), *needed.rules]
    line = " ".join(["ACL", "SETUSER", *words])
    if as_json:
        print_json(
            {
                "role": role,
                "namespace": space,
                "user": name,
                "about": ACCESS[Role(role)].about.replace("`", ""),
                "commands": needed.commands,
                "writes": needed.writes,
                "reads": needed.reads,
                "channels": needed.channels,
                "setuser": line,
                "aclfile": " ".join(["user", *words]),
            }
        )
        return
    click.echo(line)
    if secret in words and secret == PLACEHOLDER:
        click.echo(
            f"note: replace {PLACEHOLDER}, or use --password-stdin: `printf %s PASSWORD | sha256sum` prints the hash",
            err=True,
        )


def _password() -> str:
    if sys.stdin.isatty():
        password = str(click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True))
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    if not password:
        raise UsageError("the password on stdin is empty")
    return password
