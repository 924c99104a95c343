"""When a failed step is retried: exponential back-off with jitter.

Owns: the policy. Must not: sleep or know clocks. Called by: the definitions, the executor, and the machines, which
record the due time, so that a replay doesn't compute it again.
"""

from __future__ import annotations

import random

import msgspec

from streamflow.errors import UsageError


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """How often a failed step is retried, and after how many seconds.

    The delay between attempt n and the next one is `min(initial * factor ** (n - 1), maximum)` seconds, plus or minus
    up to the share `jitter` of that. Raises `UsageError` for values outside the allowed ranges.

    >>> sf.Retry(attempts=5, initial=1.0, factor=2.0, maximum=60.0, jitter=0.1, never=(ValueError,))
    """

    attempts: int = 5
    """Maximum number of attempts, the first one included: at least 1, which means no retry."""
    initial: float = 1.0
    """Seconds before the first retry: at least 0."""
    factor: float = 2.0
    """By which the delay grows with each retry: at least 1."""
    maximum: float = 60.0
    """Upper limit of the delay in seconds, before jitter: at least 0."""
    jitter: float = 0.1
    """Share of the delay by which it varies at random: from 0 to 1."""
    never: tuple[type[BaseException] | str, ...] = ()
    """Exception classes, or names of classes, that fail the step without a retry."""

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.initial < 0 or self.factor < 1 or self.maximum < 0 or not 0 <= self.jitter <= 1:
            raise UsageError(
                f"attempts and factor must be >= 1, initial and maximum >= 0, and jitter between 0 and 1; got {self!r}"
            )

    def gives_up_on(self, error: BaseException) -> bool:
        """Whether `never` names a class of `error`."""
        names = {cls.__name__ for cls in type(error).__mro__}
        return any(n in names if isinstance(n, str) else isinstance(error, n) for n in self.never)

    def delay(self, attempt: int, rng: random.Random) -> float:
        """Seconds between the failure of attempt number `attempt` and the next attempt."""
        # Beyond 64 doublings any delay is at its maximum; a larger exponent could overflow a float.
        base = min(self.initial * min(self.factor, 1e4) ** min(attempt - 1, 64), self.maximum)
        return base * (1 + self.jitter * rng.uniform(-1, 1))


NO_RETRY = Retry(attempts=1)
"""A step with this policy fails at its first failed attempt."""
