"""Writes the table of metrics into its page, from `streamflow/http/catalog.py`.

    python docs/make_metrics.py

`tests/unit/http/test_catalog.py` fails when the page and the catalog differ.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "metrics.md"
BEGIN, END = "<!-- metrics: python docs/make_metrics.py -->\n", "<!-- end of metrics -->"

PARTS = (
    ("process", "Of every daemon and worker"),
    ("daemon", "Of a daemon"),
    ("worker", "Of a worker"),
    ("sink", "Of a sink"),
    ("namespace", "Of the namespace, the same at each daemon"),
)


def rendered_table() -> str:
    """The section between the markers."""
    sys.path.insert(0, str(ROOT))
    from streamflow.http.catalog import METRICS

    lines: list[str] = []
    for whose, title in PARTS:
        lines += ["", f"### {title}", "", "| metric | type | labels | meaning |", "| --- | --- | --- | --- |"]
        for metric in METRICS:
            if metric.whose == whose:
                labels = ", ".join(f"`{label}`" for label in metric.labels)
                lines.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |")
    return "\n".join([*lines, "", ""])


def page_with_table() -> str:
    """The page, with its table as it should be."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    return before + BEGIN + rendered_table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page_with_table())
