"""SIGTERM and SIGINT count from the start of a command: as process 1, and when they were inherited as ignored."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import streamflow as sf
from streamflow.embedded.server import EmbeddedServer
from tests.process.faults import ROOT, ServingProcess, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

APP = """
import asyncio, ctypes, multiprocessing, os, signal, threading, time
from pathlib import Path
import streamflow as sf
Path(__file__).with_suffix(".imported").touch()
time.sleep(float(os.environ.get("SLOW", "0")))
app = sf.App()
@app.step(queue="q")
async def step() -> None: ...
@app.workflow
async def job() -> None:
    await step()
@app.step
async def last() -> None:
    Path(__file__).with_suffix(".begun").touch()
    await asyncio.sleep(60)
@app.workflow
async def lasts() -> None:
    await last()
@app.step
async def take(what: str) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, getattr(signal, what))
@app.workflow
async def takes(what: str) -> None:
    await take(what)
@app.step(retry=sf.NO_RETRY, timeout=0.2)
async def leave(what: str) -> None:
    if what == "to_thread":
        await asyncio.to_thread(time.sleep, 60)
    threading.Thread(target=time.sleep, args=(60,)).start()
@app.workflow
async def leaves(what: str) -> None:
    try:
        await leave(what)
    except sf.StepFailed:
        pass
@app.step(retry=sf.NO_RETRY)
def fork() -> int:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        return sum(pool.map(abs, range(5)))
@app.workflow
async def forks() -> int:
    return await fork()
def ends_of_copies() -> list[int]:
    ends = []
    for number in (signal.SIGTERM, signal.SIGINT):
        arrives = [number]  # before Python does anything in the copy; in no later one
        hook = ctypes.CFUNCTYPE(None)(lambda: [os.kill(os.getpid(), one) for one in arrives] and None)
        ctypes.CDLL(None)["__register_atfork"](None, None, hook, None)
        kept.append(hook)
        pid = os.fork()
        if not pid:
            time.sleep(2)
            os._exit(7)
        arrives.clear()
        ends.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    return ends
kept = []
@app.step(retry=sf.NO_RETRY)
def copy_in_thread() -> list[int]:
    return ends_of_copies()
@app.step(retry=sf.NO_RETRY, process=True)
def copy_in_process() -> list[int]:
    return ends_of_copies()
@app.workflow
async def copies() -> list[int]:
    return await copy_in_thread() + await copy_in_process()
