"""One budget's tables against its log.

The log comes in pages and is replayed (`hub.budget.replay`); what is held in memory is the budget's
records, never its log. Compared are

- the log with itself: sequences 1..n without a gap, each eventId once, the columns of a row with
  its text, the digest after every event, the record of every verdict with the record as it was;
- the log with the tables: head, digest, every field of every record, tombstones included, and who
  takes part. The log knows neither `link_sharing`, `removed_at` and invites nor when the maker of
  a budget joined it; what the content hashes cover cannot be told from it either.

Where the log itself is broken its replay ends there, and what follows from it is not compared:
the log is to be restored first.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from hub.budget.records import (
    DIGEST_MODULUS,
    Budget,
    BudgetId,
    Category,
    Expense,
    Record,
    digest_text,
)
from hub.budget.replay import Member, ReplayError, Replica
from storage.postgres.database import STATEMENT_TIMEOUT_S

if TYPE_CHECKING:
    import asyncpg

    from storage.postgres.database import Connection

PAGE = 1_000  # rows at a time

READ_LOG = """
SELECT budget_id::text, sequence, event_id::text, event_type, record_id, actor_id, version, event,
       record
FROM accepted_events
WHERE budget_id = $1 AND sequence > 0 AND sequence > $2
ORDER BY sequence LIMIT $3
"""
MEASURE_LOG = """
SELECT count(*) AS rows, count(DISTINCT event_id) AS ids, coalesce(max(sequence), 0) AS head
FROM accepted_events WHERE budget_id = $1
"""
READ_BUDGET = """
SELECT id::text, created_by, owner_id, title, details, currency, version, deleted,
       offline_last_modified, fingerprint, record_sequence, last_sequence, digest
FROM budgets WHERE id = $1
"""
READ_MEMBERS = "SELECT user_id, active, joined_at FROM participants WHERE budget_id = $1"
READ_CATEGORIES = """
SELECT budget_id::text, id::text, created_by, name, allocate, version, deleted,
       offline_last_modified, fingerprint, created_sequence, last_sequence
FROM categories WHERE budget_id = $1
"""
READ_EXPENSES = """
SELECT budget_id::text, id::text, created_by, category_id::text, amount, date::text, note, version,
       deleted, offline_last_modified, fingerprint, created_sequence, last_sequence
