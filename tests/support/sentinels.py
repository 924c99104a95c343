"""Real Sentinels on the loopback interface, for tests: they watch one server and promote its replica."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from redis import exceptions as redis_errors
from redis.asyncio import Redis

from streamflow.embedded.server import EmbeddedServer, find_server
from tests.support.lines import port_of
from tests.support.secure import free_port
from tests.support.waiting import DEADLINE

SERVICE = "jobs"
PASSWORD = "of-the-sentinels"


@asynccontextmanager
async def sentinels(directory: Path, server: EmbeddedServer, *, password: str = "") -> AsyncGenerator[str]:
    """The URL of their service, whose primary is `server`, once they know each other and its replica."""
    processes: list[subprocess.Popen[bytes]] = []
    ports = [free_port() for _ in range(3)]
    try:
        for port in ports:
            home = directory / str(port)
            home.mkdir()
            config = home / "sentinel.conf"
            config.write_text(
                f"port {port}\nbind 127.0.0.1\nprotected-mode no\ndir {home}\n"
                f"sentinel monitor {SERVICE} 127.0.0.1 {port_of(server.url)} 2\n"
                f"sentinel down-after-milliseconds {SERVICE} 1000\n"
                f"sentinel failover-timeout {SERVICE} 4000\n"
                + (f"requirepass {password}\nsentinel sentinel-pass {password}\n" if password else "")
            )
            processes.append(
                subprocess.Popen([find_server(), str(config), "--sentinel"], stdout=subprocess.DEVNULL, cwd=home)
            )
        with anyio.fail_after(DEADLINE):
            for port in ports:
                await _ready(port, len(ports) - 1, password)
        addresses = ",".join(f"127.0.0.1:{port}" for port in ports)
        yield f"redis+sentinel://{addresses}/{SERVICE}" + (f"?sentinel_password={password}" if password else "")
    finally:
        for process in processes:
            process.kill()
            process.wait()


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
