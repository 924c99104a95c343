"""The settings file: which one is read, what is refused, and the line that is named."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

import streamflow as sf
from streamflow import settings_file
from streamflow.errors import UsageError
from streamflow.model.sharding import Partition
from streamflow.settings import (
    CommandSettings,
    Found,
    Settings,
    file_values,
    find_mistakes,
    find_settings,
    load_settings,
)

ONE_OF_EACH = """
# a comment
redis = "redis://user:s3cret@example.org:6379/1"
namespace = 'orders'
"shards" = 64
  partition = "tenant"
beat = 1
dead_after = 4.0
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(text: str, name: str = "streamflow.toml") -> dict[str, str]:
    """A settings file here; the environment that names it, unless it is the project's."""
    Path(name).write_text(text)
    return {} if name == "pyproject.toml" else {"STREAMFLOW_CONFIG": name}


def refusal(environ: dict[str, str]) -> str:
    with pytest.raises(UsageError) as caught:
        load_settings({}, environ)
    return str(caught.value)


# --- what counts ------------------------------------------------------------------------------------------------------


def test_a_file_overrides_defaults_a_variable_the_file_and_an_option_all(here: Path) -> None:
    environ = write(ONE_OF_EACH) | {"STREAMFLOW_SHARDS": "32", "STREAMFLOW_BEAT": "0.25"}
    settings = load_settings({"beat": 0.75}, environ)
    assert settings == Settings(
        redis="redis://user:s3cret@example.org:6379/1",
        namespace="orders",
        shards=32,
        partition=Partition.TENANT,
        beat=0.75,
        dead_after=4.0,
    )
    found = find_settings({"beat": 0.75}, environ)
    assert found["beat"] == Found(0.75, "option", "--beat")
    assert found["shards"] == Found(32, "environment", "STREAMFLOW_SHARDS")
    assert found["partition"] == Found(Partition.TENANT, "file", f"{here}/streamflow.toml:6")
    assert found["threads"] == Found(Settings().threads, "default")
    assert list(found) == [*Settings.__struct_fields__, *CommandSettings.__struct_fields__]


@pytest.mark.parametrize("field", msgspec.structs.fields(Settings), ids=lambda field: field.name)
def test_every_setting_can_be_in_the_file(field: msgspec.structs.FieldInfo) -> None:
    value = field.default
    text = f"{field.name} = {value if isinstance(value, int | float) else repr(str(value))}\n"
    environ = write(text)
    assert find_settings({}, environ)[field.name].source == "file"
    assert load_settings({}, environ) == Settings()


def test_the_project_here_counts_if_it_has_the_table(here: Path) -> None:
    write('[project]\nname = "streamflow-flows"\n[tool.streamflow]\nshards = 8\n', "pyproject.toml")
    assert load_settings({}, {}).shards == 8
    assert find_settings({}, {})["shards"].place == f"{here}/pyproject.toml:4"
    environ = write("threads = 2\n")
    assert load_settings({}, environ) == Settings(threads=2), "one file at a time"
    assert load_settings({}, {"STREAMFLOW_CONFIG": os.devnull}) == Settings()
    assert load_settings({}, {"STREAMFLOW_CONFIG": "pyproject.toml"}).shards == 8
    write('[project]\nname = "streamflow-flows"\n', "pyproject.toml")
    assert load_settings({}, {}) == Settings()


