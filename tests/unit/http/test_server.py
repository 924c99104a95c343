"""The HTTP server: whatever clients do, it costs little, and a probe is answered."""

from __future__ import annotations

import contextlib
import gc
import http.client
import socket
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus

import pytest

from streamflow.errors import UsageError
from streamflow.http import server as module
from streamflow.http.server import Answer, HttpServer


class Echo:
    """Answers with the page's name."""

    def __init__(self) -> None:
        self.closed = False

    async def answer(self, path: str, accept: str) -> Answer:
        if path == "/broken":
            raise RuntimeError("a defect")
        return Answer(HTTPStatus.OK, path.encode())

    async def close(self) -> None:
        self.closed = True


@pytest.fixture
def server() -> Iterator[HttpServer]:
    server = HttpServer("127.0.0.1:0", Echo())
    server.start()
    yield server
    server.stop()


def ask(server: HttpServer, path: str, method: str = "GET") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    with contextlib.closing(connection):
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read()


def send(server: HttpServer, data: bytes) -> bytes:
    """Everything that comes back until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(data)
        received = b""
        while more := client.recv(65536):
            received += more
        return received


def test_a_page_is_answered_by_its_path_alone(server: HttpServer) -> None:
    assert ask(server, "/health?verbose=1") == (200, b"/health")
    assert ask(server, "/health", "HEAD") == (200, b"")


def test_a_connection_has_one_request(server: HttpServer) -> None:
    answers = send(server, b"GET /a HTTP/1.1\r\nHost: x\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answers.count(b"HTTP/1.1 200") == 1
    assert answers.endswith(b"/a")
    assert b"Connection: close" in answers


def test_what_is_not_a_request_for_a_page_is_refused(server: HttpServer) -> None:
    assert ask(server, "/health", "POST")[0] == 405
    assert send(server, b"some nonsense here\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert b" 400 " in send(server, b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b" 505 " in send(server, b"GET / HTTP/3.0\r\nHost: x\r\n\r\n")


def test_a_head_that_is_too_long_is_refused(server: HttpServer) -> None:
    with contextlib.suppress(ConnectionResetError):  # the rest of the head may reach a socket that is closed
        assert b" 431 " in send(server, b"GET / HTTP/1.1\r\nX: " + b"x" * 2 * module.HEAD_BYTES + b"\r\n\r\n")
    assert b" 431 " in send(server, b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n")
    assert ask(server, "/health")[0] == 200


def test_a_defect_of_a_page_is_an_answer(server: HttpServer) -> None:
    assert ask(server, "/broken")[0] == 500
    assert ask(server, "/health")[0] == 200


def test_a_client_that_sends_slowly_is_cut_off(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEAD_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(b"GET / HTTP/1.1\r\n")
        with contextlib.suppress(OSError):
            for _ in range(1000):
                client.sendall(b"x")
                client.settimeout(0.02)
                with contextlib.suppress(TimeoutError):
                    assert client.recv(1) == b""
                    break
            else:
                pytest.fail("the connection is still open")


def test_a_thousand_connections_keep_no_probe_from_its_answer(server: HttpServer) -> None:
    threads = threading.active_count()
    clients: list[socket.socket] = []
    try:
        for number in range(1000):
            clients.append(socket.create_connection(("127.0.0.1", server.port), timeout=10))
            if number % 3:
                clients[-1].sendall(b"GET /metrics HTTP/1.1\r\nX-Slow: ")
            if number % 100 == 0:
                assert ask(server, "/health") == (200, b"/health")
        assert ask(server, "/health") == (200, b"/health")
        assert len(server._open) <= module.CONNECTIONS
        assert threading.active_count() == threads
    finally:
        for client in clients:
            client.close()


def test_a_client_that_reads_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    class Large(Echo):
        async def answer(self, path: str, accept: str) -> Answer:
            return Answer(HTTPStatus.OK, b"x" * 50_000_000)

    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.2)
    server = HttpServer("127.0.0.1:0", Large())
    server.start()
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert client.recv(1) == b"H"
            deadline = time.monotonic() + 10
            while server._open:
                assert time.monotonic() < deadline
                time.sleep(0.01)
    finally:
        server.stop()


def test_a_port_in_use_is_said_and_nothing_is_kept(server: HttpServer) -> None:
    with pytest.raises(UsageError) as caught:
        HttpServer(f"127.0.0.1:{server.port}", Echo())
    assert f"can't listen at 127.0.0.1:{server.port} (--http): Address already in use" in str(caught.value)
    with pytest.raises(UsageError, match="can't listen at no-such-host"):
        HttpServer("no-such-host.invalid:0", Echo())


def test_all_addresses_of_a_name_have_one_port() -> None:
    server = HttpServer("localhost:0", Echo())
    server.start()
    try:
        ports = {listening.getsockname()[1] for listening in server._sockets}
        assert len(ports) == 1
        assert ask(server, "/ready") == (200, b"/ready")
    finally:
        server.stop()


def test_after_the_stop_the_port_is_free_and_the_site_closed() -> None:
    site = Echo()
    server = HttpServer("127.0.0.1:0", site)
    server.start()
    port = server.port
    assert ask(server, "/health")[0] == 200
    server.stop()
    assert site.closed
    assert not server._thread.is_alive()
    HttpServer(f"127.0.0.1:{port}", site).stop()


def test_connections_that_come_while_it_stops_are_closed() -> None:
    """A socket that is left open is a ResourceWarning, which fails this test."""
    for _ in range(20):
        server = HttpServer("127.0.0.1:0", Echo())
        server.start()
        assert ask(server, "/health")[0] == 200
        clients = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(8)]
        server.stop()
        for client in clients:
            client.close()
        gc.collect()
