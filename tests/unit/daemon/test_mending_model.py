"""Commits that a server loses after it has acknowledged them: in all orders of events, no run has two pasts.

The model has one run on one shard, its owner, a client, and another daemon. The server executes writes one after the
other; a failover sets it back to any earlier state, several times. In any order: the client starts the run and signals
it, the owner takes messages and commits, also without learning of it; after a loss the owner acquires the shard again
and commits again what is missing, one commit after the other, and may die between two; the other daemon may acquire the
shard first; the client sends again what it had acknowledged, before, between or behind that, or dies. All states are
gone through.

In no state has the run taken a message twice. When nothing happens by itself any more, a client that lives finds that
the run has taken all of its messages in order, and what the owner had acknowledged is the beginning of the run's
history as long as it has lived and nobody else has acquired the shard. `Rule` names the conditions; the test of each
leaves it out and expects one of these to be wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

SENT = ("start", "one", "two")
"""What the client sends: the run's start, and signals. The n-th has the number n."""


class Rule(NamedTuple):
    headers: bool = True
    """A transition is stored only behind the history that it was decided from."""
    same_owner: bool = True
    """Nothing is committed again if another daemon has acquired the shard."""
    mends_first: bool = True
    """Nothing else is decided before all that is missing is there."""
    removes_taken: bool = True
    """A commit that is made again removes what it has taken from the inbox, be it there still or again..."""
    checks_content: bool = True
    """...and nothing else that has got the same id on a server that counts anew."""
    notes_taken: bool = True
    """What comes again behind that is known by its identity."""
    numbers: bool = True
    """A client posts again only what is behind the last number that the shard has..."""
    again_first: bool = True
    """...and before anything new, whose number would hide it."""


class Faults(NamedTuple):
    losses: int = 0
    takeovers: int = 0
    """By the other daemon."""
    owner_dies: int = 0
    client_dies: int = 0
    messages: int = len(SENT)
    """That the client sends at most."""


class Server(NamedTuple):
    history: tuple[str, ...] | None = None
    """What the run has taken; None: there is no run."""
    inbox: tuple[tuple[int, str], ...] = ()
    last_id: int = 0
    number: int = 0
    """The client's last."""
    taken: frozenset[str] = frozenset()
    token: int = 0
    commits: int = 0
    """Under this token."""


class Commit(NamedTuple):
    before: tuple[str, ...]
    message: tuple[int, str]
    token: int
    number: int


class World(NamedTuple):
    server: Server
    faults: Faults
    past: tuple[Server, ...] = ()
    """States to which a failover may set the server back."""
    token: int = 0
    """The owner's; 0: it has dropped the shard."""
    tokens: tuple[int, ...] = ()
    """All that it had."""
    kept: tuple[Commit, ...] = ()
    missing: tuple[Commit, ...] = ()
    """What it has to commit again."""
    lives: bool = True
    undisturbed: bool = True
    """It lives, and no other daemon has acquired the shard."""
    acknowledged: tuple[str, ...] = ()
    """What the owner knows to be the run's history."""
    sent: int = 0
    """What the client has sent, and knows to be there."""
    in_doubt: bool = False
    """The client has to send that again."""
    client_lives: bool = True
    next_token: int = 1


def successors(world: World, rule: Rule) -> Iterator[World]:
    yield from of_client(world, rule)
    yield from of_owner(world, rule)
    yield from of_faults(world)


def wrote(world: World, server: Server, **changes: object) -> World:
    return world._replace(server=server, past=(*world.past, world.server), **changes)  # type: ignore[arg-type]


def put(server: Server, what: str) -> Server:
    last = server.last_id + 1
    return server._replace(inbox=(*server.inbox, (last, what)), last_id=last)


def of_client(world: World, rule: Rule) -> Iterator[World]:
    server = world.server
    if not world.client_lives:
        return
    if world.in_doubt:
        again = server
        if world.sent and again.history is None:
            again = put(again._replace(history=()), "start")
        for number in range(2, world.sent + 1):
            is_there = rule.numbers and number <= again.number
            if not is_there and SENT[number - 1] not in again.taken:
                again = put(again, SENT[number - 1])
            again = again._replace(number=max(again.number, number))
        yield wrote(world, again, in_doubt=False)
    if world.sent < world.faults.messages and not (world.in_doubt and rule.again_first):
        number = world.sent + 1
        if number == 1 and server.history is None:
            yield wrote(world, put(server._replace(history=()), "start"), sent=1)
        elif server.history is not None and number > server.number:
            yield wrote(world, put(server, SENT[number - 1])._replace(number=number), sent=number)


def of_owner(world: World, rule: Rule) -> Iterator[World]:
    server = world.server
    if not world.lives:
        return
    if not world.token:
        token = world.next_token
        is_ours = server.token in world.tokens
        missing = tuple(
            one
            for one in world.kept
            if (world.tokens.index(one.token), one.number)
            > (world.tokens.index(server.token) if is_ours else -1, server.commits)
        )
        if not is_ours and rule.same_owner and server.token:
            missing = ()
        yield wrote(
            world,
            server._replace(token=token, commits=0),
            token=token,
            tokens=(*world.tokens, token),
            next_token=token + 1,
            missing=missing,
            kept=world.kept if is_ours or not server.token else missing,
        )
        return
    if world.token != server.token:
        yield world._replace(token=0)  # fenced
        return
    if world.missing:
        yield mended(world, rule)
    if server.history is not None and server.inbox and not (world.missing and rule.mends_first):
        commit = Commit(server.history, server.inbox[0], world.token, server.commits + 1)
        kept = (*world.kept, commit)
        after = server._replace(
            history=(*server.history, server.inbox[0][1]), inbox=server.inbox[1:], commits=server.commits + 1
        )
        assert after.history is not None
        yield wrote(world, after, kept=kept, acknowledged=max(world.acknowledged, after.history, key=len))
        if world.faults.losses:
            for lost in set_back(wrote(world, after, kept=kept)):  # before it has learned of it
                yield lost
            for lost in set_back(world._replace(kept=kept)):  # before the server has
                yield lost


