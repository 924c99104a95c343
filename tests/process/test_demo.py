"""The demo as people run it: on a small tree, with a daemon that is killed, and ended early."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from rich.console import Console

from streamflow.demo import run as demo
from streamflow.demo.flows import Survey, Totals, count_directly
from streamflow.errors import UsageError

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

ROOT = Path(__file__).parents[2]
PACKAGES, FILES = 6, 10


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """About sixty files in six packages, one in the root, and one that is not valid Python."""
    root = tmp_path / "tree"
    for package in range(PACKAGES):
        for number in range(FILES):
            file = root / f"package{package}" / ("inner" if number % 2 else "") / f"module{number}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            functions = (f"def function{i}(x):\n    return x + {i}\n" for i in range(20 * (package + 1)))
            file.write_text("import os, sys\n\n\nclass Some:\n    pass\n\n\n" + "\n\n".join(functions))
    (root / "top.py").write_text("import ast\n")
    (root / "bad.py").write_text("def (:\n")
    return root


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "streamflow", "demo", *map(str, arguments)]


def environ(folder: Path) -> dict[str, str]:
    """Everything that the demo starts has this folder in its environment, and a port that only one process can have."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder), "STREAMFLOW_HTTP": f"127.0.0.1:{free_port()}"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def left_behind(folder: Path) -> list[str]:
    """Processes that descend from a demo with this environment, and its files."""
    found = [str(path) for path in folder.glob("streamflow-demo-*")]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.fsencode(f"TMPDIR={folder}\0") in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue  # it has ended, or belongs to another user
    return found


async def left_after_a_while(folder: Path) -> list[str]:
    """What doesn't end by itself: the processes that report the deaths of daemons try it for two seconds, although the
    servers may have ended, too."""
    for _ in range(100):
        if not left_behind(folder):
            break
        await asyncio.sleep(0.1)
    return left_behind(folder)


async def test_the_totals_equal_a_direct_count_although_a_daemon_was_killed(tree: Path, tmp_path: Path) -> None:
    done = await asyncio.to_thread(
        subprocess.run, command(tree, "--json"), capture_output=True, env=environ(tmp_path), timeout=100
    )
    assert done.returncode == 0, done.stderr.decode()
    facts = json.loads(done.stdout)
    assert facts["equal"] is True
    assert facts["result"] == msgspec.to_builtins(count_directly(str(tree)))
    assert facts["result"]["totals"]["skipped"] == 1
    assert facts["files"] == facts["result"]["reported"] == PACKAGES * FILES + 2
    assert facts["runs_completed"] == 1 + PACKAGES + 1
    assert facts["steps_recorded"] == 1 + (PACKAGES + 1) + facts["files"]
    assert facts["steps_executed"] >= facts["steps_recorded"]
    assert facts["daemons"] == 3
    assert 0 < facts["killed_shards"] < facts["shards"]
    assert 0 < facts["shards_recovered_s"] <= facts["recovery_s"]
    assert left_behind(tmp_path) == []


async def test_the_totals_are_equal_although_a_master_was_killed_too(tree: Path, tmp_path: Path) -> None:
    done = await asyncio.to_thread(
        subprocess.run, command(tree, "--cluster", "--json"), capture_output=True, env=environ(tmp_path), timeout=100
    )
    assert done.returncode == 0, done.stderr.decode()
    facts = json.loads(done.stdout)
    assert facts["equal"] is True
    assert facts["result"] == msgspec.to_builtins(count_directly(str(tree)))
    assert facts["runs_completed"] == 1 + PACKAGES + 1
    assert facts["steps_recorded"] == 1 + (PACKAGES + 1) + facts["files"]
    assert 0 < facts["killed_shards"] < facts["shards"]
    killed = facts["killed_master"]
    assert facts["masters"] == 3
    assert 0 < killed["shards"] < facts["shards"]
    assert killed["promoted"] not in ("", killed["address"])
    assert 0 < killed["promoted_s"] <= killed["recovery_s"]
    assert await left_after_a_while(tmp_path) == []


async def test_a_difference_is_shown_and_the_exit_code_is_1(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def miscount(root: str) -> Survey:
        survey = count_directly(root)
        return msgspec.structs.replace(survey, totals=survey.totals + Totals(lines=1))

    monkeypatch.setattr(demo, "count_in_process", miscount)
    monkeypatch.setattr(demo, "sysconfig", SimpleNamespace(get_path={"stdlib": tree}.__getitem__))
    console = Console(file=io.StringIO(), width=120)
    assert await demo.run_demo(None, as_json=False, console=console, daemons=2) == 1
    assert isinstance(console.file, io.StringIO)
    assert "DIFFERENT from the direct count" in console.file.getvalue()
    assert str(tree) in console.file.getvalue(), "without a path it is the standard library"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
async def test_nothing_is_left_behind_when_it_is_ended_early(
    tree: Path, tmp_path: Path, number: signal.Signals
) -> None:
    process = await asyncio.create_subprocess_exec(
        *command(tree), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ(tmp_path), start_new_session=True
    )
    assert process.stdout is not None
    try:
        while b"daemons share" not in (line := await process.stdout.readline()):
            assert line, "the demo ended by itself"
        assert len(left_behind(tmp_path)) > 4  # itself, a server, daemons, and its folder: the check below can fail
        process.send_signal(number)
        async with asyncio.timeout(30):
            await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == (1 if number is signal.SIGINT else -signal.SIGKILL)
    left: list[str] = []
    for _ in range(100):
        # Files stay after SIGKILL, which nobody can clean up after; processes don't.
        left = [item for item in left_behind(tmp_path) if number is signal.SIGINT or not item.startswith(str(tmp_path))]
        if not left:
            return
        await asyncio.sleep(0.1)
    pytest.fail(f"left behind: {left}")


async def test_a_tree_without_sources_is_a_usage_error(tmp_path: Path) -> None:
    console = Console(file=io.StringIO())
    with pytest.raises(UsageError, match="no Python files"):
        await demo.run_demo(tmp_path, as_json=True, console=console)
    with pytest.raises(UsageError, match="not a directory"):
        await demo.run_demo(tmp_path / "gone", as_json=True, console=console)
