"""Every setting once: its name, default, unit and meaning.

Owns: defaults. The command line makes its options from this struct; `STREAMFLOW_<NAME>` overrides a default, an option
overrides both. What every daemon must share (shards, partition) is stored in the namespace's meta record instead and
only *offered* here. Must not: read files.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from streamflow.errors import UsageError
from streamflow.model.sharding import Partition

WORKER_CONCURRENCY = 16
"""Steps that a worker runs at the same time, unless it is told otherwise: it takes no more than it can run."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Durations are seconds; memory is counted in entries."""

    redis: Annotated[str, Meta(description="URL of the Redis or Valkey server")] = "redis://127.0.0.1:6379"
    namespace: Annotated[str, Meta(description="prefix of every key; one deployment is one namespace")] = "default"
    shards: Annotated[int, Meta(description="shards of a new namespace; fixed once it exists", ge=1, le=16384)] = 256
    partition: Annotated[Partition, Meta(description="what a new namespace partitions by: run, tenant or workflow")] = (
        Partition.RUN
    )
    concurrency: Annotated[int, Meta(description="steps that one daemon runs at the same time", ge=1)] = 1000
    threads: Annotated[int, Meta(description="threads for steps that are plain functions", ge=1)] = 16
    processes: Annotated[int, Meta(description="processes for process=True steps; 0: one for each core", ge=0)] = 0
    cache: Annotated[int, Meta(description="idle runs that a daemon keeps ready in memory", ge=1)] = 4096
    beat: Annotated[float, Meta(description="seconds between two signs of life of a daemon", gt=0)] = 0.5
    dead_after: Annotated[float, Meta(description="seconds without a sign of life before others take over", gt=0)] = 2.0
    grace: Annotated[float, Meta(description="seconds that steps get to finish on SIGTERM or hand-over", ge=0)] = 10.0
    worker_timeout: Annotated[float, Meta(description="seconds of silence after which a worker is dead", gt=0)] = 10.0
    rollup: Annotated[float, Meta(description="seconds between two updates of the views", gt=0)] = 1.0
    retention: Annotated[float, Meta(description="seconds that an ended run is kept; 0: for ever", ge=0)] = 604_800.0
    log_entries: Annotated[int, Meta(description="entries of a shard's log that stay readable at least", ge=1)] = 1000
    blocking: Annotated[float, Meta(description="seconds a workflow may block its daemon before a warning", gt=0)] = 0.1


def load_settings(options: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Settings:
    """Settings from options (None means not given), then `STREAMFLOW_*` variables, then defaults.

    Raises `UsageError` naming the option or variable whose value is wrong.
    """
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(Settings):
        variable = f"STREAMFLOW_{field.name.upper()}"
        if options.get(field.name) is not None:
            values[field.name] = _convert(field, options[field.name], f"--{field.name.replace('_', '-')}")
        elif variable in environ:
            values[field.name] = _convert(field, environ[variable], variable)
    return Settings(**values)


def _convert(field: msgspec.structs.FieldInfo, value: object, source: str) -> Any:
    try:
        return msgspec.convert(value, field.type, strict=False)
    except msgspec.ValidationError as error:
        raise UsageError(f"{source}={value!r}: {error}") from error
