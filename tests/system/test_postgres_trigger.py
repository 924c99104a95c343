"""Rows of PostgreSQL, and its notifications, as sources of triggers, on a real server."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

import streamflow as sf
from streamflow import triggers
from streamflow.cli import cli
from streamflow.triggers.postgres_connection import open_connection
from streamflow.triggers.postgres_outbox import ddl
from streamflow.triggers.pulled import SourceFailed
from streamflow.triggers.quarantine import DeliveryQuarantine
from tests.support.postgres import PostgresServer, postgres_of_this_process
from tests.support.pulling import receiving
from tests.support.waiting import until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio

app = sf.App()


@app.workflow
async def build(commit: str) -> str:
    return f"built {commit}"


@pytest.fixture(scope="module")
def postgres_server() -> Iterator[PostgresServer]:
    yield from postgres_of_this_process()


class Database:
    """A table of its own for each test."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.table = f"outbox_{uuid.uuid4().hex[:12]}"
        self.channel = f"Channel of {self.table}"

    def run(self, statement: str, *values: Any) -> Any:
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement.replace("{table}", self.table).encode(), values or None)
            return cursor.fetchall() if cursor.description else None

    def add(self, commit: str, channel: str = "", key: str | None = None) -> None:
        payload = json.dumps({"commit": commit})
        self.run(
            "INSERT INTO {table} (channel, key, payload) VALUES (%s, coalesce(%s, gen_random_uuid()::text), %s)",
            channel or self.channel, key, payload,
        )  # fmt: skip

    def trigger(self, **options: Any) -> triggers.Trigger[Any]:
        given: dict[str, Any] = {"url": self.url, "table": self.table, "poll": 3600, **options}
        source = triggers.postgres(self.channel, **given)

        @sf.App().trigger(source, name="ordered")
        def ordered(delivery: triggers.Delivery[dict[str, str]]) -> triggers.Action:
            return triggers.start(build, delivery.payload["commit"] + delivery.headers.get("mark", ""))

        return ordered


@pytest.fixture
def database(postgres_server: PostgresServer) -> Database:
    database = Database(postgres_server.url)
    database.run(ddl(database.table))
    return database


async def built(client: sf.Client, count: int) -> list[str]:
    async def are_there() -> bool:
        return len(await client.runs(status="completed", limit=1000)) >= count

    await until(are_there)
    return sorted([await client.run(run.id).result(10) for run in await client.runs(limit=1000)])


async def test_rows_start_runs_and_are_deleted(serve: Serve, database: Database) -> None:
    for number in range(100):
        database.add(f"{number:02}")
    database.add("of another channel", "other")
    async with (
        serve(app) as (client, _),
        receiving(client, database.trigger()),
        receiving(client, database.trigger()),
    ):
        assert await built(client, 100) == [f"built {number:02}" for number in range(100)]
        database.add("late")  # the bell rings: they look by themselves in an hour only
        await built(client, 101)

        async def one_is_left() -> bool:
            return database.run("SELECT payload->>'commit' FROM {table}") == [("of another channel",)]

        await until(one_is_left)


async def test_a_row_counts_when_its_transaction_is_committed(serve: Serve, database: Database) -> None:
    async with serve(app) as (client, _), receiving(client, database.trigger(poll=0.05)):
        insert = f"INSERT INTO {database.table} (channel, payload, headers) VALUES (%s, %s, %s)"
        with psycopg.connect(database.url) as connection:
            connection.execute(insert.encode(), (database.channel, '{"commit": "gone"}', "{}"))
            connection.rollback()
            connection.execute(insert.encode(), (database.channel, '{"commit": "kept"}', '{"Mark": "!"}'))
            database.add("first")
            assert await built(client, 1) == ["built first"]
        assert await built(client, 2) == ["built first", "built kept!"]


async def test_rows_with_one_key_are_one_delivery(serve: Serve, database: Database) -> None:
    async with serve(app) as (client, _), receiving(client, database.trigger()):
        for number in range(3):
            database.add("one", key="order 17")
            database.add(f"other {number}")
        assert await built(client, 4) == ["built one", "built other 0", "built other 1", "built other 2"]


async def test_poison_is_quarantined_and_a_row_that_is_too_long_stays(serve: Serve, database: Database) -> None:
    database.run("INSERT INTO {table} (channel, payload) VALUES (%s, '17')", database.channel)
    database.add("x" * 5000)
    database.add("good")
    async with serve(app) as (client, _), receiving(client, database.trigger(max_body=100)):
        assert await built(client, 1) == ["built good"]

        async def both_are_kept() -> bool:
            return len(await DeliveryQuarantine(client).list()) == 2

        await until(both_are_kept)
        poison, long = sorted(await DeliveryQuarantine(client).list(), key=lambda one: one.size)
        assert poison.body == b"17"
        assert (long.size, len(long.body)) == (5014, 4096)

        async def one_is_left() -> bool:
            left = database.run("SELECT id, refused FROM {table}")
            return left == [(2, "its payload has 5014 bytes, more than max_body=100")]

        await until(one_is_left)
        assert f"it stays in the table {database.table}, as the row with the id 2" in long.reason


