"""Steps with `process=True`: each call goes to a process that later calls use again, bytes in and bytes out.

Owns: the processes, their start and end, and what is called inside of them. Must not: know slots, time-outs or retries.
Called by: the executor; `process_child.py`, in the process (`load_main`, `answer_call`).

A process is the leader of its own session, and leaves signals to its parent, so that a Ctrl-C or a service manager's
SIGTERM to the whole group doesn't end a step that may finish. It dies with its parent, however that ends. A process
that dies while it runs a step is reported like a worker that dies: `WorkerLost`.

The parent's main module is loaded under the name `__mp_main__`, as multiprocessing does, so a script that runs
`sf.local` needs its `if __name__ == "__main__"`. The code of a step is found by module and name; a file that isn't on
the path (`--app path/types.py`) is loaded again by its path.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
from msgspec import Raw

from streamflow import logs, search_path
from streamflow.errors import Failure, UsageError
from streamflow.interpreter import python_command
from streamflow.machine.open_work import WORKER_LOST
from streamflow.model.failures import failure_of, is_permanent, kinds_of
from streamflow.steps import process_child
from streamflow.steps.context import Running, current
from streamflow.tracing.setup import enter, set_up_in_process
from streamflow.workflow.actions import StepJob
from streamflow.workflow.app import Step
from streamflow.workflow.recording import Record

MAX_IDLE = 300.0
"""Seconds after which a process without a call is ended, when the next call comes."""
LOOK_EVERY = 0.5
"""Seconds between two looks whether a process has died whose copies still have its socket."""
EMITTED = b"\xc1"
"""Begins a frame with what a step has emitted: no MessagePack begins so."""
EMIT_EVERY = 0.005
"""Seconds between two such frames..."""
MOST_EMITTED = 4 * 1024 * 1024
"""...and bytes that wait for the next one; what is above that is dropped."""
LONGEST_END = 1.0
"""Seconds that `close` waits for killed processes."""


class CallResult(msgspec.Struct, array_like=True):
    """The encoded result, or the failure and whether it is permanent."""

    result: bytes
    failure: Failure | None = None
    permanent: bool = False
    died: bool = False
    """The process died; `failure` says how."""
    kinds: tuple[str, ...] = ()
    """Names of the error's classes, for `never` of the call's retry policy."""
    records: tuple[Record, ...] = ()
    """What the attempt has recorded for views."""


class _Call(msgspec.Struct, array_like=True):
    module: str
    file: str
    qualname: str
    name: str
    run_id: str
    seq: int
    attempt: int
    args: bytes
    details: bytes
    created: int
    workflow: str
    trace: str
    """Of the attempt's span; empty if it isn't traced."""


_encode = msgspec.msgpack.Encoder().encode
_call_decoder = msgspec.msgpack.Decoder(_Call)
_result_decoder = msgspec.msgpack.Decoder(CallResult)
_emitted_decoder = msgspec.msgpack.Decoder(tuple[int, list[Raw]])
_failure_decoder = msgspec.msgpack.Decoder(Failure)


class _Died(Exception):
    """The process is gone."""


class _Process:
    """One process and the socket to it. The constructor starts it; `connect` has to follow."""

    def __init__(self) -> None:
        self.idle_since = 0.0
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._socket, theirs = socket.socketpair()
        with theirs:
            # Not with the means of the event loop: uvloop gives children no blocked signals. Until the child has its
            # handlers, a signal to the whole group would end it.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, process_child.FOR_THE_PARENT)
            try:
                self._popen = subprocess.Popen(
                    python_command(process_child.__file__, str(theirs.fileno()), str(os.getpid())),
                    stdin=subprocess.DEVNULL,
                    stdout=_log_output(),
                    stderr=_log_output(),
                    start_new_session=True,
                    pass_fds=(theirs.fileno(),),
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

    async def connect(self) -> Failure | None:
        """Send what the process needs to know; the failure of the parent's main module, if it can't be loaded there.
        Raises `_Died`."""
        self._socket.setblocking(False)
        self._reader, self._writer = await asyncio.open_connection(sock=self._socket)
        answer = await self.ask(json.dumps([sys.path, _main_file(), logs.in_children, search_path.added()]).encode())
        return _failure_decoder.decode(answer) if answer else None

    async def ask(self, body: bytes) -> bytes:
        """Send a frame, and return the next one. Raises `_Died`."""
        assert self._writer is not None
        try:
            self._writer.writelines((len(body).to_bytes(8, "big"), body))
            await self._writer.drain()
        except OSError as error:
            raise _Died from error
        return await self.receive()

    async def receive(self) -> bytes:
        """The next frame. Raises `_Died`."""
        reading = asyncio.ensure_future(self._read_frame())
        died = False
        try:
            while not reading.done():
                await asyncio.wait({reading}, timeout=LOOK_EVERY)
                if died and not reading.done():
                    raise _Died
                died = not self._is_alive()
            return reading.result()
        except (OSError, EOFError) as error:
            raise _Died from error
        finally:
            reading.cancel()

    async def _read_frame(self) -> bytes:
        assert self._reader is not None
        return await self._reader.readexactly(int.from_bytes(await self._reader.readexactly(8), "big"))

    def _is_alive(self) -> bool:
        """Without freeing its number, by which `kill` ends what it has started."""
        try:
            return os.waitid(os.P_PID, self._popen.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:
            return False

    @property
    def usable(self) -> bool:
        return self._popen.returncode is None and self._is_alive()

    def kill(self) -> None:
        """End the process, and the commands that it has started."""
        if self._popen.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._popen.pid, signal.SIGKILL)
        if self._writer is not None:
            self._writer.transport.abort()
        else:
            self._socket.close()

    def is_over(self) -> bool:
        """Whether a killed process has ended; the system frees it then."""
        return self._popen.poll() is not None

    async def how_it_ended(self) -> str:
        pause = 0.001
        while self._is_alive() and pause < LONGEST_END:
            await asyncio.sleep(pause)
            pause *= 2
        code = self._popen.poll()
        if code is None:
            return "it closed its connection"
        if code < 0:
            try:
                return f"ended by {signal.Signals(-code).name}"
            except ValueError:
                return f"ended by signal {-code}"
        return f"exit status {code}"


def _main_file() -> str:
    """The file of the main module, if that may be a user's. Ours has nothing that a step needs, and would import the
    whole command line in each process, where the directory of the app stands first in the path."""
    main = sys.modules.get("__main__")
    is_ours = getattr(getattr(main, "main", None), "__module__", "") == "streamflow.cli"
    return "" if is_ours else getattr(main, "__file__", None) or ""


def _log_output() -> int:
    """Where the daemon logs to, or nowhere if it has no stderr."""
    try:
        os.fstat(2)
    except OSError:
        return subprocess.DEVNULL
    return 2


def _pass_on(running: Running, frame: bytes) -> None:
    emit = running.on_emit
    if emit is not None and not running.over:
        missed, chunks = _emitted_decoder.decode(memoryview(frame)[1:])
        for data in chunks:
            emit(running, bytes(data), missed)
            missed = 0


class ProcessPool:
    """The processes of one executor. It starts them as they are needed; the executor limits how many are."""

    def __init__(self) -> None:
        self._idle: list[_Process] = []
        """The one that was used last at the end."""
        self._busy: set[_Process] = set()
        self._ending: list[_Process] = []

    async def call(self, running: Running) -> CallResult:
        """Run the attempt in a process. Cancelling kills the process."""
        job = running.job
        function = job.step.function
        file = getattr(sys.modules.get(function.__module__), "__file__", None) or ""
        call = _encode(
            _Call(
                function.__module__,
                file,
                function.__qualname__,
                job.step.name,
                running.run_id,
                job.seq,
                job.attempt,
                bytes(job.args),
                bytes(job.details),
                job.created,
                job.workflow,
                "" if running.span is None else running.span.text(),
            )
        )
        while True:
            process = self._take_idle()
            is_new = process is None
            process = process or _Process()
            self._busy.add(process)
            has_begun = done = False
            try:
                failure = await process.connect() if is_new else None
                if failure is not None:
                    return CallResult(b"", failure)
                await process.ask(call)
                has_begun = True
                frame = await process.receive()
                while frame[:1] == EMITTED:
                    _pass_on(running, frame)
                    frame = await process.receive()
                result = _result_decoder.decode(frame)
                done = True
                return result
            except _Died:
                how = await process.how_it_ended()
                if not is_new and not has_begun:
                    continue  # it died while it was idle: the step is not the reason
                text = (
                    f"the process of step {job.step.name} died ({how}): it was killed, ran out of memory, "
                    "or ended itself"
                )
                return CallResult(b"", Failure(WORKER_LOST, text), died=True)
            finally:
                self._busy.discard(process)
                if done:
                    process.idle_since = time.monotonic()
                    self._idle.append(process)
                else:
                    self._end(process)

    def close(self) -> None:
        """Kill all processes."""
        for process in (*self._busy, *self._idle):
            self._ending.append(process)
            process.kill()
        self._busy.clear()
        self._idle.clear()
        deadline = time.monotonic() + LONGEST_END
        while self._reap() and time.monotonic() < deadline:
            time.sleep(0.001)

    def _take_idle(self) -> _Process | None:
        self._reap()
        old = time.monotonic() - MAX_IDLE
        while self._idle and self._idle[0].idle_since < old:
            self._end(self._idle.pop(0))
        while self._idle:
            process = self._idle.pop()
            if process.usable:
                return process
            self._end(process)
        return None

    def _end(self, process: _Process) -> None:
        process.kill()
        if not process.is_over():
            self._ending.append(process)
            asyncio.get_running_loop().call_later(0.05, self._reap)

    def _reap(self) -> bool:
        """Whether killed processes still exist."""
        self._ending = [process for process in self._ending if not process.is_over()]
        return bool(self._ending)


# --- in the process ---------------------------------------------------------------------------------------------------


def load_main(file: str, directories: list[str]) -> bytes:
    """Load the parent's main module under another name, so that what it guards with `__name__` doesn't run. Returns an
    encoded failure, or nothing. `directories`: those of `--path`, which may have `.pth` files."""
    for directory in directories:
        search_path.add(directory)
    if not Path(file).is_file():
        return b""
    main = ModuleType("__mp_main__")
    try:
        main.__dict__.update(runpy.run_path(file, run_name="__mp_main__"))
    except BaseException as error:
        return _encode(failure_of(error, (__file__,)))
    sys.modules["__main__"] = sys.modules["__mp_main__"] = main
    return b""


def answer_call(call: bytes, send: Callable[[bytes], None]) -> bytes:
    """`send` sends a frame with what the step has emitted, before that with the answer."""
    emitting = _Emitting(send)
    try:
        return _encode(_run(_call_decoder.decode(call), emitting))
    finally:
        emitting.close()


class _Emitting:
    """What a call has emitted: a thread sends it, so that the step never waits for its daemon or worker."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send
        self._sending = threading.Lock()
        self._lock = threading.Lock()
        self._waiting: list[Raw] = []
        self._size = 0
        self._missed = 0
        self._has_some = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = False

    def emit(self, _: Running, data: bytes, missed: int = 0) -> None:
        with self._lock:
            if self._closed:
                return
            if self._size > MOST_EMITTED:
                self._missed += 1
                return
            self._waiting.append(Raw(data))
            self._size += len(data)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="streamflow-emit", daemon=True)
                self._thread.start()
        self._has_some.set()

    def _run(self) -> None:
        while not self._closed:
            self._has_some.wait()
            self._has_some.clear()
            try:
                self._flush()
            except OSError:  # the parent has closed the socket
                return
            time.sleep(EMIT_EVERY)

    def _flush(self) -> None:
        with self._sending:
            with self._lock:
                waiting, self._waiting, self._size = self._waiting, [], 0
                missed, self._missed = self._missed, 0
            if waiting:
                self._send(EMITTED + _encode((missed, waiting)))

    def close(self) -> None:
        """All that was emitted is sent, and nothing more will be: what comes next is another call's."""
        if self._thread is None:
            self._closed = True
            return
        with self._lock:
            self._closed = True
        self._flush()
        self._has_some.set()


