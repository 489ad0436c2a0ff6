"""Housekeeping on a real Postgres: what has had its time goes, by one node at a time."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest
from structlog.testing import capture_logs

from hub.errors import StoreDown
from storage.postgres import housekeeping
from storage.postgres.database import SESSION, Database
from storage.postgres.housekeeping import (
    CLOSED_ACCOUNTS_KEPT_S,
    DELETIONS,
    FAMILIES_KEPT_S,
    INVITES_KEPT_S,
    LOCK_KEY,
    Housekeeping,
)
from storage.postgres.people.closed_accounts import CLOSE, READ_SINCE, READ_UNCLEARED

# Of each kind some that have had their time, and some that have it still; $1 seconds after their
# end is when they go.
FILL = """
INSERT INTO users (id) VALUES ('ann');
INSERT INTO budgets (id, created_by, owner_id, title, version, offline_last_modified, fingerprint,
                     record_sequence, last_sequence, digest, fields_hash)
VALUES ('00000000-0000-4000-8000-00000000000b', 'ann', 'ann', 'Home', 1, 1, 1, 1, 1, 1, 'c');
"""
INVITES = """
INSERT INTO invites (budget_id, id, token_hash, created_at, expires_at, max_uses, created_sequence)
SELECT '00000000-0000-4000-8000-00000000000b', gen_random_uuid(), uuid_send(gen_random_uuid()), 0,
       (extract(epoch FROM now()) - $1) * 1000 + $2 * n, 1, 1
FROM generate_series(1, $3) n
"""
FAMILIES = """
INSERT INTO refresh_families (id, user_id, rotated_at, expires_at)
SELECT gen_random_uuid(), 'ann', now(), now() - make_interval(secs => $1 - $2::float8 * n / 1000)
FROM generate_series(1, $3) n
"""
CLOSED_ACCOUNTS = """
INSERT INTO closed_accounts (user_id, closed_at, settled)
SELECT gen_random_uuid(), now() - make_interval(secs => $1 - $2::float8 * n / 1000), true
FROM generate_series(1, $3) n
"""
TABLES = {
    "invites": (INVITES, INVITES_KEPT_S),
    "refresh_families": (FAMILIES, FAMILIES_KEPT_S),
    "closed_accounts": (CLOSED_ACCOUNTS, CLOSED_ACCOUNTS_KEPT_S),
}
MINUTE_MS = 60_000


def keeper(database: Database, **chores: Any) -> Housekeeping:
    return Housekeeping(database, chores, now=time.time)


async def fill(database: Database, *, old: int, young: int) -> None:
    async with database.connection("rest") as connection:
        await connection.execute(FILL)
        for statement, kept_s in TABLES.values():
            await connection.execute(statement, kept_s, -MINUTE_MS, old)
            await connection.execute(statement, kept_s, MINUTE_MS, young)


async def counts(database: Database) -> list[int]:
    async with database.connection("rest") as connection:
        return [
            await connection.fetchval("SELECT count(*) FROM invites"),
            await connection.fetchval("SELECT count(*) FROM refresh_families"),
            await connection.fetchval("SELECT count(*) FROM closed_accounts"),
        ]


async def test_what_has_had_its_time_goes_and_nothing_else(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is more than one statement may delete."""
    monkeypatch.setattr(housekeeping, "ROWS_MAX", 10)
    await fill(database, old=35, young=7)
    assert await counts(database) == [42, 42, 42]
    assert await keeper(database).tidy()
    assert await counts(database) == [7, 7, 7]


async def test_a_closed_account_is_known_until_nothing_of_it_is_left(database: Database) -> None:
    await fill(database, old=3, young=0)
    async with database.connection("rest") as connection:
        await connection.execute("UPDATE closed_accounts SET settled = false")
    await keeper(database).tidy()
    assert (await counts(database))[2] == 3


async def test_one_node_is_at_it_at_a_time(database: Database, database_url: str) -> None:
    """And the next one after it, also where the first one died of it."""
    await fill(database, old=3, young=0)
    other_nodes = await Database.connect(database_url)
    done: list[str] = []

    async def chore() -> None:
        done.append("here")
        assert not await keeper(other_nodes, chore=elsewhere).tidy()

    async def elsewhere() -> None:
        done.append("elsewhere")

    other = await asyncpg.connect(database_url)
    await other.execute("SELECT pg_advisory_lock($1)", LOCK_KEY)
    assert not await keeper(database, chore=elsewhere).tidy()
    assert await counts(database) == [3, 3, 3]
    other.terminate()
    await tidied(keeper(database, chore=chore))
    assert done == ["here"]
    assert await counts(database) == [0, 0, 0]
    assert await keeper(database, chore=elsewhere).tidy()
    assert done == ["here", "elsewhere"]
    await other_nodes.close()


async def test_a_failure_is_told_once_and_tried_again(database: Database) -> None:
    """And holds up nothing else."""
    await fill(database, old=3, young=0)
    failures, done = 3, 0

    async def breaks() -> None:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise StoreDown("PermissionError 13")

    async def works() -> None:
        nonlocal done
        done += 1

    keeping = keeper(database, breaks=breaks, works=works)
    with capture_logs() as logs:
        for _ in range(5):
            assert await keeping.tidy()
    assert done == 5
    assert await counts(database) == [0, 0, 0]
    assert [(line["event"], line["chore"], line.get("error")) for line in logs] == [
        ("housekeeping failed", "breaks", "StoreDown: PermissionError 13"),
        ("housekeeping works again", "breaks", None),
    ]


def once(chore: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    left = [chore]

    async def first() -> None:
        if left:
            await left.pop()()

    return first


async def test_it_outlives_postgres(database: Database, database_url: str) -> None:
    async def cut() -> None:
        other = await asyncpg.connect(database_url)
        await other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        await other.close()

    keeping = keeper(database, cut=once(cut))
    with capture_logs() as logs:
        await keeping.tidy()
    assert [line["event"] for line in logs] == ["housekeeping failed"]
    await tidied(keeping)


async def tidied(keeping: Housekeeping) -> None:
    """Once Postgres and the driver have noticed whose connection is gone."""
    async with asyncio.timeout(30):
        while not await keeping.tidy():
            pass


async def test_an_index_finds_what_goes(database: Database, database_url: str) -> None:
    """So that a large table costs no more than a small one."""
    await fill(database, old=100, young=5_000)
    now = await asyncpg.connect(database_url, server_settings=SESSION)
    try:
        await now.execute("ANALYZE")
        for name, statement, _ in DELETIONS:
            await _by_index(now, name, statement, [1_000])
        await _by_index(now, "since", READ_SINCE, ["ann", 1_000])
        await _by_index(now, "uncleared", READ_UNCLEARED, [1_000])
        assert CLOSE.count("ON CONFLICT (user_id)") == 1  # the primary key
    finally:
        await now.close()


async def _by_index(
    connection: "asyncpg.Connection[asyncpg.Record]", name: str, statement: str, values: list[Any]
) -> None:
    until = await connection.fetchval("SELECT now() - make_interval(days => 400)")
    [row] = await connection.fetch("EXPLAIN (FORMAT JSON) " + statement, until, *values)
    plan = json.dumps(json.loads(row[0]))
    assert "Index" in plan, name
    assert "Seq Scan" not in plan, (name, plan)
