"""The server's client is loaded without OpenTelemetry's SDK for metrics, and nobody else notices."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from streamflow.embedded.server import EmbeddedServer

ROOT = Path(__file__).parents[3]


def python(code: str, *words: str) -> str:
    """What a new Python prints: what is imported is a matter of a process."""
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_client_of_the_server_is_loaded_without_the_sdk_of_metrics() -> None:
    """redis-py alone imports it here, where it is installed. What looks for it is gone afterwards."""
    code = (
        "import sys, {}\n"
        "finders = [type(finder).__module__ for finder in sys.meta_path]\n"
        "print('redis.asyncio' in sys.modules, 'opentelemetry.sdk.metrics' in sys.modules, "
        "'streamflow.store.redis_import' in finders)"
    )
    assert python(code.format("redis.asyncio")) == "True True False"
    assert python(code.format("streamflow.store.connection")) == "True False False"


def test_another_thread_may_import_the_sdk_meanwhile() -> None:
    code = (
        "import importlib, threading\n"
        "from importlib.machinery import SourceFileLoader\n"
        "found = []\n"
        "def other():\n"
        "    import opentelemetry.sdk.metrics\n"
        "    found.append(opentelemetry.sdk.metrics.MeterProvider)\n"
        "execute = SourceFileLoader.exec_module\n"
        "def exec_module(loader, module):\n"
        "    if module.__name__ == 'redis.observability.providers':\n"
        "        thread = threading.Thread(target=other)\n"
        "        thread.start()\n"
        "        thread.join()\n"
        "    execute(loader, module)\n"
        "SourceFileLoader.exec_module = exec_module\n"
        "import streamflow.store.connection\n"
        "print(len(found))"
    )
    assert python(code) == "1"


def test_an_application_can_still_have_metrics_of_redis(embedded_server: EmbeddedServer) -> None:
    code = (
        "import sys, streamflow.store.connection, redis\n"
        "from opentelemetry import metrics\n"
        "from opentelemetry.sdk.metrics import MeterProvider\n"
        "from opentelemetry.sdk.metrics.export import InMemoryMetricReader\n"
        "from redis.observability import OTelConfig, get_observability_instance\n"
        "from redis.observability.config import MetricGroup\n"
        "reader = InMemoryMetricReader()\n"
        "metrics.set_meter_provider(MeterProvider(metric_readers=[reader]))\n"
        "get_observability_instance().init(OTelConfig(metric_groups=[MetricGroup.COMMAND]))\n"
        "redis.Redis.from_url(sys.argv[1]).ping()\n"
        "print(reader.get_metrics_data().to_json())"
    )
    assert "db.client.operation.duration" in python(code, embedded_server.url)
