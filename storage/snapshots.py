"""The whole of a budget at one instant, built by Postgres and sent as it is.

One statement: under READ COMMITTED it sees one snapshot, so records, head and digest belong
together (P6), and membership is checked in the same instant (P9).
"""

from typing import NamedTuple

from hub.errors import Code, HubError
from hub.records import BudgetId, UserId
from storage.database import Database

READ_SNAPSHOT = """
SELECT b.deleted, p.active, CASE WHEN p.active AND NOT b.deleted THEN (
    SELECT row_to_json(snapshot)::text FROM (
        SELECT
            b.id,
            b.created_by AS "createdBy",
            b.title,
            b.details,
            b.currency,
            b.version,
            b.offline_last_modified AS "offlineLastModified",
            (
                SELECT coalesce(json_agg(row_to_json(category)), '[]') FROM (
                    SELECT c.id, c.budget_id AS "budgetId", c.created_by AS "createdBy", c.name,
                           c.allocate::text, c.version,
                           c.offline_last_modified AS "offlineLastModified"
                    FROM categories c
                    WHERE c.budget_id = b.id AND NOT c.deleted
                    ORDER BY c.created_sequence
                ) category
            ) AS categories,
            (
                SELECT coalesce(json_agg(row_to_json(expense)), '[]') FROM (
                    SELECT e.id, e.budget_id AS "budgetId", e.category_id AS "categoryId",
                           e.created_by AS "createdBy", e.date, e.amount::text, e.note, e.version,
                           e.offline_last_modified AS "offlineLastModified"
                    FROM expenses e
                    WHERE e.budget_id = b.id AND NOT e.deleted
                    ORDER BY e.created_sequence
                ) expense
            ) AS expenses,
            (
                SELECT coalesce(json_agg(row_to_json(participant)), '[]') FROM (
                    SELECT m.user_id AS "userId", m.budget_id AS "budgetId",
                           u.id IS NOT NULL AS "userExists", u.first_name AS "firstName",
                           u.last_name AS "lastName", u.photo, m.joined_at AS "joinedAt"
                    FROM participants m
                    LEFT JOIN users u ON u.id = m.user_id
                    WHERE m.budget_id = b.id AND m.active
                    ORDER BY m.number
                ) participant
            ) AS participants,
            b.last_sequence AS "lastEventSequence",
            lpad(to_hex(b.digest), 16, '0') AS digest,
            (SELECT log_id FROM hub_identity) AS "logId"
    ) snapshot
) END AS snapshot
FROM budgets b
LEFT JOIN participants p ON p.budget_id = b.id AND p.user_id = $2
WHERE b.id = $1
"""


class Access(NamedTuple):
    """How a user stands to a budget. `member` is None for someone who never took part."""

    deleted: bool
    member: bool | None

    def check(self) -> None:
        """Raises `HubError` unless the user takes part in a budget that is not deleted (P9)."""
        if self.deleted or self.member is None:
            raise HubError(Code.BUDGET_NOT_EXISTS)
        if not self.member:
            raise HubError(Code.NOT_PARTICIPANT)


class Snapshots:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def read(self, budget_id: BudgetId, user_id: UserId) -> bytes:
        """The snapshot as JSON text. Raises `HubError` where the user may not have it."""
        async with self._database.reading() as connection:
            row = await connection.fetchrow(READ_SNAPSHOT, budget_id, user_id)
        if row is None:
            raise HubError(Code.BUDGET_NOT_EXISTS)
        Access(row["deleted"], row["active"]).check()
        snapshot: str = row["snapshot"]
        return snapshot.encode()
