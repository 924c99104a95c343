"""The documents are checked against the code: what they name exists, what they show runs."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import importlib
import inspect
import re
from collections.abc import AsyncGenerator
from itertools import chain
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, cast

import msgspec
import pytest

import streamflow as sf
import streamflow.testing as sft
from docs.make_map import ROOMS, page_with_map
from streamflow import actions, cli, sinks, triggers
from streamflow.daemon.daemon import Daemon
from streamflow.embedded.server import EmbeddedServer
from streamflow.settings import Settings
from streamflow.store.keys import NamespaceKeys, QueueKeys, ShardKeys
from streamflow.store.scripts import load_scripts
from streamflow.views.registry import VIEWS
from streamflow.worker.worker import Worker

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("*/README.md")), *DOCS]
ARCHITECTURE = "docs/internals/architecture.md"
KEYS = "docs/internals/keys.md"
COMMANDS = (
    "python3 -m venv .venv && .venv/bin/pip install -q -e '.[embedded]' && .venv/bin/streamflow demo",
    "python3 -m venv .venv && .venv/bin/pip install -q -e '.[test]' && .venv/bin/pytest",
)


GLOSSARY = """
    agenda, answer, at least once, attempt, attributes, cancel, checkpoint, child, claim, commit, compensation,
    considered dead, continue as new, daemon, dead-lettered, decision, details, divergence, epoch, event, evicted,
    fact, fenced, forget, generation, hand-over, header, heartbeat, history, idempotency key, inbox, incarnation,
    kernel, leader, log, namespace, notification, outbox, outcome, owner, parked, partition, patch, payload,
    published value, quarantined, question, queue, record, reducer, relay, replay, revoked, rollup, run, saga,
    sandbox, shard, shield, signal, snapshot, step, sweep, takeover, tenant, terminate, token, transition, verb,
    version, view, worker, workflow
"""
"""Terms that the other pages, logs and help texts use as known."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def text_of(name: str) -> str:
    return (ROOT / name).read_text()


def rows(name: str, columns: int) -> list[list[str]]:
    """The cells of all table rows with that many columns, without headings and rulers."""
    found: list[list[str]] = []
    for line in text_of(name).splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if len(cells) == columns and not set(cells[0]) <= {"-", " "}:
            found.append(cells)
    return found


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def section(name: str, heading: str) -> str:
    """The text below a heading (`## Views`), up to the next one of the same or a higher level."""
    level = heading.partition(" ")[0]
    below = text_of(name).partition(f"\n{heading}\n")[2]
    assert below, f"{name} has no {heading}"
    return re.split(rf"^#{{2,{len(level)}}} ", below, maxsplit=1, flags=re.MULTILINE)[0]


def commands(text: str) -> list[str]:
    """Its blocks of shell commands."""
    return re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


# --- links ------------------------------------------------------------------------------------------------------------


def links(page: Path) -> list[str]:
    """The targets of a page's relative links and images, without those in blocks of code."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in link]


def anchors(page: Path) -> set[str]:
    """What `#…` may follow a link to the page: its headings, as forges and the site spell them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.is_file(), f"{name_of(page)} links to {link}"
        assert not anchor or anchor in anchors(target), f"{name_of(page)} links to {link}: no such heading"


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached: set[Path] = set()
    ahead = [README]
    while ahead:
        page = ahead.pop()
        reached.add(page)
        for link in links(page):
            target = (page.parent / link.partition("#")[0]).resolve()
            if target.suffix == ".md" and target not in reached:
                ahead.append(target)
    assert reached >= set(DOCS)


def test_the_navigation_of_the_site_names_pages_that_exist() -> None:
    navigation = text_of("mkdocs.yml").partition("\nnav:\n")[2]
    named = re.findall(r": (\S+\.md)$", navigation, re.MULTILINE)
    for name in named:
        outside = name.removeprefix("repository/")  # a page that docs/site_hooks.py makes of a file outside docs/
        assert (ROOT / (f"docs/{name}" if outside == name else outside)).is_file(), name
    pages = {str(page.relative_to(ROOT / "docs")) for page in DOCS}
    assert {page for page in pages if not page.startswith("decisions/0")} <= set(named)


# --- shape ------------------------------------------------------------------------------------------------------------


def test_the_readme_is_short_and_begins_with_code() -> None:
    lines = text_of("README.md").splitlines()
    assert len(lines) <= 120
    assert lines.index("```python") < 25


