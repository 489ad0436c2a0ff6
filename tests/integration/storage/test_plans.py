"""The hot statements find their rows by index, whatever the size of the tables and the age of the
statistics: asserted with a million log rows, before and after ANALYZE. So do the reads of what a
budget is, however Postgres plans them, and they look at no more than they have to."""

import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from storage.embedded.postgres import EmbeddedPostgres
from storage.postgres.core import event_log, record_sql, snapshots
from storage.postgres.database import COMMIT_SESSION, SESSION
from tests.conftest import with_database

BUDGET = "00000000-0000-4000-8000-000000000001"

pytestmark = pytest.mark.timeout(900)  # a million rows take a slow machine minutes

ID = [BUDGET]
PAIR = [[BUDGET], ["00000000-0000-4000-8000-0000000000aa"]]

STATEMENTS: dict[str, tuple[str, list[Any]]] = {
    "lock free": (event_log.LOCK_FREE, [ID]),
    "lock wait": (event_log.LOCK_WAIT, [ID]),
    "load budgets": (record_sql.LOAD_BUDGETS, [ID]),
    "load known": (event_log.LOAD_KNOWN, PAIR),
    "load members": (event_log.LOAD_MEMBERS, [[BUDGET], ["ann"]]),
    "load taken": (event_log.LOAD_TAKEN, [["ann"]]),
    "load doors": (event_log.LOAD_DOORS, [ID]),
    "load categories": (record_sql.RECORD_SQL["category"].load, PAIR),
    "load expenses": (record_sql.RECORD_SQL["expense"].load, PAIR),
    "load cascades": (event_log.LOAD_CASCADES, PAIR),
    "cascade": (event_log.CASCADE, [*PAIR, [1], [1]]),
    "update heads": (event_log.UPDATE_HEADS, [ID, [1], [1], [1], [1]]),
    "read page": (event_log.READ_PAGE, [BUDGET, "ann", 400, 500, 100]),
    "read recent": (event_log.READ_RECENT, [0.001]),
    "read behind": (event_log.READ_BEHIND, [ID, [400]]),
}

# One with 10,000 records, and what all reads of a budget are given of it.
BIG = "00000000-0000-4000-8000-0000000b0b0b"
HEAD = 10_101
READS: dict[str, list[Any]] = {
    "READ_TAG": [BIG, "ann"],
    "READ_SNAPSHOT": [BIG, "ann"],
    "READ_DELTA": [BIG, "ann", HEAD - 100],
    "READ_HEAD": [BIG, "ann"],
    "READ_CATEGORIES": [BIG, "ann"],
    "READ_PARTICIPANTS": [BIG, "ann"],
    "READ_EXPENSES": [BIG, "ann", 5000, 100],
    "READ_CATEGORY": [BIG, "ann", BIG],
    "READ_EXPENSE": [BIG, "ann", BIG],
    "READ_PARTICIPANT": [BIG, "ann", "ben"],
    "READ_JOINED": [BIG, "ann"],
    "READ_BUDGETS": ["ann", 500, 100],
}

# What finds the log's rows must be the index made for it: the other one would walk all events of
# the budget.
LOG_INDEX = {
    "load known": "accepted_events_pkey",
    "read page": "accepted_events_by_sequence",
    "read recent": "accepted_events_by_time",
    "load taken": "participants_ever",
}
# Without it each deletion of a category would look at all expenses of the budget.
CASCADE_INDEX = {
    "load cascades": "expenses_by_category",
    "cascade": "expenses_by_category",
}
PRIMARY_KEY = {
    "load taken": "budgets_pkey",
    "load members": "participants_pkey",
    "load doors": "participants_pkey",
    "load categories": "categories_pkey",
    "load expenses": "expenses_pkey",
}


@pytest.fixture(scope="module")
async def large_url(postgres: EmbeddedPostgres, template: str) -> AsyncIterator[str]:
    """A database of a million log rows."""
    admin = await asyncpg.connect(postgres.url)
    await admin.execute(f"CREATE DATABASE large TEMPLATE {template}")
    url = with_database(postgres.url, "large")
    connection = await asyncpg.connect(url)
    await connection.execute(LEAVE_ALONE)
    await connection.execute(FILL)
    await connection.execute(FILL_BIG)
    await connection.close()
    yield url
    await admin.execute("DROP DATABASE large WITH (FORCE)")
    await admin.close()


