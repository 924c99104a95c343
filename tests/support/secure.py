"""A server with TLS, doors through which each role comes in, and what MONITOR shows of each.

Certificates are made for one session; the server is `redis-server` or `valkey-server` of the system, because the one in
the wheel has no TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import re
import shutil
import socket
import threading
import uuid
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import trustme
from redis import Redis

from bench.faults import Listening
from streamflow.embedded.server import EmbeddedServer
from streamflow.errors import StoreUnavailable

LONG_AGO = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)


class Certificates:
    """Files of a CA, another CA, and of what the first has signed: `path("server.pem")`, `path("server.key")`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.ca, other = trustme.CA(), trustme.CA()
        self.ca.cert_pem.write_to_path(str(self.path("ca.pem")))
        other.cert_pem.write_to_path(str(self.path("other-ca.pem")))
        self.issue("server", "127.0.0.1", "localhost")
        self.issue("expired", "127.0.0.1", not_after=LONG_AGO)
        self.issue("elsewhere", "redis.example.org")
        self.issue("client", "client@example.org")
        self.issue("stranger", "client@example.org", ca=other)

    def path(self, name: str) -> Path:
        return self._directory / name

    def issue(self, name: str, *hosts: str, ca: trustme.CA | None = None, **options: Any) -> None:
        made = (ca or self.ca).issue_cert(*hosts, **options)
        self.path(f"{name}.key").write_bytes(made.private_key_pem.bytes())
        self.path(f"{name}.pem").write_bytes(b"".join(part.bytes() for part in made.cert_chain_pems))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def tls_options(certificates: Certificates, port: int, name: str = "server", clients: str = "no") -> tuple[str, ...]:
    """Options of a server with the certificate `name`. `clients`: whether they need one (yes or no)."""
    files = {"cert": certificates.path(f"{name}.pem"), "key": certificates.path(f"{name}.key")}
    options = [word for kind, path in files.items() for word in (f"--tls-{kind}-file", str(path))]
    ca = ("--tls-ca-cert-file", str(certificates.path("ca.pem")))
    return ("--tls-port", str(port), *options, *ca, "--tls-auth-clients", clients)


@contextlib.asynccontextmanager
async def tls_server(
    certificates: Certificates, name: str = "server", clients: str = "no"
) -> AsyncGenerator[tuple[EmbeddedServer, int]]:
    """A server, whose `url` is that of its plain port, and its TLS port. Skips the test where no server has TLS."""
    reasons: list[str] = []
    for binary in ("redis-server", "valkey-server"):
        found = shutil.which(binary)
        if found is None:
            reasons.append(f"no {binary} on PATH")
            continue
        port = free_port()
        server = EmbeddedServer(memory=True, binary=Path(found), extra=tls_options(certificates, port, name, clients))
        try:
            await server.start()
        except StoreUnavailable as error:
            if "TLS" not in str(error) and "tls" not in str(error):
                raise
            reasons.append(f"{found} has no TLS")
            continue
        try:
            yield server, port
        finally:
            await server.stop()
        return
    pytest.skip(f"needs a server with TLS: {', '.join(reasons)} (Debian's redis-server has it)")


class Doors:
    """Ports that lead to one port of the server: whoever came through a door is known by its name. Each door has a
    loopback address of its own: ports are used again."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listening: list[Listening] = []
        self._names: dict[str, str] = {}
        """Host at the server -> the door's name."""

    def name_of(self, address: str) -> str | None:
        """Through which door a connection came, by its address at the server."""
        return self._names.get(address.rpartition(":")[0])

    async def open(self, name: str) -> int:
        """Returns the door's port."""
        host = f"127.0.0.{10 + len(self._names)}"
        self._names[host] = name

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            upstream, downstream = await asyncio.open_connection("127.0.0.1", self._target, local_addr=(host, 0))
            try:
                async with asyncio.TaskGroup() as copying:
                    copying.create_task(_copy(reader, downstream))
                    copying.create_task(_copy(upstream, writer))
            finally:
                downstream.transport.abort()

        listening = Listening(serve)
        self._listening.append(listening)
        return await listening.start()

    async def close(self) -> None:
        for listening in self._listening:
            await listening.stop()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


class Monitor:
    """All commands that a server runs, until `seen` is called: `with Monitor(admin) as monitor`."""

    _LINE = re.compile(rb"\+\S+ \[\d+ (\S+)\] (.*)")
    _WORD = re.compile(rb'"((?:[^"\\]|\\.)*)"')

    def __init__(self, admin: Redis) -> None:
        self._admin = admin
        options = admin.connection_pool.connection_kwargs
        self._socket = socket.create_connection((options["host"], options["port"]))
        self._socket.sendall(b"MONITOR\r\n")
        self._file = self._socket.makefile("rb")
        assert self._file.readline() == b"+OK\r\n"
        self._lines: list[bytes] = []
        self._mark = uuid.uuid4().hex.encode()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._file.close()
        self._socket.close()

    def _read(self) -> None:
        for line in self._file:
            if self._mark in line:
                return
            self._lines.append(line)

    def seen(self) -> list[tuple[str, list[str]]]:
        """Who (an address, or `lua` for what a script calls) and the words of each command, in their order."""
        self._admin.echo(self._mark.decode())
        self._thread.join(10)
        assert not self._thread.is_alive()
        found: list[tuple[str, list[str]]] = []
        for line in self._lines:
            match = self._LINE.fullmatch(line.rstrip())
            assert match is not None, line
            words = [word.decode() for word in self._WORD.findall(match[2])]
            found.append((match[1].decode(), words))
        return found