def _run(call: _Call, emitting: _Emitting) -> CallResult:
    running: Running | None = None
    try:
        step = _find(call.module, call.file, call.qualname, call.name)
        job = StepJob(
            call.seq,
            call.attempt,
            step,
            Raw(call.args),
            Raw(call.details),
            step.timeout,
            created=call.created,
            workflow=call.workflow,
        )
        running = Running(0, call.run_id, job, in_process=True, on_emit=emitting.emit)
        current.set(running)
        if call.trace:
            set_up_in_process()
        enter(call.trace)
        values, keywords = step.parameters.decode(call.args)
        value = step.function(*values, **keywords)
        return CallResult(step.parameters.encode_result(value), records=running.records)
    except BaseException as error:
        records = () if running is None else running.records
        failure = failure_of(error, (__file__,))
        return CallResult(b"", failure, is_permanent(error), kinds=kinds_of(error), records=records)


def _find(module_name: str, file: str, qualname: str, name: str) -> Step[..., Any]:
    found: Any = _module(module_name, file)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if isinstance(found, Step):
        return found  # pyright: ignore[reportUnknownVariableType]
    if not callable(found):
        raise UsageError(f"step {name}: module {module_name} has no {qualname} that another process can import")
    return Step(found, name)


def _module(name: str, file: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        spec = importlib.util.spec_from_file_location(name, file) if file else None
        if spec is None or spec.loader is None:
            raise
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
