"""TLS to the server: own CA, client certificates, renewed files, and what is said when it doesn't work."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

import streamflow as sf
from streamflow.cli import cli
from streamflow.store.connection import Call
from streamflow.store.node import Node
from tests.support.secure import Certificates, tls_server

pytestmark = pytest.mark.anyio


class Ports:
    """The TLS ports of servers by the name of their certificate, and the plain port of one."""

    def __init__(self) -> None:
        self.tls: dict[str, int] = {}
        self.plain = 0


@pytest.fixture(scope="module")
async def ports(certificates: Certificates) -> AsyncIterator[Ports]:
    ports = Ports()
    async with contextlib.AsyncExitStack() as stack:
        for name in ("server", "expired", "elsewhere", "demanding"):
            demands = name == "demanding"
            opened = tls_server(certificates, "server" if demands else name, "yes" if demands else "no")
            server, ports.tls[name] = await stack.enter_async_context(opened)
            ports.plain = int(server.url.rpartition(":")[2])
        yield ports


def url_of(certificates: Certificates, port: int, *, ca: str = "ca", client: str = "", more: str = "") -> str:
    files = f"ssl_certfile={certificates.path(client + '.pem')}&ssl_keyfile={certificates.path(client + '.key')}"
    trusted = f"ssl_ca_certs={certificates.path(ca + '.pem')}&" if ca else ""
    return f"rediss://:s3cret@127.0.0.1:{port}?{trusted}{files if client else ''}{more}".rstrip("?&")


async def ping(url: str, patience: float = 10.0) -> Any:
    store = Node(url.replace(":s3cret@", ""), patience=patience)
    try:
        return await store.one(Call.plain("ECHO", "hello"))
    finally:
        await store.close()


async def refusal(url: str) -> str:
    with pytest.raises(sf.StoreUnavailable) as caught:
        await ping(url, patience=0.3)
    return str(caught.value)


async def test_an_own_ca_and_a_client_certificate(certificates: Certificates, ports: Ports) -> None:
    assert await ping(url_of(certificates, ports.tls["server"])) == b"hello"
    assert await ping(url_of(certificates, ports.tls["demanding"], client="client")) == b"hello"
    assert await ping(url_of(certificates, ports.tls["server"], ca="", more="ssl_cert_reqs=none")) == b"hello"
    assert await ping(url_of(certificates, ports.tls["elsewhere"], more="ssl_check_hostname=false")) == b"hello"


@pytest.mark.parametrize(
    ("server", "options", "advice"),
    [
        ("server", {"ca": ""}, "This machine doesn't trust the CA of the server's certificate: add ssl_ca_certs=FILE"),
        ("server", {"ca": "other-ca"}, "add ssl_ca_certs=FILE to the URL, with the PEM file of that CA"),
        ("expired", {}, "The server's certificate, or that of its CA, has expired: renew it"),
        ("elsewhere", {}, "Use a host name in the URL that the server's certificate has"),
        ("demanding", {}, "It may demand a client certificate: add ssl_certfile=FILE and ssl_keyfile=FILE"),
        ("demanding", {"client": "stranger"}, "It may refuse the client certificate"),
    ],
)
async def test_a_connection_that_fails_says_what_to_do(
    certificates: Certificates, ports: Ports, server: str, options: dict[str, str], advice: str
) -> None:
    assert advice in await refusal(url_of(certificates, ports.tls[server], **options))


async def test_a_port_of_the_other_kind_is_named(certificates: Certificates, ports: Ports) -> None:
    assert "If this is its TLS port, use rediss://" in await refusal(f"redis://127.0.0.1:{ports.tls['server']}")

    def look() -> str:
        url = url_of(certificates, ports.plain)
        result = CliRunner().invoke(cli, ["runs"], env={"STREAMFLOW_APP": None, "STREAMFLOW_REDIS": url})
        assert result.exit_code == 1
        assert "s3cret" not in result.output
        return result.stderr

    assert "If it is the plain one, use redis://" in await anyio.to_thread.run_sync(look)


def test_files_that_cannot_be_used_are_refused_before_anything_is_sent(certificates: Certificates) -> None:
    key = load_pem_private_key(certificates.path("client.key").read_bytes(), None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"hunter2"))
    certificates.path("locked.key").write_bytes(locked)
    certificates.path("locked.pem").write_bytes(certificates.path("client.pem").read_bytes())
    certificates.path("mixed.key").write_bytes(certificates.path("stranger.key").read_bytes())
    certificates.path("mixed.pem").write_bytes(certificates.path("client.pem").read_bytes())
    certificates.path("nothing.pem").write_text("nothing\n")
    for options, reason in (
        ({"client": "mixed"}, "the key in ssl_keyfile doesn't belong to the certificate in ssl_certfile"),
        ({"client": "locked"}, "with ssl_password if the key is encrypted"),
        ({"client": "locked", "more": "&ssl_password=hunter3"}, "with ssl_password if the key is encrypted"),
        ({"ca": "nothing"}, "there is no certificate in what ssl_ca_certs names"),
        ({"more": f"ssl_keyfile={certificates.path('client.key')}"}, "the option ssl_keyfile needs ssl_certfile"),
    ):
        with pytest.raises(sf.UsageError) as caught:
            Node(url_of(certificates, 1, **options))
        assert reason in str(caught.value)
        assert "s3cret" not in str(caught.value)
        assert "hunter" not in str(caught.value)
    Node(url_of(certificates, 1, client="locked", more="&ssl_password=hunter2"))


async def test_renewed_files_are_used_from_the_next_connection_on(certificates: Certificates, ports: Ports) -> None:
    for kind in ("pem", "key"):
        certificates.path(f"renewed.{kind}").write_bytes(certificates.path(f"stranger.{kind}").read_bytes())
    store = Node(url_of(certificates, ports.tls["demanding"], client="renewed").replace(":s3cret@", ""))
    try:
        with pytest.raises(sf.StoreUnavailable):
            await store.send([Call.plain("PING")], patience=0.3)
        for kind in ("pem", "key"):
            path = certificates.path(f"renewed.{kind}")
            path.write_bytes(certificates.path(f"client.{kind}").read_bytes())
            os.utime(path, ns=(1, 1))  # another time than before, however coarse the file system's are
        assert await store.one(Call.plain("ECHO", "hello")) == b"hello"
    finally:
        await store.close()


async def test_a_store_is_closed_although_its_server_is_silent(certificates: Certificates) -> None:
    """The server's part in ending TLS would be waited for until redis-py raises."""
    async with tls_server(certificates) as (server, port):
        store = Node(url_of(certificates, port).replace(":s3cret@", ""))
        assert await store.one(Call.plain("ECHO", "hello")) == b"hello"
        os.kill(server.pid, signal.SIGSTOP)
        try:
            await store.close()
        finally:
            os.kill(server.pid, signal.SIGCONT)


