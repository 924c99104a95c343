"""A real browser: Chromium without a screen, driven by its `chromedriver` over WebDriver's HTTP interface."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SECONDS = 30
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""The key under which an answer has the id of an element, by the standard."""
ARGUMENTS = [
    "--headless=new",
    "--no-sandbox",  # tests may run as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class Browser:
    """One tab."""

    def __init__(self, driver: str, profile: Path) -> None:
        options = {"args": [*ARGUMENTS, f"--user-data-dir={profile}"], "binary": shutil.which("chromium")}
        wanted = {"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}}
        self._driver = driver
        self._session = f"/session/{self._ask('/session', wanted)['sessionId']}"

    def _ask(self, path: str, body: Any) -> Any:
        request = urllib.request.Request(f"{self._driver}{path}", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return json.load(answer)["value"]

    def open(self, url: str) -> None:
        self._ask(f"{self._session}/url", {"url": url})

    def text(self, selector: str) -> str:
        script = f"return document.querySelector({json.dumps(selector)}).textContent"
        return self._ask(f"{self._session}/execute/sync", {"script": script, "args": []})

    def click(self, selector: str) -> None:
        found = self._ask(f"{self._session}/element", {"using": "css selector", "value": selector})
        self._ask(f"{self._session}/element/{found[ELEMENT]}/click", {})

    def close(self) -> None:
        request = urllib.request.Request(f"{self._driver}{self._session}", method="DELETE")
        urllib.request.urlopen(request, timeout=SECONDS).close()


@contextmanager
def browser(directory: Path) -> Generator[Browser]:
    """Without Chromium the test is skipped, but not in CI, which installs it."""
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        assert not os.environ.get("CI"), "CI installs Chromium: see .ci/run"
        pytest.skip("chromium and chromedriver are not installed")
    with subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = next(
                found[1] for line in process.stdout if (found := re.search(r"successfully on port (\d+)", line))
            )
            tab = Browser(f"http://127.0.0.1:{port}", directory / "profile")
            try:
                yield tab
            finally:
                tab.close()
        finally:
            process.kill()
