"""The examples on a cluster: what they print is the same as on one server."""

from __future__ import annotations

import os
import subprocess
import sys

import anyio.to_thread
import pytest

from streamflow.embedded.cluster import EmbeddedCluster
from tests.process.test_examples import EXAMPLES, ROOT, check_warnings

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

ON_CLUSTER = """
import runpy, sys
from streamflow.embedded import server

class Cluster:
    url = sys.argv.pop()

    def __init__(self, *_, **__): ...
    async def __aenter__(self): return self
    async def __aexit__(self, *_): ...

server.EmbeddedServer = Cluster
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


ON_A_SOCKET = {"documents"}
"""Start processes of their own, which connect to the socket of the server that `sf.local` starts."""


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name not in ON_A_SOCKET])
async def test_an_example_runs_on_a_cluster(shared_cluster: EmbeddedCluster, name: str) -> None:
    for node in shared_cluster.nodes:
        await node.command("FLUSHALL")  # all use the same namespace
    file = str(ROOT / "examples" / f"{name}.py")
    command = [sys.executable, "-W", "error", "-c", ON_CLUSTER, file, shared_cluster.url]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    done = await anyio.to_thread.run_sync(
        lambda: subprocess.run(command, capture_output=True, env=environ, timeout=50, check=False)
    )
    assert done.returncode == 0, done.stderr.decode()
    check_warnings(name, [line for line in done.stderr.decode().splitlines() if "append-only" not in line])
    for words in EXAMPLES[name]:
        assert words in done.stdout.decode()
    sizes = [int(await node.command("DBSIZE")) for node in shared_cluster.nodes]
    assert all(size > 0 for size in sizes), "it has used all servers"