async def test_a_connection_that_is_given_up_while_it_opens_is_closed(certificates: Certificates, ports: Ports) -> None:
    """At once, not when the server has taken its leave: the event loop may end before that."""
    url = url_of(certificates, ports.tls["server"]).replace(":s3cret@", "")
    store = Node(url)
    link: Any = store.link()
    connected = anyio.Event()
    sockets: list[Any] = []

    async def greet(connection: Any) -> None:
        sockets.append(connection._writer.transport.get_extra_info("socket"))
        connected.set()
        await anyio.sleep_forever()

    link.redis_connect_func = greet
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(link.open)
        await connected.wait()
        tasks.cancel_scope.cancel()
    await anyio.lowlevel.checkpoint()
    assert [one.fileno() for one in sockets] == [-1]
    await store.close()


async def test_a_connection_whose_answer_is_given_up_is_closed_at_once(
    certificates: Certificates, ports: Ports
) -> None:
    store = Node(url_of(certificates, ports.tls["server"]).replace(":s3cret@", ""))
    link: Any = store.link()
    await link.open()
    socket = link._writer.transport.get_extra_info("socket")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(link.exchange, [["XREAD", "BLOCK", 10_000, "STREAMS", "nothing", "$"]], 10.0)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    await anyio.lowlevel.checkpoint()
    assert socket.fileno() == -1
    await store.close()