def test_the_glossary_defines_every_term_once_in_order() -> None:
    terms = re.findall(r"^## (.+)$", text_of("docs/glossary.md"), re.MULTILINE)
    assert set(terms) >= {" ".join(term.split()) for term in GLOSSARY.split(",")}
    assert terms == sorted(set(terms))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_lines_are_at_most_120_wide(page: Path) -> None:
    for number, line in enumerate(page.read_text().splitlines(), 1):
        assert len(line) <= 120 or line.startswith("|"), f"{name_of(page)}:{number}"


def test_decisions_are_numbered_and_listed_in_order() -> None:
    pages = sorted(page.name for page in (ROOT / "docs/decisions").glob("0*.md"))
    assert [page[:4] for page in pages] == [f"{number:04}" for number in range(1, len(pages) + 1)]
    assert re.findall(r"\((0\d{3}-[a-z-]+\.md)\)", text_of("docs/decisions/README.md")) == pages
    for page in pages:
        text = text_of(f"docs/decisions/{page}")
        assert text.startswith(f"# {int(page[:4])}. ")
        for part in ("**Context.**", "**Choice.**", "**Why.**", "**Consequences.**"):
            assert part in text, f"{page} has no {part}"


# --- names ------------------------------------------------------------------------------------------------------------


def test_the_keys_are_those_of_the_code() -> None:
    shard = ShardKeys("<ns>", cast("int", "<shard>"))
    namespace = NamespaceKeys("<ns>")
    queue = QueueKeys("<ns>", "<queue>", cast("int", "<shard>"))
    strings = chain(
        (getattr(queue, name) for name in QueueKeys.__slots__),
        (getattr(shard, name) for name in ShardKeys.__slots__ if name not in {"number", "prefix", "run_prefix"}),
        (value for name, value in vars(namespace).items() if name not in {"namespace", "prefix", "_shards", "_queues"}),
        (shard.run("<id>"), shard.index("<status>", "<workflow>"), shard.tenant("<tenant>"), namespace.view("<name>")),
        (namespace.suspects("<member>"), namespace.consumers("<group>"), shard.app_view("<name>")),
        (shard.attribute("<name>", "<value>"), shard.published("<id>"), shard.chunks("<id>")),
        (shard.answer("<ask>"), shard.known("<digest>"), shard.bucket("<bucket>")),
    )
    assert set(re.findall(r"^\| `(sf:[^`]+)` \|", text_of(KEYS), re.MULTILINE)) == set(strings)


def test_the_views_are_those_of_the_registry() -> None:
    paragraph = next(text for text in text_of(KEYS).split("\n\n") if text.startswith("**view** "))
    unfolded = {"oldest", "attention", "sizes"}
    assert set(re.findall(r"`([a-z_]+)`", paragraph)) == {view.name for view in VIEWS} | unfolded


def test_every_verb_is_in_the_architecture() -> None:
    verbs = [cells[0].strip("`") for cells in rows(ARCHITECTURE, 2) if cells[0].strip("`") in load_scripts()]
    assert sorted(verbs) == sorted(load_scripts())


def test_the_map_is_made_from_the_docstrings_of_the_modules() -> None:
    assert page_with_map() == text_of(ARCHITECTURE), "run `python docs/make_map.py`"


def test_every_room_is_on_the_map() -> None:
    rooms = {str(init.parent.relative_to(ROOT / "streamflow")) for init in (ROOT / "streamflow").rglob("__init__.py")}
    assert rooms - {"."} == set(ROOMS)


def test_the_path_of_a_run_and_the_loops_name_functions_that_exist() -> None:
    path = [cells for cells in rows(ARCHITECTURE, 3) if cells[0].isdigit()]
    assert 1 <= len(path) <= 7
    for _, function, file in path:
        assert _resolves(function.strip("`"), [file.strip("`")]), f"{function} is not in {file}"
    modules = [
        str(file.relative_to(ROOT))
        for room in ("daemon", "worker")
        for file in (ROOT / "streamflow" / room).glob("*.py")
    ]
    loops = [cells for cells in rows(ARCHITECTURE, 3) if cells[0].startswith("`") and ".run" in cells[0]]
    assert loops
    for loop, once, _ in loops:
        for function in (loop, once.partition(":")[0]):
            assert _resolves(function.strip("`"), modules), f"{function} is nowhere in daemon/ or worker/"


