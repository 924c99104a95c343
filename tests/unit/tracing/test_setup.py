"""Whether a process makes spans: by the application's provider, by the environment, or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from streamflow.tracing import setup

ROOT = Path(__file__).parents[3]


def python(code: str, **environ: str) -> str:
    """What a new Python prints: which modules are imported, and who has set a provider, is a matter of a process."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**clean, **environ},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip() + done.stderr.strip()


def test_nothing_is_imported_where_nobody_uses_opentelemetry() -> None:
    """The redis client imports a part of it by itself where it is installed."""
    code = (
        "import sys, streamflow, streamflow.client.client, streamflow.daemon.daemon, streamflow.worker.worker\n"
        "from streamflow.tracing.setup import find_tracing, set_up_from_environment, silence\n"
        "assert (find_tracing(), set_up_from_environment(), silence()) == (None, '', None)\n"
        "print([name for name in sys.modules if name.startswith('streamflow.tracing.')])"
    )
    assert python(code) == "['streamflow.tracing.setup']"


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, ""),
        ({"OTEL_TRACES_EXPORTER": "none"}, ""),
        ({"OTEL_TRACES_EXPORTER": "console", "OTEL_SDK_DISABLED": "true"}, ""),
        ({"OTEL_TRACES_EXPORTER": "console"}, "by console"),
    ],
)
def test_the_environment_says_whether_spans_are_exported(environ: dict[str, str], found: str) -> None:
    code = (
        "from streamflow.tracing.setup import find_tracing, set_up_from_environment\n"
        "print(set_up_from_environment(), find_tracing() is not None)"
    )
    assert python(code, **environ) == f"{found} {bool(found)}".strip()


def test_spans_are_exported_before_the_process_ends() -> None:
    code = (
        "from streamflow.tracing.setup import find_tracing, set_up_from_environment, shut_down\n"
        "set_up_from_environment()\n"
        "with find_tracing().calling('start shop', workflow='shop'): pass\n"
        "shut_down(5.0)"
    )
    span = json.loads(python(code, OTEL_TRACES_EXPORTER="console", OTEL_SERVICE_NAME="shop-daemon"))
    assert (span["name"], span["attributes"]) == ("start shop", {"streamflow.workflow": "shop"})
    assert span["resource"]["attributes"]["service.name"] == "shop-daemon"


def test_the_provider_of_the_application_is_used_as_it_is() -> None:
    code = (
        "from opentelemetry import trace; from opentelemetry.sdk.trace import TracerProvider\n"
        "provider = TracerProvider(); trace.set_tracer_provider(provider)\n"
        "from streamflow.tracing.setup import find_tracing, set_up_from_environment\n"
        "print(set_up_from_environment(), find_tracing() is not None, trace.get_tracer_provider() is provider)"
    )
    assert python(code, OTEL_TRACES_EXPORTER="console") == "by the application's TracerProvider True True"


def test_an_exporter_that_is_not_installed_is_named_and_harms_nothing() -> None:
    code = (
        "import logging; logging.basicConfig()\n"
        "from streamflow.tracing.setup import find_tracing, set_up_from_environment\n"
        "print(set_up_from_environment() or None, find_tracing())"
    )
    said = python(code, OTEL_TRACES_EXPORTER="carrier-pigeon")
    assert said.startswith("None None")
    assert "the exporter carrier-pigeon is not installed" in said


def test_without_opentelemetry_the_extra_is_named() -> None:
    code = (
        "import logging, sys; logging.basicConfig()\n"
        "import importlib.util as util; find = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name.startswith('opentelemetry') else find(name, *rest)\n"
        "from streamflow.tracing.setup import find_tracing, set_up_from_environment\n"
        "print(set_up_from_environment() or None, find_tracing())"
    )
    said = python(code, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:4318")
    assert said.startswith("None None")
    assert "OTEL_EXPORTER_OTLP_ENDPOINT asks for some" in said
    assert "pip install 'streamflowd[otel]'" in said


def test_the_end_does_not_wait_for_an_exporter_that_hangs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from opentelemetry.sdk.trace import TracerProvider

    released = threading.Event()

    class Hangs(TracerProvider):
        def shutdown(self) -> None:
            released.wait(30)

    provider: Any = Hangs(shutdown_on_exit=False)
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", provider)
    began = time.monotonic()
    setup.shut_down(0.1)
    assert time.monotonic() - began < 10
    assert "the last spans may be lost" in caplog.text
    released.set()
