"""docs/operations.md, command by command: what a person does who is alerted, who backs up, and who restores.

Each block of commands runs as it stands, in bash, with the variables that the page names.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from streamflow.embedded.server import find_server
from tests.support.secure import Certificates, tls_server
from tests.unit.test_docs import ROOT, commands, section

SECONDS = 60.0
NAMESPACE = "orders"
FLOWS = """
import streamflow as sf

app = sf.App()


@app.step
async def note(line: str) -> None:
    with open("journal", "a") as journal:
        journal.write(line + "\\n")


@app.workflow
async def approval(name: str) -> str:
    await note(f"{name} first")
    value = await sf.signal("go", str)
    await note(f"{name} {value}")
    return value
"""
MISSING = [tool for tool in ("redis-cli", "redis-check-rdb", "redis-check-aof") if shutil.which(tool) is None]

CLIENT_FILES = {"ca_certs": "ca.pem", "certfile": "client.pem", "keyfile": "client.key"}

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.timeout(180),
    pytest.mark.skipif(bool(MISSING), reason=f"not on PATH: {', '.join(MISSING)} (apt-get install redis-server)"),
]


class Machine:
    """A directory with `flows.py`, in which the commands of the page run, beside a server and a daemon."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.processes: list[subprocess.Popen[bytes]] = []
        self._own(directory / "bin")
        (directory / "flows.py").write_text(FLOWS)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("STREAMFLOW_")}
        self.environ = {
            **inherited,
            "PATH": f"{directory / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "NO_COLOR": "1",
            "TMPDIR": str(directory),
            "STREAMFLOW_NAMESPACE": NAMESPACE,
            "STREAMFLOW_SHARDS": "8",
        }

    def _own(self, tools: Path) -> None:
        """The commands of the page: this streamflow, and a server if the machine has none."""
        tools.mkdir()
        (tools / "streamflow").write_text(f'#!/bin/sh\nexec {sys.executable} -m streamflow "$@"\n')
        (tools / "streamflow").chmod(0o755)
        if shutil.which("redis-server") is None:
            (tools / "redis-server").symlink_to(find_server())

    def run(self, script: str) -> str:
        """A block of the page: each of its commands must succeed. What it leaves running is ended by `end`."""
        output = self.directory / "output"
        with output.open("wb") as file:  # not a pipe, which what runs on would keep open
            done = subprocess.run(
                ["bash", "-eu", "-c", f"{script}\njobs -p >>jobs"],
                cwd=self.directory,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=SECONDS,
                check=False,
            )
        text = output.read_text(errors="replace")
        assert done.returncode == 0, f"{script}\n{text}"
        return text

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        with (self.directory / f"{len(self.processes)}.log").open("wb") as log:
            process = subprocess.Popen(words, cwd=self.directory, env=self.environ, stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def serve(self) -> list[subprocess.Popen[bytes]]:
        """A server with an append-only file, and a daemon."""
        port = free_port()
        self.environ |= {"STREAMFLOW_REDIS": f"redis://127.0.0.1:{port}", "DATA": str(self.directory / "data")}
        (self.directory / "data").mkdir()
        options = ("--port", str(port), "--dir", "data", "--appendonly", "yes", "--maxmemory-policy", "noeviction")
        tool = shutil.which("redis-server", path=self.environ["PATH"])
        assert tool is not None
        server = self.start(tool, *options)
        self.run(f"until redis-cli -p {port} PING | grep -q PONG; do sleep 0.1; done")
        daemon = self.start(sys.executable, "-m", "streamflow", "daemon", "--app", "flows.py:app")
        self.run("until streamflow status | grep -q healthy; do sleep 0.1; done")
        return [server, daemon]

    def wait_for(self, line: str) -> None:
        deadline = time.monotonic() + SECONDS
        journal = self.directory / "journal"
        while not journal.exists() or f"{line}\n" not in journal.read_text():
            assert time.monotonic() < deadline, line
            time.sleep(0.05)

    def end(self) -> None:
        jobs = self.directory / "jobs"
        for pid in jobs.read_text().split() if jobs.exists() else ():
            os.kill(int(pid), signal.SIGKILL)
        for process in self.processes:
            process.kill()
            process.wait()
        if port := self.environ.get("PORT"):
            subprocess.run(["redis-cli", "-p", port, "SHUTDOWN", "NOSAVE", "FORCE"], capture_output=True, check=False)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def machine(tmp_path: Path) -> Generator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.end()


def test_the_first_steps_lead_from_nothing_to_a_run(machine: Machine) -> None:
    port = free_port()
    (machine.directory / "data").mkdir()
    tool = shutil.which("redis-server", path=machine.environ["PATH"])
    assert tool is not None
    machine.start(tool, "--port", str(port), "--dir", "data", "--appendonly", "yes")
    machine.run(f"until redis-cli -p {port} PING | grep -q PONG; do sleep 0.1; done")
    (steps,) = commands(section("docs/operations.md", "## From nothing to a deployment"))
    first, rest = steps.split("\n", 1)
    assert first == "export STREAMFLOW_REDIS=redis://127.0.0.1:6379"
    machine.environ |= {"STREAMFLOW_REDIS": f"redis://127.0.0.1:{port}"}
    del machine.environ["STREAMFLOW_SHARDS"]
    said = machine.run(f"{rest}\nwait $!")
    assert '"Hello, world!"' in said
    assert "● healthy" in said


@pytest.mark.parametrize("way", ["a snapshot", "a copy of the append-only file"])
def test_a_restored_server_goes_on_where_the_backup_was(machine: Machine, way: str) -> None:
    taking = commands(section("docs/operations.md", "### Taking one"))
    restoring = commands(section("docs/operations.md", "### Restoring one"))
    from_file, from_snapshot, then = restoring
    serving = machine.serve()
    machine.run("streamflow enqueue approval --id done --input '\"done\"'; streamflow signal done go '\"yes\"'")
    machine.run("streamflow enqueue approval --id open --input '\"open\"'")
    for line in ("done yes", "open first"):
        machine.wait_for(line)
    machine.run("until streamflow show open --json | grep -q step-done; do sleep 0.1; done")
    machine.run(taking[0] if way == "a snapshot" else taking[1])
    for process in serving:
        process.kill()
        process.wait()
    machine.environ |= {"NEW": str(machine.directory / "new"), "PORT": str(free_port())}
    (machine.directory / "new").mkdir()
    machine.run(from_snapshot if way == "a snapshot" else from_file)
    runs = machine.run(then)
    assert re.search(r"done +approval .*completed", runs)
    machine.environ["STREAMFLOW_REDIS"] = f"redis://127.0.0.1:{machine.environ['PORT']}"
    machine.run("streamflow signal open go '\"on\"'")
    machine.wait_for("open on")
    machine.run("until streamflow show open --json | grep -q completed; do sleep 0.1; done")
    assert sorted((machine.directory / "journal").read_text().splitlines()) == [
        "done first",
        "done yes",
        "open first",
        "open on",
    ]
    assert machine.run('redis-cli -p "$PORT" CONFIG GET appendonly').split() == ["appendonly", "yes"]


def test_every_command_of_the_runbooks_works_as_it_stands(machine: Machine) -> None:
    machine.serve()
    machine.run("streamflow enqueue approval --id open --input '\"open\"'")
    machine.wait_for("open first")
    machine.run("streamflow sink jsonl --group billing --once events.jsonl")
    machine.environ |= {"RUN": "open", "GROUP": "billing"}
    blocks = commands(section("docs/operations.md", "## Alerts, and what to do"))
    lines = sorted({line for block in blocks for line in block.splitlines()})
    assert len(lines) > 12
    for line in lines:
        machine.run(line)


async def test_the_commands_of_the_page_work_with_tls(machine: Machine) -> None:
    """By the few lines that the page has for redis-cli, at a server that demands a certificate."""
    certificates = Certificates(machine.directory)
    lines = commands(section("docs/operations.md", "### TLS"))[-1]
    tool = shutil.which("redis-cli")
    assert tool is not None
    async with tls_server(certificates, clients="yes") as (_, port):
        files = {f"ssl_{name}": certificates.path(path) for name, path in CLIENT_FILES.items()}
        options = "&".join(f"{name}={path}" for name, path in files.items())
        machine.environ |= {
            "HOME": str(machine.directory / "home"),
            "STREAMFLOW_REDIS": f"rediss://127.0.0.1:{port}/0?{options}",
        }
        lines = lines.replace("/usr/bin/redis-cli", tool).replace("/etc/streamflow", str(machine.directory))
        for command in (
            'timeout 5 redis-cli -u "$STREAMFLOW_REDIS" PING',
            'echo PING | redis-cli -u "$STREAMFLOW_REDIS"',
        ):
            assert machine.run(f"{lines}\n{command}").split()[-1] == "PONG"
        assert "permissions" in machine.run("streamflow check")


def test_an_old_namespace_is_deleted_and_no_other(machine: Machine) -> None:
    machine.serve()
    machine.environ |= {"OLD": "orders"}
    machine.run("streamflow enqueue approval --id open --input '\"open\"'")
    machine.wait_for("open first")
    machine.run('redis-cli -u "$STREAMFLOW_REDIS" SET "sf:{orders2}:meta" x')
    machine.processes[-1].kill()
    machine.processes[-1].wait()
    machine.run("\n".join(commands(section("docs/operations.md", "## Upgrade and downgrade"))))
    assert machine.run('redis-cli -u "$STREAMFLOW_REDIS" KEYS "*"').split() == ["sf:{orders2}:meta"]
