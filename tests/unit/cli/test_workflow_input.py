"""From JSON to arguments, by what a workflow's daemons have registered."""

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
    ("arguments", "given", "says"),
    [
        (takes(), 1, "workflow w takes no input: leave the input out"),
        (takes("a"), UNSET, "workflow w takes (a), and there is no input (--input JSON is a)"),
        (takes("a", "b"), UNSET, "takes (a, b), and there is no input (such as --input '[…, …]')"),
        (takes("a", "b"), 1, "give an array, or an object by name"),
        (takes("a", "b"), [1], "takes (a, b), not 1 arguments"),
        (takes("a", "b"), [1, 2, 3], "not 3 arguments"),
        (takes("a", "b", required=1), {}, "takes (a, [b]): a is missing"),
        (takes("a", "b", "c", required=1), {"a": 1, "c": 3}, "b is missing"),
        (takes("apple", "b"), {"aple": 1, "b": 2}, "nothing named 'aple'; did you mean apple?"),
    ],
)
def test_what_does_not_fit_is_said(arguments: Arguments, given: Any, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        arguments.bind(given)
    assert says in str(caught.value)


def test_an_unknown_workflow_is_refused_with_the_closest_and_all_known_names() -> None:
    with pytest.raises(UnknownWorkflow) as caught:
        find_workflow("digset", KNOWN, force=False)
    assert "did you mean digest? Known: digest, invoice." in str(caught.value)


def test_without_any_workflow_the_way_to_register_one_is_said() -> None:
    with pytest.raises(UnknownWorkflow, match="streamflow daemon --app"):
        find_workflow("digest", {}, force=False)


def test_force_insists_on_an_unknown_workflow_but_not_on_a_name_that_cannot_be() -> None:
    assert find_workflow("other", KNOWN, force=True) is None
    assert find_workflow("digest", KNOWN, force=True) is KNOWN["digest"]
    with pytest.raises(InvalidName):
        find_workflow("a b", KNOWN, force=True)