async def test_each_new_row_of_a_table_can_be_a_delivery(serve: Serve, database: Database) -> None:
    """The trigger in SQL of the guide, on a table that knows nothing of streamflow."""
    orders = f"orders_{database.table}"
    database.run(f"CREATE TABLE {orders} (id uuid DEFAULT gen_random_uuid(), commit text)")
    database.run(
        f"CREATE TRIGGER new_order AFTER INSERT ON {orders} FOR EACH ROW "
        f"EXECUTE FUNCTION {database.table}_add('{database.channel}')"
    )
    async with serve(app) as (client, _), receiving(client, database.trigger()):
        database.run(f"INSERT INTO {orders} (commit) VALUES ('a'), ('b')")
        assert await built(client, 2) == ["built a", "built b"]


async def test_a_database_that_restarts_is_waited_for(
    serve: Serve, database: Database, postgres_server: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(app) as (client, _), receiving(client, database.trigger()):
        database.add("before")
        await built(client, 1)
        with caplog.at_level(logging.WARNING, "streamflow.triggers"):
            postgres_server.kill()

            async def is_said() -> bool:
                return "trigger ordered receives nothing, will retry: " in caplog.text

            await until(is_said)
            postgres_server.start()
        database.add("after")
        assert await built(client, 2) == ["built after", "built before"]


async def test_a_missing_table_and_a_wrong_url_are_said(
    serve: Serve, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(app) as (client, _), receiving(client, database.trigger(table="missing")):

        async def is_said() -> bool:
            return "there is no table missing: create it with what `streamflow trigger postgres-schema`" in caplog.text

        await until(is_said)
    with pytest.raises(SourceFailed, match="connection"):
        async with open_connection("host=/nowhere dbname=x"):
            pass
    with pytest.raises(sf.UsageError, match="can't be read"):
        async with open_connection("postgres//"):
            pass


def test_mistakes_are_named_and_no_password_stands_in_code() -> None:
    for url in ("postgresql://me:geheim@db/shop", "host=db password=geheim"):
        with pytest.raises(sf.UsageError, match="has a password") as failure:
            triggers.postgres("orders", url=url)
        assert "geheim" not in str(failure.value)
    with pytest.raises(sf.UsageError, match=r"NAME or SCHEMA\.NAME"):
        triggers.postgres("orders", table="x; DROP TABLE y")
    with pytest.raises(sf.UsageError, match="1 to 63 bytes"):
        triggers.postgres_notify("é" * 32)


def test_the_command_prints_what_creates_the_table(postgres_server: PostgresServer) -> None:
    printed = CliRunner().invoke(cli, ["trigger", "postgres-schema", "--table", "shop.outbox"])
    assert printed.exit_code == 0, printed.output
    with psycopg.connect(postgres_server.url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA shop")
        for _ in range(2):  # it may be there
            connection.execute(printed.stdout.encode())
        connection.execute("INSERT INTO shop.outbox (channel, payload) VALUES ('a', '1'), ('b', '{}')")
        assert connection.execute("SELECT count(*) FROM shop.outbox").fetchone() == (2,)
    refused = CliRunner().invoke(cli, ["trigger", "postgres-schema", "--table", "a b"])
    assert refused.exit_code == 2


# --- notifications alone ----------------------------------------------------------------------------------------------


@asynccontextmanager
async def hearing(client: sf.Client, database: Database, count: int) -> AsyncGenerator[None, None]:
    """`count` processes that serve the trigger, one of which listens."""

    @sf.App().trigger(triggers.postgres_notify(database.channel, url=database.url), name="heard")
    def heard(delivery: triggers.Delivery[dict[str, str]]) -> triggers.Action:
        return triggers.start(build, delivery.payload["commit"])

    async def one_listens() -> bool:
        locks = database.run("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted")
        listens = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%%' AND query LIKE %s"
        return locks == [(1,)] and database.run(listens, f"%{database.channel}%") == [(1,)]

    async with receiving(client, *[heard] * count):
        await until(one_listens)
        yield


async def test_of_several_processes_one_hears_a_notification(serve: Serve, database: Database) -> None:
    async with serve(app) as (client, _):
        async with hearing(client, database, 3):
            for commit in ("same", "same", "other"):
                database.run("SELECT pg_notify(%s, %s)", database.channel, json.dumps({"commit": commit}))
            assert await built(client, 3) == ["built other", "built same", "built same"]
        database.run("SELECT pg_notify(%s, %s)", database.channel, json.dumps({"commit": "lost"}))
        async with hearing(client, database, 1):
            database.run("SELECT pg_notify(%s, %s)", database.channel, json.dumps({"commit": "last"}))
            assert await built(client, 4) == ["built last", "built other", "built same", "built same"]
