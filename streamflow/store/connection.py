"""What is sent to the server, and the way there: the interface that daemons, workers and clients use.

Owns: what a call is, and what a store promises. Must not: connect (`node.py` does, and `router.py` deals calls to
several nodes), or know what a call means. Called by: kernel (builds calls), and everybody who sends them.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import msgspec
from redis import exceptions as redis_errors

from streamflow.errors import StoreError, StoreUnavailable

if TYPE_CHECKING:
    from streamflow.store.durability import Confirmation

T = TypeVar("T")

LOST = (redis_errors.ConnectionError, redis_errors.TimeoutError, OSError)
"""The connection is lost. redis-py's errors of this kind don't inherit from Python's."""


class OtherHistory(StoreUnavailable):
    """The server has another history than the one from which a call was decided, so it was not sent there."""

    def __init__(self, text: str = "the server has another history since, so what was decided is void") -> None:
        super().__init__(text)


class Elsewhere(StoreError):
    """A server of a cluster doesn't have a call's slot, or is just moving it to another one."""

    def __init__(self, text: str = "the slot is, or is being, moved to another server") -> None:
        super().__init__(text)


def _unchanged(reply: Any) -> Any:
    return reply


class Call(msgspec.Struct, Generic[T]):
    """One command for the server: a script's name with its keys and arguments; without `script` a plain command."""

    script: str
    keys: list[str]
    args: list[Any]
    parse: Callable[[Any], T] = _unchanged
    near: str = ""
    """Of a command without a key, such as TIME: a key, whose server is asked."""

    @staticmethod
    def plain(*command: Any, parse: Callable[[Any], Any] = _unchanged, near: str = "") -> Call[Any]:
        """A command that is not a script: `Call.plain("GET", key)`. `parse` converts the reply."""
        return Call("", [], list(command), parse, near)


_KEY_BEHIND = frozenset({"XINFO", "MEMORY", "OBJECT"})
"""Commands whose key is the second argument."""
_KEYLESS = frozenset({"TIME", "INFO", "CONFIG", "CLIENT", "PING", "WAIT", "WAITAOF", "SCRIPT", "CLUSTER"})


def key_of(call: Call[Any]) -> str:
    """The first key of a call, empty if it has none: all keys of a call are of one shard, of one partition of a queue,
    or of none."""
    if call.keys:
        return call.keys[0]
    if call.near:
        return call.near
    command = call.args[0]
    if command in _KEYLESS:
        return ""
    return call.args[2 if command in _KEY_BEHIND else 1]


class Store(abc.ABC):
    """One server or several, to which calls are sent in pipelines."""

    url: str
    patience: float
    """Seconds to keep trying before `StoreUnavailable`."""
    on_other_history: Callable[[], None]
    """Called when `server_generation` has grown, before anything is sent to that server."""
    confirmation: Confirmation | None
    """What waits until writes are safe; None: an answer of the server is enough."""

    @property
    @abc.abstractmethod
    def server_generation(self) -> int:
        """Grows when a server was restarted or replaced (failover) and may have another history than before: copies of
        its state must be dropped."""

    @abc.abstractmethod
    def history_of(self, key: str) -> int:
        """`server_generation` of the server that has this key: unchanged, what was read of the key is still true."""

    @abc.abstractmethod
    def history_lost(self, key: str) -> None:
        """The server that has this key turned out to have lost what it had acknowledged: it has another history."""

    @abc.abstractmethod
    def server_of(self, key: str) -> int:
        """A number for the server that has this key. What is sent to different servers at the same time doesn't have to
        wait for each of them."""

    @abc.abstractmethod
    def server_for(self, call: Call[Any]) -> int:
        """`server_of` the keys of a call."""

    @abc.abstractmethod
    def server_name(self, server: int) -> str:
        """The address of the server with this number (`server_of`); empty for a single one."""

    @property
    @abc.abstractmethod
    def is_single(self) -> bool:
        """Whether there is one server only, for all keys."""

    @property
    @abc.abstractmethod
    def is_away(self) -> bool:
        """Whether a server has lately not answered: who waits for it may wait for long."""

    async def one(self, call: Call[T], *, urgent: bool = False) -> T:
        """Send one call, and return its parsed reply. Raises `StoreError`."""
        (reply,) = await self.send([call], urgent=urgent)
        if isinstance(reply, BaseException):
            raise reply
        return cast("T", reply)

    @abc.abstractmethod
    async def send(
        self,
        calls: Sequence[Call[Any]],
        patience: float | None = None,
        *,
        urgent: bool = False,
        same_history: bool = False,
        confirmed: bool = False,
    ) -> list[Any]:
        """Send calls in one pipeline; returns the parsed replies in the same order.

        For a call that the server refuses the reply is a `StoreError`; the other calls are not affected. When the
        connection is lost or an error is temporary, what was not answered is sent again, until `patience` seconds
        (default: the store's) have passed.

        `urgent` is for heartbeats: they have connections that bulk never uses, and a caller that gives up leaves the
        reply to them, so that the next heartbeat doesn't have to connect first. On a line that is filled by others,
        heartbeats then arrive as often as they are sent, however late the replies are.

        `same_history` is for what was decided from memory: it is not sent, nor sent again, to a server that has another
        history than the one that was known when this was called. The reply to such a call is `OtherHistory`.

        `confirmed`: the replies are returned when all is as safe as the namespace's `durability` asks for.

        Raises `StoreUnavailable`.
        """

    @abc.abstractmethod
    async def send_to_one(self, server: int, calls: Sequence[Call[Any]]) -> list[Any]:
        """Send calls once, in one pipeline on one connection, to the server with this number, whichever has their
        slots. Returns replies as `send`, and `Elsewhere` for a call whose slot is not there, or is just being moved;
        `OtherHistory` for all when the server has another history since. Raises `StoreUnavailable`.
        """

    @abc.abstractmethod
    async def read_logs(
        self, after: Mapping[str, str], block_ms: int, count: int = 1000, patience: float | None = None
    ) -> dict[str, list[tuple[str, dict[bytes, bytes]]]]:
        """Entries of streams behind the given ids, at most `count` of each; waits up to `block_ms` (at most 10,000).

        `after`: entry id by key. Returns (entry id, fields) by key, without the streams that have no new entries. Each
        call that waits holds a connection of its own, which later calls use again. Raises `StoreError`.
        """

    @abc.abstractmethod
    async def close(self) -> None:
        """Close all connections."""

    @abc.abstractmethod
    def abandon(self) -> None:
        """Close all connections after their event loop was closed. The store can't be used any more."""

    @abc.abstractmethod
    def renewed(self) -> Store:
        """A store of the same server that shares nothing with this one: for another process or event loop."""

    @abc.abstractmethod
    def advice(self, error: BaseException | None) -> str:
        """What to do about a connection that failed; `error` None: nothing was answered in time."""

    @abc.abstractmethod
    async def doubts(self) -> list[str]:
        """What a user should know of the servers besides what each says of itself."""


def stream_entries(reply: Any) -> list[tuple[bytes, list[tuple[bytes, dict[bytes, bytes] | None]]]]:
    """What XREAD and XREADGROUP reply: stream, and entries of id and fields (None when the entry was deleted)."""
    return [
        (
            stream,
            [
                (entry_id, None if fields is None else dict(zip(fields[::2], fields[1::2], strict=True)))
                for entry_id, fields in entries
            ],
        )
        for stream, entries in reply or ()
    ]
