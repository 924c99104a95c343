"""Benchmarks: `streamflow bench`, or `python -m bench` in a checkout. See README.md beside this file.

Throughput and latency are measured here and never in a test. Each workload is a function that adds figures to a report.
The package is also known as `streamflow.bench_suite`, where a wheel carries it: so it imports itself relatively.
"""

from __future__ import annotations

from .command import main, run_bench

__all__ = ["main", "run_bench"]
