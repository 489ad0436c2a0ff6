"""Budgets can be spread over several servers by their id (infra/README.md, scale on paper): every
table that grows with budgets has the budget in all its keys, and every statement of a request finds
its rows by it. What needs all servers is listed here, with its reason."""

import json
import re
from collections.abc import AsyncIterator, Iterator
from types import ModuleType
from typing import Any

import asyncpg
import pytest

from storage.care.verify import verify
from storage.embedded.postgres import EmbeddedPostgres
from storage.postgres.core import event_log, invites, record_sql, snapshots
from storage.postgres.database import COMMIT_SESSION, Database
from tests.conftest import with_database
from tests.device import budget_create, expense_add, new_id
from tests.history import submit, write_history

# How the budget is called in each of them.
OF_BUDGETS = {
    "budgets": "id",
    "participants": "budget_id",
    "invites": "budget_id",
    "categories": "budget_id",
    "expenses": "budget_id",
    "accepted_events": "budget_id",
}
# These grow with users, by whose id they can be spread, or do not grow.
OF_USERS = {"users", "refresh_families", "photo_uploads", "photo_leftovers", "closed_accounts"}
OF_THE_DATABASE = {"log_identity", "migrations"}

ACROSS = {
    # The sweep of a node with very many feeds: an index by time on each server, a few rows.
    "READ_RECENT": {"accepted_events"},
    # All budgets of one user, who takes part in a few: one question to each server, a page of rows.
    "READ_BUDGETS": {"participants"},
    # The same, where a budget is made or joined.
    "LOAD_TAKEN": {"participants"},
}


# So many that Postgres has a reason to look for those of one budget.
FILL = """
INSERT INTO budgets (id, created_by, owner_id, title, version, offline_last_modified, fingerprint,
                     record_sequence, last_sequence, digest, fields_hash)
SELECT gen_random_uuid(), 'ann', 'ann', 'Home', 1, 1, 1, 1, 1, 1, 'c'
FROM generate_series(1, 1000);
INSERT INTO participants (budget_id, user_id, joined_at)
SELECT id, 'user-' || n, 1 FROM budgets, generate_series(1, 5) n;
INSERT INTO invites (budget_id, id, token_hash, created_at, expires_at, max_uses, created_sequence)
SELECT id, gen_random_uuid(), uuid_send(gen_random_uuid()), 1, 1 + n, 1, 1
FROM budgets, generate_series(1, 5) n;
INSERT INTO categories (budget_id, id, created_by, name, allocate, version, offline_last_modified,
                        fingerprint, fields_hash, created_sequence, last_sequence)
SELECT id, gen_random_uuid(), 'ann', 'c', 1, 1, 1, 1, 'c', n, n
FROM budgets, generate_series(1, 5) n;
INSERT INTO expenses (budget_id, id, created_by, amount, date, version, offline_last_modified,
                      fingerprint, fields_hash, created_sequence, last_sequence)
SELECT id, gen_random_uuid(), 'ann', 1, '2026-01-01', 1, 1, 1, 'c', n, n
FROM budgets, generate_series(1, 5) n;
INSERT INTO accepted_events (budget_id, event_id, sequence, event_type, record_id, actor_id,
                             content_hash, content_fields, version, event, record)
SELECT id, gen_random_uuid(), n, 'expense.add', 'r', 'ann', '', 1, 1, '{}', '{}'
FROM budgets, generate_series(1, 5) n;
ANALYZE;
"""


@pytest.fixture(scope="module")
async def raw(postgres: EmbeddedPostgres, template: str) -> AsyncIterator[Any]:
    admin = await asyncpg.connect(postgres.url)
    await admin.execute(f"CREATE DATABASE distribution TEMPLATE {template}")
    url = with_database(postgres.url, "distribution")
    connection = await asyncpg.connect(url, server_settings=COMMIT_SESSION)
    await connection.execute(FILL)
    yield connection
    await connection.close()
    await admin.execute("DROP DATABASE distribution WITH (FORCE)")
    await admin.close()


async def test_every_table_is_of_budgets_or_of_users(raw: Any) -> None:
    """A new one has to be given its place."""
    rows = await raw.fetch("SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'")
    assert {row[0] for row in rows} == {*OF_BUDGETS, *OF_USERS, *OF_THE_DATABASE}


async def test_every_key_of_a_budgets_table_has_the_budget(raw: Any) -> None:
    """Unique indexes hold within one server only, and so do foreign keys."""
    keys = await raw.fetch(
        """
        SELECT c.relname::text, i.indexrelid::regclass::text,
               ARRAY(
                   SELECT a.attname::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY k (n, place)
                   JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.n ORDER BY k.place
               )
        FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
        WHERE i.indisunique AND c.relname = ANY($1)
        """,
        list(OF_BUDGETS),
    )
    assert {row[0] for row in keys} == set(OF_BUDGETS)
    for table, index, columns in keys:
        assert columns[0] == OF_BUDGETS[table], (table, index)
    foreign = await raw.fetch(
        """
        SELECT f.conrelid::regclass::text, f.confrelid::regclass::text, a.attname::text,
               b.attname::text
        FROM pg_constraint f
        JOIN pg_attribute a ON a.attrelid = f.conrelid AND a.attnum = f.conkey[1]
        JOIN pg_attribute b ON b.attrelid = f.confrelid AND b.attnum = f.confkey[1]
        WHERE f.contype = 'f'
        """
    )
    assert len(foreign) >= 6
    for child, parent, column, referenced in foreign:
        assert (child in OF_BUDGETS) == (parent in OF_BUDGETS), (child, parent)
        if child in OF_BUDGETS:
            assert (column, referenced) == (OF_BUDGETS[child], OF_BUDGETS[parent])


