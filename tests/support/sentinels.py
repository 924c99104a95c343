"""Real Sentinels on the loopback interface, for tests: they watch one server and promote its replica."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from redis import exceptions as redis_errors
from redis.asyncio import Redis

from streamflow.embedded.server import EmbeddedServer, find_server
from streamflow.server_url import sentinels_of
from tests.support.lines import port_of
from tests.support.secure import free_port
from tests.support.waiting import DEADLINE

SERVICE = "jobs"
USER, PASSWORD = "streamflow", "of-the-sentinels"


@asynccontextmanager
async def sentinels(directory: Path, server: EmbeddedServer, *, password: str = "") -> AsyncGenerator[str]:
    """The URL of their service, whose primary is `server`, once they know each other and its replica."""
    ports = [free_port() for _ in range(3)]
    lines = [
        f"sentinel monitor {SERVICE} 127.0.0.1 {port_of(server.url)} 2",
        f"sentinel down-after-milliseconds {SERVICE} 1000",
        f"sentinel failover-timeout {SERVICE} 4000",
    ]
    options = ""
    if password:
        lines += [f"requirepass {password}", f"sentinel sentinel-pass {password}"]
        lines.append(f"user {USER} on >{password} +sentinel|master")
        options = f"?sentinel_username={USER}&sentinel_password={password}"
    processes: list[subprocess.Popen[bytes]] = []
    try:
        processes += [start_sentinel(directory / str(port), [f"port {port}", *lines]) for port in ports]
        with anyio.fail_after(DEADLINE):
            for port in ports:
                await _ready(port, len(ports) - 1, password)
        yield f"redis+sentinel://{','.join(f'127.0.0.1:{port}' for port in ports)}/{SERVICE}{options}"
    finally:
        for process in processes:
            process.kill()
            process.wait()


def start_sentinel(directory: Path, lines: Sequence[str], binary: Path | None = None) -> subprocess.Popen[bytes]:
    """A Sentinel with these lines in its configuration, which writes sentinel.log in its directory."""
    directory.mkdir()
    config = directory / "sentinel.conf"
    log = f"logfile {directory / 'sentinel.log'}"
    config.write_text("\n".join(["bind 127.0.0.1", "protected-mode no", f"dir {directory}", log, *lines, ""]))
    return subprocess.Popen([binary or find_server(), str(config), "--sentinel"], cwd=directory)


async def command_sentinels(url: str, *command: str, how_many: int = 3) -> None:
    """Send a command to the first ones of a URL that `sentinels` has made."""
    found = sentinels_of(url)
    assert found is not None
    for host, port in found.addresses[:how_many]:
        async with Redis(host=host, port=port, password=found.password or None) as redis:
            await redis.execute_command(*command)


async def _ready(port: int, others: int, password: str) -> None:
    async with Redis(port=port, password=password or None, decode_responses=True) as redis:
        while True:
            try:
                facts: Any = await redis.execute_command("SENTINEL", "MASTER", SERVICE)
                if int(facts["num-slaves"]) and int(facts["num-other-sentinels"]) == others:
                    return
            except redis_errors.ConnectionError:
                pass
            await anyio.sleep(0.05)
