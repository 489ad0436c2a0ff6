"""What a budget is at one instant: the whole of it, what has changed since, lists, single records.

Postgres makes the JSON and it is sent as it is. Each read is one statement: under READ COMMITTED it
sees one snapshot, so records, head and digest belong together (P6), and membership is checked in
the same instant (P9).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from hub.budget.access import standing
from hub.budget.kinds import BUDGET, KINDS
from hub.budget.records import BudgetId, UserId
from hub.errors import Code, HubError
from storage.postgres.database import Database

if TYPE_CHECKING:
    import asyncpg


# Every statement answers first how the budget and the user ($1, $2) stand, then with its own
# columns, which are null where the user may not have them.
READ_TAG = """
SELECT b.deleted, p.active, tag
FROM budgets b
LEFT JOIN participants p ON p.budget_id = b.id AND p.user_id = $2
LEFT JOIN LATERAL (
    SELECT string_agg(m.user_id || ':' || m.profile_version, ',' ORDER BY m.number) AS profiles
    FROM participant_dtos m WHERE m.budget_id = b.id AND m.active
) present ON true
LEFT JOIN LATERAL (
    SELECT md5('2:' || i.log_id || ':' || b.last_sequence || ':' || present.profiles) AS tag
    FROM log_identity i
) tagged ON true
WHERE b.id = $1
"""
READ_SNAPSHOT = """
SELECT b.deleted, p.active, tag, row_to_json(snapshot)::text
FROM budgets b
LEFT JOIN participants p ON p.budget_id = b.id AND p.user_id = $2
LEFT JOIN LATERAL (
    SELECT string_agg(m.user_id || ':' || m.profile_version, ',' ORDER BY m.number) AS profiles,
           json_agg(m.dto ORDER BY m.number) AS dtos
    FROM participant_dtos m WHERE m.budget_id = b.id AND m.active
) present ON p.active AND NOT b.deleted
LEFT JOIN LATERAL (
    SELECT md5('2:' || i.log_id || ':' || b.last_sequence || ':' || present.profiles) AS tag
    FROM log_identity i
) tagged ON true
LEFT JOIN LATERAL (
    SELECT
        b.id,
        b.created_by AS "createdBy",
        b.title,
        b.details,
        b.currency,
        b.version,
        b.offline_last_modified AS "offlineLastModified",
        (
            SELECT coalesce(json_agg(c.dto ORDER BY c.created_sequence), '[]')
            FROM category_dtos c WHERE c.budget_id = b.id AND NOT c.deleted
        ) AS categories,
        (
            SELECT coalesce(json_agg(e.dto ORDER BY e.created_sequence), '[]')
            FROM expense_dtos e WHERE e.budget_id = b.id AND NOT e.deleted
        ) AS expenses,
        present.dtos AS participants,
        b.last_sequence AS "lastEventSequence",
        lpad(to_hex(b.digest), 16, '0') AS digest,
        (SELECT log_id FROM log_identity) AS "logId"
) snapshot ON p.active AND NOT b.deleted
WHERE b.id = $1
"""
# What has changed after the event $3. A part that has not changed is null. The lists stand in the
# order of the table of kinds.
READ_DELTA = """
SELECT b.deleted, p.active, b.last_sequence, lpad(to_hex(b.digest), 16, '0') AS digest,
       (SELECT log_id::text FROM log_identity) AS log_id,
       (SELECT d.dto::text FROM budget_dtos d WHERE d.id = b.id AND d.record_sequence > $3),
       categories, expenses, participants
