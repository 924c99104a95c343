"""A PostgreSQL of a test: the Debian package's server on a Unix socket, without its durability, as another user if this
one is root, which it refuses to run as."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

START_SECONDS = 30.0


def find_binaries() -> Path | None:
    """The newest version's directory of `initdb` and `postgres`; None if it isn't installed, or can't be run."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
    if on_path := shutil.which("postgres"):
        found.append(Path(on_path))
    if not found or (os.getuid() == 0 and _user() is None):
        return None
    return found[-1].parent


def _user() -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return None


class PostgresServer:
    """Starts at once; `stop()` removes it with its data. `pid` is its main process."""

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self._folder = Path(tempfile.mkdtemp(prefix="sf-pg-"))
        user = _user() if os.getuid() == 0 else None
        self._as: dict[str, object] = {} if user is None else {"user": user.pw_uid, "group": user.pw_gid}
        if user is not None:
            os.chown(self._folder, user.pw_uid, user.pw_gid)
        self._data = self._folder / "data"
        self.port = 5432
        self._process: subprocess.Popen[bytes] | None = None
        name = "streamflow"
        self._run("initdb", "-D", self._data, "-U", name, "-A", "trust", "-E", "UTF8", "--no-sync", "--locale=C.UTF-8")
        self.url = f"host={self._folder} port={self.port} user={name} dbname=postgres"
        self.start()

    def start(self) -> None:
        options = [
            "-c",
            "fsync=off",
            "-c",
            "listen_addresses=",
            "-c",
            "shared_buffers=16MB",
            "-c",
            "max_connections=20",
        ]
        self._process = subprocess.Popen(
            [self._binaries / "postgres", "-D", self._data, "-k", self._folder, "-p", str(self.port), *options],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", start_new_session=True, **self._as,  # type: ignore[call-overload]
        )  # fmt: skip
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                psycopg.connect(self.url, connect_timeout=5).close()
                return
            except psycopg.OperationalError:
                assert time.monotonic() < until, "PostgreSQL doesn't start"
                time.sleep(0.02)

    def kill(self) -> None:
        """At once, as a power cut does; what it has confirmed is still there, because its host lives."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(30)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(30)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, program: str, *words: object) -> None:
        command = [str(self._binaries / program), *map(str, words)]
        subprocess.run(command, check=True, capture_output=True, cwd="/", timeout=120, **self._as)  # type: ignore[call-overload]


def postgres_of_this_process() -> Iterator[PostgresServer]:
    """For a fixture. Without PostgreSQL the test is skipped, but not in CI, which installs it."""
    binaries = find_binaries()
    if binaries is None:
        assert not os.environ.get("CI"), "CI installs PostgreSQL: see .ci/run"
        pytest.skip("PostgreSQL is not installed")
    server = PostgresServer(binaries)
    yield server
    server.stop()