def _resolves(function: str, files: list[str]) -> bool:
    owner, _, method = function.partition(".")
    for file in files:
        module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
        if callable(getattr(getattr(module, owner, None), method, None)):
            return True
    return False


def test_the_tests_that_are_said_to_show_something_exist() -> None:
    named = re.findall(r"`(tests/[a-z_/]+\.py)(?:::(test_[a-z0-9_]+))?`", "".join(page.read_text() for page in PAGES))
    assert len(named) > 15
    for file, test in named:
        assert f"def {test}" in text_of(file), f"{file}::{test}"


def test_the_table_of_settings_is_the_struct() -> None:
    documented = {cells[0].strip("`"): cells[1].strip("`") for cells in rows("docs/operations.md", 3)}
    for field in msgspec.structs.fields(Settings):
        assert documented.get(field.name) == str(field.default), field.name


def test_the_messages_that_operations_explains_are_those_of_the_code() -> None:
    spoken = "\n".join(
        node.value
        for file in (ROOT / "streamflow").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    section = text_of("docs/operations.md").partition("\n## What messages mean")[2].partition("\n## ")[0]
    messages = re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)
    assert len(messages) > 10
    for message in messages:
        for part in message.split("…"):  # what stands between the values
            assert part.strip() in spoken, f"nothing says {message!r}"


def test_every_runbook_has_the_same_five_parts() -> None:
    """Which alerts lead to them: `http/test_deploy.py`."""
    text = section("docs/operations.md", "## Alerts, and what to do")
    books = dict(re.findall(r"^### (.*?)\n(.*?)(?=^### |\Z)", text, re.MULTILINE | re.DOTALL))
    assert len(books) > 20
    for name, book in books.items():
        assert re.fullmatch(r"[a-z-]+", name), "the anchor that alerts link to"
        parts = re.findall(r"^\*\*(\w+)\.\*\*", book, re.MULTILINE)
        assert parts == ["Alerts", "Symptoms", "Meaning", "Look", "Do"], name
        assert len(commands(book)) == 1, f"{name}: what to look at is one block of commands"


def test_the_worksheet_is_worked_through_correctly() -> None:
    cells = rows("docs/operations.md", 4)
    values = {
        symbol.strip("`"): float(example.strip("`"))
        for symbol, _, _, example in cells
        if re.fullmatch(r"`[A-Za-z]`", symbol)
    }
    assert len(values) == 11
    formulas = [
        row for row in rows("docs/operations.md", 3) if re.fullmatch(r"`[\w .*+/()]+`", row[1]) and "1e6" in row[1]
    ]
    formulas += [row for row in rows("docs/operations.md", 3) if row[1].endswith("/ 1000`")]
    assert len(formulas) == 9
    for what, formula, example in formulas:
        assert eval(formula.strip("`"), {}, values) == pytest.approx(float(example), rel=0.02), what


def test_every_command_is_in_the_guide_and_no_other() -> None:
    calls = [cells[0].strip("`") for cells in rows("docs/guide/command-line.md", 2)[1:]]
    assert {re.split(r"[ `]", call)[0] for call in calls} == {name for names in cli.SECTIONS.values() for name in names}
    assert sorted(set(calls)) == sorted(calls), "one row each"


def test_public_names_in_pages_are_exported() -> None:
    for page in PAGES:
        for name in re.findall(r"\bsf\.([A-Za-z_]\w*)", page.read_text()):
            assert name in sf.__all__, f"{name_of(page)} names sf.{name}"


def test_every_public_name_is_in_the_api_reference() -> None:
    listed = set(re.findall(r"^::: (\S+)$", text_of("docs/api.md"), re.MULTILINE))
    whole = {"streamflow.errors", "streamflow.events", "streamflow.logs"}  # every public name of these modules
    assert whole <= listed
    errors = {name for name in sf.__all__ if getattr(getattr(sf, name), "__module__", "") == "streamflow.errors"}
    public = {f"streamflow.{name}" for name in set(sf.__all__) - errors - {"__version__", "triggers"}}
    public |= {f"streamflow.testing.{name}" for name in sft.__all__}
    public |= {f"streamflow.actions.{name}" for name in actions.__all__}
    public |= {f"streamflow.sinks.{name}" for name in sinks.__all__}
    public |= {f"streamflow.triggers.{name}" for name in triggers.__all__}
    assert listed == public | whole


