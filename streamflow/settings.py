"""Every setting once: its name, default, unit and effect.

Owns: defaults, and the help texts of the options. The command line makes its options from this struct;
`STREAMFLOW_<NAME>` overrides a default, an option overrides both. What every daemon must share (shards, partition) is
stored in the namespace's meta record; the values here only apply when a namespace is created.
Must not: read files. Called by: the command line, daemons, workers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from streamflow.errors import UsageError
from streamflow.model.names import check_name
from streamflow.model.sharding import Partition
from streamflow.server_url import USUAL, check_url, default_url, redacted

PREFIX = "STREAMFLOW_"
"""Of the variables of the environment."""

WORKER_CONCURRENCY = 16
"""Default number of steps that a worker runs at the same time. It claims no more than it can run."""


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
    log_bytes: Annotated[
        int, Meta(description="bytes that the logs of all shards keep for readers, about; each an equal part", ge=1)
    ] = 268_435_456
    log_age: Annotated[
        float, Meta(description="seconds after which an entry of a log is deleted, also when nothing happens", gt=0)
    ] = 86_400.0
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
        for field in msgspec.structs.fields(Settings):
            _check(field, getattr(self, field.name))
        if self.dead_after <= self.beat:
            raise UsageError(
                f"dead_after={self.dead_after:g} must be longer than beat={self.beat:g}, better four times as long: "
                "else a daemon is considered dead between two of its heartbeats"
            )

    def __repr__(self) -> str:
        fields = {name: getattr(self, name) for name in self.__struct_fields__} | {"redis": redacted(self.redis)}
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in fields.items())})"


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


def load_settings(options: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Settings:
    """Settings from options (None means not given), then `STREAMFLOW_*` variables, then defaults. The default server is
    that of `streamflow dev` in the working directory, if one runs there.

    Raises `UsageError`, which names the option or variable whose value is wrong.
    """
    values = _values(options, environ)
    values.setdefault("redis", default_url())
    return Settings(**values)


def find_mistakes(options: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> list[str]:
    """What is wrong with settings from options and variables: each value alone, then all together."""
    mistakes: list[str] = []
    for field in msgspec.structs.fields(Settings):
        try:
            values = _values({field.name: options.get(field.name)}, environ, field.name)
            if field.name not in ("beat", "dead_after"):
                Settings(**values)
        except UsageError as error:
            mistakes.append(str(error))
    if not mistakes:
        try:
            load_settings(options, environ)
        except UsageError as error:
            mistakes.append(str(error))
    return mistakes


def _values(options: Mapping[str, Any], environ: Mapping[str, str], *only: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(Settings):
        variable = f"{PREFIX}{field.name.upper()}"
        if only and field.name not in only:
            continue
        if options.get(field.name) is not None:
            values[field.name] = _convert(field, options[field.name], f"--{field.name.replace('_', '-')}")
        elif variable in environ:
            values[field.name] = _convert(field, environ[variable], variable)
    return values


def _convert(field: msgspec.structs.FieldInfo, value: object, source: str) -> Any:
    try:
        return msgspec.convert(value, field.type, strict=False)
    except msgspec.ValidationError as error:
        raise UsageError(f"{source}={value!r}: {error}") from error
