"""What commands share: options, the client, and running async code; `output.py` prints.

Owns: `--redis`, `--namespace`, `--json`, the quick answer when no server is there, JSON input.
Must not: know any single command. Called by: all command modules.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import click

from streamflow.cli.logs import set_up, silence
from streamflow.errors import StoreUnavailable, StreamflowError, UsageError
from streamflow.model.names import check_run_id

if TYPE_CHECKING:
    from streamflow.client.client import Client
    from streamflow.store.connection import Store

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

REACH_SECONDS = 2.0
"""How long a server may take to answer at first. Once it has, the store's own patience counts."""


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
