"""Real server processes on the session's Postgres and Redis; a database for each module."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import NamedTuple

import asyncpg
import pytest

from loadtest.cluster import FragileRedis
from loadtest.proxy import Proxy
from storage.embedded.postgres import EmbeddedPostgres
from storage.embedded.redis import EmbeddedRedis
from tests.cluster import PROGRAM, Cluster, Node, all_say, checked
from tests.conftest import with_database

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
async def cluster_database_url(postgres: EmbeddedPostgres, template: str) -> AsyncIterator[str]:
    """A fresh, migrated database with a history of its own."""
    name = f"acceptance_{next(_numbers)}"
    admin = await asyncpg.connect(postgres.url)
    try:
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        url = with_database(postgres.url, name)
        connection = await asyncpg.connect(url)
        await connection.execute("UPDATE log_identity SET log_id = gen_random_uuid()")
        await connection.close()
        yield url
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()


@pytest.fixture(scope="module")
def program() -> Sequence[str | Path]:
    """What is started as a node; a module may have another."""
    return (PROGRAM,)


@pytest.fixture(scope="module")
async def cluster(
    cluster_database_url: str,
    redis: EmbeddedRedis,
    program: Sequence[str | Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Cluster]:
    """No node yet: `await cluster.start()`. At the end no node's log may hold a defect."""
    folder = tmp_path_factory.mktemp("cluster")
    async with checked(Cluster(folder, cluster_database_url, redis.url, program)) as cluster:
        yield cluster


class Pair(NamedTuple):
    """Two nodes on a Redis of their own that can be killed, the second through a proxy."""

    cluster: Cluster
    nodes: list[Node]
    redis: FragileRedis
    proxy: Proxy


@pytest.fixture(scope="module")
async def fragile_pair(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Pair]:
    redis = FragileRedis(tmp_path_factory.mktemp("fragile-redis"))
    try:
        async with Proxy(redis.url) as proxy:
            urls = (redis.url, proxy.url)
            nodes = await asyncio.gather(*(cluster.start(REDIS_URL=url) for url in urls))
            await all_say(nodes, cluster.token("ada"), "ok")
            yield Pair(cluster, nodes, redis, proxy)
            await cluster.close()  # before the Redis it would miss
    finally:
        redis.close()
