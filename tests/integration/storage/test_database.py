"""Each purpose has its own connections, and waits for its own only."""

from contextlib import AsyncExitStack

import pytest

from hub.errors import Disconnected, Held
from storage.postgres.database import CONNECTIONS_MAX, QUOTAS, Database, Purpose

PURPOSES = list(QUOTAS)


@pytest.mark.parametrize("purpose", PURPOSES)
async def test_p7_a_purpose_that_is_at_its_end_takes_no_other_along(
    database_url: str, purpose: Purpose
) -> None:
    quotas = {**QUOTAS, purpose: QUOTAS[purpose]._replace(wait_s=0.1)}
    database = await Database.connect(database_url, quotas)
    try:
        async with AsyncExitStack() as taken:
            for _ in range(quotas[purpose].connections):
                await taken.enter_async_context(database.connection(purpose))
            with pytest.raises((Held, Disconnected)) as late:
                await taken.enter_async_context(database.connection(purpose))
            assert late.type is quotas[purpose].late
            for other in PURPOSES:
                if other != purpose:
                    async with database.connection(other) as connection:
                        assert await connection.fetchval("SELECT 1") == 1
        use = database.pools()
        assert {each for each in use if use[each].timeouts} == {purpose}
        async with database.connection(purpose) as connection:
            assert await connection.fetchval("SELECT 1") == 1
    finally:
        await database.close()


async def test_a_process_has_no_more_connections_than_the_quotas_say(database: Database) -> None:
    async with AsyncExitStack() as taken:
        for purpose, quota in QUOTAS.items():
            for _ in range(quota.connections):
                connection = await taken.enter_async_context(database.connection(purpose))
        count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        assert await connection.fetchval(count) == CONNECTIONS_MAX
