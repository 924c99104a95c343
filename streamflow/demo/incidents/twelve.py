"""The twelve incidents of `demo --incidents`, as data: which runs are wrong, how it is seen, and what mends it.

Owns: ids and numbers of all runs of the demo, the commands, and the line in which release 1.8.3 differs.
Must not: start, read or print anything. Called by: the demo; the test that mends each of them by these commands.

Nothing is left to chance: the same number of runs gives the same ids and the same inputs. The ids are the seed.
"""

from __future__ import annotations

import msgspec

FIX = ('item["a"] + item["b"]', 'item["a"] + item.get("b", 0)')
"""In `shop.py`: what release 1.8.2 has, and 1.8.3."""
DEPLOY = "fix"
"""Not a command of streamflow, but a line for the demo: it deploys release 1.8.3."""
FULL = 0.91
"""Share of its `maxmemory` that the server uses at the beginning."""
REPORTS_BYTES = 160 * 1024 * 1024
"""What the results of all `nightly` runs take together, about..."""
REPORT_BYTES = (1024, 32 * 1024)
"""...if each takes no less, and no more."""
NIGHTLY = 0.8
"""Share of the runs of no incident that have ended; the others wait for a timer."""
ALL_INCIDENTS_AT = 20_000
"""With fewer runs than so many, incidents of many runs have fewer, too."""


class Counts(msgspec.Struct, frozen=True):
    """How many runs there are of what."""

    stuck: int
    failed: int
    queued: int
    crawls: int
    retired: int
    nightly: int
    invoices: int


def counts(runs: int) -> Counts:
    def scaled(number: int, least: int) -> int:
        return max(least, min(number, number * runs // ALL_INCIDENTS_AT))

    stuck, failed, queued = scaled(212, 10), scaled(1204, 20), scaled(318, 8)
    crawls, retired = scaled(40, 10), scaled(41, 5)
    others = max(0, runs - stuck - failed - queued - crawls - retired - len(SINGLE))
    nightly = int(others * NIGHTLY)
    return Counts(stuck, failed, queued, crawls, retired, nightly, others - nightly)


STUCK_PARTS = ("batch-12", "part-kid-1", "enrich-kid-1")
POISONED = "order-5a5a"
HUNG = "agent_loop-1b"
WRONG_TYPE = "order-7b02"
INVALID = "onboard-0012"
ILL = "statement-2026"
ONBOARDED = tuple(f"onboard-{number:04}" for number in range(1, 21))
"""`INVALID` is one of them."""
SINGLE = (*STUCK_PARTS, POISONED, HUNG, WRONG_TYPE, *ONBOARDED, ILL)
"""Runs of which there is one each, however many runs there are."""


def ids(workflow: str, count: int) -> list[str]:
    return [f"{workflow}-{number:06}" for number in range(count)]


class Incident(msgspec.Struct, frozen=True, kw_only=True):
    number: int
    title: str
    wrong: str
    """What has happened, in a sentence or two."""
    runs: list[str]
    """All that it is about. What mends it changes these and no others."""
    commands: list[str]
    """At most two, without `streamflow`: the first one shows it, unless it needs none, the last one mends it."""
    shows: str
    """What the first of them prints, among other things; if it is one that mends: what `status --check` says."""


def incidents(count: Counts, app: str) -> list[Incident]:
    """`app`: the path of the app of the daemons, for a worker."""
    return [
        Incident(
            number=1,
            title="a bug after a deploy",
            wrong=f"release 1.8.2 of order expects a 'b' of each item: {count.stuck:,} runs are stuck",
            runs=ids("order", count.stuck),
            commands=["runs --status stuck --error KeyError", DEPLOY],
            shows="KeyError: 'b'",
        ),
        Incident(
            number=2,
            title="a service was down",
            wrong=f"{count.failed:,} runs of enrich failed while api.example was away; it is back",
            runs=ids("enrich", count.failed),
            commands=[
                "runs --workflow enrich --status failed",
                'retry --workflow enrich --error ConnectTimeout --reason "api.example is back"',
            ],
            shows="ConnectTimeout",
        ),
        Incident(
            number=3,
            title="a child that is stuck",
            wrong="batch-12 doesn't end: the child of its child waits for a signal that nobody sends",
            runs=list(STUCK_PARTS),
            commands=["show batch-12", "signal enrich-kid-1 go"],
            shows="signal go",
        ),
        Incident(
            number=4,
            title="a queue without workers",
            wrong=f"{count.queued:,} steps wait in queue gpu, and no worker reads it",
            runs=ids("agent_loop", count.queued),
            commands=["status --check", f"worker --app {app} --queue gpu"],
            shows="no workers for queue gpu",
        ),
        Incident(
            number=5,
            title="a poisoned message",
            wrong="something else has written a signal that nobody can decode into an inbox",
            runs=[],
            commands=["quarantine list", f"quarantine drop --run {POISONED}"],
            shows=POISONED,
        ),
        Incident(
            number=6,
            title="a step that hangs",
            wrong=f"step model of {HUNG} waits for an answer that doesn't come, and has no time-out; its worker lives",
            runs=[HUNG],
            commands=["status --check", f"retry {HUNG} --step model"],
            shows=f"step model of {HUNG}: silent for",
        ),
        Incident(
            number=7,
            title="a signal of the wrong type",
            wrong=f'{WRONG_TYPE} was sent approve "yes", where an Approval is awaited: it waits on',
            runs=[WRONG_TYPE],
            commands=[f"show {WRONG_TYPE}", f"""signal {WRONG_TYPE} approve '{{"ok": true, "by": "kim"}}'"""],
            shows="it isn't of the type that the code asked for",
        ),
        Incident(
            number=8,
            title="a storm of retries",
            wrong=f"{count.crawls:,} runs of crawl try again each second, and are banned for as long as they do",
            runs=ids("crawl", count.crawls),
            commands=['pause --queue crawl --reason "429"', "resume --queue crawl"],
            shows="0 succeeded: TooManyRequests: 429 Too Many Requests: crawled.example",
        ),
        Incident(
            number=9,
            title="one bad input among good ones",
            wrong=f"{INVALID} failed, and no attempt would help: its e-mail address isn't one",
            runs=[INVALID],
            commands=[
                f"show {INVALID}",
                f"""fork {INVALID} --at 4 --id {INVALID}-b --input '["customer 11", "kim@example.org"]'""",
            ],
            shows="InvalidEmail: #@#",
        ),
        Incident(
            number=10,
            title="a daemon that is ill",
            wrong=f"{ILL} computes in the code of its workflow, and blocks its daemon for 0.9 s each 3 s",
            runs=[ILL],
            commands=["status --check", 'pause --workflow statement --reason "blocks its daemon"'],
            shows="by workflow statement at shop.py",
        ),
        Incident(
            number=11,
            title="a server that is nearly full",
            wrong=f"memory is {FULL:.0%} full, of results of {count.nightly:,} ended runs of nightly; 8 makes it grow",
            runs=ids("nightly", count.nightly),
            commands=["status --check", "forget --workflow nightly --rate 0"],
            shows="% full",
        ),
        Incident(
            number=12,
            title="a forgotten half of a pair",
            wrong=f"{count.retired:,} runs of invoice_v1 are open, which no daemon has since release 1.8",
            runs=ids("invoice_v1", count.retired),
            commands=["runs --workflow invoice_v1", "terminate --workflow invoice_v1"],
            shows="invoice_v1-000000",
        ),
    ]
