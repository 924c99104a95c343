"""What is shipped for Prometheus and Grafana names only metrics and labels that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from streamflow.http.catalog import COMMON, METRICS

ROOT = Path(__file__).parents[3]
ALERTS = ROOT / "deploy/prometheus/alerts.yml"
DASHBOARD = ROOT / "deploy/grafana/streamflow.json"
BY_SERIES = {series: metric for metric in METRICS for series in metric.series}
OTHERS = {"process_resident_memory_bytes", "process_cpu_seconds_total", "up"}
"""Of the client library, and of the scraper."""
TARGET = {"instance", "job"}
"""Labels that the scraper adds."""
WORDS = {
    "absent",
    "and",
    "changes",
    "count",
    "histogram_quantile",
    "increase",
    "max",
    "max_over_time",
    "or",
    "rate",
    "sum",
    "vector",
    "by",
    "on",
    "unless",
}


WITHOUT_A_PANEL = {
    "streamflow_runs_hibernating": "where it is used, the status shows it",
    "streamflow_runs_hibernated_total": "the same",
    "streamflow_runs_woken_total": "the same",
    "streamflow_chunks_total": "what steps emit is for readers of single runs, and in most namespaces there is nothing",
    "streamflow_chunks_missed_total": "the same, and readers see it",
    "streamflow_metrics_read_success": "where it is 0, the panels of that daemon's namespace and server have a gap",
    "streamflow_sink_batches_total": "events have a panel",
    "streamflow_sink_others_total": "what a sink counts besides is its own",
    "streamflow_namespace_queues": "the panels of queues have a line for each",
    "streamflow_namespace_view_value": "each app's views are its own",
    "streamflow_namespace_view_events": "the same",
    "streamflow_namespace_shards": "it never changes; how many have no owner has a panel",
}
"""Why the dashboard doesn't show these."""


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def expressions() -> Iterator[tuple[str, str]]:
    for rule in alerts():
        yield rule["alert"], rule["expr"]
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


def test_each_expression_names_metrics_and_labels_that_exist() -> None:
    found: set[str] = set()
    for where, expression in expressions():
        bare = re.sub(r"\[[^\]]*\]", "", re.sub(r'"[^"]*"', '""', expression))
        names = re.findall(r"\b(?:(?:streamflow|process|python)_\w+|up\b)", bare)
        assert names, where
        assert set(names) <= BY_SERIES.keys() | OTHERS, where
        found.update(names)
        labels = {COMMON, "le"} | TARGET
        for name in names:
            labels.update(BY_SERIES[name].labels if name in BY_SERIES else ())
        for name, matchers in re.findall(r"(\w+)\{([^}]*)\}", bare):
            own = {COMMON, *TARGET, *(BY_SERIES[name].labels if name in BY_SERIES else ())}
            assert set(re.findall(r"(\w+)\s*[=!]", matchers)) <= own, where
        for listed in re.findall(r"\b(?:by|on|group_left|ignoring|without)\s*\(([^)]*)\)", bare):
            assert {label.strip() for label in listed.split(",") if label.strip()} <= labels, where
        words = set(re.findall(r"[a-zA-Z_]\w*", re.sub(r"\{[^}]*\}|\b(?:by|on|group_left)\s*\([^)]*\)", "", bare)))
        assert words - set(names) <= WORDS, where
    assert len(found) > 30


def test_what_is_about_the_namespace_is_never_added_up_over_daemons() -> None:
    """Each daemon says the same: a sum would count it once for each of them."""
    for where, expression in expressions():
        for name in re.findall(r"streamflow_(?:namespace|server)_\w+", expression):
            before = expression[: expression.index(name)]
            assert re.search(r"max by \([^)]*\) \((?:rate|increase)?\(?$", before), f"{where}: {name}"


def test_every_alert_says_what_to_do_and_where_that_is_written() -> None:
    names = [rule["alert"] for rule in alerts()]
    assert len(set(names)) == len(names) > 20
    for rule in alerts():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert len(rule["annotations"]["summary"]) > 50
        assert rule["annotations"]["runbook_url"].startswith("https://")


def test_each_alert_leads_to_the_runbook_that_names_it() -> None:
    page = (ROOT / "docs/operations.md").read_text().partition("\n## Alerts, and what to do\n")[2].partition("\n## ")[0]
    books = re.findall(r"^### (\S+)\n\n\*\*Alerts\.\*\* (.*)\.\n", page, re.MULTILINE)
    assert len(books) == page.count("\n### "), "each begins with the alerts that lead to it"
    named = {alert: anchor for anchor, alerts in books for alert in re.findall(r"`(\w+)`", alerts)}
    assert named.keys() == {rule["alert"] for rule in alerts()}
    for rule in alerts():
        assert rule["annotations"]["runbook_url"].endswith(f"/docs/operations.md#{named[rule['alert']]}")
    assert {anchor for anchor, _ in books} == set(named.values()), "an alert leads to each"


def test_each_metric_has_a_panel_or_a_reason_to_have_none() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    shown = {
        BY_SERIES[name].name
        for panel in panels
        for target in panel.get("targets", [])
        for name in re.findall(r"\bstreamflow_\w+", target["expr"])
    }
    assert {metric.name for metric in METRICS} - shown == WITHOUT_A_PANEL.keys()


def test_values_of_labels_in_expressions_exist() -> None:
    values = {
        "kind": {"daemon", "worker", "sink"},
        "status": {"running", "stuck", "paused", "completed", "failed", "cancelled"},
        "outcome": {"completed", "retried", "failed"},
        "result": {"ok", "duplicate", "conflict", "fenced", "behind", "refused"},
    }
    for where, expression in expressions():
        for label, known in values.items():
            for given in re.findall(rf'\b{label}(?:=~|!=|=)"([^"]*)"', expression):
                assert set(given.split("|")) <= known, where


def test_the_dashboard_can_be_imported() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)
    for panel in panels:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert panel["description"]
    assert [variable["name"] for variable in dashboard["templating"]["list"]] == ["datasource", "namespace"]


EXAMPLES = {"prometheus.yml": "streamflow", "prometheus-kubernetes.yml": "streamflow-pods"}


@pytest.mark.parametrize(("name", "job"), EXAMPLES.items())
def test_an_example_for_prometheus_loads_the_alerts(name: str, job: str) -> None:
    example = yaml.safe_load((ALERTS.parent / name).read_text())
    assert example["rule_files"] == [ALERTS.name]
    assert [given["job_name"] for given in example["scrape_configs"]] == [job]


PROMTOOL = shutil.which("promtool")


@pytest.mark.skipif(PROMTOOL is None, reason="needs promtool, of Debian's package prometheus")
def test_the_alerts_fire_when_they_should() -> None:
    """Debian's package can't discover pods: the example for machines must do without."""
    assert PROMTOOL is not None
    checks = (
        ["check", "config", "prometheus.yml"],
        ["check", "rules", ALERTS.name],
        ["test", "rules", "alerts_test.yml"],
    )
    for words in checks:
        done = subprocess.run(
            [PROMTOOL, *words], cwd=ALERTS.parent, capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
