"""The rule of a queue's doorbell in all orders of events: no attempt waits for ever for a worker with a free slot.

The model has one partition and one worker with one slot, and what may happen between them in any order: an attempt is
added, another worker takes one or returns it, a ring arrives or is lost with its connection, the connection is made
again, the worker looks, it reads, a reply arrives or is lost, a step ends. All states are gone through. One in which
the worker has nothing left to do by itself, and an attempt waits, or is this worker's without its knowing, is an
attempt that waits for ever.

`Rule` names the conditions; the test of each leaves it out and expects such a state. `tests/unit/worker/test_worker.py`
holds the reader against the same rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

ATTEMPTS = 3
CUTS = 1
LOST_REPLIES = 1
RETURNED = 1
"""Attempts that the other worker gives back."""


class Rule(NamedTuple):
    """The conditions, all of which hold in the product."""

    leaves_before_read: bool = True
    """A partition leaves the list before it is read; else when the reply is there."""
    hears_while_full: bool = True
    """A ring puts the partition on the list also while the worker has no free slot."""
    comes_back: bool = True
    """A partition that has given as many entries as it might comes back to the list..."""
    comes_back_after_error: bool = True
    """...and one whose read has failed."""
    reads_pending: bool = True
    """When a reply was lost, what this worker has read before is read again."""
    looks_after: bool = True
    """After each new subscription the partitions are looked at, and not before."""
    requeue_rings: bool = True
    """Who returns an attempt rings, too."""


class State(NamedTuple):
    added: int = 0
    waiting: int = 0
    others: int = 0
    """Attempts that the other worker has."""
    returned: int = 0
    mine: int = 0
    """Attempts that the server has as this worker's."""
    running: int = 0
    """Those that it knows of."""
    rings: bool = False
    subscribed: bool = False
    connects: bool = True
    looks: bool = False
    """A look is to be sent..."""
    seen: bool | None = None
    """...and its reply is under way: whether an attempt waited."""
    listed: bool = False
    reading: bool = False
    page: int | None = None
    """How many entries the reply has; None: not executed."""
    pending: bool = False
    """What is pending is to be read again."""
    elsewhere: bool = False
    """Its slot is taken by an attempt of another partition."""
    occupied: int = 0
    cuts: int = 0
    lost: int = 0


def ring(state: State) -> State:
    return state._replace(rings=state.rings or state.subscribed)


def by_themselves(state: State, rule: Rule) -> Iterator[State]:
    """What happens sooner or later, without anybody from outside."""
    if state.rings and state.subscribed:
        heard = rule.hears_while_full or not (state.running or state.elsewhere)
        yield state._replace(rings=False, listed=state.listed or heard)
    if state.connects:
        yield state._replace(connects=False, subscribed=True, looks=state.looks or rule.looks_after)
    if state.looks and state.seen is None:
        yield state._replace(looks=False, seen=state.waiting > 0)
    if state.seen is not None:
        yield state._replace(seen=None, listed=state.listed or state.seen)
    if not state.reading and state.pending:
        yield state._replace(pending=False, running=state.mine)
    elif not state.reading and state.listed and not state.running and not state.elsewhere:
        yield state._replace(reading=True, listed=state.listed and not rule.leaves_before_read)
    if state.reading and state.page is None:
        taken = min(1, state.waiting)
        yield state._replace(page=taken, waiting=state.waiting - taken, mine=state.mine + taken)
    if state.reading and state.page is not None:
        listed = state.listed if rule.leaves_before_read else False
        listed = listed or (rule.comes_back and state.page == 1)
        yield state._replace(reading=False, page=None, running=state.running + state.page, listed=listed)
    if state.running:
        yield state._replace(running=state.running - 1, mine=state.mine - 1)
    if state.elsewhere:
        yield state._replace(elsewhere=False)


def may_happen(state: State, rule: Rule) -> Iterator[State]:
    """What need not happen: attempts, the other worker, and faults."""
    if state.added < ATTEMPTS:
        yield ring(state._replace(added=state.added + 1, waiting=state.waiting + 1))
    if not state.running and not state.reading and not state.occupied:
        yield state._replace(elsewhere=True, occupied=1)
    if state.waiting:
        yield state._replace(waiting=state.waiting - 1, others=state.others + 1)
    if state.others and state.returned < RETURNED:
        back = state._replace(others=state.others - 1, waiting=state.waiting + 1, returned=state.returned + 1)
        yield ring(back) if rule.requeue_rings else back
    if state.subscribed and state.cuts < CUTS:
        looks = state.looks or not rule.looks_after  # before it is subscribed again
        yield state._replace(rings=False, subscribed=False, connects=True, cuts=state.cuts + 1, looks=looks)
    if state.reading and state.lost < LOST_REPLIES:
        yield state._replace(
            reading=False,
            page=None,
            lost=state.lost + 1,
            pending=rule.reads_pending,
            listed=state.listed or rule.comes_back_after_error,
        )


def forgotten(rule: Rule) -> State | None:
    """A state in which an attempt waits for ever."""
    first = State(looks=not rule.looks_after)
    seen, todo = {first}, [first]
    while todo:
        state = todo.pop()
        own = list(by_themselves(state, rule))
        if not own and (state.waiting or state.mine > state.running):
            return state
        for following in (*own, *may_happen(state, rule)):
            if following not in seen:
                seen.add(following)
                todo.append(following)
    assert len(seen) > 1000, "the model is as large as it was"
    return None


def test_no_attempt_waits_for_ever() -> None:
    assert forgotten(Rule()) is None


@pytest.mark.parametrize("condition", Rule._fields)
def test_without_any_of_the_conditions_an_attempt_waits_for_ever(condition: str) -> None:
    assert forgotten(Rule()._replace(**{condition: False})) is not None
