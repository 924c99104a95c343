"""A namespace: its meta record, and the check of the server that holds it.

Owns: reading, creating and checking the record that all daemons, workers and clients of a namespace share.
Must not: wait or retry. Called by: daemon (creates it), worker and client (read it).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import msgspec

from streamflow.archive_url import NONE, check_archive_url, shown_archive
from streamflow.errors import NamespaceMismatch, StoreError, StoreMisconfigured, StoreUnavailable
from streamflow.model.sharding import Partition, shard_of
from streamflow.settings import Settings, is_level
from streamflow.store.connection import Call, Store
from streamflow.store.inspection import Finding, about, evicting, forgetful, hidden_info, missing_permissions, too_old
from streamflow.store.kernel import SCHEMA, Kernel, NamespaceRecord, Put
from streamflow.store.keys import NamespaceKeys
from streamflow.store.roles import Role
from streamflow.store.router import servers_of
from streamflow.text import plural

_log = logging.getLogger("streamflow.namespace")


class Namespace(msgspec.Struct, frozen=True):
    """What all users of a namespace share: the number of shards, and which part of a run id selects the shard."""

    shards: int
    partition: Partition
    identity: str = ""
    """That of its data: another one when they were deleted meanwhile. Empty if an earlier release has created them."""
    durability: str = "server"
    """How safe a write has to be before it counts (`durability.py`)."""
    archive: str = ""
    """URL of the storage to which ended runs go; empty or `none` if there is none."""
    large_payload: int = 0
    """Bytes from which on a payload goes there; 0: none ever has."""

    def shard_of(self, run_id: str) -> int:
        return shard_of(run_id, self.shards, self.partition)


def read_namespace(keys: NamespaceKeys) -> Call[list[bytes | None]]:
    """The command whose reply `namespace_from` parses."""
    fields = ("shards", "partition", "schema", "identity", "durability", "archive", "large_payload")
    return Call.plain("HMGET", keys.meta, *fields)


def namespace_from(name: str, stored: list[bytes | None]) -> Namespace | None:
    """From the reply of `read_namespace`; None when no daemon has created it.

    Raises `NamespaceMismatch` for a namespace of another version of streamflow.
    """
    shards, partition, schema, identity, durability, archive, large = stored
    if shards is None or partition is None or schema is None:
        return None
    _check_schema(name, int(schema))
    return Namespace(
        int(shards),
        Partition(partition.decode()),
        (identity or b"").decode(),
        (durability or b"server").decode(),
        (archive or b"").decode(errors="replace"),
        large_payload_of(large),
    )


def large_payload_of(stored: bytes | None) -> int:
    """From the field of the record; 0 for what can't be read."""
    return int(stored) if stored is not None and stored.isdigit() else 0


async def stored_durability(store: Store, keys: NamespaceKeys) -> str:
    """The level that a namespace has; empty if there is no such namespace, or its record can't be read."""
    try:
        schema, level = await store.one(Call.plain("HMGET", keys.meta, "schema", "durability"))
    except StoreError:
        return ""
    text = (level or b"server").decode(errors="replace")
    return text if schema is not None and is_level(text) else ""


async def open_namespace(
    store: Store, kernel: Kernel, settings: Settings, workflows: Sequence[tuple[str, bytes]]
) -> Namespace:
    """Create the namespace with these settings, or check that the one that exists has them, and register workflows.

    Raises `NamespaceMismatch` with both values when it has others, `StoreError`.
    """
    stored = await store.one(read_namespace(kernel.keys))
    namespace = namespace_from(settings.namespace, stored)
    before, archive_before, large_before = "server", "", 0
    if namespace is not None:
        check_same(namespace, settings)  # before workflows are registered in it
        before, archive_before, large_before = namespace.durability, namespace.archive, namespace.large_payload
    durability = settings.durability or before
    archive = check_archive_url(settings.archive) or archive_before
    large = settings.large_payload or large_before
    record = await write_records(
        store, kernel, settings.shards, settings.partition, workflows, durability, archive, large
    )
    _check_schema(settings.namespace, record.schema)
    namespace = Namespace(record.shards, record.partition, record.identity, durability, archive, large)
    check_same(namespace, settings)
    if archive != archive_before:
        _log.warning(
            "the archive of namespace %s is %s from now on, before it was %s",
            settings.namespace,
            shown_archive(archive),
            shown_archive(archive_before) if archive_before else NONE,
        )
    if large != large_before:
        _log.warning(
            "payloads of namespace %s from %s bytes on go to storage from now on, before it was %s",
            settings.namespace,
            f"{large:,}",
            f"{large_before:,}" if large_before else "none",
        )
    if durability != before:
        _log.warning(
            "the durability of namespace %s is %s from now on, before it was %s: other daemons and clients follow "
            "within seconds",
            settings.namespace,
            durability,
            before,
        )
    return namespace


