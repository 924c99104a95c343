"""Messages between two shards whose nodes fail apart: in all orders of events, each arrives exactly once.

The model has a source that decides messages and a target that accepts them, each with its newest writes still to be
lost. What may happen between them in any order: a decision, a delivery whose reply arrives or is lost, a late copy of
one, the deletion of what was delivered, a hand-over, writes become safe, either side loses its newest writes. After a
loss the source has a new owner, whose epoch may be any, and decides again: the same, or something else. All states are
gone through. The target's rule for numbers is that of the product: `lua/shared/number.lua` is run.

In no state has the target accepted a message twice. In those in which nothing happens by itself any more, it has each
message that the source's history decides. `Rule` names the conditions; the test of each leaves it out and expects a
message that is lost or there twice.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from lupa.lua51 import LuaRuntime

from streamflow.store.scripts import lua_directory

DECISIONS = 2


class Faults(NamedTuple):
    """How many of each may happen."""

    source_losses: int = 0
    target_losses: int = 0
    handovers: int = 0
    late: int = 0
    lost_replies: int = 0
    forgets: int = 0
    """Of these it needs none, but they take time."""


class Rule(NamedTuple):
    """The conditions, all of which hold in the product with the durabilities `disk` and `replicas:N`."""

    own_numbers: bool = True
    """No two owners have the same numbers, also with the same epoch."""
    any_epoch: bool = True
    """An owner that isn't known is a new one, also with an epoch below those that are."""
    identities: bool = True
    """The target drops what it has, also under another number..."""
    content: bool = True
    """...and what takes the place of a decision isn't that decision."""
    forgets_settled_only: bool = True
    """It forgets an identity when the source can't lose that message any more."""
    keeps_until_safe: bool = True
    """A message stays in the outbox until the target can't lose it any more."""
    checks_gaps: bool = True
    """A delivery names the message before it; a target that has lost that one accepts nothing, and all come again."""


class Message(NamedTuple):
    epoch: int
    owner: int
    number: int
    decision: str
    """Its place in the run, and what was decided there."""


class Source(NamedTuple):
    history: tuple[str, ...] = ()
    outbox: tuple[Message, ...] = ()
    epoch: int = 5
    owner: int = 1
    number: int = 0
    sent: tuple[tuple[int, int, int], ...] = ()
    """The last numbers of its former owners."""


class Target(NamedTuple):
    newest: str = ""
    before: str = ""
    identities: frozenset[Message] = frozenset()
    inbox: tuple[str, ...] = ()


Sent = tuple[Message | None, Message]
"""A delivery: the message that the target should have, and the next one."""


class State(NamedTuple):
    source: Source = Source()
    source_past: tuple[Source, ...] = ()
    """To any of these it may be set back."""
    target: Target = Target()
    target_past: tuple[Target, ...] = ()
    delivered: int = 0
    """Entries at the beginning of the outbox that the relay has a reply for."""
    after: Message | None = None
    """The last one of them that it knows of."""
    flying: Sent | None = None
    """A delivery that may be executed once more, now or much later."""
    owners: int = 1
    left: Faults = Faults()


@functools.cache
def lua() -> tuple[object, ...]:
    source = (lua_directory() / "shared/number.lua").read_text()
    accept = """
        return function(newest, before, epoch, number)
          local numbers = open_numbers('source', newest, before)
          local accepted = accept_number(numbers, epoch, number, string.format('%.0f-%.0f', epoch, number))
          local fields = {}
          note_numbers(numbers, fields)
          for i = 1, #fields, 2 do
            if fields[i] == 'source' then newest = fields[i + 1] else before = fields[i + 1] end
          end
          return accepted, newest, before
        end"""
    return (LuaRuntime(unpack_returned_tuples=True).execute(source + accept),)


@functools.cache
def accepts(newest: str, before: str, epoch: int, number: int) -> tuple[bool, str, str]:
    [accept] = lua()
    return accept(newest, before, epoch, number)  # type: ignore[operator]


