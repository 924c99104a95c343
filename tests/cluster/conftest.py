"""A cluster of three primaries for the tests that don't hurt it; the others start their own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from anyio.from_thread import start_blocking_portal

from streamflow.embedded.cluster import EmbeddedCluster
from streamflow.store.router import Cluster


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[EmbeddedCluster]:
    with start_blocking_portal("asyncio") as portal:
        cluster = EmbeddedCluster(memory=True)
        with portal.wrap_async_context_manager(cluster):
            yield cluster


@pytest.fixture
async def store(shared_cluster: EmbeddedCluster) -> AsyncIterator[Cluster]:
    store = Cluster(shared_cluster.url, patience=5.0)
    yield store
    await store.close()
