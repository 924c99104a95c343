"""The rule of the doorbell in all orders of events: no message waits forever, and no condition can be left out.

The model has one shard with its owner, and what may happen between them in any order: a message is added, a ring
arrives or is lost with its connection, the connection is made again, the owner reads, its reply arrives or is lost, a
commit is executed, its reply arrives or is lost so that the commit is sent again. All states are gone through. One in
which the owner has nothing left to do by itself, and the inbox a message that it has not read, is a message that waits
forever.
A ring is needless when the inbox has a message that no read has returned: whoever added the first of those has rung.

`Rule` names the conditions; the test of each leaves it out and expects such a state or ring. A count of read messages
that is too low lets messages wait, one that is too high lets them ring in vain. `tests/kernel/test_read_inbox.py` holds
the scripts against the same rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

MESSAGES = 3
CUTS = 1
LOST_REPLIES = 1
PAGE = 2
"""Messages in one reply."""


class Rule(NamedTuple):
    """The conditions, all of which hold in the product."""

    counts_kept: bool = True
    """A message rings when the owner has read all that there are; else only when the inbox is empty."""
    commit_counts_down: bool = True
    """A commit subtracts what it has removed from the number of messages that were read, in one step with that..."""
    commit_counts_once: bool = True
    """...and once, also when it is sent again."""
    counts_at_the_end: bool = True
    """A read counts what it has read only when it has reached the end, and then all that there is; else it adds."""
    reads_to_the_end: bool = True
    """When a reply says that there are more, the owner reads on without a ring."""
    reads_again: bool = True
    """When a reply was lost, the owner reads again behind the last message that has arrived."""
    looks_after: bool = True
    """After each new subscription the owner looks, and not before."""
    rings_during_read: bool = True
    """A ring that arrives while a read is under way makes another one."""


class State(NamedTuple):
    """Messages are numbered as they come; those in `inbox` are not committed."""

    added: int = 0
    inbox: frozenset[int] = frozenset()
    kept: int = 0
    """The server's count of the messages in the inbox that the owner has read."""
    returned: int = 0
    """The last message that a read has returned."""
    needless: bool = False
    """A message has rung although one before it was unread."""
    rings: bool = False
    """On the way to the owner."""
    subscribed: bool = False
    position: int = 0
    """The last message that the owner has."""
    wants: bool = False
    """The owner is to read."""
    reading: bool = False
    """It waits for a reply, which is..."""
    page: tuple[int, bool] | None = None
    """...the last message in it, and whether there are more; None: not executed."""
    in_hand: frozenset[int] = frozenset()
    commit: tuple[int, bool] | None = None
    """The message of the commit that is under way, and whether it was executed."""
    connects: bool = True
    """The owner has still to subscribe."""
    cuts: int = 0
    lost: int = 0


def add(state: State, rule: Rule) -> State:
    number = state.added + 1
    armed = len(state.inbox) <= state.kept if rule.counts_kept else not state.inbox
    rings = state.rings or (armed and state.subscribed)
    needless = state.needless or (armed and any(one > state.returned for one in state.inbox))
    return state._replace(added=number, inbox=state.inbox | {number}, rings=rings, needless=needless)


def read(state: State, rule: Rule) -> State:
    """The server executes a read."""
    behind = sorted(number for number in state.inbox if number > state.position)
    last = behind[:PAGE][-1] if behind else state.position
    more = len(behind) >= PAGE  # a full page may be the last one
    kept = state.kept
    if not rule.counts_at_the_end:
        kept += len(behind[:PAGE])
    elif not more:
        kept = len(state.inbox)
    return state._replace(page=(last, more), kept=kept, returned=max(last, state.returned))


def replied(state: State, rule: Rule) -> State:
    assert state.page is not None
    last, more = state.page
    got = frozenset(range(state.position + 1, last + 1))
    wants = state.wants or (more and rule.reads_to_the_end)
    return state._replace(
        position=max(state.position, last), in_hand=state.in_hand | got, reading=False, page=None, wants=wants
    )


def executed(state: State, rule: Rule) -> State:
    """The server executes the commit that is under way; the second time it answers DUP."""
    assert state.commit is not None
    number, before = state.commit
    kept = state.kept
    if rule.commit_counts_down and (not before or not rule.commit_counts_once):
        kept = max(0, kept - 1)
    return state._replace(inbox=state.inbox - {number}, kept=kept, commit=(number, True))


def by_themselves(state: State, rule: Rule) -> Iterator[State]:
    """What happens sooner or later, without anybody from outside."""
    if state.rings and state.subscribed:
        heard = rule.rings_during_read or not state.reading
        yield state._replace(rings=False, wants=state.wants or heard)
    if state.connects:
        yield state._replace(connects=False, subscribed=True, wants=state.wants or rule.looks_after)
    if state.wants and not state.reading:
        yield state._replace(wants=False, reading=True)
    if state.reading:
        yield read(state, rule) if state.page is None else replied(state, rule)
    if state.commit is not None and not state.commit[1]:
        yield executed(state, rule)
    if state.commit is not None and state.commit[1]:
        yield state._replace(commit=None)


def may_happen(state: State, rule: Rule) -> Iterator[State]:
    """What need not happen: messages, commits (a message may stay for long), and faults."""
    if state.added < MESSAGES:
        yield add(state, rule)
    if state.commit is None:
        for number in state.in_hand:
            yield state._replace(in_hand=state.in_hand - {number}, commit=(number, False))
    if state.cuts < CUTS and state.subscribed:
        wants = state.wants or not rule.looks_after  # the mutant looks when it notices the cut
        yield state._replace(subscribed=False, rings=False, connects=True, wants=wants, cuts=state.cuts + 1)
    if state.lost < LOST_REPLIES:
        if state.reading:  # before or after it was executed
            wants = state.wants or rule.reads_again
            yield state._replace(reading=False, page=None, wants=wants, lost=state.lost + 1)
        if state.commit is not None and state.commit[1]:
            yield executed(state, rule)._replace(lost=state.lost + 1)


class Found(NamedTuple):
    waits: bool
    """There is a state in which nothing happens by itself any more, and a message is unread."""
    needless: bool
    """There is one in which a ring was needless."""
    states: int


def all_states(rule: Rule) -> Found:
    first = State(wants=not rule.looks_after)
    seen, front = {first}, [first]
    waits = needless = False
    while front:
        state = front.pop()
        steps = list(by_themselves(state, rule))
        waits = waits or (not steps and any(number > state.position for number in state.inbox))
        needless = needless or state.needless
        for after in (*steps, *may_happen(state, rule)):
            if after not in seen:
                seen.add(after)
                front.append(after)
    return Found(waits, needless, len(seen))


OF_RINGS = {"commit_counts_down", "counts_at_the_end"}
"""The conditions without which rings are needless; without the others messages wait forever."""


def test_no_message_waits_for_ever_and_none_rings_in_vain() -> None:
    found = all_states(Rule())
    assert not found.waits
    assert not found.needless
    assert found.states > 1000


@pytest.mark.parametrize("condition", [name for name in Rule._fields if name not in OF_RINGS])
def test_without_the_condition_a_message_waits_for_ever(condition: str) -> None:
    assert all_states(Rule()._replace(**{condition: False})).waits


@pytest.mark.parametrize("condition", sorted(OF_RINGS))
def test_without_the_condition_messages_ring_in_vain(condition: str) -> None:
    found = all_states(Rule()._replace(**{condition: False}))
    assert found.needless
    assert not found.waits
