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

from hub.budget.digest import (
    DIGEST_MODULUS,
    digest_text,
    fields_hash,
    fingerprint,
    participant_fingerprint,
)
from hub.budget.kinds import BUDGET, KINDS, TEXT, TITLE
from hub.budget.records import Budget, BudgetId, Record, role_of
from hub.budget.replay import Member, ReplayError, Replica
from storage.postgres.core.record_sql import LOAD_BUDGETS, RECORD_SQL, budget_of, record_of
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
SELECT count(*) AS rows, count(DISTINCT event_id) AS ids, coalesce(max(sequence), 0) AS head,
       coalesce(sum(octet_length(event) + coalesce(octet_length(record), 0)), 0)::bigint AS bytes
FROM accepted_events WHERE budget_id = $1
"""
READ_MEMBERS = "SELECT user_id, active, joined_at FROM participants WHERE budget_id = $1"

_TEXT_OF_COLUMN = {
    "budget_id": "budgetId",
    "sequence": "sequence",
    "event_id": "eventId",
    "event_type": "eventType",
    "record_id": "recordId",
    "actor_id": "actorId",
    "version": "version",
}
# Said to differ, never shown (P9).
_PERSONAL = {f.name for kind in KINDS.values() for f in kind.fields if f.type in (TITLE, TEXT)}
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
    due = {} if replica is None else dict(replica.records)
    rows = await connection.fetch(LOAD_BUDGETS, [budget_id])
    budget = budget_of(rows[0]) if rows else None
    members = await connection.fetch(READ_MEMBERS, budget_id)
    digest = 0 if budget is None else _of_participants(members, budget)
    stored = 0
    async for record in _stored(connection, budget_id, budget):
        if not record.deleted:
            hashed = fields_hash(record.kind, record.values)
            digest += fingerprint(record.kind.name, record.id, record.version, hashed)
        stored += record.kind is not BUDGET
        if replica is not None:
            key = (record.kind.name, record.id)
            for difference in _of_record(budget_id, due.pop(key, None), record):
                yield difference
    for missing in due.values():
        for difference in _of_record(budget_id, missing, None):
            yield difference
    if replica is not None:
        for difference in _of_members(replica, budget, members):
            yield difference
    records = stored if replica is None else sum(name != BUDGET.name for name, _ in replica.records)
    log = await connection.fetchrow(MEASURE_LOG, budget_id, timeout=STATEMENT_TIMEOUT_S)
    assert log is not None  # an aggregate always has its row
    stated = None if budget is None else budget.digest
    followed = stated if replica is None else replica.digest
    for what, expected, found in (
        ("head", log["head"], None if budget is None else budget.last_sequence),
        ("log rows", log["head"], log["rows"]),
        ("eventIds", log["rows"], log["ids"]),
        ("log bytes", log["bytes"], log["bytes"] if budget is None else budget.log_bytes),
        ("number of records", records, records if budget is None else budget.record_count),
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
            # A field that is younger than the verdict is not in it.
            json = orjson.loads(orjson.dumps(record.to_json(), default=str))
            expected = {name: value for name, value in json.items() if name in verdict}
            yield from _of_values(self._budget_id, f"{prefix}verdict record: ", expected, verdict)


async def _stored(
    connection: "Connection", budget_id: BudgetId, budget: Budget | None
) -> AsyncIterator[Record]:
    """The records as the tables have them."""
    if budget is not None:
        yield budget.record
    for kind_name, statements in RECORD_SQL.items():
        async for row in connection.cursor(statements.read, budget_id, prefetch=PAGE):
            yield record_of(KINDS[kind_name], row)


def _of_record(
    budget_id: BudgetId, due: Record | None, found: Record | None
) -> Iterator[Difference]:
    record = due or found
    assert record is not None
    what = f"{record.kind.name} {record.id}"
    if due is None or found is None:
        yield Difference(budget_id, what, _presence(due), _presence(found))
    elif due != found:
        yield from _of_values(budget_id, f"{what}: ", _columns(due), _columns(found))


def _columns(record: Record) -> Mapping[str, object]:
    named = {**record._asdict(), **record.fields(), "C": record.fields_hash.hex()}
    hidden = ("kind", "values", "fields_hash")
    return {name: value for name, value in named.items() if name not in hidden}


def _of_participants(rows: Sequence["asyncpg.Record"], budget: Budget) -> int:
    """What those who take part add to the digest."""
    return sum(
        participant_fingerprint(row["user_id"], role_of(row["user_id"], budget.owner_id))
        for row in rows
        if row["active"]
    )


def _of_members(
    replica: Replica, budget: Budget | None, rows: Sequence["asyncpg.Record"]
) -> Iterator[Difference]:
    if budget is not None and replica.owner_id is not None:
        owners = {"owner_id": replica.owner_id}, {"owner_id": budget.owner_id}
        yield from _of_values(replica.budget_id, f"budget {replica.budget_id}: ", *owners)
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
