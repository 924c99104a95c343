"""A cluster: calls dealt to the servers that have their slots, each sent again until its answer is definite.

Owns: which servers there are, which has which slot now, and what a redirection means. Must not: know what a call means,
or how a server is talked to (`node.py`). Called by: everybody as a `Store`; `subscription.py` and `blocking_reads.py`
ask for single servers.

The map (`topology.py`) is read from servers that answer, again when something speaks against it, and now and then. A
pipeline is sent to all servers concerned at the same time. Only those calls are sent again that were not answered: a
server was lost, or doesn't have that slot any more, or not yet. Calls to one server keep their order as long as nothing
goes wrong; the reads of a slot are all read again if one of them was not answered, so that they are of one time.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import anyio
from redis import exceptions as redis_errors

from streamflow.errors import StoreError, StoreMisconfigured, StoreUnavailable
from streamflow.machine.sealed import hide
from streamflow.server_url import ClusterUrl, check_url, cluster_of, redacted
from streamflow.store.connection import LOST, Call, Elsewhere, OtherHistory, Store, key_of
from streamflow.store.node import ELSEWHERE, TEMPORARY, Node, code_of
from streamflow.store.tls import advice
from streamflow.store.topology import SLOTS, Address, Server, Topology, read_servers, slot_of

if TYPE_CHECKING:
    from streamflow.store.durability import Confirmation

_log = logging.getLogger("streamflow.store")

READ_EVERY = 10.0
"""Seconds after which the map is read again although nothing speaks against it: a server that was added must be known
before slots are moved to it."""
LEAST_BETWEEN = 0.1
"""Seconds between two reads of the map, at least."""
ASKED_AT_ONCE = 3
ANSWER_SECONDS = 1.0
GRACE_SECONDS = 0.05
"""Of so many servers the map is read; one must answer within so many seconds, and so much longer is waited for others:
the newest claim to a slot counts."""
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.25
"""Seconds before calls are sent again."""
POLL = 0.1
"""Seconds between two reads of logs: one call can't wait for streams of several slots."""

_NOT_A_CLUSTER = "cluster support disabled"

_ANYWHERE = -1

_known_slot = functools.lru_cache(maxsize=65_536)(slot_of)
"""For the fixed keys of shards and queues, of which the same few are asked for again and again."""


def open_store(url: str, *, connections: int = 4, patience: float = 10.0) -> Store:
    """What a URL names: one server, with Sentinels or without, or a cluster. Raises `UsageError`."""
    check_url(url)
    if cluster_of(url) is None:
        return Node(url, connections=connections, patience=patience)
    return Cluster(url, connections=connections, patience=patience)


