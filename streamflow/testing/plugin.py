"""The pytest plugin: fixtures for tests of workflows. Loaded in every project that has streamflow and pytest.

Owns: the fixtures and the option in pytest's configuration. Must not: import, when it is loaded, what only its fixtures
need. Called by: pytest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from streamflow.testing.sandbox import Sandbox
    from streamflow.workflow.app import App


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "streamflow_app", "the App under test, in the form of --app: flows:app, or path/flows.py:app", default=""
    )


@pytest.fixture(scope="session")
def streamflow_app(request: pytest.FixtureRequest) -> App:
    """The App under test: `streamflow_app = flows:app` in pytest's configuration. Or override this fixture."""
    address = str(request.config.getini("streamflow_app"))
    if not address:
        raise pytest.UsageError(
            'no app is set: write streamflow_app = "flows:app" into [tool.pytest.ini_options] of pyproject.toml '
            "(without quotes in pytest.ini), or write a fixture streamflow_app that returns it"
        )
    from streamflow.cli.app_loader import load_app

    target, colon, attribute = address.partition(":")
    if target.endswith(".py"):
        target = str(request.config.rootpath / target)  # relative to it, as all paths in that configuration
    return load_app(f"{target}{colon}{attribute}")


@pytest.fixture
def sandbox(streamflow_app: App) -> Iterator[Sandbox]:
    """A `streamflow.testing.Sandbox` of the app, new for each test and closed after it."""
    from streamflow.testing.sandbox import Sandbox

    sandbox = Sandbox(streamflow_app)
    yield sandbox
    sandbox.close()


@pytest.fixture
def replay_histories(streamflow_app: App, request: pytest.FixtureRequest) -> Callable[[str | Path], int]:
    """A function that replays all exported histories in a directory, relative to that of the test file.

    It returns their number. The test fails with all histories that the code diverges from. Raises `UsageError` if the
    directory has none.

    >>> def test_open_runs_can_go_on(replay_histories):
    ...     replay_histories("histories")
    """
    from streamflow.client.histories import find_histories, load_history, replay
    from streamflow.errors import StreamflowError

    def replay_all(directory: str | Path) -> int:
        files = find_histories(request.path.parent / directory)
        failures: list[str] = []
        for file in files:
            try:
                replay(streamflow_app, load_history(file))
            except StreamflowError as error:
                failures.append(f"{file}: {error}")
        if failures:
            pytest.fail("\n".join(failures), pytrace=False)
        return len(files)

    return replay_all
