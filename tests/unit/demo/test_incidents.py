"""The twelve incidents as data: what the demo makes, what it prints, and what the operations page says of it."""

from __future__ import annotations

import io
import re
import shlex
from pathlib import Path

import click
import pytest
from rich.console import Console

from streamflow.cli import cli
from streamflow.cli.commands.demo import LEAST_RUNS, RUNS
from streamflow.demo.incidents import shop
from streamflow.demo.incidents.report import Facts, print_incidents
from streamflow.demo.incidents.stage import fixed
from streamflow.demo.incidents.twelve import DEPLOY, FIX, SINGLE, Counts, counts, incidents

OPERATIONS = Path(__file__).parents[3] / "docs" / "operations.md"


def test_there_are_as_many_runs_as_were_asked_for() -> None:
    for runs in (LEAST_RUNS, 600, 2_000, 20_000, RUNS, 1_000_000):
        assert sum(getattr(counts(runs), name) for name in Counts.__struct_fields__) + len(SINGLE) == runs
    assert counts(RUNS).stuck == counts(20_000).stuck == 212


def test_no_run_is_part_of_two_incidents() -> None:
    runs = [run for incident in incidents(counts(LEAST_RUNS), "shop.py") for run in incident.runs]
    assert len(runs) == len(set(runs))


def test_each_incident_has_at_most_two_commands_that_exist() -> None:
    found = incidents(counts(RUNS), "shop.py")
    assert [incident.number for incident in found] == list(range(1, 13))
    for incident in found:
        assert 1 <= len(incident.commands) <= 2
        for command in incident.commands:
            if command != DEPLOY:
                parse(shlex.split(command))


def parse(words: list[str]) -> None:
    """Raises `click.UsageError` for words that the command line doesn't take."""
    command = cli.get_command(click.Context(cli), words[0])
    assert command is not None
    if isinstance(command, click.Group):
        name, *words = words
        command = command.get_command(click.Context(command), words[0])
        assert command is not None, name
    command.make_context(words[0], words[1:])


def test_a_command_that_does_not_exist_is_noticed() -> None:
    with pytest.raises(click.UsageError):
        parse(["retry", "--everything"])


def test_the_two_releases_differ_in_one_line() -> None:
    source = Path(shop.__file__).read_text()
    before, after = source.splitlines(), fixed().splitlines()
    changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    assert [(FIX[0] in a, FIX[1] in b) for a, b in changed] == [(False, False), (True, True)]
    assert changed[0][0].startswith("RELEASE")
    compile(fixed(), "shop.py", "exec")


def test_what_is_printed_can_be_copied() -> None:
    """Also where the terminal is narrow: no command is broken into lines."""
    found = incidents(counts(2_000), "/tmp/streamflow-demo/shop.py")
    facts = Facts(
        redis="unix:///tmp/streamflow-demo/data/server.sock",
        namespace="incidents",
        folder="/tmp/streamflow-demo",
        app="/tmp/streamflow-demo/shop.py",
        runs=2_000,
        took_s=4.2,
        server_bytes=52_000_000,
        processes=[],
        incidents=found,
    )
    output = io.StringIO()
    print_incidents(facts, Console(file=output, width=40))
    lines = [line.strip() for line in output.getvalue().splitlines()]
    for incident in found:
        for command in incident.commands:
            assert command == DEPLOY or f"streamflow {command}" in lines
    assert "export STREAMFLOW_NAMESPACE=incidents" in lines


def test_the_operations_page_has_a_runbook_for_each() -> None:
    """With the commands of the demo, and the same parts in all."""
    text = OPERATIONS.read_text().partition("\n## Twelve incidents\n")[2].partition("\n## ")[0]
    runbooks = text.split("\n### ")[1:]
    found = incidents(counts(RUNS), "shop.py")
    assert len(runbooks) == len(found)
    for runbook, incident in zip(runbooks, found, strict=True):
        assert runbook.splitlines()[0].lower() == f"{incident.number}. {incident.title}"
        (commands,) = re.findall(r"```sh\n(.*?)```", runbook, re.DOTALL)
        assert commands.splitlines() == [
            command if command == DEPLOY else f"streamflow {command}" for command in incident.commands
        ]
        assert re.findall(r"^\*\*(\w+)\.\*\*", runbook, re.MULTILINE) == ["Seen", "Says", "Why"]
