"""In a cluster each server's replicas confirm its own part: one of which nothing is confirmed holds up no other."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import pytest

import streamflow as sf
from streamflow.daemon import daemon as daemon_module
from streamflow.daemon.daemon import Daemon
from streamflow.embedded.cluster import ClusterNode, EmbeddedCluster
from streamflow.store.durability import Durability
from streamflow.store.roles import Role, rights
from streamflow.store.router import Cluster
from streamflow.store.topology import slot_of
from tests.cluster.test_commands import Shell
from tests.cluster.test_failover import NAMESPACE, PATIENT, app, loaded, right
from tests.support.cluster import SlotMove, move_slot, move_slots_at_once
from tests.support.serving import running_daemon
from tests.support.waiting import DEADLINE

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

SHARDS = 24
SAFE = {**PATIENT, "shards": SHARDS, "durability": "replicas:1"}
CUT_OFF = "a password that nobody has"


@pytest.fixture
async def cluster() -> AsyncIterator[EmbeddedCluster]:
    async with EmbeddedCluster(replicas=1, memory=True) as cluster:
        yield cluster


async def homes_of(cluster: EmbeddedCluster, daemon: Daemon) -> dict[int, ClusterNode]:
    keys = daemon.owner._kernel.keys
    return {n: await cluster.owner(slot_of(keys.shard(n).owner)) for n in range(SHARDS)}


def ids(daemon: Daemon, homes: dict[int, ClusterNode], *, on: ClusterNode, name: str, of: int = 100) -> list[str]:
    """Ids of runs, from so many, whose shards are on this server."""
    shard_of = daemon.owner._namespace.shard_of
    return [run_id for number in range(of) if homes[shard_of(run_id := f"{name}-{number}")] is on]


def run_key(daemon: Daemon, run_id: str) -> str:
    return daemon.owner._kernel.keys.shard(daemon.owner._namespace.shard_of(run_id)).run(run_id)


async def has(replica: ClusterNode, key: str) -> bool:
    return await replica.commands([["READONLY"], ["EXISTS", key]]) == ["OK", 1]


async def cut_off(replica: ClusterNode) -> None:
    """From now on it receives nothing, and is in step with nobody."""
    await replica.command("CONFIG", "SET", "masterauth", CUT_OFF)
    await replica.command("CLIENT", "KILL", "TYPE", "primary")


async def follow_again(cluster: EmbeddedCluster, *replicas: ClusterNode) -> None:
    for replica in replicas:
        await replica.command("CONFIG", "SET", "masterauth", "")
    await cluster.wait_ready()


@asynccontextmanager
async def serving(cluster: EmbeddedCluster, **settings: object) -> AsyncGenerator[tuple[Daemon, sf.Client]]:
    async with (
        running_daemon(app, cluster, NAMESPACE, crash=False, **{**SAFE, **settings}) as daemon,  # type: ignore[arg-type]
        sf.Client(Cluster(cluster.url, patience=2 * DEADLINE), NAMESPACE) as client,
    ):
        yield daemon, client


def impatient(cluster: EmbeddedCluster) -> sf.Client:
    """For what isn't confirmed."""
    return sf.Client(Cluster(cluster.url, patience=1.5), NAMESPACE)