def identity_of(message: Message, rule: Rule) -> str:
    return message.decision if rule.content else message.decision[0]


def compared(target: Target, message: Message, rule: Rule) -> tuple[bool, str, str]:
    """Whether the target accepts a message, and what it notes then."""
    epoch = message.epoch
    if not rule.any_epoch and target.newest and epoch < int(target.newest.partition("-")[0]):
        return False, target.newest, target.before
    owner = message.owner if rule.own_numbers else 1
    return accepts(target.newest, target.before, epoch, (owner << 32) + message.number)


def executed(state: State, sent: Sent, rule: Rule) -> tuple[State, bool]:
    """The target executes a delivery. Whether it has all before it."""
    target = state.target
    after, message = sent
    if rule.checks_gaps and after is not None and not has(target, after, rule):
        return state, False
    is_new, newest, before = compared(target, message, rule)
    if not is_new:
        return state, True
    known = {identity_of(one, rule) for one in target.identities}
    inbox, identities = target.inbox, target.identities
    if not rule.identities or identity_of(message, rule) not in known:
        inbox = (*inbox, message.decision)
        identities |= {message}
    changed = Target(newest, before, identities, inbox)
    return state._replace(target=changed, target_past=(*state.target_past, target)), True


def has(target: Target, message: Message, rule: Rule) -> bool:
    return not compared(target, message, rule)[0]


def is_safe(state: State, message: Message, rule: Rule) -> bool:
    """The target can't lose it any more. Who waits for that learns when the target has lost what was written before."""
    return not state.target_past and has(state.target, message, rule)


def change(state: State, source: Source) -> State:
    return state._replace(source=source, source_past=(*state.source_past, state.source))


def decide(state: State, what: str) -> State:
    source = state.source
    place = len(source.history)
    number = source.number + 1
    message = Message(source.epoch, source.owner, number, f"{place}{what}")
    history, outbox = (*source.history, message.decision), (*source.outbox, message)
    return change(state, source._replace(history=history, outbox=outbox, number=number))


def taken_over(state: State, epoch: int) -> State:
    """The source has a new owner. The former one may still send what it was about to send."""
    source = state.source
    flying = state.flying
    if len(source.outbox) > state.delivered:
        flying = (state.after, source.outbox[state.delivered])
    own = ((source.epoch, source.owner, source.number),) if source.number else ()
    source = source._replace(epoch=epoch, owner=state.owners + 1, number=0, sent=(*source.sent, *own))
    return change(state, source)._replace(owners=state.owners + 1, delivered=0, after=None, flying=flying)


def forget(state: State, rule: Rule) -> Iterator[State]:
    """The target forgets identities that the source can't lose any more."""
    source, target = state.source, state.target
    last = {(epoch, owner): number for epoch, owner, number in source.sent}
    last[source.epoch, source.owner] = source.number
    for one in target.identities:
        is_there = one.number <= last.get((one.epoch, one.owner), 0)
        if (is_there and not state.source_past) or not rule.forgets_settled_only:
            yield without(state, "forgets")._replace(target=target._replace(identities=target.identities - {one}))


def without(state: State, fault: str) -> State:
    return state._replace(left=state.left._replace(**{fault: getattr(state.left, fault) - 1}))


def by_themselves(state: State, rule: Rule) -> Iterator[State]:
    """What happens sooner or later, without anybody from outside."""
    source = state.source
    if state.delivered < len(source.outbox):
        sent = state.after, source.outbox[state.delivered]
        after, has_all = executed(state, sent, rule)
        if has_all:
            yield after._replace(delivered=state.delivered + 1, after=sent[1], flying=sent)
        else:
            yield after._replace(delivered=0, after=None)
        if state.left.lost_replies:
            yield without(after, "lost_replies")._replace(flying=sent)
    if state.delivered and (is_safe(state, source.outbox[0], rule) or not rule.keeps_until_safe):
        changed = change(state, source._replace(outbox=source.outbox[1:]))
        yield changed._replace(delivered=state.delivered - 1)
    if state.delivered and not has(state.target, source.outbox[state.delivered - 1], rule):
        yield state._replace(delivered=0, after=None)  # who waits for safety begins anew with the outbox
    if state.source_past:
        yield state._replace(source_past=())
    if state.target_past:
        yield state._replace(target_past=())
    if len(source.history) < DECISIONS:
        for what in "ab":
            yield decide(state, what)


