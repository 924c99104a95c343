"""Every setting once: its name, default, unit and effect.

Owns: defaults, the help texts of the options, and which of the places where a setting can be given counts: an option
overrides `STREAMFLOW_<NAME>`, which overrides the settings file, which overrides the default. The command line makes
its options from `Settings`. What every daemon must share (shards, partition) is stored in the namespace's meta record;
the values here only apply when a namespace is created.
Must not: know which file it is, or how it is written (settings_file.py does). Called by: the command line, daemons,
workers, clients.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta

from streamflow.archive_url import check_archive_url
from streamflow.errors import UsageError
from streamflow.model.names import check_name
from streamflow.model.retention import RetentionRules, parse_rules
from streamflow.model.sharding import Partition
from streamflow.server_url import USUAL, check_url, default_url, masked, redacted
from streamflow.settings_file import PROJECT, TABLE, SettingsFile, read_settings_file
from streamflow.suggestions import did_you_mean

PREFIX = "STREAMFLOW_"
"""Of the variables of the environment."""

CONFIG = f"{PREFIX}CONFIG"
"""The variable that names the settings file; `--config` sets it for its command and the processes that this starts."""

WORKER_CONCURRENCY = 16
"""Default number of steps that a worker runs at the same time. It claims no more than it can run."""

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
LOG_FORMATS: tuple[str, ...] = get_args(LogFormat)
LOG_LEVELS: tuple[str, ...] = get_args(LogLevel)
LONGEST = 1e9
"""Seconds, 31 years: the limit of a duration. In ms it is still an exact number for the server."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Durations are seconds."""

    redis: Annotated[str, Meta(description="URL of the Redis or Valkey server")] = USUAL
    namespace: Annotated[
        str, Meta(description="prefix of every key on the server; daemons, workers and clients of one app share it")
    ] = "default"
    shards: Annotated[
        int, Meta(description="number of shards if this daemon creates the namespace; fixed after that", ge=1, le=16384)
    ] = 256
    partition: Annotated[
        Partition,
        Meta(description="which runs share a shard if this daemon creates the namespace; fixed after that"),
    ] = Partition.RUN
    durability: Annotated[
        str,
        Meta(
            description="how safe a write has to be before it counts: server (it has executed it), disk (its "
            "append-only file is on the disk) or replicas:N (so many have received it); a daemon that says it changes "
            "it for the namespace; empty: as the namespace has it, server at first",
        ),
    ] = ""
    concurrency: Annotated[
        int, Meta(description="maximum number of steps that one daemon runs at the same time; others queue", ge=1)
    ] = 1000
    threads: Annotated[int, Meta(description="number of threads for steps that are plain functions", ge=1)] = 16
    processes: Annotated[
        int, Meta(description="number of processes for steps with process=True; 0: one for each core", ge=0)
    ] = 0
    cache: Annotated[
        int, Meta(description="maximum number of idle runs in a daemon's memory; others are replayed when needed", ge=1)
    ] = 4096
    memory: Annotated[
        int,
        Meta(
            description="MB of runs in a daemon's memory, about; above it idle ones are replayed when needed, and "
            "starts wait",
            ge=1,
        ),
    ] = 256
    admission: Annotated[
        int,
        Meta(
            description="runs that a daemon takes into one round of commits before it begins others, while tenants (or "
            "workflows) with few starts wait beside one with many: fewer make its burst delay the others less, more "
            "make it go through faster",
            ge=1,
        ),
    ] = 8
    beat: Annotated[float, Meta(description="seconds between two heartbeats of a daemon", gt=0)] = 0.5
    dead_after: Annotated[
        float,
        Meta(description="seconds without a heartbeat after which other daemons take over a daemon's shards", gt=0),
    ] = 2.0
    grace: Annotated[
        float,
        Meta(description="seconds that running steps get to finish on SIGTERM, or when a shard is handed over", ge=0),
    ] = 10.0
    worker_timeout: Annotated[
        float,
        Meta(description="seconds without a heartbeat after which a worker's steps are given to other workers", gt=0),
    ] = 10.0
    rollup: Annotated[float, Meta(description="seconds between two updates of the views", gt=0)] = 1.0
    retention: Annotated[
        float, Meta(description="seconds after which an ended run is deleted; 0: keep it forever", ge=0)
    ] = 604_800.0
    retention_rules: Annotated[
        str,
        Meta(
            description="other times for ended runs of a workflow or with a status, as in order=30d, order:failed=90d, "
            "*:failed=180d, report=keep"
        ),
    ] = ""
    archive: Annotated[
        str,
        Meta(
            description="URL of the storage to which ended runs are written before they are deleted, as "
            "file:///var/lib/streamflow/archive or s3://bucket/folder; a daemon that says it changes it for the "
            "namespace, none: it has none any more; empty: as the namespace has it, none at first"
        ),
    ] = ""
    hibernate_after: Annotated[
        float,
        Meta(
            description="seconds after which a run that only waits is moved out of the server's memory into the "
            "archive, until it is due or something comes for it; 0: never",
            ge=0,
        ),
    ] = 0.0
    large_payload: Annotated[
        int,
        Meta(
            description="bytes from which on a payload is in the storage of the archive and not on the server, 4096 at "
            "least, as 262144; a daemon that says it changes it for the namespace, above 2097152: no more go there; "
            "0: as the namespace has it, none at first",
            ge=0,
        ),
    ] = 0
    log_bytes: Annotated[
        int, Meta(description="bytes that the logs of all shards keep for readers, about; each an equal part", ge=1)
    ] = 268_435_456
    log_age: Annotated[
        float, Meta(description="seconds after which an entry of a log is deleted, also when nothing happens", gt=0)
    ] = 86_400.0
    group_bytes: Annotated[
        int,
        Meta(
            description="bytes that the logs of all shards keep besides for groups of subscribers and views of apps "
            "that are behind, about; each an equal part",
            ge=0,
        ),
    ] = 268_435_456
    group_age: Annotated[
        float,
        Meta(
            description="seconds after which an entry of a log is deleted also if a group or view is behind",
            gt=0,
        ),
    ] = 604_800.0
    stream_bytes: Annotated[
        int, Meta(description="bytes that the server keeps of what a run's steps emit, about; the newest", ge=1)
    ] = 1_048_576
    stream_age: Annotated[
        float, Meta(description="seconds after the last chunk that a run's steps have emitted until they go", ge=1)
    ] = 3600.0
    blocking: Annotated[
        float, Meta(description="seconds of workflow code without an await after which a warning is logged", gt=0)
    ] = 0.1
    interrupt: Annotated[
        float,
        Meta(
            description="seconds that a workflow may block its daemon before it is interrupted and its run parked; "
            "0: never",
            ge=0,
        ),
    ] = 5.0
    interrupt_steps: Annotated[
        float,
        Meta(
            description="seconds that an async step may block the event loop of its daemon or worker before it is "
            "interrupted and fails; 0: never",
            ge=0,
        ),
    ] = 30.0
    silent_after: Annotated[
        float,
        Meta(
            description="seconds without sf.heartbeat() after which a step that has called it is named as silent, and "
            "three times its longest pause so far; 0: never",
            ge=0,
        ),
    ] = 600.0
    http: Annotated[
        str,
        Meta(
            description="HOST:PORT at which this process answers /health, /ready and /metrics; empty: it doesn't, port "
            "0: any free one"
        ),
    ] = ""

    def __post_init__(self) -> None:
        """Settings that exist are valid: nothing is taken on a server with others. Raises `UsageError`."""
        check_url(self.redis)
        check_name("namespace", self.namespace)
        split_address(self.http)
        check_archive_url(self.archive)
        self.ended_rules  # noqa: B018  # raises, if it can't be read
        for field in msgspec.structs.fields(Settings):
            _check(field, getattr(self, field.name))
        if self.durability and not is_level(self.durability):
            raise UsageError(f"durability={self.durability!r}: it is server, disk or replicas:N")
        if self.dead_after <= self.beat:
            raise UsageError(
                f"dead_after={self.dead_after:g} must be longer than beat={self.beat:g}, better four times as long: "
                "else a daemon is considered dead between two of its heartbeats"
            )

    @property
    def ended_rules(self) -> RetentionRules:
        """How long ended runs are kept."""
        return parse_rules(self.retention_rules, self.retention)

    def __repr__(self) -> str:
        fields = {name: getattr(self, name) for name in self.__struct_fields__} | {"redis": redacted(self.redis)}
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in fields.items())})"


