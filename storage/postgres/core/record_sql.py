"""The SQL of each kind of record; a budget's row is also that of its log.

Rows begin with the same columns for every kind, then come the fields in the order of the table of
kinds; `record_of` and `row_of` turn them into records and back. 64-bit fingerprints and digests are
unsigned in Python and two's complement in SQL.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from hub.budget.digest import DIGEST_MODULUS
from hub.budget.kinds import BUDGET, CATEGORY, EXPENSE, Kind
from hub.budget.records import Budget, Record

if TYPE_CHECKING:
    import asyncpg

    Row: TypeAlias = Sequence[Any] | asyncpg.Record


class RecordSql(NamedTuple):
    """`load` takes budget and record ids, `read` a budget, `upsert` a column each; `export` and
    `restore` are of the lines that `storage.care.transfer` describes."""

    load: str
    read: str
    upsert: str
    export: str
    restore: str


LOAD_BUDGETS = """
SELECT owner_id, last_sequence, digest, record_count, log_bytes,
       id::text, id::text, created_by, version, deleted, offline_last_modified, fields_hash,
       fingerprint, 1, record_sequence, title, details, currency
FROM budgets WHERE id = ANY($1::uuid[])
"""

RECORD_SQL: Mapping[str, RecordSql] = {
    CATEGORY.name: RecordSql(
        load="""
SELECT c.budget_id::text, c.id::text, c.created_by, c.version, c.deleted, c.offline_last_modified,
       c.fields_hash, c.fingerprint, c.created_sequence, c.last_sequence, c.name, c.allocate
FROM unnest($1::uuid[], $2::uuid[]) AS wanted (budget_id, id)
JOIN categories c USING (budget_id, id)
""",
        read="""
SELECT budget_id::text, id::text, created_by, version, deleted, offline_last_modified, fields_hash,
       fingerprint, created_sequence, last_sequence, name, allocate
FROM categories WHERE budget_id = $1
""",
        upsert="""
INSERT INTO categories (budget_id, id, created_by, version, deleted, offline_last_modified,
                        fields_hash, fingerprint, created_sequence, last_sequence, name, allocate)
SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::bigint[], $5::boolean[], $6::bigint[],
                     $7::bytea[], $8::bigint[], $9::bigint[], $10::bigint[], $11::text[],
                     $12::numeric[])
ON CONFLICT (budget_id, id) DO UPDATE
SET version = excluded.version, deleted = excluded.deleted,
    offline_last_modified = excluded.offline_last_modified, fields_hash = excluded.fields_hash,
    fingerprint = excluded.fingerprint, last_sequence = excluded.last_sequence,
    name = excluded.name, allocate = excluded.allocate
""",
        export="""
SELECT row_to_json(line)::text FROM (
    SELECT 'category' AS kind, id, created_by, name, allocate::text, version, deleted,
           offline_last_modified, encode(fields_hash, 'hex') AS fields_hash, fingerprint::text,
           created_sequence, last_sequence
    FROM categories WHERE budget_id = $1 ORDER BY created_sequence
) line
""",
        restore="""
INSERT INTO categories (budget_id, id, created_by, name, allocate, version, deleted,
                        offline_last_modified, fields_hash, fingerprint, created_sequence,
                        last_sequence)
SELECT $1, id, created_by, name, allocate, version, deleted, offline_last_modified,
       decode(coalesce(fields_hash, ''), 'hex'), fingerprint, created_sequence, last_sequence
FROM json_to_recordset($2::json) AS line (
    id uuid, created_by text, name text, allocate numeric, version bigint, deleted boolean,
    offline_last_modified bigint, fields_hash text, fingerprint bigint, created_sequence bigint,
    last_sequence bigint
)
""",
    ),
    # Dates travel as text: asyncpg writes `date.min` and `date.max` as infinities.
    EXPENSE.name: RecordSql(
        load="""
SELECT e.budget_id::text, e.id::text, e.created_by, e.version, e.deleted, e.offline_last_modified,
       e.fields_hash, e.fingerprint, e.created_sequence, e.last_sequence, e.category_id::text,
       e.amount, e.date::text, e.note
FROM unnest($1::uuid[], $2::uuid[]) AS wanted (budget_id, id)
JOIN expenses e USING (budget_id, id)
""",
        read="""
SELECT budget_id::text, id::text, created_by, version, deleted, offline_last_modified, fields_hash,
       fingerprint, created_sequence, last_sequence, category_id::text, amount, date::text, note
FROM expenses WHERE budget_id = $1
""",
        upsert="""
INSERT INTO expenses (budget_id, id, created_by, version, deleted, offline_last_modified,
                      fields_hash, fingerprint, created_sequence, last_sequence, category_id,
                      amount, date, note)
SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::bigint[], $5::boolean[], $6::bigint[],
                     $7::bytea[], $8::bigint[], $9::bigint[], $10::bigint[], $11::uuid[],
                     $12::numeric[], $13::text[]::date[], $14::text[])
ON CONFLICT (budget_id, id) DO UPDATE
SET version = excluded.version, deleted = excluded.deleted,
    offline_last_modified = excluded.offline_last_modified, fields_hash = excluded.fields_hash,
    fingerprint = excluded.fingerprint, last_sequence = excluded.last_sequence,
    category_id = excluded.category_id, amount = excluded.amount, date = excluded.date,
    note = excluded.note
""",
        export="""
SELECT row_to_json(line)::text FROM (
    SELECT 'expense' AS kind, id, created_by, category_id, amount::text, date, note, version,
           deleted, offline_last_modified, encode(fields_hash, 'hex') AS fields_hash,
           fingerprint::text, created_sequence, last_sequence
    FROM expenses WHERE budget_id = $1 ORDER BY created_sequence
) line
""",
        restore="""
INSERT INTO expenses (budget_id, id, created_by, category_id, amount, date, note, version, deleted,
                      offline_last_modified, fields_hash, fingerprint, created_sequence,
                      last_sequence)
SELECT $1, id, created_by, category_id, amount, date, note, version, deleted,
       offline_last_modified, decode(coalesce(fields_hash, ''), 'hex'), fingerprint,
       created_sequence, last_sequence
FROM json_to_recordset($2::json) AS line (
    id uuid, created_by text, category_id uuid, amount numeric, date date, note text,
    version bigint, deleted boolean, offline_last_modified bigint, fields_hash text,
    fingerprint bigint, created_sequence bigint, last_sequence bigint
)
""",
    ),
}


def budget_of(row: "Row") -> Budget:
    """Of a row of `LOAD_BUDGETS`."""
    return Budget(record_of(BUDGET, row[5:]), row[0], row[1], unsigned(row[2]), row[3], row[4])


def record_of(kind: Kind, row: "Row") -> Record:
    return Record._make((kind, *row[:7], unsigned(row[7]), row[8], row[9], tuple(row[10:])))


def row_of(record: Record) -> tuple[Any, ...]:
    return (*record[1:8], signed(record.fingerprint), *record[9:11], *record.values)


def signed(unsigned: int) -> int:
    return unsigned - DIGEST_MODULUS if unsigned >= DIGEST_MODULUS // 2 else unsigned


def unsigned(signed: int) -> int:
    return signed % DIGEST_MODULUS
