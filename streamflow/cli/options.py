"""What commands share: options, the client, running async code, and printing.

Owns: `--redis`, `--namespace`, `--json`, the quick answer when no server is there, consoles and JSON output.
Must not: know any single command. Called by: all command modules.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import click

from streamflow.cli.logs import json_line, set_up, silence, visible_json
from streamflow.errors import StoreUnavailable, StreamflowError, UsageError
from streamflow.model.names import check_run_id

if TYPE_CHECKING:
    from rich.console import Console

    from streamflow.client.client import Client
    from streamflow.errors import Failure
    from streamflow.store.connection import Store

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

REACH_SECONDS = 2.0
"""How long a server may take to answer at first. Once it has, the store's own patience counts."""
PIPE_WIDTH = 160
"""Width of tables that go to a pipe or a file, where no terminal says it."""


def server_options(command: F) -> F:
    """`--redis` and `--namespace`, for the two first parameters of `command`."""
    command = click.option("--namespace", metavar="NAME", help="The namespace.  [default: default]")(command)
    return click.option(
        "--redis", metavar="URL", help="The Redis or Valkey server.  [default: redis://127.0.0.1:6379]"
    )(command)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def checked_id(text: str) -> str:
    """The type of options and arguments that take a run's id: checked before a server is asked."""
    return check_run_id(text)


def run_async(function: Callable[[], Coroutine[Any, Any, T]], *, fast: bool = False, screen: bool = False) -> T:
    """Run until done, on uvloop where it is worth its import (`fast`) and exists.

    Warnings go to stderr, unless a live `screen` has the terminal for itself: it shows what is wrong in its header.
    """
    import anyio

    set_up("text", "warning")
    if screen:
        silence()
    return anyio.run(function, backend_options={"use_uvloop": fast and has_uvloop()})


def has_uvloop() -> bool:
    import importlib.util

    return importlib.util.find_spec("uvloop") is not None


@contextlib.asynccontextmanager
async def open_client(redis: str | None, namespace: str | None) -> AsyncGenerator[Client]:
    """A client of a server that answers. Raises `StoreUnavailable` within about 2 seconds when it doesn't."""
    from streamflow.client.client import connect

    async with connect(redis, namespace=namespace) as client:
        await reach(client.store)
        yield client


async def reach(store: Store) -> None:
    """Returns when the server answers: INFO does also while it loads its data."""
    import anyio

    from streamflow.store.connection import Call, redacted

    with anyio.move_on_after(REACH_SECONDS + 1):
        try:
            await store.send([Call.plain("INFO", "server")], patience=REACH_SECONDS)
        except StreamflowError:
            raise
        except Exception as error:  # what answers speaks another protocol
            raise StoreUnavailable(f"{redacted(store.url)} is no Redis or Valkey server: {error}") from error
        return
    raise StoreUnavailable(
        f"no answer from {redacted(store.url)} within {REACH_SECONDS + 1:g} s. Is the address right? "
        "`streamflow dev` starts a server here."
    )


# --- printing -------------------------------------------------------------------------------------------------------


def make_console(stderr: bool = False) -> Console:
    from rich.console import Console

    console = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in console._environ:  # pyright: ignore[reportPrivateUsage]
        console.width = PIPE_WIDTH
    return console


def print_drawn(console: Console, drawn: Any) -> None:
    """A picture or table; in a pipe without the blanks that fill its lines up to the width."""
    if console.is_terminal:
        console.print(drawn)
        return
    with console.capture() as capture:
        console.print(drawn)
    click.echo("\n".join(line.rstrip() for line in capture.get().rstrip("\n").split("\n")))


def print_json(value: Any) -> None:
    """One document: indented for people, on one line for programs. Every character in it is printable."""
    import msgspec

    text = json_line(value)
    if sys.stdout.isatty():
        text = visible_json(msgspec.json.format(text, indent=2))
    click.echo(text)


def plain_value(value: Any) -> Any:
    """A decoded payload as JSON-able data: bytes as base64, what JSON has no form for as text."""
    import msgspec

    return msgspec.to_builtins(value, str_keys=True, enc_hook=str)


def plain_failure(failure: Failure | None) -> dict[str, str] | None:
    """By name: a recorded failure is an array."""
    if failure is None:
        return None
    return {"kind": failure.kind, "message": failure.message, "traceback": failure.traceback}


# --- input ----------------------------------------------------------------------------------------------------------


def parse_json(text: str | bytes, what: str) -> Any:
    """Raises `UsageError` that says where the JSON is wrong, and what shells do to quotes."""
    import msgspec

    from streamflow.model.codec import DECODE_ERRORS

    try:
        return msgspec.json.decode(text)
    except DECODE_ERRORS as error:
        reason = str(error).removeprefix("JSON is malformed: ")
        raise UsageError(f"{what} is no JSON: {reason}. A text needs quotes of its own: '\"text\"'") from None
