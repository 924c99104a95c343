"""From JSON to arguments, by the parameters that daemons have registered."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import UNSET

from streamflow.cli.workflow_input import Arguments, find_workflow
from streamflow.client.listing import WorkflowInfo
from streamflow.errors import InvalidName, UnknownWorkflow, UsageError

KNOWN = {"digest": WorkflowInfo(params=["urls"]), "invoice": WorkflowInfo()}


def takes(*names: str, required: int | None = None, kind: str = "workflow") -> Arguments:
    return Arguments("w", WorkflowInfo(kind=kind, params=list(names), required=required))


@pytest.mark.parametrize(
    ("arguments", "given", "bound"),
    [
        (takes(), UNSET, []),
        (takes(), None, []),
        (takes("a"), 1, [1]),
        (takes("a"), None, [None]),
        (takes("a"), [1, 2], [[1, 2]]),
        (takes("a"), {"a": 1}, [{"a": 1}]),
        (takes("a", required=0), UNSET, []),
        (takes("input", kind="reducer"), UNSET, []),
        (takes("a", "b"), [1, 2], [1, 2]),
        (takes("a", "b"), {"b": 2, "a": 1}, [1, 2]),
        (takes("a", "b", required=1), [1], [1]),
        (takes("a", "b", required=1), {"a": 1}, [1]),
        (takes("a", "b", required=0), UNSET, []),
        (Arguments("w", None), UNSET, []),
        (Arguments("w", None), [1, 2], [1, 2]),
        (Arguments("w", None), {"a": 1}, [{"a": 1}]),
    ],
)
def test_json_becomes_arguments(arguments: Arguments, given: Any, bound: list[Any]) -> None:
    assert arguments.bind(given) == bound


@pytest.mark.parametrize(
    ("arguments", "given", "message"),
    [
        (takes(), 1, "workflow w takes no input: leave it out"),
        (
            takes("a"),
            UNSET,
            "workflow w takes (a), but no input was given: the input must be the value of 'a', as JSON",
        ),
        (takes("a", "b"), UNSET, "takes (a, b), but no input was given: the input must be an array such as […, …]"),
        (takes("a", "b"), 1, "the input must be an array such as […, …], or an object by name"),
        (takes("a", "b"), [1], "takes (a, b), got 1 argument:"),
        (takes("a", "b"), [1, 2, 3], "got 3 arguments:"),
        (takes("a", "b", required=1), {}, "takes (a, [b]), missing: a"),
        (takes("a", "b", "c", required=1), {"a": 1, "c": 3}, "missing: b"),
        (takes("apple", "b"), {"aple": 1, "b": 2}, "got an unknown argument 'aple'; did you mean apple?"),
    ],
)
def test_input_that_does_not_match_is_explained(arguments: Arguments, given: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        arguments.bind(given)
    assert message in str(caught.value)


def test_an_unknown_workflow_is_refused_with_the_known_names() -> None:
    with pytest.raises(UnknownWorkflow) as caught:
        find_workflow("digset", KNOWN, force=False)
    assert "did you mean digest? Known workflows: digest, invoice." in str(caught.value)


def test_without_any_workflow_the_error_says_how_to_register_one() -> None:
    with pytest.raises(UnknownWorkflow, match="streamflow daemon --app"):
        find_workflow("digest", {}, force=False)


def test_force_accepts_an_unknown_workflow_but_not_an_invalid_name() -> None:
    assert find_workflow("other", KNOWN, force=True) is None
    assert find_workflow("digest", KNOWN, force=True) is KNOWN["digest"]
    with pytest.raises(InvalidName):
        find_workflow("a b", KNOWN, force=True)


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (takes(), ("", "")),
        (takes("a", required=0), ("", "")),
        (takes("input", kind="reducer"), ("", "")),
        (takes("a"), (" --input '…'", " (the value of 'a', as JSON)")),
        (takes("a", "b"), (" --input '[…, …]'", " (a, b, as JSON)")),
        (takes("a", "b", required=1), (" --input '[…]'", " (a, as JSON)")),
    ],
)
def test_the_option_to_fill_in_has_a_place_for_each_value(arguments: Arguments, shown: tuple[str, str]) -> None:
    assert arguments.option() == shown


@pytest.mark.parametrize(("kind", "expected"), [("reducer", True), ("workflow", False), (None, False)])
def test_what_is_only_for_workflows_is_known_from_what_daemons_say(kind: str | None, expected: bool) -> None:
    info = None if kind is None else WorkflowInfo(kind=kind, params=["state"], required=1)
    assert Arguments("w", info).is_reducer is expected
