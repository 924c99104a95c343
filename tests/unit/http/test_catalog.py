"""Metrics follow Prometheus' rules, and a page names all of them."""

from __future__ import annotations

import re

import pytest

from docs.make_metrics import PAGE, page_with_table
from streamflow.http.catalog import METRICS, Metric


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_follow_the_rules(metric: Metric) -> None:
    assert re.fullmatch(r"streamflow(_[a-z]+)+", metric.name)
    assert (metric.kind == "counter") == metric.name.endswith("_total")
    assert (metric.kind == "histogram") == bool(metric.powers)
    assert not re.search(r"_(ms|millis|milliseconds|minutes|kb|mb|percent|count|sum|bucket)(_|$)", metric.name)
    is_whole = metric.name.startswith(("streamflow_namespace_", "streamflow_server_"))
    assert is_whole == (metric.whose == "namespace")
    assert set(metric.labels) <= {
        "kind",
        "view",
        "key",
        "version",
        "result",
        "workflow",
        "status",
        "step",
        "outcome",
        "queue",
        "group",
        "sink",
        "figure",
        "server",
    }
    assert metric.help.endswith(".")


def test_no_two_metrics_share_a_name() -> None:
    assert len({series for metric in METRICS for series in metric.series}) == sum(
        len(metric.series) for metric in METRICS
    )


def test_the_page_of_metrics_is_the_catalog() -> None:
    assert page_with_table() == PAGE.read_text(), "run `python docs/make_metrics.py`"
