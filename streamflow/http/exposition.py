"""Metrics as text: in Prometheus' format, or in that of OpenMetrics if the scraper asks for it.

Owns: the only use of `prometheus_client`, which is installed with `streamflowd[metrics]`. Must not: measure anything.
Called by: `pages.py`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from streamflow.http.catalog import COMMON, METRICS, Metric
from streamflow.http.figures import Figures

if TYPE_CHECKING:
    from prometheus_client.core import Metric as Family

MISSING = (
    "/metrics needs the package prometheus-client: install streamflowd[metrics], and start this process again. "
    "/health and /ready work without it"
)


def can_be_exposed() -> bool:
    return importlib.util.find_spec("prometheus_client") is not None


def encoder_for(accept: str) -> tuple[Callable[[Any], bytes], str]:
    """What encodes `source_of` in the format that the header `Accept` prefers, and the content type."""
    from prometheus_client import exposition

    return exposition.choose_encoder(" ".join(accept.split())[:1000])


def source_of(figures: Figures, namespace: str) -> _Source:
    """The figures, and the usual ones of a process: memory, CPU, open files."""
    return _Source(figures, namespace)


class _Source:
    """What the encoders want of a registry."""

    def __init__(self, figures: Figures, namespace: str) -> None:
        self._figures = figures
        self._namespace = namespace

    def collect(self) -> Iterator[Family]:
        from prometheus_client import PlatformCollector, ProcessCollector

        for metric in METRICS:
            if metric in self._figures.values or metric in self._figures.histograms:
                yield self._family(metric)
        yield from ProcessCollector(registry=None).collect()
        yield from PlatformCollector(registry=None).collect()

    def _family(self, metric: Metric) -> Family:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        names = (COMMON, *metric.labels)
        if metric.kind == "histogram":
            histogram = HistogramMetricFamily(metric.name, metric.help, labels=names)
            for labels, (counts, total) in self._figures.histograms[metric].items():
                buckets = list(zip([*bounds(metric), "+Inf"], counts, strict=True))
                histogram.add_metric((self._namespace, *labels), buckets, total)
            return histogram
        kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
        family = kind(metric.name, metric.help, labels=names)
        for labels, value in self._figures.values[metric].items():
            family.add_metric((self._namespace, *labels), value)
        return family


def bounds(metric: Metric) -> list[str]:
    """Where the buckets of a histogram end, as text. What is counted are whole numbers below a power of two."""
    if metric.name.endswith("_seconds"):
        return [repr(2**power / 1e6) for power in metric.powers]
    return [repr(float(2**power - 1)) for power in metric.powers]
