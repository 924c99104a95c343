"""The tables of the Postgres sink, and the statements that fill them.

Owns: the DDL, which `streamflow sink postgres --schema` prints, and the SQL of a batch. Must not: connect to anything.
Called by: `postgres.py`.

Both statements take one parameter: the rows as a JSON array. So there is one round trip for each, and no type of a
column but its own says how a value is read.
"""

from __future__ import annotations

import re

from streamflow.errors import UsageError

DDL = """\
-- What `streamflow sink postgres` writes. Created when it isn't there; columns of your own may be added behind these.
CREATE SCHEMA IF NOT EXISTS {schema};

-- One row for each event, once.
CREATE TABLE IF NOT EXISTS {schema}.events (
    id          text PRIMARY KEY,
    kind        text NOT NULL,          -- such as StepCompleted
    run_id      text NOT NULL,
    run_created timestamptz NOT NULL,   -- tells runs from later ones with the same id
    workflow    text NOT NULL,
    tenant      text NOT NULL,          -- '' for none
    at          timestamptz NOT NULL,
    name        text,                   -- of the step, signal, question or child
    seq         bigint,                 -- number of the decision in its run
    attempt     integer,                -- of the step
    ms          double precision,       -- how long the step, child or run took
    error_kind  text,
    error       text,
    shard       integer NOT NULL,
    log_offset  text NOT NULL,          -- position in the shard's log
    number      integer NOT NULL,       -- position in the entry of the log
    data        jsonb NOT NULL          -- all fields of the event, payloads as JSON
);
CREATE INDEX IF NOT EXISTS events_run ON {schema}.events (run_id, run_created);
CREATE INDEX IF NOT EXISTS events_at ON {schema}.events USING brin (at);

-- One row for each run, kept up to date by the same transactions.
CREATE TABLE IF NOT EXISTS {schema}.runs (
    run_id      text NOT NULL,
    created     timestamptz NOT NULL,
    workflow    text NOT NULL,
    tenant      text NOT NULL,
    status      text,                   -- pending, running, stuck, paused, completed, failed, cancelled
    parent      text,                   -- id of the run that has started it
    forked_from text,                   -- id of the run whose history it shares
    version     integer,                -- of the workflow's code
    generation  integer,                -- how often it has continued as new
    started_at  timestamptz,
    ended_at    timestamptz,
    ms          double precision,       -- from its start to its end
    error_kind  text,
    error       text,                   -- why it failed, was cancelled, or is stuck or paused
    input       jsonb,
    result      jsonb,
    events      bigint NOT NULL,
    steps       bigint NOT NULL,        -- scheduled
    steps_failed bigint NOT NULL,       -- after their last attempt
    retries     bigint NOT NULL,        -- of steps
    last_event  text NOT NULL,
    updated_at  timestamptz NOT NULL,
    PRIMARY KEY (run_id, created)
);
CREATE INDEX IF NOT EXISTS runs_status ON {schema}.runs (workflow, status);
CREATE INDEX IF NOT EXISTS runs_created ON {schema}.runs (created);

-- Up to where each shard's log is in the tables: written in the transaction of the events.
CREATE TABLE IF NOT EXISTS {schema}.positions (
    consumer_group text NOT NULL,
    shard       integer NOT NULL,
    log_offset  text NOT NULL,
    events      bigint NOT NULL,        -- that this group has inserted from this shard
    last_at     timestamptz NOT NULL,   -- of the last event
    updated_at  timestamptz NOT NULL,
    PRIMARY KEY (consumer_group, shard)
);
"""

TABLES = ("events", "runs", "positions")

TAKE_TURN = """\
INSERT INTO {schema}.positions AS p VALUES (%s, %s, %s, 0, %s, now())
ON CONFLICT (consumer_group, shard) DO UPDATE SET log_offset = EXCLUDED.log_offset, last_at = EXCLUDED.last_at,
    updated_at = now()
"""
"""Also makes who writes the same shard wait: a consumer that was stopped while another one went on."""

COUNT = """\
UPDATE {schema}.positions SET events = events + %s WHERE consumer_group = %s AND shard = %s
"""

INSERT_EVENTS = """\
INSERT INTO {schema}.events (id, kind, run_id, run_created, workflow, tenant, at, name, seq, attempt, ms, error_kind,
    error, shard, log_offset, number, data)
SELECT id, kind, run_id, run_created, workflow, tenant, at, name, seq, attempt, ms, error_kind,
    error, shard, log_offset, number, data
FROM jsonb_to_recordset(%s::jsonb) AS given (id text, kind text, run_id text, run_created timestamptz, workflow text,
    tenant text, at timestamptz, name text, seq bigint, attempt integer, ms double precision, error_kind text,
    error text, shard integer, log_offset text, number integer, data jsonb)
ON CONFLICT (id) DO NOTHING
RETURNING id
"""

UPDATE_RUNS = """\
INSERT INTO {schema}.runs AS r (run_id, created, workflow, tenant, status, parent, forked_from, version, generation,
    started_at, ended_at, ms, error_kind, error, input, result, events, steps, steps_failed, retries, last_event,
    updated_at)
SELECT run_id, created, workflow, tenant, status, parent, forked_from, version, generation,
    started_at, ended_at, ms, error_kind, error, input, result, events, steps, steps_failed, retries, last_event,
    updated_at
FROM jsonb_to_recordset(%s::jsonb) AS given (run_id text, created timestamptz, workflow text, tenant text, status text,
    parent text, forked_from text, version integer, generation integer, started_at timestamptz, ended_at timestamptz,
    ms double precision, error_kind text, error text, input jsonb, result jsonb, events bigint, steps bigint,
    steps_failed bigint, retries bigint, last_event text, updated_at timestamptz)
ON CONFLICT (run_id, created) DO UPDATE SET
    workflow = EXCLUDED.workflow,
    tenant = EXCLUDED.tenant,
    status = coalesce(EXCLUDED.status, r.status),
    parent = coalesce(r.parent, EXCLUDED.parent),
    forked_from = coalesce(r.forked_from, EXCLUDED.forked_from),
    version = coalesce(EXCLUDED.version, r.version),
    generation = coalesce(EXCLUDED.generation, r.generation),
    started_at = coalesce(r.started_at, EXCLUDED.started_at),
    ended_at = CASE WHEN EXCLUDED.status IS NULL THEN r.ended_at ELSE EXCLUDED.ended_at END,
    ms = CASE WHEN EXCLUDED.status IS NULL THEN r.ms ELSE EXCLUDED.ms END,
    error_kind = CASE WHEN EXCLUDED.status IS NULL THEN r.error_kind ELSE EXCLUDED.error_kind END,
    error = CASE WHEN EXCLUDED.status IS NULL THEN r.error ELSE EXCLUDED.error END,
    input = coalesce(EXCLUDED.input, r.input),
    result = CASE WHEN EXCLUDED.status IS NULL THEN r.result ELSE EXCLUDED.result END,
    events = r.events + EXCLUDED.events,
    steps = r.steps + EXCLUDED.steps,
    steps_failed = r.steps_failed + EXCLUDED.steps_failed,
    retries = r.retries + EXCLUDED.retries,
    last_event = EXCLUDED.last_event,
    updated_at = EXCLUDED.updated_at
"""

_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")


def checked_schema(name: str) -> str:
    """Raises `UsageError` unless the name needs no quotes in SQL."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"--into {name!r}: a schema's name has lower-case letters, digits and underscores here")
    return name
