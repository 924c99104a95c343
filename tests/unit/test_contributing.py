"""CONTRIBUTING.md and SECURITY.md name only what is there: files, functions, make targets, and searches that find."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
CONTRIBUTING = PAGES[0].read_text()
ROUTES = re.findall(
    r"^\*\*(?P<question>[^*]+\?)\*\* .*?`git grep (?P<search>[^\n]*)`\.\n\n(?P<files>.*?)\n\n",
    CONTRIBUTING,
    re.MULTILINE | re.DOTALL,
)


def defined(tree: ast.Module) -> set[str]:
    """Names of a module as CONTRIBUTING.md writes them: `function`, `CONSTANT`, `Class`, `Class.method`."""
    names: set[str] = set()
    for node in tree.body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                names.add(node.name)
            case ast.ClassDef():
                names.add(node.name)
                methods = (part for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef))
                names.update(f"{node.name}.{method.name}" for method in methods)
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
            case _:
                pass
    return names


def test_there_are_five_routes_of_at_most_three_files() -> None:
    assert len(ROUTES) == 5
    for _, _, files in ROUTES:
        assert 1 <= len(re.findall(r"^\d\. ", files, re.MULTILINE)) <= 3


@pytest.mark.parametrize(("search", "files"), [pytest.param(*route[1:], id=route[0]) for route in ROUTES])
def test_the_search_finds_the_first_file_of_its_route(search: str, files: str) -> None:
    command = ["grep", "-r", "--include=*.py", *shlex.split(search)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=30).stdout
    first = re.findall(r"^1\. `([^`]+)`", files)[0]
    assert first in {line.partition(":")[0] for line in found.splitlines()}


@pytest.mark.parametrize("files", [pytest.param(route[2], id=route[0]) for route in ROUTES])
def test_each_stop_of_a_route_names_functions_of_its_file(files: str) -> None:
    for stop in re.split(r"^\d\. ", files, flags=re.MULTILINE)[1:]:
        file, *names = re.findall(r"`([\w./]+)`", stop)
        known = defined(ast.parse((ROOT / file).read_text()))
        named = {name for name in names if "." in name} | {names[0]}
        assert named <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_and_link_leads_somewhere(page: Path) -> None:
    text = page.read_text()
    paths = re.findall(r"`((?:streamflow|tests|docs|lua|bench|examples)/[\w./-]*)`", text)
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [path for path in [*paths, *links] if not (ROOT / path).exists()] == []


def test_every_target_that_is_named_is_in_the_makefile_and_is_explained() -> None:
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", CONTRIBUTING, re.MULTILINE))
    explained = set(re.findall(r"^([a-z-]+):.* ## \S", (ROOT / "Makefile").read_text(), re.MULTILINE))
    phony = set(re.findall(r"^\.PHONY: ([a-z-]+)$", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert named <= explained == phony
