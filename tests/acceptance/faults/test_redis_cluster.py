"""Two hubs on a Redis Cluster of three nodes, of which one is killed and comes back."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from storage.redis.channels import bucket_of
from tests.cluster import BUSY_S, P7_S, Cluster, all_say
from tests.device import budget_create, connect, expense_add, new_id
from tests.redis_cluster import RedisCluster

BUDGETS = 30


@pytest.fixture
async def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RedisCluster]:
    cluster = await RedisCluster.start(tmp_path_factory.mktemp("redis-cluster"), primaries=3)
    yield cluster
    cluster.close()


async def test_p7_a_killed_node_of_the_cluster_delays_and_loses_nothing(
    cluster: Cluster, redis_cluster: RedisCluster
) -> None:
    """Each event is on the other hub within P7's two seconds, whichever shard is its budget's."""
    where = {"REDIS_URL": redis_cluster.url, "REDIS_CLUSTER": "true"}
    nodes = await asyncio.gather(*(cluster.start(**where) for _ in range(2)))
    token = cluster.token("ann")
    await all_say(nodes, token, "ok")
    lost = redis_cluster.primaries[0]
    budgets = [new_id() for _ in range(BUDGETS)]
    shards = {redis_cluster.primary_of(f"{{{bucket_of(each)}}}") for each in budgets}
    assert lost in shards and len(shards) > 1
    async with connect(nodes[0].url, token) as writer, connect(nodes[1].url, token) as reader:
        await writer.accepted(*map(budget_create, budgets))
        for budget_id in budgets:
            await reader.subscribe(budget_id)

        async def cross(sequence: int) -> None:
            began_s = time.monotonic()
            await writer.accepted(*map(expense_add, budgets))
            for budget_id in budgets:
                await reader.reached(budget_id, sequence)
            assert time.monotonic() - began_s < P7_S + BUSY_S

        await cross(2)
        lost.kill()
        await cross(3)  # nobody has noticed
        await all_say(nodes, token, "degraded")
        await cross(4)
        lost.restart()
        await all_say(nodes, token, "ok")
        await cross(5)
        for budget_id in budgets:
            sequences = [event.body["sequence"] for event in reader.streams[budget_id].events]
            assert sequences == [1, 2, 3, 4, 5]
