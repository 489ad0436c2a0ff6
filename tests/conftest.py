"""Real services for the tests: one Postgres and one Redis a session, a fresh database a test."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from hypothesis import HealthCheck, settings

from storage.embedded.postgres import EmbeddedPostgres
from storage.embedded.redis import EmbeddedRedis
from storage.postgres.database import Database
from storage.postgres.migrate import migrate
from tests.device import IDS
from tests.postgres import start as start_postgres

# Property tests draw the same examples in every `make test`, and others in each `make faults`. How
# long an example takes is the machine's affair: it may be slow, or busy with something else.
_UNHURRIED: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("same", derandomize=True, **_UNHURRIED)
settings.register_profile("others", **_UNHURRIED)
settings.load_profile("same")

_numbers = itertools.count(1)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """What is by chance, like the parts that budgets fall into, is by the same chance each time."""
    IDS.seed(item.nodeid)


@pytest.fixture(scope="session")
def services_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("services")


@pytest.fixture(scope="session")
def postgres(services_dir: Path) -> Iterator[EmbeddedPostgres]:
    with start_postgres(services_dir) as server:
        yield server


@pytest.fixture(scope="session")
def redis(services_dir: Path) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis.start(services_dir) as redis:
        yield redis


@pytest.fixture(scope="session")
def template(postgres: EmbeddedPostgres) -> str:
    """The name of a migrated database that tests copy."""

    asyncio.run(migrated(postgres.url, "template_hub"))
    return "template_hub"


@pytest.fixture
async def database_url(postgres: EmbeddedPostgres, template: str) -> AsyncIterator[str]:
    """A fresh, migrated database of this test's own."""
    name = f"test_{next(_numbers)}"
    await _execute(postgres.url, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield with_database(postgres.url, name)
    await _execute(postgres.url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = await Database.connect(database_url)
    yield database
    await database.close()


def with_database(url: str, name: str) -> str:
    """The same server's URL for another database."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


async def migrated(url: str, name: str) -> str:
    """A new database `name` on the server of `url`, with the hub's tables: its URL."""
    await _execute(url, f"CREATE DATABASE {name}")
    await migrate(with_database(url, name))
    return with_database(url, name)


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
