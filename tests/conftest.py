"""What all tests share: one server for the whole session, a namespace for each test, and the way to empty it.

Async tests run on asyncio through anyio's pytest plugin: mark a module with `pytestmark = pytest.mark.anyio`.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import gc
import logging
import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import hypothesis
import pytest
from anyio.from_thread import start_blocking_portal
from redis.asyncio import Redis

from streamflow.embedded.server import EmbeddedServer
from streamflow.machine import sealed
from streamflow.workflow.app import App
from tests.support.examples import examples

REDIS_SERVER = shutil.which("redis-server")
"""Parametrise with `redis_server` only where this is set: a test that can't run isn't made, rather than skipped."""

# A busy machine is no error of what is tested. How long one test may take is said in pyproject.toml.
hypothesis.settings.register_profile(
    "busy machine",
    deadline=None,
    max_examples=examples(100),
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("busy machine")

MAX_PROCESSES = 8
"""Of tests, on machines with many cores: each has a server, and starts daemons."""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """What `-n auto` of pyproject.toml is: one process more than there are cores, because many tests wait for others.

    0, which is this process, for single files or tests, and for what needs the terminal. A number after `-n`, or in the
    variable of pytest-xdist, has precedence.
    """
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    option = config.option
    single = option.keyword or option.lf or any(".py" in argument for argument in config.args)
    if single or option.capture == "no" or option.trace:
        return 0
    return min((os.cpu_count() or 1) + 1, MAX_PROCESSES)


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Without the garbage collector: nothing of what is collected is garbage, and to look at it again and again took a
    fourth of the time. In a new clone, one process compiles the tests and the others wait for it, who else would each
    compile all."""
    is_new = not sys.dont_write_bytecode and not (Path(__file__).parent / "unit/__pycache__").exists()
    waits = is_new and hasattr(session.config, "workerinput")
    gc.disable()
    try:
        with _one_first() if waits else contextlib.nullcontext():
            return (yield)
    finally:
        gc.enable()


@contextlib.contextmanager
def _one_first() -> Generator[None]:
    """The first process that comes is alone, all others follow together."""
    with Path(__file__).open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def pytest_collection_finish() -> None:
    """What was collected stays to the end. Whenever a test collects garbage, as those of reference cycles do, all of it
    would be looked at again: a third of the processor time of some folders."""
    gc.collect()
    gc.freeze()


def _servers() -> dict[str, Path]:
    listed = os.environ.get("STREAMFLOW_TEST_SERVERS", "").split(os.pathsep)
    binaries = [shutil.which("redis-server"), shutil.which("valkey-server"), *listed]
    found: dict[str, Path] = {}
    for path in dict.fromkeys(Path(binary) for binary in binaries if binary):
        shown = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
        match = re.match(r"(Redis|Valkey) server v=([\d.]+)", shown)
        assert match is not None, f"{path} is not a server: {shown}"
        found[f"{match[1].lower()}-{match[2]}"] = path
    return found


SERVERS = _servers()
"""Servers on this machine, by name and version: those on PATH, and those whose paths are in STREAMFLOW_TEST_SERVERS,
separated by colons. Kernel tests run on each, and on the Valkey from the wheel."""


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def embedded_server() -> Iterator[EmbeddedServer]:
    """The Valkey from the wheel, in memory. Shared: a test that stops or reconfigures a server starts its own."""
    yield from _serve(None)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[EmbeddedServer]:
    """The `redis-server` on PATH, in memory."""
    assert REDIS_SERVER is not None, "ask for this fixture only where conftest.REDIS_SERVER is set"
    yield from _serve(Path(REDIS_SERVER))


@pytest.fixture(scope="session")
def other_server() -> Iterator[Callable[[str], EmbeddedServer]]:
    """One of `SERVERS` by its name, in memory, started when it is first asked for."""
    with contextlib.ExitStack() as stack:
        yield functools.cache(
            lambda name: stack.enter_context(contextlib.contextmanager(_serve)(SERVERS[name])),
        )


def _serve(binary: Path | None) -> Generator[EmbeddedServer]:
    # In a thread with its own event loop, because the loops of the tests come and go.
    server = EmbeddedServer(memory=True, binary=binary)
    with start_blocking_portal("asyncio") as portal, portal.wrap_async_context_manager(server):
        yield server


@pytest.fixture
def namespace() -> str:
    """A name that no other test uses, on whatever server."""
    return f"t{uuid.uuid4().hex[:12]}"


async def clean_keys(url: str, namespace: str) -> list[str]:
    """Delete every key of the namespace and return their names, sorted."""
    async with Redis.from_url(url, decode_responses=True) as redis:
        keys: list[str] = []
        for pattern in (f"sf:{{{namespace}}}:*", f"sf:{{{namespace}/*}}:*"):
            keys += [key async for key in redis.scan_iter(match=pattern, count=1000)]
        if keys:
            await redis.delete(*keys)
    return sorted(keys)


_modules_that_stay: set[str] = set()
"""Those that no test has written. To look at all that are imported, after each test, took as long as a small test."""


@pytest.fixture(autouse=True)
def modules_of_a_test_go_with_it(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests write apps of the same names, `flows` above all, and each must import its own."""
    yield
    written_by_tests = str(tmp_path_factory.getbasetemp())
    for name in sys.modules.keys() - _modules_that_stay:
        module = sys.modules[name]
        places = [getattr(module, "__file__", None), *getattr(module, "__path__", [])]
        if any(place and place.startswith(written_by_tests) for place in places):
            del sys.modules[name]
        else:
            _modules_that_stay.add(name)


@pytest.fixture(autouse=True)
def what_a_test_registers_goes_with_it(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that failed for lack of time may be run again, and defines the same steps in its module's app."""
    app = getattr(request.module, "app", None)
    known = {name: dict(value) for name, value in vars(app).items() if type(value) is dict} if type(app) is App else {}
    yield
    for name, value in known.items():
        registered = vars(app)[name]
        registered.clear()
        registered.update(value)


@pytest.fixture(autouse=True)
def this_process_is_no_daemon() -> Iterator[None]:
    """A command that ran a daemon in this process has left it as a daemon's own: there nobody ends the tasks of steps,
    and warnings are logged."""
    interval = sys.getswitchinterval()
    yield
    sealed._hiding = False
    logging.captureWarnings(False)
    sys.setswitchinterval(interval)
