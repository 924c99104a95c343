"""A server in memory, with the real scripts, that can be set back to what it had before."""

from __future__ import annotations

import copy
from typing import Any

from fakeredis import FakeAsyncRedis, FakeServer

from streamflow.store.connection import Call
from streamflow.store.node import Node
from streamflow.store.scripts import load_scripts


class LosingServer:
    def __init__(self) -> None:
        self._server = FakeServer(version=(7,))
        scripts = {name: script.for_fake() for name, script in load_scripts().items()}
        self.store = Node("redis://fake", client=FakeAsyncRedis(server=self._server), scripts=scripts)

    async def plain(self, *words: Any) -> Any:
        return await self.store.one(Call.plain(*words))

    def saved(self) -> Any:
        """What the server has now."""
        return _copied(self._server.dbs[0])

    def lose(self, saved: Any, key: str) -> None:
        """The server has what it had then, and the store knows that it has another history."""
        with self._server.lock:
            self._server.dbs[0].clear()
            self._server.dbs[0].update(_copied(saved))
        self.store.history_lost(key)


def _copied(database: Any) -> dict[bytes, Any]:
    return {key: copy.deepcopy(item) for key, item in dict(database.items()).items()}
