"""Prepares docstrings for the API reference: a Griffe extension (see `extensions` in mkdocs.yml).

Docstrings show examples with `>>>`, which Markdown would take for quotations: here they become blocks of code. Structs
and enums have no constructor that a static analysis sees: here their fields become the first block of their docstring.
What a module owns and must not do is for those who change it, not for those who use it.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^>>> .*(?:\n(?:>>>|\.\.\.).*)*", re.MULTILINE)
_OWNS = re.compile(r"\n\nOwns: .*?(?=\n\n|\Z)", re.DOTALL)
_STRUCTS = {"Struct", "HistoryEvent"}
_ENUMS = {"Enum", "StrEnum"}
_LINE = 88


class ReadableDocstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = _EXAMPLE.sub(_fenced, obj.docstring.value)
            if obj.is_module:
                obj.docstring.value = _OWNS.sub("", obj.docstring.value)

    def on_class(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        bases = {str(base).rpartition(".")[2] for base in cls.bases}
        if bases & _STRUCTS:
            block = _constructor(cls)
        elif bases & _ENUMS:
            block = "\n".join(f"{cls.name}.{field.name} = {field.value}" for field in _fields(cls))
        else:
            return
        text = f"```python\n{block}\n```"
        if cls.docstring is None:
            cls.docstring = griffe.Docstring(text, parent=cls)
        else:
            cls.docstring.value = f"{text}\n\n{cls.docstring.value}"


def _fields(cls: griffe.Class) -> list[griffe.Attribute]:
    return [field for field in cls.members.values() if isinstance(field, griffe.Attribute)]


def _constructor(cls: griffe.Class) -> str:
    """`Name(field: type = default, …)`, on one line if it is short enough, else one line per field."""
    parts = [
        f"{field.name}: {field.annotation}" + ("" if field.value is None else f" = {field.value}")
        for field in _fields(cls)
        if field.annotation is not None and "ClassVar" not in str(field.annotation)
    ]
    line = f"{cls.name}({', '.join(parts)})"
    return line if len(line) <= _LINE else f"{cls.name}(\n" + "".join(f"    {part},\n" for part in parts) + ")"


def _fenced(example: re.Match[str]) -> str:
    lines = [re.sub(r"^(?:>>>|\.\.\.) ?", "", line) for line in example[0].split("\n")]
    return "\n".join(["```python", *lines, "```"])
