"""Runs that were moved out of the server's memory, in the storage of the namespace's archive.

Owns: writing, reading and deleting their objects. Must not: know a server, or decide which run goes or comes.
Called by: the daemon (all of it), the client (reads).

One object is one state of one run. It is found by what the server has left of the run (`model/sleeping.py`), with one
read; nothing lists it but the search for objects that nobody needs any more.
"""

from __future__ import annotations

from streamflow.archive import layout
from streamflow.archive.format import ParkedRun, pack_parked, unpack_parked
from streamflow.archive.layout import ParkedObject
from streamflow.archive.storage import Guard, Objects
from streamflow.archive_url import NONE
from streamflow.errors import ArchiveDamaged
from streamflow.model.record import incarnation_of
from streamflow.model.sleeping import Sleeper


class ParkedRuns(Objects):
    """Runs that were moved out of memory."""

    async def put(self, run: ParkedRun, random: str) -> None:
        """Return when it is durable. `random`: eight hexadecimal digits that were never used for this run."""
        version = int(run.header.split(b" ", 2)[1])
        name = layout.parked_object(self._namespace, run.run_id, incarnation_of(run.header), version, random)
        await self._storage.put(name, lambda: pack_parked(run))

    def name_of(self, run_id: str, sleeper: Sleeper) -> str:
        return layout.parked_object(self._namespace, run_id, sleeper.created, sleeper.version, sleeper.random)

    async def get(self, run_id: str, sleeper: Sleeper) -> ParkedRun:
        """What the server's line leads to. Raises `ArchiveDamaged`, which names the object, if it isn't that."""
        name = self.name_of(run_id, sleeper)
        what = f"{self.shown}/{name}"
        run = await self._storage.get(name, lambda data: unpack_parked(data, what))
        if run is None:
            raise ArchiveDamaged(f"{what} is missing: run {run_id} was moved there, and can't go on without it")
        known = (run.run_id, incarnation_of(run.header), int(run.header.split(b" ", 2)[1]))
        if known != (run_id, sleeper.created, sleeper.version):
            raise ArchiveDamaged(f"{what} is damaged: it is another run, or another state of run {run_id}")
        return run

    async def remove(self, name: str) -> None:
        await self._storage.remove(name)

    async def objects(self, folder: str) -> list[tuple[str, ParkedObject]]:
        """What is in one of `layout.parked_folders`: the whole name of each object, and what that says."""
        path = layout.parked_folder(self._namespace, folder)
        names = await self._storage.names(path)
        return [(f"{path}/{name}", found) for name in names if (found := layout.parse_parked_object(name)) is not None]


def open_parked(url: str, namespace: str, guard: Guard | None = None) -> ParkedRuns | None:
    """None if there is no storage. Nothing is sent. Raises `UsageError` for a URL that can't be."""
    return None if url in ("", NONE) else ParkedRuns(url, namespace, guard=guard)