"""
UNSHARE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
"""The command becomes process 1 of a namespace of its own, as in a container."""


def may_unshare() -> bool:
    try:
        return subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.fixture
def flows(tmp_path: Path) -> Path:
    (tmp_path / "flows.py").write_text(APP)
    return tmp_path / "flows.py"


async def _exists(file: Path) -> bool:
    return file.exists()


@pytest.mark.skipif(not may_unshare(), reason="this system doesn't allow namespaces of processes")
@pytest.mark.parametrize("state", ["importing", "waiting"])
async def test_sigterm_ends_a_worker_that_is_process_1(
    embedded_server: EmbeddedServer, namespace: str, tmp_path: Path, flows: Path, state: str
) -> None:
    log = tmp_path / "log"
    words = [sys.executable, "-m", "streamflow", "worker", "--app", f"{flows}:app", "--queue", "q"]
    words += ["--redis", embedded_server.url, "--namespace", namespace]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "SLOW": "30" if state == "importing" else "0"}
    with log.open("wb") as output:
        outer = subprocess.Popen([*UNSHARE, *words], stdout=output, stderr=output, env=environ)
    try:
        if state == "importing":
            await until(lambda: _exists(flows.with_suffix(".imported")), "the app is being imported")
        else:
            await until(lambda: _mentions(log, "waiting for its first daemon"), "it waits for a namespace")
        [child] = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGTERM)
        assert outer.wait(10) == 128 + signal.SIGTERM
    finally:
        outer.kill()
        outer.wait()


async def _mentions(log: Path, text: str) -> bool:
    return text in log.read_text()


@pytest.fixture
async def daemon(
    embedded_server: EmbeddedServer, namespace: str, tmp_path: Path, flows: Path
) -> AsyncIterator[ServingProcess]:
    words = ("daemon", "--app", f"{flows}:app", "--shards", "4", "--grace", "60")
    daemon = ServingProcess(*words, url=embedded_server.url, namespace=namespace, log=tmp_path / "log")
    try:
        await until(lambda: _mentions(daemon.log, "acquired 4 shards"), "it serves")
        yield daemon
    finally:
        await daemon.end()


@pytest.mark.parametrize("what", ["SIG_IGN", "SIG_DFL"])
async def test_a_step_that_replaces_the_handlers_keeps_no_daemon_from_draining(
    daemon: ServingProcess, client: sf.Client, what: str
) -> None:
    await (await client.start("takes", what)).result(20)
    await until(lambda: _mentions(daemon.log, "the handler of SIGINT was replaced"), "it is put back")
    daemon.send(signal.SIGTERM)
    assert await daemon.wait(20) == 0
    assert await _mentions(daemon.log, "SIGTERM: draining")


async def test_signals_of_processes_that_a_step_forks_are_not_the_daemons(
    daemon: ServingProcess, client: sf.Client
) -> None:
    """A pool of `multiprocessing` ends its processes by SIGTERM."""
    for _ in range(3):
        assert await (await client.start("forks")).result(20) == 10
    assert not await _mentions(daemon.log, "SIGTERM")
    daemon.send(signal.SIGTERM)
    assert await daemon.wait(20) == 0


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "__register_atfork"), reason="the C library is not glibc")
async def test_a_signal_at_the_first_moment_of_a_fork_is_its_own(daemon: ServingProcess, client: sf.Client) -> None:
    """A pool may end a process that has not begun. It waited for that one then, and the daemon drained."""
    assert await (await client.start("copies")).result(20) == [-signal.SIGTERM, -signal.SIGINT] * 2
    assert not await _mentions(daemon.log, "draining")


@pytest.mark.parametrize("what", ["to_thread", "thread"])
async def test_a_thread_that_a_step_leaves_behind_keeps_no_daemon_from_ending(
    daemon: ServingProcess, client: sf.Client, what: str
) -> None:
    await (await client.start("leaves", what)).result(20)
    daemon.send(signal.SIGTERM)
    assert await daemon.wait(20) == 0
    assert await _mentions(daemon.log, "drained")


async def test_the_second_signal_ends_the_process_at_once(
    daemon: ServingProcess, client: sf.Client, flows: Path
) -> None:
    run = await client.start("lasts")
    await until(lambda: _exists(flows.with_suffix(".begun")), "its step runs")
    daemon.send(signal.SIGTERM)
    await until(lambda: _mentions(daemon.log, "SIGTERM: draining"), "it drains")
    daemon.send(signal.SIGTERM)
    assert await daemon.wait(20) == 1
    assert (await run.describe()).status is sf.Status.RUNNING


@pytest.fixture
async def deaf(
    embedded_server: EmbeddedServer, namespace: str, tmp_path: Path, flows: Path
) -> AsyncIterator[ServingProcess]:
    """A worker that has inherited SIGINT and SIGTERM as ignored, and waits for a namespace."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        words = ("worker", "--app", f"{flows}:app", "--queue", "q")
        worker = ServingProcess(*words, url=embedded_server.url, namespace=namespace, log=tmp_path / "log")
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    yield worker
    await worker.end()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, -signal.SIGTERM)])
async def test_signals_that_were_inherited_as_ignored_count(
    deaf: ServingProcess, number: signal.Signals, code: int
) -> None:
    """As in a background command of a shell script."""
    await until(lambda: _mentions(deaf.log, "waiting for its first daemon"), "it waits for a namespace")
    deaf.send(number)
    assert await deaf.wait(10) == code
