"""How many examples hypothesis tries a property with.

All of them in the suite. `STREAMFLOW_TEST_EXAMPLES` is a percentage for runs that repeat the same tests on another
Python, or to see which lines they run.
"""

from __future__ import annotations

import os

PERCENT = int(os.environ.get("STREAMFLOW_TEST_EXAMPLES", "100"))
LEAST = 5


def examples(number: int) -> int:
    return max(LEAST, number * PERCENT // 100)
