"""The digest of 0.1.0 becomes that of 0.2.0; nothing else changes, and `verify` is clean."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, TypeAlias

import asyncpg
import pytest

from storage.care.verify import verify
from storage.postgres.core.redigest import NotReplayable
from storage.postgres.database import SESSION, Database
from storage.postgres.log_identity import NodesRunning
from storage.postgres.migrate import REDIGEST, migrate, migrations, pending
from tests.history import write_history, write_membership

if TYPE_CHECKING:
    Raw: TypeAlias = asyncpg.Connection[asyncpg.Record]

BUDGETS = [f"00000000-0000-4000-8000-00000000000{n}" for n in range(4)]

# What a database of 0.1.0 has after the SQL of the migration.
BACK_TO_0_1_0 = """
UPDATE accepted_events SET event = regexp_replace(
    regexp_replace(event, '"digest":"[0-9a-f]{16}"}$', '"digest":"0123456789abcdef"}'),
    ',"role":"(owner|editor)"', ''
);
UPDATE budgets SET fields_hash = '', fingerprint = 1, digest = 1;
UPDATE categories SET fields_hash = '', fingerprint = 1;
UPDATE expenses SET fields_hash = '', fingerprint = 1;
DROP INDEX participants_ever, expenses_by_category;
ALTER TABLE budgets DROP COLUMN record_count, DROP COLUMN log_bytes;
DELETE FROM migrations WHERE number >= 5;
"""
LATER = [each for each in migrations() if each.number >= REDIGEST.number]
STORED = (
    "SELECT * FROM budgets ORDER BY id",
    "SELECT * FROM categories ORDER BY budget_id, id",
    "SELECT * FROM expenses ORDER BY budget_id, id",
    "SELECT * FROM participants ORDER BY number",
    """
    SELECT budget_id, event_id, sequence, event_type, record_id, actor_id, content_hash,
           content_fields, version, record, accepted_at,
           regexp_replace(event, ',"role":"(owner|editor)"', '') AS event
    FROM accepted_events ORDER BY budget_id, sequence
    """,
)


@pytest.fixture
async def written(database_url: str) -> None:
    """Budgets of every kind of event, one of them deleted. No node is connected any more."""
    database = await Database.connect(database_url)
    for seed, budget_id in enumerate(BUDGETS):
        await write_history(database, budget_id, seed, delete=seed == 2)
        if seed != 2:
            await write_membership(database, budget_id, "participant.add", "bob", at_ms=50)
    await write_membership(database, BUDGETS[1], "participant.remove", "ann", at_ms=51)
    await write_membership(database, BUDGETS[1], "participant.add", "ann", at_ms=52)
    await database.close()


@pytest.fixture
async def raw(database_url: str, written: None) -> AsyncIterator["Raw"]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


async def stored(raw: "Raw") -> list[list[dict[str, Any]]]:
    """But for the bytes of the log: an old event lacks the role."""
    rows = [[dict(row) for row in await raw.fetch(statement)] for statement in STORED]
    for budget in rows[0]:
        del budget["log_bytes"]
    return rows


async def log_id(raw: "Raw") -> str:
    return str(await raw.fetchval("SELECT log_id FROM log_identity"))


async def test_what_0_1_0_wrote_gets_the_digests_of_now(
    database_url: str, raw: "Raw", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.postgres.core.redigest.PAGE", 10)
    due, before = await stored(raw), await log_id(raw)
    await raw.execute(BACK_TO_0_1_0)
    assert await pending(raw) == LATER
    seen: list[tuple[int, int]] = []
    assert await migrate(database_url, lambda *done: seen.append(done)) == [
        each.name for each in LATER
    ]
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert await stored(raw) == due
    assert await log_id(raw) != before
    database = await Database.connect(database_url)
    assert [found async for found in verify(database, None, lambda seen: None)] == []
    await database.close()
    assert await migrate(database_url) == []


async def test_it_goes_on_where_it_was_ended(database_url: str, raw: "Raw") -> None:
    due, before = await stored(raw), await log_id(raw)
    await raw.execute(BACK_TO_0_1_0)

    def ends(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await migrate(database_url, ends)
    assert (await pending(raw), await log_id(raw)) == (LATER, before)
    seen: list[tuple[int, int]] = []
    await migrate(database_url, lambda *done: seen.append(done))
    assert seen == [(1, 2), (2, 2)]
    assert await stored(raw) == due


async def test_nodes_have_to_be_stopped(database_url: str, raw: "Raw") -> None:
    await raw.execute(BACK_TO_0_1_0)
    node = await asyncpg.connect(database_url, server_settings=SESSION)
    with pytest.raises(NodesRunning):
        await migrate(database_url)
    await node.close()
    assert await pending(raw) == LATER


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("DELETE FROM accepted_events WHERE sequence = 3", "event 4: sequence"),
        ("UPDATE accepted_events SET event = 'x' WHERE sequence = 3", "no JSON"),
        (
            "UPDATE accepted_events SET event = left(event, -1) || ' }' WHERE sequence = 3",
            "a digest at its end",
        ),
        ("DELETE FROM accepted_events", "it is empty"),
    ],
)
async def test_a_log_that_cannot_be_replayed_stops_it(
    database_url: str, raw: "Raw", damage: str, says: str
) -> None:
    """Where it stands is said; what was done before stays."""
    await raw.execute(BACK_TO_0_1_0)
    await raw.execute(
        f"WITH d AS (SELECT 1) {damage} {'AND' if 'WHERE' in damage else 'WHERE'}"
        f" budget_id = '{BUDGETS[1]}'"
    )
    with pytest.raises(NotReplayable, match=f"{BUDGETS[1]} cannot be replayed: .*{says}"):
        await migrate(database_url)
    left = await raw.fetch("SELECT id::text FROM budgets WHERE fields_hash = '' ORDER BY id")
    assert [row[0] for row in left] == BUDGETS[1:]
