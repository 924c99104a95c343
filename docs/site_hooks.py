"""Brings files from outside `docs/` into the site: MkDocs loads this module (see `hooks` in mkdocs.yml).

A page may link to any file of the repository with an ordinary relative link, which works on a forge as it is. For the
site each such file becomes a page below `repository/`: Markdown as it is, anything else as a block of code. The links
are rewritten, so `mkdocs build --strict` finds the broken ones.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
DOCS = "docs"
PREFIX = "repository"

_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#|/)([^)\s#]+)")
_FENCE = re.compile(r"^( *)(```+|~~~+).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
_LANGUAGES = {".lua": "lua", ".py": "python", ".toml": "toml", ".yaml": "yaml", ".yml": "yaml"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for every file outside `docs/` that a page links to, also through another such file."""
    queue = [(f"{DOCS}/{file.src_uri}", file.content_string) for file in files.documentation_pages()]
    while queue:
        source, text = queue.pop()
        for target in _outside(source, text):
            if files.get_file_from_path(_page_uri(target)) is None:
                page = _page_text(target)
                files.append(File.generated(config, _page_uri(target), content=_rewrite(target, page)))
                queue.append((target, page))
    return files


def on_page_markdown(markdown: str, *, page: object, config: MkDocsConfig, files: Files) -> str:
    uri: str = page.file.src_uri  # type: ignore[attr-defined]
    return markdown if uri.startswith(f"{PREFIX}/") else _rewrite(f"{DOCS}/{uri}", markdown)


def _outside(source: str, text: str) -> list[str]:
    """The files of the repository outside `docs/` that a text links to."""
    found: list[str] = []

    def collect(link: str) -> str:
        target = _target(source, link)
        if not target.startswith(f"{DOCS}/") and (ROOT / target).is_file():
            found.append(target)
        return link

    _map_links(text, collect)
    return found


def _rewrite(source: str, text: str) -> str:
    """The text with its links as they are on the site. What leads nowhere stays, for MkDocs to complain about."""
    here = posixpath.dirname(_site_uri(source))

    def replace(link: str) -> str:
        target = _target(source, link)
        if not (ROOT / target).is_file():
            return link
        return posixpath.relpath(_site_uri(target), here or ".")

    return _map_links(text, replace)


def _map_links(text: str, change: Callable[[str], str]) -> str:
    """Every relative link changed, none in a block of code."""
    parts: list[str] = []
    end = 0
    for fence in _FENCE.finditer(text):
        parts += [_LINK.sub(lambda match: change(match[1]), text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, _LINK.sub(lambda match: change(match[1]), text[end:])])


def _target(source: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def _site_uri(path: str) -> str:
    return path.removeprefix(f"{DOCS}/") if path.startswith(f"{DOCS}/") else _page_uri(path)


def _page_uri(path: str) -> str:
    return f"{PREFIX}/{path}" if path.endswith(".md") else f"{PREFIX}/{path}.md"


def _page_text(path: str) -> str:
    text = (ROOT / path).read_text()
    if path.endswith(".md"):
        return text
    language = _LANGUAGES.get(Path(path).suffix, "text")
    return f"---\nhide: [toc]\n---\n\n# {path}\n\n```{language}\n{text.rstrip()}\n```\n"
