"""Events as Parquet files, one for each batch, in a directory or below a URL that fsspec knows.

Owns: the schema and the names of the files. Must not: remove a file with an event that no other file has.
Called by: `streamflow.sinks`, `streamflow sink parquet`.

A file's name has its shard, the position of its first event and that up to which it goes. A batch that comes again,
because this process was killed between the file and the acknowledgement, begins with the same event. If a file that
begins there goes as far, the batch is written already; one that doesn't go as far is replaced by the longer one.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import anyio.to_thread
from msgspec import Meta

from streamflow.errors import UsageError
from streamflow.sinks.columns import columns_of, json_without_nul
from streamflow.sinks.folders import Directory, Storage
from streamflow.sinks.sink import Sink, TargetError, required

if TYPE_CHECKING:
    from streamflow.client.committed import CommittedEvent
    from streamflow.client.subscription import EventBatch

CODECS = ("zstd", "snappy", "gzip", "lz4", "none")
_NAME = re.compile(r"events-(\d+)-([\d-]+)_([\d-]+)\.parquet")


class Parquet(Sink):
    """Write events as Parquet files, by day, into a directory or to a URL such as s3://bucket/events.

    TARGET is a directory, or a URL of fsspec (install s3fs for S3, gcsfs for Google's). A file is written under
    another name and gets its own when it is whole. Each batch is a file of one shard: the fuller the batches, the fewer
    files (--rows, --every). The files of one day (UTC) are in a directory of its date.

    \b
    Example:
      streamflow sink parquet /data/events --rows 100000 --every 300
    """

    def __init__(
        self,
        target: Annotated[str, Meta(title="TARGET")],
        *,
        rows: Annotated[int, Meta(ge=1, title="N", description="Events in a file, at most")] = 20_000,
        every: Annotated[
            float, Meta(gt=0, title="SECONDS", description="How long to wait for more events before a file is written")
        ] = 10.0,
        compression: Annotated[str, Meta(title="CODEC", description="zstd, snappy, gzip, lz4 or none")] = "zstd",
    ) -> None:
        if compression not in CODECS:
            raise UsageError(f"--compression {compression}: use {', '.join(CODECS)}")
        self.max_events = rows
        self.max_wait = every
        self._compression = compression
        self._folder = Storage(target) if "://" in target else Directory(Path(target))
        self._arrow: Any = None
        self._writer: Any = None
        self._schema: Any = None

    async def open(self) -> None:
        self._arrow = required("pyarrow", "parquet")
        self._writer = required("pyarrow.parquet", "parquet")
        self._schema = _schema(self._arrow)
        await anyio.to_thread.run_sync(self._folder.open)

    async def write(self, batch: EventBatch) -> None:
        if batch.events:
            await anyio.to_thread.run_sync(self._write, batch)

    def _write(self, batch: EventBatch) -> None:
        day, first = batch.events[0].at.strftime("%Y-%m-%d"), batch.events[0].offset
        begin = f"events-{batch.shard:04}-{first}_"
        shorter: list[str] = []
        try:
            for name in self._folder.names(day, begin):
                match = _NAME.fullmatch(name)
                if match is not None and _order(match[3]) >= _order(batch.offset):
                    return
                if match is not None:
                    shorter.append(name)
            self._folder.put(day, f"{begin}{batch.offset}.parquet", self._bytes(batch.events))
            for name in shorter:
                self._folder.remove(day, name)
        except OSError as error:
            raise TargetError(f"can't write to {self._folder.shown}: {error}") from error

    def _bytes(self, events: Sequence[CommittedEvent]) -> bytes:
        rows = [columns_of(event) for event in events]
        columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in self._schema.names}
        columns["data"] = [json_without_nul(row["data"]).decode() for row in rows]
        columns["at"] = [event.at for event in events]
        columns["run_created"] = [event.created or None for event in events]
        out = io.BytesIO()
        self._writer.write_table(self._arrow.table(columns, schema=self._schema), out, compression=self._compression)
        return out.getvalue()


def _schema(arrow: Any) -> Any:
    """Names that repeat are dictionaries; times are UTC."""
    text, name = arrow.string(), arrow.dictionary(arrow.int32(), arrow.string())
    time = arrow.timestamp("ms", tz="UTC")
    always = {"nullable": False}
    return arrow.schema(
        [
            arrow.field("id", text, **always),
            arrow.field("kind", name, **always),
            arrow.field("run_id", text, **always),
            arrow.field("run_created", time),
            arrow.field("workflow", name, **always),
            arrow.field("tenant", name, **always),
            arrow.field("at", time, **always),
            arrow.field("name", name),
            arrow.field("seq", arrow.int64()),
            arrow.field("attempt", arrow.int32()),
            arrow.field("ms", arrow.float64()),
            arrow.field("error_kind", name),
            arrow.field("error", text),
            arrow.field("shard", arrow.int32(), **always),
            arrow.field("log_offset", text, **always),
            arrow.field("number", arrow.int32(), **always),
            arrow.field("data", text, **always),
        ],
        metadata={"streamflow.schema": "1"},
    )


def _order(offset: str) -> tuple[int, ...]:
    """Positions in a log are two numbers, and are compared as such."""
    return tuple(int(part) for part in offset.split("-"))
