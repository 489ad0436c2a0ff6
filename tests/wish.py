"""`python -m tests.wish URL OTHER_URL`: a hub with one kind of record more, added to the table.

P13: a row of the table of kinds and its SQL are all that a new kind needs. This runs in a process
of its own, because everything that follows the table is made when it is imported. The second
database is where the budget is imported.
"""

import asyncio
import io
import sys
from typing import Any

import asyncpg
import orjson

from hub.budget import kinds
from hub.budget.kinds import EXPENSE, ID, MONEY, TITLE, Field, Kind
from hub.errors import Code

WISH = Kind(
    "wish",
    "wishes",
    (
        Field("what", TITLE, "last"),
        Field("price", MONEY, "never", None),
        Field("expenseId", ID, "last", None, refers=EXPENSE),
    ),
    Code.EXPENSE_EXISTS,
    Code.EXPENSE_NOT_EXISTS,
)
kinds.KINDS = {**kinds.KINDS, WISH.name: WISH}

from storage.postgres.core import record_sql

TABLE = """
CREATE TABLE wishes (
    budget_id uuid, id uuid, created_by text, version bigint, deleted boolean,
    offline_last_modified bigint, fields_hash bytea, fingerprint bigint, created_sequence bigint,
    last_sequence bigint, what text, price numeric(12, 2), expense_id uuid,
    PRIMARY KEY (budget_id, id)
)
"""
READ = """
SELECT budget_id::text, id::text, created_by, version, deleted, offline_last_modified, fields_hash,
       fingerprint, created_sequence, last_sequence, what, price, expense_id::text
FROM wishes w
"""
WISH_SQL = record_sql.RecordSql(
    load=f"{READ} JOIN unnest($1::uuid[], $2::uuid[]) AS wanted (budget_id, id)"
    " USING (budget_id, id)",
    read=f"{READ} WHERE budget_id = $1",
    upsert="""
INSERT INTO wishes
SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::bigint[], $5::boolean[], $6::bigint[],
                     $7::bytea[], $8::bigint[], $9::bigint[], $10::bigint[], $11::text[],
                     $12::numeric[], $13::uuid[])
ON CONFLICT (budget_id, id) DO UPDATE
SET version = excluded.version, deleted = excluded.deleted,
    offline_last_modified = excluded.offline_last_modified, fields_hash = excluded.fields_hash,
    fingerprint = excluded.fingerprint, last_sequence = excluded.last_sequence,
    what = excluded.what, price = excluded.price, expense_id = excluded.expense_id
""",
    export="""
SELECT row_to_json(line)::text FROM (
    SELECT 'wish' AS kind, id, created_by, version, deleted, offline_last_modified,
           encode(fields_hash, 'hex') AS fields_hash, fingerprint::text, created_sequence,
           last_sequence, what, price::text, expense_id
    FROM wishes WHERE budget_id = $1 ORDER BY created_sequence
) line
""",
    restore="""
INSERT INTO wishes
SELECT $1, id, created_by, version, deleted, offline_last_modified, decode(fields_hash, 'hex'),
       fingerprint, created_sequence, last_sequence, what, price, expense_id
FROM json_to_recordset($2::json) AS line (
    id uuid, created_by text, version bigint, deleted boolean, offline_last_modified bigint,
    fields_hash text, fingerprint bigint, created_sequence bigint, last_sequence bigint, what text,
    price numeric, expense_id uuid
)
""",
)
record_sql.RECORD_SQL = {**record_sql.RECORD_SQL, WISH.name: WISH_SQL}

from api.documents.asyncapi import asyncapi
from api.documents.openapi import openapi
from hub.budget.replay import Replica
from storage.care.transfer import export_budget, import_budget
from storage.care.verify import verify
from storage.postgres.database import Database
from tests.history import submit
from tests.model import weight

BUDGET = "00000000-0000-4000-8000-00000000000b"
SHOE = "00000000-0000-4000-8000-0000000000a1"
BOAT = "00000000-0000-4000-8000-0000000000a2"
PAID = "00000000-0000-4000-8000-0000000000e1"


