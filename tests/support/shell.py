"""Commands of the command line, called in this process."""

import json
from typing import Any

import anyio.to_thread
from click.testing import CliRunner

from streamflow.cli import cli


class Shell:
    """Commands as their users type them.

    What a command prints is its standard output: a daemon in this process writes its log lines to the error output of
    whichever command has set up logging last.
    """

    def __init__(self, url: str, namespace: str, *before: str) -> None:
        self.environ = {"STREAMFLOW_REDIS": url, "STREAMFLOW_NAMESPACE": namespace, "STREAMFLOW_APP": None}
        self.before = before

    async def __call__(self, *words: str, code: int = 0, given: str = "") -> str:
        """What the command prints; of one that fails or prints nothing what it says besides."""
        printed, said = await self._call(words, code, given)
        return printed + said if code or not printed else printed

    async def data(self, *words: str, code: int = 0) -> Any:
        printed, _ = await self._call((*words, "--json"), code, "")
        return json.loads(printed)

    async def _call(self, words: tuple[str, ...], code: int, given: str) -> tuple[str, str]:
        words = (*self.before, *words)
        result = await anyio.to_thread.run_sync(lambda: CliRunner().invoke(cli, words, given, env=self.environ))
        assert result.exit_code == code, (words, result.output)
        return result.stdout, result.stderr
