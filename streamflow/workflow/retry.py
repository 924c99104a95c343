"""When a failed step is retried: exponential back-off with jitter.

Owns: the policy, and the checks of its values. Must not: sleep or know clocks. Called by: the definitions, and the
machines, which alone decide by it, and record the due time, so that a replay doesn't compute it again.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import cast

from msgspec import UNSET, UnsetType

from streamflow.errors import UsageError
from streamflow.model.durations import MAX_SECONDS, seconds_of

DEFAULT_ATTEMPTS = 20
DEFAULT_WITHIN = 15 * 60.0
"""Seconds. Both count when a policy names neither: long enough for a deploy of what the step calls."""

MAX_ATTEMPTS = 100_000
"""More than a history has room for."""

Never = type[BaseException] | str


@dataclass(frozen=True, init=False, slots=True)
class Retry:
    """How often a failed step is retried, after how many seconds, and for how long.

    The delay between attempt n and the next one is `min(initial * factor ** (n - 1), maximum)` seconds, plus or minus
    up to the share `jitter` of that. Attempts end after `attempts`, or when the next one would start later than
    `within` after the first one that failed had started. With neither, both are limited: 20 attempts within 15
    minutes. With one of them, only that one counts. Durations are seconds or a timedelta. Raises `UsageError` for
    values that can't work.

    >>> sf.Retry(attempts=5, initial=1.0, factor=2.0, maximum=60.0, jitter=0.1, never=(ValueError,))
    >>> sf.Retry(within=timedelta(hours=6), maximum=timedelta(minutes=5))
    """

    attempts: int | None
    """Maximum number of attempts, the first one included: at least 1, which means no retry. None: as many as fit into
    `within`."""
    within: float | None
    """Seconds between the start of the first attempt that failed and the start of the last one. None: any time."""
    initial: float
    """Seconds before the first retry: at least 0."""
    factor: float
    """By which the delay grows with each retry: at least 1."""
    maximum: float
    """Upper limit of the delay in seconds, before jitter: at least 0."""
    jitter: float
    """Share of the delay by which it varies at random: from 0 to 1."""
    never: tuple[Never, ...]
    """Exception classes, or names of classes, that fail the step without a retry; also for classes derived from
    them."""

    def __init__(
        self,
        *,
        attempts: int | UnsetType = UNSET,
        within: float | timedelta | None = None,
        initial: float | timedelta = 1.0,
        factor: float = 2.0,
        maximum: float | timedelta = 60.0,
        jitter: float = 0.1,
        never: Never | Iterable[Never] = (),
    ) -> None:
        if attempts is UNSET and within is None:
            attempts, within = DEFAULT_ATTEMPTS, DEFAULT_WITHIN
        put = object.__setattr__
        put(self, "attempts", None if attempts is UNSET else _check_attempts(attempts))
        put(self, "within", None if within is None else _check_duration("within", within))
        put(self, "initial", _check_duration("initial", initial))
        put(self, "factor", _check_number("factor", factor, 1.0, MAX_SECONDS))
        put(self, "maximum", _check_duration("maximum", maximum))
        put(self, "jitter", _check_number("jitter", jitter, 0.0, 1.0))
        put(self, "never", _check_never(never))

    def gives_up_on(self, kinds: Iterable[str]) -> bool:
        """Whether `never` names one of `kinds`: the names of an error's class and of its bases, as recorded."""
        names = {never if isinstance(never, str) else never.__name__ for never in self.never}
        return not names.isdisjoint(kinds)

    def delay(self, attempt: int, rng: random.Random, wanted: float | None = None) -> float:
        """Seconds between the failure of attempt number `attempt` and the next attempt. `wanted`: what the error has
        asked for: it isn't less, and with jitter not the same for all runs that have got the same answer."""
        if wanted is not None:
            return wanted * (1 + self.jitter * rng.random())
        # Beyond 64 doublings any delay is at its maximum; a larger exponent could overflow a float.
        base = min(self.initial * min(self.factor, 1e4) ** min(attempt - 1, 64), self.maximum)
        return base * (1 + self.jitter * rng.uniform(-1, 1))


def _check_attempts(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_ATTEMPTS:
        raise UsageError(
            f"sf.Retry: attempts must be an integer >= 1 and <= {MAX_ATTEMPTS}, got {value!r}; for any number of "
            "attempts, leave it out and limit their time, as in sf.Retry(within=timedelta(hours=6))"
        )
    return value


def _check_duration(name: str, value: object) -> float:
    seconds = seconds_of(value)
    if seconds is None or seconds < 0:
        raise UsageError(f"sf.Retry: {name} must be seconds >= 0, finite, or a timedelta, got {value!r}")
    return seconds


def _check_number(name: str, value: object, low: float, high: float) -> float:
    number = None if isinstance(value, timedelta) else seconds_of(value)
    if number is None or not low <= number <= high:
        limits = f"between {low:g} and {high:g}" if high < MAX_SECONDS else f"a finite number >= {low:g}"
        raise UsageError(f"sf.Retry: {name} must be {limits}, got {value!r}")
    return number


def _check_never(value: object) -> tuple[Never, ...]:
    members = (value,) if isinstance(value, (str, type)) or not isinstance(value, Iterable) else tuple(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    for member in cast("tuple[object, ...]", members):
        is_class = isinstance(member, type) and issubclass(member, BaseException)
        if not is_class and not (isinstance(member, str) and member.isidentifier()):
            advice = ""
            if isinstance(member, str) and member.rpartition(".")[2].isidentifier():
                advice = f"; write the class's own name, {member.rpartition('.')[2]!r}"
            elif isinstance(member, BaseException):
                advice = f"; write the class, {type(member).__name__}"
            raise UsageError(
                "sf.Retry: never must be exception classes or names of classes, as in never=(ValueError, "
                f"'BadRequest'), got {member!r}{advice}"
            )
    return cast("tuple[Never, ...]", members)


NO_RETRY = Retry(attempts=1)
"""A step with this policy fails at its first failed attempt."""