def event(number: int, event_type: str, **fields: Any) -> dict[str, Any]:
    head = {"eventId": f"00000000-0000-4000-9000-{number:012x}", "eventType": event_type}
    return {**head, "budgetId": BUDGET, "when": number, **fields}


STORY = [
    (event(1, "budget.create", title="Home"), "accepted"),
    (event(2, "expense.add", recordId=PAID, amount="9", date="2026-03-01"), "accepted"),
    (event(3, "wish.add", recordId=SHOE, what="Shoes", price="80"), "accepted"),
    (event(4, "wish.add", recordId=BOAT, what="A boat"), "accepted"),
    (event(5, "wish.add", recordId=BOAT, what="Another"), "EXPENSE_EXISTS"),
    (event(6, "wish.add", recordId=PAID, what="x", expenseId=BOAT), "EXPENSE_NOT_EXISTS"),
    (event(7, "wish.edit", recordId=SHOE, version=1, expenseId=PAID), "accepted"),
    (event(8, "wish.edit", recordId=SHOE, version=1, price=None), "conflict"),
    (event(9, "wish.edit", recordId=SHOE, version=2, price=None), "accepted"),
    (event(10, "wish.delete", recordId=BOAT, version=1), "accepted"),
    (event(11, "wish.add", recordId=BOAT, price="1"), "INVALID_EVENT"),
    (event(12, "wish.edit", recordId=SHOE, version=3, what=None), "INVALID_EVENT"),
    (event(13, "wish.edit", recordId=BOAT, version=2, what="y"), "conflict"),
]


async def main(url: str, other_url: str) -> None:
    database, other = [await Database.connect(u) for u in (url, other_url)]
    for each in (url, other_url):
        raw = await asyncpg.connect(each)
        await raw.execute(TABLE)
        await raw.close()
    verdicts = await submit(database, "ann", [said for said, _ in STORY])
    found = [v.status if v.error is None else v.error.name for v in verdicts]
    assert found == [due for _, due in STORY], found
    assert (await submit(database, "ann", [STORY[6][0]]))[0].duplicate

    # The log replayed, the digest by hand, the tables compared, and all of it elsewhere.
    raw = await asyncpg.connect(url)
    rows = await raw.fetch("SELECT event FROM accepted_events ORDER BY sequence")
    replica = Replica(BUDGET)
    for row in rows:
        replica.apply(orjson.loads(row[0]))
    by_hand = (
        weight("budget", BUDGET, 1, {"title": "Home"})
        + weight("expense", PAID, 1, {"amount": "9.00", "date": "2026-03-01"})
        + weight("wish", SHOE, 3, {"what": "Shoes", "expenseId": PAID})
        + weight("participant", "ann", 1, {"role": "owner"})
    )
    assert replica.digest == by_hand % 2**64
    assert [each async for each in verify(database, None, lambda seen: None)] == []
    lines = [line async for line in export_budget(database, BUDGET)]
    await import_budget(other, io.BytesIO(b"".join(lines)))
    assert [each async for each in verify(other, None, lambda seen: None)] == []
    await raw.close()
    await asyncio.gather(database.close(), other.close())

    for document in asyncapi("1", []), openapi("1", []):
        named = document["components"]["schemas"]
        assert {"WishEdit", "WishDelete", "WishEdited", "WishDeleted"} <= named.keys()
        assert "wish.add" in named["EventType"]["x-extensible-enum"]
    assert set(named["WishAdd"]["required"]) == {
        "eventType", "eventId", "budgetId", "when", "recordId", "what",
    }  # fmt: skip
    assert {"what", "price", "expenseId"} <= set(named["WishAdded"]["required"])
    assert {"what", "price", "expenseId"} <= named["Wish"]["properties"].keys()
    for each in ("Snapshot", "Delta"):
        assert named[each]["properties"]["wishes"]["items"] == {"$ref": "#/components/schemas/Wish"}


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