def is_level(durability: str) -> bool:
    return re.fullmatch(r"server|disk|replicas:[1-9][0-9]?", durability) is not None


def split_address(address: str) -> tuple[str, int] | None:
    """Host and port of `HOST:PORT`, with an IPv6 address in brackets; None for an empty one. Raises `UsageError`."""
    if not address:
        return None
    host, _, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    is_bare_ipv6 = ":" in host and bare == host
    if not bare or is_bare_ipv6 or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise UsageError(
            f"http={address!r} is not HOST:PORT: write 127.0.0.1:9464, 0.0.0.0:9464 for all interfaces, or [::]:9464"
        )
    return bare, int(port)


def _check(field: msgspec.structs.FieldInfo, value: object) -> None:
    """Raises `UsageError` for a value outside its limits, which a struct doesn't check when it is made in Python."""
    name = field.name
    if isinstance(value, float) and not value <= LONGEST:  # also not a number
        raise UsageError(f"{name} must be a number of seconds up to {LONGEST:g}, got {value:g}")
    try:
        msgspec.convert(value, field.type)
    except msgspec.ValidationError as error:
        reason = str(error)
        raise UsageError(f"{name}={value!r}: {reason[:1].lower()}{reason[1:]}") from None


class CommandSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What only commands take: given in the same places, used before a daemon or worker is made. None: it depends."""

    app: Annotated[str | None, Meta(description="the app, as MODULE:app or FILE.py:app")] = None
    path: Annotated[str | None, Meta(description="directories of packages of the app, separated as in PATH")] = None
    log_format: Annotated[LogFormat | None, Meta(description="log as text, or as one JSON object per line")] = None
    log_level: Annotated[LogLevel, Meta(description="minimum log level")] = "info"
    log_file: Annotated[str | None, Meta(description="log as JSON into this file instead of to stderr")] = None
    audit_log: Annotated[
        str | None, Meta(description="file that gets a JSON object for each run to which a command has done something")
    ] = None
    worker_concurrency: Annotated[
        int, Meta(description="maximum number of steps that one worker runs at the same time", ge=1)
    ] = WORKER_CONCURRENCY


_FIELDS = {field.name: field for kind in (Settings, CommandSettings) for field in msgspec.structs.fields(kind)}
VARIABLES = (CONFIG, f"{PREFIX}UNPACK_DIR", *(f"{PREFIX}{name.upper()}" for name in _FIELDS))
"""Every variable of the environment that is read."""


class Found(msgspec.Struct, frozen=True):
    """A setting's value, and where it comes from."""

    value: Any
    source: Literal["default", "file", "environment", "option"]
    place: str = ""
    """The file with its line, the variable, or the option. Empty for a default, or what the default depends on."""


