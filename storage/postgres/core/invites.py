"""Invites of a budget and its link sharing: what its owner may hand out.

They are no events: nobody's stream shows them. Their use is one, and counts inside the commit that
lets the user in (`storage.postgres.core.event_log`).
"""

from typing import TYPE_CHECKING

from hub.budget.access import standing
from hub.budget.records import BudgetId, Invite, UserId
from hub.errors import Code, HubError
from storage.postgres.database import Database

if TYPE_CHECKING:
    import asyncpg

INVITES_MAX = 100  # of one budget, at a time

READ_OWNER = """
SELECT b.deleted, p.active, b.owner_id = $2
FROM budgets b
LEFT JOIN participants p ON p.budget_id = b.id AND p.user_id = $2
WHERE b.id = $1
"""
# What ran out makes room; so does what was revoked, once there is none left: until then it is known
# as an invite that was good once.
CREATE = """
WITH cleared AS (
    DELETE FROM invites
    WHERE budget_id = $1 AND (
        expires_at <= $4
        OR revoked AND (
            SELECT count(*) FROM invites WHERE budget_id = $1 AND expires_at > $4
        ) >= $7
    )
)
INSERT INTO invites (budget_id, id, token_hash, created_at, expires_at, max_uses, created_sequence)
SELECT id, $2, $3, $4, $5, $6, last_sequence
FROM budgets WHERE id = $1 AND (
    SELECT count(*) FROM invites WHERE budget_id = $1 AND expires_at > $4 AND NOT revoked
) < $7
RETURNING id
"""
READ_ALL = """
SELECT id::text, token_hash, created_at, expires_at, max_uses, uses, revoked
FROM invites WHERE budget_id = $1 ORDER BY created_at, id
"""
REVOKE = """
UPDATE invites SET revoked = true WHERE budget_id = $1 AND id = $2 RETURNING id
"""
SHARE_LINK = """
UPDATE budgets SET link_sharing = $2 WHERE id = $1
"""


class Invites:
    """Every method is for the budget's owner: raises `HubError` for all others, and `Held`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, owner: UserId, invite: Invite) -> None:
        """Raises `HubError` where the budget has `INVITES_MAX` already that are not revoked."""
        row = await self._as_owner(
            owner,
            invite.budget_id,
            CREATE,
            invite.id,
            invite.token_hash,
            invite.created_at,
            invite.expires_at,
            invite.max_uses,
            INVITES_MAX,
        )
        if not row:
            raise HubError(Code.BAD_REQUEST, f"at most {INVITES_MAX} invites: revoke some")

    async def of_budget(self, owner: UserId, budget_id: BudgetId) -> list[Invite]:
        rows = await self._as_owner(owner, budget_id, READ_ALL)
        return [Invite(budget_id, *row) for row in rows]

    async def revoke(self, owner: UserId, budget_id: BudgetId, invite_id: str) -> None:
        if not await self._as_owner(owner, budget_id, REVOKE, invite_id):
            raise HubError(Code.INVITE_NOT_EXISTS)

    async def share_link(self, owner: UserId, budget_id: BudgetId, enabled: bool) -> None:
        """Whether the bare id lets in."""
        await self._as_owner(owner, budget_id, SHARE_LINK, enabled)

    async def _as_owner(
        self, user_id: UserId, budget_id: BudgetId, statement: str, *arguments: object
    ) -> list["asyncpg.Record"]:
        async with (
            self._database.connection("owners", user_id) as connection,
            connection.transaction(),
        ):
            stands = await connection.fetchrow(READ_OWNER, budget_id, user_id)
            if stands is None:
                raise HubError(Code.BUDGET_NOT_EXISTS)
            if (refusal := standing(stands[0], stands[1])) is not None:
                raise HubError(refusal)
            if not stands[2]:
                raise HubError(Code.NOT_OWNER)
            return await connection.fetch(statement, budget_id, *arguments)
