"""An app whose packages are in a directory of their own, and a daemon that finds them by `--path`."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import streamflow as sf
from streamflow.model.names import check_run_id
from tests.process.faults import until

APP = """
import os, subprocess, sys
import their_code
import lupa.lua51
import streamflow as sf

app = sf.App()

@app.step
async def async_step(word: str) -> str:
    return their_code.shout(word)

@app.step
def thread_step(word: str) -> str:
    return their_code.shout(word)

@app.step(process=True)
def process_step(word: str) -> list[int | str]:
    import edited
    answer = lupa.lua51.LuaRuntime().eval("6 * 7")
    return [their_code.shout(word), edited.NAME, answer, os.getpid()]

@app.step
def environment() -> dict[str, str]:
    text = subprocess.run(["/usr/bin/env", "-0"], capture_output=True, text=True, check=True).stdout
    return dict(line.split("=", 1) for line in text.split("\\0") if line)

@app.workflow
async def all_kinds() -> list[str]:
    computed = await process_step("c")
    return [await async_step("a"), await thread_step("b"), *map(str, computed)]

@app.workflow
async def what_children_inherit() -> dict[str, str]:
    return await environment()
"""


def write_app(directory: Path) -> Path:
    """`flows.py`; beside it `packages/`: a module of theirs, a package with C code, an editable install (`.pth`), and
    modules with the names of the standard library's and of ours, which nobody may get."""
    packages = directory / "packages"
    packages.mkdir()
    (packages / "their_code.py").write_text("def shout(word: str) -> str:\n    return word.upper() + '!'\n")
    spec = importlib.util.find_spec("lupa")
    assert spec is not None
    assert spec.origin is not None
    shutil.copytree(Path(spec.origin).parent, packages / "lupa")
    (directory / "elsewhere").mkdir()
    (directory / "elsewhere/edited.py").write_text("NAME = 'edited'\n")
    (packages / "their_project.pth").write_text(f"{directory / 'elsewhere'}\n")
    for name in ("json", "redis", "click", "streamflow"):
        (packages / f"{name}.py").write_text("raise ImportError('shadowed')\n")
    file = directory / "flows.py"
    file.write_text(APP)
    return file


class Command:
    """A `streamflow` command in the background, with exactly this environment."""

    def __init__(self, words: Sequence[str], environ: dict[str, str], directory: Path) -> None:
        self.log = directory / "command.log"
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                words, env=environ, cwd=directory, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip

    async def result(self, client: sf.Client, workflow: str) -> object:
        """Of a run that is started as soon as there is a namespace."""
        runs: list[sf.Run[object]] = []

        async def started() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            try:
                runs.append(await client.start(workflow, id=check_run_id(f"{workflow}-{os.getpid()}")))
            except (sf.NamespaceMissing, sf.UsageError):  # there is none, or no daemon has registered the workflow yet
                return False
            return True

        await until(started, "the daemon serves")
        return await runs[0].result(timeout=30)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