def mended(world: World, rule: Rule) -> World:
    """The first commit that is missing is made again, or refused."""
    server, (commit, *rest) = world.server, world.missing
    what = commit.message[1]
    history = server.history
    if rule.headers and (history or ()) != commit.before:
        return world._replace(missing=(), kept=tuple(one for one in world.kept if one not in world.missing))
    if history is None and commit.before:
        return world._replace(missing=(), kept=())
    inbox = server.inbox
    if rule.removes_taken:
        inbox = tuple(
            one for one in inbox if one[1] != what and not (not rule.checks_content and one[0] == commit.message[0])
        )
    again = commit._replace(token=world.token, number=server.commits + 1)
    after = server._replace(
        history=(*(history or ()), what),
        inbox=inbox,
        taken=server.taken | {what} if rule.notes_taken else server.taken,
        commits=server.commits + 1,
    )
    kept = tuple(again if one == commit else one for one in world.kept)
    return wrote(world, after, missing=tuple(rest), kept=kept)


def set_back(world: World) -> Iterator[World]:
    faults = world.faults._replace(losses=world.faults.losses - 1)
    for at in range(len(world.past)):
        yield world._replace(
            server=world.past[at],
            past=world.past[:at],
            token=0,
            missing=(),
            in_doubt=world.sent > 0,
            faults=faults,
        )


def of_faults(world: World) -> Iterator[World]:
    server, faults = world.server, world.faults
    if faults.losses:
        yield from set_back(world)
    if faults.client_dies and world.sent:
        yield world._replace(client_lives=False, in_doubt=False, faults=faults._replace(client_dies=0))
    if faults.owner_dies and world.kept:
        yield world._replace(
            lives=False,
            token=0,
            kept=(),
            missing=(),
            undisturbed=False,
            faults=faults._replace(owner_dies=0, takeovers=max(1, faults.takeovers)),
        )
    if faults.takeovers and server.token:
        yield wrote(
            world,
            server._replace(token=world.next_token, commits=0),
            next_token=world.next_token + 1,
            undisturbed=False,
            faults=faults._replace(takeovers=faults.takeovers - 1),
        )
    if server.token and server.token not in world.tokens and server.inbox and server.history is not None:
        yield wrote(
            world,
            server._replace(
                history=(*server.history, server.inbox[0][1]), inbox=server.inbox[1:], commits=server.commits + 1
            ),
        )


def is_at_rest(world: World) -> bool:
    """Nothing happens by itself any more."""
    server = world.server
    has_owner = bool(world.token and world.token == server.token) or (
        bool(server.token) and server.token not in world.tokens
    )
    return has_owner and not (server.inbox or world.missing or world.in_doubt)


def wrong(faults: Faults, rule: Rule) -> str:
    """What is wrong in some state; empty if nothing is in any."""
    first = World(Server(), faults)
    seen, left = {first}, [first]
    while left:
        world = left.pop()
        history = world.server.history
        if history and len(set(history)) < len(history):
            return f"taken twice: {history}"
        if is_at_rest(world):
            if world.client_lives and (history or ()) != SENT[: world.sent]:
                return f"the client has sent {SENT[: world.sent]}, and the run has {history}"
            if world.undisturbed and (history or ())[: len(world.acknowledged)] != world.acknowledged:
                return f"the owner had acknowledged {world.acknowledged}, and the run has {history}"
        for following in successors(world, rule):
            if following not in seen:
                seen.add(following)
                left.append(following)
    return ""


@pytest.mark.parametrize(
    "faults",
    [
        Faults(losses=2, messages=2),
        Faults(losses=1, client_dies=1),
        Faults(losses=1, owner_dies=1),
        Faults(losses=1, takeovers=1, messages=2),
        Faults(losses=1, takeovers=1, client_dies=1, messages=2),
    ],
    ids=str,
)
def test_in_all_orders_of_events_nothing_is_lost_or_taken_twice(faults: Faults) -> None:
    assert wrong(faults, Rule()) == ""


@pytest.mark.parametrize(
    ("faults", "rule"),
    [
        (Faults(losses=1, takeovers=1), Rule(headers=False, same_owner=False)),
        (Faults(losses=1), Rule(mends_first=False, headers=False)),
        (Faults(losses=1, client_dies=1), Rule(mends_first=False)),
        (Faults(losses=1), Rule(removes_taken=False)),
        (Faults(losses=1), Rule(checks_content=False)),
        (Faults(losses=1), Rule(notes_taken=False)),
        (Faults(losses=1), Rule(numbers=False)),
        (Faults(losses=1), Rule(again_first=False)),
    ],
    ids=str,
)
def test_each_condition_is_needed(faults: Faults, rule: Rule) -> None:
    assert wrong(faults, rule)
