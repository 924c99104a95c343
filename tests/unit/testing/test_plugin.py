"""The pytest plugin, in projects as users have them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

import streamflow.testing as sft
from streamflow.cli.app_loader import load_app

pytest_plugins = ["pytester"]

# Now, because pytester drops from `sys.modules` what is imported in its tests, while `sft` keeps the names from there:
# another test would then patch a module that `sft.Sandbox` isn't from.
for _name in sft.__all__:
    getattr(sft, _name)

FLOWS = """
import streamflow as sf

app = sf.App()


@app.step
async def double(value: int) -> int:
    return 2 * value


@app.workflow
async def twice(value: int) -> int:
    return await double(await double(value))
"""
TESTS = """
import pytest
import streamflow.testing as sft
from flows import double, twice, app


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.anyio
async def test_with_a_sandbox(sandbox):
    sandbox.stub(double, returns=5)
    run = await sandbox.start(twice, 1)
    assert await run.result() == 5


@pytest.mark.anyio
async def test_with_another_one(sandbox):
    assert await (await sandbox.start(twice, 1)).result() == 4


def test_in_one_line(streamflow_app):
    assert streamflow_app is app
    assert sft.run(twice, 1, app=app) == 4
"""
REPLAYS = """
def test_histories(replay_histories):
    assert replay_histories("histories") == 1
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A directory with flows and tests."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    pytester.makepyfile(flows=FLOWS)
    return pytester


def run(project: pytest.Pytester, *words: str) -> pytest.RunResult:
    return project.runpytest_subprocess("-p", "streamflow.testing.plugin", "-p", "no:randomly", *words)


@pytest.mark.parametrize("words", ["flows:app", "flows.py", "flows.py:app"])
def test_the_app_can_be_named_in_the_configuration(project: pytest.Pytester, words: str) -> None:
    project.makeini(f"[pytest]\npythonpath = .\nstreamflow_app = {words}")
    project.makepyfile(test_flows=TESTS)
    run(project).assert_outcomes(passed=3)


def test_the_app_can_be_a_fixture_of_the_project(project: pytest.Pytester) -> None:
    project.makeini("[pytest]\npythonpath = .")
    project.makeconftest(
        "import pytest\n@pytest.fixture\ndef streamflow_app():\n    from flows import app\n    return app"
    )
    project.makepyfile(test_flows=TESTS)
    run(project).assert_outcomes(passed=3)


def test_without_an_app_the_error_says_how_to_name_one(project: pytest.Pytester) -> None:
    project.makepyfile(test_flows="def test_it(sandbox): ...")
    result = run(project)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(['*no app is set: write streamflow_app = "flows:app"*'])


def test_histories_are_replayed_and_those_that_diverge_are_named(project: pytest.Pytester) -> None:
    project.makeini("[pytest]\npythonpath = .\nstreamflow_app = flows:app")
    project.makepyfile(test_flows=REPLAYS)
    assert "there is no history" in run(project).stdout.str()
    app = load_app(str(project.path / "flows.py"))

    async def record() -> sft.History:
        async with sft.Sandbox(app) as sandbox:
            started = await sandbox.start("twice", 1)
            await started.result()
            return await started.export()

    project.mkdir("histories")
    sft.save_history(asyncio.run(record()), project.path / "histories/twice.json")
    run(project).assert_outcomes(passed=1)
    project.makepyfile(flows=FLOWS.replace("return await double(await double(value))", "return await double(value)"))
    result = run(project)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*histories/twice.json: run twice-1 diverged at event 4: *"])


def test_loading_the_plugin_loads_neither_client_nor_sandbox() -> None:
    code = (
        "import sys, pytest, streamflow.testing.plugin; heavy = ('redis', 'rich', 'click', 'streamflow.client.client', "
        "'streamflow.testing.sandbox', 'streamflow.client'); print(sorted(set(heavy) & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_testing_kit_needs_no_pytest() -> None:
    code = "import sys; sys.modules['pytest'] = None; from streamflow.testing import *; print(Sandbox.__name__)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "Sandbox\n"
    )


def test_the_plugin_is_registered_under_its_module_s_name() -> None:
    """So that `-p streamflow.testing.plugin` beside the installed one is one plugin."""
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    assert '[project.entry-points.pytest11]\n"streamflow.testing.plugin" = "streamflow.testing.plugin"\n' in text
