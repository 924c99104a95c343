"""The command line without a server: help, options, errors and exit codes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner, Result

import streamflow.cli.commands
import streamflow.testing as sft
from streamflow.cli import SECTIONS, cli
from streamflow.cli.app_loader import load_app
from streamflow.cli.bulk_enqueue import FileLine, line_id
from streamflow.cli.commands.tail import parse_ago
from streamflow.cli.completing import RUN
from streamflow.errors import UsageError
from streamflow.settings import Settings

COMMANDS = [name for section in SECTIONS.values() for name in section]
PRINT_DATA = [
    *("config", "check", "demo", "enqueue", "runs", "show", "status", "tail", "views", "export", "replay"),
    *("signal", "ask", "read", "retry", "fork", "cancel", "terminate", "forget", "acl", "logs"),
    *("pause", "resume", "view", "purge", "restore", "archive"),
]
NO_SERVER = ("demo", "acl", "logs")
QUEUE_FLOWS = Path(__file__).parents[2] / "process" / "queue_flows.py"
NOBODY = "redis://user:secret@127.0.0.1:1"
"""A port that nothing listens on."""


def invoke(*arguments: str, env: dict[str, str | None] | None = None) -> Result:
    clean: dict[str, str | None] = {"STREAMFLOW_APP": None, "STREAMFLOW_REDIS": NOBODY, "STREAMFLOW_NAMESPACE": None}
    return CliRunner().invoke(cli, list(arguments), env={**clean, **(env or {})})


def command(name: str) -> click.Command:
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    return found


# --- help -----------------------------------------------------------------------------------------------------------


def test_help_lists_every_command() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    for name in COMMANDS:
        assert f"\n  {name} " in result.output
    assert invoke().output == result.output


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_and_the_help_line_of_the_list(name: str) -> None:
    found = command(name)
    assert found.help is not None
    assert "Example" in found.help
    assert f"streamflow {name}" in found.help
    (line,) = [section[name] for section in SECTIONS.values() if name in section]
    assert found.help.startswith(f"{line}\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_about_a_run_completes_it(name: str) -> None:
    arguments = [p for p in command(name).params if isinstance(p, click.Argument) and p.name in ("run", "runs")]
    assert all(argument.type is RUN for argument in arguments)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "bench"])
def test_every_command_shows_its_help(name: str) -> None:
    result = invoke(name, "--help")
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: streamflow {name}")


@pytest.mark.parametrize("name", PRINT_DATA)
def test_every_command_that_prints_data_has_json(name: str) -> None:
    assert any("--json" in parameter.opts for parameter in command(name).params)


@pytest.mark.parametrize("name", [*(name for name in PRINT_DATA if name not in NO_SERVER), "daemon", "worker"])
def test_every_command_that_talks_to_a_server_has_the_options_to_choose_it(name: str) -> None:
    options = {option for parameter in command(name).params for option in parameter.opts}
    assert {"--redis", "--namespace"} <= options


@pytest.mark.parametrize("field", msgspec.structs.fields(Settings), ids=lambda field: field.name)
def test_the_daemon_has_an_option_for_each_setting(field: msgspec.structs.FieldInfo) -> None:
    options = {option: parameter for parameter in command("daemon").params for option in parameter.opts}
    option: Any = options[f"--{field.name.replace('_', '-')}"]
    assert option.default is None or not isinstance(option.default, str | int | float)  # load_settings knows it
    assert f"[env var: STREAMFLOW_{field.name.upper()}; default: " in option.help


def test_the_version() -> None:
    from streamflow.version import __version__

    assert invoke("--version").output == f"streamflow {__version__}\n"


def test_help_imports_neither_the_servers_client_nor_the_screen() -> None:
    """What `--help` costs beyond `import streamflow` itself."""
    code = (
        "import sys, streamflow; before = set(sys.modules); from streamflow.cli import cli; "
        "cli(['--help'], standalone_mode=False); new = set(sys.modules) - before; "
        "print(sorted(n for n in new if n.split('.')[0] in ('rich', 'redis') or "
        "n.startswith(('streamflow.daemon', 'streamflow.worker'))))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30).stdout
    assert result.splitlines()[-1] == "[]"


def test_each_command_is_a_file_of_its_name() -> None:
    files = Path(streamflow.cli.commands.__file__).parent.glob("[!_]*.py")
    assert sorted(file.stem for file in files) == sorted(COMMANDS)


def test_no_command_loads_the_server_s_client_or_the_screen_before_it_runs() -> None:
    """Completion imports a command to list its options."""
    code = (
        "import sys, importlib; "
        f"[importlib.import_module('streamflow.cli.commands.' + name) for name in {COMMANDS}]; "
        "print(sorted({'rich', 'redis', 'streamflow.daemon', 'streamflow.worker'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert result.stdout == "[]\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_for_the_shell(shell: str) -> None:
    result = invoke("completion", shell)
    assert result.exit_code == 0
    assert "_STREAMFLOW_COMPLETE" in result.output


def test_completion_knows_the_commands() -> None:
    result = invoke(env={"_STREAMFLOW_COMPLETE": "bash_complete", "COMP_WORDS": "streamflow en", "COMP_CWORD": "1"})
    assert result.output.strip() == "plain,enqueue"


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--redis", "redis://x", "status"],
            "; options of a command stand behind it: streamflow COMMAND [OPTIONS]",
        ),
        (["enqeue"], "unknown command 'enqeue'; did you mean enqueue? (see streamflow --help)"),
        (["status", "--what"], "--what"),
        (["runs", "--status", "odd"], "'odd'"),
        (["runs", "--limit", "0"], "--limit"),
        (["show"], "RUN"),
        (["show", "bad id"], "run id 'bad id' is not allowed"),
        (["signal", "r1", "a b"], "signal 'a b' is not allowed"),
        (["signal", "r1", "go", "{bad"], "VALUE_JSON is not valid JSON"),
        (["cancel"], "say which runs: name a RUN, or give a filter, as in cancel --workflow NAME"),
        (["forget"], "say which runs: name a RUN, or give a filter"),
        (["signal"], "say which runs: name a RUN, or give a filter"),
        (["signal", "r1"], "missing NAME: which signal?"),
        (["signal", "--workflow", "w"], "missing NAME: which signal?"),
        (["signal", "r1", "go", "1", "2"], "signal got 1 argument too many: 2"),
        (["signal", "--workflow", "w", "r1", "go", "1"], "name a RUN, or say with filters which runs"),
        (["signal", "--workflow", "w", "go", "{bad"], "VALUE_JSON is not valid JSON"),
        (["fork", "--status", "failed", "--id", "x"], "--input and --id are for the fork of one RUN"),
        (["retry", "r1", "--status", "failed"], "name a RUN, or say with filters which runs"),
        (["retry", "r1", "--resume", "f"], "name a RUN, or say with filters which runs"),
        (["retry", "--resume", "f", "--status", "failed"], "--resume goes on with what stands in the file"),
        (["retry", "--resume", "f", "--reason", "x"], "--resume goes on with what stands in the file"),
        (["signal", "--resume", "f", "go"], "--resume goes on with what stands in the file"),
        (["terminate", "r1", "--yes"], "--yes is for runs that filters choose, and not for a RUN"),
        (["forget", "r1", "r2", "--rate", "3"], "--rate is for runs that filters choose, and not for a RUN"),
        (["cancel", "--attribute", "x"], "--attribute x: expected NAME=VALUE"),
        (["cancel", "--workflow", "w", "--rate", "-1"], "--rate"),
        (["enqueue", "w", "--input", "text"], "--input is not valid JSON"),
        (["enqueue", "w", "--input", "@/no/such.json"], "can't read --input @/no/such.json: No such file"),
        (["enqueue", "w", "--file", "/no/such.jsonl"], "can't read /no/such.jsonl: No such file"),
        (["enqueue", "w", "--file", "x", "--input", "1"], "--file can't be combined with --input"),
        (["enqueue", "w", "--file", "x", "--wait"], "--file can't be combined with --wait"),
        (["enqueue", "w", "--file", "x", "--on-existing", "new"], "--on-existing is for one run: of a line of --file"),
        (["enqueue", "w", "--on-existing", "new"], "--on-existing is about the run of an id, which is missing"),
        (["enqueue", "w", "--at", "noon"], "--at: 'noon' is not a time: use for example 2026-11-28 or"),
        (["enqueue", "w", "--at", "2h"], "for 2h from now use --delay 2h"),
        (["enqueue", "w", "--timeout", "3"], "--timeout limits --wait"),
        (["tail", "--since", "soon"], "--since 'soon' is not a duration"),
        (["daemon"], "missing --app"),
        (["dev"], "missing --app"),
        (["daemon", "--app", "no_such_module:app"], "there is no module 'no_such_module'"),
        (["worker"], "missing --app"),
        (["worker", "--app", f"{QUEUE_FLOWS}:app"], "missing --queue: name at least one"),
        (
            ["worker", "--app", f"{QUEUE_FLOWS}:app", "--queue", "gpv"],
            "has queue='gpv' (its steps name: gpu); did you mean gpu? If",
        ),
        (
            ["worker", "--app", f"{QUEUE_FLOWS}:app", "--queue", "x"],
            "If calls name the queue with options(queue=…), add --force",
        ),
        (["worker", "--app", f"{QUEUE_FLOWS}:app", "--queue", "a b", "--force"], "queue 'a b' is not allowed"),
        (["worker", "--app", f"{QUEUE_FLOWS}:app", "--queue", "gpu", "--concurrency", "0"], "--concurrency"),
        (["daemon", "--app", "x:app", "--shards", "0"], "--shards=0: Expected `int` >= 1"),
        (["daemon", "--app", "x:app", "--partition", "odd"], "'odd'"),
        (["status", "--redis", "http://127.0.0.1"], "can't use the server URL"),
        (["views", "drop"], "rebuild"),
        (["enqueue", "flow", '"a"'], """argument ("a"): the input of a run is an option, --input '"a"' (see"""),
        (["enqueue", "flow", "a b"], """(a b): the input of a run is an option, --input '"a b"' (see"""),
        (["enqueue", "flow", "1", "it's"], "(1 it's): the input of a run is an option, --input "),
        (["enqueue", "flow", "1", "--input", "2"], "unexpected extra argument (1) (see streamflow enqueue --help)"),
        (["enqueue", "flow", "[" * 100_000], "the input of a run is an option, --input '"),
        (["enqueue", "flow", "\udcff"], "the input of a run is an option, --input '\"?\"'"),
        (["views"], "missing argument 'rebuild|remove'. Choose from: rebuild, remove (see streamflow views --help)"),
        (["export"], "RUN"),
        (["export", "bad id"], "run id 'bad id' is not allowed"),
        (["replay"], "RUN|FILE|DIRECTORY"),
        (["replay", "r1"], "missing --app"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments: list[str], message: str) -> None:
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("group", [["groups"], ["sink"], ["trigger"], ["trigger", "quarantine"], ["quarantine"]])
def test_a_group_of_commands_by_itself_lists_them_as_its_help_does(group: list[str]) -> None:
    result = invoke(*group)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == invoke(*group, "--help").stdout


@pytest.mark.parametrize(("sink", "argument"), [("jsonl", "TARGET"), ("kafka", "BROKERS"), ("webhook", "URL")])
def test_a_sink_without_its_target_is_wrong_usage(sink: str, argument: str) -> None:
    result = invoke("sink", sink)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: missing argument '{argument}'")


def test_a_worker_without_a_server_reports_it() -> None:
    result = invoke("worker", "--app", f"{QUEUE_FLOWS}:app", "--queue", "gpu", "--queue", "other", "--force")
    assert result.exit_code == 1
    assert "no answer from redis://***@127.0.0.1:1" in result.stderr


def test_a_wrong_variable_is_named() -> None:
    result = invoke("daemon", "--app", "x:app", env={"STREAMFLOW_SHARDS": "many"})
    assert result.exit_code == 2
    assert "STREAMFLOW_SHARDS='many'" in result.stderr


def test_control_characters_in_an_error_are_made_visible() -> None:
    result = invoke("show", "a\x1b[31m\nb")
    assert "\x1b" not in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_bug_is_a_traceback_rather_than_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamflow.cli.commands.runs.run_async", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli(["runs"])


def test_an_app_that_can_t_be_imported_shows_the_user_s_own_line(tmp_path: Path) -> None:
    file = tmp_path / "flows.py"
    file.write_text("import os\nraise RuntimeError('no \\x1b[31m database')\n")
    result = invoke("daemon", "--app", str(file))
    assert result.exit_code == 2
    assert f'File "{file}", line 2' in result.stderr
    assert "RuntimeError: no ␛[31m database" in result.stderr
    assert "importlib" not in result.stderr


# --- pieces ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("2h", 7200), ("1d", 86400), ("1.5m", 90), ("30", 30)]
)
def test_a_duration_has_a_unit(text: str, seconds: float) -> None:
    assert parse_ago(text) == seconds


def test_all_has_no_limit() -> None:
    assert parse_ago("all") == float("inf")


@pytest.mark.parametrize("text", ["", "m", "-5m", "5 m", "5w"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_ago(text)


def test_the_id_of_a_line_depends_on_workflow_content_and_line_number() -> None:
    ids = {line_id("w", 1, b"{}"), line_id("w", 2, b"{}"), line_id("v", 1, b"{}"), line_id("w", 1, b"[]")}
    assert len(ids) == 4
    assert line_id("w", 1, b"{}") == line_id("w", 1, b"{}")


def test_a_line_with_an_unknown_field_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"inptu": 1}', type=FileLine)


# --- replay ---------------------------------------------------------------------------------------------------------

FLOWS = """
import streamflow as sf

app = sf.App()


@app.step
async def double(value: int) -> int:
    return 2 * value


@app.workflow
async def twice(value: int) -> int:
    return await double(await double(value))
"""


@pytest.fixture
def flows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with an app in `flows.py`, and the history of one of its runs in `histories/twice.json`."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "flows.py").write_text(FLOWS)
    (tmp_path / "histories").mkdir()
    app = load_app(str(tmp_path / "flows.py"))
    del sys.modules["flows"]

    async def record() -> None:
        async with sft.Sandbox(app) as sandbox:
            run = await sandbox.start("twice", 1)
            await run.result()
            sft.save_history(await run.export(), tmp_path / "histories/twice.json")

    asyncio.run(record())
    return tmp_path


def replay(flows: Path, *sources: str) -> Result:
    try:
        return invoke("replay", "--app", str(flows / "flows.py"), *sources)
    finally:
        sys.modules.pop("flows", None)


def test_files_and_directories_are_replayed_without_a_server(flows: Path) -> None:
    file = str(flows / "histories/twice.json")
    result = replay(flows, file, str(flows / "histories"))
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"ok      {file}: twice, 6 events\n" * 2


def test_a_history_that_does_not_match_is_exit_code_1_with_the_event(flows: Path) -> None:
    file = str(flows / "histories/twice.json")
    (flows / "flows.py").write_text(FLOWS.replace("double(await double(value))", "double(value)"))
    result = replay(flows, file)
    assert result.exit_code == 1
    assert result.stdout.startswith(f"FAILED  {file}: run twice-1 diverged at event 4: the history has StepScheduled(2")
    assert result.stderr == "1 of 1 failed\n"
    (document,) = msgspec.json.decode(replay(flows, "--json", file).stdout)
    reason = document.pop("reason")
    assert reason in result.stdout
    assert document == {
        "source": file,
        "run_id": "twice-1",
        "workflow": "twice",
        "events": 6,
        "ok": False,
        "event": 4,
    }


def test_a_file_that_has_no_history_fails_and_the_others_are_replayed(flows: Path) -> None:
    (flows / "histories/notes.json").write_text('{"a": 1}')
    (flows / "flows.py").write_text(FLOWS + "\n# changed, but not in what it decides\n")
    result = replay(flows, str(flows / "histories"))
    first, second = result.stdout.splitlines()
    assert result.exit_code == 1
    assert first.startswith("FAILED")
    assert "notes.json is not an exported history; create one with" in first
    assert second.startswith("ok")


def test_a_workflow_that_is_gone_fails(flows: Path) -> None:
    (flows / "flows.py").write_text(FLOWS.replace("def twice", "def thrice"))
    result = replay(flows, str(flows / "histories"))
    assert result.exit_code == 1
    assert "workflow twice is not registered; known workflows: thrice" in result.stdout


def test_missing_sources_are_wrong_usage(flows: Path) -> None:
    missing = replay(flows, "none.json")
    assert (missing.exit_code, missing.stdout) == (2, "")
    assert "there is no file none.json" in missing.stderr
    (flows / "empty").mkdir()
    empty = replay(flows, str(flows / "empty"))
    assert empty.exit_code == 2
    assert "there is no history (*.json) in" in empty.stderr
