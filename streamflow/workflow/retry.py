"""When a failed step is tried again: exponential back-off with jitter.

Owns: the policy. Must not: sleep or know clocks; the caller records the due time, so a replay never asks again.
"""

from __future__ import annotations

import random

import msgspec

from streamflow.errors import UsageError


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """How often, and after how many seconds, a failed step is tried again.

    The delay after attempt n is `min(initial * factor ** (n - 1), maximum)`, plus or minus the share `jitter` of it.
    `attempts` counts the first one; 1 means no retry. Exceptions of the classes (or with the class names) in `never`
    fail the step at once.

    >>> sf.Retry(attempts=5, initial=1.0, factor=2.0, maximum=60.0, jitter=0.1, never=(ValueError,))
    """

    attempts: int = 5
    initial: float = 1.0
    factor: float = 2.0
    maximum: float = 60.0
    jitter: float = 0.1
    never: tuple[type[BaseException] | str, ...] = ()

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.initial < 0 or self.factor < 1 or self.maximum < 0 or not 0 <= self.jitter <= 1:
            raise UsageError(
                f"{self!r} makes no sense: attempts and factor are at least 1, initial and maximum at least 0, "
                "jitter is from 0 to 1"
            )

    def gives_up_on(self, error: BaseException) -> bool:
        names = {cls.__name__ for cls in type(error).__mro__}
        return any(n in names if isinstance(n, str) else isinstance(error, n) for n in self.never)

    def delay(self, attempt: int, rng: random.Random) -> float:
        """Seconds between the failure of `attempt` and the next one."""
        # Beyond 64 doublings any delay is at its maximum; a larger exponent could overflow a float.
        base = min(self.initial * min(self.factor, 1e4) ** min(attempt - 1, 64), self.maximum)
        return base * (1 + self.jitter * rng.uniform(-1, 1))


NO_RETRY = Retry(attempts=1)
