"""Large arguments of a worker's attempts, which are in the namespace's storage: fetched before the attempt begins.

Owns: the way there, and that it is tried again for as long as the attempt is wanted. Must not: know claims or steps.
Called by: the worker's reader, for entries whose arguments have references.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time

from streamflow.archive.payloads import Payloads, open_payloads
from streamflow.archive_url import shown_archive
from streamflow.errors import ArchiveDamaged, ArchiveError, StoreError, UsageError
from streamflow.model.references import join, references_in
from streamflow.store.connection import Call, Store
from streamflow.store.keys import NamespaceKeys

_log = logging.getLogger("streamflow.storage")

FIRST_PAUSE = 0.25
LONGEST_PAUSE = 30.0
"""Seconds between two tries; the pause doubles with each failure in a row."""
SAY_AGAIN = 60.0
"""Seconds after which the log says again that storage fails."""


class LargeArguments:
    def __init__(self, store: Store, keys: NamespaceKeys) -> None:
        self._store = store
        self._keys = keys
        self._payloads: Payloads | None = None
        self._said = -SAY_AGAIN

    async def whole(self, args: bytes, what: str) -> bytes:
        """The arguments with what their references stand for. `what` names the attempt in the log. Raises
        `ArchiveDamaged` if that isn't there, or isn't what was stored."""
        pause = FIRST_PAUSE
        while True:
            try:
                wanted = references_in(args)
                return join(args, await (await self._current()).fetch(wanted))
            except ArchiveDamaged:
                raise
            except StoreError as error:
                if time.monotonic() - self._said > SAY_AGAIN:
                    self._said = time.monotonic()
                    _log.warning("%s waits for its arguments in storage, and is tried again: %s", what, error)
            await asyncio.sleep(pause * random.uniform(0.75, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _current(self) -> Payloads:
        """Where the namespace's payloads are now."""
        url: bytes | None = await self._store.one(Call.plain("HGET", self._keys.meta, "archive"))
        text = (url or b"").decode(errors="replace")
        if self._payloads is None or self._payloads.url != text:
            try:
                self._payloads = open_payloads(text, self._keys.namespace)
            except UsageError as error:
                raise ArchiveError(f"{shown_archive(text)}: {error}") from None
        if self._payloads is None:
            raise ArchiveError(f"namespace {self._keys.namespace} has no storage any more: a daemon with --archive URL")
        return self._payloads
