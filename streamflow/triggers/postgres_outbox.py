"""The table from which `sf.triggers.postgres` reads, and its statements.

Owns: the DDL, which `streamflow trigger postgres-schema` prints, and the SQL. Must not: connect to anything. Called by:
`postgres.py`, the command.
"""

from __future__ import annotations

import re

from streamflow.errors import UsageError

TABLE = "streamflow_outbox"
_TABLE = re.compile(r"(?:[a-z_][a-z0-9_]{0,50}\.)?[a-z_][a-z0-9_]{0,50}")

DDL = """\
-- What sf.triggers.postgres reads: a row that is inserted here is a delivery as soon as its transaction is committed.
CREATE TABLE IF NOT EXISTS {table} (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    channel    text NOT NULL                                  -- that of the trigger
               CHECK (octet_length(channel) BETWEEN 1 AND 63),
    key        text NOT NULL DEFAULT gen_random_uuid()::text, -- by which it is known: the same key again counts once
    payload    jsonb NOT NULL,
    headers    jsonb NOT NULL DEFAULT '{{}}',
    created_at timestamptz NOT NULL DEFAULT now(),
    refused    text                                           -- why the row stays here; null for those that wait
);
CREATE INDEX IF NOT EXISTS {name}_waiting ON {table} (channel, id) WHERE refused IS NULL;

-- A bell, so that triggers look at once. Without it they look every few seconds.
CREATE OR REPLACE FUNCTION {table}_ring() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify(channel, '') FROM (SELECT DISTINCT channel FROM added) AS channels;
    RETURN NULL;
END
$$;
CREATE OR REPLACE TRIGGER {name}_ring AFTER INSERT ON {table}
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION {table}_ring();

-- For a table of yours, of which each new row is a delivery:
--   CREATE TRIGGER new_order AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION {table}_add('orders');
CREATE OR REPLACE FUNCTION {table}_add() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO {table} (channel, payload) VALUES (TG_ARGV[0], to_jsonb(NEW));
    RETURN NULL;
END
$$;
"""

TAKE = """\
SELECT o.id, o.key, octet_length(b.body),
       CASE WHEN octet_length(b.body) <= %(most)s THEN b.body ELSE left(b.body, %(beginning)s) END, o.headers::text
FROM {table} AS o CROSS JOIN LATERAL (SELECT o.payload::text AS body) AS b
WHERE o.channel = %(channel)s AND o.refused IS NULL
ORDER BY o.id LIMIT %(limit)s FOR UPDATE OF o SKIP LOCKED
"""
"""Rows that nobody else has just taken, with the lengths of their payloads (bytes); of one that is too long only its
beginning."""
REFUSE = "UPDATE {table} SET refused = %s WHERE id = %s"
DELETE = "DELETE FROM {table} WHERE id = ANY(%s)"
EXISTS = "SELECT to_regclass(%s) IS NOT NULL"


def checked_table(table: str) -> str:
    """Raises `UsageError`: it is a part of statements."""
    if not _TABLE.fullmatch(table):
        raise UsageError(f"a table is NAME or SCHEMA.NAME in lower case, at most 50 characters each, got {table!r}")
    return table


def ddl(table: str = TABLE) -> str:
    """The statements that create the table, its bell, and the function for tables of users. PostgreSQL 14 or newer."""
    return DDL.format(table=checked_table(table), name=table.rpartition(".")[2])