@pytest.fixture(scope="module", params=["never analyzed", "analyzed"])
async def statistics(request: pytest.FixtureRequest, large_url: str) -> str:
    """pytest runs all tests of the first before those of the second."""
    state: str = request.param
    if state == "analyzed":
        connection = await asyncpg.connect(large_url)
        await connection.execute("ANALYZE")
        await connection.close()
    return state


@pytest.mark.usefixtures("statistics")
async def test_hot_statements_use_their_indexes(large_url: str) -> None:
    large = await asyncpg.connect(large_url, server_settings=COMMIT_SESSION)
    for name, (statement, values) in STATEMENTS.items():
        async with large.transaction():
            await large.execute(f"PREPARE hot AS {statement}")
            nothing = ", ".join(["NULL"] * len(values))  # the plan is the same for all values
            [row] = await large.fetch(f"EXPLAIN (FORMAT JSON) EXECUTE hot ({nothing})")
            await large.execute("DEALLOCATE hot")
        nodes = list(_nodes(json.loads(row[0])[0]["Plan"]))
        scanned = {
            node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"
        } - SMALL
        assert not scanned, (name, scanned)
        used = {node.get("Index Name") for node in nodes}
        for wanted in (LOG_INDEX.get(name), CASCADE_INDEX.get(name), PRIMARY_KEY.get(name)):
            assert wanted is None or wanted in used, (name, used)
        # To walk a whole index is no better than to walk the table.
        walked = {node["Index Name"] for node in nodes if _walks(node)}
        assert not walked, (name, walked)
    await large.close()


@pytest.mark.parametrize("plans", ["force_generic_plan", "force_custom_plan"])
async def test_reads_look_only_at_what_they_answer_with(
    large_url: str, statistics: str, plans: str
) -> None:
    assert set(READS) == {name for name in vars(snapshots) if name.startswith("READ_")}
    settings = {**SESSION, "plan_cache_mode": plans}
    large = await asyncpg.connect(large_url, server_settings=settings)
    looked_at = {}
    for name, values in READS.items():
        [row] = await large.fetch(ANALYZE + getattr(snapshots, name), *values)
        nodes = list(_nodes(json.loads(row[0])[0]["Plan"]))
        scanned = {
            node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"
        } - SMALL
        assert not scanned, (name, scanned)
        looked_at[name] = sum(_looked_at(node) for node in nodes)
    # Beside the rows of the budget itself, of its two participants and of their profiles.
    around = 20
    assert looked_at.pop("READ_SNAPSHOT") <= 10_000 + around
    assert looked_at.pop("READ_CATEGORIES") <= 100 + around
    assert 100 <= looked_at.pop("READ_DELTA") <= 100 + around
    # As long as Postgres knows nothing of the tables, it sorts what comes after the key.
    expenses, budgets = (100, 100) if statistics == "analyzed" else (5_000, 1_501)
    assert 100 <= looked_at.pop("READ_EXPENSES") <= expenses + around
    assert looked_at.pop("READ_BUDGETS") <= 2 * budgets + around
    for name, rows in looked_at.items():
        assert rows <= around, name
    await large.close()


@pytest.mark.usefixtures("statistics")
async def test_p20_a_cascade_looks_only_at_what_it_takes_along(large_url: str) -> None:
    """Of a category with 99 of 9,900 expenses."""
    large = await asyncpg.connect(large_url, server_settings=COMMIT_SESSION)
    category = await large.fetchval(
        "SELECT id FROM categories WHERE budget_id = $1 AND created_sequence = 2", BIG
    )
    [row] = await large.fetch(ANALYZE + event_log.LOAD_CASCADES, [BIG], [category])
    looked_at = sum(_looked_at(node) for node in _nodes(json.loads(row[0])[0]["Plan"]))
    assert looked_at == 99
    [row] = await large.fetch(ANALYZE + event_log.LOAD_CASCADES, [BIG], [BIG])
    assert not sum(_looked_at(node) for node in _nodes(json.loads(row[0])[0]["Plan"]))
    await large.close()


# Postgres would analyze by itself, at a moment of its own.
LEAVE_ALONE = """
DO $$
DECLARE
    name text;
BEGIN
    FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' LOOP
        EXECUTE format('ALTER TABLE %I SET (autovacuum_enabled = off)', name);
    END LOOP;
END $$
"""

ANALYZE = "EXPLAIN (ANALYZE, FORMAT JSON) "
SMALL = {"log_identity"}  # one row