def load_settings(options: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Settings:
    """Settings from options (None means not given), then `STREAMFLOW_*` variables, then the settings file, then
    defaults. The default server is that of `streamflow dev` in the working directory, if one runs there.

    Raises `UsageError`, which names the option, the variable, or the file with its line, whose value is wrong.
    """
    file = settings_file(environ)
    _check_keys(file)
    return _settings({name: found for name, found in _find(options, environ, file) if name in _SETTINGS})


def find_settings(options: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> dict[str, Found]:
    """Every setting by its name, those of commands too, with where it comes from. Raises `UsageError`."""
    file = settings_file(environ)
    _check_keys(file)
    found = dict(_find(options, environ, file))
    _settings({name: one for name, one in found.items() if name in _SETTINGS})
    for name, field in _FIELDS.items():
        found.setdefault(name, Found(field.default, "default"))
    if found["redis"].source == "default" and (url := default_url()) != USUAL:
        found["redis"] = Found(url, "default", "the server of `streamflow dev` here")
    return {name: found[name] for name in _FIELDS}


def file_values(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """What the settings file has for commands, by the names of `CommandSettings`. Raises `UsageError`."""
    file = settings_file(environ)
    _check_keys(file)
    return {name: found.value for name, found in _find({}, {}, file) if name not in _SETTINGS}


def settings_file(environ: Mapping[str, str] = os.environ) -> SettingsFile | None:
    """The settings file that counts here, its values unchecked. Raises `UsageError` if it can't be read."""
    return read_settings_file(environ.get(CONFIG) or None)


def find_mistakes(options: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> list[str]:
    """What is wrong with settings from options, variables and the file: each value alone, then all together."""
    mistakes: list[str] = []
    file: SettingsFile | None = None
    try:
        file = settings_file(environ)
    except UsageError as error:
        mistakes.append(str(error))
    mistakes += _unknown_keys(file)
    for name in _FIELDS:
        try:
            dict(_find(options, environ, file, name))
        except UsageError as error:
            mistakes.append(str(error))
    if not mistakes:
        try:
            load_settings(options, environ)
        except UsageError as error:
            mistakes.append(str(error))
    return mistakes


_SETTINGS = Settings.__struct_fields__
_TOGETHER = ("beat", "dead_after")
"""Checked against each other, when both are known."""


def _settings(found: Mapping[str, Found]) -> Settings:
    values = {name: one.value for name, one in found.items()}
    values.setdefault("redis", default_url())
    try:
        return Settings(**values)
    except UsageError as error:  # values that are right alone, and don't fit together
        places = [f"{name} is from {found[name].place}" for name in _TOGETHER if name in found]
        raise UsageError(f"{error} ({', '.join(places)})" if places else str(error)) from None


def _find(
    options: Mapping[str, Any], environ: Mapping[str, str], file: SettingsFile | None, *only: str
) -> Iterator[tuple[str, Found]]:
    """What is given somewhere, from the place that counts, converted and checked."""
    for name, field in _FIELDS.items():
        variable = f"{PREFIX}{name.upper()}"
        if only and name not in only:
            continue
        if options.get(name) is not None:
            option = f"--{name.replace('_', '-')}"
            yield name, Found(_convert(field, options[name], option), "option", option)
        elif variable in environ:
            yield name, Found(_convert(field, environ[variable], variable), "environment", variable)
        elif file is not None and name in file.values:
            place = file.place_of(name)
            yield name, Found(_convert(field, file.values[name], f"{place}: {name}", strict=True), "file", place)


def _convert(field: msgspec.structs.FieldInfo, value: object, source: str, strict: bool = False) -> Any:
    try:
        converted = msgspec.convert(value, field.type, strict=strict)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"{source}={masked(repr(value))}: {error}{_allowed(field) or _quoted(field, value, strict)}"
        ) from None
    if field.name in _SETTINGS and field.name not in _TOGETHER:
        try:
            Settings(**{field.name: converted})  # with all its checks
        except UsageError as error:
            raise UsageError(f"{source}: {error}") from None
    return converted


def _allowed(field: msgspec.structs.FieldInfo) -> str:
    """What a setting may be that has a few values."""
    values = _values(msgspec.inspect.type_info(field.type))
    return f"; allowed are {', '.join(values)}" if values else ""


def _quoted(field: msgspec.structs.FieldInfo, value: object, strict: bool) -> str:
    """What to write in the file instead of a number in quotes."""
    if not strict or not isinstance(value, str):
        return ""
    try:
        msgspec.convert(value, field.type, strict=False)
    except msgspec.ValidationError:
        return ""
    return f"; write {field.name} = {value}, without quotes"


def _values(kind: msgspec.inspect.Type) -> list[str]:
    match kind:
        case msgspec.inspect.Metadata(type=inner):
            return _values(inner)
        case msgspec.inspect.UnionType(types=kinds):
            return [value for inner in kinds for value in _values(inner)]
        case msgspec.inspect.LiteralType(values=values):
            return [str(value) for value in values]
        case msgspec.inspect.EnumType(cls=cls):
            return [str(member.value) for member in cls]
        case _:
            return []


def _check_keys(file: SettingsFile | None) -> None:
    if mistakes := _unknown_keys(file):
        raise UsageError("\n".join(mistakes))


def _unknown_keys(file: SettingsFile | None) -> list[str]:
    mistakes: list[str] = []
    if file is None:
        return mistakes
    for key, value in file.values.items():
        if key in _FIELDS:
            continue
        hint = did_you_mean(key, _FIELDS)
        if key == TABLE.partition(".")[0]:
            hint = f"; the table [{TABLE}] is for a file of the name {PROJECT}, in others settings stand at the top"
        elif isinstance(value, dict):
            hint = "; settings stand in no table of their own"
        elif not hint:
            hint = "; `streamflow config` lists the settings"
        mistakes.append(f"{file.place_of(key)}: unknown setting {key}{hint}")
    return mistakes