async def happens(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(DEADLINE):
        while not condition():  # noqa: ASYNC110
            await anyio.sleep(0.01)


def level_of(daemon: Daemon) -> str:
    """Empty: nothing is waited for."""
    confirmation = daemon._store.confirmation
    return "" if confirmation is None else str(confirmation.durability)


async def is_written(node: ClusterNode, key: str) -> None:
    with anyio.fail_after(DEADLINE):
        while await node.command("EXISTS", key) != 1:  # noqa: ASYNC110
            await anyio.sleep(0.01)


async def test_what_one_servers_replica_lacks_holds_up_its_own_runs_only(
    cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_module, "OVERDUE", 0.5)
    lost, other, _ = cluster.nodes[:3]
    async with serving(cluster) as (daemon, client), impatient(cluster) as hasty:
        homes = await homes_of(cluster, daemon)
        for run_id in (*ids(daemon, homes, on=lost, name="first")[:8], *ids(daemon, homes, on=other, name="first")[:8]):
            assert await (await client.start("chain", 1, id=run_id)).result() == right(1)
        [replica] = await cluster.replicas(lost)
        acknowledged: list[str] = []
        unsure: list[str] = []
        said: list[str] = []

        is_cut_off = False

        async def is_acknowledged(run_id: str) -> bool:
            try:
                await hasty.start("chain", 1, id=run_id)
            except sf.Unconfirmed as error:
                if is_cut_off:
                    said.append(str(error))
                    unsure.append(run_id)
                return False
            except sf.StoreUnavailable:
                return False
            acknowledged.append(run_id)
            return True

        async def start(name: str) -> None:
            """One run after the other, until one isn't acknowledged."""
            for run_id in ids(daemon, homes, on=lost, name=name, of=10_000):
                while not await is_acknowledged(run_id):
                    if run_id in unsure:
                        return

        async with anyio.create_task_group() as starts:
            for name in ("own-a", "own-b", "own-c", "own-d"):
                starts.start_soon(start, name)
            await happens(lambda: len(acknowledged) > 20)
            is_cut_off = True
            await cut_off(replica)
            starts.start_soon(start, "missing")
            await is_written(lost, run_key(daemon, ids(daemon, homes, on=lost, name="missing")[0]))
            for number, run_id in enumerate(ids(daemon, homes, on=other, name="others")[:10]):
                with anyio.fail_after(DEADLINE):
                    assert await (await client.start("chain", number, id=run_id)).result() == right(number)
        assert len(said) == 5
        assert all(f"the server {lost.address} has it, but within " in text for text in said)
        assert all("no replica has confirmed it" in text for text in said)
        await happens(lambda: f"server {lost.address}" in daemon._beat().impaired)
        impaired = daemon._beat().impaired
        assert "no replica has confirmed it" in impaired[f"server {lost.address}"]
        assert daemon._store.confirmation is not None
        assert [(one.server, one.missing) for one in daemon._store.confirmation.lacking(0.5)] == [(lost.address, 1)]

        keys = daemon.owner._kernel.keys
        there = [await has(replica, run_key(daemon, run_id)) for run_id in acknowledged]
        assert all(there), "it has what was acknowledged"
        missing = next(run_id for run_id in unsure if run_id.startswith("missing"))
        assert not await has(replica, run_key(daemon, missing)), "of the others it may have the one that was sent last"
        await lost.kill()
        slot = slot_of(keys.shard(next(number for number, home in homes.items() if home is lost)).owner)
        assert await cluster.wait_for_failover(lost, slot) is replica
        await replica.command("CONFIG", "SET", "masterauth", "")
        await lost.start()  # as the replica without which nothing is confirmed
        await cluster.wait_ready()
        with anyio.fail_after(2 * DEADLINE):
            for run_id in acknowledged:
                assert await ended(client.run(run_id, int)) == right(1)
            for run_id in unsure:
                assert await ended(await client.start("chain", 1, id=run_id)) == right(1)
            while daemon._store.confirmation.lacking(0.5):  # noqa: ASYNC110
                await anyio.sleep(0.05)


async def test_what_moves_while_it_waits_is_confirmed_where_it_is_then(cluster: EmbeddedCluster) -> None:
    first, second, _ = cluster.nodes[:3]
    async with serving(cluster) as (daemon, client):
        homes = await homes_of(cluster, daemon)
        names = ids(daemon, homes, on=first, name="moved")
        whole = names[0]
        half = next(name for name in names if slot_of(run_key(daemon, name)) != slot_of(run_key(daemon, whole)))
        [replica], [of_second] = await cluster.replicas(first), await cluster.replicas(second)
        await cut_off(replica)
        results: dict[str, int] = {}

        async def run(run_id: str) -> None:
            results[run_id] = await (await client.start("chain", 1, id=run_id)).result()

        async with anyio.create_task_group() as tasks:
            for run_id in (whole, half):
                tasks.start_soon(run, run_id)
                await is_written(first, run_key(daemon, run_id))  # by a pipeline of its own
            move = await SlotMove.begin(cluster, slot_of(run_key(daemon, whole)), second)
            assert await move.keys() > 0
            await move.end()
            await happens(lambda: whole in results)
            assert await has(of_second, run_key(daemon, whole))
            move = await SlotMove.begin(cluster, slot_of(run_key(daemon, half)), second)
            assert await move.keys() > 0
            await follow_again(cluster, replica)
            await (await client.start("chain", 1, id=names[-1])).result()  # now the first one confirms again
            await anyio.sleep(0.3)
            assert half not in results, "not by one that doesn't have it any more"
            await move.end()
        assert results == {whole: right(1), half: right(1)}
        assert await has(of_second, run_key(daemon, half))


async def test_slots_that_move_under_load_are_confirmed_where_they_are(cluster: EmbeddedCluster) -> None:
    first, second, _ = cluster.nodes[:3]
    async with serving(cluster) as (daemon, _), sf.connect(cluster.url, namespace=NAMESPACE) as client:
        tokens = {n: shard.token for n, shard in daemon.owner.shards.items()}
        homes = await homes_of(cluster, daemon)
        slots = [slot_of(daemon.owner._kernel.keys.shard(n).owner) for n, home in homes.items() if home is first]
        async with loaded(client, "parent") as load:
            for slot in slots[:3]:
                await move_slot(cluster, slot, second)
            await move_slots_at_once(cluster, 5461, 9000, first)
            before = len(load.ended)
            await happens(lambda: len(load.ended) > before + 30)
        assert not load.wrong
        assert {n: shard.token for n, shard in daemon.owner.shards.items()} == tokens, "nobody has dropped a shard"
        assert daemon._store.confirmation is not None


async def test_a_level_that_another_daemon_sets_counts_on_all_servers(cluster: EmbeddedCluster) -> None:
    async with serving(cluster, durability="") as (daemon, client), impatient(cluster) as hasty:
        assert not level_of(daemon)
        async with serving(cluster):
            await happens(lambda: level_of(daemon) == "replicas:1")
        assert level_of(daemon) == "replicas:1"
        homes = await homes_of(cluster, daemon)
        replicas = [(await cluster.replicas(node))[0] for node in cluster.nodes[:3]]
        for replica in replicas:
            await cut_off(replica)
        for node in cluster.nodes[:3]:
            with pytest.raises(sf.Unconfirmed, match=node.address):
                await hasty.start("chain", 1, id=ids(daemon, homes, on=node, name="a")[0])
        async with serving(cluster, durability="server"):
            await happens(lambda: not level_of(daemon))
            for node in cluster.nodes[:3]:
                assert await ended(client.run(ids(daemon, homes, on=node, name="a")[0], int)) == right(1)
        await follow_again(cluster, *replicas)


async def test_check_tries_each_master_and_says_which_is_not_confirmed(cluster: EmbeddedCluster) -> None:
    shell = Shell(cluster.url, NAMESPACE)
    words = ("check", "--durability", "replicas:1", "--json")
    assert [one for one in json.loads(await shell(*words))["findings"] if one["level"] == "error"] == []
    [replica] = await cluster.replicas(cluster.nodes[1])
    await cut_off(replica)
    found = [one["message"] for one in json.loads(await shell(*words, code=1))["findings"] if one["level"] == "error"]
    assert len(found) == 1
    assert found[0].startswith(f"replicas:1: {cluster.nodes[1].address}: within 1 s 0 of 1 replicas confirmed")
    for node in cluster.nodes[:3]:
        assert await node.command("KEYS", "sf:*") == []
    await follow_again(cluster, replica)


async def test_a_client_with_the_rules_of_acl_may_wait_at_each_server(cluster: EmbeddedCluster) -> None:
    rules = rights(Role.CLIENT, NAMESPACE, Durability(1)).rules
    for node in cluster.nodes:
        await node.command("ACL", "SETUSER", "shop", "reset", "on", ">s3cret", *rules)
    url = cluster.url.replace("://", "://shop:s3cret@")
    async with serving(cluster) as (daemon, _), sf.connect(url, namespace=NAMESPACE) as client:
        homes = await homes_of(cluster, daemon)
        for node in cluster.nodes[:3]:
            run = await client.start("chain", 1, id=ids(daemon, homes, on=node, name="run")[0])
            assert await run.result() == right(1)


async def ended(run: sf.Run[int]) -> int:
    while True:
        try:
            return await run.result(DEADLINE)
        except (sf.StoreUnavailable, sf.Unconfirmed):
            await anyio.sleep(0.05)
