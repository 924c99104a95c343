"""Commands and daemons in surroundings that are not those of a terminal: closed descriptors, encodings, full disks."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import streamflow as sf
from streamflow.embedded.server import EmbeddedServer
from tests.conftest import clean_keys
from tests.support.waiting import DEADLINE

pytestmark = pytest.mark.timeout(180)  # some start Python two dozen times

ODD = "wért 🎉 → ✓ \u202e\u200b"

FLOWS = """
import streamflow as sf

app = sf.App()

@app.step(process=True)
def same(x: str) -> str:
    print("said by a step")
    return x

@app.workflow
async def echo(x: str) -> str:
    return await same(x)
"""

ENCODINGS: dict[str, dict[str, str]] = {
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "posix": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}
CLOSED = ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"]


@pytest.fixture
def environ(embedded_server: EmbeddedServer, namespace: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    (tmp_path / "flows.py").write_text(FLOWS)
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    yield {**own, "STREAMFLOW_REDIS": embedded_server.url, "STREAMFLOW_NAMESPACE": namespace, "STREAMFLOW_SHARDS": "4"}
    asyncio.run(clean_keys(embedded_server.url, namespace))


def shell(command: str, directory: Path, environ: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    line = f"{sys.executable} -m streamflow {command}"
    return subprocess.run(["sh", "-c", line], cwd=directory, env=environ, capture_output=True, timeout=30)


async def result_of(url: str, namespace: str, value: str) -> str:
    async with sf.connect(url, namespace=namespace) as client:
        async with asyncio.timeout(DEADLINE):
            while True:
                try:
                    await client.read_namespace()
                    break
                except sf.NamespaceMissing:
                    await asyncio.sleep(0.05)
        run = await client.start("echo", value, id="e")
        return await run.result(DEADLINE)


@pytest.mark.parametrize("closed", CLOSED)
def test_a_daemon_works_with_closed_descriptors(
    embedded_server: EmbeddedServer, environ: dict[str, str], namespace: str, tmp_path: Path, closed: str
) -> None:
    line = f"exec {sys.executable} -m streamflow daemon --app flows:app {closed}"
    with (tmp_path / "log").open("wb") as log:
        daemon = subprocess.Popen(
            ["sh", "-c", line], cwd=tmp_path, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            assert asyncio.run(result_of(embedded_server.url, namespace, ODD)) == ODD
            daemon.terminate()
            assert daemon.wait(20) == 0, (tmp_path / "log").read_text()
        finally:
            daemon.kill()
            daemon.wait()


@pytest.mark.parametrize(
    ("command", "code", "reason"),
    [
        ("enqueue echo --input - --force <&-", 2, b"stdin is closed"),
        ("enqueue echo --file - --force <&-", 2, b"stdin is closed"),
        ("--help >&-", 0, b""),
        ("completion bash > /dev/full", 1, b"error: could not write the output: No space left on device"),
        ("completion bash | true", 0, b""),
    ],
)
def test_a_command_says_in_one_line_what_it_lacks(
    environ: dict[str, str], tmp_path: Path, command: str, code: int, reason: bytes
) -> None:
    done = shell(command, tmp_path, environ)
    assert (done.returncode, done.stdout) == (code, b"")
    assert reason in done.stderr
    assert len(done.stderr.splitlines()) == bool(reason)


@pytest.fixture
def shown(embedded_server: EmbeddedServer, environ: dict[str, str], namespace: str, tmp_path: Path) -> dict[str, str]:
    """The environment of a namespace that has a run with odd characters, which has ended."""
    with (tmp_path / "log").open("wb") as log:
        command = [sys.executable, "-m", "streamflow", "daemon", "--app", "flows:app"]
        daemon = subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=log, stderr=log)
    try:
        assert asyncio.run(result_of(embedded_server.url, namespace, ODD)) == ODD
    finally:
        daemon.kill()
        daemon.wait()
    return environ


def test_what_a_terminal_can_t_show_becomes_an_escape(shown: dict[str, str], tmp_path: Path) -> None:
    for encoding, variables in ENCODINGS.items():
        for command in ("--help", "runs", "status", "show e"):
            done = shell(command, tmp_path, {**shown, **variables})
            assert (done.returncode, done.stderr) == (0, b""), encoding
            if encoding in ("ascii", "posix"):
                assert done.stdout.isascii()
        assert b"\\ud83c\\udf89" in done.stdout
        described = shell("show e --json", tmp_path, {**shown, **variables})
        assert described.returncode == 0
        assert json.loads(described.stdout.decode(variables.get("PYTHONIOENCODING", "ascii")))["result"] == ODD


def test_json_and_exports_have_no_invisible_character(shown: dict[str, str], tmp_path: Path) -> None:
    for command in ("show e --json", "export e", "runs --json", "status --json"):
        text = shell(command, tmp_path, shown).stdout.decode()
        assert text.replace("\n", "").isprintable()
        json.loads(text)
    assert '"wért 🎉 → ✓ \\u202e\\u200b"' in shell("export e", tmp_path, shown).stdout.decode()


def test_an_input_may_begin_with_a_byte_order_mark(shown: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "one.json").write_bytes(b'\xef\xbb\xbf"x"\r\n')
    (tmp_path / "many.jsonl").write_bytes(b'\xef\xbb\xbf{"input": "x"}\r\n')
    (tmp_path / "wide.json").write_bytes('"x"'.encode("utf-16"))
    for options in ("--input @one.json", "--input - < one.json", "--file many.jsonl", "--file - < many.jsonl"):
        assert shell(f"enqueue echo {options}", tmp_path, shown).returncode == 0
    for options in ("--input @wide.json", "--input - < wide.json", "--file wide.json"):
        done = shell(f"enqueue echo {options}", tmp_path, shown)
        assert (done.returncode, b"it is UTF-16" in done.stderr) == (2, True)


def test_an_export_with_a_byte_order_mark_is_replayed(shown: dict[str, str], tmp_path: Path) -> None:
    exported = shell("export e", tmp_path, shown).stdout
    (tmp_path / "e.json").write_bytes(b"\xef\xbb\xbf" + exported)
    assert shell("replay --app flows:app e.json", tmp_path, shown).returncode == 0


SHADOWS = (
    "anyio click hiredis logging msgspec queue random redis resource rich secrets select signal socket uuid uvloop"
)


def test_no_module_of_the_directory_shadows_ours_in_a_child(
    embedded_server: EmbeddedServer, environ: dict[str, str], namespace: str, tmp_path: Path
) -> None:
    """As `dev` and `demo` start daemons: with a file for each module that one could import."""
    (tmp_path / "flows.py").write_text(FLOWS)
    for name in SHADOWS.split():
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} of the directory was imported')")
    code = (
        "import os, sys, pathlib; from streamflow.embedded.daemon_process import DaemonProcess; "
        "os.chdir(sys.argv[3]); "
        "print(DaemonProcess('flows:app', sys.argv[1], sys.argv[2], pathlib.Path('log')).pid, flush=True); "
        "sys.stdin.read(); os._exit(0)"
    )
    command = [sys.executable, "-c", code, embedded_server.url, namespace, str(tmp_path)]
    with subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        try:
            assert asyncio.run(result_of(embedded_server.url, namespace, ODD)) == ODD, (tmp_path / "log").read_text()
            assert embedded_server.url.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
            assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600
        finally:
            parent.communicate(timeout=10)  # its end is that of the daemon


SECRET = "hunt%40er2"


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="where else a command line could be read")
def test_a_password_on_the_command_line_is_not_in_the_list_of_processes(
    environ: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "flows.py").write_text(
        "import os, pathlib, sys\n"
        "print(pathlib.Path('/proc/self/cmdline').read_bytes(), os.getpid(), flush=True)\n"
        "sys.exit(3)\n"
    )
    for option in (["--redis", f"redis://:{SECRET}@127.0.0.1:1"], [f"--redis=unix:///x?password={SECRET}"]):
        command = [sys.executable, "-m", "streamflow", "daemon", *option, "--app", "flows:app"]
        with subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as it:
            out, err = it.communicate(timeout=30)
        assert it.returncode == 2
        assert out.startswith(b"b'")
        assert b"streamflow\\x00daemon\\x00--app" in out
        assert out.endswith(f" {it.pid}\n".encode()), "it is still the same process"
        assert b"hunt" not in out + err


@pytest.mark.parametrize(
    "command",
    [
        f"runs redis://:{SECRET}@host",
        f"runs --redis redis://:{SECRET}@127.0.0.1:1",
        f"runs --redis=redis://:{SECRET}@127.0.0.1:1 --json",
        f"runs --redis 'redis://:{SECRET}@host/0?timeout=1'",
        f"runs --rediss redis://:{SECRET}@host",
        f"daemon --app redis://:{SECRET}@host",
        f"status --namespace redis://:{SECRET}@host",
    ],
)
def test_no_error_shows_a_part_of_a_password(environ: dict[str, str], tmp_path: Path, command: str) -> None:
    done = shell(command, tmp_path, environ)
    assert done.returncode in (1, 2)
    assert done.stderr.startswith(b"error: ")
    for part in (b"hunt", b"er2"):
        assert part not in done.stdout + done.stderr