def may_happen(state: State, rule: Rule) -> Iterator[State]:
    """What need not happen: faults, and what makes room."""
    if state.flying is not None and state.left.late:
        after, _ = executed(state, state.flying, rule)
        yield without(after, "late")._replace(flying=None)
    if state.left.handovers:
        yield without(taken_over(state, state.source.epoch + 2), "handovers")
    if state.left.source_losses:
        stale = state.flying
        if len(state.source.outbox) > state.delivered:
            stale = (state.after, state.source.outbox[state.delivered])
        for number, past in enumerate(state.source_past):
            back = state._replace(source=past, source_past=state.source_past[:number])
            for epoch in (past.epoch + 1, past.epoch + 2):
                yield without(taken_over(back, epoch), "source_losses")._replace(flying=stale)
    if state.left.target_losses:
        for number, past in enumerate(state.target_past):
            yield without(state, "target_losses")._replace(target=past, target_past=state.target_past[:number])
    if state.left.forgets:
        yield from forget(state, rule)


class Found(NamedTuple):
    twice: bool
    """There is a state in which the target has accepted a message twice."""
    lost: bool
    """There is one in which nothing happens by itself any more, and a message of the history has not arrived."""
    states: int


def all_states(rule: Rule, faults: Faults) -> Found:
    """Until something is found."""
    first = State(left=faults)
    seen, front = {first}, deque([first])
    while front:
        state = front.popleft()
        inbox = state.target.inbox
        steps = list(by_themselves(state, rule))
        twice = len(inbox) != len(set(inbox))
        lost = not steps and bool(set(state.source.history) - set(inbox))
        if twice or lost:
            return Found(twice, lost, len(seen))
        for after in (*steps, *may_happen(state, rule)):
            if after not in seen:
                seen.add(after)
                front.append(after)
    return Found(False, False, len(seen))


BOTH_LOSE = Faults(source_losses=1, target_losses=1, late=1)
FORGETS = Faults(source_losses=1, handovers=0, late=1, forgets=2)
SOURCE_LOSES = Faults(source_losses=1, handovers=1)
TARGET_LOSES = Faults(target_losses=1, handovers=1, late=1, lost_replies=1)


@pytest.mark.parametrize(
    "faults", [BOTH_LOSE, SOURCE_LOSES, TARGET_LOSES, FORGETS], ids=["both", "source", "target", "forgets"]
)
def test_each_message_that_a_surviving_history_decides_arrives_once(faults: Faults) -> None:
    found = all_states(Rule(), faults)
    assert not found.twice
    assert not found.lost
    assert found.states > 10_000


@pytest.mark.parametrize(
    ("condition", "faults"),
    [
        ("own_numbers", SOURCE_LOSES),
        ("any_epoch", SOURCE_LOSES),
        ("content", BOTH_LOSE),
        ("keeps_until_safe", TARGET_LOSES),
        ("checks_gaps", TARGET_LOSES),
    ],
)
def test_without_the_condition_a_message_is_lost(condition: str, faults: Faults) -> None:
    assert all_states(Rule()._replace(**{condition: False}), faults).lost


@pytest.mark.parametrize("condition", ["identities", "forgets_settled_only"])
def test_without_the_condition_a_message_arrives_twice(condition: str) -> None:
    assert all_states(Rule()._replace(**{condition: False}), FORGETS).twice