def test_directories_above_are_not_searched(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("[tool.streamflow]\nshards = 8\n", "pyproject.toml")
    (here / "below").mkdir()
    monkeypatch.chdir(here / "below")
    assert load_settings({}, {}) == Settings()


def test_a_project_of_another_user_is_refused_unless_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    write("[tool.streamflow]\nshards = 8\n", "pyproject.toml")
    monkeypatch.setattr(settings_file.os, "geteuid", lambda: 4242)
    if Path("pyproject.toml").stat().st_uid != 0:
        message = refusal({})
        assert "belongs to another user" in message
        assert "add --config pyproject.toml" in message
    else:  # root's are accepted
        os.chown("pyproject.toml", 4243, -1)
        assert "belongs to another user" in refusal({})
    assert load_settings({}, {"STREAMFLOW_CONFIG": "pyproject.toml"}).shards == 8
    write("[tool.other]\nname = 'streamflow'\n", "pyproject.toml")
    assert load_settings({}, {}) == Settings(), "it has nothing for us"


@pytest.mark.parametrize("data", [b"[tool.streamflow", b"\xff\xfe[\0", b'name = "streamflow"\n[broken'])
def test_a_broken_project_is_refused_only_if_it_may_have_settings(data: bytes) -> None:
    Path("pyproject.toml").write_bytes(data)
    if b"tool.streamflow" in data:
        assert "pyproject.toml is not valid TOML" in refusal({})
    else:
        assert load_settings({}, {}) == Settings()


def test_a_client_finds_the_same_file(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STREAMFLOW_REDIS", "STREAMFLOW_NAMESPACE", "STREAMFLOW_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    write("[tool.streamflow]\nredis = 'redis://example.org:1'\nnamespace = 'orders'\n", "pyproject.toml")
    client = sf.connect()
    assert (client.store.url, client.namespace) == ("redis://example.org:1", "orders")
    write("[tool.streamflow]\nredsi = 1\n", "pyproject.toml")
    assert sf.connect("redis://example.org:2", namespace="n").namespace == "n", "what is set here doesn't matter"
    with pytest.raises(UsageError, match="unknown setting redsi"):
        sf.connect("redis://example.org:2")


def test_what_only_commands_take_is_checked_and_given_to_them() -> None:
    environ = write('app = "flows:app"\nlog_level = "debug"\nworker_concurrency = 2\nshards = 8\n')
    assert file_values(environ) == {"app": "flows:app", "log_level": "debug", "worker_concurrency": 2}
    assert load_settings({}, environ) == Settings(shards=8)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\nredsi = 'x'\n", ":2: unknown setting redsi; did you mean redis?"),
        ("wholly-unknown = 1\n", ":1: unknown setting wholly-unknown; `streamflow config` lists the settings"),
        ("[streamflow]\nshards = 1\n", ": unknown setting streamflow; settings stand in no table of their own"),
        ("[tool.streamflow]\nshards = 1\n", ": unknown setting tool; the table [tool.streamflow] is for a file of"),
        ("shards = '64'\n", ":1: shards='64': Expected `int`, got `str`; write shards = 64, without quotes"),
        ("shards = 'many'\n", ":1: shards='many': Expected `int`, got `str`"),
        ("shards = true\n", ":1: shards=True: Expected `int`, got `bool`"),
        ("shards = 1.5\n", ":1: shards=1.5: Expected `int`, got `float`"),
        ("beat = '0.5'\n", ":1: beat='0.5': Expected `float`, got `str`"),
        ("beat = nan\n", ":1: beat"),
        ("grace = inf\n", ":1: grace: grace must be a number of seconds up to 1e+09, got inf"),
        ("shards = 0\n", ":1: shards=0: Expected `int` >= 1"),
        ("partition = 'color'\n", "'color'; allowed are run, tenant, workflow"),
        ("log_level = 'loud'\n", "'loud'; allowed are debug, error, info, warning"),
        ("log_format = 'xml'\n", "'xml'; allowed are json, text"),
        ("worker_concurrency = 0\n", ":1: worker_concurrency=0: Expected `int` >= 1"),
        ("namespace = 'a b'\n", ":1: namespace: namespace 'a b' is not allowed"),
        ("redis = 'http://:s3cret@host'\n", ":1: redis: can't use the server URL 'http://***@host'"),
        ("redis = ['redis://:s3cret@host']\n", ":1: redis=['redis://***@host']: Expected `str`, got `array`"),
        ("[redis]\nhost = 'x'\n", ": redis={'host': 'x'}: Expected `str`, got `object`"),
        ("beat = 5.0\n", "(beat is from "),
        ("a = \n", " is not valid TOML: Invalid value (at line 1, column 5); a text stands in quotes"),
        ("beat = 1\nbeat = 2\n", " is not valid TOML: Cannot overwrite a value"),
        (f"beat = {'[' * 5000}", " is not valid TOML: "),
    ],
)
def test_a_mistake_names_the_file_its_line_and_the_key(here: Path, text: str, message: str) -> None:
    environ = write(text)
    said = refusal(environ)
    assert f"{here}/streamflow.toml" in said
    assert message in said
    assert "s3cret" not in said
    assert said in find_mistakes({}, environ)


def test_every_mistake_is_found_at_once() -> None:
    environ = write("redsi = 1\nshards = 'x'\nbeat = 0\n") | {"STREAMFLOW_GRACE": "soon"}
    mistakes = find_mistakes({}, environ)
    assert len(mistakes) == 4
    for part in ("toml:1: unknown setting redsi", "toml:2: shards=", "toml:3: beat=", "STREAMFLOW_GRACE='soon'"):
        assert any(part in mistake for mistake in mistakes)


def test_a_file_that_cannot_be_read_is_named(here: Path) -> None:
    assert refusal({"STREAMFLOW_CONFIG": "none.toml"}) == (
        f"can't read the settings file {here}/none.toml: No such file or directory"
    )
    assert "it is not a regular file" in refusal({"STREAMFLOW_CONFIG": str(here)})
    Path("wide.toml").write_bytes("shards = 1".encode("utf-16"))
    assert "it is UTF-16; save it as UTF-8" in refusal({"STREAMFLOW_CONFIG": "wide.toml"})
    Path("latin.toml").write_bytes(b"# caf\xe9\n")
    assert "byte 5 is not UTF-8" in refusal({"STREAMFLOW_CONFIG": "latin.toml"})
    Path("marked.toml").write_bytes(b"\xef\xbb\xbfshards = 8\r\nthreads = 3\r\n")
    assert load_settings({}, {"STREAMFLOW_CONFIG": "marked.toml"}) == Settings(shards=8, threads=3)


# --- lines ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[tool.streamflow]\nshards = 8\n", 2),
        ("[tool.other]\nshards = 1\n[ tool . 'streamflow' ] # ours\n\nshards = 8", 5),
        ('[tool.streamflow]\napp = """\nshards = 1\n[tool.other]\n"""\nshards = 8', 6),
        ("[[list]]\nshards = 1\n[tool.streamflow]\n'shards' = 8", 4),
        ("[tool]\nstreamflow = {shards = 8}\n", 0),
        ("tool.streamflow.shards = 8\n", 0),
    ],
)
def test_the_line_of_a_key_is_found_among_texts_and_other_tables(here: Path, text: str, line: int) -> None:
    write(text, "pyproject.toml")
    place = find_settings({}, {})["shards"].place
    assert place == f"{here}/pyproject.toml" + (f":{line}" if line else "")
