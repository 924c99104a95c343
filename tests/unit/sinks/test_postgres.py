"""The sink `postgres` on a real PostgreSQL: each event once, whatever comes twice, and a row for each run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import anyio
import psycopg
import pytest

from streamflow import events as ev
from streamflow import sinks
from streamflow.client.committed import CommittedEvent
from streamflow.errors import Failure, UsageError
from streamflow.sinks import Postgres, TargetError, runner
from streamflow.sinks.columns import columns_of
from streamflow.sinks.targets import postgres
from tests.support.postgres import PostgresServer
from tests.support.sink_events import FakeBatch, FakeClient, made, raw, step_done

pytestmark = pytest.mark.anyio


async def write(server: PostgresServer, schema: str, *batches: Sequence[CommittedEvent]) -> None:
    sink = Postgres(server.url, into=schema)
    sink.group = "warehouse"
    try:
        await sink.open()
        for events in batches:
            await sink.write(FakeBatch(events))
    finally:
        await sink.close()


def rows(server: PostgresServer, query: str) -> list[Any]:
    with psycopg.connect(server.url) as connection:
        return connection.execute(query.encode()).fetchall()


async def test_an_event_that_comes_again_is_there_once(postgres_server: PostgresServer, schema: str) -> None:
    first = [made(ev.RunStarted("order", "acme", raw([7])), 0), step_done(1, {"cents": 990})]
    await write(postgres_server, schema, first, first)
    await write(postgres_server, schema, [*first, step_done(2)])
    shown = "SELECT id, kind, workflow, tenant, name, ms, data->'result'->>'cents' FROM {}.events ORDER BY log_offset"
    assert rows(postgres_server, shown.format(schema)) == [
        ("r1:c0:0", "RunStarted", "order", "acme", None, None, None),
        ("r1:c1:0", "StepCompleted", "order", "acme", "charge", 12.5, "990"),
        ("r1:c2:0", "StepCompleted", "order", "acme", "charge", 12.5, None),
    ]
    assert rows(postgres_server, f"SELECT status, events FROM {schema}.runs") == [("running", 3)]
    positions = f"SELECT consumer_group, shard, log_offset, events FROM {schema}.positions"
    assert rows(postgres_server, positions) == [("warehouse", 0, "1764496002000-0", 3)]


async def test_a_run_s_row_follows_its_events(postgres_server: PostgresServer, schema: str) -> None:
    failed = made(ev.RunFailed("order", "acme", 2000, Failure("Declined", "no\0money")), 2)
    query = f"SELECT status, ended_at IS NULL, ms, error_kind, error, input, result, steps, retries FROM {schema}.runs"
    begin = [made(ev.RunStarted("order", "acme", raw({"id": 2**60})), 0), made(ev.StepScheduled(1, "pay", raw([])), 1)]
    await write(postgres_server, schema, begin, [failed])
    [row] = rows(postgres_server, query)
    assert row == ("failed", False, 2000.0, "Declined", "no\u2400money", {"id": str(2**60)}, None, 1, 0)
    await write(postgres_server, schema, [made(ev.RunRetried("order", "acme", 1, 1), 3)])
    [row] = rows(postgres_server, query)
    assert row == ("running", True, None, None, None, {"id": str(2**60)}, None, 1, 0)
    await write(postgres_server, schema, [made(ev.RunCompleted("order", "acme", 4000, raw("ok")), 4)])
    [row] = rows(postgres_server, query)
    assert row == ("completed", False, 4000.0, None, None, {"id": str(2**60)}, "ok", 1, 0)


@pytest.mark.parametrize("value", ["a\0b", {"k\0": ["\0"]}, 2**64 - 1, float("inf"), b"\0", "\\u0000", "𝄞\u202e"])
async def test_no_payload_stops_the_table(postgres_server: PostgresServer, schema: str, value: Any) -> None:
    await write(postgres_server, schema, [step_done(1, value)])
    assert rows(postgres_server, f"SELECT count(*) FROM {schema}.events") == [(1,)]


async def test_data_that_the_database_refuses_is_left_out_of_its_row_only(
    postgres_server: PostgresServer, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(event: CommittedEvent) -> dict[str, Any]:
        columns = columns_of(event)
        if event.id == "r1:c2:0":  # nested deeper than the server's stack
            deep: Any = []
            for _ in range(900):
                deep = [deep]
            columns["data"] = {"deep": "x"} | {"raw": deep}
        return columns

    monkeypatch.setattr(postgres, "columns_of", refused)
    sink = Postgres(f"{postgres_server.url} options='-c max_stack_depth=100kB'", into=schema)
    await sink.open()
    await sink.write(FakeBatch([step_done(1, "one"), step_done(2, "two"), step_done(3, "three")]))
    await sink.close()
    shown = rows(postgres_server, f"SELECT data->>'result', data ? 'refused' FROM {schema}.events ORDER BY log_offset")
    assert shown == [("one", False), (None, True), ("three", False)]


async def test_two_that_write_one_shard_at_once_leave_each_event_once(
    postgres_server: PostgresServer, schema: str
) -> None:
    """A consumer that was stopped in the middle of a write, and the one that has taken its shard."""
    batch = [step_done(position, position) for position in range(200)]
    await write(postgres_server, schema)
    async with anyio.create_task_group() as both:
        both.start_soon(write, postgres_server, schema, batch, batch)
        both.start_soon(write, postgres_server, schema, batch[:100], batch)
    assert rows(postgres_server, f"SELECT count(*) FROM {schema}.events") == [(200,)]
    assert rows(postgres_server, f"SELECT events FROM {schema}.runs") == [(200,)]


async def test_a_user_who_may_only_write_needs_no_rights_to_create(
    postgres_server: PostgresServer, schema: str
) -> None:
    await write(postgres_server, schema, [step_done(1)])
    with psycopg.connect(postgres_server.url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {schema}_etl LOGIN".encode())
        connection.execute(f"GRANT USAGE ON SCHEMA {schema} TO {schema}_etl".encode())
        connection.execute(f"GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA {schema} TO {schema}_etl".encode())
    sink = Postgres(postgres_server.url.replace("user=streamflow", f"user={schema}_etl"), into=schema)
    await sink.open()
    await sink.write(FakeBatch([step_done(2)]))
    await sink.close()
    assert rows(postgres_server, f"SELECT count(*) FROM {schema}.events") == [(2,)]


async def test_a_server_that_does_not_answer_is_named_without_the_password() -> None:
    sink = Postgres("postgresql://etl:geheim@127.0.0.1:1/warehouse")
    with pytest.raises(TargetError) as failure:
        await sink.open()
    await sink.close()
    assert "geheim" not in str(failure.value)
    assert "127.0.0.1" in str(failure.value)
    with pytest.raises(UsageError) as wrong:
        await Postgres("postgresql://etl:geheim@[").open()
    assert "geheim" not in str(wrong.value)


async def test_a_server_that_dies_in_the_middle_has_each_event_once(
    postgres_server: PostgresServer, schema: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runner, "FIRST_PAUSE", 0.01)
    killed = False

    class Killing(Postgres):
        async def _insert(self, batch: Any, rows: Any) -> None:
            nonlocal killed
            await super()._insert(batch, rows)
            if batch.offset == client.left[1].offset and not killed:
                killed = True
                postgres_server.kill()
                with pytest.raises(TargetError):  # the server has it, and nobody knows
                    await super().write(batch)
                postgres_server.start()
                raise psycopg.OperationalError("server closed the connection unexpectedly")

    client = FakeClient(*[[step_done(3 * n), step_done(3 * n + 1), step_done(3 * n + 2)] for n in range(4)])
    with caplog.at_level(logging.INFO, "streamflow.sinks"):
        figures = await sinks.run(client, Killing(postgres_server.url, into=schema), group="g")
    assert killed
    assert figures.failures == 1
    assert rows(postgres_server, f"SELECT count(*), max(events) FROM {schema}.runs") == [(1, 12)]
    assert rows(postgres_server, f"SELECT count(*) FROM {schema}.events") == [(12,)]
    assert "server closed the connection unexpectedly" in caplog.text


def test_the_schema_needs_no_quotes() -> None:
    assert "CREATE TABLE IF NOT EXISTS flows.events" in Postgres("", into="flows").ddl
    with pytest.raises(UsageError):
        Postgres("", into="x; DROP TABLE runs")
