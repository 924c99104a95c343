"""The command line against a real server and a real `streamflow daemon`, as a person or a script uses it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from redis import Redis

from streamflow.cli import cli as group
from streamflow.embedded.server import EmbeddedServer
from streamflow.store.keys import ShardKeys

pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).parents[2]
SECONDS = 30.0
FLOWS = '''
import time
import streamflow as sf

app = sf.App()
log = sf.logger(__name__)


@app.step
def noted(value: int) -> int:
    log.info("thread has %d", value)
    return value


@app.step(process=True)
def noted_apart(value: int) -> int:
    log.info("process has %d", value)
    return value


@app.step
async def add(a: int, b: int) -> int:
    return a + b


@app.step
async def write() -> str:
    for value in ("old ", "pond\\x1b[31m\\n", {"done": 1}, "frog"):
        sf.emit(value)
    return "written"


@app.step(retry=sf.NO_RETRY)
async def explode() -> None:
    raise ValueError("no [/] \\x1b[31m good")


@app.step
def slow(seconds: float) -> str:
    time.sleep(seconds)
    return "slept"


@app.workflow
async def total(a: int, b: int) -> int:
    """Add two numbers."""
    return await add(a, b)


@app.workflow
async def poem() -> str:
    return await write()


@app.workflow
async def parent(n: int) -> int:
    return sum(await sf.gather(*(total(i, 1) for i in range(n))))


@app.workflow
async def echo(value: int) -> int:
    return value


@app.workflow
async def fails() -> None:
    await explode()


@app.workflow
async def approval() -> str:
    return await sf.signal("go", str)


@app.workflow
async def shipping(customer: str) -> str:
    sf.set_attributes(customer=customer, code="17", priority=2)
    sf.publish("stage", {"at": "dock \\x1b[31m"})
    return await sf.signal("go", str)


@app.workflow
async def logging(value: int) -> int:
    log.info("begins with %d", value)
    return await noted_apart(await noted(value))


@app.workflow
async def sleeper(seconds: float) -> str:
    return await slow(seconds)
'''


class CommandResult:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


class Cli:
    """Runs commands in one namespace. They get the server from the environment, as in a container."""

    def __init__(self, directory: Path, url: str, namespace: str) -> None:
        self.directory = directory
        self.own = {"STREAMFLOW_REDIS": url, "STREAMFLOW_NAMESPACE": namespace}
        self.environ = {**os.environ, **self.own, "PYTHONPATH": str(ROOT)}

    def __call__(self, *arguments: str, input: str | None = None) -> CommandResult:
        """In this process: all is as in a separate one except the start of Python, which takes most of the time."""
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        sys.modules.pop("flows", None)  # another test's file of that name
        try:
            with contextlib.chdir(self.directory):
                result = CliRunner().invoke(group, list(arguments), input=input, env=self.own)
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)
            logging.captureWarnings(False)
        if not isinstance(result.exception, SystemExit | None):
            raise result.exception
        return CommandResult(result.exit_code, result.stdout, result.stderr)

    def process(self, *arguments: str) -> CommandResult:
        command = [sys.executable, "-m", "streamflow", *arguments]
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=self.directory,
            env=self.environ,
            timeout=SECONDS,
            check=False,
        )
        return CommandResult(done.returncode, done.stdout, done.stderr)

    def spawn(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "streamflow", *arguments]
        return subprocess.Popen(command, cwd=self.directory, env=self.environ, text=True, **options)


def until(condition: Callable[[], bool], what: str) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < SECONDS, f"not within {SECONDS:g} s: {what}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def cli(embedded_server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """A command line with a daemon that serves the app above."""
    directory = tmp_path_factory.mktemp("cli")
    (directory / "flows.py").write_text(FLOWS)
    cli = Cli(directory, embedded_server.url, f"t{uuid.uuid4().hex[:12]}")
    with (directory / "daemon.log").open("wb") as log:
        daemon = cli.spawn("daemon", "--app", "flows:app", "--shards", "16", stdin=subprocess.DEVNULL, stderr=log)
    try:
        until(lambda: "now 16 of 16" in (directory / "daemon.log").read_text(), "the daemon took its shards")
        yield cli
    finally:
        daemon.kill()
        daemon.wait(SECONDS)


@pytest.fixture
def run_id() -> str:
    return f"r-{uuid.uuid4().hex[:8]}"


# --- export and replay ----------------------------------------------------------------------------------------------


def test_a_run_is_exported_and_replayed_by_file_and_by_id(cli: Cli, run_id: str) -> None:
    assert cli("enqueue", "total", "--input", "[1, 2]", "--id", run_id, "--wait").code == 0
    file = f"new/{run_id}.json"
    written = cli("export", run_id, "--output", file)
    assert (written.code, written.out) == (0, f"4 events of {run_id} written to {file}\n")
    assert cli("export", run_id).out == (cli.directory / file).read_text()
    done = cli("replay", "--app", "flows:app", file, run_id)
    assert (done.code, done.err) == (0, "")
    assert done.out == f"ok      {file}: total, 4 events\nok      {run_id}: total, 4 events\n"
    begun = cli("replay", "--app", "flows:app", run_id[:-1])
    assert (begun.code, begun.err) == (0, f"{run_id[:-1]} is run {run_id}\n")


def test_replaying_against_changed_code_fails_and_changes_nothing(cli: Cli, run_id: str) -> None:
    assert cli("enqueue", "approval", "--id", run_id).code == 0
    until(lambda: cli("show", run_id, "--json").json["version"] == 1, "a daemon has taken the run")
    (cli.directory / "changed.py").write_text(
        FLOWS.replace('return await sf.signal("go", str)', "return str(await add(1, 2))")
    )
    done = cli("replay", "--app", "changed:app", run_id)
    assert done.code == 1
    assert f"FAILED  {run_id}: run {run_id} diverged at event 2: the history has no further decision" in done.out
    assert cli("show", run_id, "--json").json["status"] == "running"
    assert cli("cancel", run_id).code == 0


def test_an_unknown_run_can_be_neither_exported_nor_replayed(cli: Cli, run_id: str) -> None:
    exported = cli("export", run_id)
    assert (exported.code, exported.out) == (1, "")
    assert f"there is no run {run_id}" in exported.err
    replayed = cli("replay", "--app", "flows:app", run_id)
    assert replayed.code == 1
    assert f"FAILED  {run_id}: there is no run {run_id}" in replayed.out


# --- enqueue --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["[1, 2]", '{"b": 2, "a": 1}'])
def test_enqueue_waits_and_prints_the_result(cli: Cli, given: str) -> None:
    done = cli.process("enqueue", "total", "--input", given, "--wait")
    assert (done.code, done.out, done.err) == (0, "3\n", "")


def test_the_input_comes_from_a_file_or_from_stdin_too(cli: Cli) -> None:
    (cli.directory / "input.json").write_text("7")
    assert cli("enqueue", "echo", "--input", "@input.json", "--wait").json == 7
    assert cli("enqueue", "echo", "--input", "-", "--wait", input="8").json == 8


def test_the_same_id_is_the_same_run(cli: Cli, run_id: str) -> None:
    assert cli("enqueue", "echo", "--input", "1", "--id", run_id, "--json").json == {"run_id": run_id, "created": True}
    assert cli("enqueue", "echo", "--input", "2", "--id", run_id, "--json").json == {"run_id": run_id, "created": False}
    waited = cli("enqueue", "echo", "--input", "2", "--id", run_id, "--wait", "--json").json
    assert waited == {"run_id": run_id, "created": False, "status": "completed", "result": 1}
    other = cli("enqueue", "fails", "--id", run_id)
    assert (other.code, other.out) == (1, "")
    assert f"the id {run_id} belongs to a run of workflow echo" in other.err


def test_a_run_that_fails_is_exit_code_1_with_its_failure(cli: Cli, run_id: str) -> None:
    done = cli("enqueue", "fails", "--id", run_id, "--wait")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"error: run {run_id} failed: ")
    assert "ValueError: no [/] ␛[31m good" in done.err
    described = json.loads(cli("enqueue", "fails", "--id", run_id, "--wait", "--json").out)
    assert (described["status"], described["failure"]["kind"]) == ("failed", "StepFailed")
    assert "\x1b" not in cli("show", run_id).out + cli("show", run_id, "--json").out


def test_a_run_that_takes_longer_than_the_timeout_goes_on(cli: Cli, run_id: str) -> None:
    done = cli("enqueue", "approval", "--id", run_id, "--wait", "--timeout", "0.3")
    assert (done.code, done.out) == (1, "")
    assert done.err == f"error: run {run_id} has not ended within 0.3 s; it goes on\n"
    assert cli("cancel", run_id).code == 0


def test_an_unknown_workflow_is_refused_unless_forced(cli: Cli, run_id: str) -> None:
    done = cli("enqueue", "totl", "--id", run_id, "--input", "[1, 2]")
    assert (done.code, done.out) == (2, "")
    assert "no daemon has registered workflow totl; did you mean total?" in done.err
    assert "Known workflows: approval, echo, fails, logging, parent, poem, shipping, sleeper, total" in done.err
    assert cli("show", run_id).code == 1
    assert cli("enqueue", "totl", "--id", run_id, "--input", "[1, 2]", "--force", "--json").json["created"] is True


def test_input_that_does_not_match_is_refused_before_anything_starts(cli: Cli) -> None:
    done = cli("enqueue", "total", "--input", "[1]")
    assert done.code == 2
    assert "workflow total takes (a, b)" in done.err


def test_a_file_starts_each_line_once_however_often_it_is_given(cli: Cli) -> None:
    name = uuid.uuid4().hex
    lines = [json.dumps({"input": n, "tenant": name}) for n in range(500)]
    lines[7] = json.dumps({"id": f"line-{name}", "input": 7, "tenant": name})
    (cli.directory / "runs.jsonl").write_text("\n".join(lines) + "\n\n")
    first = cli("enqueue", "echo", "--file", "runs.jsonl", "--json").json
    assert (first["created"], first["existing"], first["bad"]) == (500, 0, 0)
    assert first["runs_per_s"] > 0
    again = cli("enqueue", "echo", "--file", "runs.jsonl", "--json").json
    assert (again["created"], again["existing"], again["bad"]) == (0, 500, 0)
    piped = cli("enqueue", "echo", "--file", "-", input="\n".join([*lines, json.dumps({"input": 500})]))
    assert piped.out.startswith("1 created, 500 already existed (")
    assert cli("enqueue", "echo", "--id", f"line-{name}", "--input", "0", "--wait").json == 7
    found = cli("runs", "--tenant", name, "--limit", "1000", "--json").json
    assert len({run["run_id"] for run in found}) == 500


def test_bad_lines_are_reported_and_skipped(cli: Cli) -> None:
    good, odd = uuid.uuid4().hex, uuid.uuid4().hex
    assert cli("enqueue", "approval", "--id", odd).code == 0
    lines = [
        json.dumps({"id": good, "input": 1}),
        '{"input": 1',
        "",
        '{"id": "not allowed", "input": 1}',
        '{"inptu": 1}',
        "[]",
        "{}",
        '{"input": 1, "tenant": "a b"}',
        json.dumps({"id": odd, "input": 1}),
        json.dumps({"id": f"{good}-2", "input": 2}),
    ]
    (cli.directory / "bad.jsonl").write_text("\n".join(lines))
    done = cli("enqueue", "echo", "--file", "bad.jsonl", "--json")
    counts = json.loads(done.out)
    assert done.code == 1
    assert (counts["created"], counts["existing"], counts["bad"]) == (2, 0, 7)
    assert [error["line"] for error in counts["errors"]] == [2, 4, 5, 6, 7, 8, 9]
    reported = done.err.splitlines()
    assert len(reported) == 7
    assert reported[0].startswith("error: bad.jsonl:2: ")
    assert "run id 'not allowed' is not allowed" in reported[1]
    assert "unknown field `inptu`" in reported[2]
    assert "tenant 'a b' is not allowed" in reported[5]
    assert f"the id {odd} belongs to a run of workflow approval" in reported[6]


# --- reading --------------------------------------------------------------------------------------------------------


def test_runs_are_listed_newest_first_and_filtered(cli: Cli, run_id: str) -> None:
    for number in range(3):
        assert (
            cli("enqueue", "echo", "--input", "1", "--id", f"{run_id}-{number}", "--tenant", run_id, "--wait").code == 0
        )
    found = cli("runs", "--tenant", run_id, "--json").json
    assert [run["run_id"] for run in found] == [f"{run_id}-2", f"{run_id}-1", f"{run_id}-0"]
    assert {(run["workflow"], run["tenant"], run["status"]) for run in found} == {("echo", run_id, "completed")}
    assert len(cli("runs", "--tenant", run_id, "--limit", "2", "--json").json) == 2
    assert cli("runs", "--tenant", run_id, "--status", "failed", "--json").json == []
    shown = cli("runs", "--tenant", run_id).out
    assert shown.startswith("RUN ")
    assert shown.count("\n") == 4
    nothing = cli("runs", "--tenant", f"{run_id}-other")
    assert (nothing.code, nothing.out, nothing.err) == (0, "", "no matching runs\n")


def test_runs_are_found_by_attributes_and_show_has_them(cli: Cli, run_id: str) -> None:
    assert cli("enqueue", "shipping", "--input", json.dumps(run_id), "--id", run_id).code == 0
    until(lambda: cli("read", run_id, "stage").code == 0, "the run has begun")
    mine = ("runs", "--attribute", f"customer={run_id}")
    [found] = cli(*mine, "--attribute", "priority=2", "--attribute", 'code="17"', "--json").json
    assert found["attributes"] == {"code": "17", "customer": run_id, "priority": 2}
    assert cli(*mine, "--attribute", "code=17", "--json").json == [], "a number is not text"
    assert cli("runs", "--attribute", "customer=nobody").err == "no matching runs\n"
    assert f'customer="{run_id}"' in cli(*mine).out
    shown = cli("show", run_id, "--json").json
    assert shown["attributes"]["priority"] == 2
    assert shown["published"] == {"stage": {"at": "dock \x1b[31m"}}
    drawn = cli("show", run_id).out
    assert "priority=2" in drawn
    assert "PUBLISHED" in drawn
    assert "\x1b" not in drawn
    for wrong in ("customer", "customer=[1]", "no spaces=1"):
        assert cli("runs", "--attribute", wrong).code == 2


def test_show_has_the_state_the_history_and_the_children(cli: Cli, run_id: str) -> None:
    assert cli("enqueue", "parent", "--input", "3", "--id", run_id, "--wait").json == 6
    shown = cli("show", run_id, "--json").json
    assert (shown["run_id"], shown["status"], shown["workflow"], shown["result"]) == (run_id, "completed", "parent", 6)
    assert [child.partition("~")[0] for child in shown["children"]] == [f"{run_id}.{n}" for n in (1, 2, 3)]
    assert set(shown["children"].values()) == {"completed"}
    assert shown["events"][0]["event"] == "started"
    assert shown["events"][-1]["event"] == "completed"
    child = cli("show", next(iter(shown["children"])), "--json").json
    assert (child["parent"], child["workflow"]) == (run_id, "total")
    drawn = cli("show", run_id).out
    assert drawn.startswith(f"RUN  {run_id}  completed\n")
    assert "CHILDREN 3" in drawn


def test_status_shows_the_daemon_and_what_ran(cli: Cli) -> None:
    assert cli("enqueue", "echo", "--input", "1", "--wait").code == 0
    status = cli("status", "--json").json
    assert (status["namespace"], status["shards_total"], status["shards_unowned"]) == (
        cli.environ["STREAMFLOW_NAMESPACE"],
        16,
        0,
    )
    assert [daemon["shards"] for daemon in status["daemons"]] == [16]
    assert status["daemons"][0]["beat_age"] < 2
    assert status["server"]["product"] == "valkey"
    until(
        lambda: cli("status", "--json").json["views"]["runs"]["workflows"].get("echo", {}).get("completed", 0) > 0,
        "the views count the run",
    )
    each = cli("status", "--shards", "--json").json["shards"]
    assert [shard["number"] for shard in each] == list(range(16))
    assert {shard["owner"] for shard in each} == {status["daemons"][0]["id"]}
    drawn = cli("status").out
    assert "THROUGHPUT" in drawn
    assert "DAEMONS 1" in drawn


def test_status_says_what_is_wrong_and_has_an_exit_code_for_it(cli: Cli) -> None:
    namespace = cli.environ["STREAMFLOW_NAMESPACE"]

    def is_ill() -> bool:
        """Tests before this one may have left runs that are stuck."""
        checked = cli("status", "--check", "--json")
        found = json.loads(checked.out)
        whole = cli("status", "--json").json
        assert whole["health"] == found["health"]
        assert found["ok"] is all(sentence["level"] == "note" for sentence in found["health"])
        assert checked.code == (0 if found["ok"] else 1)
        lines = cli("status", "--check").out.splitlines()
        texts = [sentence["text"] for sentence in found["health"]]
        assert all(text in line for text, line in zip(texts or ["healthy"], lines, strict=True))
        return "quarantined" in [sentence["code"] for sentence in found["health"]]

    assert not is_ill()
    assert cli("status", "--json").json["quarantine"] == {"count": 0, "latest": []}
    poison = ShardKeys(namespace, 3).poison
    with Redis.from_url(cli.environ["STREAMFLOW_REDIS"], decode_responses=True) as server:
        entry = server.xadd(poison, {"run": "r", "reason": "can't be decoded", "kind": "signal"})
    try:
        assert is_ill()
        said = f"warning  1 message quarantined: streamflow quarantine list --namespace {namespace}\n"
        assert said in cli("status", "--check").out
        latest = cli("status", "--json").json["quarantine"]["latest"]
        assert [(row["id"], row["run_id"]) for row in latest] == [(f"3:{entry}", "r")]
    finally:
        with Redis.from_url(cli.environ["STREAMFLOW_REDIS"]) as server:
            server.xdel(poison, entry)
    assert not is_ill()
    refused = cli("status", "--check", "--watch")
    assert (refused.code, refused.out) == (2, "")
    assert "leave out --watch" in refused.err


def test_status_is_saved_as_a_picture_that_needs_no_downloaded_font(cli: Cli) -> None:
    assert cli("status", "--svg", "status.svg").code == 0
    picture = (cli.directory / "status.svg").read_text()
    assert "font-family: monospace" in picture
    assert "Fira" not in picture
    refused = cli("status", "--svg", "nowhere/status.svg")
    assert (refused.code, refused.err) == (2, "error: can't write nowhere/status.svg: No such file or directory\n")


def test_a_watched_status_without_a_terminal_is_one_object_per_line(cli: Cli) -> None:
    watching = cli.spawn("status", "--watch", "--interval", "0.2", "--json", stdout=subprocess.PIPE)
    try:
        assert watching.stdout is not None
        looks = [json.loads(watching.stdout.readline()) for _ in range(3)]
        assert looks[0]["as_of"] < looks[2]["as_of"]
        watching.send_signal(signal.SIGINT)
        assert watching.wait(SECONDS) == 0
    finally:
        watching.kill()
        watching.communicate()


def test_tail_shows_what_happens_and_ends_with_ctrl_c(cli: Cli, run_id: str) -> None:
    following = cli.spawn("tail", "--since", "1m", "--workflow", "total", "--json", stdout=subprocess.PIPE)
    try:
        assert cli("enqueue", "parent", "--input", "2", "--id", run_id, "--wait").code == 0
        assert cli("enqueue", "echo", "--input", "1", "--id", f"{run_id}-echo", "--wait").code == 0
        assert cli("enqueue", "total", "--input", "[1, 2]", "--id", f"{run_id}-total", "--wait").code == 0
        assert following.stdout is not None
        lines: list[dict[str, Any]] = []
        while not lines or (lines[-1]["run_id"], lines[-1]["event"]) != (f"{run_id}-total", "completed"):
            lines.append(json.loads(following.stdout.readline()))
        mine = [line for line in lines if line["run_id"].startswith(run_id)]
        of = {line["run_id"].partition("~")[0] for line in mine}
        assert of == {f"{run_id}.1", f"{run_id}.2", f"{run_id}-total"}
        events = [line["event"] for line in mine if line["run_id"] == f"{run_id}-total"]
        assert events == ["started", "step", "step-done", "completed"]
        assert [line["at"] for line in lines] == sorted(line["at"] for line in lines)
        following.send_signal(signal.SIGINT)
        assert following.wait(SECONDS) == 0
    finally:
        following.kill()
        following.communicate()


def test_tail_of_one_run_prints_payloads_safely(cli: Cli, run_id: str) -> None:
    assert cli("enqueue", "fails", "--id", run_id, "--wait").code == 1
    part = run_id[:-1]
    following = cli.spawn("tail", "--since", "all", "--run", part, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert following.stdout is not None
        assert following.stderr is not None
        assert following.stderr.readline() == f"{part} is run {run_id}\n"
        lines = [following.stdout.readline() for _ in range(4)]
        assert [word in line for word, line in zip(("RunStarted", "StepScheduled"), lines, strict=False)] == [
            True,
            True,
        ]
        assert all(f"  {run_id}  " in line for line in lines)
        assert all(line.rstrip("\n").isprintable() for line in lines)
        assert "ValueError: no [/] ␛[31m good" in lines[2]
    finally:
        following.send_signal(signal.SIGINT)
        following.communicate(timeout=SECONDS)


def test_tail_prints_what_a_run_emits_and_ends_with_it(cli: Cli, run_id: str) -> None:
    assert cli("enqueue", "poem", "--id", run_id, "--wait").code == 0
    printed = cli("tail", "--stream", run_id[:-1])
    assert (printed.code, printed.err) == (0, f"{run_id[:-1]} is run {run_id}\n")
    assert printed.out == 'old pond␛[31m\n{"done":1}\nfrog\n'
    lines = [json.loads(line) for line in cli("tail", "--stream", run_id, "--json").out.splitlines()]
    assert [line["value"] for line in lines] == ["old ", "pond\x1b[31m\n", {"done": 1}, "frog"]
    rest = cli("tail", "--stream", run_id, "--after", lines[2]["offset"])
    assert (rest.code, rest.out) == (0, "frog\n")
    shown = cli("show", run_id, "--json").json["stream"]
    assert (shown["emitted"], shown["kept"], shown["step"]) == (4, 4, "write")
    assert "4 chunks, the last one" in cli("show", run_id).out
    for words in (("--stream", run_id, "--since", "1m"), ("--after", "1-1-1"), ("--stream", run_id, "--after", "x")):
        refused = cli("tail", *words)
        assert refused.code == 2, refused.err


# --- acting ---------------------------------------------------------------------------------------------------------


def test_a_signal_reaches_its_run(cli: Cli, run_id: str) -> None:
    assert cli("enqueue", "approval", "--id", run_id).out == f"started {run_id}\n"
    assert cli("signal", run_id, "go", '"yes"').out == f"signal go sent to {run_id}\n"
    assert cli("enqueue", "approval", "--id", run_id, "--wait").json == "yes"
    late = cli("signal", run_id, "go", '"again"')
    assert (late.code, late.err) == (1, f"error: run {run_id} has ended: it accepts no signal any more\n")


def test_read_prints_a_value_or_all_of_them(cli: Cli, run_id: str) -> None:
    assert cli("enqueue", "shipping", "--input", '"acme"', "--id", run_id).code == 0
    until(lambda: cli("read", run_id, "stage").code == 0, "the run has begun")
    assert cli("read", run_id, "stage").json == {"at": "dock \x1b[31m"}
    assert cli("read", run_id, "--json").json == {"stage": {"at": "dock \x1b[31m"}}
    plain = cli("read", run_id).out
    assert plain.startswith("stage  {")
    assert "\x1b" not in plain
    missing = cli("read", run_id, "other")
    message = f"error: run {run_id} has published nothing under other; it has published: stage\n"
    assert (missing.code, missing.err) == (1, message)
    assert cli("enqueue", "approval", "--id", f"{run_id}-unpublished").code == 0
    unpublished = cli("read", f"{run_id}-unpublished")
    assert (unpublished.code, unpublished.out) == (0, "")


def test_terminate_ends_a_run(cli: Cli, run_id: str) -> None:
    assert cli("enqueue", "approval", "--id", run_id).code == 0
    asked = cli("terminate", run_id, "--reason", "loops", "--json").json
    assert asked == {"run_id": run_id, "requested": "terminate"}
    assert cli("enqueue", "approval", "--id", run_id, "--wait").code == 1
    shown = cli("show", run_id, "--json").json
    assert (shown["status"], shown["reason"]) == ("cancelled", "loops")
    assert [event["terminate"] for event in shown["events"] if event["event"] == "cancel"] == [True]
    late = cli("ask", run_id, "price")
    assert (late.code, late.err) == (1, f"error: run {run_id} has ended: it accepts no ask any more\n")


def test_cancel_and_forget(cli: Cli, run_id: str) -> None:
    assert cli("enqueue", "approval", "--id", run_id).code == 0
    refused = cli("forget", run_id)
    assert refused.code == 1
    assert "only ended runs can be forgotten" in refused.err
    assert cli("cancel", run_id, "--reason", "not\nneeded", "--json").json == {"run_id": run_id, "requested": "cancel"}
    waited = cli("enqueue", "approval", "--id", run_id, "--wait")
    assert (waited.code, waited.err) == (1, f"error: run {run_id} was cancelled: not␊needed\n") or waited.code == 1
    assert cli("show", run_id, "--json").json["reason"] == "not\nneeded"
    assert cli("forget", run_id, "--json").json == [{"run_id": run_id, "forgotten": True, "reason": ""}]
    assert f"error: there is no run {run_id} in this namespace" in cli("forget", run_id).err


@pytest.mark.parametrize(
    "arguments",
    [[name, "no-such-run"] for name in ("show", "cancel", "terminate", "forget", "read")]
    + [["ask", "no-such-run", "price"]],
    ids=lambda arguments: arguments[0],
)
def test_a_missing_run_is_exit_code_1(cli: Cli, arguments: list[str]) -> None:
    done = cli(*arguments)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: there is no run no-such-run")


# --- in bulk --------------------------------------------------------------------------------------------------------


def shipping(cli: Cli, run_id: str, count: int) -> list[str]:
    """Options that choose so many runs, which wait for a signal."""
    (cli.directory / "runs.jsonl").write_text(
        "".join(json.dumps({"id": f"{run_id}-{number}", "input": run_id}) + "\n" for number in range(count))
    )
    assert cli("enqueue", "shipping", "--file", "runs.jsonl").code == 0
    chosen = ["--workflow", "shipping", "--attribute", f"customer={run_id}"]
    until(lambda: len(cli("runs", *chosen, "--limit", "100", "--json").json) == count, "all runs wait")
    return chosen


def files(cli: Cli) -> list[str]:
    return sorted(file.name for file in cli.directory.glob("streamflow-*.jsonl"))


def test_what_would_be_done_in_bulk_is_said_first(cli: Cli, run_id: str) -> None:
    chosen = shipping(cli, run_id, 30)
    looked = cli("cancel", *chosen, "--dry-run")
    assert (looked.code, looked.err) == (0, "")
    lines = looked.out.splitlines()
    what = f"30 runs of workflow shipping with customer={run_id}"
    assert lines[0] == f"Cancel {what}? Clean-up code runs, sagas are undone, and children are cancelled, too."
    assert all(line.startswith(f"  {run_id}-") and "shipping  running" in line for line in lines[1:6])
    assert lines[6:] == ["  and 25 more", "nothing was done: --dry-run"]
    plain = cli("cancel", *chosen, "--dry-run", "--json").json
    assert len(plain.pop("sample")) == 5
    assert plain == {"action": "cancel", "dry_run": True, "targets": 30}
    asked = cli("cancel", *chosen)
    assert (asked.code, asked.out) == (2, "")
    assert what in asked.err
    assert "nothing was done: there is no terminal to ask at. Add --yes to cancel them" in asked.err
    assert files(cli) == []
    assert {run["status"] for run in cli("runs", *chosen, "--limit", "100", "--json").json} == {"running"}
    done = cli("cancel", *chosen, "--yes", "--rate", "0", "--reason", "over", "--json").json
    assert done["now"] == {"cancelled": 30}
    assert (done["targets"], done["done"], done["already"], done["failed"], done["file"]) == (30, 30, 0, 0, None)
    assert cli("show", f"{run_id}-7", "--json").json["reason"] == "over"
    again = cli("cancel", *chosen, "--yes")
    assert (again.code, again.out, again.err) == (0, "", "no runs to cancel match\n")


def test_a_bulk_that_is_interrupted_says_how_to_go_on(cli: Cli, run_id: str) -> None:
    chosen = shipping(cli, run_id, 40)
    command = [*chosen, "--yes", "--rate", "10", "--targets", "list.jsonl", "--audit-log", "audit.jsonl"]
    bulk = cli.spawn("signal", "go", '"now"', *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    audit = cli.directory / "audit.jsonl"
    until(lambda: audit.exists() and audit.read_text().count("\n") >= 3, "some have the signal")
    bulk.send_signal(signal.SIGINT)
    out, err = bulk.communicate(timeout=SECONDS)
    count = audit.read_text().count("\n")
    assert 3 <= count < 40
    assert bulk.returncode == 1
    assert out == f"signalled {count} · already so or not applicable 0 · failed 0\n"
    assert err == (f"stopped: {40 - count} of 40 runs left; go on with: streamflow signal --resume list.jsonl\n")
    assert cli("signal", "--resume", "list.jsonl", "--dry-run").out == f"{40 - count} of 40 runs left to signal\n"
    wrong = cli("cancel", "--resume", "list.jsonl")
    assert (wrong.code, wrong.err) == (2, "error: list.jsonl is of streamflow signal, and not of cancel\n")
    done = cli("signal", "--resume", "list.jsonl", "--rate", "0", "--audit-log", "audit.jsonl")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("signalled 40 · already so or not applicable 0 · failed 0\nnow: ")
    assert not (cli.directory / "list.jsonl").exists()
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    assert len({line["run_id"] for line in lines}) == len(lines) == 40
    assert (lines[0]["action"], lines[0]["arguments"], lines[0]["outcome"]) == ("signal", ["go", '"now"'], "done")
    assert "@" in lines[0]["by"]


def test_failed_runs_are_retried_and_forgotten_in_bulk(cli: Cli, run_id: str) -> None:
    for number in range(3):
        assert cli("enqueue", "fails", "--id", f"{run_id}-{number}", "--tenant", run_id, "--wait").code == 1
    until(lambda: len(cli("runs", "--tenant", run_id, "--status", "failed", "--json").json) == 3, "all are listed")
    again = cli("retry", "--tenant", run_id, "--yes", "--rate", "0", "--json")
    assert json.loads(again.out)["done"] == 3
    until(lambda: len(cli("runs", "--tenant", run_id, "--status", "failed", "--json").json) == 3, "all failed again")
    assert cli("forget", "--tenant", run_id, "--yes").out == (
        "deleted 3 · already so or not applicable 0 · failed 0\nnow: 3 gone\n"
    )


def test_one_run_leaves_a_line_in_the_audit_log(cli: Cli, run_id: str) -> None:
    assert cli("enqueue", "approval", "--id", run_id).code == 0
    for command in ("cancel", "terminate"):
        cli(command, run_id, "--reason", "twice", "--audit-log", "one.jsonl")
    first, *_ = [json.loads(line) for line in (cli.directory / "one.jsonl").read_text().splitlines()]
    assert {name: first[name] for name in ("action", "run_id", "reason", "outcome")} == {
        "action": "cancel",
        "run_id": run_id,
        "reason": "twice",
        "outcome": "done",
    }
    refused = cli("cancel", run_id, "--audit-log", "/no/such/place")
    assert (refused.code, refused.err) == (
        2,
        "error: can't write --audit-log /no/such/place: No such file or directory\n",
    )


def test_views_can_be_rebuilt(cli: Cli) -> None:
    assert cli("enqueue", "echo", "--input", "1", "--wait").code == 0
    until(lambda: "runs" in cli("status", "--json").json["views"], "the views are there")
    assert cli("views", "rebuild", "--json").json["shards"] == 16


# --- servers and daemons --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["status", "--check", "--json"],
        ["runs"],
        ["enqueue", "echo"],
        ["daemon", "--app", "flows:app"],
    ],
)
def test_an_unreachable_server_is_reported_in_seconds_without_its_password(cli: Cli, arguments: list[str]) -> None:
    done = cli.process(*arguments, "--redis", "redis://user:secret@127.0.0.1:1/0")
    assert (done.code, done.out) == (1, "")
    tried = re.search(r"error: no answer from redis://\*\*\*@127\.0\.0\.1:1/0 for ([\d.]+) s: ", done.err)
    assert tried, done.err
    assert float(tried[1]) < 5  # two seconds; others try for ten
    assert "secret" not in done.err
    assert "Traceback" not in done.err


def test_a_missing_namespace_is_reported(cli: Cli) -> None:
    done = cli("status", "--namespace", "missing")
    assert (done.code, done.out) == (1, "")
    assert "there is no namespace 'missing'" in done.err
    assert "streamflow daemon --app" in done.err


def test_a_daemon_drains_on_sigterm_and_finishes_its_steps(cli: Cli) -> None:
    namespace = f"t{uuid.uuid4().hex[:12]}"
    log = cli.directory / f"{namespace}.log"
    with log.open("wb") as output:
        daemon = cli.spawn(
            *("daemon", "--app", "flows.py", "--namespace", namespace, "--shards", "4", "--log-format", "json"),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        until(lambda: "now 4 of 4" in log.read_text(), "the daemon took its shards")
        assert cli("enqueue", "sleeper", "--input", "1.5", "--id", "s1", "--namespace", namespace).code == 0
        until(
            lambda: cli("show", "s1", "--namespace", namespace, "--json").json["status"] == "running",
            "the step runs",
        )
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(SECONDS) == 0
        assert cli("show", "s1", "--namespace", namespace, "--json").json["result"] == "slept"
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        assert all(line.keys() >= {"ts", "level", "logger", "message"} for line in lines)
        assert lines[-1]["message"] == "drained"
    finally:
        daemon.kill()
        daemon.wait(SECONDS)


def test_a_daemon_with_another_number_of_shards_reports_both_numbers(cli: Cli) -> None:
    done = cli.process("daemon", "--app", "flows:app", "--shards", "8")
    assert done.code == 1
    error = done.err.splitlines()[-1]
    assert error.startswith("error: ")
    assert "has 16 shards" in error
    assert "--shards 16" in error


def test_dev_starts_server_and_daemon_and_keeps_the_data(cli: Cli) -> None:
    for created in (True, False):
        dev = cli.spawn("dev", "--app", "flows.py", "--dir", "data", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            assert dev.stdout is not None
            first = dev.stdout.readline()
            url = first.split()[1]
            assert first.startswith("server: unix:///")
            assert "streamflow enqueue total --input '[…, …]'" in dev.stdout.readline()
            server = ("--redis", url, "--namespace", cli.environ["STREAMFLOW_NAMESPACE"])
            until(lambda server=server: cli("runs", *server).code == 0, "the daemon created the namespace")
            done = cli("enqueue", "echo", "--input", "5", "--id", "kept", *server, "--wait", "--json").json
            assert done == {"run_id": "kept", "created": created, "status": "completed", "result": 5}
            dev.send_signal(signal.SIGINT)
            assert dev.wait(SECONDS) == 0
        finally:
            dev.kill()
            dev.communicate()


def test_dev_keeps_a_log_of_which_logs_shows_one_run(cli: Cli) -> None:
    dev = cli.spawn("dev", "--app", "flows.py", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert dev.stdout is not None
        url = dev.stdout.readline().split()[1]
        server = ("--redis", url, "--namespace", cli.environ["STREAMFLOW_NAMESPACE"])
        until(lambda: cli("runs", *server).code == 0, "the daemon created the namespace")
        for number in (1, 2):
            cli("enqueue", "logging", "--input", str(number), "--id", f"log-{number}", *server, "--wait")
        lines = [line.split(": ", 1)[1] for line in cli("logs", "log-1").out.splitlines()]
        apart = "process has 1 step=noted_apart attempt=1"
        assert lines == ["begins with 1", "thread has 1 step=noted attempt=1", apart]
        (line,) = cli("logs", "log-2", "--step", "noted_apart", "--json").out.splitlines()
        assert json.loads(line)["message"] == "process has 2"
        assert cli("logs", "log-3").code == 1

        cli("enqueue", "sleeper", "--input", "2", "--id", "slow", *server)
        until(lambda: cli("show", "slow", *server, "--json").json["status"] == "running", "the step runs")
        time.sleep(1)
        dev.send_signal(signal.SIGTERM)
        out, err = dev.communicate(timeout=SECONDS)
        assert dev.returncode == 0
        assert re.search(r"^log: \S+/\.streamflow/log.jsonl \(of one run: streamflow logs RUN\)$", out, re.MULTILINE)
        assert "flows: begins with 1 run=log-1" in err
        stopping, said = err.split("\nstopping: ", 1)
        assert "drained" not in stopping
        assert "waiting for running steps: slow of run slow (attempt 1, for " in said
        assert said.rstrip().endswith("drained")
    finally:
        dev.kill()
        dev.communicate()


def test_a_second_ctrl_c_does_not_wait_for_steps(cli: Cli) -> None:
    dev = cli.spawn("dev", "--app", "flows.py", "--dir", "impatient", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert dev.stdout is not None
        assert dev.stderr is not None
        url = dev.stdout.readline().split()[1]
        server = ("--redis", url, "--namespace", cli.environ["STREAMFLOW_NAMESPACE"])
        until(lambda: cli("runs", *server).code == 0, "the daemon created the namespace")
        cli("enqueue", "sleeper", "--input", "60", "--id", "long", *server)
        until(lambda: cli("show", "long", *server, "--json").json["status"] == "running", "the step runs")
        begun = time.monotonic()
        dev.send_signal(signal.SIGINT)
        while "stopping: " not in dev.stderr.readline():
            pass
        dev.send_signal(signal.SIGINT)
        _, err = dev.communicate(timeout=SECONDS)
        assert "ended at once" in err
        assert dev.returncode == 0
        assert time.monotonic() - begun < 8  # of the grace of 10 s
    finally:
        dev.kill()
        dev.communicate()