def statements(*modules: ModuleType) -> Iterator[tuple[str, str]]:
    for module in modules:
        for name, value in vars(module).items():
            if name.isupper() and isinstance(value, str):
                yield name, value


STATEMENTS = {
    **dict(statements(event_log, snapshots, invites)),
    **{
        f"{kind} {name}": getattr(sql, name)
        for kind, sql in record_sql.RECORD_SQL.items()
        for name in ("load", "read", "upsert")
    },
}


@pytest.mark.parametrize("name", STATEMENTS)
async def test_every_hot_statement_finds_its_rows_by_the_budget(raw: Any, name: str) -> None:
    """As Postgres plans it when it may not scan: whoever spreads the tables sends the statement to
    the servers of the budgets it names, and to no other."""
    statement = STATEMENTS[name].strip()
    scans = list(_scans(await _plan(raw, statement)))
    across = {table for table, condition in scans if not _by_budget(table, condition)}
    assert across == ACROSS.get(name, set()), scans
    inserted = re.match(r"INSERT INTO (\w+)(?: AS \w+)? \((\w+)", statement)
    if inserted is not None:
        assert OF_BUDGETS[inserted[1]] == inserted[2]
    # Neither looked for nor inserted: then it is not about budgets, or this test is blind.
    assert scans or inserted is not None or name == "READ_LOG_ID"


async def _plan(raw: Any, statement: str) -> dict[str, Any]:
    """For whatever values."""
    await raw.execute(f"PREPARE asked AS {statement}")
    parameters = await raw.fetchval(
        "SELECT cardinality(parameter_types) FROM pg_prepared_statements WHERE name = 'asked'"
    )
    values = f"({', '.join(['NULL'] * parameters)})" if parameters else ""
    plan = json.loads(await raw.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE asked{values}"))
    await raw.execute("DEALLOCATE asked")
    found: dict[str, Any] = plan[0]["Plan"]
    return found


def _scans(node: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The budgets' tables that are read, and by what of their rows."""
    if node.get("Relation Name") in OF_BUDGETS and node["Node Type"] != "ModifyTable":
        conditions = [node.get("Index Cond", ""), node.get("Recheck Cond", "")]
        yield node["Relation Name"], " ".join(conditions)
    for child in node.get("Plans", []):
        yield from _scans(child)


def _by_budget(table: str, condition: str) -> bool:
    column = OF_BUDGETS[table]
    return re.search(rf"[( ]{column} = | = {column}\)", condition) is not None


# As infra/README.md gives it, with fewer parts.
PARTITION = """
ALTER TABLE accepted_events RENAME TO accepted_events_whole;
CREATE TABLE accepted_events (LIKE accepted_events_whole INCLUDING ALL,
                              FOREIGN KEY (budget_id) REFERENCES budgets (id))
    PARTITION BY HASH (budget_id);
CREATE TABLE accepted_events_0 PARTITION OF accepted_events
    FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE accepted_events_1 PARTITION OF accepted_events
    FOR VALUES WITH (MODULUS 2, REMAINDER 1);
INSERT INTO accepted_events SELECT * FROM accepted_events_whole;
DROP TABLE accepted_events_whole;
"""


async def test_the_log_can_be_partitioned_by_budget(database: Database) -> None:
    """The hub does not notice: histories begun before go on, P3 and all."""
    budgets = [new_id() for _ in range(8)]
    for seed, budget_id in enumerate(budgets[:4]):
        await write_history(database, budget_id, seed)
    repeated = budget_create(new_id())
    [first] = await submit(database, "ann", [repeated])
    async with database.committing() as connection:
        await connection.execute(PARTITION)
    for seed, budget_id in enumerate(budgets[4:]):
        await write_history(database, budget_id, seed)
    later = [expense_add(budget_id) for budget_id in budgets]
    assert {verdict.status for verdict in await submit(database, "ann", later)} == {"accepted"}
    [again] = await submit(database, "ann", [repeated])
    assert (again.duplicate, again.sequence) == (True, first.sequence)
    async with database.connection("rest") as connection:
        parts = await connection.fetch(
            "SELECT tableoid::regclass::text, count(*) FROM accepted_events GROUP BY 1"
        )
    assert {row[0] for row in parts} == {"accepted_events_0", "accepted_events_1"}
    assert [str(found) async for found in verify(database, None, lambda _: None)] == []
