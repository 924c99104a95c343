"""Benchmarks: `streamflow bench`, or `python -m bench` in a checkout. See README.md beside this file.

Throughput and latency are measured here and never in a test. Each workload is a function that adds figures to a report.
In a wheel the package is `streamflow.bench_suite`, so its modules import each other relatively.
"""

from __future__ import annotations

from .command import main, run_bench

__all__ = ["main", "run_bench"]
