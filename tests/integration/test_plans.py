"""The hot statements find their rows by index, whatever the size of the tables and the age of the
statistics: asserted with a million log rows, before and after ANALYZE."""

import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from storage import event_log, snapshots
from storage.database import COMMIT_SESSION

BUDGET = "00000000-0000-4000-8000-000000000001"

ID = [BUDGET]
PAIR = [[BUDGET], ["00000000-0000-4000-8000-0000000000aa"]]

STATEMENTS: dict[str, tuple[str, list[Any]]] = {
    "lock free": (event_log.LOCK_FREE, [ID]),
    "lock wait": (event_log.LOCK_WAIT, [ID]),
    "load budgets": (event_log.LOAD_BUDGETS, [ID]),
    "load known": (event_log.LOAD_KNOWN, PAIR),
    "load members": (event_log.LOAD_MEMBERS, [[BUDGET], ["ann"]]),
    "count members": (event_log.COUNT_MEMBERS, [ID]),
    "load categories": (event_log.LOAD_CATEGORIES, PAIR),
    "load expenses": (event_log.LOAD_EXPENSES, PAIR),
    "load cascades": (event_log.LOAD_CASCADES, PAIR),
    "cascade": (event_log.CASCADE, [*PAIR, [1], [1]]),
    "update heads": (event_log.UPDATE_HEADS, [ID, [1], [1]]),
    "read page": (event_log.READ_PAGE, [BUDGET, "ann", 400, 500, 100]),
    "read recent": (event_log.READ_RECENT, [0.001]),
    "read behind": (event_log.READ_BEHIND, [ID, [400]]),
    "snapshot": (snapshots.READ_SNAPSHOT, [BUDGET, "ann"]),
}

# What finds the log's rows must be the index made for it: the other one would walk all events of
# the budget.
LOG_INDEX = {
    "load known": "accepted_events_pkey",
    "read page": "accepted_events_by_sequence",
    "read recent": "accepted_events_by_time",
}
PRIMARY_KEY = {
    "load members": "participants_pkey",
    "count members": "participants_pkey",
    "load categories": "categories_pkey",
    "load expenses": "expenses_pkey",
}


@pytest.fixture(scope="module")
async def large(
    postgres: Any, template: str
) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A connection with the session of the commits, to a database of a million log rows."""
    from tests.conftest import with_database

    admin = await asyncpg.connect(postgres.url)
    await admin.execute(f"CREATE DATABASE large TEMPLATE {template}")
    connection = await asyncpg.connect(
        with_database(postgres.url, "large"),
        server_settings={**COMMIT_SESSION, "statement_timeout": "0"},
    )
    await connection.execute(FILL)
    yield connection
    await connection.close()
    await admin.execute("DROP DATABASE large WITH (FORCE)")
    await admin.close()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("statistics", ["never analyzed", "analyzed"])
async def test_hot_statements_use_their_indexes(
    large: "asyncpg.Connection[asyncpg.Record]", statistics: str
) -> None:
    if statistics == "analyzed":
        await large.execute("ANALYZE")
        await large.reload_schema_state()
    for name, (statement, values) in STATEMENTS.items():
        async with large.transaction():
            [row] = await large.fetch(EXPLAIN + statement, *values)
        nodes = list(_nodes(json.loads(row[0])[0]["Plan"]))
        scanned = {
            node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"
        } - SMALL
        assert not scanned, (name, scanned)
        used = {node.get("Index Name") for node in nodes}
        for wanted in (LOG_INDEX.get(name), PRIMARY_KEY.get(name)):
            assert wanted is None or wanted in used, (name, used)
        # To walk a whole index is no better than to walk the table.
        walked = {node["Index Name"] for node in nodes if _walks(node)}
        assert not walked, (name, walked)


EXPLAIN = "EXPLAIN (FORMAT JSON, GENERIC_PLAN) "  # the plan that the commit's sessions keep
SMALL = {"hub_identity"}  # one row

# 2,000 budgets with 500 log rows, 10 participants, 5 former ones, 10 categories and 50 expenses
# each.
FILL = """
INSERT INTO budgets (id, created_by, owner_id, title, version, offline_last_modified, fingerprint,
                     record_sequence, last_sequence, digest)
SELECT ('00000000-0000-4000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'ann', 'ann', 'Large', 1, 1,
       1, 1, 500, 1
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
                        fingerprint, created_sequence, last_sequence)
SELECT id, gen_random_uuid(), 'ann', 'c', 1, 1, 1, 1, n, n FROM budgets, generate_series(1, 10) n;
INSERT INTO expenses (budget_id, id, created_by, amount, date, version, offline_last_modified,
                      fingerprint, created_sequence, last_sequence)
SELECT id, gen_random_uuid(), 'ann', 1, '2026-01-01', 1, 1, 1, n, n
FROM budgets, generate_series(1, 50) n;
"""


def _nodes(plan: dict[str, Any]) -> Any:
    yield plan
    for child in plan.get("Plans", []):
        yield from _nodes(child)


def _walks(node: dict[str, Any]) -> bool:
    return "Index Name" in node and "Index Cond" not in node
