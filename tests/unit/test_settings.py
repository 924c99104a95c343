"""Settings: an option before a variable before the default."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from streamflow.errors import UsageError
from streamflow.model.sharding import Partition
from streamflow.settings import Settings, load_settings


def test_nothing_given_is_the_defaults() -> None:
    assert load_settings({}, {}) == Settings()


def test_a_variable_overrides_the_default_and_an_option_the_variable() -> None:
    environ = {"STREAMFLOW_SHARDS": "64", "STREAMFLOW_NAMESPACE": "variable", "STREAMFLOW_DEAD_AFTER": "1.5"}
    settings = load_settings({"namespace": "option", "shards": None}, environ)
    assert settings == Settings(namespace="option", shards=64, dead_after=1.5)


def test_an_option_that_is_false_or_zero_is_given() -> None:
    assert load_settings({"retention": 0}, {"STREAMFLOW_RETENTION": "60"}).retention == 0


def test_a_partition_is_given_by_its_name() -> None:
    assert load_settings({}, {"STREAMFLOW_PARTITION": "tenant"}).partition is Partition.TENANT


def test_other_variables_are_left_alone() -> None:
    assert load_settings({"app": "flows:app"}, {"STREAMFLOW_UNKNOWN": "1", "SHARDS": "3"}) == Settings()


@pytest.mark.parametrize(
    ("options", "environ", "message"),
    [
        ({"dead_after": "soon"}, {}, "--dead-after='soon': "),
        ({"shards": 0}, {}, "--shards=0: "),
        ({"shards": 16385}, {}, "--shards=16385: "),
        ({}, {"STREAMFLOW_SHARDS": ""}, "STREAMFLOW_SHARDS='': "),
        ({}, {"STREAMFLOW_SHARDS": "many"}, "STREAMFLOW_SHARDS='many': "),
        ({}, {"STREAMFLOW_PARTITION": "color"}, "STREAMFLOW_PARTITION='color': "),
        ({}, {"STREAMFLOW_BEAT": "0"}, "STREAMFLOW_BEAT='0': "),
    ],
)
def test_a_wrong_value_is_refused_with_where_it_came_from(
    options: dict[str, Any], environ: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        load_settings(options, environ)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("field", msgspec.structs.fields(Settings), ids=lambda field: field.name)
def test_every_setting_is_described_and_its_default_is_allowed(field: msgspec.structs.FieldInfo) -> None:
    struct = msgspec.inspect.type_info(Settings)
    assert isinstance(struct, msgspec.inspect.StructType)
    (information,) = [f for f in struct.fields if f.name == field.name]
    assert isinstance(information.type, msgspec.inspect.Metadata)
    schema = information.type.extra_json_schema
    assert schema is not None
    assert schema["description"]
    assert msgspec.convert(msgspec.to_builtins(field.default), field.type) == field.default


def test_a_dead_daemon_is_noticed_within_three_seconds_by_default() -> None:
    assert Settings().beat * 2 < Settings().dead_after < 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"redis": "http://:secret@host"}, "can't use the server URL 'http://***@host'"),
        ({"redis": "redis://host?protocol=3"}, "the option protocol is not allowed"),
        ({"namespace": "a{b"}, "namespace"),
        ({"shards": 0}, "shards=0: expected `int` >= 1"),
        ({"concurrency": -1}, "concurrency=-1: "),
        ({"grace": float("nan")}, "grace must be a number of seconds up to 1e+09, got nan"),
        ({"retention": float("inf")}, "retention must be a number of seconds up to 1e+09, got inf"),
        ({"beat": 2.0, "dead_after": 2.0}, "dead_after=2 must be longer than beat=2"),
    ],
)
def test_settings_that_are_not_valid_can_t_be_made(fields: dict[str, Any], message: str) -> None:
    for make in (lambda: Settings(**fields), lambda: msgspec.structs.replace(Settings(), **fields)):
        with pytest.raises(UsageError) as caught:
            make()
        assert message in str(caught.value)


def test_a_password_is_not_in_the_text_of_settings() -> None:
    text = repr(Settings(redis="redis://:secret@host", namespace="other"))
    assert "secret" not in text
    assert "redis='redis://***@host', namespace='other'" in text
