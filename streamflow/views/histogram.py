"""Durations by name, as log-linear histograms: small, mergeable, with a bounded relative error.

Owns: the bucket formula, `Timings` (the durations of one step or workflow name), and percentiles.
Must not: know events or clocks. Called by: `registry.py`.

The buckets are HdrHistogram's (Gil Tene, http://hdrhistogram.org): each power of two is cut into 8 equal parts, so a
bucket is at most 1/8 as wide as its lowest value and its middle is off by at most 1/16 (6.25 %). Values below 16 µs
have a bucket each. Only buckets that are in use are stored.
"""

from __future__ import annotations

import math
from functools import lru_cache

import msgspec

MAX_MS = 1000.0 * 86400 * 365 * 100
"""A hundred years. A value outside 0…MAX_MS, or not a number, is counted at the nearer end; it is not an error."""


class Timings(msgspec.Struct, array_like=True):
    """Durations of successes (bucket number -> count), the longest one in µs, and how many failures and retries."""

    buckets: dict[int, int] = {}
    max_us: int = 0
    failures: int = 0
    retries: int = 0

    def add(self, ms: float) -> None:
        us = int(ms * 1000) if 0 <= ms < MAX_MS else _clamped(ms)
        # The body of `bucket_of`, here because this runs once a step.
        shift = us.bit_length() - 4
        bucket = (shift << 3) + (us >> shift) if shift > 0 else us
        buckets = self.buckets
        buckets[bucket] = buckets.get(bucket, 0) + 1
        if us > self.max_us:
            self.max_us = us

    def merge(self, other: Timings) -> None:
        buckets = self.buckets
        for bucket, count in other.buckets.items():
            buckets[bucket] = buckets.get(bucket, 0) + count
        self.max_us = max(self.max_us, other.max_us)
        self.failures += other.failures
        self.retries += other.retries

    @property
    def count(self) -> int:
        return sum(self.buckets.values())

    def by_power(self) -> list[int]:
        """How many durations have so many binary digits in µs: at `n` those from 2**(n-1) to 2**n - 1. Exact, because
        no bucket holds values of two powers."""
        highest = max(self.buckets, default=-1)
        counts = [0] * (_digits_of(highest) + 1)
        for bucket, count in self.buckets.items():
            counts[_digits_of(bucket)] += count
        return counts

    @property
    def sum_ms(self) -> float:
        """All durations together, off by at most 6 %, as each is."""
        return sum(middle_of(bucket) * count for bucket, count in self.buckets.items()) / 1000

    def percentiles_ms(self, *shares: float) -> list[float]:
        """For each of the ascending `shares` (0 to 1): the ms within which that share of all durations is; 0 without
        data."""
        ranks = [max(1, math.ceil(share * self.count)) for share in shares]
        values: list[float] = []
        counted = 0
        for bucket, count in sorted(self.buckets.items()):
            counted += count
            while len(values) < len(ranks) and ranks[len(values)] <= counted:
                values.append(min(middle_of(bucket), self.max_us) / 1000)
        return values or [0.0] * len(ranks)


def bucket_of(us: int) -> int:
    """The number of the bucket that holds `us` (from 0)."""
    shift = us.bit_length() - 4
    return (shift << 3) + (us >> shift) if shift > 0 else us


@lru_cache(1024)
def middle_of(bucket: int) -> float:
    """The middle of a bucket, in µs; exact below 16."""
    if bucket < 16:
        return float(bucket)
    shift = (bucket >> 3) - 1
    return float(((bucket & 7) + 8) << shift) + (1 << shift) / 2


@lru_cache(1024)
def _digits_of(bucket: int) -> int:
    """Binary digits of the values in a bucket: all have as many."""
    return max(0, bucket).bit_length() if bucket < 16 else (bucket >> 3) + 3


def _clamped(ms: float) -> int:
    return int(MAX_MS * 1000) if ms >= MAX_MS else 0
