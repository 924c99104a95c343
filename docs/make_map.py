"""Writes the map of the rooms into the architecture page, from the first sentences of the modules' docstrings.

    python docs/make_map.py

`tests/unit/test_docs.py` fails when the page and the docstrings differ.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "internals" / "architecture.md"
BEGIN, END = "<!-- map: python docs/make_map.py -->\n", "<!-- end of map -->"

ROOMS = (
    "testing",
    "cli",
    "cli/commands",
    "demo",
    "demo/incidents",
    "embedded",
    "screen",
    "screen/panels",
    "status",
    "actions",
    "sinks",
    "sinks/targets",
    "triggers",
    "client",
    "worker",
    "daemon",
    "watch",
    "http",
    "steps",
    "tracing",
    "archive",
    "store",
    "views",
    "machine",
    "workflow",
    "model",
)
"""Top to bottom, as imports run; a room that is missing here fails the test."""


def rendered_map() -> str:
    """The section between the markers."""
    package = ROOT / "streamflow"
    parts = [_section("`streamflow/`", "", sorted(package.glob("*.py")))]
    for room in ROOMS:
        files = [file for file in sorted((package / room).glob("*.py")) if file.name != "__init__.py"]
        parts.append(_section(f"`streamflow/{room}/`", _docstring(package / room / "__init__.py"), files))
    return "\n".join(parts)


def _section(title: str, text: str, files: list[Path]) -> str:
    lines = [f"### {title}", ""]
    if text:
        lines += [text.partition("\n\n")[0], ""]
    if files:
        lines += ["| file | owns |", "| --- | --- |"]
        lines += [f"| `{file.name}` | {_first_sentence(file)} |" for file in files]
        lines.append("")
    return "\n".join(lines)


def _docstring(file: Path) -> str:
    text = ast.get_docstring(ast.parse(file.read_text()))
    if not text:
        raise ValueError(f"{file.relative_to(ROOT)} has no docstring: its first sentence is its line on the map")
    return text


def _first_sentence(file: Path) -> str:
    paragraph = " ".join(_docstring(file).split("\n\n")[0].split())
    return paragraph.partition(". ")[0].removesuffix(".")


def page_with_map() -> str:
    """The whole architecture page as it should be."""
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{rendered_map()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page_with_map())