FROM budgets b
LEFT JOIN participants p ON p.budget_id = b.id AND p.user_id = $2
LEFT JOIN LATERAL (
    SELECT json_agg(c.dto ORDER BY c.last_sequence, c.created_sequence)::text AS categories
    FROM category_dtos c
    WHERE c.budget_id = b.id AND c.last_sequence > 0 AND c.last_sequence > $3
) changed_categories ON p.active AND NOT b.deleted
LEFT JOIN LATERAL (
    SELECT json_agg(e.dto ORDER BY e.last_sequence, e.created_sequence)::text AS expenses
    FROM expense_dtos e
    WHERE e.budget_id = b.id AND e.last_sequence > 0 AND e.last_sequence > $3
) changed_expenses ON p.active AND NOT b.deleted
LEFT JOIN LATERAL (
    SELECT json_agg(m.dto ORDER BY m.number)::text AS participants
    FROM participant_dtos m WHERE m.budget_id = b.id AND m.active
) present ON p.active AND NOT b.deleted AND EXISTS (
    SELECT FROM participants m WHERE m.budget_id = b.id AND m.last_sequence > $3
)
WHERE b.id = $1
"""
READ_HEAD = """
SELECT b.deleted, p.active, b.last_sequence, lpad(to_hex(b.digest), 16, '0') AS digest
FROM budgets b
LEFT JOIN participants p ON p.budget_id = b.id AND p.user_id = $2
WHERE b.id = $1
"""
READ_CATEGORIES = """
SELECT b.deleted, p.active, (
    SELECT coalesce(json_agg(c.dto ORDER BY c.created_sequence), '[]')::text
    FROM category_dtos c WHERE c.budget_id = b.id AND NOT c.deleted AND p.active
)
FROM budgets b
LEFT JOIN participants p ON p.budget_id = b.id AND p.user_id = $2
WHERE b.id = $1
"""
READ_PARTICIPANTS = """
SELECT b.deleted, p.active, (
    SELECT coalesce(json_agg(m.dto ORDER BY m.number), '[]')::text
    FROM participant_dtos m WHERE m.budget_id = b.id AND m.active AND p.active
)
FROM budgets b
LEFT JOIN participants p ON p.budget_id = b.id AND p.user_id = $2
WHERE b.id = $1
"""
READ_EXPENSES = """
SELECT b.deleted, p.active, coalesce(next_key, $3), expenses
FROM budgets b
LEFT JOIN participants p ON p.budget_id = b.id AND p.user_id = $2
LEFT JOIN LATERAL (
    SELECT max(created_sequence) AS next_key,
           coalesce(json_agg(dto ORDER BY created_sequence), '[]')::text AS expenses
    FROM (
        SELECT e.created_sequence, e.dto FROM expense_dtos e
        WHERE e.budget_id = b.id AND NOT e.deleted AND e.created_sequence > 0
          AND e.created_sequence > $3
        ORDER BY e.created_sequence
        LIMIT $4
    ) page
) listed ON p.active AND NOT b.deleted
WHERE b.id = $1
"""
READ_CATEGORY = """
SELECT b.deleted, p.active, c.dto::text
FROM budgets b
LEFT JOIN participants p ON p.budget_id = b.id AND p.user_id = $2
LEFT JOIN category_dtos c ON c.budget_id = b.id AND c.id = $3 AND NOT c.deleted AND p.active
WHERE b.id = $1
"""
READ_EXPENSE = """
SELECT b.deleted, p.active, e.dto::text
FROM budgets b
LEFT JOIN participants p ON p.budget_id = b.id AND p.user_id = $2
LEFT JOIN expense_dtos e ON e.budget_id = b.id AND e.id = $3 AND NOT e.deleted AND p.active
WHERE b.id = $1
"""
READ_PARTICIPANT = """
SELECT b.deleted, p.active, m.dto::text
FROM budgets b
LEFT JOIN participants p ON p.budget_id = b.id AND p.user_id = $2
LEFT JOIN participant_dtos m ON m.budget_id = b.id AND m.user_id = $3 AND m.active AND p.active
WHERE b.id = $1
"""
READ_JOINED = """
SELECT b.deleted, p.active, d.dto::text, m.dto::text
FROM budgets b
JOIN budget_dtos d ON d.id = b.id
LEFT JOIN participants p ON p.budget_id = b.id AND p.user_id = $2
LEFT JOIN participant_dtos m ON m.budget_id = b.id AND m.user_id = $2 AND m.active
WHERE b.id = $1
"""
READ_BUDGETS = """
SELECT coalesce(max(number), $2), coalesce(json_agg(dto ORDER BY number), '[]')::text
FROM (
    SELECT p.number, d.dto
    FROM participants p
    -- OFFSET 0 keeps the two apart: joined, what the planner knows nothing of is read as a whole.
    CROSS JOIN LATERAL (
        SELECT dto FROM budget_dtos WHERE id = p.budget_id AND NOT deleted OFFSET 0
    ) d
    WHERE p.user_id = $1 AND p.active AND p.number > $2
    ORDER BY p.number
    LIMIT $3
) page
"""


_PLURALS = [kind.plural for kind in KINDS.values() if kind is not BUDGET]


class Snapshot(NamedTuple):
    """`tag` changes whenever `text`, JSON, does."""

    tag: str
    text: bytes


class Delta(NamedTuple):
    """JSON text; `budget` and `participants` are None where they have not changed. `records` are
    the lists of the other kinds, by their plurals."""

    head: int
    digest: str
    log_id: str
    budget: bytes | None
    records: Mapping[str, bytes]
    participants: bytes | None


class Snapshots:
    """All methods raise `HubError` where the user may not have what is asked for, or it is not
    there, `Disconnected`, and `Held` where too many others read. JSON is text, ready to be sent."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def tag(self, budget_id: BudgetId, user_id: UserId) -> str:
        """The snapshot's tag, without reading the records."""
        [tag] = await self._read(READ_TAG, budget_id, user_id)
        return str(tag)

    async def read(self, budget_id: BudgetId, user_id: UserId) -> Snapshot:
        tag, text = await self._read(READ_SNAPSHOT, budget_id, user_id)
        return Snapshot(tag, text.encode())

    async def delta(self, budget_id: BudgetId, user_id: UserId, key: int) -> Delta:
        """The records that changed after event `key`, as they are now, tombstones included."""
        row = await self._read(READ_DELTA, budget_id, user_id, key)
        head, digest, log_id, budget, *records, participants = row
        if key > head:
            raise HubError(Code.CURSOR_AHEAD)
        return Delta(
            head,
            digest,
            log_id,
            _text(budget),
            {name: _text(text) or b"[]" for name, text in zip(_PLURALS, records, strict=True)},
            _text(participants),
        )

    async def head(self, budget_id: BudgetId, user_id: UserId) -> tuple[int, str]:
        """The last sequence and the digest."""
        head, digest = await self._read(READ_HEAD, budget_id, user_id)
        return head, digest

    async def categories(self, budget_id: BudgetId, user_id: UserId) -> bytes:
        """A list, in the order of creation."""
        [text] = await self._read(READ_CATEGORIES, budget_id, user_id)
        return bytes(text.encode())

    async def participants(self, budget_id: BudgetId, user_id: UserId) -> bytes:
        """A list, in the order of joining."""
        [text] = await self._read(READ_PARTICIPANTS, budget_id, user_id)
        return bytes(text.encode())

    async def expenses(
        self, budget_id: BudgetId, user_id: UserId, key: int, count: int
    ) -> tuple[int, bytes]:
        """At most `count` expenses created after event `key`: the key of the next page, a list."""
        next_key, text = await self._read(READ_EXPENSES, budget_id, user_id, key, count)
        return next_key, text.encode()

    async def category(self, budget_id: BudgetId, user_id: UserId, id: str) -> bytes:
        [text] = await self._read(READ_CATEGORY, budget_id, user_id, id)
        return _found(text, Code.CATEGORY_NOT_EXISTS)

    async def expense(self, budget_id: BudgetId, user_id: UserId, id: str) -> bytes:
        [text] = await self._read(READ_EXPENSE, budget_id, user_id, id)
        return _found(text, Code.EXPENSE_NOT_EXISTS)

    async def participant(self, budget_id: BudgetId, user_id: UserId, id: UserId) -> bytes:
        [text] = await self._read(READ_PARTICIPANT, budget_id, user_id, id)
        return _found(text, Code.PARTICIPANT_NOT_EXISTS)

    async def joined(self, budget_id: BudgetId, user_id: UserId) -> tuple[bytes, bytes]:
        """The budget's own record, and the user as its participant."""
        budget, participant = await self._read(READ_JOINED, budget_id, user_id)
        return budget.encode(), participant.encode()

    async def budgets(self, user_id: UserId, key: int, count: int) -> tuple[int, bytes]:
        """At most `count` budgets the user takes part in, by the number of the membership: the key
        of the next page, a list."""
        async with self._database.connection("rest", user_id) as connection:
            row = await connection.fetchrow(READ_BUDGETS, user_id, key, count)
        assert row is not None
        return row[0], row[1].encode()

    async def _read(
        self, statement: str, budget_id: BudgetId, user_id: UserId, *arguments: object
    ) -> Sequence[Any]:
        """The statement's own columns."""
        async with self._database.connection("rest", user_id) as connection:
            row = await connection.fetchrow(statement, budget_id, user_id, *arguments)
        return _permitted(row)


def _permitted(row: "asyncpg.Record | None") -> Sequence[Any]:
    if row is None:
        raise HubError(Code.BUDGET_NOT_EXISTS)
    if (refusal := standing(row["deleted"], row["active"])) is not None:
        raise HubError(refusal)
    return tuple(row)[2:]


def _found(text: str | None, missing: Code) -> bytes:
    if text is None:
        raise HubError(missing)
    return text.encode()


def _text(text: str | None) -> bytes | None:
    return None if text is None else text.encode()