class Cluster(Store):
    """`connections`: pipelines to each server at the same time."""

    def __init__(self, url: str, *, connections: int = 4, patience: float = 10.0) -> None:
        check_url(url)
        named = cluster_of(url)
        assert named is not None
        self._url: ClusterUrl = named
        self.url = url
        self.patience = patience
        self.on_other_history: Callable[[], None] = lambda: None
        self.confirmation: Confirmation | None = None
        self.on_moved: list[Callable[[], None]] = []
        """Called when slots have other servers than before."""
        self._connections = connections
        self._generation = 0
        self._histories = [0] * SLOTS
        self._map = Topology()
        self._nodes: dict[Address, Node] = {}
        self._numbers: dict[Address, int] = {}
        self._reading: asyncio.Task[None] | None = None
        self._read_at = 0.0
        """When the map was asked for last, and..."""
        self._read_again = 0.0
        """...when it is at the latest (monotonic s)."""
        self._problem: BaseException | None = None
        """Why the map could not be read when it was asked for last."""
        self._leaving: set[asyncio.Task[None]] = set()
        self._closed = False

    # --- which server has what ----------------------------------------------------------------------------------------

    @property
    def server_generation(self) -> int:
        return self._generation

    def history_of(self, key: str) -> int:
        return self._histories[_known_slot(key)]

    def history_lost(self, key: str) -> None:
        server = self._map.primary_of(slot_of(key))
        if server is not None:
            self._restarted(server.address)

    def server_of(self, key: str) -> int:
        return self._number_of(_known_slot(key))

    def server_for(self, call: Call[Any]) -> int:
        return self._number_of(_slot(call))

    def server_name(self, server: int) -> str:
        address = self._address_of(server)
        return "" if address is None else f"{address[0]}:{address[1]}"

    def _address_of(self, server: int) -> Address | None:
        return next((address for address, number in self._numbers.items() if number == server), None)

    def _number_of(self, slot: int) -> int:
        server = None if slot == _ANYWHERE else self._map.primary_of(slot)
        return -1 if server is None else self._numbers.setdefault(server.address, len(self._numbers))

    @property
    def is_single(self) -> bool:
        return False

    @property
    def is_away(self) -> bool:
        return not self._map.servers or any(node.is_away for node in self.nodes())

    def nodes(self) -> list[Node]:
        """The primaries, as far as they are known."""
        return [self._node(server.address) for server in self._map.primaries]

    async def node_of(self, key: str) -> Node:
        """The server that has a key now. Raises `StoreUnavailable`."""
        over = time.monotonic() + self.patience
        while (server := self._map.primary_of(slot_of(key))) is None:
            await self._look_again()
            if self._map.primary_of(slot_of(key)) is None and time.monotonic() > over:
                raise self._unavailable(self._problem, self.patience)
        return self._node(server.address)

    async def servers(self) -> list[tuple[str, Node]]:
        """The primaries and their addresses. Raises `StoreUnavailable`."""
        await self.node_of("")
        return [(f"{host}:{port}", self._node((host, port))) for host, port in self._addresses()]

    def _addresses(self) -> list[Address]:
        return sorted(server.address for server in self._map.primaries)

    def known_node_of(self, key: str) -> Node | None:
        """The same without waiting; None while nobody is known to have it."""
        server = self._map.primary_of(_known_slot(key))
        return None if server is None else self._node(server.address)

    def look_if_due(self) -> None:
        """Read the map again if it wasn't for long."""
        if time.monotonic() >= self._read_again and not self._closed:
            self._begin_reading()

    def suspect(self) -> None:
        """Something speaks against the map: read it again soon."""
        self._read_again = 0.0
        if not self._closed:
            self._begin_reading()

    def _node(self, address: Address) -> Node:
        node = self._nodes.get(address)
        if node is None:
            url = self._url.node(*address)
            node = self._nodes[address] = Node(url, connections=self._connections, patience=self.patience)
            node.is_member = True
            node.on_late = self.suspect
            node.on_other_history = functools.partial(self._restarted, address)
        return node

    def _restarted(self, address: Address) -> None:
        """This server has another history than before."""
        if slots := self._map.slots_at(address):
            self._other_history(slots)

    def _other_history(self, slots: Iterable[int]) -> None:
        self._generation += 1
        for slot in slots:
            self._histories[slot] = self._generation
        try:
            self.on_other_history()
        except Exception:  # a defect there must not cost the map
            _log.exception("what was in memory could not be dropped")

    def _begin_reading(self) -> asyncio.Task[None]:
        if self._closed:
            raise StoreError("the store is closed")
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read_map())
            hide(self._reading)
        return self._reading

    async def _look_again(self) -> None:
        """Read the map, or wait for somebody else who reads it."""
        await asyncio.shield(self._begin_reading())

    async def _read_map(self) -> None:
        wait = self._read_at + LEAST_BETWEEN - time.monotonic()
        if wait > 0:
            await asyncio.sleep(wait * random.uniform(1.0, 1.5))
        self._read_at = time.monotonic()
        self._read_again = self._read_at + READ_EVERY * random.uniform(0.75, 1.25)
        addresses = self._candidates()
        answers: list[list[Server]] = []
        for first in range(0, len(addresses), ASKED_AT_ONCE):
            answers = await self._ask(addresses[first : first + ASKED_AT_ONCE])
            if answers:
                break
        if answers:
            self._problem = None
            self._use(Topology.merged(answers, self._map))

    def _candidates(self) -> list[Address]:
        """Whom to ask, those first that have answered lately."""
        known = [server.address for server in self._map.servers.values() if not server.failing]
        random.shuffle(known)
        known.sort(key=lambda address: address in self._nodes and self._nodes[address].is_away)
        return list(dict.fromkeys([*known, *self._url.addresses]))

    async def _ask(self, addresses: list[Address]) -> list[list[Server]]:
        tasks = [asyncio.create_task(self._ask_one(address)) for address in addresses]
        for task in tasks:
            hide(task)
        try:
            done, left = await asyncio.wait(tasks, timeout=ANSWER_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if left:
                await asyncio.wait(left, timeout=GRACE_SECONDS)
            while not any(task.done() and task.result() for task in tasks) and (
                left := [task for task in tasks if not task.done()]
            ):
                done, _ = await asyncio.wait(left, timeout=ANSWER_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    break
            return [found for task in tasks if task.done() and (found := task.result())]
        finally:
            for task in tasks:
                task.cancel()

    async def _ask_one(self, address: Address) -> list[Server]:
        """What a server says, nothing if it doesn't answer."""
        try:
            [reply] = await self._node(address).attempt([Call.plain("CLUSTER", "NODES")], urgent=True)
        except LOST as error:
            self._problem = error
            return []
        if isinstance(reply, Exception):
            self._problem = reply
            return []
        try:
            return read_servers(reply.decode(errors="replace"), address)
        except ValueError as error:
            self._problem = error
            return []

    def _use(self, found: Topology) -> None:
        before, self._map = self._map, found
        moved = list(found.changed_since(before))
        lost = [slot for slot, may_lack in moved if may_lack]
        known = {server.address for server in found.servers.values()} | set(self._url.addresses)
        for address in [address for address in self._nodes if address not in known]:
            task = asyncio.create_task(self._nodes.pop(address).close())
            hide(task)
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)
        former = {server.address for slot in lost if (server := before.primary_of(slot)) is not None}
        for address in former & self._nodes.keys():  # its answers are void from now on
            self._nodes[address].replace_connections("it has lost its slots in a failover")
        if lost:
            _log.warning("%d slots have a server that may lack newest writes; their state is read again", len(lost))
            self._other_history(lost)
        if moved:
            for tell in self.on_moved:
                tell()

    # --- sending ------------------------------------------------------------------------------------------------------

    async def send(
        self,
        calls: Sequence[Call[Any]],
        patience: float | None = None,
        *,
        urgent: bool = False,
        same_history: bool = False,
        confirmed: bool = False,
    ) -> list[Any]:
        patience = self.patience if patience is None else patience
        if confirmed and self.confirmation is not None:
            return await self.confirmation.send(calls, patience, same_history=same_history)
        slots = [_slot(call) for call in calls]
        histories = [self._histories[slot] for slot in slots] if same_history else None
        answers: list[Any] = [None] * len(calls)
        left = list(range(len(calls)))
        asked: dict[int, Address] = {}
        """Calls whose slots are just being moved -> to which server."""
        started, pause = time.monotonic(), FIRST_PAUSE
        self.look_if_due()
        while left:
            problem: BaseException | None = None
            if histories is not None:
                for i in [i for i in left if self._histories[slots[i]] != histories[i]]:
                    answers[i] = OtherHistory()
                    left.remove(i)
            parts, unserved = self._deal(left, slots, asked)
            dealt = {i: self._histories[slots[i]] for i in left}
            results = await self._attempt_all(parts, calls, urgent=urgent, same_history=same_history)
            again, asked = list(unserved), {}
            redirected = bool(unserved)
            for (address, _), part, result in zip(parts, parts.values(), results, strict=True):
                if isinstance(result, BaseException):
                    if isinstance(result, redis_errors.AuthenticationError) and patience != math.inf:
                        raise self._unavailable(result, 0.0)
                    problem, redirected = result, True
                    again += part
                    continue
                for i, reply in zip(part, result, strict=True):
                    if isinstance(reply, redis_errors.MovedError):  # which redis-py has made a kind of AskError
                        redirected = True
                    elif isinstance(reply, redis_errors.AskError):
                        asked[i] = _redirected(reply, address)
                    elif isinstance(reply, Exception) and (code := code_of(reply)) in TEMPORARY | ELSEWHERE:
                        problem, redirected = reply, redirected or code in ELSEWHERE
                    elif self._histories[slots[i]] == dealt[i]:
                        answers[i] = self._node(address).parsed(calls[i], reply)
                        continue
                    again.append(i)  # also what a server has answered that is not this slot's primary any more
            left = self._with_reads_of_same_time(again, left, calls, slots) if again else []
            if not left:
                break
            if problem is None and not redirected and len(asked) == len(again):
                continue  # nothing was executed, and there is nothing to wait for
            if redirected:
                self._begin_reading()
            if time.monotonic() - started + pause > patience:
                raise self._unavailable(problem or self._problem, time.monotonic() - started)
            if redirected:
                await self._look_again_within(patience - (time.monotonic() - started))
            if problem is not None or unserved:
                await anyio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, LONGEST_PAUSE)
        return answers

    async def send_to_one(self, server: int, calls: Sequence[Call[Any]]) -> list[Any]:
        address = self._address_of(server)
        self.look_if_due()
        if address is None or not any(primary.address == address for primary in self._map.primaries):
            self.suspect()
            return [Elsewhere()] * len(calls)
        node = self._node(address)
        try:
            replies = await node.attempt(calls, generation=node.server_generation)
        except OtherHistory as error:
            return [error] * len(calls)
        except LOST as error:
            self.suspect()
            raise StoreUnavailable(f"{address[0]}:{address[1]} doesn't answer: {error}") from error
        answers: list[Any] = []
        for call, reply in zip(calls, replies, strict=True):
            code = code_of(reply) if isinstance(reply, Exception) else ""
            is_elsewhere = isinstance(reply, redis_errors.AskError) or code == "TRYAGAIN"  # MOVED is an AskError, too
            answers.append(Elsewhere() if is_elsewhere else node.parsed(call, reply))
            if is_elsewhere or code in ELSEWHERE:
                self.suspect()
        return answers

    async def _look_again_within(self, seconds: float) -> None:
        with anyio.move_on_after(max(0.0, seconds)):
            await self._look_again()

    def _deal(
        self, left: Iterable[int], slots: Sequence[int], asked: Mapping[int, Address]
    ) -> tuple[dict[tuple[Address, bool], list[int]], list[int]]:
        """The positions of calls by server and whether a slot is asked for there that is being moved to it, and those
        whose slots nobody has, as far as is known."""
        parts: dict[tuple[Address, bool], list[int]] = {}
        unserved: list[int] = []
        anywhere: list[int] = []
        for i in left:
            if i in asked:
                parts.setdefault((asked[i], True), []).append(i)
            elif slots[i] == _ANYWHERE:
                anywhere.append(i)
            elif (server := self._map.primary_of(slots[i])) is not None:
                parts.setdefault((server.address, False), []).append(i)
            else:
                unserved.append(i)
        if anywhere:
            primaries = self._map.primaries
            if not parts and not primaries:
                return parts, [*unserved, *anywhere]
            well = [one for one in primaries if not (one.failing or self._node(one.address).is_away)]
            key = next(iter(parts), None) or (random.choice(well or primaries).address, False)
            parts[key] = sorted([*parts.get(key, ()), *anywhere])
        return parts, unserved

    async def _attempt_all(
        self,
        parts: Mapping[tuple[Address, bool], list[int]],
        calls: Sequence[Call[Any]],
        *,
        urgent: bool,
        same_history: bool,
    ) -> list[list[Any] | BaseException]:
        attempts = [
            self._attempt(
                node := self._node(address),
                [calls[i] for i in part],
                urgent=urgent,
                asking=asking,
                generation=node.server_generation if same_history else None,
            )
            for (address, asking), part in parts.items()
        ]
        if len(attempts) == 1:
            return [await attempts[0]]
        return await asyncio.gather(*attempts)

    @staticmethod
    async def _attempt(
        node: Node, calls: Sequence[Call[Any]], *, urgent: bool, asking: bool, generation: int | None
    ) -> list[Any] | BaseException:
        try:
            return await node.attempt(calls, urgent=urgent, asking=asking, generation=generation)
        except (*LOST, OtherHistory) as error:
            return error

    @staticmethod
    def _with_reads_of_same_time(
        again: list[int], left: Iterable[int], calls: Sequence[Call[Any]], slots: Sequence[int]
    ) -> list[int]:
        """What was not answered, and the plain commands of the same slots, which read, or may be sent twice."""
        concerned = {slots[i] for i in again} - {_ANYWHERE}
        return sorted({*again, *(i for i in left if slots[i] in concerned and not calls[i].script)})

    def _unavailable(self, problem: BaseException | None, seconds: float) -> StoreError:
        shown, text = redacted(self.url), str(problem or "no server answers").rstrip(".")
        if _NOT_A_CLUSTER in text:
            return StoreMisconfigured(
                f"{shown}: the server is not part of a cluster: use redis:// (or rediss://) for a single one"
            )
        if isinstance(problem, redis_errors.AuthenticationError):
            return StoreUnavailable(f"{shown} refuses the credentials: {text}")
        if isinstance(problem, redis_errors.NoPermissionError):
            return StoreMisconfigured(f"{shown}: {text}. `streamflow acl` prints the rules that the user needs")
        if self._map.unserved and self._map.servers and problem is None:
            return StoreUnavailable(
                f"no answer from {shown} for {seconds:.1f} s: {self._map.unserved} of {SLOTS} slots have no server. "
                "Start those that had them; if none is away, as after the move of a single server, "
                "`redis-cli --cluster fix HOST:PORT` gives these slots to the others."
            )
        return StoreUnavailable(f"no answer from {shown} for {seconds:.1f} s: {text}. {self.advice(problem)}.")

    # --- the rest -----------------------------------------------------------------------------------------------------

    async def read_logs(
        self, after: Mapping[str, str], block_ms: int, count: int = 1000, patience: float | None = None
    ) -> dict[str, list[tuple[str, dict[bytes, bytes]]]]:
        over = time.monotonic() + block_ms / 1000
        calls = [Call.plain("XRANGE", key, f"({id_}", "+", "COUNT", count) for key, id_ in after.items()]
        while True:
            found: dict[str, list[tuple[str, dict[bytes, bytes]]]] = {}
            for key, entries in zip(after, await self.send(calls, patience), strict=True):
                if isinstance(entries, StoreError):
                    raise entries
                if entries:
                    found[key] = [(id_.decode(), fields or {}) for id_, fields in entries]
            if found or time.monotonic() >= over:
                return found
            await anyio.sleep(min(POLL, max(0.0, over - time.monotonic())))

    async def close(self) -> None:
        self._closed = True
        if self.confirmation is not None:
            await self.confirmation.close()
        tasks = [*self._leaving, *([self._reading] if self._reading is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for node in self._nodes.values():
            await node.close()

    def abandon(self) -> None:
        for node in self._nodes.values():
            node.abandon()

    def renewed(self) -> Cluster:
        return Cluster(self.url, connections=self._connections, patience=self.patience)

    def advice(self, error: BaseException | None) -> str:
        return advice(
            self.url,
            error,
            otherwise="Check that the cluster's servers are running, and that the addresses that they announce "
            "(`redis-cli CLUSTER NODES`) can be reached from here",
        )

    async def doubts(self) -> list[str]:
        await self._look_again()
        found: list[str] = []
        if self._map.unserved:
            found.append(f"{self._map.unserved} of the cluster's {SLOTS} slots have no server: no run can be there")
        for server in self._map.primaries:
            host, port = server.address
            replicas = self._map.replicas_of(server.id)
            if server.failing:
                found.append(f"the other servers of the cluster can't reach {host}:{port}")
            if not replicas:
                found.append(f"{host}:{port} has no replica: there is none to go on with when it is lost")
        return found


async def servers_of(store: Store) -> list[tuple[str, Node]]:
    """The servers of a store, each with its address, which is empty for a single one. Raises `StoreUnavailable`."""
    if isinstance(store, Cluster):
        return await store.servers()
    assert isinstance(store, Node)
    return [("", store)]


def _slot(call: Call[Any]) -> int:
    """That of a call's first key."""
    key = key_of(call)
    return slot_of(key) if key else _ANYWHERE


def _redirected(error: redis_errors.AskError, address: Address) -> Address:
    """An empty host is the one of the server that has said it."""
    host = str(error.host)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    return host or address[0], int(error.port)