# 2,000 budgets with 500 log rows, 10 participants, 5 former ones, 10 categories and 50 expenses
# each.
FILL = """
INSERT INTO budgets (id, created_by, owner_id, title, version, offline_last_modified, fingerprint,
                     record_sequence, last_sequence, digest, fields_hash)
SELECT ('00000000-0000-4000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'ann', 'ann', 'Large', 1, 1,
       1, 1, 500, 1, 'c'
FROM generate_series(1, 2000) n;
INSERT INTO participants (budget_id, user_id, joined_at) SELECT id, 'ann', 1 FROM budgets;
INSERT INTO participants (budget_id, user_id, joined_at, active)
SELECT id, 'user-' || n, 1, n < 10 FROM budgets, generate_series(1, 14) n;
INSERT INTO accepted_events (budget_id, event_id, sequence, event_type, record_id, actor_id,
                             content_hash, content_fields, version, event, record)
SELECT ('00000000-0000-4000-8000-' || lpad(to_hex(1 + n % 2000), 12, '0'))::uuid,
       gen_random_uuid(), 1 + n / 2000, 'expense.add', 'r', 'ann', '', 1, 1, '{}', '{}'
FROM generate_series(0, 999999) n;
INSERT INTO categories (budget_id, id, created_by, name, allocate, version, offline_last_modified,
                        fingerprint, fields_hash, created_sequence, last_sequence)
SELECT id, gen_random_uuid(), 'ann', 'c', 1, 1, 1, 1, 'c', n, n
FROM budgets, generate_series(1, 10) n;
INSERT INTO expenses (budget_id, id, category_id, created_by, amount, date, version,
                      offline_last_modified, fingerprint, fields_hash, created_sequence,
                      last_sequence)
SELECT budget_id, gen_random_uuid(), id, 'ann', 1, '2026-01-01', 1, 1, 1, 'c', n, n
FROM (SELECT budget_id, id, 5 * created_sequence - 4 AS first FROM categories) of_budget,
     generate_series(first, first + 4) n;
"""

# One budget more, with 100 categories and 9,900 expenses, of which 100 were changed last,
# and as many users as there are budgets.
FILL_BIG = """
INSERT INTO budgets (id, created_by, owner_id, title, version, offline_last_modified, fingerprint,
                     record_sequence, last_sequence, digest, fields_hash)
VALUES ('00000000-0000-4000-8000-0000000b0b0b', 'ann', 'ann', 'Big', 1, 1, 1, 1, 10101, 1, 'c');
INSERT INTO participants (budget_id, user_id, joined_at)
VALUES ('00000000-0000-4000-8000-0000000b0b0b', 'ann', 1),
       ('00000000-0000-4000-8000-0000000b0b0b', 'ben', 1);
INSERT INTO users (id, first_name) SELECT 'user-' || n, 'User' FROM generate_series(1, 2000) n;
INSERT INTO users (id, first_name) VALUES ('ann', 'Ann');
INSERT INTO categories (budget_id, id, created_by, name, allocate, version, offline_last_modified,
                        fingerprint, fields_hash, created_sequence, last_sequence)
SELECT '00000000-0000-4000-8000-0000000b0b0b', gen_random_uuid(), 'ann', 'c', 1, 1, 1, 1, 'c',
       1 + n, 1 + n
FROM generate_series(1, 100) n;
INSERT INTO expenses (budget_id, id, category_id, created_by, amount, date, version,
                      offline_last_modified, fingerprint, fields_hash, created_sequence,
                      last_sequence)
SELECT '00000000-0000-4000-8000-0000000b0b0b', gen_random_uuid(), (
           SELECT id FROM categories
           WHERE budget_id = '00000000-0000-4000-8000-0000000b0b0b'
             AND created_sequence = 2 + n % 100
       ), 'ann', 1, '2026-01-01', 1, 1, 1, 'c', 101 + n,
       CASE WHEN n % 99 = 0 THEN 10001 + n / 99 ELSE 101 + n END
FROM generate_series(1, 9900) n;
"""


def _looked_at(node: dict[str, Any]) -> float:
    """The rows a scan took from its table, those it threw away included."""
    if "Relation Name" not in node:
        return 0.0
    thrown = sum(value for key, value in node.items() if key.startswith("Rows Removed by"))
    loops: float = node["Actual Loops"]
    return loops * float(node["Actual Rows"] + thrown)


def _nodes(plan: dict[str, Any]) -> Any:
    yield plan
    for child in plan.get("Plans", []):
        yield from _nodes(child)


def _walks(node: dict[str, Any]) -> bool:
    return "Index Name" in node and "Index Cond" not in node