# --- code -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_python_block_compiles_and_can_be_imported(page: Path) -> None:
    for number, block in enumerate(blocks(page, "python")):
        _module(f"{page.stem}_{number}", block)


def _module(name: str, source: str) -> ModuleType:
    """The module that a block makes. One that awaits at its top level is only compiled."""
    module = ModuleType(name.replace("-", "_"))
    code = _compiled(name, source)
    if not code.co_flags & inspect.CO_COROUTINE:
        exec(code, vars(module))
    return module


def _compiled(name: str, source: str) -> CodeType:
    return compile(source, f"<{name}>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


def test_the_tests_in_the_testing_guide_pass() -> None:
    ran = 0
    for number, block in enumerate(blocks(ROOT / "docs/guide/testing.md", "python")):
        module = _module(f"testing_{number}", block)
        for name, function in vars(module).items():
            if name.startswith("test_") and not inspect.signature(function).parameters:
                outcome = function()
                if inspect.iscoroutine(outcome):
                    asyncio.run(outcome)
                ran += 1
    assert ran == 5


def test_the_readme_has_the_two_commands() -> None:
    shown = [line for block in blocks(README, "sh") for line in block.splitlines()]
    for command in COMMANDS:
        assert command in shown


def test_the_first_workflow_is_short() -> None:
    source = blocks(README, "python")[0]
    assert len([line for line in source.splitlines() if line.strip()]) <= 20
    assert ast.parse(source)


@contextlib.asynccontextmanager
async def _serving(daemon: Daemon) -> AsyncGenerator[None]:
    task = asyncio.create_task(daemon.run())
    ready = asyncio.create_task(daemon.ready.wait())
    try:
        await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
        assert not task.done(), task.exception()
        yield
    finally:
        ready.cancel()
        daemon.stop()
        await task


@pytest.mark.anyio
async def test_the_guides_steps_of_queues_run(embedded_server: EmbeddedServer, namespace: str) -> None:
    flows = _module("queues", blocks(ROOT / "docs/guide/queues.md", "python")[0])
    settings = Settings(redis=embedded_server.url, namespace=namespace, shards=4)
    worker = Worker(flows.app, settings, ["gpu", "cpu"])
    async with _serving(Daemon(flows.app, settings)), sf.connect(embedded_server.url, namespace=namespace) as client:
        working = asyncio.create_task(worker.run())
        assert await (await client.start(flows.index, ["one", "two"])).result(timeout=20) == 2
        worker.stop()
        await working


@pytest.mark.anyio
async def test_the_readmes_workflow_and_client_run(
    embedded_server: EmbeddedServer, namespace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, client = blocks(README, "python")
    flows = _module("flows", source)
    url = '"redis://127.0.0.1:6379"'
    assert url in client
    there = f'"{embedded_server.url}", namespace="{namespace}"'
    expected = client.rpartition("  # ")[2].strip()
    daemon = Daemon(flows.app, Settings(redis=embedded_server.url, namespace=namespace, shards=4))
    async with _serving(daemon):
        await eval(_compiled("client", client.replace(url, there)), vars(flows))
    assert capsys.readouterr().out.strip() == expected


@pytest.mark.anyio
async def test_the_workflow_of_getting_started_runs(embedded_server: EmbeddedServer, namespace: str) -> None:
    page = ROOT / "docs/getting-started.md"
    flows = _module("flows", blocks(page, "python")[0])
    commands = [line for block in blocks(page, "sh") for line in block.splitlines() if " enqueue " in line]
    match = re.fullmatch(r".*streamflow enqueue (\w+) --id ([\w-]+) --input '(.*)'", commands[0])
    assert match is not None
    workflow, run_id, text = match.groups()
    daemon = Daemon(flows.app, Settings(redis=embedded_server.url, namespace=namespace, shards=4))
    async with _serving(daemon), sf.connect(embedded_server.url, namespace=namespace) as client:
        run: sf.Run[Any] = await client.start(workflow, msgspec.json.decode(text), id=run_id)
        await run.signal("approve", True)
        assert await run.result(timeout=20) == ["One.", "Three."]
        refused = await client.start(workflow, ["Five. Six."])
        await refused.signal("approve", False)
        with pytest.raises(sf.RunFailed, match="not approved"):
            await refused.result(timeout=20)