async def write_records(
    store: Store,
    kernel: Kernel,
    shards: int,
    partition: Partition,
    workflows: Sequence[tuple[str, bytes]],
    durability: str,
    archive: str = "",
    large_payload: int = 0,
) -> NamespaceRecord:
    """Create the namespace unless it exists, write its durability and archive, and register workflows. A damaged list
    of workflows is only logged: clients read it."""
    try:
        record = await store.one(kernel.open_namespace(shards, partition, workflows=workflows))
        puts = [Put(kernel.keys.meta, "durability", durability.encode())]
        if archive:
            puts.append(Put(kernel.keys.meta, "archive", archive.encode()))
        if large_payload:
            puts.append(Put(kernel.keys.meta, "large_payload", str(large_payload).encode()))
        await store.one(kernel.store_records(puts))
        return record
    except StoreMisconfigured:
        raise
    except StoreError as error:
        record = await store.one(kernel.open_namespace(shards, partition))
        _log.error("the workflows can't be registered, so clients can't look up their parameters: %s", error)
        return record


def register_queues(kernel: Kernel, queues: Iterable[str]) -> Call[bytes]:
    """Put queues into the namespace's list, so that `status` has them."""
    return kernel.store_records([Put(kernel.keys.queues, name, b"1") for name in sorted(queues)])


def check_same(namespace: Namespace, settings: Settings) -> None:
    """Raises `NamespaceMismatch` with both values when the settings are not those of the namespace."""
    shards, partition = namespace.shards, namespace.partition
    if (shards, partition) != (settings.shards, settings.partition):
        raise NamespaceMismatch(
            f"namespace {settings.namespace!r} has {plural(shards, 'shard')} by {partition}, but {settings.shards} by "
            f"{settings.partition} were requested. They are fixed when a namespace is created: use --shards {shards} "
            f"--partition {partition}, or another --namespace."
        )


def _check_schema(name: str, schema: int) -> None:
    if schema != SCHEMA:
        raise NamespaceMismatch(
            f"namespace {name!r} has schema {schema}, and this version of streamflow uses schema {SCHEMA}: run "
            "daemons, workers and clients of one version, or use another --namespace"
        )


async def inspect_namespace(store: Store, settings: Settings) -> list[Finding]:
    """What keeps a daemon with these settings from using the namespace."""
    try:
        stored = await store.one(read_namespace(NamespaceKeys(settings.namespace)))
        namespace = namespace_from(settings.namespace, stored)
        if namespace is not None:
            check_same(namespace, settings)
    except NamespaceMismatch as error:
        return [Finding(True, "namespace", str(error))]
    except StoreError as error:  # a permission is missing, or the server is loading
        return [Finding(False, "namespace", f"not checked: {error}")]
    return []


async def check_server(store: Store, namespace: str, role: Role) -> None:
    """Refuse a server that would lose data, and a user who lacks a permission for `role`; warn of a server that might.

    Raises `StoreMisconfigured`, `StoreUnavailable`.
    """
    for address, server in await servers_of(store):
        try:
            info: dict[str, object] = await server.one(Call.plain("INFO", "everything"))
        except StoreUnavailable:
            if address:
                continue  # one of several may be away; the others take over what it has
            raise
        except StoreError as error:  # as some managed services do
            _log.warning("%s", about(address, hidden_info(error)))
            continue
        for problem in (too_old(info), evicting(info)):
            if problem is not None:
                raise StoreMisconfigured(about(address, problem))
        warning = forgetful(info)
        if warning is not None:
            _log.warning("%s", about(address, warning))
    missing = await missing_permissions(store, namespace, role)
    if missing:
        raise StoreMisconfigured(
            f"the server's user lacks what a {role} of namespace {namespace} needs: {' '.join(missing)}. "
            f"`streamflow acl --role {role} --namespace {namespace}` prints all its rules"
        )
