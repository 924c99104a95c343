"""Which run is meant by the id that a command was given: the run with that id, or the only one whose id begins so.

Owns: what is said when that is several runs, or can't be known. Must not: search by itself (`client/listing.py` does).
Called by: all commands that take a run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from streamflow.errors import RunNotFound, UsageError
from streamflow.text import plural

if TYPE_CHECKING:
    from streamflow.client.client import Client

MAX_NAMED = 5
"""Runs that the error names."""

_LAST_WORD = re.compile("[A-Za-z0-9]*$")
_REST_OF_WORD = re.compile("[A-Za-z0-9]*")
_NUMBERED = re.compile("([A-Za-z]*)[0-9]+")


async def find_run(client: Client, text: str, *, acts: bool = False) -> str:
    """The id of the run that is meant by `text`. If that is the beginning of an id, stderr says of which.

    Raises `RunNotFound` if no run is found, and `UsageError` with up to five ids if it isn't certain which one is
    meant. A command that `acts` on the run doesn't take what may be the whole id of a run that is gone: `order-1` for
    `order-17`, or a run's id for its only child.
    """
    found = await client.find(text)
    if found.ids == [text]:
        return text
    looked_at = "" if found.is_certain else f"{found.looked_at:,} of {plural(found.total, 'run')} were looked at"
    if not found.ids:
        known = f"there is no run {text} in this namespace (or it was forgotten after it ended)"
        raise RunNotFound(f"{known}, nor one whose id begins so; {looked_at}" if looked_at else known, text)
    return the_only(text, found.ids, looked_at, acts=acts)


def the_only(text: str, ids: Sequence[str], looked_at: str = "", *, acts: bool = False) -> str:
    """The only one of the `ids`, which begin with `text`; stderr says which it is. `looked_at` says how many were
    compared, if there may be others. Raises `UsageError`, as `find_run`."""
    named = ", ".join(ids[:MAX_NAMED])
    if len(ids) > 1:
        more = ", and there are more" if len(ids) > MAX_NAMED or looked_at else ""
        raise UsageError(f"there is no run {text}, and several whose ids begin so: {named}{more}. Give more of the id")
    if looked_at:
        raise UsageError(
            f"there is no run {text}, but {named}, and perhaps others whose ids begin so: {looked_at}. "
            "Give the whole id"
        )
    if acts and may_be_whole(text, named):
        raise UsageError(
            f"there is no run {text}, and it isn't taken for the beginning of {named}, because it may be the whole id "
            "of a run that is gone. Give more of the id"
        )
    click.echo(f"{text} is run {named}", err=True)
    return named


def may_be_whole(text: str, run_id: str) -> bool:
    """Whether the beginning `text` of `run_id` may be the id of another run: it ends where a word of it ends (`order-7`
    of `order-7.1~k2xq5f7ahn4sw`), or in front of or within a number that may count runs (`order-1` of `order-17`,
    `job` of `job2`). What ends within a word, or within the letters and digits of a random id, may not."""
    found, rest = _LAST_WORD.search(text), _REST_OF_WORD.match(run_id.removeprefix(text))
    word, ending = found[0] if found else "", rest[0] if rest else ""
    if not word or not ending:
        return bool(word)
    numbered = _NUMBERED.fullmatch(word + ending)
    return numbered is not None and len(word) >= len(numbered[1])
