"""Whether this process makes spans: decided once, when a daemon or worker starts, or at a client's first call.

Owns: finding the application's TracerProvider, making one of the usual `OTEL_*` variables, and its end.
Must not: import OpenTelemetry where nothing asks for it; make spans (`spans.py` does).
Called by: daemon, worker, client; the commands, which have no application that would configure a provider; the
processes of steps.

A provider that the application has set is used as it is. A process of the command line in which none is set makes one,
if `OTEL_TRACES_EXPORTER` or an endpoint of OTLP is given. `OTEL_SDK_DISABLED=true` turns all of it off.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import threading
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamflow.tracing.run_trace import Silence
    from streamflow.tracing.spans import Tracing

_log = logging.getLogger("streamflow.tracing")

EXPORTER = "OTEL_TRACES_EXPORTER"
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""Without `OTEL_TRACES_EXPORTER`, one of these says that spans go there by OTLP."""
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
OTLP = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
"""The exporters of OTLP by protocol, as their packages register them."""
INSTALL = "pip install 'streamflowd[otel]'"
LAST_SPANS = 5.0
"""Seconds, at most, that the end of a process waits for its last spans."""
IN_PROCESS_MS = "500"
"""Ms after which spans from the process of a step are exported: it may be killed at any time after its step."""

_tried = False
"""In the process of a step: whether it has looked for a provider."""


def find_tracing() -> Tracing | None:
    """What makes spans here; None where no provider is set."""
    try:
        provider = _provider()
        if provider is None:
            return None
        from streamflow.tracing.spans import tracing_with

        return tracing_with(provider)
    except Exception as error:
        _log.error("no spans are made, because OpenTelemetry can't be used: %s: %s", type(error).__name__, error)
        return None


def silence() -> Silence | None:
    """What a replay outside of any daemon has for a trace, so that its code makes no spans; None where nobody could."""
    if _provider() is None:
        return None
    from streamflow.tracing.run_trace import Silence

    return Silence()


def _provider() -> Any:
    """The provider that is set in this process, or None. Only somebody who has imported OpenTelemetry can have set
    one, so nothing is imported here."""
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    provider = trace.get_tracer_provider()
    return None if isinstance(provider, trace.ProxyTracerProvider) else provider


def set_up_from_environment(environ: Mapping[str, str] = os.environ) -> str:
    """Make a provider of the `OTEL_*` variables, if they ask for one and the application has set none. Returns what was
    found or made, for the log; empty for nothing. Never raises: without spans everything else works."""
    wanted = _wanted(environ)
    try:
        if _provider() is not None:
            return "by the application's TracerProvider"
        if wanted == "none":
            return ""
        if importlib.util.find_spec("opentelemetry") is None or importlib.util.find_spec("opentelemetry.sdk") is None:
            _log.error(
                "no spans are made: %s asks for some, and OpenTelemetry is not installed: %s, and the package of an "
                "exporter",
                _asking(environ),
                INSTALL,
            )
            return ""
        return _make(wanted, environ)
    except Exception as error:
        _log.error(
            "no spans are made, because OpenTelemetry can't be set up by %s: %s: %s",
            _asking(environ),
            type(error).__name__,
            error,
        )
        return ""


def _wanted(environ: Mapping[str, str]) -> str:
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return "none"
    default = "otlp" if any(environ.get(name) for name in ENDPOINTS) else "none"
    return (environ.get(EXPORTER) or default).strip()


def _asking(environ: Mapping[str, str]) -> str:
    return next((name for name in (EXPORTER, *ENDPOINTS) if environ.get(name)), EXPORTER)


def _make(wanted: str, environ: Mapping[str, str]) -> str:
    from opentelemetry import trace
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    names = [name.strip() for name in wanted.split(",") if name.strip() not in ("", "none")]
    exporters = [_exporter(name, environ) for name in names]
    has_name = environ.get("OTEL_SERVICE_NAME") or "service.name=" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    resource = Resource.create({} if has_name else {"service.name": "streamflow"})
    # Its own end at exit would wait for a collector that doesn't answer, however long: `shut_down` doesn't.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    for exporter in exporters:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return f"by {', '.join(names)}"


def _exporter(name: str, environ: Mapping[str, str]) -> Any:
    """Raises `LookupError` if no package that is installed has this exporter."""
    found = {entry.name: entry for entry in entry_points(group="opentelemetry_traces_exporter")}
    candidates = [name]
    if name == "otlp":
        protocol = next((environ[variable] for variable in PROTOCOLS if environ.get(variable)), "")
        candidates = [OTLP.get(protocol, protocol)] if protocol else list(OTLP.values())
    entry = next((found[candidate] for candidate in candidates if candidate in found), None)
    if entry is None:
        package = "opentelemetry-exporter-otlp-proto-http" if name == "otlp" else "the package that has it"
        raise LookupError(f"the exporter {name} is not installed: install {package}")
    return entry.load()()


def set_up_in_process() -> None:
    """In the process of a traced step: as in its daemon or worker, unless the application, which was imported, has set
    a provider. Tried once."""
    global _tried
    if not _tried:
        _tried = True
        os.environ.setdefault("OTEL_BSP_SCHEDULE_DELAY", IN_PROCESS_MS)
        set_up_from_environment()


def enter(text: str) -> None:
    """Make this context the current one of the process of a step, until the next call; an empty text for none."""
    if not text and "opentelemetry" not in sys.modules:
        return
    try:
        from opentelemetry import context

        from streamflow.tracing.run_trace import extract

        context.attach(extract(text))
    except Exception as error:  # it is not installed here, or of another version: the step runs all the same
        _log.warning("a step's process can't continue the trace: %s: %s", type(error).__name__, error)


def shut_down(seconds: float) -> None:
    """Export the last spans, at the end of the process: for `seconds` at most, and never more than `LAST_SPANS`.

    In a thread that may be left behind: an exporter may wait for its collector, and try again, for a minute.
    """
    provider = _provider()
    if provider is None:
        return

    def end() -> None:
        try:
            provider.shutdown()
        except Exception as error:
            _log.warning("the last spans may be lost: %s: %s", type(error).__name__, error)

    thread = threading.Thread(target=end, name="streamflow-last-spans", daemon=True)
    thread.start()
    bound = min(seconds, LAST_SPANS)
    thread.join(bound)
    if thread.is_alive():
        _log.warning("the last spans may be lost: the exporter has not taken them within %g s", bound)
