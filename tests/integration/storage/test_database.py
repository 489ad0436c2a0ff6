"""Each purpose has its own connections, and waits for its own only."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from hub.errors import Disconnected, Held
from hub.turns import WAITING_MAX
from storage.postgres.core.event_log import PostgresLog
from storage.postgres.database import CONNECTIONS_MAX, SHARES, Database, Purpose

PURPOSES = list(SHARES)
BUDGET = "00000000-0000-4000-8000-000000000001"


@pytest.mark.parametrize("purpose", PURPOSES)
async def test_p7_a_purpose_that_is_at_its_end_takes_no_other_along(
    database_url: str, purpose: Purpose
) -> None:
    shares = {**SHARES, purpose: SHARES[purpose]._replace(wait_s=0.1)}
    database = await Database.connect(database_url, shares)
    try:
        async with AsyncExitStack() as taken:
            for number in range(shares[purpose].connections):
                await taken.enter_async_context(database.connection(purpose, f"user {number}"))
            with pytest.raises((Held, Disconnected)) as late:
                await taken.enter_async_context(database.connection(purpose, "ann"))
            assert late.type is shares[purpose].late
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


async def test_a_process_has_no_more_connections_than_the_shares_say(database: Database) -> None:
    async with AsyncExitStack() as taken:
        for purpose, share in SHARES.items():
            for number in range(share.connections):
                connection = await taken.enter_async_context(
                    database.connection(purpose, f"user {number}")
                )
        count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        assert await connection.fetchval(count) == CONNECTIONS_MAX


@pytest.mark.parametrize("purpose", ["feeds", "rest", "owners"])
async def test_p20_a_user_who_asks_for_much_leaves_others_their_connections(
    database: Database, purpose: Purpose
) -> None:
    """What one user asks for may take long: others do not wait for it at all."""
    share = SHARES[purpose]
    async with AsyncExitStack() as taken, asyncio.TaskGroup() as group:
        for _ in range(share.per_user):
            await taken.enter_async_context(database.connection(purpose, "flood"))
        flood = [group.create_task(_ask(database, purpose, "flood")) for _ in range(50)]
        await _ask(database, purpose, "ann")
        assert not any(task.done() for task in flood)
        assert database.pools()[purpose].waiting == len(flood)
        await taken.aclose()


async def test_p20_a_user_who_comes_late_is_served_after_one_turn_of_each_other(
    database: Database,
) -> None:
    turns: list[str] = []
    async with AsyncExitStack() as taken, asyncio.TaskGroup() as group:
        for user_id in ("ben", "ben", "cid", "cid"):
            await taken.enter_async_context(database.connection("rest", user_id))
        for user_id in (*["flood"] * 50, "other", "ann"):
            group.create_task(_ask(database, "rest", user_id, turns))
        await asyncio.sleep(0)
        assert database.pools()["rest"].waiting == 52
        await taken.aclose()
    assert set(turns[:3]) == {"flood", "other", "ann"}


async def test_p20_a_user_has_no_more_waiting_than_the_hub_keeps_for_one(
    database: Database,
) -> None:
    async with AsyncExitStack() as taken, asyncio.TaskGroup() as group:
        for _ in range(SHARES["feeds"].per_user):
            await taken.enter_async_context(database.connection("feeds", "flood"))
        for _ in range(WAITING_MAX):
            group.create_task(_ask(database, "feeds", "flood"))
        await asyncio.sleep(0)
        with pytest.raises(Held):
            await _ask(database, "feeds", "flood")
        await _ask(database, "feeds", "ann")
        await taken.aclose()


async def test_p7_p20_gaps_of_feeds_are_read_while_nobody_can_subscribe(
    database: Database,
) -> None:
    async with AsyncExitStack() as taken:
        for number in range(SHARES["feeds"].connections):
            await taken.enter_async_context(database.connection("feeds", f"user {number}"))
        assert await PostgresLog(database).page(BUDGET, None, 0, 1, 1) is None


async def _ask(
    database: Database, purpose: Purpose, user_id: str, turns: list[str] | None = None
) -> None:
    async with database.connection(purpose, user_id) as connection:
        if turns is not None:
            turns.append(user_id)
        assert await connection.fetchval("SELECT 1") == 1