FROM expenses WHERE budget_id = $1
"""

_TEXT_OF_COLUMN = {
    "budget_id": "budgetId",
    "sequence": "sequence",
    "event_id": "eventId",
    "event_type": "eventType",
    "record_id": "recordId",
    "actor_id": "actorId",
    "version": "version",
}
_PERSONAL = {"title", "details", "name", "note"}  # said to differ, never shown (P9)
_DIGESTS = {"digest", "digest of the records", "fingerprint"}
_ABSENT = "absent"


class Difference(NamedTuple):
    """One disagreement: `expected` follows from the log, `found` is what stands there. Ids and
    numbers only; as text one line."""

    budget_id: BudgetId
    what: str
    expected: str
    found: str

    def __str__(self) -> str:
        text = f"budget {self.budget_id}: {self.what}: expected {self.expected}, found {self.found}"
        return text if text.isprintable() else ascii(text)  # a user id may hold anything


async def compare(
    connection: "Connection", budget_id: BudgetId, count: Callable[[int], None]
) -> AsyncIterator[Difference]:
    """The differences of one budget as the connection's transaction sees it; nothing else may
    change the budget under it. `count` is given the number of rows of each page of the log."""
    replay = _Replay(budget_id)
    after = 0
    while rows := await connection.fetch(READ_LOG, budget_id, after, PAGE):
        for row in rows:
            for difference in replay.take(row):
                yield difference
        after = rows[-1]["sequence"]
        count(len(rows))
    replica = replay.replica
    due = {} if replica is None else _records(replica)
    budget: Budget | None = None
    digest = 0
    async for record in _stored(connection, budget_id):
        if isinstance(record, Budget):
            budget = record
        if not record.deleted:
            digest += record.fingerprinted().fingerprint
        if replica is not None:
            for difference in _of_record(budget_id, due.pop(_key(record), None), record):
                yield difference
    for missing in due.values():
        for difference in _of_record(budget_id, missing, None):
            yield difference
    if replica is not None:
        members = await connection.fetch(READ_MEMBERS, budget_id)
        for difference in _of_members(replica, members):
            yield difference
    log = await connection.fetchrow(MEASURE_LOG, budget_id, timeout=STATEMENT_TIMEOUT_S)
    assert log is not None  # an aggregate always has its row
    stated = None if budget is None else budget.digest
    followed = stated if replica is None else replica.digest
    for what, expected, found in (
        ("head", log["head"], None if budget is None else budget.last_sequence),
        ("log rows", log["head"], log["rows"]),
        ("eventIds", log["rows"], log["ids"]),
        ("digest", followed, stated),
        ("digest of the records", followed, digest % DIGEST_MODULUS),
    ):
        for difference in _of_values(budget_id, "", {what: expected}, {what: found}):
            yield difference


class _Replay:
    """The log of one budget, row by row. `replica` is None once it cannot be replayed further."""

    def __init__(self, budget_id: BudgetId) -> None:
        self._budget_id = budget_id
        self.replica: Replica | None = Replica(budget_id)

    def take(self, row: "asyncpg.Record") -> Iterator[Difference]:
        prefix = f"log row {row['sequence']}: "
        event = _object(row["event"])
        columns = {name: row[column] for column, name in _TEXT_OF_COLUMN.items()}
        yield from _of_values(self._budget_id, prefix, columns, {n: event.get(n) for n in columns})
        if self.replica is None:
            return
        try:
            self.replica.apply(event)
        except ReplayError as error:
            self.replica = None
            where = f"{prefix}{error.what}"
            yield Difference(self._budget_id, where, str(error.expected), str(error.found))
            return
        record = self.replica.record_of(event)
        verdict = None if row["record"] is None else _object(row["record"])
        if record is None or verdict is None:
            yield from _of_values(
                self._budget_id,
                prefix,
                {"verdict has a record": record is not None},
                {"verdict has a record": verdict is not None},
            )
        else:
            yield from _of_values(
                self._budget_id, f"{prefix}verdict record: ", record.to_json(), verdict
            )


async def _stored(connection: "Connection", budget_id: BudgetId) -> AsyncIterator[Record]:
    """The records as the tables have them."""
    for row in await connection.fetch(READ_BUDGET, budget_id):
        yield Budget._make(
            (*row[:9], row[9] % DIGEST_MODULUS, *row[10:12], row[12] % DIGEST_MODULUS)
        )
    async for row in connection.cursor(READ_CATEGORIES, budget_id, prefetch=PAGE):
        yield Category._make((*row[:8], row[8] % DIGEST_MODULUS, *row[9:]))
    async for row in connection.cursor(READ_EXPENSES, budget_id, prefetch=PAGE):
        yield Expense._make((*row[:10], row[10] % DIGEST_MODULUS, *row[11:]))


def _records(replica: Replica) -> dict[tuple[str, str], Record]:
    records: list[Record] = [] if replica.budget is None else [replica.budget]
    records += [*replica.categories.values(), *replica.expenses.values()]
    return {_key(record): record for record in records}


def _key(record: Record) -> tuple[str, str]:
    return type(record).__name__.lower(), record.id


def _of_record(
    budget_id: BudgetId, due: Record | None, found: Record | None
) -> Iterator[Difference]:
    if due is None or found is None:
        record = due or found
        assert record is not None
        what = " ".join(_key(record))
        yield Difference(budget_id, what, _presence(due), _presence(found))
    elif due != found:
        prefix = " ".join(_key(due)) + ": "
        yield from _of_values(budget_id, prefix, _fields(due), _fields(found))


def _fields(record: Record) -> Mapping[str, object]:
    if isinstance(record, Budget):  # its head and digest are no fields of the record
        record = record._replace(last_sequence=0, digest=0)
    return record._asdict()


def _of_members(replica: Replica, rows: Sequence["asyncpg.Record"]) -> Iterator[Difference]:
    stored = {row["user_id"]: Member(row["active"], row["joined_at"]) for row in rows}
    for user_id in sorted(replica.members.keys() | stored.keys()):
        due, found = replica.members.get(user_id), stored.get(user_id)
        what = f"participant {user_id}"
        if due is None or found is None:
            yield Difference(replica.budget_id, what, _presence(due), _presence(found))
            continue
        if due.joined_at is None:
            due = due._replace(joined_at=found.joined_at)
        yield from _of_values(replica.budget_id, f"{what}: ", due._asdict(), found._asdict())


def _of_values(
    budget_id: BudgetId, prefix: str, expected: Mapping[str, object], found: Mapping[str, object]
) -> Iterator[Difference]:
    for name in (*expected, *sorted(found.keys() - expected.keys())):
        due, seen = expected.get(name, _ABSENT), found.get(name, _ABSENT)
        if due != seen:
            private = name in _PERSONAL or name not in expected
            yield Difference(
                budget_id, prefix + name, _shown(name, due, private), _shown(name, seen, private)
            )


def _shown(name: str, value: object, private: bool) -> str:
    if value is None:
        return "null"
    if private and value is not _ABSENT:
        return "a text (not shown)"
    if name in _DIGESTS and isinstance(value, int):
        return digest_text(value)
    return str(value)


def _presence(thing: object) -> str:
    return _ABSENT if thing is None else "present"


def _object(text: str) -> dict[str, Any]:
    """The decoded JSON object; an empty one for anything else, which then lacks every field."""
    try:
        decoded = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}
    return decoded if isinstance(decoded, dict) else {}
