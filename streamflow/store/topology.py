"""The map of a cluster: which server has which slot, as its servers say.

Owns: what `CLUSTER NODES` means, whom to believe when answers differ, and whether a slot was moved with its data or
went to a replica, which may lack some. Must not: connect, or know what is in a slot. Called by: `router.py`.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

SLOTS = 16_384

Address = tuple[str, int]


def slot_of(key: str) -> int:
    """The slot of a key: of what is between its first braces, if there is something."""
    start = key.find("{")
    if start >= 0:
        end = key.find("}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return binascii.crc_hqx(key.encode(), 0) % SLOTS


class Server(NamedTuple):
    """A server of a cluster, as one of them has described it. `of`: the id of the primary of which it is a replica,
    empty for a primary. `epoch`: the newer of two claims to a slot has the higher one. `slots`: first and last of each
    range. `failing`: others can't reach it, or are not sure."""

    id: str
    address: Address
    of: str
    epoch: int
    slots: tuple[tuple[int, int], ...] = ()
    failing: bool = False


def read_servers(text: str, asked: Address) -> list[Server]:
    """From the reply to `CLUSTER NODES` of the server at `asked`. Those without an address are left out.

    Raises `ValueError` for a reply of another shape.
    """
    servers: list[Server] = []
    for line in text.splitlines():
        identity, place, marks, of, _, _, epoch, _, *ranges = line.split(" ")
        flags = marks.split(",")
        host, _, port = place.partition(",")[0].partition("@")[0].rpartition(":")
        if "noaddr" in flags or "handshake" in flags:
            continue
        if not host and "myself" not in flags:
            continue
        address = (host or asked[0], int(port))
        slots = tuple(_range(part) for part in ranges if not part.startswith("["))  # those are being moved
        failing = "fail" in flags or "fail?" in flags
        servers.append(Server(identity, address, "" if of == "-" else of, int(epoch), slots, failing))
    return servers


def _range(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    return int(first), int(last or first)


class Topology:
    """A map that is complete or not: `primary_of(slot)` is None for a slot that nobody has."""

    def __init__(self, servers: Iterable[Server] = ()) -> None:
        self.servers = {server.id: server for server in servers}
        self._by_slot: list[Server | None] = [None] * SLOTS
        for server in self.servers.values():
            for first, last in server.slots:
                self._by_slot[first : last + 1] = [server] * (last + 1 - first)
        self._had = self._by_slot
        """Who had each slot last, also where nobody has it now."""

    @staticmethod
    def merged(answers: Sequence[Sequence[Server]], before: Topology | None = None) -> Topology:
        """The map by the newest claim to each slot, as the servers themselves decide it. One that is cut off from the
        others goes on saying what was true before: `before` counts where no answer is as new."""
        newest: dict[str, Server] = {}
        for server in (server for answer in answers for server in answer):
            known = newest.get(server.id)
            if known is None or server.epoch > known.epoch or (server.epoch == known.epoch and known.failing):
                newest[server.id] = server
        found = Topology(newest.values())
        claims = [server for answer in answers for server in answer]
        for server in before.primaries if before is not None else ():
            if server.id in newest and newest[server.id].epoch < server.epoch:
                claims.append(server)
                newest[server.id] = found.servers[server.id] = server
        for known in before.servers.values() if before is not None else ():
            server = newest.get(known.id)
            if server is not None and known.of and not server.of and server.epoch < known.epoch:
                # It doesn't know yet that it has been replaced. Taken for a primary, it could get slots back, some day,
                # and seem to have all of their data.
                newest[known.id] = found.servers[known.id] = server._replace(of=known.of, epoch=known.epoch)
        for server in sorted(claims, key=lambda one: one.epoch):
            for first, last in server.slots:
                found._by_slot[first : last + 1] = [newest[server.id]] * (last + 1 - first)
        if before is not None and None in found._by_slot:
            found._had = [now or had for now, had in zip(found._by_slot, before._had, strict=True)]
        return found

    @property
    def primaries(self) -> list[Server]:
        """The servers that have slots."""
        return list({server.id: server for server in self._by_slot if server is not None}.values())

    @property
    def unserved(self) -> int:
        """How many slots nobody has."""
        return self._by_slot.count(None)

    def primary_of(self, slot: int) -> Server | None:
        return self._by_slot[slot]

    def slots_at(self, address: Address) -> list[int]:
        return [slot for slot, server in enumerate(self._by_slot) if server is not None and server.address == address]

    def replicas_of(self, identity: str) -> list[Server]:
        return [server for server in self.servers.values() if server.of == identity]

    def changed_since(self, before: Topology) -> Iterator[tuple[int, bool]]:
        """The slots that another server has than before, and whether it may lack some of what the former one had.

        A slot is moved with all its data, from one primary to another that both go on. Only a server that was known as
        a primary before can have got it in that way; whatever else took it over was a replica, for all that is known.
        If the former one doesn't go on, a replica of it may have had the slot between the two looks. Of a slot that
        nobody had for a while, the former one is who had it last.
        """
        verdicts: dict[tuple[str, str], bool] = {}
        for slot, (old, new) in enumerate(zip(before._had, self._by_slot, strict=True)):
            if old is None or new is None or (old.id == new.id and old.address == new.address):
                continue
            pair = old.id, new.id
            if pair not in verdicts:
                verdicts[pair] = not self._was_moved(before, old, new)
            yield slot, verdicts[pair]

    def _was_moved(self, before: Topology, old: Server, new: Server) -> bool:
        known, still = before.servers.get(new.id), self.servers.get(old.id)
        if old.id == new.id or known is None or known.of:
            return False
        return still is not None and not still.of and not still.failing
