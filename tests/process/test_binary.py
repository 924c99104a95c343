"""The single binary, as on a machine without Python: an empty environment, and nothing but the file.

Built once per session, which takes a minute; `BINARY_UNDER_TEST` names one that is there already. To build it needs the
extra `binary` and Debian: otherwise these tests are skipped.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import streamflow as sf
from binary import build
from streamflow.embedded.server import EmbeddedServer
from streamflow.version import __version__
from tests.process.faults import until
from tests.process.packages import Command, write_app

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
MUST_FIND = {"CPython", "OpenSSL", "SQLite", "streamflowd", "Valkey", "libuv (in uvloop)", "uvloop", "zlib"}

OF_OTHER_SYSTEMS = {
    *("_msi", "_overlapped", "_scproxy", "_winapi", "_winreg", "msilib", "msvcrt", "nt", "winreg", "winsound"),
    *("_wmi",),
}
NEEDS_A_LIBRARY_OF_THE_MACHINE = {"readline", "_gdbm", "gnu", "_dbm", "ndbm"}
"""Under licenses that the file can't have; see `FROM_THE_MACHINE` in binary/build.py."""
HAS_EFFECTS = {"antigravity", "this", "__main__"}


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = os.environ.get("BINARY_UNDER_TEST")
    if given:
        return Path(given).resolve()
    try:
        build.check_tools()
    except build.BuildError as error:
        pytest.skip(f"the binary can't be built here: {error}")
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # of all processes of the session
    with (shared / "binary.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        built = list((shared / "dist").glob("streamflow-*"))
        return built[0] if built else build.build(tmp_path_factory.mktemp("build"), shared / "dist")


@pytest.fixture(scope="session")
def unpacked(file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment that is empty but for where the binary is unpacked, once for all tests."""
    environ = {"STREAMFLOW_UNPACK_DIR": str(tmp_path_factory.mktemp("unpacked"))}
    done = run(file, environ, "--version")
    assert done.stdout == f"streamflow {__version__}\n", done.stderr
    return environ


def run(
    file: Path, environ: dict[str, str], *words: str, directory: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [file, *words], env=environ, cwd=directory or file.parent, capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip


def run_inside(file: Path, environ: dict[str, str], directory: Path, code: str) -> Any:
    """What the code, as the module of an app, leaves in `answer`."""
    app = directory / "probe.py"
    app.write_text(
        f"{code}\nimport json, pathlib, streamflow\napp = streamflow.App()\n"
        f"pathlib.Path({str(directory / 'answer')!r}).write_text(json.dumps(answer))\n"
    )
    done = run(file, environ, "replay", "--app", f"{app}:app", "none.json", directory=directory)
    assert (directory / "answer").exists(), done.stderr
    return json.loads((directory / "answer").read_text())


def test_a_start_takes_little_once_it_is_unpacked(file: Path, unpacked: dict[str, str]) -> None:
    """Processor time, which doesn't depend on what else the machine does: 0.16 s."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run(file, unpacked, "--version").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.8


def test_the_demo_runs_in_an_empty_environment(file: Path, unpacked: dict[str, str]) -> None:
    """Server, three daemons, the kill of one, and the count to compare with: each a child of this file."""
    done = run(file, unpacked, "demo", str(ROOT / "streamflow"), "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["equal"] is True
    assert facts["daemons"] == 3
    assert facts["server"].startswith("valkey ")


async def test_a_daemon_runs_a_users_app_with_packages_of_its_own(
    file: Path, unpacked: dict[str, str], embedded_server: EmbeddedServer, namespace: str, client: sf.Client,
    tmp_path: Path,
) -> None:  # fmt: skip
    app = write_app(tmp_path)
    environ = {
        **unpacked,
        "STREAMFLOW_REDIS": embedded_server.url,
        "LD_LIBRARY_PATH": "/theirs",
        "PYTHONPATH": "/theirs",
        "LC_CTYPE": "C.UTF-8",  # otherwise Python sets it
    }
    words = [str(file), "daemon", "--app", f"{app}:app", "--path", str(tmp_path / "packages"), "--namespace", namespace]
    daemon = Command([*words, "--shards", "4", "--processes", "1"], environ, tmp_path)
    try:
        answer = await daemon.result(client, "all_kinds")
        assert isinstance(answer, list)
        assert answer[:-1] == ["A!", "B!", "C!", "edited", "42"]

        inherited = await daemon.result(client, "what_children_inherit")
        assert isinstance(inherited, dict)
        of_the_shell = {"PWD", "OLDPWD", "SHLVL", "_"}
        assert {name: value for name, value in inherited.items() if name not in of_the_shell} == environ

        # The process that was started has become the daemon: signals, exit codes and SIGKILL need nothing of ours.
        assert Path(f"/proc/{daemon.process.pid}/comm").read_text() == "streamflow\n"
        assert Path(f"/proc/{daemon.process.pid}/exe").readlink().name == "python3"
        daemon.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(daemon.process.wait, 20) == 0
    finally:
        daemon.end()


async def test_sigkill_leaves_no_process_behind(
    file: Path, unpacked: dict[str, str], embedded_server: EmbeddedServer, namespace: str, client: sf.Client,
    tmp_path: Path,
) -> None:  # fmt: skip
    app = write_app(tmp_path)
    environ = {**unpacked, "STREAMFLOW_REDIS": embedded_server.url, "MARK": namespace}
    words = [str(file), "daemon", "--app", f"{app}:app", "--path", str(tmp_path / "packages"), "--namespace", namespace]
    daemon = Command([*words, "--shards", "4", "--processes", "1"], environ, tmp_path)
    try:
        await daemon.result(client, "all_kinds")
        assert len(processes_with(f"MARK={namespace}")) >= 3  # the daemon, its step's process, its heartbeats' process
        daemon.process.kill()
        daemon.process.wait()

        async def gone() -> bool:
            return not processes_with(f"MARK={namespace}")

        await until(gone, "the children of the killed daemon have ended", 10)
    finally:
        daemon.end()


def processes_with(variable: str) -> list[int]:
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if variable.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def test_the_whole_standard_library_can_be_imported(file: Path, unpacked: dict[str, str], tmp_path: Path) -> None:
    wanted = modules_of_the_standard_library()
    left_out = OF_OTHER_SYSTEMS | NEEDS_A_LIBRARY_OF_THE_MACHINE | HAS_EFFECTS | set(build.DISPLAY)
    wanted = {name for name in wanted if not left_out & set(name.split("."))}
    assert len(wanted) > 500
    code = (
        f"import importlib, warnings\nwarnings.simplefilter('ignore')\nanswer = {{}}\nfor name in {sorted(wanted)!r}:\n"
        "    try:\n        importlib.import_module(name)\n"
        "    except BaseException as error:\n        answer[name] = repr(error)\n"
    )
    assert run_inside(file, unpacked, tmp_path, code) == {}


def modules_of_the_standard_library() -> set[str]:
    """With all modules of its packages that this Python has, which is the one that the binary was made of."""
    names = set(sys.stdlib_module_names)
    library = build.standard_library()
    for path in library.rglob("*.py"):
        inside = path.relative_to(library)
        parts = (*inside.parent.parts, *(() if path.stem == "__init__" else (path.stem,)))
        if any(build.LEFT_OUT.search("/".join(parts[:end])) for end in range(1, len(parts) + 1)):
            continue
        if all(part.isidentifier() for part in parts) and not parts[0].startswith("_sysconfigdata"):
            names.add(".".join(parts))
    windows = re.compile(
        r"asyncio\.(windows|proactor)|multiprocessing\.popen_spawn_win32|encodings\.(mbcs|oem)|\._?msvc|ctypes\.macholib|lib2to3\.pgen2\.conv"
    )
    return {name for name in names if not windows.search(name)}


def test_https_finds_certificates_also_where_the_machine_has_none(
    file: Path, unpacked: dict[str, str], tmp_path: Path
) -> None:
    code = (
        "import os, ssl\n"
        "nothing = ssl.DefaultVerifyPaths(None, None, '', '', '', '')\n"
        "ssl.get_default_verify_paths = lambda: nothing\n"
        "exists = os.path.exists\n"
        "os.path.exists = lambda path: exists(path) and not str(path).startswith('/etc/')\n"
        "context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)\n"
        "before = len(context.get_ca_certs())\n"
        "context.load_default_certs()\n"
        "answer = len(context.get_ca_certs())\n"
        "os.path.exists = exists\n"
    )
    assert run_inside(file, unpacked, tmp_path, code) > 50


def test_extensions_for_another_python_are_named_with_both_versions(
    file: Path, unpacked: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "packages/fast").mkdir(parents=True)
    (tmp_path / "packages/fast/__init__.py").write_text("from . import _sums\n")
    (tmp_path / "packages/fast/_sums.cpython-39-x86_64-linux-gnu.so").touch()
    (tmp_path / "flows.py").write_text("import fast\n")
    done = run(
        file, unpacked, "worker", "--app", "flows.py:app", "--queue", "q", "--path", "packages", directory=tmp_path
    )
    assert done.returncode == 2
    assert (
        "_sums.cpython-39-x86_64-linux-gnu.so is built for cpython-39-x86_64-linux-gnu, and this is Python 3."
        in done.stderr
    )


def test_the_files_of_a_deployment_are_inside(file: Path, unpacked: dict[str, str], tmp_path: Path) -> None:
    done = run(file, unpacked, "files", "--output", str(tmp_path))
    deploy = ROOT / "deploy"
    shipped = {path.relative_to(deploy) for path in deploy.rglob("*") if path.is_file()}
    assert {Path(line).relative_to(tmp_path) for line in done.stdout.splitlines()} == shipped
    assert all((tmp_path / name).read_bytes() == (deploy / name).read_bytes() for name in shipped)


def test_the_licenses_of_everything_inside_are_listed(file: Path, unpacked: dict[str, str]) -> None:
    rows = {row["name"]: row for row in json.loads(run(file, unpacked, "licenses", "--full", "--json").stdout)}
    assert set(rows) >= MUST_FIND
    assert [name for name, row in rows.items() if not any(len(text) > 300 for text in row["texts"])] == []
    assert not {name for name, row in rows.items() if re.search(r"(^|[^L])A?GPL", row["license"])}


def test_nothing_is_written_into_the_unpacked_directory(file: Path, unpacked: dict[str, str]) -> None:
    """Where all users share one, they may not write there; and in temporary directories its files are counted."""

    def contents() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in Path(unpacked["STREAMFLOW_UNPACK_DIR"]).rglob("*")}

    before = contents()
    assert run(file, unpacked, "bench", "--help").returncode == 0
    assert run(file, unpacked, "check").returncode == 1  # there is no server
    assert contents() == before


# --- unpacking --------------------------------------------------------------------------------------------------------


def test_two_first_starts_at_the_same_time_both_work(file: Path, tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path)}
    both = [subprocess.Popen([file, "--version"], env=environ, stdout=subprocess.PIPE) for _ in range(2)]
    assert [process.communicate()[0] for process in both] == [f"streamflow {__version__}\n".encode()] * 2
    assert len(list((tmp_path / ".cache/streamflow").iterdir())) == 1  # nothing half unpacked is left


def test_what_a_cleaner_of_temporary_directories_deletes_is_unpacked_again(file: Path, tmp_path: Path) -> None:
    environ = {"TMPDIR": str(tmp_path), "STREAMFLOW_UNPACK_DIR": ""}
    shadow = Path(f"/var/tmp/streamflow-binary-{os.getuid()}")
    if shadow.exists() or not os.access("/var/tmp", os.W_OK):
        pytest.skip("/var/tmp is in use: this test would change it")
    try:
        assert run(file, environ, "--version").returncode == 0
        place = next(path for path in (shadow, *tmp_path.glob("streamflow-binary-*")) if path.exists())
        (tree,) = place.iterdir()
        next(tree.rglob("decimal.py")).unlink()
        assert run(file, environ, "--version").returncode == 0
        assert list(tree.rglob("decimal.py"))
        assert list(place.iterdir()) == [tree]
    finally:
        shutil.rmtree(shadow, ignore_errors=True)


def test_a_directory_that_can_not_be_used_is_named_with_the_reason(file: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file")
    done = run(file, {"STREAMFLOW_UNPACK_DIR": str(blocked)}, "--version")
    assert done.returncode == 1
    assert done.stderr.startswith("error: streamflow has to be unpacked once")
    assert str(blocked) in done.stderr
    assert "STREAMFLOW_UNPACK_DIR" in done.stderr


def test_a_tool_that_the_machine_lacks_is_named(file: Path, tmp_path: Path) -> None:
    """Some images have neither gzip nor tar."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("find", "id", "mkdir", "mktemp", "tail", "tar", "uname"):
        found = shutil.which(name)
        assert found is not None
        (tools / name).symlink_to(found)
    done = run(file, {"PATH": str(tools), "STREAMFLOW_UNPACK_DIR": str(tmp_path / "unpacked")}, "--version")
    assert done.returncode == 1
    assert done.stderr.startswith("error: streamflow needs gzip to unpack itself, once: install it")


def test_an_incomplete_file_says_so_and_leaves_nothing(file: Path, tmp_path: Path) -> None:
    half = tmp_path / "streamflow"
    half.write_bytes(file.read_bytes()[:4_000_000])
    half.chmod(0o755)
    done = run(half, {"STREAMFLOW_UNPACK_DIR": str(tmp_path / "unpacked")}, "--version")
    assert done.returncode == 1
    assert "unexpected end of file" in done.stderr
    assert list((tmp_path / "unpacked").iterdir()) == []
