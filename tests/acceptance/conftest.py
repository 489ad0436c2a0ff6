"""Real server processes on the session's Postgres and Redis; a database for each module."""

import itertools
from collections.abc import AsyncIterator

import asyncpg
import pytest

from storage.embedded import EmbeddedPostgres, EmbeddedRedis
from tests.cluster import Cluster
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
        await connection.execute("UPDATE hub_identity SET log_id = gen_random_uuid()")
        await connection.close()
        yield url
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()


@pytest.fixture(scope="module")
async def cluster(
    cluster_database_url: str, redis: EmbeddedRedis, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Cluster]:
    """No node yet: `await cluster.start()`. At the end no node's log may hold a defect."""
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), cluster_database_url, redis.url)
    try:
        yield cluster
    finally:
        await cluster.close()
    for node in cluster.nodes:
        assert node.complaints() == []
